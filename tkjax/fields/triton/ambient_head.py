"""A head with ambient coordinates as a field of render_fused.py: sigma and rgb of a tile of samples.

With features f of a 3-D grid at the point (up to 32 levels of two), a code a and a number e of the frame or the ray:
  m = tanh(A2 relu(A1 relu(A0 [f | a])));  g = features of a 2-D grid at m
  h = relu(S1 relu(S0 [f | g | e]))
and from h on as heads.py says. The parts of A0 and S0 that multiply a and e make a bias, formed once a call, or once a
ray where rays have inputs of their own. A field without e is there too.

m is a position: cells of the finest level are 1/1024 wide, and rounding to tf32 moves m by as much. So where others are
of tf32, products of the ambient MLP are of operands split in two tf32 each, nearly float32, and A2 is two sums.
(Triton's own tf32x3 splits the weights in the kernel: with it ptxas 12.9 spilled 2.4 KB a thread on sm_80.)

A lane of a tile of features is one level: both its values come in one load of 8 bytes for each corner, at half the
index arithmetic. Levels whose index leaves out the third coordinate (9 to 15 of the original's 3-D grid) read four
corners, not eight: the others hold the same entries.
"""

# ruff: noqa: RUF005 (Triton has no starred tuples)

import functools
from typing import NamedTuple, no_type_check

import jax.numpy as jnp
import numpy as np
import triton
import triton.language as tl

from tkjax.fields.triton import heads
from tkjax.fields.triton.heads import dot_row, matrix, of_tiles, relu, side_inputs, sigma_and_rgb
from tkjax.fields.triton.reading import End, Reader, end_of
from tkjax.ops.program import Instruction, Program
from tkjax.ops.triton import grid_encode
from tkjax.ops.triton.device import grid_cell, grid_index, grid_weight
from tkjax.ops.triton.grid_encode import _rule
from tkjax.ops.triton.mlp_parts import activate, as_operand, operand, product, round_tf32
from tkjax.ops.triton.render_fused import Fused, Packed

LANES = 8  # levels of a tile of features

# META: grid in space, ambient grid (levels, smoothstep, any hashed, modulo, bound), padded widths (ambient two, density
# two, colour), whether biases are per ray, whether the ambient MLP is in three products, highest log density, starts of
# the matrices, of the floats and of the rules.


@triton.constexpr_function
@no_type_check
def _tiles(levels):
    return (levels + 7) // 8


@triton.jit
@no_type_check
def _features(x, y, z, live, level, table, scales, rules, GRID: tl.constexpr, DIMS: tl.constexpr):
    """[B,16] features of 8 levels [1,8] at x, y, z [B,1]; zero for levels that are not there, and outside."""
    LEVELS: tl.constexpr = GRID[0]
    SMOOTH: tl.constexpr = GRID[1]
    x = (x + GRID[4]) * (0.5 / GRID[4])
    y = (y + GRID[4]) * (0.5 / GRID[4])
    inside = live & (level < LEVELS) & (x >= 0.0) & (x <= 1.0) & (y >= 0.0) & (y <= 1.0)
    if DIMS == 3:
        z = (z + GRID[4]) * (0.5 / GRID[4])
        inside = inside & (z >= 0.0) & (z <= 1.0)
    stride_i, stride_j, stride_k, hashed, entries, offset = _rule(rules, level, LEVELS)
    scale = tl.load(scales + tl.minimum(level, LEVELS - 1))
    i, p = grid_cell(tl.where(inside, x, 0.0), scale)
    j, q = grid_cell(tl.where(inside, y, 0.0), scale)
    k, r = j, q
    deep = inside
    if DIMS == 3:
        k, r = grid_cell(tl.where(inside, z, 0.0), scale)
        third = (stride_k != 0) | (hashed != 0)
        deep = inside & third
        r = tl.where(third, r, 0.0)
    pairs = table.to(tl.pointer_type(tl.int64)) + offset
    first = tl.zeros(inside.shape, tl.float32)
    second = tl.zeros(inside.shape, tl.float32)
    for corner in tl.static_range(1 << DIMS):
        weight = grid_weight(p, corner & 1, SMOOTH) * grid_weight(q, (corner >> 1) & 1, SMOOTH)
        wanted = inside
        if DIMS == 3:
            weight = weight * grid_weight(r, corner >> 2, SMOOTH)
            if corner >> 2:
                wanted = deep
        index = grid_index(
            i + (corner & 1), j + ((corner >> 1) & 1), k + (corner >> 2),
            stride_i, stride_j, stride_k, hashed, entries, DIMS, GRID[2], GRID[3],
        )  # fmt: skip
        both = tl.load(pairs + index, mask=wanted, other=0)
        first = tl.fma(weight, both.to(tl.int32).to(tl.float32, bitcast=True), first)
        second = tl.fma(weight, (both >> 32).to(tl.int32).to(tl.float32, bitcast=True), second)
    both = tl.join(tl.where(inside, first, 0.0), tl.where(inside, second, 0.0))
    return tl.reshape(both, (x.shape[0], 16))


