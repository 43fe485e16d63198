"""Triton kernels on the GPU, called through jax-triton."""

import importlib.util


def unavailable() -> str | None:
    """Why these kernels cannot run, or None."""
    for package in ("triton", "jax_triton"):
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed: pip install -e '.[cuda]'"
    return None
