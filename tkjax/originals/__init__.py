"""The checkpoints of RAD-NeRF, ER-NeRF and Avatar-ERNeRF as our parameters and state, in both directions."""
