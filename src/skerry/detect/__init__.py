"""skerry.detect"""
