"""Reference field: `Program.evaluate` in chunks."""

import functools

import jax
import jax.numpy as jnp

from tkjax.ops.program import Program
from tkjax.ops.reference.chunks import packed_map, pad_rows


def _chunk(program: Program, weights, points, rows):
    """The field of one chunk, whose first sample is live. What is not `live` repeats the first sample and is masked:
    it may hold anything, and brings no NaN into gradients that the first sample does not bring."""
    live, values = rows["live"][:, None], dict(weights["values"])
    for name, index in rows["index"].items():
        index = jnp.where(rows["live"], index, index[:1])
        values[name] = values[name][jnp.clip(index, 0, values[name].shape[0] - 1)]
    out = program.evaluate(jnp.where(live, points, points[:1]), values, weights["params"])
    return jnp.where(live, out, 0.0)


def forward(program: Program, points, values, indices, params, total, chunk: int):
    n = points.shape[0]
    weights = {"values": values, "params": params}
    live = jnp.arange(n) < (n if total is None else total)
    rows = {"index": indices, "live": live}
    if total is not None and n:
        total = jnp.clip(total, 0, n)
        return packed_map(functools.partial(_chunk, program), min(chunk, n), weights, points, rows, total)
    if n <= chunk:
        return _chunk(program, weights, points, rows)
    # The count is static here: a scan, which can be differentiated any number of times.
    split = jax.tree.map(lambda v: v.reshape(-1, chunk, *v.shape[1:]), pad_rows((points, rows), chunk))
    step = jax.checkpoint(functools.partial(_chunk, program, weights))
    return jax.lax.map(lambda part: step(*part), split).reshape(-1, program.channels)[:n]
