"""grid_encode on the GPU. One lane of a tile is one (point, level, feature); a program has a block of points, a group
of levels and one plane, so that stores are runs of neighbouring addresses.

The gradient to the tables adds atomically: its bits may differ from run to run, by the order of float32 sums. With
`deterministic` (argument, or environment variable TKJAX_TRITON_DETERMINISTIC=1) the contributions are sorted by entry
and each entry is summed in order by one lane instead: the same bits every time, for a sort and 8 bytes for each of
points × planes × levels × corners. The gradient to the points sums in a fixed order always.
"""

import functools
import os
from typing import no_type_check

import jax
import jax.numpy as jnp
import numpy as np
import triton
import triton.language as tl
from jax.custom_derivatives import SymbolicZero

from tkjax.ops import dispatch
from tkjax.ops.triton import launch
from tkjax.ops.triton.device import grid_cell, grid_index, grid_slope, grid_weight

ENVIRONMENT = "TKJAX_TRITON_DETERMINISTIC"
LANES = 512  # of a tile: four for each thread of four warps; with eight, three dimensions spill registers
ROWS = 6  # of `rules`: three strides, hashed, modulus or mask, offset


@triton.jit
@no_type_check
def _point(points, n, plane, N, PLANES: tl.constexpr, DIMS: tl.constexpr):
    """Coordinates [BLOCK,1] of points n in a plane, and whether they are inside; outside they are 0."""
    at = points + (n.to(tl.int64) * PLANES + plane) * DIMS
    x = tl.load(at, mask=n < N, other=-1.0)
    y = tl.load(at + 1, mask=n < N, other=-1.0)
    inside = (x >= 0.0) & (x <= 1.0) & (y >= 0.0) & (y <= 1.0)  # false for NaN
    z = y
    if DIMS == 3:
        z = tl.load(at + 2, mask=n < N, other=-1.0)
        inside = inside & (z >= 0.0) & (z <= 1.0)
    return tl.where(inside, x, 0.0), tl.where(inside, y, 0.0), tl.where(inside, z, 0.0), inside


@triton.jit
@no_type_check
def _rule(rules, level, LEVELS: tl.constexpr):
    """Rows of `rules` for a tile's levels; rubbish, but within the array, for levels that do not exist."""
    at = rules + tl.minimum(level, LEVELS - 1)
    stride_i = tl.load(at)
    stride_j = tl.load(at + LEVELS)
    stride_k = tl.load(at + 2 * LEVELS)
    hashed = tl.load(at + 3 * LEVELS)
    entries = tl.load(at + 4 * LEVELS)
    offset = tl.load(at + 5 * LEVELS).to(tl.int32)
    return stride_i, stride_j, stride_k, hashed, entries, offset


