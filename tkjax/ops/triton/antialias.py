"""antialias on the GPU: a lane for each pixel and direction looks for the silhouette to its neighbour; XLA blends.

Compiled without fused multiply-adds, so that it takes the edges that the reference takes. Gradients to vertices are
atomic sums: their last bits differ from run to run on a GPU.
"""

from typing import no_type_check

import jax
import jax.numpy as jnp
import triton
import triton.language as tl

from tkjax.ops.antialias import BEYOND, EPSILON, differentiable
from tkjax.ops.reference.antialias import outlines
from tkjax.ops.triton import launch

PIXELS = 256  # of a program


@triton.jit
@no_type_check
def edge_crossing(x1, y1, x2, y2, s):
    """(s xi, where the edge passes the axis; elsewhere -inf)."""
    dy = y2 - y1
    passes = (y1 < 0) != (y2 < 0)
    xi = tl.div_rn(x1 * y2 - y1 * x2, tl.where(passes, dy, 1.0))
    return tl.where(passes, s * xi, float("-inf"))


@triton.jit
@no_type_check
def find_crossing(clip, face, zw, faces, bits, TOTAL, HEIGHT, WIDTH, i, axis, BEYOND: tl.constexpr):
    """(whether pixel i and the next along the axis have a silhouette, s, s xi, and of both end-points number, x, y)."""
    row, column = i // WIDTH, i % WIDTH
    inside = (i < TOTAL) & (tl.where(axis == 1, row + 1 < HEIGHT, column + 1 < WIDTH))
    j = i + tl.where(axis == 1, WIDTH, 1)
    here, other = tl.load(face + i, mask=inside, other=0), tl.load(face + j, mask=inside, other=0)
    pair = inside & (here != other)
    closer = tl.load(zw + i, mask=pair, other=0.0) < tl.load(zw + j, mask=pair, other=0.0)
    mine = tl.where((here > 0) & (other > 0), closer, here > 0)
    t = tl.where(mine, here, other) - 1
    allowed = (tl.load(bits + t, mask=pair, other=0) >> (3 * axis)) & 7
    pair &= allowed > 0
    s = tl.where(mine, 1.0, -1.0)
    step = tl.where(mine, 0, 1)
    offset_x = (column + tl.where(axis == 1, 0, step)).to(tl.float32) + (0.5 - 0.5 * WIDTH)
    offset_y = (row + tl.where(axis == 1, step, 0)).to(tl.float32) + (0.5 - 0.5 * HEIGHT)
    along = tl.where(axis == 1, offset_y, offset_x)
    across = tl.where(axis == 1, offset_x, offset_y)
    half = 0.5 * tl.where(axis == 1, HEIGHT, WIDTH).to(tl.float32)
    other_half = 0.5 * tl.where(axis == 1, WIDTH, HEIGHT).to(tl.float32)
    c0 = tl.load(faces + 3 * t, mask=pair, other=0)
    c1 = tl.load(faces + 3 * t + 1, mask=pair, other=0)
    c2 = tl.load(faces + 3 * t + 2, mask=pair, other=0)
    w0 = tl.load(clip + 4 * c0 + 3, mask=pair, other=1.0)
    w1 = tl.load(clip + 4 * c1 + 3, mask=pair, other=1.0)
    w2 = tl.load(clip + 4 * c2 + 3, mask=pair, other=1.0)
    x0 = tl.div_rn(tl.load(clip + 4 * c0 + axis, mask=pair, other=0.0) * half, w0) - along
    x1 = tl.div_rn(tl.load(clip + 4 * c1 + axis, mask=pair, other=0.0) * half, w1) - along
    x2 = tl.div_rn(tl.load(clip + 4 * c2 + axis, mask=pair, other=0.0) * half, w2) - along
    y0 = tl.div_rn(tl.load(clip + 4 * c0 + 1 - axis, mask=pair, other=0.0) * other_half, w0) - across
    y1 = tl.div_rn(tl.load(clip + 4 * c1 + 1 - axis, mask=pair, other=0.0) * other_half, w1) - across
    y2 = tl.div_rn(tl.load(clip + 4 * c2 + 1 - axis, mask=pair, other=0.0) * other_half, w2) - across
    d0 = edge_crossing(x1, y1, x2, y2, s)
    d1 = edge_crossing(x2, y2, x0, y0, s)
    d2 = edge_crossing(x0, y0, x1, y1, s)
    edge = tl.where(d1 > d0, 1, 0)
    d = tl.maximum(d0, d1)
    edge = tl.where(d2 > d, 2, edge)
    d = tl.maximum(d, d2)
    good = pair & (((allowed >> edge) & 1) == 1) & (d > -BEYOND) & (d < 1.0 + BEYOND)
    first = tl.where(edge == 0, c1, tl.where(edge == 1, c2, c0))
    second = tl.where(edge == 0, c2, tl.where(edge == 1, c0, c1))
    xa = tl.where(edge == 0, x1, tl.where(edge == 1, x2, x0))
    ya = tl.where(edge == 0, y1, tl.where(edge == 1, y2, y0))
    xb = tl.where(edge == 0, x2, tl.where(edge == 1, x0, x1))
    yb = tl.where(edge == 0, y2, tl.where(edge == 1, y0, y1))
    return good, s, d, first, xa, ya, second, xb, yb


