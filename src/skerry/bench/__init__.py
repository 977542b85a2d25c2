"""skerry.bench"""
