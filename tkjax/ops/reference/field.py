"""Reference field: `Program.evaluate` in chunks."""

import functools

import jax
import jax.numpy as jnp

from tkjax.ops.program import Program
from tkjax.ops.reference.chunks import packed_map, pad_rows


def _chunk(program: Program, weights, points, rows):
    """The field of one chunk; what is not `live` is computed at the origin and masked."""
    live, values = rows["live"][:, None], dict(weights["values"])
    for name, index in rows["index"].items():
        table = values[name]
        values[name] = jnp.where(live, table[jnp.clip(index, 0, table.shape[0] - 1)], 0.0)
    out = program.evaluate(jnp.where(live, points, 0.0), values, weights["params"])
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
