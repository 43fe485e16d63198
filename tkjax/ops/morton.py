"""Morton (Z-order) codes of 3-D cells: bit 3k+a of the code is bit k of coordinate a (x lowest)."""

from jaxtyping import Array, Int

from tkjax.ops import dispatch


def morton_encode(cell: Int[Array, "*N 3"], *, backend: str | None = None) -> Int[Array, "*N"]:
    """Codes (int32) of cells with coordinates 0…1023; higher bits are ignored. Not differentiable."""
    return dispatch.resolve("morton", backend).encode(cell)


def morton_decode(code: Int[Array, "*N"], *, backend: str | None = None) -> Int[Array, "*N 3"]:
    """Cells (int32) of codes 0…2**30-1: the inverse of `morton_encode`."""
    return dispatch.resolve("morton", backend).decode(code)
