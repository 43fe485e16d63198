"""Weight files of PyTorch: read, written, converted."""
