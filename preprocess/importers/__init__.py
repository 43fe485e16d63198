"""Folders of the originals to a dataset."""
