"""Scalars of one frame as one array, and jitted stages that read them.

XLA on the CPU repeats shared work in every output of a fused computation, and ignores optimisation barriers.
So the renderer is cut into stages that hand arrays to each other, each with few outputs or little to share.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np


def layout_of(controls: dict) -> tuple:
    return tuple((k, np.asarray(v).shape) for k, v in controls.items())


def pack(controls: dict) -> np.ndarray:
    return np.concatenate([np.asarray(v, np.float32).ravel() for v in controls.values()])


def unpack(vector, layout: tuple) -> dict:
    out, at = {}, 0
    for name, dims in layout:
        size = int(np.prod(dims)) if dims else 1
        out[name] = vector[at : at + size].reshape(dims) if dims else vector[at]
        at += size
    return out


@dataclasses.dataclass(frozen=True)
class Packed:
    """Controls on the device: `vector` and where each name lies in it."""

    vector: jax.Array
    layout: tuple

    @classmethod
    def of(cls, controls: dict) -> "Packed":
        return cls(jnp.asarray(pack(controls)), layout_of(controls))


def stage(function):
    """function(f, *arrays) -> arrays, compiled on its own; called as stage(packed, *arrays)."""

    @functools.partial(jax.jit, static_argnames="layout")
    def run(vector, arrays, layout):
        return function(unpack(vector, layout), *arrays)

    @functools.wraps(function)
    def call(packed: Packed, *arrays):
        return run(packed.vector, arrays, layout=packed.layout)

    return call
