"""Packed samples: only what counts is given to the field, in a deterministic order, and nothing is dropped.

The dense layout [R,S] of `ops.march` has most slots empty. `pack` numbers the kept samples ray by ray, `field` takes
as many of them as there are, `unpack` brings the results back to [R,S]. A mask [R] of pixels or cells is the same with
one sample each: `pack(mask, 1)`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


class Packing(NamedTuple):
    """Where packed samples come from. `ray`, `slot` [N] are those of each packed sample (N = R * S, what lies at
    and beyond `total` repeats some ray); `start` [R] is the first packed sample of each ray."""

    ray: Int[Array, " N"]
    slot: Int[Array, " N"]
    start: Int[Array, " R"]
    total: Int[Array, ""]


def pack(count: Int[Array, " R"] | Bool[Array, " R"], samples: int) -> Packing:
    """Number the samples of rays that kept `count` <= `samples` each: prefix sum, then write."""
    rays = count.shape[0]
    count = count.astype(jnp.int32)
    end = jnp.cumsum(count)
    start = end - count
    if samples == 1:  # a mask: its rows are written at once
        place = jnp.where(count > 0, start, rays)
        ray = jnp.zeros(rays, jnp.int32).at[place].set(jnp.arange(rays, dtype=jnp.int32), mode="drop")
        return Packing(ray, jnp.zeros_like(ray), start, end[-1])
    first = jnp.zeros(rays * samples + 1, jnp.int32).at[start].add(1)  # empty rays share the start of the next
    ray = jnp.cumsum(first[:-1]) - 1
    slot = jnp.arange(rays * samples, dtype=jnp.int32) - start[ray]
    return Packing(ray, jnp.clip(slot, 0, samples - 1), start, end[-1])


@jax.custom_vjp
def unpack(packed, packing: Packing, slot_valid):
    """[N,C] packed values -> [R,S,C]; slots that are not valid get zero. The gradient is a gather as well."""
    rays, samples = slot_valid.shape
    index = packing.start[:, None] + jnp.arange(samples, dtype=jnp.int32)
    dense = packed[jnp.where(slot_valid, index, 0).reshape(-1)].reshape(rays, samples, -1)
    return jnp.where(slot_valid[..., None], dense, 0.0)


def _unpack_fwd(packed, packing, slot_valid):
    return unpack(packed, packing, slot_valid), (packing, slot_valid)


def _unpack_bwd(residuals, g):
    packing, _ = residuals
    packed = g[packing.ray, packing.slot]
    inside = jnp.arange(packed.shape[0]) < packing.total
    return jnp.where(inside[:, None], packed, 0.0), None, None


unpack.defvjp(_unpack_fwd, _unpack_bwd)
