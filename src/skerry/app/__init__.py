"""skerry.app"""
