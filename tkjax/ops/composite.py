"""Volume rendering along rays (er-nerf dossier §4).

alpha_i = 1 - exp(-sigma_i dt_i), T_i = prod_{j<i} (1 - alpha_j), w_i = alpha_i T_i over the samples of a ray,
front to back, up to and including the one that brings T below `stop`. Weighted channels give sum w_i c_i,
plain channels sum c_i. Gradients: weighted channels w_i g, plain channels g,
  sigma_i: dt_i [ sum_c g_c (T_{i+1} c_i - sum_{j>i} w_j c_j) + g_ws (1 - ws) ];
depth and the plain sums give sigma nothing.
"""

from typing import NamedTuple

from jaxtyping import Array, Bool, Float

from tkjax.ops import dispatch


class Composited(NamedTuple):
    """Sums per ray. `weight_sum` is the opacity 0…1, `depth` is sum w_i t_i (not divided by the opacity)."""

    weighted: Float[Array, "R C"]
    plain: Float[Array, "R Q"]
    weight_sum: Float[Array, " R"]
    depth: Float[Array, " R"]


def composite(
    sigma: Float[Array, "R S"],
    valid: Bool[Array, "R S"],
    t: Float[Array, "R S"],
    weighted: Float[Array, "R S C"],
    plain: Float[Array, "R S Q"],
    *,
    dt: float,
    stop: float = 1e-4,
    backend: str | None = None,
) -> Composited:
    """Composite dense samples; slots that are not `valid` may hold anything, NaN included, and count for nothing.

    sigma >= 0 (infinity allowed); t is what `depth` averages.
    """
    r, s = sigma.shape
    if valid.shape != (r, s) or t.shape != (r, s) or weighted.shape[:2] != (r, s) or plain.shape[:2] != (r, s):
        raise ValueError(
            f"composite: sigma {sigma.shape}, valid {valid.shape}, t {t.shape}, weighted {weighted.shape} and plain "
            f"{plain.shape} must agree in their first two axes"
        )
    if not (dt > 0 and 0 <= stop < 1):
        raise ValueError(f"composite: needs dt > 0 and 0 <= stop < 1, got {dt} and {stop}")
    return dispatch.resolve("composite", backend).forward(sigma, valid, t, weighted, plain, dt=dt, stop=stop)
