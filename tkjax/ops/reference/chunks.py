"""A function over many rows in chunks of static size, as many chunks as a traced count asks for."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any


def _chunks(total, size: int):
    return (total + size - 1) // size


def _slice(tree, start, size: int):
    return jax.tree.map(lambda v: jax.lax.dynamic_slice_in_dim(v, start, size), tree)


def _write(buffers, values, start):
    return jax.tree.map(lambda b, v: jax.lax.dynamic_update_slice_in_dim(b, v, start, 0), buffers, values)


def pad_rows(tree, size: int):
    """Leaves [N,…] with zero rows added until N is a multiple of `size`."""

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
    x, rows = pad_rows((x, rows), chunk)
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
    x, rows, g = pad_rows((x, rows, g), chunk)

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
