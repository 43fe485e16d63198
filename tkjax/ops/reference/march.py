"""Reference march: blocks of lattice points for all rays at once, until every ray is full or outside."""

import jax
import jax.numpy as jnp
import numpy as np

from tkjax.ops.march import Marched, MarchedPacked, MarchSpec
from tkjax.ops.reference.morton import encode_xyz

BLOCK = 16  # lattice points per iteration
LONGEST = 2**24  # points of a lattice; up to here k is exact in float32
SMALLEST = float(np.finfo(np.float32).tiny)  # directions below it count as zero


def _rounded(product):
    """A product that the compiler cannot contract with the sum it goes into."""
    return jnp.maximum(product, np.finfo(np.float32).min)


def slab(rays_o, rays_d, box, t_min: float):
    """near, far [R] of the box, near = max(near, t_min); near = far = 0 where the ray misses or is not finite."""
    low, high = np.asarray(box[:3], np.float32), np.asarray(box[3:], np.float32)
    parallel = jnp.abs(rays_d) < SMALLEST
    inverse = 1.0 / jnp.where(parallel, 1.0, rays_d)
    a, b = (low - rays_o) * inverse, (high - rays_o) * inverse
    within = (rays_o >= low) & (rays_o <= high)
    first = jnp.where(parallel, jnp.where(within, -jnp.inf, jnp.inf), jnp.minimum(a, b))
    last = jnp.where(parallel, jnp.where(within, jnp.inf, -jnp.inf), jnp.maximum(a, b))
    near, far = jnp.maximum(jnp.max(first, -1), t_min), jnp.min(last, -1)
    finite = jnp.all(jnp.isfinite(rays_o) & jnp.isfinite(rays_d), -1)
    hit = (near < far) & jnp.isfinite(far) & finite  # false for NaN
    return jnp.where(hit, near, 0.0), jnp.where(hit, far, 0.0)


def step(t, spec: MarchSpec):
    """dt(t)."""
    if spec.constant_step:
        return jnp.full_like(t, spec.dt)
    return jnp.clip(t * np.float32(spec.dt_gamma), spec.dt, spec.dt_max)


def _cascade(x, t, spec: MarchSpec):
    """The cascade of points x (three arrays) at distances t."""
    reach = jnp.maximum(jnp.maximum(jnp.abs(x[0]), jnp.abs(x[1])), jnp.abs(x[2]))
    reach = jnp.maximum(reach, step(t, spec) * (0.5 * spec.side))
    return sum((reach >= 2.0**c).astype(jnp.int32) for c in range(spec.cascades - 1))


def bit_index(x, t, spec: MarchSpec):
    """Number of the occupancy bit of points x (three arrays within ±bound) at distances t."""
    level = _cascade(x, t, spec) if spec.cascades > 1 else 0
    inverse = np.float32(1.0 / spec.spans[0])
    for c in range(1, spec.cascades):
        inverse = jnp.where(level >= c, np.float32(1.0 / spec.spans[c]), inverse)
    top = spec.side if spec.cell == "vertex" else spec.side - 1
    cell = []
    for v in x:
        scaled = (_rounded(v * inverse) + 1.0) * (0.5 * spec.side)
        scaled = jnp.floor(_rounded(scaled) + 0.5) if spec.cell == "vertex" else scaled
        cell.append(jnp.clip(scaled, 0.0, top).astype(jnp.int32))
    if spec.cell == "vertex":
        return (cell[0] * (top + 1) + cell[1]) * (top + 1) + cell[2]
    return level * spec.side**3 + encode_xyz(*cell)


def _occupied(rays_o, rays_d, occupancy, t, spec: MarchSpec):
    """Bits, 0 or 1, of the points at t [...,R] of finite rays."""
    x = [jnp.clip(rays_o[:, a] + _rounded(t * rays_d[:, a]), -spec.bound, spec.bound) for a in range(3)]
    bit = bit_index(x, t, spec)
    byte = occupancy.at[bit >> 3].get(mode="promise_in_bounds").astype(jnp.int32)
    return (byte >> (bit & 7)) & 1


def forward(rays_o, rays_d, occupancy, noise, spec: MarchSpec):
    near, far = slab(rays_o, rays_d, spec.box, spec.t_min)
    noise = jnp.where(jnp.isfinite(noise), jnp.clip(noise, 0.0, 1.0), 0.0)
    hit = far > 0
    rays_o, rays_d = jnp.where(hit[:, None], rays_o, 0.0), jnp.where(hit[:, None], rays_d, 0.0)

    def occupied(t):
        return _occupied(rays_o, rays_d, occupancy, t, spec)

    walk = _shifted if noise.ndim == 1 else _jittered
    t, dt, count = walk(near, far, noise, occupied, spec)
    return Marched(t.T, dt.T, count, near, far)


