"""A kernel for triton_ambient_head_test.py: the features that the fused head reads, by themselves."""

from typing import no_type_check

import jax
import jax.numpy as jnp
import numpy as np
import triton
import triton.language as tl

from tkjax.fields.triton import ambient_head
from tkjax.ops import ProgramBuilder, grid_encode
from tkjax.ops.triton import launch


@triton.jit
@no_type_check
def kernel(points, table, scales, rules, N, out, GRID: tl.constexpr, TILES: tl.constexpr, BLOCK: tl.constexpr):
    n = tl.arange(0, BLOCK)[:, None]
    x = tl.load(points + 3 * n, mask=n < N, other=0.0)
    y = tl.load(points + 3 * n + 1, mask=n < N, other=0.0)
    z = tl.load(points + 3 * n + 2, mask=n < N, other=0.0)
    f = ambient_head._encoded(x, y, z, n < N, table, scales, rules, GRID, 3)
    for i in tl.static_range(TILES):
        column = 16 * i + tl.arange(0, 16)[None, :]
        tl.store(out + n * (16 * TILES) + column, f[i], mask=n < N)


def encoded(spec, points, table):
    """(what the head reads of `table` [T,2] at points [N,3], what `grid_encode` of the reference gives)."""
    p = ProgramBuilder("grid")
    (instruction,) = (i for i in p.build(f=p.grid("grid", spec, p.points)).instructions if i.op == "grid")
    scales, rules, entry = ambient_head._grid(instruction)
    tiles, n = ambient_head._tiles.fn(spec.levels), len(points)
    (got,) = launch.call(
        kernel, points, table.reshape(-1), scales, rules, n, grid=(1,), GRID=entry, TILES=tiles, BLOCK=64,
        out_shape=[jax.ShapeDtypeStruct((n, 16 * tiles), jnp.float32)],
    )  # fmt: skip
    unit = jnp.asarray((points + np.float32(1)) * np.float32(0.5))
    return got, grid_encode(unit[:, None], jnp.asarray(table)[None], spec, backend="reference")[:, 0]
