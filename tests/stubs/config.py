"""The smallest config with which the trainer runs a stub."""

import importlib

from ml_collections import ConfigDict

from configs.base import get_config


def stub_config(system: str, steps: int = 20, **model) -> ConfigDict:
    """A resolved config for `tests.stubs.<system>`; `model` goes to config.model."""
    c = get_config()
    c.system = f"tests.stubs.{system}"
    c.model = ConfigDict({"steps": steps, "attention_start": 8, **model})
    c.train.log_every = 5
    c.train.checkpoint_every = 10
    c.train.preview_every = 0
    c.eval.chunk_rays = 100
    return c


def smoke_config(system: str) -> ConfigDict:
    """The `smoke` variant of a system of the project, without previews."""
    c = importlib.import_module(f"configs.{system}").get_config("smoke")
    c.train.preview_every = 0
    return c
