"""A mesh drawn whole, moved by windows of coefficient frames."""

from ml_collections import ConfigDict

from configs import base


def get_config(variant: str = "full") -> ConfigDict:
    c = base.get_config()
    c.system, c.variant = "tests.stubs.coefficient_mesh", variant
    c.model = ConfigDict({"steps": 20})
    return c
