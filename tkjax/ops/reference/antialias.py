"""Reference antialias: every pair of pixels looks for its silhouette. JAX differentiates the crossing."""

import jax
import jax.numpy as jnp
import numpy as np

from tkjax.ops.antialias import BEYOND, EPSILON
from tkjax.ops.reference.rasterize import rounded


def _crossing(x1, y1, x2, y2):
    """xi, with the gradient that the module of the op states."""
    dy = y2 - y1
    fixed = jax.lax.stop_gradient(dy)
    cross = rounded(x1 * y2) - rounded(y1 * x2)
    xi = jax.lax.stop_gradient(cross / jnp.where(fixed == 0, 1.0, fixed))
    extra = jnp.copysign(np.float32(EPSILON), fixed)
    slope = (cross + xi * extra) / (dy + extra)
    return xi + (slope - jax.lax.stop_gradient(slope))


def _pairs(clip, face, zw, faces, opposite, vertical: bool):
    """alpha [H,W] of pairs with the next pixel; the last of each line has none and is 0."""
    height, width = face.shape
    face1, zw1 = (jnp.roll(v, -1, 0 if vertical else 1) for v in (face, zw))
    row, column = (jnp.arange(n, dtype=jnp.int32) for n in (height, width))
    last = (row == height - 1)[:, None] if vertical else (column == width - 1)[None]
    pair = (face != face1) & ~last
    mine = jnp.where((face > 0) & (face1 > 0), zw < zw1, face > 0)
    s = jnp.where(mine, 1.0, -1.0)
    t = jnp.where(pair, jnp.where(mine, face, face1) - 1, 0)

    other = (~mine).astype(jnp.int32)
    row = jnp.broadcast_to(row[:, None], face.shape) + (other if vertical else 0)
    column = jnp.broadcast_to(column, face.shape) + (0 if vertical else other)
    halves = np.float32(0.5 * width), np.float32(0.5 * height)
    offset = column + np.float32(0.5) - halves[0], row + np.float32(0.5) - halves[1]
    axes = (1, 0) if vertical else (0, 1)
    anything = jnp.asarray([[0, -1, 0, 1], [1, 1, 0, 1], [-1, 1, 0, 1]], jnp.float32)
    v = jnp.where(pair[..., None, None], clip[jnp.clip(faces[t], 0, clip.shape[0] - 1)], anything)
    pair &= jnp.all(v[..., 3] > 0, -1)
    v = jnp.where(pair[..., None, None], v, anything)
    x, y = ([rounded(v[..., k, c] / v[..., k, 3] * halves[c]) - offset[c] for k in range(3)] for c in axes)
    fixed = [jax.lax.stop_gradient(c) for c in (*x, *y)]

    found = jnp.full(face.shape, -jnp.inf)
    edge = jnp.full(face.shape, -1, jnp.int32)
    for k in range(3):
        p, q = (k + 1) % 3, (k + 2) % 3
        crosses = (fixed[3 + p] < 0) != (fixed[3 + q] < 0)
        at = s * _crossing(fixed[p], fixed[3 + p], fixed[q], fixed[3 + q])
        better = crosses & (at > found)
        found, edge = jnp.where(better, at, found), jnp.where(better, k, edge)

    def pick(values, step):
        k = (edge + step) % 3
        return jnp.where(k == 0, values[0], jnp.where(k == 1, values[1], values[2]))

    x1, y1, x2, y2 = (pick(c, step) for step in (1, 2) for c in (x, y))
    fx1, fy1, fx2, fy2 = (jax.lax.stop_gradient(c) for c in (x1, y1, x2, y2))

    def side(vertex):
        """Twice the area of the edge and a vertex [H,W,4] times its W."""
        w = vertex[..., 3]
        px, py = (rounded(vertex[..., c] * halves[c]) - rounded(offset[c] * w) for c in axes)
        return rounded((fx2 - fx1) * (py - rounded(fy1 * w))) - rounded((fy2 - fy1) * (px - rounded(fx1 * w)))

    across = jnp.take_along_axis(opposite[t], jnp.maximum(edge, 0)[..., None], -1)[..., 0]
    beside = jax.lax.stop_gradient(clip)[jnp.clip(across, 0, clip.shape[0] - 1)]
    own = jax.lax.stop_gradient(jnp.stack([pick([v[..., k, c] for k in range(3)], 0) for c in range(4)], -1))
    outline = (across < 0) | ((side(own) < 0) == (side(beside) < 0))

    good = pair & (edge >= 0) & outline & (jnp.abs(fy2 - fy1) >= jnp.abs(fx2 - fx1))
    good &= (found > -np.float32(BEYOND)) & (found < np.float32(1 + BEYOND))
    xi = _crossing(*(jnp.where(good, c, other) for c, other in ((x1, 0.0), (y1, -1.0), (x2, 0.0), (y2, 1.0))))
    d = s * xi
    between = (d > 0) & (d < 1)
    d = jnp.where(between, d, jnp.where(d > 0, 1.0, 0.0))
    return jnp.where(good, s * (0.5 - d), 0.0)


def forward(clip, face, zw, faces, opposite):
    return tuple(_pairs(clip, face, zw, faces, opposite, vertical) for vertical in (False, True))
