"""The trainer of any system: stages as data, steps over all devices, checkpoints."""
