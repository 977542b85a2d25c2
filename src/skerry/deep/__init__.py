"""skerry.deep"""
