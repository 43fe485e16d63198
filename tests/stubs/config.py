"""The stubs and their configs, found by listing them: each is one file and one config, and nobody else names it."""

import importlib
import pkgutil

from ml_collections import ConfigDict

from tests.stubs import configs

NAMES = tuple(sorted(m.name for m in pkgutil.iter_modules(configs.__path__)))


def config_file(name: str):
    return importlib.import_module(f"tests.stubs.configs.{name}")


def named(name: str) -> str:
    """The stub that plays a part (`simplest`, `staged`, `expressive`), or that has the name."""
    return {getattr(config_file(n), "PLAYS", n): n for n in NAMES}.get(name, name)


def stub_config(name: str, steps: int = 20, **model) -> ConfigDict:
    """A resolved config of a stub, by its name or by the part that it plays; `model` goes to config.model."""
    c = config_file(named(name)).get_config("test")
    c.model.update({"steps": steps, **model})
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
