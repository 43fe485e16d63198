"""A head on three planes with region attention as a field of render_fused.py: sigma and rgb of a tile of samples.

With features f of three planes (up to 64, one per level), a code a and a number e of the frame or the ray:
  v = A1 relu(A0 f);  w = sigmoid(E1 relu(E0 f));  h = relu(D1 relu(D0 [f | v a | w e]))
and from h on as heads.py says, with rgb' = scale rgb + shift. Products with one column (E1, D2_0, the column of w e)
are sums in float32. The features come in tiles of 16: what a thread has in flight for the corners of a wider one does
not fit its registers.
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
from tkjax.ops.triton.mlp_parts import activate, operand, product
from tkjax.ops.triton.render_fused import Fused, Packed

PAIRS = ((0, 1), (1, 2), (0, 2))

# META: levels, entries, smoothstep, modulo, bound, features, width of the audio code, whether audio and blink are per
# ray, padded widths (attention, blink, density, density, colour), starts of the matrices and of the floats, highest log
# density, scale and shift of the colours.


@triton.constexpr_function
@no_type_check
def _tiles(features):
    return (features + 15) // 16


@triton.jit
@no_type_check
def _features(x, y, z, live, column, tables, scales, rules, META: tl.constexpr):
    """[B,C] features number `column` [1,C]: plane column // levels, level column % levels; zero beyond the last."""
    plane, level = column // META[0], column % META[0]
    u = tl.where(plane == 1, y, x)
    v = tl.where(plane == 0, y, z)
    inside = live & (column < META[5]) & (u >= 0.0) & (u <= 1.0) & (v >= 0.0) & (v <= 1.0)
    stride_i, stride_j, stride_k, hashed, entries, offset = _rule(rules, level, META[0])
    scale = tl.load(scales + level)
    i, p = grid_cell(tl.where(inside, u, 0.0), scale)
    j, q = grid_cell(tl.where(inside, v, 0.0), scale)
    table = tables + plane * META[1] + offset
    value = tl.zeros(inside.shape, tl.float32)
    for corner in tl.static_range(4):
        weight = grid_weight(p, corner & 1, META[2]) * grid_weight(q, corner >> 1, META[2])
        index = grid_index(
            i + (corner & 1), j + (corner >> 1), j, stride_i, stride_j, stride_k, hashed, entries, 2, True, META[3]
        )
        value = tl.fma(weight, tl.load(table + index, mask=inside, other=0.0), value)
    return tl.where(inside, value, 0.0)


@triton.jit
@no_type_check
def _inputs(at, live, frame, META: tl.constexpr):
    """(audio code [B or 1,A], blink [B or 1,1]) of rays whose inputs begin at `at` [B,1]."""
    a = tl.arange(0, META[6])[None, :]
    if META[7]:
        audio = tl.load(at + 32 + a, mask=live, other=0.0)
        eye = tl.load(at + 32 + META[6], mask=live, other=0.0)
    else:
        audio = tl.load(frame + a)
        eye = tl.load(frame + META[6] + tl.zeros((1, 1), tl.int32))
    return audio, eye


@triton.jit
@no_type_check
def field(x, y, z, ray, live, weights, floats, rules, frame, rays, META: tl.constexpr, PRECISION: tl.constexpr):
    """sigma [B,1] and the channels r, g, b [B,16], of which three columns mean something."""
    B: tl.constexpr = x.shape[0]
    AUDIO: tl.constexpr = META[6]
    HA: tl.constexpr = META[8][0]
    HE: tl.constexpr = META[8][1]
    H0: tl.constexpr = META[8][2]
    H1: tl.constexpr = META[8][3]
    HC: tl.constexpr = META[8][4]
    at = rays + ray.to(tl.int64) * (32 + META[7] * (META[6] + 1))
    audio, eye = _inputs(at, live, frame, META)
    # Coordinates in the grids' units, as in the program.
    x = (x + META[4]) * (0.5 / META[4])
    y = (y + META[4]) * (0.5 / META[4])
    z = (z + META[4]) * (0.5 / META[4])
    scales = floats + META[10][3]
    tables = floats + META[10][4]
    f = ()
    for i in tl.static_range(_tiles(META[5])):
        tile = _features(x, y, z, live, 16 * i + tl.arange(0, 16)[None, :], tables, scales, rules, META)
        f = f + (operand(tile, PRECISION),)
    # Attention.
    v = relu(of_tiles(f, weights + META[9][0], tl.zeros((B, HA), tl.float32), PRECISION))
    v = product(
        operand(v, PRECISION), matrix(weights + META[9][1], HA, AUDIO), tl.zeros((B, AUDIO), tl.float32), PRECISION
    )
    w = relu(of_tiles(f, weights + META[9][2], tl.zeros((B, HE), tl.float32), PRECISION))
    w = activate(dot_row(w, floats + META[10][0]), "sigmoid") * eye
    # Density.
    h = w * tl.load(floats + META[10][1] + tl.arange(0, H0))[None, :]
    h = of_tiles(f, weights + META[9][3], h, PRECISION)
    h = relu(product(operand(v * audio, PRECISION), matrix(weights + META[9][4], AUDIO, H0), h, PRECISION))
    h = product(operand(h, PRECISION), matrix(weights + META[9][5], H0, H1), tl.zeros((B, H1), tl.float32), PRECISION)
    sigma, rgb = sigma_and_rgb(
        relu(h), side_inputs(at, live), floats + META[10][2], weights + META[9][6], weights + META[9][7],
        weights + META[9][8], HC, META[11], PRECISION,
    )  # fmt: skip
    return sigma, rgb * META[12] + META[13]


