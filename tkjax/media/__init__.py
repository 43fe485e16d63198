"""Sound, video and pictures: decoding, encoding, and putting pictures back (numpy, PyAV, Pillow)."""
