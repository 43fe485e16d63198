"""Elementwise losses; the caller reduces."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

EPS_NORM = 1e-12  # below it a norm counts as 0 and has no gradient
EPS_ENTROPY = 1e-5  # probabilities are clipped to [eps, 1 - eps]


def safe_norm(x: Float[Array, "*N C"]) -> Float[Array, "*N"]:
    """Euclidean norm over the last axis with gradient 0 (not NaN) at 0."""
    square = jnp.sum(x * x, -1)
    zero = square < EPS_NORM**2
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, square)))


def mse(prediction: Float[Array, "*N C"], target: Float[Array, "*N C"]) -> Float[Array, "*N"]:
    """Mean over channels of the squared difference."""
    return jnp.mean(jnp.square(prediction - target), -1)


def binary_entropy_bits(p: Float[Array, "*N"]) -> Float[Array, "*N"]:
    """-p log2 p - (1-p) log2 (1-p) of p clipped to [1e-5, 1 - 1e-5]; 0…1."""
    p = jnp.clip(p, EPS_ENTROPY, 1.0 - EPS_ENTROPY)
    return -(p * jnp.log2(p) + (1.0 - p) * jnp.log2(1.0 - p))


def uncertainty_nll(error: Float[Array, "*N"], uncertainty: Float[Array, "*N"]) -> Float[Array, "*N"]:
    """error / (2 beta^2) + ln(beta)^2 / 2 with beta = 1 + uncertainty (er-nerf dossier §5 term 3)."""
    beta = 1.0 + uncertainty
    return error / (2.0 * beta**2) + jnp.square(jnp.log(beta)) / 2.0


def uncertainty_weight(uncertainty: Float[Array, "B R"], progress: Float[Array, ""]) -> Float[Array, "B R"]:
    """0.2 + 0.8 clip((1-s) + s R softmax_R(U), 0, 10), no gradient (er-nerf dossier §5 term 2)."""
    share = jax.nn.softmax(jax.lax.stop_gradient(uncertainty), -1) * uncertainty.shape[-1]
    return 0.2 + 0.8 * jnp.clip((1.0 - progress) + progress * share, 0.0, 10.0)
