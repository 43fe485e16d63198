"""Morton (Z-order) codes of 3-D cells: bit 3k+a of the code is bit k of coordinate a (x lowest)."""

from jaxtyping import Array, Int

from tkjax.ops import dispatch


def morton_decode(code: Int[Array, "*N"], *, backend: str | None = None) -> Int[Array, "*N 3"]:
    """Cells (int32), coordinates 0…1023, of codes 0…2**30-1. Not differentiable."""
    return dispatch.resolve("morton", backend).decode(code)
