"""skerry.robust"""
