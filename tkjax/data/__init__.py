"""A dataset as training sees it: clip, cache, split, batches."""
