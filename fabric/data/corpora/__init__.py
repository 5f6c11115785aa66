"""Corpora, one file a kind."""
