"""Back ends by name: which exist, which work here, which one an op uses.

A back end is the package `tkjax.ops.<name>` with one module per op. A name means that back end or an error; None means
the best one that works here: Triton kernels on a GPU, C++ kernels on a CPU, else the reference in plain jnp.
Order of choice: argument, `use`/`set_default`, the environment variable TKJAX_OPS_BACKEND, the best.
"""

import contextlib
import functools
import importlib
import importlib.util
import logging
import os
from collections.abc import Callable, Iterator
from types import ModuleType

import jax

BACKENDS = ("triton", "cpu", "reference")  # best first
PLATFORMS = {"triton": ("gpu", "cuda"), "cpu": ("cpu",)}  # of jax.default_backend(); the reference runs everywhere
ENVIRONMENT = "TKJAX_OPS_BACKEND"

log = logging.getLogger("tkjax.ops")
_default: str | None = None
_ran: dict[str, set[str]] = {}
_said: set[tuple] = set()


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
def backends(op: str) -> tuple[str, ...]:
    """The back ends that have `op`, best first, whether or not they work here. Imports none of them."""
    return tuple(name for name in BACKENDS if importlib.util.find_spec(f"tkjax.ops.{name}.{op}"))


def _say(*what: str, level: int = logging.INFO) -> None:
    if what not in _said:
        _said.add(what)
        log.log(level, "%s", " ".join(what))


def resolve(op: str, backend: str | None = None, supports: Callable[[ModuleType], None] | None = None) -> ModuleType:
    """The module that implements `op`.

    supports(module), if given, raises NotImplementedError with the reason where a back end cannot do the case.
    That reason, an unavailable or an unknown back end is a ValueError where the back end was named, here or for the
    whole process; ops that one named for the process does not have run on the reference.
    """
    explicit = backend is not None
    wanted = _check(backend, f"{op}: back end") if explicit else chosen()
    if explicit and wanted not in backends(op):
        raise ValueError(f"{op} has no {wanted} back end; choose {', '.join(backends(op))}")
    order = BACKENDS if wanted is None else (wanted,) if explicit else (wanted, "reference")
    for name in order:
        if name not in backends(op):
            continue
        reason = unavailable(name)
        if reason is None:
            module = importlib.import_module(f"tkjax.ops.{name}.{op}")
            try:
                if supports is not None:
                    supports(module)
            except NotImplementedError as error:
                reason = str(error)
        if reason is None:
            _ran.setdefault(op, set()).add(name)
            _say(op, "->", describe(name))
            return module
        if name == wanted:
            raise ValueError(f"{op}: back end {name!r} does not work here: {reason}")
        if jax.default_backend() in PLATFORMS[name]:  # the device has faster kernels, so its user must hear of it
            _say(op, "does not use", f"{name}:", reason, level=logging.WARNING)
    raise AssertionError(f"{op} has no reference")


def ran() -> dict[str, set[str]]:
    """op -> the back ends that have been resolved for it in this process."""
    return {op: set(names) for op, names in _ran.items()}


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
