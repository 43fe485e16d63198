"""The clip's sound and its features."""
