"""Head by rays from sound, torso in front of it: two stages, rates by steps, a group that joins later."""

from ml_collections import ConfigDict

from configs import base

PLAYS = "staged"


def get_config(variant: str = "full") -> ConfigDict:
    c = base.get_config()
    c.system, c.variant = "tests.stubs.two_layers", variant
    c.model = ConfigDict({"steps": 20, "attention_start": 8})
    return c