# Rays are the last axis throughout, so that every operation runs along them.
def _shifted(near, far, noise, occupied, spec: MarchSpec):
    """t, dt [S,R], count [R] with one shift [R] a ray."""
    slots = jnp.arange(spec.samples, dtype=jnp.int32)[:, None]

    def lattice(k, t):  # the next BLOCK points [K,R], and the one after
        if spec.constant_step:
            steps = (k + jnp.arange(BLOCK + 1, dtype=jnp.int32)).astype(jnp.float32)[:, None]
            points = near + _rounded(np.float32(spec.dt) * (steps + noise))
            return points[:-1], points[-1]
        points = []
        for _ in range(BLOCK):
            points.append(t)
            after = t + step(t, spec)
            t = jnp.where(after > t, after, jnp.inf)  # a step that rounding swallows ends the lattice
        return jnp.stack(points), t

    def more(carry):
        k, t, count, _ = carry
        return jnp.any((t < far) & (count < spec.samples)) & (k < LONGEST)

    def block(carry):
        k, t, count, kept = carry
        points, after = lattice(k, t)
        seen = jnp.where(points < far, points, 0.0)
        taken = jnp.where(points < far, occupied(seen), 0)
        taken = jax.lax.optimization_barrier(taken)  # once, not once for every slot
        for i in range(BLOCK):
            kept = jnp.where((taken[i] > 0) & (count == slots), points[i], kept)  # [S,R]
            count = count + taken[i]
        return k + BLOCK, after, jnp.minimum(count, spec.samples), kept

    first = near + _rounded(step(near, spec) * noise)
    start = (jnp.int32(0), first, jnp.zeros_like(near, jnp.int32), jnp.zeros((spec.samples, *near.shape), jnp.float32))
    _, _, count, kept = jax.lax.while_loop(more, block, start)
    return kept, jnp.where(slots < count, step(kept, spec), 0.0), count


def _jittered(near, far, noise, occupied, spec: MarchSpec):
    """t, dt [S,R], count [R] with noise [R,J] for the step behind every sample: one point of each ray at a time."""
    slots = jnp.arange(spec.samples, dtype=jnp.int32)[:, None]

    def on(t, count):
        return (t < far) & (count < spec.samples)

    def point(carry):
        t, count, kept, steps = carry
        seen = jnp.where(on(t, count), t, 0.0)
        taken = on(t, count) & (occupied(seen) > 0)
        drawn = jnp.take_along_axis(noise, count[:, None] % noise.shape[1], 1)[:, 0]
        dt = _rounded(2.0 * step(seen, spec) * drawn)
        here = taken & (count == slots)
        after = seen + step(seen, spec)
        after = jnp.where(after > seen, after, jnp.inf)
        t = jnp.where(on(t, count), jnp.where(taken, seen + dt, after), t)
        return t, count + taken.astype(jnp.int32), jnp.where(here, seen, kept), jnp.where(here, dt, steps)

    none = jnp.zeros((spec.samples, *near.shape), jnp.float32)
    start = (near, jnp.zeros_like(near, jnp.int32), none, none)
    _, count, t, dt = jax.lax.while_loop(lambda carry: jnp.any(on(*carry[:2])), point, start)
    return t, dt, count


def packed(rays_o, rays_d, occupancy, noise, spec: MarchSpec, capacity: int):
    dense = forward(rays_o, rays_d, occupancy, noise, spec)
    end = jnp.cumsum(dense.count)
    offset = jnp.minimum(end - dense.count, capacity)
    count = jnp.minimum(end, capacity) - offset
    slots = jnp.arange(spec.samples, dtype=jnp.int32)
    index = jnp.where(slots < count[:, None], offset[:, None] + slots, capacity)  # capacity: dropped

    def place(values):
        return jnp.zeros(capacity, values.dtype).at[index].set(values, mode="drop")

    ray = jnp.broadcast_to(jnp.arange(count.shape[0], dtype=jnp.int32)[:, None], index.shape)
    overflow = jnp.sum(dense.count) - jnp.sum(count)
    return MarchedPacked(
        place(dense.t), place(dense.dt), place(ray), offset, count, dense.near, dense.far, overflow
    )  # fmt: skip
