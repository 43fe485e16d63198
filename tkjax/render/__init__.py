"""Sampling, compositing and whole images. Nothing here knows a field; it arrives as a function."""
