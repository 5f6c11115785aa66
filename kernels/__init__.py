"""Kernels: one folder an op, `reference.py` is the definition."""
