"""render_fused on the GPU: one kernel from rays to pixels, for inference. Nothing per sample is in memory.

A program has a tile of rays. Each round takes the next kept sample of every ray of the tile, evaluates the field for
all of them with tensor cores, and composites in registers; rays that are opaque, full or outside are masked, and the
program ends when all its rays are. The march looks AHEAD lattice points ahead and keeps what it finds as bits, with the
device functions of the march kernel, compiled like it without fused multiply-adds: the same cells, bit by bit.

A field is a Triton function and a packer, see `Fused`. Who has one for a kind of program registers the module with it
(`ops.fused`); programs that no module knows are drawn by march, field and composite.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, no_type_check

import jax
import jax.numpy as jnp
import triton
import triton.language as tl

from tkjax.ops import fused
from tkjax.ops.composite import Composited
from tkjax.ops.triton import field_mlp, launch, march
from tkjax.ops.triton.device import composite_step, march_occupied, march_step, slab

RAYS, WARPS = 128, 8  # of a tile; smaller ones spill more registers
AHEAD = 16  # lattice points; their bits fit a float32 exactly
COLUMNS = 16  # of the tile of weighted channels: the least that tl.dot makes


class Packed(NamedTuple):
    """What a field reads. weights: matrices as operands of `mlp_parts.product`; floats: float32; rules: uint32;
    frame [C]: inputs that all rays share; rays [R,C]: inputs of each ray."""

    weights: jax.Array
    floats: jax.Array
    rules: jax.Array
    frame: jax.Array
    rays: jax.Array


class Fused(NamedTuple):
    """A field for this kernel.

    field(x, y, z, ray, live [B,1], weights, floats, rules, frame, rays, META, PRECISION) -> sigma [B,1], channels
    [B,COLUMNS], for samples of rays `ray`; anything where they are not live.
    pack(params, values, number of rays, precision) -> (Packed, META), META a tuple of static values that field knows.
    """

    field: Any
    pack: Callable


@triton.jit
@no_type_check
def _lowest(bits):
    """Number of the lowest bit set, of up to 24; anything where there is none."""
    return ((bits & -bits).to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127


@triton.jit
@no_type_check
def _point(near, first, t, index, dt, dt_gamma, dt_max, CONSTANT: tl.constexpr, AHEAD: tl.constexpr):
    """Lattice point first + index (of 0…AHEAD, any shape), where point `first` is at t."""
    if CONSTANT:
        point = near + dt * (first + index).to(tl.float32)
    else:
        point = tl.where(index == 0, t, 0.0)
        for i in range(AHEAD):
            after = t + march_step(t, dt, dt_gamma, dt_max, CONSTANT)
            t = tl.where(after > t, after, float("inf"))  # a step that rounding swallows ends the lattice
            point = tl.where(index == i + 1, t, point)
    return point


@triton.jit
@no_type_check
def _look_ahead(
    ox, oy, oz, dx, dy, dz, near, far, alive, bits, first, t, after, after_t, numbers, occupancy,
    SIDE: tl.constexpr, CASCADES: tl.constexpr, VERTEX: tl.constexpr, CONSTANT: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """Every ray that is alive gets bits, if any of its lattice is left: (bits, first, t, after, after_t).

    Bit i stands for lattice point first + i, point `first` is at t; `after` is the first not yet looked at, at after_t.
    """
    dt, bound = tl.load(numbers + 7), tl.load(numbers + 8)
    dt_gamma, dt_max = tl.load(numbers + 9), tl.load(numbers + 10)
    ahead = tl.arange(0, AHEAD)[None, :]
    wanting = alive & (bits == 0) & (after_t < far) & (after < 16777216)
    while tl.max(wanting.to(tl.int32)) > 0:
        first = tl.where(wanting, after, first)
        t = tl.where(wanting, after_t, t)
        points = _point(near, first, t, ahead, dt, dt_gamma, dt_max, CONSTANT, AHEAD)
        seen = wanting & (points < far)
        points = tl.where(seen, points, 0.0)
        step = march_step(points, dt, dt_gamma, dt_max, CONSTANT)
        taken = march_occupied(
            ox, oy, oz, dx, dy, dz, points, step, bound, numbers + 11, occupancy, seen, SIDE, CASCADES, VERTEX
        )
        bits = tl.where(wanting, tl.sum(taken << ahead, 1, keep_dims=True), bits)
        after = tl.where(wanting, after + AHEAD, after)
        end = _point(near, first, t, tl.full(near.shape, AHEAD, tl.int32), dt, dt_gamma, dt_max, CONSTANT, AHEAD)
        after_t = tl.where(wanting, end, after_t)
        wanting = alive & (bits == 0) & (after_t < far) & (after < 16777216)
    return bits, first, t, after, after_t


@triton.jit
@no_type_check
def render_kernel(
    rays_o, rays_d, occupancy, numbers, weights, floats, rules, frame, rays, R, samples, weighted, weight_sum, depth,
    CHANNELS: tl.constexpr, COLUMNS: tl.constexpr, FIELD: tl.constexpr, META: tl.constexpr,
    PRECISION: tl.constexpr, RAYS: tl.constexpr, AHEAD: tl.constexpr, SIDE: tl.constexpr, CASCADES: tl.constexpr,
    VERTEX: tl.constexpr, CONSTANT: tl.constexpr,
):  # fmt: skip
    """One tile of rays; `numbers` as in the march kernel, then the compositor's stop."""
    ray = tl.program_id(0) * RAYS + tl.arange(0, RAYS)[:, None]
    exists = ray < R
    ox, oy, oz = (tl.load(rays_o + 3 * ray, mask=exists, other=0.0),
                  tl.load(rays_o + 3 * ray + 1, mask=exists, other=0.0),
                  tl.load(rays_o + 3 * ray + 2, mask=exists, other=0.0))  # fmt: skip
    dx, dy, dz = (tl.load(rays_d + 3 * ray, mask=exists, other=0.0),
                  tl.load(rays_d + 3 * ray + 1, mask=exists, other=0.0),
                  tl.load(rays_d + 3 * ray + 2, mask=exists, other=0.0))  # fmt: skip
    dt, dt_gamma, dt_max = tl.load(numbers + 7), tl.load(numbers + 9), tl.load(numbers + 10)
    stop = tl.load(numbers + 11 + CASCADES)
    near, far = slab(
        ox, oy, oz, dx, dy, dz, tl.load(numbers), tl.load(numbers + 1), tl.load(numbers + 2), tl.load(numbers + 3),
        tl.load(numbers + 4), tl.load(numbers + 5), tl.load(numbers + 6),
    )  # fmt: skip
    alive = exists & (near < far)
    bits, first, after, count = (tl.zeros((RAYS, 1), tl.int32), tl.zeros((RAYS, 1), tl.int32),
                                 tl.zeros((RAYS, 1), tl.int32), tl.zeros((RAYS, 1), tl.int32))  # fmt: skip
    optical, opacity, distance = (tl.zeros((RAYS, 1), tl.float32), tl.zeros((RAYS, 1), tl.float32),
                                  tl.zeros((RAYS, 1), tl.float32))  # fmt: skip
    sums = tl.zeros((RAYS, COLUMNS), tl.float32)
    bits, first, start, after, after_t = _look_ahead(
        ox, oy, oz, dx, dy, dz, near, far, alive, bits, first, near, after, near, numbers, occupancy,
        SIDE, CASCADES, VERTEX, CONSTANT, AHEAD,
    )  # fmt: skip
    while tl.max((alive & (bits != 0)).to(tl.int32)) > 0:
        live = alive & (bits != 0)
        t = _point(near, first, start, _lowest(bits), dt, dt_gamma, dt_max, CONSTANT, AHEAD)
        t = tl.where(live, t, 0.0)
        bits = bits & (bits - 1)
        sigma, channels = FIELD(
            tl.where(live, ox + t * dx, 0.0), tl.where(live, oy + t * dy, 0.0), tl.where(live, oz + t * dz, 0.0),
            ray, live, weights, floats, rules, frame, rays, META, PRECISION,
        )  # fmt: skip
        step = march_step(t, dt, dt_gamma, dt_max, CONSTANT)
        weight, counts, _before, optical = composite_step(optical, tl.where(live, sigma * step, 0.0), live, stop)
        sums += tl.where(counts, weight * channels, 0.0)
        opacity += weight
        distance += weight * t
        count += live.to(tl.int32)
        alive = alive & (count < samples) & (tl.exp(-optical) >= stop)
        bits, first, start, after, after_t = _look_ahead(
            ox, oy, oz, dx, dy, dz, near, far, alive, bits, first, start, after, after_t, numbers, occupancy,
            SIDE, CASCADES, VERTEX, CONSTANT, AHEAD,
        )  # fmt: skip
    column = tl.arange(0, COLUMNS)[None, :]
    at = weighted + ray.to(tl.int64) * CHANNELS + column
    tl.store(at, sums, mask=exists & (column < CHANNELS))
    tl.store(weight_sum + ray, opacity, mask=exists)
    tl.store(depth + ray, distance, mask=exists)


