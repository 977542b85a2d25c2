"""Planned wing; see the catalogue (``skerry papers``)."""
