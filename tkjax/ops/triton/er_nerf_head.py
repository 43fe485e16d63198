"""The ER-NeRF head (er-nerf dossier §3, head 1 to 5) as a field of render_fused.py: sigma and rgb of a tile of samples.

With features f [36] of three planes, audio code a, blink e:
  v = A1 relu(A0 f);  w = sigmoid(E1 relu(E0 f));  h = relu(D1 relu(D0 [f | v a | w e]))
and from h on as heads.py says, with rgb' = 1.002 rgb - 0.001. Products with one column (E1, D2_0, the column of w e)
are sums in float32. The features come in tiles of 16: what a thread has in flight for the corners of a wider one does
not fit its registers.
"""

# ruff: noqa: RUF005 (Triton has no starred tuples)

import functools
from typing import no_type_check

import jax.numpy as jnp
import numpy as np
import triton
import triton.language as tl

from tkjax.ops.program import Program, ProgramBuilder
from tkjax.ops.triton import grid_encode, heads
from tkjax.ops.triton.device import grid_cell, grid_index, grid_weight
from tkjax.ops.triton.field_mlp import activate, operand, product
from tkjax.ops.triton.grid_encode import _rule
from tkjax.ops.triton.heads import dot_row, matrix, of_tiles, relu, side_inputs, sigma_and_rgb
from tkjax.ops.triton.render_fused import Fused, Packed

PAIRS = ((0, 1), (1, 2), (0, 2))
MAX_LOG_DENSITY = 40.0

# META: levels, entries, smoothstep, modulo, bound, features, width of the audio code, whether audio and blink are per
# ray, padded widths (attention, blink, density, density, colour), starts of the matrices and of the floats.


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
        weights + META[9][8], HC, 40.0, PRECISION,
    )  # fmt: skip
    return sigma, rgb * 1.002 - 0.001


# -- packing


def head(spec, bound: float, audio: int, widths: tuple[int, ...], sh: int, code: int) -> Program:
    """The program that `field` computes; widths: hidden of attention, blink, density (two), geometry, colour."""
    attention, blink, first, second, geometry, colour = widths
    p = ProgramBuilder("er_nerf_head")
    f = p.grid("planes", spec, p.points, subsets=PAIRS, bound=bound)
    v = p.mlp("audio_channel_attention", [f], (f.channels, attention, audio))
    w = p.act(p.mlp("eye_attention", [f], (f.channels, blink, 1)), "sigmoid")
    regions = [p.mul(v, p.row("audio", audio)), p.mul(w, p.row("eye", 1))]
    h = p.mlp("density", [f, *regions], (f.channels + audio + 1, first, second, 1 + geometry))
    parts = [p.row("sh", sh), h[1:], p.row("code", code)]
    rgb = p.act(p.mlp("colour", parts, (sh + geometry + code, colour, 3)), "sigmoid")
    return p.build(sigma=p.act(p.clip_max(h[:1], MAX_LOG_DENSITY), "exp"), rgb=p.affine(rgb, 1.002, -0.001))


@functools.cache
def fused(program: Program) -> Fused:
    """NotImplementedError unless the program is the head, with sigma and rgb as its outputs."""
    grid = next((i for i in program.instructions if i.op == "grid"), None)
    mlps = {i.name: i.widths for i in program.instructions if i.op == "mlp"}
    names = {"audio_channel_attention": 3, "eye_attention": 3, "density": 4, "colour": 3}
    shaped = grid is not None and {k: len(v) for k, v in mlps.items()} == names and {"sh", "code"} <= set(program.rows)
    reason = f"the fused field of {program.name} is the ER-NeRF head with outputs sigma and rgb, not this program"
    if not shaped:
        raise NotImplementedError(reason)
    density = mlps["density"]
    widths = (
        mlps["audio_channel_attention"][1], mlps["eye_attention"][1], density[1], density[2], density[3] - 1,
        mlps["colour"][1],
    )  # fmt: skip
    sizes = mlps["audio_channel_attention"][2], widths, program.rows["sh"], program.rows["code"]
    try:
        same = program == head(grid.spec, grid.numbers[0], *sizes)
    except ValueError:  # widths that do not fit together there
        same = False
    if not same:
        raise NotImplementedError(reason)
    features = len(PAIRS) * grid.spec.channels
    small = max(widths) <= 64 and sizes[0] <= 64 and sizes[2] + sizes[3] <= heads.SIDE_ROWS
    if grid.spec.features != 1 or features > 64 or not small:
        raise NotImplementedError(
            f"the fused ER-NeRF head takes up to 64 features of one channel, widths up to 64 and {heads.SIDE_ROWS} "
            f"side inputs, got {features} and {sizes}"
        )
    return Fused(field, functools.partial(_pack, grid, *sizes))


def _pack(grid, audio, widths, sh, code, params, values, count, precision):
    """(Packed, META) of this call."""
    spec, features = grid.spec, len(PAIRS) * grid.spec.channels
    first, wide_audio = 16 * _tiles.fn(features), heads.power(audio)
    attention, blink, h0, h1, _, colour = (heads.power(w) for w in widths)
    d0, d1, d2 = (params["density"][f"kernel_{i}"] for i in range(3))
    weights, matrix_starts = heads.pack_matrices([
        (params["audio_channel_attention"]["kernel_0"], first, attention),
        (params["audio_channel_attention"]["kernel_1"], attention, wide_audio),
        (params["eye_attention"]["kernel_0"], first, blink),
        (d0[:features], first, h0), (d0[features : features + audio], wide_audio, h0), (d1, h0, h1),
        *heads.end_matrices(d2, params["colour"]["kernel_0"], params["colour"]["kernel_1"], sh),
    ], precision)  # fmt: skip
    scales, rules, rule_meta = grid_encode._rules(spec)
    floats, starts = heads.pack_vectors([
        jnp.pad(params["eye_attention"]["kernel_1"][:, 0], (0, blink - widths[1])),
        jnp.pad(d0[features + audio], (0, h0 - widths[2])), jnp.pad(d2[:, 0], (0, h1 - widths[3])),
        jnp.asarray(scales), params["planes"]["tables"].reshape(-1),
    ])  # fmt: skip
    is_per_ray = values["audio"].shape[0] != 1 or values["eye"].shape[0] != 1
    frame, rays = jnp.zeros(1, jnp.float32), [heads.side_rows([values["sh"], values["code"]], count)]
    if is_per_ray:
        rays += [heads.wide(heads.per_ray(values["audio"], count), wide_audio), heads.per_ray(values["eye"], count)]
    else:
        frame = jnp.concatenate([heads.wide(values["audio"], wide_audio), values["eye"]], 1)[0]
    meta = (
        spec.levels, spec.entries, spec.interpolation == "smoothstep", rule_meta["MODULO"], grid.numbers[0], features,
        wide_audio, is_per_ray, (attention, blink, h0, h1, colour), matrix_starts, starts,
    )  # fmt: skip
    return Packed(weights, floats, jnp.asarray(np.asarray(rules)), frame, jnp.concatenate(rays, 1)), meta