@triton.jit
@no_type_check
def find_kernel(
    clip, face, zw, faces, bits, TOTAL, HEIGHT, WIDTH, out, PIXELS: tl.constexpr, BEYOND: tl.constexpr
):  # fmt: skip
    """out [2, TOTAL]: alpha of pairs side by side (program_id(1) == 0) and one above the other."""
    i = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    axis = tl.program_id(1)
    good, s, d, _a, _xa, _ya, _b, _xb, _yb = find_crossing(
        clip, face, zw, faces, bits, TOTAL, HEIGHT, WIDTH, i, axis, BEYOND
    )
    alpha = tl.where(good, s * (0.5 - tl.minimum(tl.maximum(d, 0.0), 1.0)), 0.0)
    tl.store(out + axis.to(tl.int64) * TOTAL + i, alpha, mask=i < TOTAL)


@triton.jit
@no_type_check
def add_end(clip, out, c, along, across, axis, half, other_half, mask):
    """The gradient to the place of an end-point in pixels, as that to its X, Y and W."""
    w = tl.load(clip + 4 * c + 3, mask=mask, other=1.0)
    ga, gb = along * half / w, across * other_half / w
    a = tl.load(clip + 4 * c + axis, mask=mask, other=0.0)
    b = tl.load(clip + 4 * c + 1 - axis, mask=mask, other=0.0)
    tl.atomic_add(out + 4 * c + axis, ga, mask=mask)
    tl.atomic_add(out + 4 * c + 1 - axis, gb, mask=mask)
    tl.atomic_add(out + 4 * c + 3, -(a * ga + b * gb) / w, mask=mask)


@triton.jit
@no_type_check
def pull_kernel(
    clip, face, zw, faces, bits, g, TOTAL, HEIGHT, WIDTH, out,
    PIXELS: tl.constexpr, BEYOND: tl.constexpr, EPSILON: tl.constexpr,
):  # fmt: skip
    """Gradient to clip [V,4] (zeros before) from g [2, TOTAL] of the alphas."""
    i = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    axis = tl.program_id(1)
    good, s, d, a, xa, ya, b, xb, yb = find_crossing(clip, face, zw, faces, bits, TOTAL, HEIGHT, WIDTH, i, axis, BEYOND)
    mine = tl.load(g + axis.to(tl.int64) * TOTAL + i, mask=i < TOTAL, other=0.0)
    on = good & (d > 0) & (d < 1) & (mine != 0)
    dy = tl.where(on, yb - ya, 1.0)
    r = -mine / (dy + tl.where(dy < 0, -EPSILON, EPSILON))
    xi = s * tl.where(on, d, 0.0)
    half = 0.5 * tl.where(axis == 1, HEIGHT, WIDTH).to(tl.float32)
    other_half = 0.5 * tl.where(axis == 1, WIDTH, HEIGHT).to(tl.float32)
    add_end(clip, out, a, r * yb, r * (xi - xb), axis, half, other_half, on)
    add_end(clip, out, b, -r * ya, r * (xa - xi), axis, half, other_half, on)


# -- launches


def _arguments(clip, face, zw, faces, opposite):
    return clip, face, zw, faces, outlines(clip, faces, opposite, *face.shape)


def _find(*args):
    face = args[1]
    out = [jax.ShapeDtypeStruct((2, *face.shape), jnp.float32)]
    alpha = launch.call(
        find_kernel, *_arguments(*args), face.size, *face.shape, out_shape=out,
        grid=(triton.cdiv(face.size, PIXELS), 2), num_warps=4, fp_fusion=False, PIXELS=PIXELS, BEYOND=BEYOND,
    )[0]  # fmt: skip
    return alpha[0], alpha[1]


def _pull(clip, face, zw, faces, opposite, g_right, g_below):
    out = [jax.ShapeDtypeStruct(clip.shape, jnp.float32)]
    return launch.call(
        pull_kernel, *_arguments(clip, face, zw, faces, opposite), jnp.stack([g_right, g_below]), face.size,
        *face.shape, out_shape=out, zeroed=(0,), grid=(triton.cdiv(face.size, PIXELS), 2), num_warps=4,
        fp_fusion=False, PIXELS=PIXELS, BEYOND=BEYOND, EPSILON=EPSILON,
    )[0]  # fmt: skip


forward = differentiable(_find, _pull)