@triton.jit
@no_type_check
def forward_kernel(
    points, tables, scales, rules, total, N, out,
    PLANES: tl.constexpr, DIMS: tl.constexpr, LEVELS: tl.constexpr, FEATURES: tl.constexpr, ENTRIES: tl.constexpr,
    GROUP: tl.constexpr, SMOOTH: tl.constexpr, ANY_HASHED: tl.constexpr, MODULO: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out[n, plane, level * FEATURES + f] for a block of points, a group of levels and one plane.

    Here and below the number of points that count stands at `total`; blocks behind them end at once.
    """
    if tl.program_id(0) * BLOCK >= tl.load(total):
        return
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)[:, None]
    column = tl.program_id(1) * GROUP * FEATURES + tl.arange(0, GROUP * FEATURES)[None, :]
    plane = tl.program_id(2)
    level = column // FEATURES
    x, y, z, inside = _point(points, n, plane, N, PLANES, DIMS)
    stride_i, stride_j, stride_k, hashed, entries, offset = _rule(rules, level, LEVELS)
    scale = tl.load(scales + tl.minimum(level, LEVELS - 1))
    i, u = grid_cell(x, scale)
    j, v = grid_cell(y, scale)
    k, w = grid_cell(z, scale)
    table = tables + plane.to(tl.int64) * (ENTRIES * FEATURES) + column % FEATURES
    live = inside & (level < LEVELS)
    value = tl.zeros((BLOCK, GROUP * FEATURES), tl.float32)
    for corner in tl.static_range(1 << DIMS):
        weight = grid_weight(u, corner & 1, SMOOTH) * grid_weight(v, (corner >> 1) & 1, SMOOTH)
        if DIMS == 3:
            weight = weight * grid_weight(w, corner >> 2, SMOOTH)
        index = grid_index(
            i + (corner & 1), j + ((corner >> 1) & 1), k + (corner >> 2),
            stride_i, stride_j, stride_k, hashed, entries, DIMS, ANY_HASHED, MODULO,
        )  # fmt: skip
        value += weight * tl.load(table + (offset + index) * FEATURES, mask=live, other=0.0)
    value = tl.where(live, value, 0.0)  # a table may hold NaN: weights of dead lanes are no zeros to rely on
    at = out + (n.to(tl.int64) * PLANES + plane) * (LEVELS * FEATURES) + column
    tl.store(at, value.to(out.dtype.element_ty), mask=(n < N) & (level < LEVELS))


@triton.jit
@no_type_check
def table_gradient_kernel(
    points, g, scales, rules, total, N, gradient,
    PLANES: tl.constexpr, DIMS: tl.constexpr, LEVELS: tl.constexpr, FEATURES: tl.constexpr, ENTRIES: tl.constexpr,
    GROUP: tl.constexpr, SMOOTH: tl.constexpr, ANY_HASHED: tl.constexpr, MODULO: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Adds weight * g to the entries of every corner, atomically."""
    if tl.program_id(0) * BLOCK >= tl.load(total):
        return
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)[:, None]
    column = tl.program_id(1) * GROUP * FEATURES + tl.arange(0, GROUP * FEATURES)[None, :]
    plane = tl.program_id(2)
    level = column // FEATURES
    n = tl.broadcast_to(n, BLOCK, GROUP * FEATURES)
    x, y, z, inside = _point(points, n, plane, N, PLANES, DIMS)
    stride_i, stride_j, stride_k, hashed, entries, offset = _rule(rules, level, LEVELS)
    scale = tl.load(scales + tl.minimum(level, LEVELS - 1))
    i, u = grid_cell(x, scale)
    j, v = grid_cell(y, scale)
    k, w = grid_cell(z, scale)
    live = inside & (level < LEVELS)
    at = g + (n.to(tl.int64) * PLANES + plane) * (LEVELS * FEATURES) + column
    # Whole tiles of points and loads of one value give the load of g, the weights and the sums one layout. Else every
    # corner's addresses and values go through shared memory, from the threads that load to those that add.
    at = tl.max_contiguous(at, [1, 1])
    value = tl.load(at, mask=live, other=0.0).to(tl.float32)
    live = live & (value != 0.0)  # samples behind an opaque one have none; NaN stays
    table = gradient + plane.to(tl.int64) * (ENTRIES * FEATURES) + column % FEATURES
    for corner in tl.static_range(1 << DIMS):
        weight = grid_weight(u, corner & 1, SMOOTH) * grid_weight(v, (corner >> 1) & 1, SMOOTH)
        if DIMS == 3:
            weight = weight * grid_weight(w, corner >> 2, SMOOTH)
        index = grid_index(
            i + (corner & 1), j + ((corner >> 1) & 1), k + (corner >> 2),
            stride_i, stride_j, stride_k, hashed, entries, DIMS, ANY_HASHED, MODULO,
        )  # fmt: skip
        entry = tl.max_contiguous(table + (offset + index) * FEATURES, [1, 1])
        tl.atomic_add(entry, weight * value, mask=live, sem="relaxed")


