"""Landmarks, head pose, blink and expression of every frame."""
