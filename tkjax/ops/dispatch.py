"""Back ends by name: which exist, which work here, which one an op uses.

A back end is the package `tkjax.ops.<name>` with one module per op. A name means that back end or an error; None means
the best one that works here: Triton kernels on a GPU, C++ kernels on a CPU, else the reference in plain jnp.
Order of choice: argument, `use`/`set_default`, the environment variable TKJAX_OPS_BACKEND, the best.

A module that does not do every case of its op has a function `supports(*case)`, which raises NotImplementedError with
the reason; the op says what makes a case. Then the next back end is asked, and the line that names the one that runs
tells why the faster ones do not.
"""

import contextlib
import functools
import importlib
import importlib.util
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType

import jax

BACKENDS = ("triton", "cpu", "reference")  # best first
PLATFORMS = {"triton": ("gpu", "cuda"), "cpu": ("cpu",)}  # of jax.default_backend(); the reference runs everywhere
PARTS = {"render_fused": ("march", "field", "composite")}  # ops that others do together where no kernel does the whole
ENVIRONMENT = "TKJAX_OPS_BACKEND"

log = logging.getLogger("tkjax.ops")
_default: str | None = None
_ran: dict[str, set[str]] = {}
_said: list[str] = []


def _check(name: str, what: str) -> str:
    if not isinstance(name, str) or name not in BACKENDS:
        raise ValueError(
            f"{what} {name!r} is unknown; choose {', '.join(BACKENDS)}, or None for the best that works here"
        )
    return name


def set_default(name: str | None) -> None:
    """The back end of every op that has it, for this process; None for the best. ValueError if it cannot run here."""
    global _default
    if name is not None and (reason := unavailable(_check(name, "ops back end"))):
        raise ValueError(f"ops back end {name!r} does not work here: {reason}")
    _default = name


@contextlib.contextmanager
def use(name: str | None) -> Iterator[None]:
    """`set_default` within a block. What was compiled before keeps its back end."""
    global _default
    before = _default
    set_default(name)
    try:
        yield
    finally:
        _default = before


def chosen() -> str | None:
    """The name that `set_default` or the environment gives, or None. ValueError if that name is unknown."""
    if _default is not None:
        return _default
    name = os.environ.get(ENVIRONMENT) or None
    return None if name is None else _check(name, f"{ENVIRONMENT}:")


def unavailable(name: str) -> str | None:
    """Why back end `name` cannot run in this process, or None if it can."""
    if name == "reference":
        return None
    platform = jax.default_backend()
    if platform not in PLATFORMS[name]:
        return f"it runs on {PLATFORMS[name][0]} devices, and JAX uses {platform}"
    return importlib.import_module(f"tkjax.ops.{name}").unavailable()


@functools.cache
def _has(name: str, op: str) -> bool:
    return importlib.util.find_spec(f"tkjax.ops.{name}.{op}") is not None


@functools.cache
def backends(op: str) -> tuple[str, ...]:
    """The back ends that have `op`, or all its parts, best first, whether or not they work here. Imports none."""
    parts = PARTS.get(op, (op,))
    return tuple(name for name in BACKENDS if _has(name, op) or all(_has(name, part) for part in parts))


def _why_not(name: str, op: str, case: tuple) -> str | None:
    """The reason why back end `name` does not do this case (none: any) of an op that it has, or None if it does."""
    if reason := unavailable(name):
        return reason
    supports = getattr(importlib.import_module(f"tkjax.ops.{name}.{op}"), "supports", None)
    if supports is not None and case:
        try:
            supports(*case)
        except NotImplementedError as error:
            return str(error)
    return None


def _wanted(op: str, backend: str | None) -> str | None:
    """The back end that is named for this call or for the process."""
    if backend is None:
        return chosen()
    if _check(backend, f"{op}: back end") not in backends(op):
        raise ValueError(f"{op} has no {backend} back end; choose {', '.join(backends(op))}")
    return backend


