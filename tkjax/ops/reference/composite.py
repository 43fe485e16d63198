"""Reference compositing; JAX's own gradient of it is the formula of the public docstring."""

import jax
import jax.numpy as jnp

from tkjax.ops.composite import Composited


def _optical(sigma, valid, dt):
    """sigma dt where it counts; 0, and no gradient, elsewhere."""
    counts = valid & (dt > 0)
    return jnp.where(counts, sigma, 0.0) * jnp.where(counts, dt, 0.0)


def _weights(optical, before, valid, stop):
    """(weights, which samples count)."""
    transmittance = jnp.exp(-before)
    # Once optical depth is NaN nothing compares; the sample that brought NaN counts, those behind it do not.
    live = valid & (transmittance >= stop)
    return jnp.where(live, -jnp.expm1(-optical) * transmittance, 0.0), live


def forward(sigma, valid, t, dt, weighted, plain, *, stop):
    optical = _optical(sigma, valid, dt)
    before = jnp.cumsum(jnp.pad(optical[:, :-1], ((0, 0), (1, 0))), -1)  # exclusive, without inf - inf
    weights, live = _weights(optical, before, valid, stop)
    weighted = jnp.where(live[..., None], weighted, 0.0)
    plain = jnp.where(live[..., None], plain, 0.0)
    return Composited(
        weighted=jnp.sum(weights[..., None] * weighted, 1),
        plain=jnp.sum(plain, 1),
        weight_sum=jnp.sum(weights, 1),
        depth=jnp.sum(jax.lax.stop_gradient(weights) * jnp.where(live, t, 0.0), 1),
    )


def rays_of(offset, count, samples: int):
    """(ray of each sample [M], whether it belongs to one, whether it is the first of its ray)."""
    starts = jnp.where(count > 0, offset, samples)
    first = jnp.zeros(samples, bool).at[starts].set(True, mode="drop")
    index = jnp.arange(samples, dtype=jnp.int32)
    ray = jnp.zeros(samples, jnp.int32).at[starts].set(jnp.arange(count.shape[0], dtype=jnp.int32), mode="drop")
    ray = jax.lax.cummax(jnp.where(first, ray, 0))
    if count.shape[0] == 0:
        return ray, jnp.zeros(samples, bool), first
    return ray, (index >= offset[ray]) & (index < offset[ray] + count[ray]), first


def packed(sigma, t, dt, offset, count, weighted, plain, *, stop):
    samples, rays = sigma.shape[0], count.shape[0]
    ray, valid, first = rays_of(offset, count, samples)
    optical = _optical(sigma, valid, dt)

    def join(a, b):  # sums that start anew where a ray does
        return a[0] | b[0], jnp.where(b[0], b[1], a[1] + b[1])

    shifted = jnp.where(first, 0.0, jnp.pad(optical[:-1], (1, 0))) if samples else optical
    _, before = jax.lax.associative_scan(join, (first, shifted))
    weights, live = _weights(optical, before, valid, stop)

    def add(values):
        return jax.ops.segment_sum(values, ray, max(rays, 1), indices_are_sorted=True)[:rays]

    return Composited(
        weighted=add(weights[:, None] * jnp.where(live[:, None], weighted, 0.0)),
        plain=add(jnp.where(live[:, None], plain, 0.0)),
        weight_sum=add(weights),
        depth=add(jax.lax.stop_gradient(weights) * jnp.where(live, t, 0.0)),
    )