# -- packing


class Head(NamedTuple):
    """Where a program has what `field` computes."""

    planes: Instruction
    attention: Instruction  # MLPs: of the code, and of the number
    blink: Instruction
    audio: Instruction  # rows
    eye: Instruction
    end: End


def read(program: Program) -> Head:
    """NotImplementedError unless the program is this head, with sigma and rgb as its outputs."""
    reader = Reader(program, "a head on three planes with region attention")
    end = end_of(reader)
    planes, sound, shut = reader.inputs(end.density, "grid", "mul", "mul")
    (attention, audio), (blink, eye) = reader.pair(sound, "mlp", "row"), _scaled(reader, shut)
    attention = reader.mlp(attention, "none", 2)
    for mlp in (attention, blink):
        reader.need(reader.inputs(mlp, "grid") == [planes])
    reader.need(planes.subsets == PAIRS and reader.inputs(planes, "points") != [])
    reader.need(blink.channels == eye.channels == 1 and attention.channels == audio.channels)
    return Head(planes, attention, blink, audio, eye, end)


def _scaled(reader: Reader, product: Instruction):
    """(MLP that ends in a sigmoid, row) of their product."""
    last = "act" if any(reader.all[k].op == "act" for k in product.inputs) else "mlp"
    mlp, row = reader.pair(product, last, "row")
    return reader.mlp(mlp, "sigmoid", 2), row


@functools.cache
def fused(program: Program) -> Fused:
    """NotImplementedError with the reason where the program is not this head, or too large."""
    head = read(program)
    spec, end = head.planes.spec, head.end
    widths = (
        *head.attention.widths[1:],
        head.blink.widths[1],
        *end.density.widths[1:-1],
        end.density.channels - 1,
        end.colour.widths[1],
    )
    side = end.sh.channels + end.code.channels
    if spec.features != 1 or head.planes.channels > 64 or max(widths) > 64 or side > heads.SIDE_ROWS:
        raise NotImplementedError(
            f"up to 64 features of one channel, widths up to 64 and {heads.SIDE_ROWS} side inputs are there, "
            f"got {head.planes.channels} of {spec.features}, {widths} and {side}"
        )
    return Fused(field, functools.partial(_pack, head))


def _pack(head: Head, params, values, count, precision):
    """(Packed, META) of this call."""
    end, spec, features, audio = head.end, head.planes.spec, head.planes.channels, head.audio.channels
    first, wide_audio = 16 * _tiles.fn(features), heads.power(audio)
    a0, a1 = (params[head.attention.name][f"kernel_{i}"] for i in range(2))
    e0, e1 = (params[head.blink.name][f"kernel_{i}"] for i in range(2))
    d0, d1, d2 = (params[end.density.name][f"kernel_{i}"] for i in range(3))
    c0, c1 = (params[end.colour.name][f"kernel_{i}"] for i in range(2))
    attention, blink, h0, h1, colour = (heads.power(m.shape[1]) for m in (a0, e0, d0, d1, c0))
    weights, matrix_starts = heads.pack_matrices([
        (a0, first, attention), (a1, attention, wide_audio), (e0, first, blink),
        (d0[:features], first, h0), (d0[features : features + audio], wide_audio, h0), (d1, h0, h1),
        *heads.end_matrices(d2, c0, c1, end.sh.channels),
    ], precision)  # fmt: skip
    scales, rules, rule_meta = grid_encode._rules(spec)
    floats, starts = heads.pack_vectors([
        jnp.pad(e1[:, 0], (0, blink - e1.shape[0])), jnp.pad(d0[features + audio], (0, h0 - d0.shape[1])),
        jnp.pad(d2[:, 0], (0, h1 - d2.shape[0])), jnp.asarray(scales),
        params[head.planes.name]["tables"].reshape(-1),
    ])  # fmt: skip
    sound, eye = values[head.audio.name], values[head.eye.name]
    is_per_ray = sound.shape[0] != 1 or eye.shape[0] != 1
    frame, rays = jnp.zeros(1, jnp.float32), [heads.side_rows([values[end.sh.name], values[end.code.name]], count)]
    if is_per_ray:
        rays += [heads.wide(heads.per_ray(sound, count), wide_audio), heads.per_ray(eye, count)]
    else:
        frame = jnp.concatenate([heads.wide(sound, wide_audio), eye], 1)[0]
    meta = (
        spec.levels, spec.entries, spec.interpolation == "smoothstep", rule_meta["MODULO"], head.planes.numbers[0],
        features, wide_audio, is_per_ray, (attention, blink, h0, h1, colour), matrix_starts, starts,
        end.highest, end.scale, end.shift,
    )  # fmt: skip
    return Packed(weights, floats, jnp.asarray(np.asarray(rules)), frame, jnp.concatenate(rays, 1)), meta
