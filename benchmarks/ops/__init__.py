"""Times of the ops: cases x back ends x modes."""
