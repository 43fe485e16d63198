"""What the benchmarks run on: a synthetic head, the rays of a camera in front of it, a field of trained-like size.

Axes are those that the RAD-NeRF family marches in: 0 up, 1 towards the camera, 2 to the side; the head lies in
[-1,1]^3 and the box in front. The shares below (rays that hit, samples a ray, spread of the densities, sizes of the
weights) are near those of a head trained for some minutes: 32 % of the rays hit, 4 samples a ray, weights of
standard deviation 0.09, tables 0.2.
"""

import functools
import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tkjax.ops.field import field
from tkjax.ops.grid_encode import GridSpec
from tkjax.ops.march import march
from tkjax.ops.morton import morton_decode
from tkjax.ops.program import Program, ProgramBuilder
from tkjax.ops.sh_encode import sh_encode

BOX = (-1.0, -0.5, -1.0, 1.0, 0.5, 1.0)
DT = 2.0 * math.sqrt(3.0) / 128
T_MIN = 0.05
SAMPLES = 16  # kept per ray
DISTANCE = 3.3
FOVY_DEG = 25.0
STOP = 1e-4
LOG_DENSITY_SPREAD = 1.4  # standard deviation of the log density over the samples of a trained head

NGP3D = GridSpec(dims=3, levels=16, features=2, base=16, finest=2048, log2_entries=16)
ER_PLANES = GridSpec(dims=2, levels=12, features=1, base=64, finest=512, log2_entries=14)
RAD_SPACE = GridSpec(dims=3, levels=16, features=2, base=16, finest=2048, log2_entries=16, kind="tiled")
RAD_AMBIENT = GridSpec(dims=2, levels=16, features=2, base=16, finest=2048, log2_entries=16, kind="tiled")
BLEND = GridSpec(dims=3, levels=16, features=4, base=16, finest=1024, log2_entries=14, pad=1)
BLEND_SMALL = GridSpec(dims=3, levels=12, features=4, base=16, finest=512, log2_entries=12, pad=1)


class Mesh(NamedTuple):
    clip: np.ndarray  # [V,4]
    faces: np.ndarray  # [F,3] int32


@functools.cache
def mesh(side: int) -> Mesh:
    """A sphere of 2 side² faces that fills most of the picture, seen in perspective: half of them face away."""
    row, column = np.meshgrid(np.arange(side + 1), np.arange(side), indexing="ij")
    theta, phi = np.pi * (row + 0.01) / (side + 0.02), 2 * np.pi * column / side
    points = 0.85 * np.stack([np.sin(theta) * np.cos(phi), np.cos(theta), np.sin(theta) * np.sin(phi)], -1)
    x, y, z = points.reshape(-1, 3).T
    clip = np.stack([3 * x, 3 * y, 3 * z, 3 + z], 1).astype(np.float32)
    a = row[:-1] * side + column[:-1]
    b = row[:-1] * side + (column[:-1] + 1) % side
    faces = np.stack([a, b, a + side, b, b + side, a + side], -1).reshape(-1, 3)
    return Mesh(clip, faces.astype(np.int32))


class Rays(NamedTuple):
    origin: np.ndarray  # [R,3]
    direction: np.ndarray  # [R,3], unit


class Samples(NamedTuple):
    """Packed samples, ray by ray."""

    points: np.ndarray  # [N,3]
    ray: np.ndarray  # [N] int32
    count: np.ndarray  # [R] int32, samples of each ray
    rays: Rays


def occupied(xyz: np.ndarray) -> np.ndarray:
    """[N,3] -> bool: an ellipsoid for the head, a cylinder for the neck, and sparse cells elsewhere, as trained
    grids have them."""
    up, front, side = xyz.T
    head = ((up - 0.1) / 0.5) ** 2 + (front / 0.42) ** 2 + (side / 0.33) ** 2 < 1.0
    neck = (up > -0.7) & (up < -0.2) & ((front + 0.05) ** 2 + side**2 < 0.17**2)
    floaters = np.random.default_rng(0).random(len(xyz)) < 0.003
    return head | neck | (floaters & (np.abs(front) < 0.5))


@functools.cache
def occupancy(side: int) -> np.ndarray:
    """Bits [side^3 / 8] uint8 in Morton order; the sparse cells are eight times as many at twice the side."""
    cell = np.asarray(jax.jit(morton_decode)(jnp.arange(side**3)))
    return np.packbits(occupied((cell + 0.5) / side * 2.0 - 1.0), bitorder="little")


