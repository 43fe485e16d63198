"""Feature tables of several frames, each a sum of the same tables weighted by the frame's coefficients.

  blended[b] = sum_k coefficients[b, k] * tables[k].
A neutral table is one of the K, with coefficient 1. Sums are float32. Differentiable with respect to both: the gradient
to tables[k] is sum_b coefficients[b, k] * g[b], that to coefficients[b, k] is <g[b], tables[k]>, also where the
coefficient is 0; what is not asked for is not computed.

Kernels do not read a table for a frame whose coefficient is exactly 0, so a caller that sets small coefficients to 0
saves their bytes. Tables must be finite: else such a table is NaN in some back ends, and left out in others.

For NeRFBlendShape, whose expression coefficients blend hash tables (dossier §3.1). A blended table is the parameter
"tables" of a `field`, one frame at a time (`jax.vmap` over the frames of a batch).
"""

from collections.abc import Callable

import jax
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

from tkjax.ops import dispatch


def blend_tables(
    tables: Float[Array, "K T F"], coefficients: Float[Array, "B _"], *, backend: str | None = None
) -> Float[Array, "B T F"]:
    """The blended tables [B,T,F] of B frames with coefficients [B,K]; all are float32.

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
    module = dispatch.resolve("blend_tables", backend, *tables.shape[1:])
    with jax.named_scope(f"blend_tables.{module.__name__.split('.')[-2]}"):
        return module.forward(tables, coefficients)


def differentiable(sums: Callable, products: Callable) -> Callable:
    """`blend_tables` of a back end's kernels, with gradients.

    sums(weights [M,J], arrays [J,T,F], transposed=False) -> [M,T,F], with transposed=True of weights [J,M];
    products(left [A,T,F], right [B,T,F]) -> [A,B], the inner product of each pair.
    """

    @dispatch.once_differentiable("blend_tables")
    def gradients(tables, coefficients, g):
        """The tables are there if the gradient to the coefficients is asked for, and the other way round."""
        to_tables = None if coefficients is None else sums(coefficients, g, transposed=True)
        return to_tables, None if tables is None else products(g, tables)

    @jax.custom_vjp
    def blend(tables, coefficients):
        return sums(coefficients, tables, transposed=False)

    def forward(tables, coefficients):
        kept = tables.value if coefficients.perturbed else None, coefficients.value if tables.perturbed else None
        return blend(tables.value, coefficients.value), kept

    def backward(kept, g):
        return (None, None) if isinstance(g, SymbolicZero) else gradients(*kept, g)

    blend.defvjp(forward, backward, symbolic_zeros=True)
    return blend
