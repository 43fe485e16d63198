"""Depths along a ray in two passes: evenly first, then where the first pass has found something (ad-nerf dossier §4).

Naming: `z` are depths of samples, `bins` the ends of intervals, `weights` one number for each interval; the last axis
is always the ray's. No gradient flows through a depth.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

WEIGHT_FLOOR = 1e-5  # added to every weight, so that an empty ray is sampled evenly (dossier §4)
LEAST_STEP = 1e-5  # of the distribution over an interval; one with less gives its own begin (dossier §4)


def even_depths(near: Float[Array, ""], far: Float[Array, ""], samples: int) -> Float[Array, " S"]:
    """S >= 2 depths from near to far, both included: z_k = near (1 - k / (S-1)) + far k / (S-1)."""
    share = jnp.linspace(0.0, 1.0, samples, dtype=jnp.float32)
    return near * (1.0 - share) + far * share


def jittered(z: Float[Array, "*R S"], noise: Float[Array, "*R S"]) -> Float[Array, "*R S"]:
    """Each depth anywhere between the middles to its neighbours, by noise in 0…1; the last one stays where it is.

    z'_k = l_k + (u_k - l_k) noise_k with l, u the middles of neighbouring depths, at the ends the depths themselves.
    """
    middle = 0.5 * (z[..., 1:] + z[..., :-1])
    upper = jnp.concatenate([middle, z[..., -1:]], -1)
    lower = jnp.concatenate([z[..., :1], middle], -1)
    moved = lower + (upper - lower) * noise
    return jnp.concatenate([moved[..., :-1], jnp.broadcast_to(z[..., -1:], moved[..., -1:].shape)], -1)


def ray_weights(sigma: Float[Array, "*R S"], dt: Float[Array, "*R S"]) -> Float[Array, "*R S"]:
    """w_i = T_i (1 - exp(-sigma_i dt_i)), T_i = exp(-sum_{j<i} sigma_j dt_j): what each sample adds to the picture."""
    optical = sigma * dt
    before = jnp.cumsum(optical, -1) - optical
    return -jnp.exp(-before) * jnp.expm1(-optical)


def inverse_cdf(
    bins: Float[Array, "*R E"], weights: Float[Array, "*R n"], u: Float[Array, "*R m"]
) -> Float[Array, "*R m"]:
    """Depths for u in 0…1 whose density over bins_k … bins_{k+1} is proportional to weights_k + 1e-5; no gradient.

    E = n + 1 ends of intervals. With cdf_0 = 0, cdf_{k+1} = cdf_k + share of interval k, cdf_k <= u < cdf_{k+1} gives
    bins_k + (u - cdf_k) / (cdf_{k+1} - cdf_k) (bins_{k+1} - bins_k), a difference below 1e-5 counting as 1; u at or
    behind the last gives the end. Increasing in u and within the bins. weights are not negative.
    """
    bins, weights, u = map(jax.lax.stop_gradient, (bins, weights, u))
    weights = weights + WEIGHT_FLOOR
    cdf = jnp.cumsum(weights / jnp.sum(weights, -1, keepdims=True), -1)
    n = weights.shape[-1]
    k = jnp.sum(u[..., :, None] >= cdf[..., None, :], -1)  # intervals that end at or before u
    cdf = jnp.concatenate([jnp.zeros_like(cdf[..., :1]), cdf], -1)
    above = jnp.minimum(k + 1, n)
    (low, high), (begin, end) = (
        (jnp.take_along_axis(v, k, -1), jnp.take_along_axis(v, above, -1)) for v in (cdf, bins)
    )
    step = jnp.where(high - low < LEAST_STEP, 1.0, high - low)
    return begin + (u - low) / step * (end - begin)


def finer_depths(
    z: Float[Array, "*R S"], weights: Float[Array, "*R S"], u: Float[Array, "*R m"]
) -> Float[Array, "*R S+m"]:
    """The depths of the first pass with m more, sorted; the new ones lie between the middles of neighbouring depths, by
    the weights of the samples there (without the first and last sample). No gradient."""
    z = jax.lax.stop_gradient(z)
    middle = 0.5 * (z[..., 1:] + z[..., :-1])
    return jnp.sort(jnp.concatenate([z, inverse_cdf(middle, weights[..., 1:-1], u)], -1), -1)
