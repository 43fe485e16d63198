"""The room behind the subject: a static picture with soft structure (numpy only)."""

import numpy as np
from jaxtyping import UInt8


def plate(height: int, width: int, seed: int) -> UInt8[np.ndarray, "{height} {width} 3"]:
    """A wall with a panel line, a shelf with books and a lamp's glow, all slightly out of focus."""
    rng = np.random.default_rng([int(seed), 404])
    y, x = np.meshgrid((np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width, indexing="ij")
    blur = 0.008

    def box(x0, y0, x1, y1):
        def edge(v):
            return 1 / (1 + np.exp(-np.clip(v / blur * 2, -40, 40)))

        return edge(x - x0) * edge(x1 - x) * edge(y - y0) * edge(y1 - y)

    wall = np.array([[0.60, 0.66, 0.68], [0.66, 0.68, 0.60], [0.57, 0.62, 0.72], [0.68, 0.65, 0.66]])[rng.integers(4)]
    img = wall[None, None] * (1.06 - 0.28 * y - 0.10 * np.abs(x - 0.4))[..., None]
    glow = np.exp(-(((x - 0.12) / 0.35) ** 2) - ((y - 0.1) / 0.5) ** 2)[..., None]
    img = img + glow * np.array([0.14, 0.11, 0.06])
    for x0 in (0.30, 0.71):
        img = img * (1 - 0.10 * box(x0, -1, x0 + 0.012, 2))[..., None]

    def paint(mask, colour):
        nonlocal img
        img = img * (1 - mask[..., None]) + mask[..., None] * np.asarray(colour) * (1.05 - 0.25 * y)[..., None]

    right = rng.random() < 0.5
    x0, x1 = (0.78, 1.1) if right else (-0.1, 0.21)
    for base in (0.26, 0.55):
        paint(box(x0, base, x1, base + 0.018), [0.36, 0.27, 0.20])
        at = x0 + 0.01
        while at < x1 - 0.02:
            w, h = rng.uniform(0.014, 0.03), rng.uniform(0.10, 0.17)
            shade = rng.uniform(0.25, 0.62)
            tint = shade * (0.75 + 0.5 * rng.random(3))
            paint(box(at, base - h, at + w - 0.003, base), tint)
            at += w
    fx = 0.08 if right else 0.80
    paint(box(fx, 0.16, fx + 0.13, 0.34), [0.30, 0.24, 0.20])
    paint(box(fx + 0.012, 0.172, fx + 0.118, 0.328), [0.55, 0.62, 0.60])
    paint(box(fx + 0.03, 0.24, fx + 0.10, 0.31), [0.42, 0.52, 0.45])
    grain = rng.normal(0, 0.004, (height, width, 1))
    return np.round(np.clip(img + grain, 0, 1) * 255).astype(np.uint8)
