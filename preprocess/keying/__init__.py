"""A person cut out of what stands behind."""
