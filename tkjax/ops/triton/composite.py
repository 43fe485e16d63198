"""composite on the GPU, dense and packed alike: a ray is a range of samples. A program has a block of rays and takes
AHEAD samples of each at a time, until all rays of the block have ended or become opaque.

The backward pass computes the weights again and needs no residuals but the inputs. All sums are in a fixed order: the
same bits every time.
"""

import functools
from typing import no_type_check

import jax
import jax.numpy as jnp
import triton
import triton.language as tl
from jax.custom_derivatives import SymbolicZero

from tkjax.ops import dispatch
from tkjax.ops.composite import Composited
from tkjax.ops.triton import launch
from tkjax.ops.triton.device import composite_step

LANES = 128  # of a tile, one for each thread of four warps; with more some channel counts spill registers


@triton.jit
@no_type_check
def _range(ray, R, offsets, counts, samples, PACKED: tl.constexpr):
    """(first sample, number of samples) of rays [B,1]; packed ranges are cut to the `samples` there are."""
    if PACKED:
        start = tl.load(offsets + ray, mask=ray < R, other=0)
        start = tl.minimum(tl.maximum(start, 0), samples)
        count = tl.minimum(tl.load(counts + ray, mask=ray < R, other=0), samples - start)
    else:
        start = ray * samples
        count = tl.where(ray < R, samples, 0)
    return start, count


@triton.jit
@no_type_check
def _optical(sigma, dt, at, mask, DT_ARRAY: tl.constexpr):
    """(optical depth, step) of samples `at`; 0 where masked or where the step is not positive."""
    step = tl.load(dt + at, mask=mask, other=0.0) if DT_ARRAY else tl.where(mask, tl.load(dt), 0.0)
    counts = mask & (step > 0.0)
    step = tl.where(counts, step, 0.0)
    return tl.where(counts, tl.load(sigma + at, mask=counts, other=0.0), 0.0) * step, step


