"""Reusable learned blocks: grids, small MLPs, audio networks."""
