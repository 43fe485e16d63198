"""The cases that the benchmark runs: an op, inputs as a talking head gives them, what is differentiated, what it costs.

`Case.build(quick)` makes the inputs; quick ones are tiny. An op is called as fn(backend, *differentiated, *constant).
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.ops import costs as cost
from benchmarks.ops import inputs
from benchmarks.ops.inputs import BOX, DT, SAMPLES, STOP, T_MIN
from tkjax.models import load_system, systems
from tkjax.ops.antialias import antialias
from tkjax.ops.blend_tables import blend_tables
from tkjax.ops.composite import composite, composite_packed
from tkjax.ops.field import field
from tkjax.ops.field_mlp import field_mlp
from tkjax.ops.freq_encode import freq_encode
from tkjax.ops.grid_encode import grid_encode
from tkjax.ops.interpolate import interpolate
from tkjax.ops.march import march, march_packed
from tkjax.ops.opposite_vertices import opposite_vertices
from tkjax.ops.packbits import dilate_morton, packbits
from tkjax.ops.program import Program
from tkjax.ops.rasterize import rasterize
from tkjax.ops.render_fused import render_fused

for name in systems():  # they register what the Triton renderer draws in one kernel
    load_system(name)
MODES = ("forward", "backward", "forward+backward")
MARCHING = {"box": BOX, "dt": DT, "t_min": T_MIN}


class Problem(NamedTuple):
    """Inputs of a case. `size` counts `unit`s; `peer` is what the same op in another framework is given."""

    fn: Callable
    differentiated: tuple
    constant: tuple
    costs: dict[str, cost.Cost]
    size: int
    unit: str
    peer: dict[str, Any] | None = None


class Case(NamedTuple):
    op: str
    name: str
    modes: tuple[str, ...]
    build: Callable[[bool], Problem]
    resolves: str = ""  # the name by which dispatch knows the op, where it is another
    peers: tuple[str, ...] = ("torch",)  # timed by default; they take long, so not every case has all

    @property
    def module(self) -> str:
        return self.resolves or self.op


def _grid(spec, total: int, quick: bool, *, planes: int = 1, to_points: bool = False, dtype=None) -> Problem:
    n = 500 if quick else total
    points = inputs.samples(n, 32 if quick else 256).points
    return grid_problem(spec, points, planes=planes, to_points=to_points, dtype=dtype)


def grid_problem(spec, points: np.ndarray, *, planes: int = 1, to_points: bool = False, dtype=None) -> Problem:
    """points [N,3] in [-1,1]; several planes read coordinate pairs, one reads the first D coordinates."""
    n = len(points)
    unit = inputs.planes_unit(points) if planes == 3 else points[:, None, : spec.dims] * 0.5 + 0.5
    unit, tables = jnp.asarray(unit), inputs.table(spec, planes)
    extra = {} if dtype is None else {"out_dtype": dtype}

    def run(backend, tables, unit):
        return grid_encode(unit, tables, spec, backend=backend, **extra)

    out_bytes = 4 if dtype is None else jnp.dtype(dtype).itemsize
    costs = cost.grid_encode(n, planes, spec, to_points=to_points, out_bytes=out_bytes)
    peer = None if dtype is not None else {"kind": "grid_encode", "spec": spec, "tables": tables, "points": unit}
    if to_points:
        return Problem(run, (tables, unit), (), costs, n, "points", peer)
    return Problem(run, (tables,), (unit,), costs, n, "points", peer)


def _blend(spec, frames: int, active: int, quick: bool) -> Problem:
    """The tables of `frames` frames: 52 expression coefficients, of which `active` are not 0, beside the neutral."""
    entries, count = 500 if quick else spec.entries, 53
    rng, e = np.random.default_rng(10), inputs.coefficients(frames, count, active)
    tables = jnp.asarray(rng.uniform(-0.1, 0.1, (count, entries, spec.features)).astype(np.float32))

    def run(backend, tables, coefficients):
        return blend_tables(tables, coefficients, backend=backend)

    read = int(np.sum(np.any(e, 0)))
    costs = cost.blend_tables(frames, count, read, np.count_nonzero(e), entries * spec.features)
    return Problem(run, (tables,), (jnp.asarray(e),), costs, frames * entries * spec.features, "numbers")


def _mesh(quick: bool):
    """(clip, faces, pixels along a side, the picture by the reference)."""
    m, size = inputs.mesh(8 if quick else 158), 24 if quick else 448
    clip, faces = jnp.asarray(m.clip), jnp.asarray(m.faces)
    draw = functools.partial(rasterize, height=size, width=size, backend="reference")
    return clip, faces, size, jax.jit(draw)(clip, faces)


def _counts(clip, faces, raster) -> tuple[int, int, int, int]:
    """Vertices, faces, pixels, covered pixels."""
    return clip.shape[0], faces.shape[0], raster.face.size, int(jnp.sum(raster.face > 0))


def _rasterize(quick: bool) -> Problem:
    clip, faces, size, raster = _mesh(quick)

    def run(backend, clip, faces):
        raster = rasterize(clip, faces, size, size, backend=backend)
        return raster.uv, raster.zw  # cotangents are drawn for every result, and a number of a face has none

    return Problem(run, (clip,), (faces,), cost.rasterize(*_counts(clip, faces, raster)), faces.shape[0], "faces")


def _interpolate(channels: int, quick: bool) -> Problem:
    clip, faces, size, raster = _mesh(quick)
    attributes = jnp.asarray(np.random.default_rng(11).normal(size=(clip.shape[0], channels)).astype(np.float32))

    def run(backend, attributes, uv, raster, faces):
        return interpolate(attributes, raster._replace(uv=uv), faces, backend=backend)

    costs = cost.interpolate(*_counts(clip, faces, raster), channels)
    return Problem(run, (attributes, raster.uv), (raster, faces), costs, size * size, "pixels")


def _antialias(channels: int, quick: bool) -> Problem:
    clip, faces, size, raster = _mesh(quick)
    colours = jnp.asarray(np.random.default_rng(12).random((size, size, channels), np.float32))
    opposite = jax.jit(opposite_vertices)(faces)
    border = np.asarray(raster.face > 0)
    pairs = sum(int(np.sum(np.diff(border, axis=axis))) for axis in (0, 1))

    def run(backend, colours, clip, raster, faces, opposite):
        return antialias(colours, raster, clip, faces, opposite, backend=backend)

    counts = _counts(clip, faces, raster)[:3]
    costs = cost.antialias(*counts, pairs, channels)
    return Problem(run, (colours, clip), (raster, faces, opposite), costs, size * size, "pixels")


def _lattice_points(t, count, near, far) -> float:
    """Points that a march looks at: to where the ray is full, else to the end of the box."""
    last = np.where(count == t.shape[1], t[:, -1] + DT, far)
    return float(np.sum(np.maximum(np.ceil((last - near) / DT), 0)))


def _march(total: int, side: int, packed: bool, quick: bool) -> Problem:
    n = 64 if quick else total
    side = 16 if quick else side
    r = inputs.rays(256) if n == 256 * 256 else inputs.choose(n, 256)
    bits, noise = jnp.asarray(inputs.occupancy(side)), jnp.asarray(inputs.noise(n))
    constant = (jnp.asarray(r.origin), jnp.asarray(r.direction), bits, noise)
    dense = functools.partial(march, side=side, samples=SAMPLES, **MARCHING)
    found = jax.jit(functools.partial(dense, backend="reference"))(*constant)
    kept = int(np.sum(found.count))
    points = _lattice_points(*(np.asarray(v) for v in (found.t, found.count, found.near, found.far)))
    capacity = -(-kept // 1024) * 1024

    def run(backend, *args):
        if packed:
            options = {"side": side, "samples": SAMPLES, "capacity": capacity, **MARCHING}
            return march_packed(*args, **options, backend=backend)
        return dense(*args, backend=backend)

    out_bytes = n * 16 + (12 * capacity if packed else n * SAMPLES * 8)
    return Problem(run, (), constant, cost.march(n, points, bits.size, out_bytes), n, "rays")


def _composited(n: int, quick: bool):
    """count [R], and per packed sample sigma, t, weighted [M,4], plain [M,2], as a training step composites them."""
    size = 16 if quick else round(math.sqrt(n))
    t, count = inputs.marched(size, 0.0, 64)
    total, rng = int(count.sum()), np.random.default_rng(5)
    row, slot = np.nonzero(np.arange(SAMPLES) < count[:, None])
    sigma = np.exp(rng.normal(0.9, inputs.LOG_DENSITY_SPREAD, total)).astype(np.float32)
    weighted, plain = rng.random((total, 4), np.float32), rng.random((total, 2), np.float32)
    return count, (row, slot), (sigma, t[row, slot], weighted, plain)


def _composite(n: int, quick: bool) -> Problem:
    count, where, packed = _composited(n, quick)
    rays = len(count)

    def dense(values):
        out = np.zeros((rays, SAMPLES, *values.shape[1:]), np.float32)
        out[where] = values
        return jnp.asarray(out)

    sigma, t, weighted, plain = (dense(v) for v in packed)
    return composite_problem(sigma, weighted, plain, jnp.arange(SAMPLES) < jnp.asarray(count)[:, None], t)


def composite_problem(sigma, weighted, plain, valid, t) -> Problem:
    def run(backend, sigma, weighted, plain, valid, t):
        return composite(sigma, valid, t, weighted, plain, dt=DT, stop=STOP, backend=backend)

    rays = sigma.shape[0]
    costs = cost.composite(sigma.size, int(jnp.sum(valid)), rays, weighted.shape[2], plain.shape[2], 9)
    peer = {"kind": "composite", "sigma": sigma, "weighted": weighted, "plain": plain, "valid": valid, "t": t}
    return Problem(run, (sigma, weighted, plain), (valid, t), costs, rays, "rays", peer | {"dt": DT, "stop": STOP})


def _composite_packed(n: int, quick: bool) -> Problem:
    count, _, values = _composited(n, quick)
    sigma, t, weighted, plain = (jnp.asarray(v) for v in values)
    count = jnp.asarray(count)
    offset = jnp.cumsum(count) - count

    def run(backend, sigma, weighted, plain, t, offset, count):
        return composite_packed(sigma, t, DT, offset, count, weighted, plain, stop=STOP, backend=backend)

    costs = cost.composite(sigma.size, sigma.size, count.size, 4, 2, 8)
    return Problem(run, (sigma, weighted, plain), (t, offset, count), costs, count.size, "rays")


def _mlp(widths: tuple[int, ...], biased: bool, output: str, quick: bool) -> Problem:
    n = 200 if quick else 131_072
    rng = np.random.default_rng(6)
    x = jnp.asarray(rng.normal(0.0, 0.5, (n, widths[0])).astype(np.float32))
    kernels = inputs.kernels(widths, 7)
    biases = tuple(jnp.asarray(rng.normal(0.0, 0.1, w).astype(np.float32)) for w in widths[1:]) if biased else None

    def run(backend, x, kernels, biases):
        return field_mlp(x, kernels, biases, output=output, backend=backend)

    peer = {"kind": "field_mlp", "x": x, "kernels": kernels, "biases": biases, "output": output}
    return Problem(run, (x, kernels, biases), (), cost.field_mlp(n, widths), n, "samples", peer)


def _field(program: Program, total: int, train: bool, quick: bool) -> Problem:
    n = 300 if quick else total
    return field_problem(inputs.samples(n, 32 if quick else 256), train, program)


def field_problem(some: inputs.Samples, train: bool, program: Program | None = None) -> Problem:
    """A head field (ER-NeRF's by default) at samples; with `train` all its outputs, else sigma and rgb."""
    n = len(some.points)
    whole = inputs.er_nerf_program() if program is None else program
    program = whole if train else whole.select("sigma", "rgb")
    rows, params = inputs.rows(whole, some.rays.direction), inputs.params(whole)
    params = {name: params[name] for name in program.params}
    points, ray = jnp.asarray(some.points), jnp.asarray(some.ray)
    sh = rows.pop("sh")

    def run(backend, params, rows, sh, ray, points):
        values = {name: (v, None) for name, v in rows.items()} | {"sh": (sh, ray)}
        return field(program, points, values, params, backend=backend)

    grid, *more = [(i.spec, len(i.subsets)) for i in program.instructions if i.op == "grid"]
    costs = cost.field(n, program.channels, mlps(program), sh.size * 4, *grid, *more)
    peer = None
    if whole == inputs.er_nerf_program():
        peer = {"kind": "field", "spec": inputs.ER_PLANES, "params": params, "rows": rows, "train": train}
        peer |= {"sh": sh, "ray": ray, "points": points}
    return Problem(run, (params, rows), (sh, ray, points), costs, n, "samples", peer)


def _wide_field(signal: int, total: int, quick: bool) -> Problem:
    """An AD-NeRF network at samples of a picture: the signal is one row for all, the direction one for each ray."""
    program = inputs.ad_nerf_program(signal)
    some, rng = inputs.samples(70 if quick else total, 32 if quick else 256), np.random.default_rng(9)
    signals = jnp.asarray(rng.normal(0.0, 0.5, (1, signal)).astype(np.float32))
    view = jax.jit(freq_encode, static_argnums=1)(jnp.asarray(some.rays.direction), 4)
    points, ray, n = jnp.asarray(some.points), jnp.asarray(some.ray), len(some.points)

    def run(backend, params, signals, view, ray, points):
        return field(program, points, {"signal": (signals, None), "view": (view, ray)}, params, backend=backend)

    costs = cost.field(n, program.channels, mlps(program), view.size * 4)
    return Problem(run, (inputs.wide_params(program), signals), (view, ray, points), costs, n, "samples")


def mlps(program: Program) -> list[tuple[int, ...]]:
    """Widths of its MLPs."""
    return [i.widths for i in program.instructions if i.op == "mlp"]


def _live_samples(size: int, side: int, program: Program) -> int:
    """Samples of a picture that an early stop leaves, by the reference."""
    t, count = inputs.marched(size, 0.0, side)
    r = inputs.rays(size)
    row, slot = np.nonzero(np.arange(SAMPLES) < count[:, None])
    points = r.origin[row] + t[row, slot][:, None] * r.direction[row]
    optical = np.zeros((len(count), SAMPLES))
    optical[row, slot] = inputs.densities(program, inputs.params(program), points) * DT
    before = np.cumsum(optical, 1) - optical
    return int(np.sum((np.exp(-before) >= STOP)[row, slot]))


def _render(whole: Program, size: int, quick: bool) -> Problem:
    size, side = (12, 16) if quick else (size, 64)
    r = inputs.rays(size)
    program, params = whole.select("sigma", "rgb"), inputs.params(whole)
    params = {name: params[name] for name in program.params}
    values = inputs.rows(whole, r.direction)
    bits = jnp.asarray(inputs.occupancy(side))

    def run(backend, params, values, origin, direction, bits):
        options = {"side": side, "samples": SAMPLES, "bound": 1.0, "stop": STOP, **MARCHING}
        return render_fused(program, origin, direction, bits, values, params, **options, backend=backend)

    constant = (params, values, jnp.asarray(r.origin), jnp.asarray(r.direction), bits)
    live, weights = _live_samples(size, side, whole), sum(v.size for v in jax.tree.leaves(params))
    costs = cost.render_fused(live, size * size, mlps(program), bits.size, 4 * weights)
    return Problem(run, (), constant, costs, live, "samples")


def _packbits(side: int, quick: bool) -> Problem:
    density = _density(16 if quick else side)
    costs = cost.elementwise(density.size, 1, 4 + 1 / 8)
    return Problem(lambda backend, v: packbits(v, 0.5, backend=backend), (), (density,), costs, density.size, "cells")


def _dilate(side: int, quick: bool) -> Problem:
    density = _density(16 if quick else side)
    costs = cost.elementwise(density.size, 6, 8)
    return Problem(lambda backend, v: dilate_morton(v, backend=backend), (), (density,), costs, density.size, "cells")


def _density(side: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(8).exponential(0.5, side**3).astype(np.float32))


BOTH = ("torch", "torch_compiled")
P, F = functools.partial, MODES[:1]
ER, RAD = inputs.er_nerf_program(), inputs.rad_nerf_program()
CASES = (
    Case("grid_encode", "ngp3d", MODES, P(_grid, inputs.NGP3D, 131_072), peers=BOTH),
    Case("grid_encode", "ngp3d_bfloat16", F, P(_grid, inputs.NGP3D, 131_072, dtype=jnp.bfloat16)),
    Case("grid_encode", "er_planes", MODES, P(_grid, inputs.ER_PLANES, 131_072, planes=3)),
    Case("grid_encode", "rad_tiled_3d", MODES, P(_grid, inputs.RAD_SPACE, 131_072), peers=()),
    Case("grid_encode", "rad_tiled_2d_points", MODES, P(_grid, inputs.RAD_AMBIENT, 131_072, to_points=True), peers=()),
    Case("grid_encode", "blend_f4", MODES, P(_grid, inputs.BLEND, 65_536), peers=()),
    Case("blend_tables", "blend_picture", F, P(_blend, inputs.BLEND, 1, 15), peers=()),
    Case("blend_tables", "blend_train", MODES, P(_blend, inputs.BLEND_SMALL, 16, 15), peers=()),
    Case("rasterize", "mesh_50000_448", MODES, _rasterize, peers=()),
    Case("interpolate", "mesh_448_channels_9", MODES, P(_interpolate, 9), peers=()),
    Case("antialias", "mesh_448_channels_4", MODES, P(_antialias, 4), peers=()),
    Case("march", "rays_4096_side_64", F, P(_march, 4096, 64, False)),
    Case("march", "rays_65536_side_128", F, P(_march, 65_536, 128, False)),
    Case("march_packed", "rays_4096_side_64", F, P(_march, 4096, 64, True), "march"),
    Case("march_packed", "rays_65536_side_128", F, P(_march, 65_536, 128, True), "march"),
    Case("composite", "dense_65536", MODES, P(_composite, 65_536), peers=BOTH),
    Case("composite_packed", "packed_65536", MODES, P(_composite_packed, 65_536), "composite"),
    Case("packbits", "side_128", F, P(_packbits, 128)),
    Case("dilate_morton", "side_128", F, P(_dilate, 128), "packbits"),
    Case("field_mlp", "width_64_layers_3", MODES, P(_mlp, (64, 64, 64, 64), False, "none"), peers=BOTH),
    Case("field_mlp", "er_density", MODES, P(_mlp, inputs.ER_MLPS["density"], False, "none")),
    Case("field_mlp", "er_colour", MODES, P(_mlp, inputs.ER_MLPS["colour"], False, "sigmoid")),
    Case("field_mlp", "width_128_biased", MODES, P(_mlp, (32, 128, 128, 16), True, "none")),
    Case("field_mlp", "width_256_biased", MODES, P(_mlp, (256, 256, 256), True, "relu"), peers=()),
    Case("field", "field_ad_nerf_head", MODES, P(_wide_field, 64, 16_384), peers=()),
    Case("field", "field_ad_nerf_torso", MODES, P(_wide_field, 106, 16_384), peers=()),
    Case("field", "field_rad_nerf", F, P(_field, RAD, 524_288, False), peers=()),
    Case("field", "field_rad_nerf_train", MODES, P(_field, RAD, 49_152, True), peers=()),
    Case("render_fused", "render_fused_rad_nerf", F, P(_render, RAD, 256), peers=()),
    Case("field", "field_er_nerf", F, P(_field, ER, 524_288, False), peers=BOTH),
    Case("field", "field_er_nerf_train", MODES, P(_field, ER, 49_152, True)),
    Case("render_fused", "er_nerf_256", F, P(_render, ER, 256)),
)
