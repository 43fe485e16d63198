"""Back ends by name: which exist, which work here, which one an op uses.

A name means that back end or an error; None means the best one that works here.
"""

import importlib
from types import ModuleType

BACKENDS = ("reference",)  # best first; a back end is the package tkjax.ops.<name> with one module per op


def resolve(op: str, backend: str | None = None) -> ModuleType:
    """The module that implements `op`. ValueError names the choices if `backend` is unknown."""
    name = BACKENDS[0] if backend is None else backend
    if name not in BACKENDS:
        raise ValueError(f"ops back end {backend!r} is unknown; choose {', '.join(BACKENDS)}, or None for the best")
    return importlib.import_module(f"tkjax.ops.{name}.{op}")
