"""Programs that the tests share: the fields of the systems, some with small tables."""

import numpy as np

from tkjax.ops import GridSpec, ProgramBuilder

HEAD = GridSpec(2, 12, 1, 64, 512, 14)
SPACE = GridSpec(3, 4, 2, 4, 40, 9, "tiled")
AMBIENT = GridSpec(2, 4, 2, 4, 40, 8, "tiled")
PAIRS = ((0, 1), (1, 2), (0, 2))


def er_nerf_head(spec=HEAD, audio=32, geometry=64):
    """er-nerf dossier §3."""
    p = ProgramBuilder("er_nerf_head")
    f = p.grid("planes", spec, p.points, PAIRS, 1.0)
    v = p.mlp("audio_channel_attention", [f], (f.channels, 64, audio))
    w = p.act(p.mlp("eye_attention", [f], (f.channels, 16, 1)), "sigmoid")
    parts = [f, p.mul(v, p.row("audio", audio)), p.mul(w, p.row("eye", 1))]
    h = p.mlp("density", parts, (f.channels + audio + 1, 64, 64, 1 + geometry))
    rgb = p.act(p.mlp("colour", [p.row("sh", 16), h[1:], p.row("code", 4)], (20 + geometry, 64, 3)), "sigmoid")
    u = p.act(p.mlp("uncertainty", [p.stop_gradient(f)], (f.channels, 32, 1)), "softplus")
    return p.build(
        sigma=p.act(p.clip_max(h[0:1], 40.0), "exp"), rgb=p.affine(rgb, 1.002, -0.001), uncertainty=u,
        audio_norm=p.norm(v), eye_weight=w,
    )  # fmt: skip


def rad_nerf_head(space=SPACE, ambient=AMBIENT, width=64):
    """rad-nerf dossier §3.3."""
    p = ProgramBuilder("rad_nerf_head")
    x = p.grid("encoder", space, p.points, bound=1.0)
    a = p.mlp("ambient", [x, p.row("audio", 64)], (x.channels + 64, width, width, 2), output="tanh")
    w = p.grid("encoder_ambient", ambient, a, bound=1.0)
    h = p.mlp("sigma", [x, w, p.row("eye", 1)], (x.channels + w.channels + 1, width, width, 1 + width))
    rgb = p.mlp("colour", [p.row("sh", 16), h[1:], p.row("code", 4)], (20 + width, width, 3), output="sigmoid")
    return p.build(sigma=p.act(h[0:1], "trunc_exp"), rgb=rgb, ambient=p.sum_abs(a))


def ad_nerf(width=256, audio=64):
    """ad-nerf dossier: 8 layers with a skip after the fifth, frequency encodings, biases."""
    p = ProgramBuilder("ad_nerf")
    x = p.concat([p.freq(p.points, 10), p.row("audio", audio)])
    k = x.channels
    h = p.mlp("points_a", [x], (k, *[width] * 5), bias=True, output="relu")
    h = p.mlp("points_b", [x, h], (k + width, *[width] * 3), bias=True, output="relu")
    sigma = p.mlp("alpha", [h], (width, 1), bias=True, output="relu")
    d = p.freq(p.row("direction", 3), 4)
    rgb = p.mlp("views", [h, d], (width + d.channels, *[width // 2] * 3, 3), bias=True, output="sigmoid")
    return p.build(sigma=sigma, rgb=rgb)


def make(program, n, seed=0, per_ray=("sh", "direction"), rays=7, scale=1.0, spread=1.1):
    """(points, rows, params) as float32 arrays; rows named in `per_ray` have one row per ray, the rest one for all."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(-spread, spread, (n, program.dims)).astype(np.float32)
    rows = {}
    for name, channels in program.rows.items():
        k = rays if name in per_ray else 1
        index = np.sort(rng.integers(0, rays, n)).astype(np.int32) if name in per_ray else None
        rows[name] = rng.normal(size=(k, channels)).astype(np.float32), index
    params = {}
    for name, shapes in program.params.items():
        for leaf, shape in shapes.items():
            size = 1.0 if leaf == "tables" else scale * np.sqrt(2.0 / shape[0]) if leaf.startswith("kernel") else 0.3
            params.setdefault(name, {})[leaf] = (size * rng.normal(size=shape)).astype(np.float32)
    return points, rows, params
