"""Kinds of labelled examples, one file each."""
