"""What JAX reads when it starts. Called by launch.py, never when the library is imported."""

import importlib.metadata
import logging
import os
import sys
from pathlib import Path

# Releases whose GPU scatter-add became a compare-and-swap loop, up to 2000 times slower under contention
# (openxla/xla#46225, jax-ml/jax#38806); the LLVM option gives the native float atomic back.
BAD_SCATTER_JAXLIB = ("0.10.2", "0.11.0")
FTZ_ATOMICS = "nvptx-allow-ftz-atomics"


def cuda_plugins() -> list[str]:
    """Installed GPU plug-ins of JAX, `name version` each."""
    found = {d.name.lower(): d.version for d in importlib.metadata.distributions() if d.name}
    return [f"{name} {version}" for name, version in sorted(found.items()) if name.startswith("jax-cuda")]


def scatter_is_slow() -> bool:
    """Whether the installed jaxlib needs the repair and something would read it."""
    return importlib.metadata.version("jaxlib") in BAD_SCATTER_JAXLIB and bool(cuda_plugins())


def scatter_is_repaired() -> bool:
    return FTZ_ATOMICS in os.environ.get("XLA_FLAGS", "")


def prepare() -> None:
    """Set the repair of known-bad releases and the persistent compilation cache; what the user set stays."""
    if scatter_is_slow() and not scatter_is_repaired():
        option = f"--xla_backend_extra_options=-{FTZ_ATOMICS}"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {option}".strip()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tkjax" / "jax"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")


def show_facts() -> None:
    """Print which kernel back end each op uses, when it is first used, and why a better one is not; and where the
    decoded frames lie."""
    for logger, word in (("tkjax.ops", "kernels"), ("tkjax.data.frame_cache", "frames")):
        log = logging.getLogger(logger)
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter(f"{word}: %(message)s"))
        log.handlers, log.propagate = [handler], False
        log.setLevel(logging.INFO)
