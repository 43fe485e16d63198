"""The face tracker: its model file, its worker processes."""