@triton.jit
@no_type_check
def _encoded(x, y, z, live, table, scales, rules, GRID: tl.constexpr, DIMS: tl.constexpr):
    """All features, as a tuple of tiles."""
    f = ()
    for i in tl.static_range(_tiles(GRID[0])):
        f = f + (_features(x, y, z, live, 8 * i + tl.arange(0, 8)[None, :], table, scales, rules, GRID, DIMS),)
    return f


@triton.jit
@no_type_check
def _operands(f, PRECISION: tl.constexpr):
    out = ()
    for i in tl.static_range(len(f)):
        out = out + (operand(f[i], PRECISION),)
    return out


@triton.jit
@no_type_check
def _finely(f, ptr, total, SPLIT: tl.constexpr):
    """total + f W in float32 for a tuple of tiles, or nearly: with SPLIT, W is its tf32 part and then the rest."""
    K: tl.constexpr = f[0].shape[1]
    M: tl.constexpr = total.shape[1]
    for i in tl.static_range(len(f)):
        w = matrix(ptr + K * M * i, K, M)
        if SPLIT:
            high = round_tf32(f[i])
            total = product(high, matrix(ptr + K * M * (len(f) + i), K, M), total, "tf32")
            total = product(round_tf32(f[i] - high), w, total, "tf32")
            total = product(high, w, total, "tf32")
        else:
            total = product(f[i], w, total, "ieee")
    return total


@triton.jit
@no_type_check
def _bias(at, live, frame, START: tl.constexpr, WIDTH: tl.constexpr, PER_RAY: tl.constexpr):
    """[B or 1,WIDTH]"""
    column = tl.arange(0, WIDTH)[None, :]
    if PER_RAY:
        bias = tl.load(at + 32 + START + column, mask=live, other=0.0)
    else:
        bias = tl.load(frame + START + column)
    return bias


@triton.jit
@no_type_check
def field(x, y, z, ray, live, weights, floats, rules, frame, rays, META: tl.constexpr, PRECISION: tl.constexpr):
    """sigma [B,1] and the channels r, g, b [B,16], of which three columns mean something."""
    B: tl.constexpr = x.shape[0]
    A0: tl.constexpr = META[2][0]
    A1: tl.constexpr = META[2][1]
    S0: tl.constexpr = META[2][2]
    S1: tl.constexpr = META[2][3]
    HC: tl.constexpr = META[2][4]
    at = rays + ray.to(tl.int64) * (32 + META[3] * (A0 + S0))
    f = _encoded(x, y, z, live, floats + META[7][6], floats + META[7][5], rules + META[8][0], META[0], 3)
    # Ambient coordinates.
    m = tl.zeros((B, A0), tl.float32) + _bias(at, live, frame, 0, A0, META[3])
    m = relu(_finely(f, floats + META[7][0], m, META[4]))
    m = relu(_finely((m,), floats + META[7][1], tl.zeros((B, A1), tl.float32), META[4]))
    u = activate(dot_row(m, floats + META[7][2]), "tanh")
    v = activate(dot_row(m, floats + META[7][3]), "tanh")
    g = _encoded(u, v, v, live, floats + META[7][8], floats + META[7][7], rules + META[8][1], META[1], 2)
    # Density.
    h = tl.zeros((B, S0), tl.float32) + _bias(at, live, frame, A0, S0, META[3])
    h = of_tiles(_operands(f, PRECISION), weights + META[6][0], h, PRECISION)
    h = relu(of_tiles(_operands(g, PRECISION), weights + META[6][1], h, PRECISION))
    h = product(operand(h, PRECISION), matrix(weights + META[6][2], S0, S1), tl.zeros((B, S1), tl.float32), PRECISION)
    return sigma_and_rgb(
        relu(h), side_inputs(at, live), floats + META[7][4], weights + META[6][3], weights + META[6][4],
        weights + META[6][5], HC, META[5], PRECISION,
    )  # fmt: skip


# -- packing


class Head(NamedTuple):
    """Where a program has what `field` computes."""

    space: Instruction  # grids
    around: Instruction
    ambient: Instruction  # MLP
    audio: Instruction  # rows
    eye: Instruction | None
    end: End


def read(program: Program) -> Head:
    """NotImplementedError unless the program is this head, with sigma and rgb as its outputs."""
    reader = Reader(program, "a head with ambient coordinates")
    end = end_of(reader)
    space, around, *eye = reader.inputs(end.density, "grid", "grid", *["row"] * (len(end.density.inputs) - 2))
    reader.need(len(eye) <= 1 and all(e.channels == 1 for e in eye))
    reader.need(space.subsets == ((0, 1, 2),) and around.subsets == ((0, 1),))
    reader.inputs(space, "points")
    ambient = reader.mlp(reader.all[around.inputs[0]], "tanh", 3)
    source, audio = reader.inputs(ambient, "grid", "row")
    reader.need(ambient.channels == 2 and source == space and (end.scale, end.shift) == (1.0, 0.0))
    return Head(space, around, ambient, audio, eye[0] if eye else None, end)


