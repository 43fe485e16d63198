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
    x = [p.freq(p.points, 10), p.row("audio", audio)]
    k = 63 + audio
    h = p.mlp("points_a", x, (k, *[width] * 5), bias=True, output="relu")
    h = p.mlp("points_b", [*x, h], (k + width, *[width] * 3), bias=True, output="relu")
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


OPS = ("mlp", "mlp", "act", "exp", "pair", "affine", "clip", "slice", "concat", "stop", "sum", "freq", "grid")
KINDS = ("none", "relu", "leaky_relu", "sigmoid", "tanh", "softplus")  # those that cannot overflow
WIDTHS = (1, 3, 5, 16, 17, 33)
TINY = GridSpec(2, 2, 2, 3, 9, 6, "hash")
TINY_3D = GridSpec(3, 2, 1, 3, 7, 7, "tiled", "smoothstep")


def random_program(seed):
    """Any instructions in any order over points, a row per ray, rows for all, and grids."""
    rng = np.random.default_rng(seed)
    p = ProgramBuilder(f"random_{seed}")
    pick = lambda items: items[int(rng.integers(len(items)))]  # noqa: E731
    values = [p.points, p.row("sh", 5), p.row("audio", 4), p.row("eye", 1), p.grid("planes", TINY, p.points, PAIRS)]
    values.append(p.grid("space", TINY_3D, p.points))
    for k in range(int(rng.integers(3, 9))):
        x, y = pick(values), pick(values)
        op = pick(
            ("mlp", "mlp", "act", "exp", "pair", "affine", "clip", "slice", "concat", "stop", "sum", "freq", "grid")
        )
        if op == "mlp":
            parts = [pick(values) for _ in range(int(rng.integers(1, 4)))]
            widths = [sum(v.channels for v in parts), *(pick(WIDTHS) for _ in range(int(rng.integers(1, 4))))]
            v = p.mlp(f"mlp_{k}", parts, widths, bias=bool(rng.integers(2)), hidden=pick(KINDS), output=pick(KINDS))
        elif op == "act":
            v = p.act(x, pick(KINDS))
        elif op == "exp":
            v = p.act(p.clip(x, -2.0, 1.5), pick(("exp", "trunc_exp")))
        elif op == "pair":
            pair = pick((p.add, p.mul))
            v = pair(x, y if y.channels in (1, x.channels) else y[0:1])
        elif op == "affine":
            v = p.affine(x, float(rng.normal()), float(rng.normal()))
        elif op == "clip":
            v = p.clip(x, -0.7, 0.9)
        elif op == "slice":
            start = int(rng.integers(x.channels))
            v = x[start : start + int(rng.integers(1, 9))]
        elif op == "concat":
            v = p.concat([x, y]) if x.channels + y.channels < 100 else x
        elif op == "stop":
            v = p.stop_gradient(x)
        elif op == "sum":
            v = pick((p.norm, p.sum_abs))(x)
        elif op == "freq":
            v = p.freq(x[0:3], int(rng.integers(0, 4)))
        else:
            v = p.grid(
                f"grid_{k}", TINY, p.act(x if x.channels == 2 else p.concat([x[0:1], y[0:1]]), "tanh"), bound=1.5
            )
        values.append(v)
    outputs = {f"out_{k}": pick(values) for k in range(int(rng.integers(0, 3)))}
    return p.build(**outputs, last=values[-1])
