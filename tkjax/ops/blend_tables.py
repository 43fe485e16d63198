"""Feature tables of several frames, each a sum of the same tables weighted by the frame's coefficients.

  blended[b] = sum_k coefficients[b, k] * tables[k].
A neutral table is one of the K, with coefficient 1. Sums are float32, in the order of k. Differentiable with respect to
both: the gradient to tables[k] is sum_b coefficients[b, k] * g[b], that to coefficients[b, k] is <g[b], tables[k]>, also
where the coefficient is 0; what is not asked for is not computed.

Kernels do not read a table for a frame whose coefficient is exactly 0, so a caller that sets small coefficients to 0
saves their bytes. Tables must be finite: else such a table is NaN in some back ends, and left out in others.

For NeRFBlendShape, whose expression coefficients blend hash tables (dossier §3.1). A blended table is the parameter
"tables" of a `field`, one frame at a time (`jax.vmap` over the frames of a batch).
"""

import jax
from jaxtyping import Array, Float

from tkjax.ops import dispatch


def blend_tables(
    tables: Float[Array, "K T F"], coefficients: Float[Array, "B K"], *, backend: str | None = None
) -> Float[Array, "B T F"]:
    """The blended tables [B,T,F] float32 of B frames. Both arguments are float32.

    Where a kernel runs, gradients cannot be differentiated again; the reference can.
    """
    if coefficients.shape[1] != tables.shape[0]:
        raise ValueError(
            f"blend_tables: coefficients {coefficients.shape} and tables {tables.shape} do not fit together; expected "
            "[B,K] and [K,T,F] with the same K"
        )
    for name, array in (("tables", tables), ("coefficients", coefficients)):
        if array.dtype != "float32":
            raise ValueError(f"blend_tables: {name} must be float32, got {array.dtype}")
    module = dispatch.resolve("blend_tables", backend)
    with jax.named_scope(f"blend_tables.{module.__name__.split('.')[-2]}"):
        return module.forward(tables, coefficients)
