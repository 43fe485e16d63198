"""Sound, poses and blinks to frames."""
