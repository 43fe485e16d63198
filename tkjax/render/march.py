"""Packed samples: only what the march kept is given to the field, in a deterministic order, and nothing is dropped.

The dense layout [R,S] of `ops.march` has most slots empty. `pack` numbers the kept samples ray by ray;
`packed_map` runs a function over them in chunks of static size with a trip count that depends on how many
there are; `unpack` brings the results back to [R,S].
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from tkjax.types import PyTree


class Packing(NamedTuple):
    """Where packed samples come from. `ray`, `slot` [N] are those of each packed sample (N = R * S, what lies at
    and beyond `total` repeats some ray); `start` [R] is the first packed sample of each ray."""

    ray: Int[Array, " N"]
    slot: Int[Array, " N"]
    start: Int[Array, " R"]
    total: Int[Array, ""]


def pack(count: Int[Array, " R"], samples: int) -> Packing:
    """Number the samples of rays that kept `count` <= `samples` each: prefix sum, then write."""
    rays = count.shape[0]
    end = jnp.cumsum(count)
    start = end - count
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


def _chunks(total, size: int):
    return (total + size - 1) // size


def _slice(tree, start, size: int):
    return jax.tree.map(lambda v: jax.lax.dynamic_slice_in_dim(v, start, size), tree)


def _write(buffers, values, start):
    return jax.tree.map(lambda b, v: jax.lax.dynamic_update_slice_in_dim(b, v, start, 0), buffers, values)


def _pad(tree, size: int):
    def one(v):
        missing = -v.shape[0] % size
        return jnp.pad(v, [(0, missing)] + [(0, 0)] * (v.ndim - 1)) if missing else v

    return jax.tree.map(one, tree)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def packed_map(fn: Callable, chunk: int, params: PyTree, x: PyTree, rows: PyTree, total) -> PyTree:
    """fn(params, x[k : k + chunk], rows[k : k + chunk]) for the chunks that hold the first `total` rows.

    fn maps rows to rows (leaves [chunk, …]) and must not close over traced values: they go in `params`.
    What comes out at and beyond `total` is zero or fn of whatever lies there. Gradients go to `params` and `x`,
    not to `rows`; the backward pass computes fn again, chunk by chunk, so that its memory does not grow
    with the samples.
    """
    length = jax.tree.leaves((x, rows))[0].shape[0]
    x, rows = _pad((x, rows), chunk)
    out = jax.eval_shape(fn, params, *_slice((x, rows), 0, chunk))
    padded = jax.tree.leaves((x, rows))[0].shape[0]
    buffers = jax.tree.map(lambda s: jnp.zeros((padded, *s.shape[1:]), s.dtype), out)

    def body(i, buffers):
        values = fn(params, *_slice((x, rows), i * chunk, chunk))
        return _write(buffers, values, i * chunk)

    buffers = jax.lax.fori_loop(0, _chunks(total, chunk), body, buffers)
    return jax.tree.map(lambda b: b[:length], buffers)


def _packed_map_fwd(fn, chunk, params, x, rows, total):
    return packed_map(fn, chunk, params, x, rows, total), (params, x, rows, total)


def _packed_map_bwd(fn, chunk, residuals, g):
    params, x, rows, total = residuals
    length = jax.tree.leaves((x, rows))[0].shape[0]
    x, rows, g = _pad((x, rows, g), chunk)

    def body(i, carry):
        sums, dx = carry
        x_i, rows_i, g_i = _slice((x, rows, g), i * chunk, chunk)
        _, vjp = jax.vjp(lambda p, x: fn(p, x, rows_i), params, x_i)
        dp_i, dx_i = vjp(g_i)
        return jax.tree.map(jnp.add, sums, dp_i), _write(dx, dx_i, i * chunk)

    zeros = jax.tree.map(jnp.zeros_like, (params, x))
    sums, dx = jax.lax.fori_loop(0, _chunks(total, chunk), body, zeros)
    return sums, jax.tree.map(lambda b: b[:length], dx), None, None


packed_map.defvjp(_packed_map_fwd, _packed_map_bwd)
