"""Volume rendering along rays (er-nerf dossier §4).

alpha_i = 1 - exp(-sigma_i dt_i), T_i = prod_{j<i} (1 - alpha_j), w_i = alpha_i T_i over the samples of a ray,
front to back, up to and including the one that brings T below `stop`. Weighted channels give sum w_i c_i,
plain channels sum c_i. Gradients: weighted channels w_i g, plain channels g, t: w_i g_depth,
  sigma_i: dt_i [ sum_c g_c (T_{i+1} c_i - sum_{j>i} w_j c_j) + g_ws (1 - ws) ];
depth and the plain sums give sigma nothing, dt gets nothing.

sigma >= 0; infinity is a wall (alpha 1). A step dt that is 0 or not positive has alpha 0, whatever sigma is. NaN in a
sample that counts stays within its ray: in sigma it makes the weighted sums, weight_sum and depth NaN and ends the
ray, in t only depth, in a channel only that channel's sum. Float32 throughout.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tkjax.ops import dispatch


class Composited(NamedTuple):
    """Sums per ray. `weight_sum` is the opacity 0…1, `depth` is sum w_i t_i (not divided by the opacity)."""

    weighted: Float[Array, "R C"]
    plain: Float[Array, "R Q"]
    weight_sum: Float[Array, " R"]
    depth: Float[Array, " R"]


def _check(name: str, first: tuple[int, ...], dt, stop: float, **arrays):
    """dt as a float32 number or array, or a ValueError that says what is wrong."""
    axes = len(first)
    if any(v.shape[:axes] != first or v.ndim != axes + (k in ("weighted", "plain")) for k, v in arrays.items()):
        shapes = ", ".join(f"{k} {v.shape}" for k, v in arrays.items())
        raise ValueError(f"{name}: the samples of sigma {first} and of {shapes} do not agree")
    if not 0 <= stop < 1:
        raise ValueError(f"{name}: needs 0 <= stop < 1, got {stop}")
    if isinstance(dt, (int, float)):
        if not dt > 0:
            raise ValueError(f"{name}: needs dt > 0, got {dt}")
        return jnp.float32(dt)
    if dt.shape not in ((), first):
        raise ValueError(f"{name}: dt is one number or one per sample {first}, got {dt.shape}")
    return jax.lax.stop_gradient(dt.astype(jnp.float32))


def _run(what: str, module, *args, stop):
    args = (jnp.asarray(v, jnp.float32 if jnp.issubdtype(v.dtype, jnp.floating) else None) for v in args)
    with jax.named_scope(f"{what}.{module.__name__.split('.')[-2]}"):
        return getattr(module, "packed" if what == "composite_packed" else "forward")(*args, stop=float(stop))


def composite(
    sigma: Float[Array, "R S"],
    valid: Bool[Array, "R S"],
    t: Float[Array, "R S"],
    weighted: Float[Array, "R S C"],
    plain: Float[Array, "R S Q"],
    *,
    dt: float | Float[Array, ""] | Float[Array, "R S"],
    stop: float = 1e-4,
    backend: str | None = None,
) -> Composited:
    """Composite dense samples; slots that are not `valid` may hold anything, NaN included, and count for nothing.

    t is what `depth` averages.
    """
    dt = _check("composite", sigma.shape, dt, stop, valid=valid, t=t, weighted=weighted, plain=plain)
    module = dispatch.resolve("composite", backend)
    return _run("composite", module, sigma, valid, t, dt, weighted, plain, stop=stop)


def composite_packed(
    sigma: Float[Array, " M"],
    t: Float[Array, " M"],
    dt: float | Float[Array, ""] | Float[Array, " M"],
    offset: Int[Array, " R"],
    count: Int[Array, " R"],
    weighted: Float[Array, "M C"],
    plain: Float[Array, "M Q"],
    *,
    stop: float = 1e-4,
    backend: str | None = None,
) -> Composited:
    """Composite packed samples: those of ray r are offset[r] … offset[r] + count[r] - 1, front to back.

    Rays follow each other without overlap, as `march_packed` numbers them: offset[r] + count[r] <= offset[r+1], and the
    last end is within M (the C++ kernel refuses anything else when it runs). Samples of no ray may hold anything.
    """
    dt = _check("composite_packed", sigma.shape, dt, stop, t=t, weighted=weighted, plain=plain)
    if offset.shape != count.shape:
        raise ValueError(f"composite_packed: offset {offset.shape} and count {count.shape} do not agree")
    module = dispatch.resolve("composite", backend)
    ranges = offset.astype(jnp.int32), count.astype(jnp.int32)
    return _run("composite_packed", module, sigma, t, dt, *ranges, weighted, plain, stop=stop)
