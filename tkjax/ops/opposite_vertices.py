"""What lies across each edge of each face: the adjacency that `antialias` asks.

Edge k of a face is the one that faces its vertex k, between vertices k + 1 and k + 2 (mod 3). Where exactly one other
face has the same two end-points, opposite[f, k] is that face's third vertex; else -1: at the boundary of an open mesh,
and where three or more faces meet. Faces that name a vertex twice, or one below 0, are no neighbours and have -1.
"""

from jaxtyping import Array, Int

from tkjax.ops import dispatch


def opposite_vertices(faces: Int[Array, "F 3"], *, backend: str | None = None) -> Int[Array, "F 3"]:
    """Opposite vertices [F,3] of faces [F,3], int32: a sort of 3 F edges, in static shapes. Not differentiable."""
    if faces.dtype != "int32":
        raise ValueError(f"opposite_vertices: faces must be int32, got {faces.dtype}")
    return dispatch.resolve("opposite_vertices", backend).forward(faces)
