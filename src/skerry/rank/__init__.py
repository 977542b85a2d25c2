"""skerry.rank"""
