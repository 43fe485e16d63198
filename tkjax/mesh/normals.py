"""Normals of a mesh's vertices."""

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from tkjax.types import Array

SMALLEST_SQUARE = 1e-20  # of a vertex's summed normal: below it the vertex has the default normal


def vertex_normals(positions: Float[Array, "*B M 3"], faces: Int[Array, "F 3"]) -> Float[Array, "*B M 3"]:
    """Unit normals, area-weighted: normalise(sum over a vertex's faces of (p1 - p0) x (p2 - p0)).

    (0, 0, 1) where the sum is zero, as at unused vertices (dossier dyntet §3, shading). Differentiable in positions;
    zero gradient where the default stands. Degenerate faces add nothing.
    """
    p0, p1, p2 = (positions[..., faces[:, k], :] for k in range(3))
    cross = jnp.cross(p1 - p0, p2 - p0)
    total = jnp.zeros_like(positions)
    for k in range(3):
        total = total.at[..., faces[:, k], :].add(cross)
    square = jnp.sum(total * total, -1, keepdims=True)
    flat = square < SMALLEST_SQUARE
    unit = total * jax.lax.rsqrt(jnp.where(flat, 1.0, square))
    return jnp.where(flat, jnp.array([0.0, 0.0, 1.0], positions.dtype), unit)
