"""Labelled data sets: what they hold, where their releases keep it, and which of it is trained on."""
