"""Shared torch code, behind the extra ``deep``."""
