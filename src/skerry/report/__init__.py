"""skerry.report"""
