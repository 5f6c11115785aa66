"""Corpora, tokenizers, token cache, exact order."""
