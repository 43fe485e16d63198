"""Device functions for Triton kernels: Morton codes, encodings, grid indices, march and composite steps.

All work on tensors of any (broadcastable) shapes, in Triton's interpreter as well. Where cells or lattice points are
decided (slab, march), the kernel must be compiled with `enable_fp_fusion=False` (`launch.call(..., fp_fusion=False)`):
then products and sums are rounded one by one, as in the C++ kernels, and every path marches the same cells.
Divisions there are `div_rn`, because `/` is an approximation of two units in the last place on the GPU.
`no_type_check` under `triton.jit` keeps jaxtyping's import hook off: Triton needs the function itself, not a wrapper.
"""

from typing import no_type_check

import triton
import triton.language as tl

# -- Morton codes


@triton.jit
@no_type_check
def spread3(v):
    """Bits of a 10-bit int32 moved to every third place."""
    v = v & 0x3FF
    v = (v | (v << 16)) & 0x030000FF
    v = (v | (v << 8)) & 0x0300F00F
    v = (v | (v << 4)) & 0x030C30C3
    return (v | (v << 2)) & 0x09249249


@triton.jit
@no_type_check
def morton3(x, y, z):
    """Z-order code (int32) of int32 cell coordinates, x lowest."""
    return spread3(x) | (spread3(y) << 1) | (spread3(z) << 2)


# -- encodings of coordinates


@triton.jit
@no_type_check
def frequency(x, group):
    """Part `group` of the frequency encoding of x: 0 is x, 2k+1 is sin(2**k x), 2k+2 is cos(2**k x).

    Column c of an encoding of D coordinates is coordinate c % D in group c // D. For a fused field of AD-NeRF's kind;
    harmonics of directions are no business of kernels: they are one row per ray, which XLA computes.
    """
    octave = tl.maximum(group - 1, 0) >> 1
    angle = x * (1 << octave).to(tl.float32)
    return tl.where(group == 0, x, tl.where((group & 1) == 1, tl.sin(angle), tl.cos(angle)))


# -- multi-resolution grids (ops/grid_encode.py has the formulas)


@triton.jit
@no_type_check
def grid_cell(x, scale):
    """(cell as uint32, fraction in it) of a coordinate in [0,1] on a level with this scale."""
    position = x * scale + 0.5
    cell = tl.floor(position)
    return cell.to(tl.int32).to(tl.uint32), position - cell


@triton.jit
@no_type_check
def grid_weight(fraction, bit: tl.constexpr, smooth: tl.constexpr):
    """Weight of a cell's upper (bit 1) or lower corner along one axis."""
    if smooth:
        fraction = fraction * fraction * (3.0 - 2.0 * fraction)
    if bit == 0:
        fraction = 1.0 - fraction
    return fraction


@triton.jit
@no_type_check
def grid_slope(fraction, bit: tl.constexpr, smooth: tl.constexpr):
    """Derivative of `grid_weight` by the fraction."""
    slope = tl.full(fraction.shape, 1.0, tl.float32)
    if smooth:
        slope = 6.0 * fraction * (1.0 - fraction)
    if bit == 0:
        slope = -slope
    return slope


@triton.jit
@no_type_check
def grid_index(
    i, j, k, stride_i, stride_j, stride_k, hashed, entries,
    DIMS: tl.constexpr, ANY_HASHED: tl.constexpr, MODULO: tl.constexpr,
):  # fmt: skip
    """Entry (int32, within its level) of cell (i, j, k), all uint32; k and its stride are ignored for DIMS == 2.

    hashed: nonzero on levels that hash. entries: what indices are taken modulo: with MODULO the number of entries, else
    that number less one, which is a mask on levels whose size is a power of two, and all ones on those that never wrap.
    """
    index = i * stride_i + j * stride_j
    if DIMS == 3:
        index += k * stride_k
    if ANY_HASHED:
        code = i ^ (j * 2654435761)
        if DIMS == 3:
            code ^= k * 805459861
        index = tl.where(hashed != 0, code, index)
    if MODULO:
        index = index % entries
    else:
        index = index & entries
    return index.to(tl.int32)


# -- rays


@triton.jit
@no_type_check
def is_finite(x):
    return tl.abs(x) < float("inf")  # false for NaN


@triton.jit
@no_type_check
def slab_axis(o, d, low, high):
    """(first, last) distance of a ray between two planes; (-inf, inf) or (inf, -inf) where it is parallel to them."""
    parallel = tl.abs(d) < 1.1754943508222875e-38  # smaller ones count as zero, as in the reference
    inverse = tl.div_rn(tl.full(d.shape, 1.0, tl.float32), tl.where(parallel, 1.0, d))
    a = (low - o) * inverse
    b = (high - o) * inverse
    within = (o >= low) & (o <= high)
    first = tl.where(parallel, tl.where(within, float("-inf"), float("inf")), tl.minimum(a, b))
    last = tl.where(parallel, tl.where(within, float("inf"), float("-inf")), tl.maximum(a, b))
    return first, last


