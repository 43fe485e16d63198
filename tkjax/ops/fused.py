"""Fused fields: code for one kind of program that a back end's renderer is compiled with, kept by whom it belongs to.

A renderer that interprets programs (C++) needs none. The Triton renderer looks here for a module that knows the program
at hand: `fused(program)` gives its code, or raises NotImplementedError with the reason. What a module draws is decided
by the structure of the program, so a program of the same structure is drawn by it whoever wrote it; what groups of
parameters, rows and the program are called does not matter.
"""

import importlib

from tkjax.ops.program import Program

_modules: dict[str, list[str]] = {}


def register(backend: str, module: str) -> None:
    """Let the renderer of `backend` ask `module` (its dotted name; imported when a program is drawn there first)."""
    known = _modules.setdefault(backend, [])
    if module not in known:
        known.append(module)


def registered(backend: str) -> tuple[str, ...]:
    """The modules, in the order in which they are asked."""
    return tuple(_modules.get(backend, ()))


def find(backend: str, program: Program):
    """What the first module that knows the program gives for it; NotImplementedError with all reasons if none does."""
    reasons = []
    for module in registered(backend):
        try:
            return importlib.import_module(module).fused(program)
        except NotImplementedError as error:
            reasons.append(f"{module.rpartition('.')[2]}: {error}")
    raise NotImplementedError(f"no fused field draws {program.name} ({'; '.join(reasons) or 'none is registered'})")
