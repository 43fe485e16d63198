"""The trained bundle, independent of the dataset that it came from."""
