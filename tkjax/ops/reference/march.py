"""Reference march: blocks of lattice points for all rays at once, until every ray is full or outside."""

import jax
import jax.numpy as jnp
import numpy as np

from tkjax.ops.march import Marched
from tkjax.ops.reference.morton import encode_xyz

BLOCK = 16  # lattice points per iteration


def slab(rays_o, rays_d, box, t_min: float):
    """near, far [R] of the box, near = max(near, t_min); near = far = 0 where the ray misses or is not finite."""
    low, high = np.asarray(box[:3], np.float32), np.asarray(box[3:], np.float32)
    parallel = rays_d == 0
    inverse = 1.0 / jnp.where(parallel, 1.0, rays_d)
    a, b = (low - rays_o) * inverse, (high - rays_o) * inverse
    within = (rays_o >= low) & (rays_o <= high)
    first = jnp.where(parallel, jnp.where(within, -jnp.inf, jnp.inf), jnp.minimum(a, b))
    last = jnp.where(parallel, jnp.where(within, jnp.inf, -jnp.inf), jnp.maximum(a, b))
    near, far = jnp.maximum(jnp.max(first, -1), t_min), jnp.min(last, -1)
    hit = (near < far) & jnp.isfinite(far)  # false for NaN
    return jnp.where(hit, near, 0.0), jnp.where(hit, far, 0.0)


def forward(rays_o, rays_d, occupancy, noise, *, side, box, dt, t_min, samples, bound):
    rays_o, rays_d, noise = (jax.lax.stop_gradient(v.astype(jnp.float32)) for v in (rays_o, rays_d, noise))
    near, far = slab(rays_o, rays_d, box, t_min)
    noise = jnp.where(jnp.isfinite(noise), noise, 0.0)
    slots = jnp.arange(samples, dtype=jnp.int32)[:, None]

    # Rays are the last axis throughout, so that every operation runs along them.
    def occupied(t):  # [K,R] -> 0 or 1
        codes = []
        for axis in range(3):
            x = jnp.clip(rays_o[:, axis] + t * rays_d[:, axis], -bound, bound)
            cell = jnp.clip(0.5 * (x * (1.0 / bound) + 1.0) * side, 0.0, side - 1.0)
            codes.append(jnp.where(jnp.isfinite(cell), cell, 0.0).astype(jnp.int32))
        code = encode_xyz(*codes)
        byte = occupancy.at[code >> 3].get(mode="promise_in_bounds").astype(jnp.int32)
        return (byte >> (code & 7)) & 1

    def more(carry):
        k, count, _ = carry
        t = near + dt * (k.astype(jnp.float32) + noise)
        return jnp.any((t < far) & (count < samples))

    def block(carry):
        k, count, kept = carry
        steps = (k + jnp.arange(BLOCK, dtype=jnp.int32)).astype(jnp.float32)[:, None]
        t = near + dt * (steps + noise)  # [K,R]
        hit = jax.lax.optimization_barrier(jnp.where(t < far, occupied(t), 0))  # once, not once for every slot
        for i in range(BLOCK):
            kept = jnp.where((hit[i] > 0) & (count == slots), t[i], kept)  # [S,R]
            count = count + hit[i]
        return k + BLOCK, jnp.minimum(count, samples), kept

    zero = jnp.int32(0)
    start = (zero, jnp.zeros_like(near, jnp.int32), jnp.zeros((samples, *near.shape), jnp.float32))
    _, count, kept = jax.lax.while_loop(more, block, start)
    return Marched(kept.T, count, near, far)
