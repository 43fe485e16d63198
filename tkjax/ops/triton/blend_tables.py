"""blend_tables on the GPU. A program has a block of numbers of every array and a block of sums; an array whose weight
is 0 in all of them is not read. Sums are in a fixed order: the same bits every time.
"""

from typing import no_type_check

import jax
import jax.numpy as jnp
import triton
import triton.language as tl

from tkjax.ops.blend_tables import differentiable
from tkjax.ops.triton import launch

MAX_ROWS = 16  # sums of a program
MAX_COLUMNS = 1024  # numbers of each: two loads of 16 bytes for each thread of four warps
TILE = 4096  # sums x numbers: 32 registers of a thread


@triton.jit
@no_type_check
def sums_kernel(
    weights, arrays, ROW_STRIDE, ARRAY_STRIDE, SUMS, ARRAYS, SIZE, out, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """out[m] = sum over j of weights[m * ROW_STRIDE + j * ARRAY_STRIDE] * arrays[j], all of SIZE numbers."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    at = arrays + column
    w_at = weights + row * ROW_STRIDE
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for _j in range(0, ARRAYS):
        w = tl.load(w_at, mask=row < SUMS, other=0.0)
        if tl.max((w != 0.0).to(tl.int32)) > 0:
            total += w[:, None] * tl.load(at, mask=column < SIZE, other=0.0)[None, :]
        at += SIZE
        w_at += ARRAY_STRIDE
    to = out + row.to(tl.int64)[:, None] * SIZE + column[None, :]
    tl.store(to, total, mask=(row < SUMS)[:, None] & (column < SIZE)[None, :])


@triton.jit
@no_type_check
def products_kernel(
    left, right, LEFTS, RIGHTS, SIZE, out, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """out[block, a, b] = <left[a], right[b]> over a block of columns."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    tile = (row < LEFTS)[:, None] & (column < SIZE)[None, :]
    mine = tl.load(left + row.to(tl.int64)[:, None] * SIZE + column[None, :], mask=tile, other=0.0)
    at = right + column
    to = out + (tl.program_id(0).to(tl.int64) * LEFTS + row) * RIGHTS
    for _b in range(0, RIGHTS):
        other = tl.load(at, mask=column < SIZE, other=0.0)
        tl.store(to, tl.sum(mine * other[None, :], 1), mask=row < LEFTS)
        at += SIZE
        to += 1


# -- launches


def supports(entries: int, features: int) -> None:
    """NotImplementedError with the reason where these kernels do not have the case."""
    if entries * features >= 2**31:
        raise NotImplementedError(f"tables of {entries} x {features} numbers (fewer than 2^31 are there)")


def _tile(rows: int, size: int) -> tuple[dict, tuple[int, int]]:
    """(ROWS and COLUMNS of a program, the grid)."""
    height = min(MAX_ROWS, triton.next_power_of_2(max(rows, 1)))
    width = min(MAX_COLUMNS, TILE // height)
    return dict(ROWS=height, COLUMNS=width), (triton.cdiv(size, width), triton.cdiv(rows, height))


def _sums(weights, arrays, transposed: bool):
    count, *table = arrays.shape
    size, sums = table[0] * table[1], weights.shape[int(transposed)]
    strides = (1, sums) if transposed else (count, 1)
    meta, grid = _tile(sums, size)
    out = [jax.ShapeDtypeStruct((sums, *table), jnp.float32)]
    return launch.call(sums_kernel, weights, arrays, *strides, sums, count, size, out_shape=out, grid=grid, **meta)[0]


def _products(left, right):
    lefts, rights, size = left.shape[0], right.shape[0], left.shape[1] * left.shape[2]
    meta, grid = _tile(lefts, size)
    out = [jax.ShapeDtypeStruct((grid[0], lefts, rights), jnp.float32)]
    parts = launch.call(products_kernel, left, right, lefts, rights, size, out_shape=out, grid=grid, **meta)[0]
    return jnp.sum(parts, 0)


forward = differentiable(_sums, _products)
