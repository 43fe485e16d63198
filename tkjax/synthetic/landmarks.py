"""The 68 named points of the subject as exact 3-D points that follow its expression, iBUG order, centimetres."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from tkjax.synthetic import shape
from tkjax.synthetic.packed import layout_of, pack, unpack

# Contour 0-16, nose 27-35 at rest; (x, y, z) near the surface, from the subject's right to its left
_CONTOUR = np.array([
    [-7.56, 4.11, -0.99], [-7.66, 0.67, -2.44], [-7.54, -1.05, -2.43], [-6.72, -4.79, -1.75], [-5.94, -6.22, -0.63],
    [-5.09, -7.18, 0.71], [-3.21, -8.53, 2.8], [-1.29, -9.3, 4.09], [0.0, -9.4, 4.26],
])  # fmt: skip
_CONTOUR = np.concatenate([_CONTOUR, (_CONTOUR[:8] * [-1, 1, 1])[::-1]])
_NOSE = np.array([
    [0.0, 3.27, 5.24], [0.0, 1.73, 6.32], [0.0, 0.37, 7.24], [0.0, -0.46, 7.59], [-1.04, -1.46, 5.66],
    [-0.6, -2.01, 5.87], [0.0, -2.09, 6.06], [0.6, -2.01, 5.87], [1.04, -1.46, 5.66],
])  # fmt: skip
_BROW_T = np.array([0.97, 0.76, 0.52, 0.27, 0.04])  # along the brow, from the ear to the nose
_EYE_EX = np.array([1.0, 0.42, -0.35, -1.0, -0.35, 0.42]) * shape.LID_HALF_WIDTH  # outer, upper 2, inner, lower 2
_LIP_OUTER = np.array([-1.0, -0.64, -0.27, 0.0, 0.27, 0.64, 1.0, 0.62, 0.3, 0.0, -0.3, -0.62])  # x / w
_LIP_INNER = np.array([-0.9, -0.4, 0.0, 0.4, 0.9, 0.4, 0.0, -0.4])

RIGHT_EYE, LEFT_EYE = slice(36, 42), slice(42, 48)


def _newton_surface(x, y, z, f):
    """Move points along the gradient on to the skin at rest."""
    sdf = lambda p: shape.rest_skin(p[0], p[1], p[2], f)  # noqa: E731
    p = jnp.stack([x, y, z], -1)

    def step(_, p):
        d, g = jax.vmap(jax.value_and_grad(sdf))(p)
        return p - (d / jnp.sum(g * g, -1))[:, None] * g

    return jax.lax.fori_loop(0, 8, step, p)


def _moved(p, f):
    """Where flesh that rests at p [V,3] is now: solves to_rest(q) = p."""

    def step(_, q):
        r = jnp.stack(shape.to_rest(q[:, 0], q[:, 1], q[:, 2], f), -1)
        return q - 0.8 * (r - p)

    return jax.lax.fori_loop(0, 40, step, p)


def _front(x, y, f):
    """z of the foremost skin or lip at (x, y), lids shut or open alike: tracing along -z."""

    def surface(z):
        rx, ry, rz = shape.to_rest(x, y, z, f)
        ax = shape.mirror(x)
        d = shape.rest_skin(rx, ry, rz, f)
        shell = jnp.sqrt((ax - shape.EYE[0]) ** 2 + (y - shape.EYE[1]) ** 2 + (z - shape.EYE[2]) ** 2 + 1e-9)
        d = shape.smooth_min(d, shell - shape.LID_RADIUS, 0.45)
        up, low = shape.lips(x, y, z, f)
        return shape.smooth_min(d, jnp.minimum(up, low), 0.2)

    return jax.lax.fori_loop(0, 60, lambda _, z: z - 0.8 * jnp.clip(surface(z), -1.0, 1.0), jnp.full_like(x, 7.0))


def points(f) -> Float[jax.Array, "68 3"]:
    """The 68 points in head axes for one frame's controls."""
    rest = np.concatenate([_CONTOUR, _NOSE])
    fixed = _moved(_newton_surface(*(jnp.asarray(rest[:, i]) for i in range(3)), f), f)
    # brows
    bx, by = shape.brow_line(jnp.asarray(np.concatenate([_BROW_T, _BROW_T[::-1]])), f)
    by = by + 0.4 * f["brow_w"]  # the upper edge
    bx = bx * np.array([-1.0] * 5 + [1.0] * 5)
    # eyes: the edges of the lids
    ex = jnp.asarray(_EYE_EX)
    upper = np.array([True, True, True, True, False, False])

    def eye(left):
        y_up, y_low = shape.lid_curves(ex, f, left)
        return jnp.where(upper, y_up, y_low)

    right_y, left_y = eye(jnp.zeros(6, bool)), eye(jnp.ones(6, bool))
    right_x = -(shape.EYE[0] + ex)
    order = np.array([3, 2, 1, 0, 5, 4])  # 42 is the left eye's inner corner
    left_x, left_y = (shape.EYE[0] + ex)[order], left_y[order]
    # lips
    outer_x = jnp.asarray(_LIP_OUTER) * f["mouth_w"]
    y_up, y_low, h_up, h_low, _ = shape.lip_curves(jnp.abs(outer_x), f)
    outer_y = jnp.where(np.arange(12) < 7, y_up + h_up, y_low - h_low)
    outer_y = jnp.where(np.array([i in (0, 6) for i in range(12)]), f["corner_y"], outer_y)
    inner_x = jnp.asarray(_LIP_INNER) * f["mouth_w"]
    i_up, i_low, _, _, s = shape.lip_curves(jnp.abs(inner_x), f)
    inner_y = jnp.where(np.arange(8) < 5, i_up, i_low)
    inner_y = jnp.where(np.array([i in (0, 4) for i in range(8)]), 0.5 * (i_up + i_low), inner_y)
    x = jnp.concatenate([bx, right_x, left_x, outer_x])
    y = jnp.concatenate([by, right_y, left_y, outer_y])
    on_skin = jnp.stack([x, y, _front(x, y, f)], -1)
    inner_z = shape.lip_depth(s, f) - jnp.where(np.arange(8) < 5, 0.0, f["low_back"] * (1 - s * s))
    inner = jnp.stack([inner_x, inner_y, inner_z], -1)
    return jnp.concatenate([fixed[:17], on_skin[:10], fixed[17:], on_skin[10:], inner])


@functools.partial(jax.jit, static_argnames="layout")
def _batch(vectors, layout):
    return jax.vmap(lambda v: points(unpack(v, layout)))(vectors)


def landmarks_head(controls: list[dict]) -> Float[np.ndarray, "n 68 3"]:
    """Points of n frames in head axes, centimetres."""
    packed, layout = np.stack([pack(c) for c in controls]), layout_of(controls[0])
    block = 32  # a fixed size, so that clips of any length compile once
    out = []
    for a in range(0, len(packed), block):
        part = packed[a : a + block]
        full = np.concatenate([part, np.repeat(part[-1:], block - len(part), 0)])
        out.append(np.asarray(_batch(full, layout))[: len(part)])
    return np.concatenate(out)