@triton.jit
@no_type_check
def _tile(
    sigma, dt, valid, start, count, first, carried, stop,
    PACKED: tl.constexpr, DT_ARRAY: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """Samples first … first + AHEAD - 1 of each ray: (index, weight, live, T behind, step, carried).

    carried: optical depth of all samples in front of the tile; that behind it is given back.
    """
    column = first + tl.arange(0, AHEAD)[None, :]
    at = start + column
    mask = column < count
    # Sums of the samples in front, not sums less the sample itself: infinity less infinity is no number.
    ahead = mask & (column > first)
    if not PACKED:
        ahead = ahead & (tl.load(valid + at - 1, mask=ahead, other=0) != 0)
        mask = mask & (tl.load(valid + at, mask=mask, other=0) != 0)
    shifted, _step = _optical(sigma, dt, at - 1, ahead, DT_ARRAY)
    optical, step = _optical(sigma, dt, at, mask, DT_ARRAY)
    before = carried + tl.cumsum(shifted, 1)
    weight, live, front, _after = composite_step(before, optical, mask, stop)
    carried += tl.sum(optical, 1, keep_dims=True)
    return at, weight, live, front - weight, step, carried


@triton.jit
@no_type_check
def forward_kernel(
    sigma, valid, t, dt, offsets, counts, weighted, plain, stops, R, samples,
    out_weighted, out_plain, out_sum, out_depth,
    CHANNELS: tl.constexpr, PLAIN: tl.constexpr, CHANNELS_PADDED: tl.constexpr, PLAIN_PADDED: tl.constexpr,
    PACKED: tl.constexpr, DT_ARRAY: tl.constexpr, RAYS: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """The four sums of a block of rays."""
    ray = tl.program_id(0) * RAYS + tl.arange(0, RAYS)[:, None]
    start, count = _range(ray, R, offsets, counts, samples, PACKED)
    stop = tl.load(stops)
    channel = tl.arange(0, CHANNELS_PADDED)[None, :]
    extra = tl.arange(0, PLAIN_PADDED)[None, :]
    sums = tl.zeros((RAYS, CHANNELS_PADDED), tl.float32)
    plains = tl.zeros((RAYS, PLAIN_PADDED), tl.float32)
    weight_sum = tl.zeros((RAYS, 1), tl.float32)
    depth = tl.zeros((RAYS, 1), tl.float32)
    carried = tl.zeros((RAYS, 1), tl.float32)
    first = 0
    more = tl.max(count)
    while more > first:
        at, weight, live, _behind, _step, carried = _tile(
            sigma, dt, valid, start, count, first, carried, stop, PACKED, DT_ARRAY, AHEAD
        )
        weight_sum += tl.sum(weight, 1, keep_dims=True)
        distance = tl.load(t + at, mask=live, other=0.0)
        depth += tl.sum(weight * distance, 1, keep_dims=True)
        for c in range(CHANNELS):
            value = tl.load(weighted + at * CHANNELS + c, mask=live, other=0.0)
            part = tl.sum(weight * value, 1, keep_dims=True)
            sums = tl.where(channel == c, sums + part, sums)
        for q in range(PLAIN):
            value = tl.load(plain + at * PLAIN + q, mask=live, other=0.0)
            part = tl.sum(value, 1, keep_dims=True)
            plains = tl.where(extra == q, plains + part, plains)
        first += AHEAD
        more = tl.max(tl.where(tl.exp(-carried) >= stop, count, 0))
    exists = ray < R
    tl.store(out_weighted + ray * CHANNELS + channel, sums, mask=exists & (channel < CHANNELS))
    tl.store(out_plain + ray * PLAIN + extra, plains, mask=exists & (extra < PLAIN))
    tl.store(out_sum + ray, weight_sum, mask=exists)
    tl.store(out_depth + ray, depth, mask=exists)


@triton.jit
@no_type_check
def _value(weighted, g_weighted, at, ray, live, exists, g_sum, CHANNELS: tl.constexpr):
    """What one unit of weight of each sample is worth: sum_c g_c c_i + g_ws."""
    value = tl.where(live, g_sum, 0.0)
    for c in range(CHANNELS):
        g = tl.load(g_weighted + ray * CHANNELS + c, mask=exists, other=0.0)
        value += g * tl.load(weighted + at * CHANNELS + c, mask=live, other=0.0)
    return tl.where(live, value, 0.0)


@triton.jit
@no_type_check
def backward_kernel(
    sigma, valid, dt, offsets, counts, weighted, g_weighted, g_plain, g_sums, g_depth, stops, R, samples,
    by_sigma, by_t, by_weighted, by_plain,
    CHANNELS: tl.constexpr, PLAIN: tl.constexpr, PACKED: tl.constexpr, DT_ARRAY: tl.constexpr, RAYS: tl.constexpr,
    AHEAD: tl.constexpr, WITH_T: tl.constexpr,
):  # fmt: skip
    """Gradients of a block of rays, written for the samples that count (zeros before)."""
    ray = tl.program_id(0) * RAYS + tl.arange(0, RAYS)[:, None]
    exists = ray < R
    start, count = _range(ray, R, offsets, counts, samples, PACKED)
    stop = tl.load(stops)
    g_sum = tl.load(g_sums + ray, mask=exists, other=0.0)
    # First pass: what all samples are worth together.
    total = tl.zeros((RAYS, 1), tl.float32)
    carried = tl.zeros((RAYS, 1), tl.float32)
    first = 0
    more = tl.max(count)
    while more > first:
        at, weight, live, _behind, _step, carried = _tile(
            sigma, dt, valid, start, count, first, carried, stop, PACKED, DT_ARRAY, AHEAD
        )
        value = _value(weighted, g_weighted, at, ray, live, exists, g_sum, CHANNELS)
        total += tl.sum(weight * value, 1, keep_dims=True)
        first += AHEAD
        more = tl.max(tl.where(tl.exp(-carried) >= stop, count, 0))
    # Second pass: from it, what those behind each sample are worth.
    carried = tl.zeros((RAYS, 1), tl.float32)
    first = 0
    more = tl.max(count)
    while more > first:
        at, weight, live, behind, step, carried = _tile(
            sigma, dt, valid, start, count, first, carried, stop, PACKED, DT_ARRAY, AHEAD
        )
        value = _value(weighted, g_weighted, at, ray, live, exists, g_sum, CHANNELS)
        worth = weight * value
        rest = total - tl.cumsum(worth, 1)
        total -= tl.sum(worth, 1, keep_dims=True)
        # Where the step is 0 the weight does not depend on sigma, whatever the channels hold.
        slope = tl.where(step > 0.0, step * (behind * value - rest), 0.0)
        tl.store(by_sigma + at, slope, mask=live)
        if WITH_T:
            tl.store(by_t + at, weight * tl.load(g_depth + ray, mask=exists, other=0.0), mask=live)
        for c in range(CHANNELS):
            g = tl.load(g_weighted + ray * CHANNELS + c, mask=exists, other=0.0)
            tl.store(by_weighted + at * CHANNELS + c, weight * g, mask=live)
        for q in range(PLAIN):
            g = tl.load(g_plain + ray * PLAIN + q, mask=exists, other=0.0)
            tl.store(by_plain + at * PLAIN + q, g + tl.zeros_like(weight), mask=live)
        first += AHEAD
        more = tl.max(tl.where(tl.exp(-carried) >= stop, count, 0))


# -- launches


def _meta(longest: int, sigma, channels: int, extra: int, is_packed: bool, dt) -> dict:
    if sigma.size * max(channels, extra, 1) >= 2**31:
        raise ValueError(f"composite: {sigma.size} samples of {max(channels, extra)} channels are 2^31 values or more")
    ahead = min(16, triton.next_power_of_2(max(longest, 1)))
    return dict(
        CHANNELS=channels, PLAIN=extra, PACKED=is_packed, DT_ARRAY=dt.ndim > 0, RAYS=LANES // ahead, AHEAD=ahead
    )


def _shapes(*shapes):
    return [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]


def _forward(static, sigma, valid, t, dt, offset, count, weighted, plain):
    stop, rays, longest = static
    channels, extra = weighted.shape[-1], plain.shape[-1]
    is_packed = valid is None
    meta = _meta(longest, sigma, channels, extra, is_packed, dt)
    return launch.call(
        forward_kernel, sigma, sigma if is_packed else valid, t, dt.reshape(-1), *_ranges(offset, count), weighted,
        plain, jnp.full(1, stop, jnp.float32), rays, longest,
        out_shape=_shapes((rays, channels), (rays, extra), (rays,), (rays,)), grid=(triton.cdiv(rays, meta["RAYS"]),),
        num_warps=4, CHANNELS_PADDED=triton.next_power_of_2(max(channels, 1)),
        PLAIN_PADDED=triton.next_power_of_2(max(extra, 1)), **meta,
    )  # fmt: skip


def _ranges(offset, count):
    """Two arrays for the kernel, which reads them only where samples are packed."""
    unused = jnp.zeros(1, jnp.int32)
    return (unused, unused) if offset is None else (offset, count)


def _backward(static, with_t: bool, sigma, valid, dt, offset, count, weighted, plain, g):
    stop, rays, longest = static
    channels, extra = weighted.shape[-1], plain.shape[-1]
    is_packed = valid is None
    meta = _meta(longest, sigma, channels, extra, is_packed, dt)
    return launch.call(
        backward_kernel, sigma, sigma if is_packed else valid, dt.reshape(-1), *_ranges(offset, count), weighted,
        *g, jnp.full(1, stop, jnp.float32), rays, longest,
        out_shape=_shapes(sigma.shape, sigma.shape if with_t else (1,), weighted.shape, plain.shape),
        zeroed=(0, 1, 2, 3), grid=(triton.cdiv(rays, meta["RAYS"]),), num_warps=4, WITH_T=with_t, **meta,
    )  # fmt: skip


@functools.cache
def _op(stop: float, rays: int, longest: int):
    """The differentiable function for these settings; `valid` for dense samples, offset and count for packed ones."""
    static = stop, rays, longest

    @jax.custom_vjp
    def composite(sigma, t, weighted, plain, valid, dt, offset, count):
        return _forward(static, sigma, valid, t, dt, offset, count, weighted, plain)

    def forward(sigma, t, weighted, plain, valid, dt, offset, count):
        values = [None if v is None else v.value for v in (sigma, t, weighted, plain, valid, dt, offset, count)]
        # Of t only whether its gradient is asked for is kept: as a leaf or as none.
        sigma_, _, weighted_, plain_, valid_, dt_, offset_, count_ = values
        asked = jnp.zeros(0) if t.perturbed else None
        return composite(*values), (sigma_, weighted_, plain_, valid_, dt_, offset_, count_, asked)

    @dispatch.once_differentiable("composite")
    def gradients(residuals, g):
        sigma, weighted, plain, valid, dt, offset, count, asked = residuals
        by_sigma, by_t, by_weighted, by_plain = _backward(
            static, asked is not None, sigma, valid, dt, offset, count, weighted, plain, g
        )
        return by_sigma, None if asked is None else by_t, by_weighted, by_plain

    def backward(residuals, g):
        g = [jnp.zeros(v.aval.shape, jnp.float32) if isinstance(v, SymbolicZero) else v for v in g]
        return (*gradients(residuals, g), None, None, None, None)

    composite.defvjp(forward, backward, symbolic_zeros=True)
    return composite


def forward(sigma, valid, t, dt, weighted, plain, *, stop) -> Composited:
    op = _op(stop, *sigma.shape)
    return Composited(*op(sigma, t, weighted, plain, valid.astype(jnp.uint8), dt, None, None))


def packed(sigma, t, dt, offset, count, weighted, plain, *, stop) -> Composited:
    op = _op(stop, count.shape[0], sigma.shape[0])
    return Composited(*op(sigma, t, weighted, plain, None, dt, offset, count))
