"""Signed distances of neck and torso, centimetres, in the axes of the stage (those of the head at rest).

The neck leans with the head: it runs from the fixed collar to `f["neck_top"]`, where the head's attachment is now.
"""

import jax.numpy as jnp

from tkjax.synthetic.shape import capsule, ellipsoid, mirror, smooth_max, smooth_min, smoothstep

NECK_BASE = (0.0, -20.0, -5.6)
NECK_TOP = (0.0, -5.5, -5.0)  # in head axes


def neck(x, y, z, f):
    tx, ty, tz = f["neck_top"][0], f["neck_top"][1], f["neck_top"][2]
    d = capsule(x, y, z, NECK_BASE, (tx, ty, tz), 5.7 * f["neck_w"], 4.2 * f["neck_w"])
    # the two muscles from behind the ears to the pit of the throat, and the larynx
    for side in (-1.0, 1.0):
        a = (side * 1.3, -18.6, -0.5)
        b = (tx + side * 4.6, ty - 1.5, tz - 0.2)
        d = smooth_min(d, capsule(x, y, z, a, b, 0.35, 0.8), 2.2)
    larynx = ellipsoid(x - 0.4 * tx, y + 13.2, z + 0.5, 0.8, 1.7, 0.8)
    return smooth_min(d, larynx, 2.2)


def trunk(x, y, z, f, grow=0.0):
    """Chest, shoulders and the slope from neck to shoulder; `grow` thickens it (cloth)."""
    ax = mirror(x)
    w = f["shoulder_w"]
    d = ellipsoid(x, y + 34.5, z + 5.0, 15.5 * w, 17.0, 8.8)
    d = smooth_min(d, ellipsoid(ax - 15.0 * w, y + 24.8, z + 6.5, 6.3, 6.0, 5.6), 4.0)
    d = smooth_min(d, capsule(ax, y, z, (2.0, -13.5, -7.2), (15.0 * w, -22.3, -6.8), 2.4, 3.2), 4.0)
    return d - grow


def body_layers(x, y, z, f):
    """Distances of skin (neck and the chest that shows) and cloth."""
    x, y, z = x - f["body"][0], y - f["body"][1], z - f["body"][2]
    chest = trunk(x, y, z, f)
    skin = smooth_min(neck(x, y, z, f), chest, 2.6)
    # the collar: cloth ends at a ring around the neck, lower in front, with a rib along the edge
    radial = jnp.sqrt(x * x + (z + 5.4) ** 2 + 1e-6)
    ring = (7.0 + f["collar"] * 6.0 * smoothstep(-4.0, 3.0, z) * smoothstep(6.0, 0.0, jnp.abs(x)) - radial) * 0.8
    folds = 0.12 * jnp.sin(0.55 * x + 0.25 * y + 1.5 * jnp.sin(0.21 * y)) * jnp.sin(0.4 * y - 0.2 * x)
    cloth = smooth_max(chest - 0.55 - folds, ring, 0.5)
    rib = jnp.sqrt((chest - 0.45) ** 2 + (ring + 0.15) ** 2 + 1e-9) - 0.5
    return {"skin": skin, "cloth": smooth_min(cloth, rib, 0.25), "ring": ring}


def body(x, y, z, f):
    p = body_layers(x, y, z, f)
    return jnp.minimum(p["skin"], p["cloth"]) * 0.9
