"""Stage outputs into a dataset, and pictures for the eye."""