@triton.jit
@no_type_check
def slab(ox, oy, oz, dx, dy, dz, x0, y0, z0, x1, y1, z1, t_min):
    """(near, far) of a box, near at least t_min; both 0 where the ray misses or is not finite."""
    first_x, last_x = slab_axis(ox, dx, x0, x1)
    first_y, last_y = slab_axis(oy, dy, y0, y1)
    first_z, last_z = slab_axis(oz, dz, z0, z1)
    near = tl.maximum(tl.maximum(tl.maximum(first_x, first_y), first_z), t_min)
    far = tl.minimum(tl.minimum(last_x, last_y), last_z)
    finite = is_finite(ox) & is_finite(oy) & is_finite(oz) & is_finite(dx) & is_finite(dy) & is_finite(dz)
    hit = finite & (near < far) & is_finite(far)
    return tl.where(hit, near, 0.0), tl.where(hit, far, 0.0)


@triton.jit
@no_type_check
def march_step(t, dt, dt_gamma, dt_max, CONSTANT: tl.constexpr):
    """Length of the step at distance t."""
    if CONSTANT:
        step = tl.zeros(t.shape, tl.float32) + dt
    else:
        step = tl.minimum(tl.maximum(t * dt_gamma, dt), dt_max)
    return step


@triton.jit
@no_type_check
def march_cell(v, inverse_span, SIDE: tl.constexpr, VERTEX: tl.constexpr):
    """Cell number (int32) along one axis of a coordinate within ±bound."""
    scaled = (v * inverse_span + 1.0) * (0.5 * SIDE)
    if VERTEX:
        cell = tl.minimum(tl.maximum(tl.floor(scaled + 0.5), 0.0), SIDE * 1.0)
    else:
        cell = tl.minimum(tl.maximum(scaled, 0.0), SIDE - 1.0)
    return cell.to(tl.int32)


@triton.jit
@no_type_check
def march_occupied(
    ox, oy, oz, dx, dy, dz, t, step, bound, inverse_spans, occupancy, mask,
    SIDE: tl.constexpr, CASCADES: tl.constexpr, VERTEX: tl.constexpr,
):  # fmt: skip
    """1 where the occupancy bit of the cell of o + t d is set, else 0; 0 where mask is not set.

    step: length of the step at t, asked for with several cascades only. inverse_spans: pointer to 1/span of each.
    """
    x = tl.minimum(tl.maximum(ox + t * dx, -bound), bound)
    y = tl.minimum(tl.maximum(oy + t * dy, -bound), bound)
    z = tl.minimum(tl.maximum(oz + t * dz, -bound), bound)
    inverse = tl.load(inverse_spans)
    if CASCADES > 1:
        reach = tl.maximum(tl.maximum(tl.maximum(tl.abs(x), tl.abs(y)), tl.abs(z)), step * (0.5 * SIDE))
        level = (reach >= 1.0).to(tl.int32)
        for cascade in tl.static_range(1, CASCADES - 1):
            level += (reach >= 1.0 * (1 << cascade)).to(tl.int32)
        inverse = tl.load(inverse_spans + level)
    i = march_cell(x, inverse, SIDE, VERTEX)
    j = march_cell(y, inverse, SIDE, VERTEX)
    k = march_cell(z, inverse, SIDE, VERTEX)
    if VERTEX:
        bit = (i * (SIDE + 1) + j) * (SIDE + 1) + k
    else:
        bit = morton3(i, j, k)
        if CASCADES > 1:
            bit += level * (SIDE * SIDE * SIDE)
    byte = tl.load(occupancy + (bit >> 3), mask=mask, other=0).to(tl.int32)
    return (byte >> (bit & 7)) & 1


@triton.jit
@no_type_check
def alpha(optical):
    """1 - exp(-optical) for optical >= 0, accurate for small values too."""
    series = 1.0 - optical * (1.0 / 6.0) * (1.0 - optical * (1.0 / 7.0))
    series = 1.0 - optical * 0.25 * (1.0 - optical * 0.2 * series)
    series = 1.0 - optical * 0.5 * (1.0 - optical * (1.0 / 3.0) * series)
    return tl.where(optical < 0.25, optical * series, 1.0 - tl.exp(-optical))


@triton.jit
@no_type_check
def composite_step(before, optical, valid, stop):
    """One sample of a ray: (its weight, whether it counts, the transmittance before it, optical depth after it).

    before: optical depth of the samples in front; optical: sigma * dt of this one, 0 where it is not valid; a sample
    counts while it is valid and the transmittance in front of it is at least `stop` (never once that is NaN).
    """
    transmittance = tl.exp(-before)
    live = valid & (transmittance >= stop)
    weight = tl.where(live, alpha(optical) * transmittance, 0.0)
    return weight, live, transmittance, before + optical