# -- launch


# Of ops.render_fused -> of triton/field_mlp.py. Operands of 8 bits moved pixels of a steep field by up to 2/255 in the
# interpreter and tf32 by 0.07/255, so what may be rounded is rounded to tf32.
PRECISIONS = {"float32": None, "bfloat16": "tf32"}


def supports(program, spec) -> None:
    """NotImplementedError with the reason where this kernel does not have the case."""
    del spec  # all marches are there
    fused.find("triton", program)


def forward(program, spec, rays_o, rays_d, occupancy, values, params, *, stop, chunk, precision) -> Composited:
    """As ops.render_fused; in float32 the products are as triton/field_mlp.py says."""
    del chunk
    code, precision, count = (
        fused.find("triton", program),
        field_mlp.precision_of(PRECISIONS[precision]),
        rays_o.shape[0],
    )
    packed, meta = code.pack(params, values, count, precision)
    numbers = jnp.append(march.numbers(spec), jnp.float32(stop))
    static = march.static(spec) | dict(RAYS=RAYS, AHEAD=AHEAD)
    channels = program.channels - 1
    shapes = [(count, channels), (count,), (count,)]
    weighted, weight_sum, depth = launch.call(
        render_kernel, rays_o, rays_d, occupancy, numbers, *packed, count, spec.samples,
        out_shape=[jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes], grid=(triton.cdiv(count, RAYS),),
        num_warps=WARPS, fp_fusion=False, CHANNELS=channels, COLUMNS=COLUMNS,
        FIELD=code.field, META=meta, PRECISION=precision, **static,
    )  # fmt: skip
    return Composited(weighted, jnp.zeros((count, 0), jnp.float32), weight_sum, depth)