@functools.cache
def fused(program: Program) -> Fused:
    """NotImplementedError with the reason where the program is not this head, or too large."""
    head = read(program)
    end = head.end
    hidden = (*head.ambient.widths[1:-1], *end.density.widths[1:-1], end.density.channels - 1, end.colour.widths[1])
    grids, side = (head.space.spec, head.around.spec), end.sh.channels + end.code.channels
    if any(g.features != 2 or g.levels > 32 for g in grids) or max(hidden) > 64 or side > heads.SIDE_ROWS:
        raise NotImplementedError(
            f"up to 32 levels of two features, widths up to 64 and {heads.SIDE_ROWS} side inputs are there, "
            f"got {[(g.levels, g.features) for g in grids]}, {hidden} and {side}"
        )
    return Fused(field, functools.partial(_pack, head))


def _grid(instruction: Instruction):
    """(scales, rules, entry of META) of a grid."""
    spec = instruction.spec
    scales, rules, meta = grid_encode._rules(spec)
    smooth = spec.interpolation == "smoothstep"
    entry = (spec.levels, smooth, meta["ANY_HASHED"], meta["MODULO"], instruction.numbers[0])
    return jnp.asarray(scales), np.asarray(rules).reshape(-1), entry


def _biases(head: Head, params, values):
    """What audio and eye area add to the first layers of the ambient and density MLPs: [1 or R,C] each."""
    audio = params[head.ambient.name]["kernel_0"][head.space.channels :]
    ambient = heads.precise(values[head.audio.name], audio)
    if head.eye is None:
        return ambient, jnp.zeros((1, head.end.density.widths[1]), jnp.float32)
    return ambient, heads.precise(values[head.eye.name], params[head.end.density.name]["kernel_0"][-1:])


def _fine(weights, split: bool):
    """What `_finely` reads."""
    if not split:
        return weights
    high = as_operand(weights, "tf32")
    return jnp.concatenate([high, as_operand(weights - high, "tf32")])


def _pack(head: Head, params, values, count, precision):
    """(Packed, META) of this call."""
    end = head.end
    a0, a1, a2 = (params[head.ambient.name][f"kernel_{i}"] for i in range(3))
    s0, s1, s2 = (params[end.density.name][f"kernel_{i}"] for i in range(3))
    c0, c1 = (params[end.colour.name][f"kernel_{i}"] for i in range(2))
    space, around = head.space.channels, head.around.channels
    rows, rows_2 = (2 * LANES * _tiles.fn(g.spec.levels) for g in (head.space, head.around))
    widths = tuple(heads.power(m.shape[1]) for m in (a0, a1, s0, s1, c0))
    weights, of_matrices = heads.pack_matrices([
        (s0[:space], rows, widths[2]), (s0[space : space + around], rows_2, widths[2]), (s1, widths[2], widths[3]),
        *heads.end_matrices(s2, c0, c1, end.sh.channels),
    ], precision)  # fmt: skip
    split = precision != "ieee"
    (scales, rules, grid), (scales_2, rules_2, grid_2) = _grid(head.space), _grid(head.around)
    floats, of_floats = heads.pack_vectors([
        _fine(heads.pack_matrices([(a0[:space], rows, widths[0])], "ieee")[0], split),
        _fine(heads.pack_matrices([(a1, widths[0], widths[1])], "ieee")[0], split),
        *(jnp.pad(a2[:, i], (0, widths[1] - a2.shape[0])) for i in range(2)),
        jnp.pad(s2[:, 0], (0, widths[3] - s2.shape[0])),
        scales, params[head.space.name]["tables"].reshape(-1), scales_2, params[head.around.name]["tables"].reshape(-1),
    ])  # fmt: skip
    biases = [heads.wide(b, w) for b, w in zip(_biases(head, params, values), (widths[0], widths[2]))]
    is_per_ray = any(b.shape[0] != 1 for b in biases)
    frame = jnp.zeros(1, jnp.float32) if is_per_ray else jnp.concatenate(biases, 1)[0]
    each = [heads.side_rows([values[end.sh.name], values[end.code.name]], count)]
    each += [heads.per_ray(b, count) for b in biases] if is_per_ray else []
    meta = (grid, grid_2, widths, is_per_ray, split, end.highest, of_matrices, of_floats, (0, rules.size))
    rules = jnp.asarray(np.concatenate([rules, rules_2]))
    return Packed(weights, floats, rules, frame, jnp.concatenate(each, 1)), meta
