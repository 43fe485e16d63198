"""Real spherical harmonics of unit directions, constants and order of the RAD-NeRF family (er-nerf dossier §3)."""

from jaxtyping import Array, Float

from tkjax.ops import dispatch


def sh_encode(directions: Float[Array, "*N 3"], degree: int = 4, *, backend: str | None = None) -> Float[Array, "*N C"]:
    """degree**2 values per direction, degree 1 to 4. Differentiable. Off the sphere the polynomials stand."""
    if not 1 <= degree <= 4:
        raise ValueError(f"sh_encode: degree must be 1 to 4, got {degree}")
    return dispatch.resolve("sh_encode", backend).forward(directions, degree)
