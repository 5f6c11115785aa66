"""Run records: atomic, append-only, the single truth for resume and dedupe."""
