"""Reference compositing; JAX's own gradient of it is the formula of the public docstring."""

import jax
import jax.numpy as jnp

from tkjax.ops.composite import Composited


def forward(sigma, valid, t, weighted, plain, *, dt, stop):
    optical = jnp.where(valid, sigma, 0.0).astype(jnp.float32) * dt
    before = jnp.cumsum(jnp.pad(optical[:, :-1], ((0, 0), (1, 0))), -1)  # exclusive, without inf - inf
    transmittance = jnp.exp(-before)
    live = valid & (transmittance >= stop)
    weights = jnp.where(live, -jnp.expm1(-optical) * transmittance, 0.0)
    weighted = jnp.where(live[..., None], weighted, 0.0)
    plain = jnp.where(live[..., None], plain, 0.0)
    return Composited(
        weighted=jnp.sum(weights[..., None] * weighted, 1),
        plain=jnp.sum(plain, 1),
        weight_sum=jnp.sum(weights, 1),
        depth=jnp.sum(jax.lax.stop_gradient(weights) * jnp.where(live, t, 0.0), 1),
    )
