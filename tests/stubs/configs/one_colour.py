"""One colour: nothing drives it, nothing is sampled twice alike."""

from ml_collections import ConfigDict

from configs import base

PLAYS = "simplest"  # its part in tests of the trainer


def get_config(variant: str = "full") -> ConfigDict:
    c = base.get_config()
    c.system, c.variant = "tests.stubs.one_colour", variant
    c.model = ConfigDict({"steps": 20})
    return c
