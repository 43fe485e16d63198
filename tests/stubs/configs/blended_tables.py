"""Tables blended by expression coefficients, on the head alone."""

from ml_collections import ConfigDict

from configs import base

PLAYS = "expressive"  # its part in tests of what drives a face


def get_config(variant: str = "full") -> ConfigDict:
    c = base.get_config()
    c.system, c.variant = "tests.stubs.blended_tables", variant
    c.model = ConfigDict({"steps": 20, "side": 8, "most": 6.0})
    return c
