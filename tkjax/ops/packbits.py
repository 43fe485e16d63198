"""Occupancy grids in Morton order: thresholding into bits, and the 6-neighbour maximum. Not differentiable.

Subnormal numbers may count as zero.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from tkjax.ops import dispatch


def _fixed(v) -> jax.Array:
    return jax.lax.stop_gradient(jnp.asarray(v, jnp.float32))


def packbits(
    density: Float[Array, " cells"], threshold: float | Float[Array, ""], *, backend: str | None = None
) -> UInt8[Array, " bytes"]:
    """Bit i of byte n is set where density[8 n + i] > threshold (NaN is not). The count must divide by 8."""
    if density.shape[0] % 8:
        raise ValueError(f"packbits: {density.shape[0]} cells are not a multiple of 8")
    module = dispatch.resolve("packbits", backend)
    with jax.named_scope(f"packbits.{module.__name__.split('.')[-2]}"):
        return module.packbits(_fixed(density), _fixed(threshold))


def dilate_morton(density: Float[Array, " cells"], *, backend: str | None = None) -> Float[Array, " cells"]:
    """max(cell, its six face neighbours inside the cube), input and output in Morton order; NaN spreads like a maximum.

    The cube's side must be a power of two up to 1024.
    """
    side = round(density.shape[0] ** (1 / 3))
    if side**3 != density.shape[0] or side & (side - 1) or not 1 <= side <= 1024:
        raise ValueError(f"dilate_morton: {density.shape[0]} cells are no cube with a power of two as its side")
    module = dispatch.resolve("packbits", backend)
    with jax.named_scope(f"dilate_morton.{module.__name__.split('.')[-2]}"):
        return module.dilate_morton(_fixed(density), side)
