"""Architectures. Import `kernels` and torch only."""
