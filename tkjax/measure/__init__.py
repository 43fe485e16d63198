"""Held-out frames against the truth, and the report."""
