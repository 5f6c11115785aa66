"""Statistics, decisions and result tables."""