@triton.jit
@no_type_check
def point_gradient_kernel(
    points, tables, g, scales, rules, total, N, gradient,
    PLANES: tl.constexpr, DIMS: tl.constexpr, LEVELS: tl.constexpr, FEATURES: tl.constexpr, ENTRIES: tl.constexpr,
    GROUP: tl.constexpr, SMOOTH: tl.constexpr, ANY_HASHED: tl.constexpr, MODULO: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """gradient[n, plane, d] = sum over levels and features of g * d value / d x_d; the levels group by group."""
    if tl.program_id(0) * BLOCK >= tl.load(total):
        return
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)[:, None]
    plane = tl.program_id(1)
    x, y, z, inside = _point(points, n, plane, N, PLANES, DIMS)
    sum_x = tl.zeros((BLOCK, 1), tl.float32)
    sum_y = tl.zeros((BLOCK, 1), tl.float32)
    sum_z = tl.zeros((BLOCK, 1), tl.float32)
    for first in range(0, LEVELS, GROUP):
        column = first * FEATURES + tl.arange(0, GROUP * FEATURES)[None, :]
        level = column // FEATURES
        stride_i, stride_j, stride_k, hashed, entries, offset = _rule(rules, level, LEVELS)
        scale = tl.load(scales + tl.minimum(level, LEVELS - 1))
        i, u = grid_cell(x, scale)
        j, v = grid_cell(y, scale)
        k, w = grid_cell(z, scale)
        live = inside & (level < LEVELS)
        at = g + (n.to(tl.int64) * PLANES + plane) * (LEVELS * FEATURES) + column
        value = tl.load(at, mask=live, other=0.0).to(tl.float32)
        table = tables + plane.to(tl.int64) * (ENTRIES * FEATURES) + column % FEATURES
        by_x = tl.zeros((BLOCK, GROUP * FEATURES), tl.float32)
        by_y = tl.zeros((BLOCK, GROUP * FEATURES), tl.float32)
        by_z = tl.zeros((BLOCK, GROUP * FEATURES), tl.float32)
        for corner in tl.static_range(1 << DIMS):
            index = grid_index(
            i + (corner & 1), j + ((corner >> 1) & 1), k + (corner >> 2),
            stride_i, stride_j, stride_k, hashed, entries, DIMS, ANY_HASHED, MODULO,
        )  # fmt: skip
            row = tl.load(table + (offset + index) * FEATURES, mask=live, other=0.0)
            along_x, along_y = grid_weight(u, corner & 1, SMOOTH), grid_weight(v, (corner >> 1) & 1, SMOOTH)
            if DIMS == 3:
                along_z = grid_weight(w, corner >> 2, SMOOTH)
                by_z += grid_slope(w, corner >> 2, SMOOTH) * along_x * along_y * row
                row = row * along_z
            by_x += grid_slope(u, corner & 1, SMOOTH) * along_y * row
            by_y += grid_slope(v, (corner >> 1) & 1, SMOOTH) * along_x * row
        value = tl.where(live, value * scale, 0.0)
        sum_x += tl.sum(tl.where(live, by_x * value, 0.0), 1, keep_dims=True)
        sum_y += tl.sum(tl.where(live, by_y * value, 0.0), 1, keep_dims=True)
        if DIMS == 3:
            sum_z += tl.sum(tl.where(live, by_z * value, 0.0), 1, keep_dims=True)
    at = gradient + (n.to(tl.int64) * PLANES + plane) * DIMS
    tl.store(at, sum_x, mask=n < N)
    tl.store(at + 1, sum_y, mask=n < N)
    if DIMS == 3:
        tl.store(at + 2, sum_z, mask=n < N)


