"""Which part of a clip's picture and time becomes the dataset."""
