"""Rasteriser of triangle meshes: which face each pixel sees, where on it, and how deep (dyntet dossier §10.2).

clip [V,4] holds the vertices as (X, Y, Z, W) in clip coordinates. Pixel (row i, column j) has its centre at
x = (2 j + 1) / width - 1, y = (2 i + 1) / height - 1: row 0 is at y = -1, and X / W, Y / W = ±1 are the borders.
Of a face, with q_k = (X_k - x W_k, Y_k - y W_k) for its vertices k,
  a_0 = q_1 × q_2, a_1 = q_2 × q_0, a_2 = q_0 × q_1, S = a_0 + a_1 + a_2, b_k = a_k / S:
b are the barycentric coordinates of the point that the pixel sees, in space and not in the picture. The face covers the
pixel if no two a_k have opposite signs, S is not 0, sum b_k W_k > 0 and -1 <= zw <= 1, zw = sum b_k Z_k / sum b_k W_k.
Both windings are drawn. The smallest zw wins, among equal ones the lowest face.

Clipping. Nothing is cut: a face that reaches behind the camera (some W_k <= 0) or past the near or far plane is drawn
where its points are in front of the camera and between the planes, pixel by pixel.

Edges. Each a_k is the difference of two products that are rounded by themselves, so two faces have the same number, or
its negative, for the edge that they share, and rounding never turns its sign: between faces that share an edge or a
corner no pixel is missed. A pixel whose centre lies on the edge is covered by both, and depth, then the number of the
face, leaves one. Faces without area, with a vertex twice, or with a coordinate that is not finite cover nothing.

Rounding. All in float32, the same in every back end (no fused multiply-add; vertices of a face in ascending order, so
that the same triangle twice has the same depth): b_k = a_k (1 / S), depth Z_0 + (b_1 (Z_1 - Z_0) + b_2 (Z_2 - Z_0)),
the same for W. A face whose W_k are all positive covers only pixels within 1/64 pixel of the bounding box of its
projected vertices, which is what keeps rounding errors of a speck from spreading.

Gradients. uv to clip, with G_u, G_v the cotangents, r = 1 / (S + copysign(1e-6, S)): of u
  r (da_0 - u dS), of v r (da_1 - v dS). The 1e-6, which nvdiffrast's gradients have too, bounds what a sliver gives.
Nothing else has a gradient: not the choice of the face, and not zw.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from tkjax.ops import dispatch

MAX_SIZE = 32768  # pixels along one side: the margin of bounding boxes is many times the rounding of a position
MARGIN = 1.0 / 64  # pixels
EPSILON = 1e-6  # on |S| in gradients


class Raster(NamedTuple):
    """face: number of the face that a pixel sees plus 1, 0 for background. uv: barycentric coordinates of the face's
    vertices 0 and 1, in [0,1] up to rounding. zw: depth Z / W in [-1,1]. Both are 0 where there is background."""

    face: Int[Array, "*B H W"]
    uv: Float[Array, "*B H W 2"]
    zw: Float[Array, "*B H W"]


def centres(size: int) -> np.ndarray:
    """Coordinates [size] of pixel centres along one side."""
    return np.float32(2 * np.arange(size) + 1 - size) / np.float32(size)


def check_mesh(op: str, clip, faces) -> None:
    if clip.dtype != "float32":
        raise ValueError(f"{op}: clip coordinates must be float32, got {clip.dtype}")
    if faces.dtype != "int32":
        raise ValueError(f"{op}: faces must be int32, got {faces.dtype}")


def over_batch(call: Callable, batched: tuple[bool, ...]) -> Callable:
    """call mapped over the leading axis of the arguments that have one."""
    return jax.vmap(call, tuple(0 if b else None for b in batched)) if any(batched) else call


def rasterize(
    clip: Float[Array, "*B V 4"],
    faces: Int[Array, "F 3"],
    height: int,
    width: int,
    *,
    backend: str | None = None,
) -> Raster:
    """The mesh with vertices clip [V,4] and faces [F,3] (int32, numbers of vertices) as height x width pixels.

    A leading axis of clip is a batch of meshes with the same faces. Meshes without vertices or faces are background. A
    face with a number outside 0 … V-1 covers nothing, so unused slots may hold -1. Differentiable are uv with respect
    to clip. ValueError for other types than float32 and int32, and for sizes outside 1 … 32768.
    """
    check_mesh("rasterize", clip, faces)
    if not (1 <= height <= MAX_SIZE and 1 <= width <= MAX_SIZE):
        raise ValueError(f"rasterize: height and width must be 1 … {MAX_SIZE}, got {height} x {width}")
    if clip.ndim not in (2, 3):
        raise ValueError(f"rasterize: clip must be [V,4] or [B,V,4], got {clip.shape}")
    module = dispatch.resolve("rasterize", backend)
    with jax.named_scope(f"rasterize.{module.__name__.split('.')[-2]}"):
        if 0 in (*clip.shape, *faces.shape):
            shape = (*clip.shape[:-2], height, width)
            return Raster(jnp.zeros(shape, jnp.int32), jnp.zeros((*shape, 2)), jnp.zeros(shape))
        draw = functools.partial(module.forward, height=height, width=width)
        return over_batch(draw, (clip.ndim == 3, False))(clip, faces)


def differentiable(draw: Callable, pull: Callable) -> Callable:
    """`rasterize` of a back end's kernels, with gradients.

    draw(clip, faces, height, width) -> Raster; pull(clip, faces, face [H,W], g_uv [H,W,2]) -> gradient to clip.
    """
    gradients = dispatch.once_differentiable("rasterize")(pull)

    @functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
    def rasterized(clip, faces, height, width):
        return Raster(*draw(clip, faces, height, width))

    def forward(clip, faces, height, width):
        out = rasterized(clip, faces, height, width)
        return out, (clip, faces, out.face)

    def backward(height, width, kept, g):
        return gradients(*kept, g.uv), None

    rasterized.defvjp(forward, backward)
    return lambda clip, faces, *, height, width: rasterized(clip, faces, height, width)