@functools.cache
def rays(size: int, yaw_deg: float = 0.0) -> Rays:
    """All rays of a size x size pinhole picture from DISTANCE, row by row, the camera turned around the head."""
    half = math.tan(math.radians(FOVY_DEG) / 2)
    at = (np.arange(size) + 0.5) / size * 2.0 - 1.0
    up, side = np.meshgrid(-at * half, at * half, indexing="ij")
    direction = np.stack([up, -np.ones_like(up), side], -1).reshape(-1, 3)
    direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
    c, s = math.cos(math.radians(yaw_deg)), math.sin(math.radians(yaw_deg))
    turn = np.array([[1.0, 0.0, 0.0], [0.0, c, -s], [0.0, s, c]])
    origin = np.broadcast_to(turn @ np.array([0.05, DISTANCE, 0.0]), direction.shape)
    return Rays(origin.astype(np.float32), (direction @ turn.T).astype(np.float32))


def choose(count: int, size: int) -> Rays:
    """`count` rays of the picture in random order, as a training step draws them."""
    whole = rays(size)
    index = np.random.default_rng(1).integers(0, size * size, count)
    return Rays(whole.origin[index], whole.direction[index])


def noise(count: int) -> np.ndarray:
    return np.random.default_rng(2).random(count, np.float32)


@functools.cache
def marched(size: int, yaw_deg: float, side: int) -> tuple[np.ndarray, np.ndarray]:
    """t [R,S] and count [R] of a picture's rays, without jitter."""
    r = rays(size, yaw_deg)
    options = {"side": side, "box": BOX, "dt": DT, "t_min": T_MIN, "samples": SAMPLES, "backend": "reference"}
    out = jax.jit(functools.partial(march, **options))(
        jnp.asarray(r.origin), jnp.asarray(r.direction), jnp.asarray(occupancy(side)), jnp.zeros(len(r.origin))
    )
    return np.asarray(out.t), np.asarray(out.count)


@functools.cache
def samples(total: int, size: int = 256, side: int = 64) -> Samples:
    """The first `total` samples of pictures from several sides, marched as a system marches them."""
    points, ray, count, origin, direction, found, first = [], [], [], [], [], 0, 0
    for view in range(10_000):
        r = rays(size, 25.0 * math.sin(view))
        t, kept = marched(size, 25.0 * math.sin(view), side)
        kept = np.minimum(kept, np.maximum(total - found - (np.cumsum(kept) - kept), 0))
        row, slot = np.nonzero(np.arange(SAMPLES) < kept[:, None])
        points.append(r.origin[row] + t[row, slot][:, None] * r.direction[row])
        ray.append(row + first)
        count.append(kept)
        origin.append(r.origin)
        direction.append(r.direction)
        found, first = found + len(row), first + len(kept)
        if found == total:
            break
    both = Rays(np.concatenate(origin), np.concatenate(direction))
    points = np.clip(np.concatenate(points), -1.0, 1.0).astype(np.float32)
    return Samples(points, np.concatenate(ray).astype(np.int32), np.concatenate(count).astype(np.int32), both)


def table(spec: GridSpec, planes: int = 1, scale: float = 0.2) -> jax.Array:
    shape = (planes, spec.entries, spec.features)
    return jnp.asarray(np.random.default_rng(3).normal(0.0, scale, shape).astype(np.float32))


def coefficients(frames: int, tables: int, active: int) -> np.ndarray:
    """[frames, tables]: 1 for the neutral table, then `active` expression coefficients of each frame, else 0."""
    rng = np.random.default_rng(9)
    out = np.zeros((frames, tables), np.float32)
    out[:, 0] = 1.0
    for row in out:
        row[1 + rng.choice(tables - 1, active, replace=False)] = rng.uniform(0.05, 1.0, active)
    return out


def planes_unit(points: np.ndarray) -> np.ndarray:
    """[N,3] in [-1,1] -> [N,3,2] in [0,1]: the coordinate pairs xy, yz, xz."""
    unit = points * 0.5 + 0.5
    return np.stack([unit[:, pair] for pair in ([0, 1], [1, 2], [0, 2])], 1)


def kernels(widths: tuple[int, ...], seed: int) -> tuple[jax.Array, ...]:
    """Matrices [in, out] of the size that a trained field's have: standard deviation 1 / sqrt(2 in)."""
    rng = np.random.default_rng(seed)
    pairs = itertools.pairwise(widths)
    return tuple(jnp.asarray(rng.normal(0.0, (2 * a) ** -0.5, (a, b)).astype(np.float32)) for a, b in pairs)


ER_MLPS = {
    "audio_channel_attention": (36, 64, 32),
    "eye_attention": (36, 16, 1),
    "density": (69, 64, 64, 65),
    "colour": (84, 64, 3),
    "uncertainty": (36, 32, 1),
}


