"""Reference rasterize: windows of faces' bounding boxes, many at a time, and the smallest depth of each pixel.

Then, as a function of the faces that are seen, their barycentric coordinates, which JAX differentiates.
"""

import jax
import jax.numpy as jnp
import numpy as np

from tkjax.ops.rasterize import EPSILON, MARGIN, Raster, centres

EDGE = 8  # pixels along a side of a window
WINDOWS = 512  # in one iteration
NOBODY = np.int32(2**31 - 1)


def rounded(product):
    """A product that the compiler cannot contract with the sum it goes into."""
    return jnp.maximum(product, np.finfo(np.float32).min)


def sorted_faces(faces):
    """Each face's vertices in ascending order [F,3]."""
    low, high = jnp.min(faces, 1), jnp.max(faces, 1)
    return jnp.stack([low, jnp.sum(faces, 1, dtype=jnp.int32) - low - high, high], 1)


def bounds(clip, faces, height: int, width: int):
    """First and last column and row [F,4] (x0, x1, y0, y1, int32) that a face may cover; first > last for nobody.

    All pixels for a face that is partly in front of the camera.
    """
    known = (faces >= 0) & (faces < clip.shape[0])
    v = clip[jnp.where(known, faces, 0)]  # [F,3,4]
    front = v[..., 3] > 0
    drawn = jnp.all(known & jnp.all(jnp.isfinite(v), -1), 1) & jnp.any(front, 1)
    whole = jnp.all(front, 1)
    out = []
    for axis, size in ((0, width), (1, height)):
        at = rounded(v[..., axis] / v[..., 3] * np.float32(0.5 * size)) + np.float32(0.5 * size - 0.5)
        low, high = jnp.min(at, 1) - np.float32(MARGIN), jnp.max(at, 1) + np.float32(MARGIN)
        first = jnp.where(whole, jnp.clip(jnp.ceil(low), 0, size), 0)
        last = jnp.where(whole, jnp.clip(jnp.floor(high), -1, size - 1), size - 1)
        out += [jnp.where(drawn, first, size), jnp.where(drawn, last, -1)]
    return jnp.stack(out, 1).astype(jnp.int32)


def edges(x, y):
    """a_0, a_1, a_2 of q's coordinates x, y, three arrays each."""
    return [rounded(x[i] * y[j]) - rounded(y[i] * x[j]) for i, j in ((1, 2), (2, 0), (0, 1))]


def depths(v, px, py):
    """Depth of faces with vertices v [N,3,4], in ascending order, at pixels px, py [N,M]; infinite if not covered."""
    part = [[v[:, k, c, None] for c in range(4)] for k in range(3)]
    a = edges([p[0] - rounded(px * p[3]) for p in part], [p[1] - rounded(py * p[3]) for p in part])
    inside = ((a[0] >= 0) & (a[1] >= 0) & (a[2] >= 0)) | ((a[0] <= 0) & (a[1] <= 0) & (a[2] <= 0))
    r = 1.0 / ((a[0] + a[1]) + a[2])
    b1, b2 = a[1] * r, a[2] * r
    z, w = (
        part[0][c] + (rounded(b1 * (part[1][c] - part[0][c])) + rounded(b2 * (part[2][c] - part[0][c]))) for c in (2, 3)
    )
    zw = z / w
    return jnp.where(inside & (w > 0) & (zw >= -1) & (zw <= 1), zw, jnp.inf)


