"""The command line and what it calls; only this room knows `Options`."""
