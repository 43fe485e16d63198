"""march on the GPU: a program walks a block of rays, AHEAD lattice points of each at a time, until all are done.

Formulas, cell rules and rounding: ops/march.py. Compiled without fused multiply-adds, so that the same cells are kept
as by the reference and the C++ kernels. Packed samples take two passes: count, then (after a prefix sum) write; no
atomics, the same bits every time. Not differentiable.
"""

from typing import no_type_check

import jax
import jax.numpy as jnp
import numpy as np
import triton
import triton.language as tl

from tkjax.ops.march import Marched, MarchedPacked, MarchSpec
from tkjax.ops.triton import launch
from tkjax.ops.triton.device import is_finite, march_occupied, march_step, slab

RAYS, AHEAD = 16, 16  # of a tile: a walk of up to 128 steps is 8 rounds of loads that do not wait for each other


@triton.jit
@no_type_check
def _walk(
    rays_o, rays_d, occupancy, noise, numbers, ray, R, at, limit, t_out, dt_out, ray_out,
    SIDE: tl.constexpr, CASCADES: tl.constexpr, VERTEX: tl.constexpr, CONSTANT: tl.constexpr,
    WRITE: tl.constexpr, WRITE_RAY: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """Walk rays [B,1] until `limit` samples of each are kept: (count, near, far). With WRITE, the samples of a ray go
    to t_out and dt_out (and its number to ray_out) from index `at` (int64) on."""
    exists = ray < R
    ox, oy, oz = (tl.load(rays_o + 3 * ray, mask=exists, other=0.0),
                  tl.load(rays_o + 3 * ray + 1, mask=exists, other=0.0),
                  tl.load(rays_o + 3 * ray + 2, mask=exists, other=0.0))  # fmt: skip
    dx, dy, dz = (tl.load(rays_d + 3 * ray, mask=exists, other=0.0),
                  tl.load(rays_d + 3 * ray + 1, mask=exists, other=0.0),
                  tl.load(rays_d + 3 * ray + 2, mask=exists, other=0.0))  # fmt: skip
    t_min, dt, bound = tl.load(numbers + 6), tl.load(numbers + 7), tl.load(numbers + 8)
    dt_gamma, dt_max = tl.load(numbers + 9), tl.load(numbers + 10)
    near, far = slab(
        ox, oy, oz, dx, dy, dz, tl.load(numbers), tl.load(numbers + 1), tl.load(numbers + 2), tl.load(numbers + 3),
        tl.load(numbers + 4), tl.load(numbers + 5), t_min,
    )  # fmt: skip
    shift = tl.load(noise + ray, mask=exists, other=0.0)
    shift = tl.where(is_finite(shift), tl.minimum(tl.maximum(shift, 0.0), 1.0), 0.0)
    ahead = tl.arange(0, AHEAD)[None, :]
    count = tl.zeros(ray.shape, tl.int32)
    t = near + march_step(near, dt, dt_gamma, dt_max, CONSTANT) * shift
    first = 0
    more = tl.max(((t < far) & (count < limit)).to(tl.int32))
    while more > 0:
        if CONSTANT:
            points = near + dt * ((first + ahead).to(tl.float32) + shift)
            t = near + dt * ((first + AHEAD).to(tl.float32) + shift)
        else:
            points = tl.zeros((ray.shape[0], AHEAD), tl.float32)
            for i in range(AHEAD):
                points = tl.where(ahead == i, t, points)
                after = t + march_step(t, dt, dt_gamma, dt_max, CONSTANT)
                t = tl.where(after > t, after, float("inf"))  # a step that rounding swallows ends the lattice
        first += AHEAD
        seen = points < far
        points = tl.where(seen, points, 0.0)
        step = march_step(points, dt, dt_gamma, dt_max, CONSTANT)
        taken = march_occupied(
            ox, oy, oz, dx, dy, dz, points, step, bound, numbers + 11, occupancy, seen, SIDE, CASCADES, VERTEX
        )
        rank = count + tl.cumsum(taken, 1) - taken
        if WRITE:
            keep = (taken > 0) & (rank < limit)
            tl.store(t_out + at + rank, points, mask=keep)
            tl.store(dt_out + at + rank, step, mask=keep)
            if WRITE_RAY:
                tl.store(ray_out + at + rank, ray + tl.zeros_like(rank), mask=keep)
        count = tl.minimum(count + tl.sum(taken, 1, keep_dims=True), limit)
        more = tl.max(((t < far) & (count < limit) & (first < 16777216)).to(tl.int32))
    return count, near, far


@triton.jit
@no_type_check
def dense_kernel(
    rays_o, rays_d, occupancy, noise, numbers, R, samples, t_out, dt_out, counts, nears, fars,
    SIDE: tl.constexpr, CASCADES: tl.constexpr, VERTEX: tl.constexpr, CONSTANT: tl.constexpr, RAYS: tl.constexpr,
    AHEAD: tl.constexpr, WRITE: tl.constexpr,
):  # fmt: skip
    """Samples of ray r in t_out[r, :], dt_out[r, :] (zeros before), unless WRITE is off; counts, nears, fars [R]."""
    ray = tl.program_id(0) * RAYS + tl.arange(0, RAYS)[:, None]
    limit = tl.zeros((RAYS, 1), tl.int32) + samples
    count, near, far = _walk(
        rays_o, rays_d, occupancy, noise, numbers, ray, R, ray.to(tl.int64) * samples, limit, t_out, dt_out, t_out,
        SIDE, CASCADES, VERTEX, CONSTANT, WRITE, False, AHEAD,
    )  # fmt: skip
    tl.store(counts + ray, count, mask=ray < R)
    tl.store(nears + ray, near, mask=ray < R)
    tl.store(fars + ray, far, mask=ray < R)


@triton.jit
@no_type_check
def write_kernel(
    rays_o, rays_d, occupancy, noise, numbers, offsets, counts, R, t_out, dt_out, ray_out,
    SIDE: tl.constexpr, CASCADES: tl.constexpr, VERTEX: tl.constexpr, CONSTANT: tl.constexpr, RAYS: tl.constexpr,
    AHEAD: tl.constexpr,
):  # fmt: skip
    """The first counts[r] samples of ray r, from offsets[r] on (zeros before)."""
    ray = tl.program_id(0) * RAYS + tl.arange(0, RAYS)[:, None]
    at = tl.load(offsets + ray, mask=ray < R, other=0).to(tl.int64)
    limit = tl.load(counts + ray, mask=ray < R, other=0)
    _walk(
        rays_o, rays_d, occupancy, noise, numbers, ray, R, at, limit, t_out, dt_out, ray_out,
        SIDE, CASCADES, VERTEX, CONSTANT, True, True, AHEAD,
    )  # fmt: skip


# -- launches


def supports(spec: MarchSpec, noise) -> None:
    """NotImplementedError with the reason where these kernels do not have the case."""
    del spec  # all of them are there
    if noise.ndim > 1:
        raise NotImplementedError("it has no noise for every sample")


def numbers(spec: MarchSpec) -> np.ndarray:
    """What the kernels read as numbers: box, t_min, dt, bound, dt_gamma, dt_max, 1 / span of each cascade."""
    inverses = [np.float32(1.0 / span) for span in spec.spans]
    return np.array([*spec.box, spec.t_min, spec.dt, spec.bound, spec.dt_gamma, spec.dt_max, *inverses], np.float32)


def static(spec: MarchSpec) -> dict:
    """The constexpr arguments that go with `numbers`."""
    return dict(
        SIDE=spec.side, CASCADES=spec.cascades, VERTEX=spec.cell == "vertex", CONSTANT=bool(spec.constant_step),
        RAYS=RAYS, AHEAD=AHEAD,
    )  # fmt: skip


def _dense(rays_o, rays_d, occupancy, noise, spec: MarchSpec, write: bool):
    rays = rays_o.shape[0]
    size = (rays, spec.samples) if write else (1, 1)
    shapes = [(size, jnp.float32)] * 2 + [((rays,), jnp.int32)] + [((rays,), jnp.float32)] * 2
    return launch.call(
        dense_kernel, rays_o, rays_d, occupancy, noise, numbers(spec), rays, spec.samples,
        out_shape=[jax.ShapeDtypeStruct(*s) for s in shapes], zeroed=(0, 1), grid=(triton.cdiv(rays, RAYS),),
        num_warps=4, fp_fusion=False, WRITE=write, **static(spec),
    )  # fmt: skip


def forward(rays_o, rays_d, occupancy, noise, spec: MarchSpec) -> Marched:
    return Marched(*_dense(rays_o, rays_d, occupancy, noise, spec, True))


def packed(rays_o, rays_d, occupancy, noise, spec: MarchSpec, capacity: int) -> MarchedPacked:
    rays = rays_o.shape[0]
    _, _, wanted, near, far = _dense(rays_o, rays_d, occupancy, noise, spec, False)
    end = jnp.cumsum(wanted)
    offset = jnp.minimum(end - wanted, capacity)
    count = jnp.minimum(end, capacity) - offset
    t, dt, ray = launch.call(
        write_kernel, rays_o, rays_d, occupancy, noise, numbers(spec), offset, count, rays,
        out_shape=[jax.ShapeDtypeStruct((capacity,), v) for v in (jnp.float32, jnp.float32, jnp.int32)],
        zeroed=(0, 1, 2), grid=(triton.cdiv(rays, RAYS) if capacity else 0,), num_warps=4, fp_fusion=False,
        **static(spec),
    )  # fmt: skip
    return MarchedPacked(t, dt, ray, offset, count, near, far, jnp.sum(wanted) - jnp.sum(count))
