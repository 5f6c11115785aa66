"""Sequence mixers, one file a mixer."""
