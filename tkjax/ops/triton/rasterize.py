"""rasterize on the GPU. A program has a tile of pixels and goes through all faces, a block of bounding boxes at a time;
faces whose box meets the tile are drawn one after the other, in registers.

Compiled without fused multiply-adds, so that the same faces are seen as by the reference. Gradients to vertices are
atomic sums: their last bits differ from run to run on a GPU.
"""

from typing import no_type_check

import jax
import jax.numpy as jnp
import triton
import triton.language as tl

from tkjax.ops.rasterize import EPSILON, centres, differentiable
from tkjax.ops.reference.rasterize import bounds, sorted_faces
from tkjax.ops.triton import launch

TILE_X, TILE_Y = 16, 16  # pixels of a program
FACES = 32  # boxes that are looked at together
PIXELS = 256  # of a program of the gradient


@triton.jit
@no_type_check
def face_edges(x0, y0, x1, y1, x2, y2):
    """a_0, a_1, a_2."""
    return x1 * y2 - y1 * x2, x2 * y0 - y2 * x0, x0 * y1 - y0 * x1


@triton.jit
@no_type_check
def draw_kernel(
    clip, faces, ordered, boxes, x_centres, y_centres, COUNT, HEIGHT, WIDTH, face_out, uv_out, zw_out,
    TILE_X: tl.constexpr, TILE_Y: tl.constexpr, FACES: tl.constexpr,
):  # fmt: skip
    """A tile of face, uv and zw. ordered: faces with their vertices in ascending order; boxes [F,4]."""
    pixel = tl.arange(0, TILE_X * TILE_Y)
    left, top = tl.program_id(0) * TILE_X, tl.program_id(1) * TILE_Y
    px, py = left + pixel % TILE_X, top + pixel // TILE_X
    exists = (px < WIDTH) & (py < HEIGHT)
    fx = tl.load(x_centres + px, mask=exists, other=0.0)
    fy = tl.load(y_centres + py, mask=exists, other=0.0)
    depth = tl.full((TILE_X * TILE_Y,), float("inf"), tl.float32)
    u = tl.zeros((TILE_X * TILE_Y,), tl.float32)
    v = tl.zeros((TILE_X * TILE_Y,), tl.float32)
    seen = tl.zeros((TILE_X * TILE_Y,), tl.int32)
    lane = tl.arange(0, FACES)
    for first in range(0, COUNT, FACES):
        box = boxes + (first + lane) * 4
        real = first + lane < COUNT
        meets = (tl.load(box, mask=real, other=WIDTH) < left + TILE_X) & (tl.load(box + 1, mask=real, other=-1) >= left)
        meets &= tl.load(box + 2, mask=real, other=HEIGHT) < top + TILE_Y
        meets &= tl.load(box + 3, mask=real, other=-1) >= top
        bits = tl.sum(meets.to(tl.int64) << lane.to(tl.int64), 0)
        f = first
        while bits != 0:
            if bits & 1 == 1:
                c0, c1, c2 = tl.load(ordered + 3 * f), tl.load(ordered + 3 * f + 1), tl.load(ordered + 3 * f + 2)
                p0, p1, p2 = clip + 4 * c0, clip + 4 * c1, clip + 4 * c2
                z0, w0, w1, w2 = tl.load(p0 + 2), tl.load(p0 + 3), tl.load(p1 + 3), tl.load(p2 + 3)
                a0, a1, a2 = face_edges(
                    tl.load(p0) - fx * w0, tl.load(p0 + 1) - fy * w0, tl.load(p1) - fx * w1,
                    tl.load(p1 + 1) - fy * w1, tl.load(p2) - fx * w2, tl.load(p2 + 1) - fy * w2,
                )  # fmt: skip
                inside = ((a0 >= 0) & (a1 >= 0) & (a2 >= 0)) | ((a0 <= 0) & (a1 <= 0) & (a2 <= 0))
                inside &= (px >= tl.load(boxes + 4 * f)) & (px <= tl.load(boxes + 4 * f + 1))
                inside &= (py >= tl.load(boxes + 4 * f + 2)) & (py <= tl.load(boxes + 4 * f + 3))
                total = (a0 + a1) + a2
                r = tl.div_rn(tl.full(total.shape, 1.0, tl.float32), total)
                b0, b1, b2 = a0 * r, a1 * r, a2 * r
                z = z0 + (b1 * (tl.load(p1 + 2) - z0) + b2 * (tl.load(p2 + 2) - z0))
                w = w0 + (b1 * (w1 - w0) + b2 * (w2 - w0))
                zw = tl.div_rn(z, w)
                nearer = inside & (w > 0) & (zw >= -1) & (zw <= 1) & (zw < depth)
                k0, k1 = tl.load(faces + 3 * f), tl.load(faces + 3 * f + 1)
                depth = tl.where(nearer, zw, depth)
                u = tl.where(nearer, tl.where(k0 == c0, b0, tl.where(k0 == c1, b1, b2)), u)
                v = tl.where(nearer, tl.where(k1 == c0, b0, tl.where(k1 == c1, b1, b2)), v)
                seen = tl.where(nearer, f + 1, seen)
            bits = bits >> 1
            f += 1
    at = py * WIDTH + px
    tl.store(face_out + at, seen, mask=exists)
    tl.store(uv_out + 2 * at, u, mask=exists)
    tl.store(uv_out + 2 * at + 1, v, mask=exists)
    tl.store(zw_out + at, tl.where(seen > 0, depth, 0.0), mask=exists)


