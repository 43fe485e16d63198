"""C++ kernels on the CPU, called through XLA's foreign function interface.

One shared library (built by setup.py) holds every kernel for every instruction set; which set runs is chosen when it
is loaded: the best that the processor has, or the one in TKJAX_CPU_ISA.
"""

import contextlib
import ctypes
import functools
import hashlib
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

ISAS = ("generic", "avx2", "avx512")
ENVIRONMENT = "TKJAX_CPU_ISA"
FOLDER = Path(__file__).resolve().parent
LIBRARY = FOLDER / f"_kernels{sysconfig.get_config_var('EXT_SUFFIX')}"


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str | None]:
    """(library, None) or (None, why not)."""
    if not LIBRARY.is_file():
        return None, (
            "the kernels are not built (no C++ compiler at install time?); install one and run "
            "`pip install -e .`, or `python setup.py build_ext --inplace`"
        )
    try:
        library = ctypes.CDLL(str(LIBRARY))
    except OSError as error:
        return None, f"the kernels do not load: {error}"
    library.tkjax_sources.restype = ctypes.c_char_p
    built, here = library.tkjax_sources().decode(), sources_digest()
    if here is not None and built != here:
        return None, "the kernels are older than their sources; run `python setup.py build_ext --inplace`"
    set_isa(os.environ.get(ENVIRONMENT) or ISAS[library.tkjax_best_isa()], library)
    return library, None


def sources_digest() -> str | None:
    """Of the kernel sources beside this file, None where they are not installed (as in setup.py)."""
    digest, found = hashlib.sha256(), False
    for path in sorted((FOLDER / "src").glob("*.*")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
        found = True
    return digest.hexdigest()[:16] if found else None


def unavailable() -> str | None:
    """Why these kernels cannot run, or None. ValueError if TKJAX_CPU_ISA asks for what is not there."""
    return _load()[1]


def _library() -> ctypes.CDLL:
    library, reason = _load()
    if library is None:
        raise RuntimeError(f"tkjax CPU kernels: {reason}")
    return library


def set_isa(name: str, library: ctypes.CDLL | None = None) -> None:
    """Run all kernels of this process with instruction set `name`; also those in programs compiled before."""
    if name not in ISAS:
        raise ValueError(f"CPU instruction set {name!r} is unknown; {ENVIRONMENT} is one of {', '.join(ISAS)}")
    library = library or _library()
    if library.tkjax_set_isa(ISAS.index(name)):
        best = ISAS[library.tkjax_best_isa()]
        raise ValueError(f"CPU instruction set {name} is not supported here; the best is {best} ({ENVIRONMENT})")


def isas() -> tuple[str, ...]:
    """The instruction sets that can run here, worst first."""
    return ISAS[: _library().tkjax_best_isa() + 1]


def active_isa() -> str:
    return ISAS[_library().tkjax_get_isa()]


def variant() -> str:
    """What dispatch says beside the name."""
    return active_isa()


@contextlib.contextmanager
def isa(name: str) -> Iterator[None]:
    """`set_isa` within a block; the caller waits for its results inside (`jax.block_until_ready`)."""
    before = active_isa()
    set_isa(name)
    try:
        yield
    finally:
        set_isa(before)


@functools.cache
def _register(target: str) -> None:
    jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(getattr(_library(), target)), platform="cpu")


def call(target: str, out, *args, **attributes):
    """Call handler `target` of the library; `out` is a (sequence of) jax.ShapeDtypeStruct.

    Attributes are numpy scalars or 1-D arrays of the exact type that the handler binds; Python numbers are refused.
    Under vmap the call is repeated, one by one. Not differentiable.
    """
    for name, value in attributes.items():
        if not isinstance(value, (np.generic, np.ndarray, str)):
            raise TypeError(f"{target}: attribute {name} must be a numpy scalar or array, got {type(value).__name__}")
    _register(target)
    return jax.ffi.ffi_call(target, out, vmap_method="sequential")(*args, **attributes)