def seen(clip, faces, height: int, width: int):
    """(face [H,W], zw [H,W])."""
    faces = sorted_faces(faces)
    box = bounds(clip, faces, height, width)
    columns, rows = (jnp.maximum(box[:, i + 1] - box[:, i] + EDGE, 0) // EDGE for i in (0, 2))
    last = jnp.cumsum(columns * rows)
    x_centres, y_centres = jnp.asarray(centres(width)), jnp.asarray(centres(height))
    square = jnp.arange(EDGE * EDGE, dtype=jnp.int32)

    def block(carry):
        first, depth, face = carry
        number = first + jnp.arange(WINDOWS, dtype=jnp.int32)
        f = jnp.minimum(jnp.searchsorted(last, number, side="right"), faces.shape[0] - 1).astype(jnp.int32)
        within = number - (last[f] - columns[f] * rows[f])
        across = jnp.maximum(columns[f], 1)
        x = (box[f, 0] + within % across * EDGE)[:, None] + square % EDGE
        y = (box[f, 2] + within // across * EDGE)[:, None] + square // EDGE
        inside = (number < last[-1])[:, None] & (x <= box[f, 1, None]) & (y <= box[f, 3, None])
        v = clip[jnp.clip(faces[f], 0, clip.shape[0] - 1)]
        z = jnp.where(inside, depths(v, x_centres[x], y_centres[y]), jnp.inf)  # gathers stay within their arrays
        pixel = jnp.where(z < jnp.inf, y * width + x, height * width)  # beyond the last: dropped
        nearer = depth.at[pixel].min(z, mode="drop")
        face = jnp.where(nearer < depth, NOBODY, face)
        equal = z == nearer[jnp.minimum(pixel, height * width - 1)]
        mine = jnp.where(equal, f[:, None], NOBODY)
        return first + WINDOWS, nearer, face.at[pixel].min(mine, mode="drop")

    pixels = height * width
    start = jnp.int32(0), jnp.full(pixels, jnp.inf, jnp.float32), jnp.full(pixels, NOBODY)
    _, depth, face = jax.lax.while_loop(lambda carry: carry[0] < last[-1], block, start)
    zw = jnp.where(face < NOBODY, depth, 0.0).reshape(height, width)
    return jnp.where(face < NOBODY, face + 1, 0).reshape(height, width), zw


def _sloped(numerator, total, value):
    """`value`, with the gradient of numerator / total that the module of the op states."""
    extra = jnp.copysign(np.float32(EPSILON), jax.lax.stop_gradient(total))
    slope = (numerator + jax.lax.stop_gradient(value) * extra) / (total + extra)
    return jax.lax.stop_gradient(value) + (slope - jax.lax.stop_gradient(slope))


def coordinates(clip, faces, face):
    """uv [H,W,2] of the faces that are seen."""
    height, width = face.shape
    corners = faces[jnp.maximum(face - 1, 0)]  # [H,W,3]
    anything = jnp.asarray([[0, 0, 0, 1], [1, 0, 0, 1], [0, 1, 0, 1]], jnp.float32)
    covered = (face > 0)[..., None]
    v = jnp.where(covered[..., None], clip[jnp.clip(corners, 0, clip.shape[0] - 1)], anything)
    px, py = jnp.asarray(centres(width)), jnp.asarray(centres(height))[:, None]
    x = [v[..., k, 0] - rounded(px * v[..., k, 3]) for k in range(3)]
    y = [v[..., k, 1] - rounded(py * v[..., k, 3]) for k in range(3)]
    a = edges(x, y)
    top = jnp.max(corners, -1)  # its a_k is added last, as in `depths`
    pairs = [(a[1] + a[2]) + a[0], (a[0] + a[2]) + a[1], (a[0] + a[1]) + a[2]]
    total = jnp.where(corners[..., 0] == top, pairs[0], jnp.where(corners[..., 1] == top, pairs[1], pairs[2]))
    r = jax.lax.stop_gradient(1.0 / total)
    uv = jnp.stack([_sloped(a[k], total, jax.lax.stop_gradient(a[k]) * r) for k in range(2)], -1)
    return jnp.where(covered, uv, 0.0)


def forward(clip, faces, *, height: int, width: int) -> Raster:
    face, zw = seen(jax.lax.stop_gradient(clip), faces, height, width)
    return Raster(face, coordinates(clip, faces, face), zw)