@triton.jit
@no_type_check
def add_vertex(out, c, gx, gy, fx, fy, mask):
    """The gradient to q of a vertex, as that to its X, Y and W."""
    tl.atomic_add(out + 4 * c, gx, mask=mask)
    tl.atomic_add(out + 4 * c + 1, gy, mask=mask)
    tl.atomic_add(out + 4 * c + 3, -(fx * gx + fy * gy), mask=mask)


@triton.jit
@no_type_check
def pull_kernel(
    clip, faces, face, g_uv, x_centres, y_centres, TOTAL, WIDTH, out, PIXELS: tl.constexpr, EPSILON: tl.constexpr
):  # fmt: skip
    """Gradient to clip [V,4] (zeros before) of pixels, one lane each."""
    i = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    f = tl.load(face + i, mask=i < TOTAL, other=0) - 1
    gu = tl.load(g_uv + 2 * i, mask=i < TOTAL, other=0.0)
    gv = tl.load(g_uv + 2 * i + 1, mask=i < TOTAL, other=0.0)
    on = (f >= 0) & ((gu != 0) | (gv != 0))
    fx = tl.load(x_centres + i % WIDTH, mask=on, other=0.0)
    fy = tl.load(y_centres + i // WIDTH, mask=on, other=0.0)
    c0 = tl.load(faces + 3 * f, mask=on, other=0)
    c1 = tl.load(faces + 3 * f + 1, mask=on, other=0)
    c2 = tl.load(faces + 3 * f + 2, mask=on, other=0)
    w0 = tl.load(clip + 4 * c0 + 3, mask=on, other=1.0)
    w1 = tl.load(clip + 4 * c1 + 3, mask=on, other=1.0)
    w2 = tl.load(clip + 4 * c2 + 3, mask=on, other=1.0)
    x0 = tl.load(clip + 4 * c0, mask=on, other=0.0) - fx * w0
    y0 = tl.load(clip + 4 * c0 + 1, mask=on, other=0.0) - fy * w0
    x1 = tl.load(clip + 4 * c1, mask=on, other=1.0) - fx * w1
    y1 = tl.load(clip + 4 * c1 + 1, mask=on, other=0.0) - fy * w1
    x2 = tl.load(clip + 4 * c2, mask=on, other=0.0) - fx * w2
    y2 = tl.load(clip + 4 * c2 + 1, mask=on, other=1.0) - fy * w2
    a0, a1, a2 = face_edges(x0, y0, x1, y1, x2, y2)
    total = a0 + a1 + a2
    r = 1.0 / (total + tl.where(total < 0, -EPSILON, EPSILON))
    h0, h1 = gu * r, gv * r
    h = h0 * (a0 / total) + h1 * (a1 / total)
    add_vertex(out, c0, h * (y2 - y1) - h1 * y2, h * (x1 - x2) + h1 * x2, fx, fy, on)
    add_vertex(out, c1, h * (y0 - y2) + h0 * y2, h * (x2 - x0) - h0 * x2, fx, fy, on)
    add_vertex(
        out, c2, h * (y1 - y0) - h0 * y1 + h1 * y0, h * (x0 - x1) + h0 * x1 - h1 * x0, fx, fy, on
    )  # fmt: skip


# -- launches


def _draw(clip, faces, height: int, width: int):
    ordered = sorted_faces(faces)
    out = [((height, width), jnp.int32), ((height, width, 2), jnp.float32), ((height, width), jnp.float32)]
    return launch.call(
        draw_kernel, clip, faces, ordered, bounds(clip, faces, height, width), centres(width), centres(height),
        faces.shape[0], height, width, out_shape=[jax.ShapeDtypeStruct(*s) for s in out],
        grid=(triton.cdiv(width, TILE_X), triton.cdiv(height, TILE_Y)), num_warps=4, fp_fusion=False,
        TILE_X=TILE_X, TILE_Y=TILE_Y, FACES=FACES,
    )  # fmt: skip


def _pull(clip, faces, face, g_uv):
    height, width = face.shape
    return launch.call(
        pull_kernel, clip, faces, face, g_uv, centres(width), centres(height), height * width, width,
        out_shape=[jax.ShapeDtypeStruct(clip.shape, jnp.float32)], zeroed=(0,),
        grid=(triton.cdiv(height * width, PIXELS),), num_warps=4, PIXELS=PIXELS, EPSILON=EPSILON,
    )[0]  # fmt: skip


forward = differentiable(_draw, _pull)