@triton.jit
@no_type_check
def keys_kernel(
    points, scales, rules, total, N, keys,
    PLANES: tl.constexpr, DIMS: tl.constexpr, LEVELS: tl.constexpr, ENTRIES: tl.constexpr,
    SMOOTH: tl.constexpr, ANY_HASHED: tl.constexpr, MODULO: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """keys[plane, level, corner, n]: the entry of all planes' tables that this corner reads; one too many for points
    that are outside or from `total` on."""
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    level, plane = tl.program_id(1), tl.program_id(2)
    x, y, z, inside = _point(points, n, plane, tl.load(total), PLANES, DIMS)
    stride_i, stride_j, stride_k, hashed, entries, offset = _rule(rules, level, LEVELS)
    scale = tl.load(scales + level)
    i, _u = grid_cell(x, scale)
    j, _v = grid_cell(y, scale)
    k, _w = grid_cell(z, scale)
    for corner in tl.static_range(1 << DIMS):
        index = grid_index(
            i + (corner & 1), j + ((corner >> 1) & 1), k + (corner >> 2),
            stride_i, stride_j, stride_k, hashed, entries, DIMS, ANY_HASHED, MODULO,
        )  # fmt: skip
        key = tl.where(inside, plane * ENTRIES + offset + index, PLANES * ENTRIES)
        tl.store(keys + ((plane * LEVELS + level) * (1 << DIMS) + corner) * N + n, key, mask=n < N)


@triton.jit
@no_type_check
def segments_kernel(
    points, g, scales, order, starts, N, gradient,
    PLANES: tl.constexpr, DIMS: tl.constexpr, LEVELS: tl.constexpr, FEATURES: tl.constexpr, ENTRIES: tl.constexpr,
    SMOOTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """gradient of a block of entries: the contributions order[starts[e]:starts[e + 1]] one after the other."""
    entry = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)[:, None]
    f = tl.arange(0, FEATURES)[None, :]
    exists = entry < PLANES * ENTRIES
    start = tl.load(starts + entry, mask=exists, other=0)
    count = tl.load(starts + entry + 1, mask=exists, other=0) - start
    longest = tl.max(count)
    total = tl.zeros((BLOCK, FEATURES), tl.float32)
    for step in range(0, longest):
        more = step < count
        source = tl.load(order + start + step, mask=more, other=0)
        n = source % N
        source = source // N
        corner = source % (1 << DIMS)
        source = source // (1 << DIMS)
        level = source % LEVELS
        plane = source // LEVELS
        x, y, z, _inside = _point(points, n, plane, N, PLANES, DIMS)
        scale = tl.load(scales + level, mask=more, other=0.0)
        _i, u = grid_cell(x, scale)
        _j, v = grid_cell(y, scale)
        weight = tl.where((corner & 1) == 1, grid_weight(u, 1, SMOOTH), grid_weight(u, 0, SMOOTH))
        weight *= tl.where((corner & 2) == 2, grid_weight(v, 1, SMOOTH), grid_weight(v, 0, SMOOTH))
        if DIMS == 3:
            _k, w = grid_cell(z, scale)
            weight *= tl.where((corner & 4) == 4, grid_weight(w, 1, SMOOTH), grid_weight(w, 0, SMOOTH))
        at = g + ((n.to(tl.int64) * PLANES + plane) * LEVELS + level) * FEATURES + f
        value = tl.load(at, mask=more, other=0.0).to(tl.float32)
        total += tl.where(more, weight * value, 0.0)
    tl.store(gradient + entry.to(tl.int64) * FEATURES + f, total, mask=exists)


# -- launches


def supports(spec, dtype=np.float32) -> None:
    """NotImplementedError with the reason where these kernels do not have the case."""
    if dtype != np.float32:
        raise NotImplementedError(f"tables of {dtype} (float32 is there)")
    if spec.dims not in (2, 3):
        raise NotImplementedError(f"grids of {spec.dims} dimensions (2 and 3 are there)")
    if spec.features not in (1, 2, 4, 8):
        raise NotImplementedError(f"{spec.features} features per level (1, 2, 4 and 8 are there)")
    if spec.entries * spec.features >= 2**31:
        raise NotImplementedError(f"tables of {spec.entries} x {spec.features} values (fewer than 2^31 are there)")


def _static(spec, planes: int) -> dict:
    """The constexpr arguments that all kernels take."""
    return dict(
        PLANES=planes, DIMS=spec.dims, LEVELS=spec.levels, ENTRIES=spec.entries,
        SMOOTH=spec.interpolation == "smoothstep",
    )  # fmt: skip


def _fits(level, dims: int) -> bool:
    """Whether the level's indices stay below its entries by themselves."""
    return not level.hashed and (level.resolution + 1) ** dims <= level.entries


@functools.cache
def _rules(spec) -> tuple[np.ndarray, np.ndarray, dict]:
    """(scales [L], rules [ROWS,L] uint32, constexpr arguments that go with them)."""
    modulo = any(not _fits(level, spec.dims) and level.entries & (level.entries - 1) for level in spec.table)
    rows = []
    for level in spec.table:
        wrap = level.entries if modulo else 0xFFFFFFFF if _fits(level, spec.dims) else level.entries - 1
        strides = (*level.strides, 0)[:3]
        rows.append((*strides, level.hashed, wrap, level.offset))
    scales = np.array([level.scale for level in spec.table], np.float32)
    meta = dict(ANY_HASHED=any(level.hashed for level in spec.table), MODULO=modulo)
    return scales, np.array(rows, np.uint32).T.copy(), meta


def _group(spec) -> int:
    """Levels of a program: 32 bytes of output for a point, 16 where that wastes no lanes."""
    for group in (8 // spec.features, 4 // spec.features):
        if group and spec.levels % group == 0:
            return group
    return 8 // spec.features


def _block(spec) -> int:
    """Points of a program."""
    return LANES // (_group(spec) * spec.features)


def _tile(spec) -> dict:
    return dict(FEATURES=spec.features, GROUP=_group(spec), BLOCK=_block(spec))


def _forward(points, tables, total, spec, out_dtype):
    n, planes, _ = points.shape
    scales, rules, meta = _rules(spec)
    (out,) = launch.call(
        forward_kernel, points, tables, scales, rules, launch.count(total, n), n,
        out_shape=[jax.ShapeDtypeStruct((n, planes, spec.channels), out_dtype)], zeroed=() if total is None else (0,),
        grid=(triton.cdiv(n, _block(spec)), triton.cdiv(spec.levels, _group(spec)), planes),
        **_static(spec, planes), **_tile(spec), **meta,
    )  # fmt: skip
    return out


def _table_gradient(points, g, total, spec):
    n, planes, _ = points.shape
    scales, rules, meta = _rules(spec)
    (gradient,) = launch.call(
        table_gradient_kernel, points, g, scales, rules, launch.count(total, n), n,
        out_shape=[jax.ShapeDtypeStruct((planes, spec.entries, spec.features), jnp.float32)], zeroed=(0,),
        grid=(triton.cdiv(n, _block(spec)), triton.cdiv(spec.levels, _group(spec)), planes),
        **_static(spec, planes), **_tile(spec), **meta,
    )  # fmt: skip
    return gradient


def _table_gradient_in_order(points, g, total, spec):
    n, planes, _ = points.shape
    scales, rules, meta = _rules(spec)
    contributions = planes * spec.levels * 2**spec.dims * n
    if max(contributions, planes * spec.entries) >= 2**31:
        raise ValueError(f"grid_encode: {contributions} contributions do not fit the deterministic gradient (2^31)")
    (keys,) = launch.call(
        keys_kernel, points, scales, rules, launch.count(total, n), n,
        out_shape=[jax.ShapeDtypeStruct((contributions,), jnp.int32)],
        grid=(triton.cdiv(n, 128), spec.levels, planes), BLOCK=128, **_static(spec, planes), **meta,
    )  # fmt: skip
    keys, order = jax.lax.sort((keys, jnp.arange(contributions, dtype=jnp.int32)), num_keys=1, is_stable=True)
    starts = jnp.searchsorted(keys, jnp.arange(planes * spec.entries + 1, dtype=jnp.int32)).astype(jnp.int32)
    block = 64
    (gradient,) = launch.call(
        segments_kernel, points, g, scales, order, starts, n,
        out_shape=[jax.ShapeDtypeStruct((planes, spec.entries, spec.features), jnp.float32)],
        grid=(triton.cdiv(planes * spec.entries, block) if n else 0,), num_warps=2,
        FEATURES=spec.features, BLOCK=block, **_static(spec, planes),
    )  # fmt: skip
    return gradient


def _point_gradient(points, tables, g, total, spec):
    n, planes, _ = points.shape
    scales, rules, meta = _rules(spec)
    (gradient,) = launch.call(
        point_gradient_kernel, points, tables, g, scales, rules, launch.count(total, n), n,
        out_shape=[jax.ShapeDtypeStruct(points.shape, jnp.float32)], zeroed=() if total is None else (0,),
        grid=(triton.cdiv(n, _block(spec)), planes), **_static(spec, planes), **_tile(spec), **meta,
    )  # fmt: skip
    return gradient


@functools.cache
def _op(spec, out_dtype, deterministic: bool):
    """The differentiable function of (points, tables, total) for these settings."""

    @dispatch.once_differentiable("grid_encode")
    def gradients(points, tables, total, g):
        table = (_table_gradient_in_order if deterministic else _table_gradient)(points, g, total, spec)
        return None if tables is None else _point_gradient(points, tables, g, total, spec), table

    @jax.custom_vjp
    def encode(points, tables, total):
        return _forward(points, tables, total, spec, out_dtype)

    def forward(points, tables, total):
        # The tables are kept only where the points ask for a gradient, which then is computed.
        count = None if total is None else total.value
        kept = points.value, tables.value if points.perturbed else None, count
        return encode(points.value, tables.value, count), kept

    def backward(residuals, g):
        if isinstance(g, SymbolicZero):
            return None, None, None
        return *gradients(*residuals, g), None

    encode.defvjp(forward, backward, symbolic_zeros=True)
    return encode


def forward(points_unit, tables, spec, out_dtype=None, deterministic: bool | None = None, total=None):
    """[N,P,D], [P,T,F] float32 -> [N,P,L*F] in `out_dtype` (float32 or bfloat16).

    total: how many points count. Those behind have a cotangent of zero; blocks of points that lie behind it altogether
    are not read, and give zeros.
    """
    if deterministic is None:
        deterministic = os.environ.get(ENVIRONMENT, "0") not in ("", "0")
    dtype = jnp.dtype(tables.dtype if out_dtype is None else out_dtype)
    op = _op(spec, dtype, bool(deterministic))
    return op(points_unit.astype(jnp.float32), tables.astype(jnp.float32), total)