@functools.cache
def er_nerf_program():
    """The whole ER-NeRF head field (er-nerf dossier §3); outputs sigma, rgb and three more for training."""
    p = ProgramBuilder("er_nerf_head")
    f = p.grid("planes", ER_PLANES, p.points, subsets=((0, 1), (1, 2), (0, 2)), bound=1.0)
    v = p.mlp("audio_channel_attention", [f], ER_MLPS["audio_channel_attention"])
    w = p.act(p.mlp("eye_attention", [f], ER_MLPS["eye_attention"]), "sigmoid")
    parts = [f, p.mul(v, p.row("audio", 32)), p.mul(w, p.row("eye", 1))]
    h = p.mlp("density", parts, ER_MLPS["density"])
    sigma = p.act(p.clip_max(h[0:1], 40.0), "exp")
    logits = p.mlp("colour", [p.row("sh", 16), h[1:65], p.row("code", 4)], ER_MLPS["colour"])
    rgb = p.affine(p.act(logits, "sigmoid"), 1.002, -0.001)
    u = p.act(p.mlp("uncertainty", [p.stop_gradient(f)], ER_MLPS["uncertainty"]), "softplus")
    return p.build(sigma=sigma, rgb=rgb, uncertainty=u, audio_norm=p.norm(v), eye_weight=w)


@functools.cache
def rad_nerf_program():
    """The whole RAD-NeRF head field (rad-nerf dossier §3.3); outputs sigma, rgb and one more for training."""
    p = ProgramBuilder("rad_nerf_head")
    x = p.grid("encoder", RAD_SPACE, p.points)
    a = p.mlp("ambient", [x, p.row("audio", 64)], (96, 64, 64, 2), output="tanh")
    h = p.mlp("sigma", [x, p.grid("encoder_ambient", RAD_AMBIENT, a), p.row("eye", 1)], (65, 64, 64, 65))
    rgb = p.mlp("colour", [p.row("sh", 16), h[1:65], p.row("code", 4)], (84, 64, 3), output="sigmoid")
    return p.build(sigma=p.act(h[0:1], "trunc_exp"), rgb=rgb, ambient=p.sum_abs(a))


@functools.cache
def ad_nerf_program(signal: int):
    """An AD-NeRF network (ad-nerf dossier §3): 8 layers of 256 with a skip; signal: 64 for the head, 106 the torso."""
    p = ProgramBuilder("ad_nerf_head" if signal == 64 else "ad_nerf_torso")
    x, k = [p.freq(p.points, 10), p.row("signal", signal)], 63 + signal
    h = p.mlp("trunk", x, (k, *[256] * 5), bias=True, output="relu")
    h = p.mlp("behind_skip", [*x, h], (k + 256, *[256] * 3), bias=True, output="relu")
    sigma = p.mlp("density", [h], (256, 1), bias=True, output="relu")
    rgb = p.mlp("colour", [h, p.row("view", 27)], (283, 128, 128, 128, 3), bias=True, output="sigmoid")
    return p.build(sigma=sigma, rgb=rgb)


def wide_params(program: Program) -> dict:
    """Matrices and biases of the size that a trained network's have."""
    out = {i.name: kernels(i.widths, 10 + k) for k, i in enumerate(program.instructions) if i.op == "mlp"}
    return {
        name: {f"kernel_{k}": v for k, v in enumerate(own)}
        | {f"bias_{k}": jnp.full(v.shape[1], 0.05, jnp.float32) for k, v in enumerate(own)}
        for name, own in out.items()
    }


def rows(program: Program, directions: np.ndarray) -> dict[str, jax.Array]:
    """Values of a head's rows: `sh` per ray, the others one for all."""
    rng = np.random.default_rng(4)
    return {
        "sh": jax.jit(sh_encode, static_argnums=1)(jnp.asarray(directions), 4),
        "audio": jnp.asarray(rng.normal(0.0, 0.5, (1, program.rows["audio"])).astype(np.float32)),
        "eye": jnp.full((1, 1), 0.2, jnp.float32),
        "code": jnp.asarray(rng.normal(0.0, 0.1, (1, 4)).astype(np.float32)),
    }


def densities(program: Program, params: dict, points: np.ndarray) -> np.ndarray:
    """Sigma [N] of a head field by the reference."""
    values = {name: (v, None) for name, v in rows(program, np.zeros((1, 3), np.float32)).items()}
    program = program.select("sigma")

    def run(params, points):
        return field(program, points, values, params, backend="reference")[:, 0]

    return np.asarray(jax.jit(run)(params, jnp.asarray(points)))


@functools.cache
def params(program: Program) -> dict:
    """Tables and matrices of trained-like size for a whole head; those of log sigma are scaled so that log densities
    spread as trained ones do, which decides how early rays end."""
    out: dict = {}
    for i in program.instructions:
        if i.op == "grid":
            out[i.name] = {"tables": table(i.spec, len(i.subsets))}
    mlps = [i for i in program.instructions if i.op == "mlp"]
    for seed, i in enumerate(mlps):
        out[i.name] = {f"kernel_{k}": v for k, v in enumerate(kernels(i.widths, 10 + seed))}
    log_density = np.log(densities(program, out, samples(4096, size=48).points))
    gain = LOG_DENSITY_SPREAD / np.std(log_density) * np.sign(np.mean(log_density))
    density = out["density" if "density" in out else "sigma"]
    density["kernel_2"] = density["kernel_2"].at[:, 0].multiply(gain)
    return out