def _say(op: str, what: str, reasons: dict[str, str]) -> None:
    """One line for each way in which an op runs: a warning where the device has faster kernels that do not do it."""
    faster = [f"{name} does not: {why}" for name, why in reasons.items() if jax.default_backend() in PLATFORMS[name]]
    line = f"{op} -> {'; '.join([what, *faster])}"
    if line not in _said:
        _said.append(line)
        log.log(logging.WARNING if faster else logging.INFO, "%s", line)


def _first(op: str, names: Iterable[str], case: tuple) -> tuple[ModuleType | None, dict[str, str]]:
    """(the module of the first of these back ends that does the case, or None; why those before it do not)."""
    reasons: dict[str, str] = {}
    for name in names:
        if not _has(name, op):
            continue
        reason = _why_not(name, op, case)
        if reason is None:
            _ran.setdefault(op, set()).add(name)
            _say(op, describe(name), reasons)
            return importlib.import_module(f"tkjax.ops.{name}.{op}"), reasons
        reasons[name] = reason
    return None, reasons


def resolve(op: str, backend: str | None = None, *case) -> ModuleType:
    """The module that implements `op` in this `case` (see the module's docstring).

    What a back end does not do is a ValueError with its reason where it was named, here or for the whole process; ops
    that one named for the process does not have run on the reference. NotImplementedError has all reasons where none
    was named and none does it.
    """
    wanted = _wanted(op, backend)
    order = BACKENDS if wanted is None else (wanted if _has(wanted, op) else "reference",)
    module, reasons = _first(op, order, case)
    if module is not None:
        return module
    if wanted is None:
        raise NotImplementedError(f"{op}: " + "; ".join(f"{name}: {reason}" for name, reason in reasons.items()))
    ((name, reason),) = reasons.items()
    raise ValueError(f"{op}: back end {name!r} does not work here: {reason}")


def resolve_whole(op: str, backend: str | None = None, *case) -> ModuleType | None:
    """The module whose kernel does all of `op` in this case; None where its PARTS are to be called, with `backend`.

    A named back end need not have the whole: its kernels of the parts, or the parts' own refusals, are what it gives.
    """
    wanted = _wanted(op, backend)
    if wanted is not None and (reason := unavailable(wanted)):
        raise ValueError(f"{op}: back end {wanted!r} does not work here: {reason}")
    module, reasons = _first(op, BACKENDS if wanted is None else (wanted,), case)
    if module is None:
        _ran.setdefault(op, set()).add("parts")
        _say(op, ", ".join(PARTS[op]), reasons)
    return module


def ran() -> dict[str, set[str]]:
    """op -> the back ends that this process has resolved for it; `parts` where its parts were, each by itself."""
    return {op: set(names) for op, names in _ran.items()}


def said() -> list[str]:
    """The lines about which back end runs, and why not a faster one, of this process."""
    return list(_said)


def describe(name: str) -> str:
    """A back end that works here with what else decides its results, such as `cpu (avx512)`."""
    module = importlib.import_module(f"tkjax.ops.{name}")
    return f"{name} ({module.variant()})" if hasattr(module, "variant") else name


def preferred() -> str:
    """`describe` of the back end that ops use where they have it: the chosen one, else the best that works here."""
    name = chosen() or next(name for name in BACKENDS if unavailable(name) is None)
    if reason := unavailable(name):
        raise ValueError(f"ops back end {name!r} does not work here: {reason}")
    return describe(name)


def table() -> list[str]:
    """One line per back end: works, or why not."""
    return [
        f"{describe(name)} works" if unavailable(name) is None else f"{name}: {unavailable(name)}" for name in BACKENDS
    ]


def once_differentiable(op: str) -> Callable:
    """Decorator for the gradient function of a kernel: differentiating it again is refused with a sentence.

    The function takes and gives pytrees of arrays.
    """

    def decorate(fn: Callable) -> Callable:
        @jax.custom_jvp
        def guarded(*args):
            return fn(*args)

        @guarded.defjvp
        def refuse(primals, tangents):
            raise NotImplementedError(
                f"{op}: second derivatives are not available in kernels; use backend='reference' or "
                f"{ENVIRONMENT}=reference"
            )

        return functools.wraps(fn)(guarded)

    return decorate
