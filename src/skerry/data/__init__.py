"""skerry.data"""
