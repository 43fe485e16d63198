"""Reference antialias: every pair of pixels looks for its silhouette. JAX differentiates the crossing."""

import jax
import jax.numpy as jnp
import numpy as np

from tkjax.ops.antialias import BEYOND, EPSILON
from tkjax.ops.reference.rasterize import rounded


def outlines(clip, faces, opposite, height: int, width: int):
    """Which edges of each face a pair may take, as bits [F] int32: bit k edge k for pairs side by side, bit 3 + k for
    pairs one above the other. Silhouettes that are steep enough, of faces in front of the camera."""
    last = clip.shape[0] - 1
    v, beside = clip[jnp.clip(faces, 0, last)], clip[jnp.clip(opposite, 0, last)]  # [F,3,4]
    x, y, w = v[..., 0] * np.float32(0.5 * width), v[..., 1] * np.float32(0.5 * height), v[..., 3]
    other = beside[..., 0] * np.float32(0.5 * width), beside[..., 1] * np.float32(0.5 * height), beside[..., 3]
    px, py = x / w, y / w
    front = jnp.all(w > 0, 1)
    border = (opposite < 0) | (opposite > last) | ~jnp.all(jnp.isfinite(beside), -1)
    bits = jnp.zeros(faces.shape[0], jnp.int32)
    for k in range(3):
        p, q = (k + 1) % 3, (k + 2) % 3
        x1, y1 = px[:, p], py[:, p]
        dx, dy = px[:, q] - x1, py[:, q] - y1

        def side(x, y, w, x1=x1, y1=y1, dx=dx, dy=dy):
            """Twice the area of the edge and a vertex, times its W."""
            return rounded(dx * (y - rounded(y1 * w))) - rounded(dy * (x - rounded(x1 * w)))

        own, its = side(x[:, k], y[:, k], w[:, k]), side(*(c[:, k] for c in other))
        outline = front & (border[:, k] | ((own < 0) == (its < 0)))
        for axis, steep in enumerate((jnp.abs(dy) >= jnp.abs(dx), jnp.abs(dx) >= jnp.abs(dy))):
            bits += (outline & steep).astype(jnp.int32) << (3 * axis + k)
    return bits


def _crossing(x1, y1, x2, y2):
    """xi, with the gradient that the module of the op states."""
    dy = y2 - y1
    fixed = jax.lax.stop_gradient(dy)
    cross = rounded(x1 * y2) - rounded(y1 * x2)
    xi = jax.lax.stop_gradient(cross / jnp.where(fixed == 0, 1.0, fixed))
    extra = jnp.copysign(np.float32(EPSILON), fixed)
    slope = (cross + xi * extra) / (dy + extra)
    return xi + (slope - jax.lax.stop_gradient(slope))


def _pairs(clip, face, zw, faces, bits, vertical: bool):
    """alpha [H,W] of pairs with the next pixel; the last of each line has none and is 0."""
    height, width = face.shape
    face1, zw1 = (jnp.roll(v, -1, 0 if vertical else 1) for v in (face, zw))
    row, column = jnp.arange(height, dtype=jnp.int32)[:, None], jnp.arange(width, dtype=jnp.int32)
    last = row == height - 1 if vertical else column == width - 1
    mine = jnp.where((face > 0) & (face1 > 0), zw < zw1, face > 0)
    s = jnp.where(mine, 1.0, -1.0)
    pair = (face != face1) & ~last
    t = jnp.where(pair, jnp.where(mine, face, face1) - 1, 0)
    counts = jnp.where(pair, bits[t] >> (3 if vertical else 0), 0) & 7
    pair &= counts > 0

    other = (~mine).astype(jnp.int32)
    halves = np.float32(0.5 * width), np.float32(0.5 * height)
    column, row = (column, row + other) if vertical else (column + other, row)
    offset = column + (np.float32(0.5) - halves[0]), row + (np.float32(0.5) - halves[1])
    anything = jnp.asarray([[0, -1, 0, 1], [1, 1, 0, 1], [-1, 1, 0, 1]], jnp.float32)
    v = jnp.where(pair[..., None, None], clip[jnp.clip(faces[t], 0, clip.shape[0] - 1)], anything)
    axes = (1, 0) if vertical else (0, 1)
    x, y = ([rounded(v[..., k, c] * halves[c] / v[..., k, 3]) - offset[c] for k in range(3)] for c in axes)
    fixed = jax.lax.stop_gradient((x, y))

    found, edge = jnp.full(face.shape, -jnp.inf), jnp.full(face.shape, -1, jnp.int32)
    for k in range(3):
        ends = [fixed[c][(k + step) % 3] for step in (1, 2) for c in (0, 1)]
        at = s * _crossing(*ends)
        better = ((ends[1] < 0) != (ends[3] < 0)) & (at > found)
        found, edge = jnp.where(better, at, found), jnp.where(better, k, edge)
    good = pair & (edge >= 0) & ((counts >> jnp.maximum(edge, 0)) & 1 > 0)
    good &= (found > -np.float32(BEYOND)) & (found < np.float32(1 + BEYOND))

    def pick(values, step):
        k = (edge + step) % 3
        return jnp.where(k == 0, values[0], jnp.where(k == 1, values[1], values[2]))

    ends = (pick(c, step) for step in (1, 2) for c in (x, y))
    d = s * _crossing(*(jnp.where(good, c, other) for c, other in zip(ends, (0.0, -1.0, 0.0, 1.0))))
    d = jnp.where((d > 0) & (d < 1), d, jnp.where(d > 0, 1.0, 0.0))
    return jnp.where(good, s * (0.5 - d), 0.0)


def forward(clip, face, zw, faces, opposite):
    bits = outlines(jax.lax.stop_gradient(clip), faces, opposite, *face.shape)
    return tuple(_pairs(clip, face, zw, faces, bits, vertical) for vertical in (False, True))
