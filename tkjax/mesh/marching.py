"""Marching tetrahedra in static shapes: the surface where a signed distance on a grid is zero.

The distance is negative inside and positive outside (dossier dyntet §4). The vertex on a crossing edge (a, b), a < b:
  v = p_a (1 - w) + p_b w,   w = s_a / (s_a - s_b),   dw/ds_a = -s_b / (s_a - s_b)^2,   dw/ds_b = s_a / (s_a - s_b)^2.
With positively oriented tetrahedra every triangle's normal, (p1 - p0) x (p2 - p0), points outwards.

`extract` finds what depends on signs alone; it has no gradient. `edge_weights` and `interpolate` are differentiable,
and any attribute of grid vertices (deformed or canonical position, elasticity) takes the same weights. In training all
three run in each step; for pictures a `Topology` and its weights are found once and positions alone per frame.

Budgets are static. What exceeds one is left out, never silently: `Topology.overflow` says by how much. The last vertex
slot stays free: it is the sentinel, which the unused face slots name three times, so that their area is zero.
"""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from tkjax.mesh.tets import TetGrid
from tkjax.types import Array, Leaf

# Triangles, as edges of the tetrahedron, by case = sum of 2^k over its outer vertices k (dossier dyntet §4).
_CASES = {
    1: ((1, 0, 2),), 2: ((4, 0, 3),), 3: ((1, 4, 2), (1, 3, 4)), 4: ((3, 1, 5),), 5: ((2, 3, 0), (2, 5, 3)),
    6: ((1, 4, 0), (1, 5, 4)), 7: ((4, 2, 5),), 8: ((4, 5, 2),), 9: ((4, 1, 0), (4, 5, 1)),
    10: ((3, 2, 0), (3, 5, 2)), 11: ((1, 3, 5),), 12: ((4, 1, 2), (4, 3, 1)), 13: ((3, 0, 4),), 14: ((2, 0, 1),),
}  # fmt: skip
_NONE = (-1, -1, -1)
TRIANGLES = np.array([[*_CASES.get(case, ()), _NONE, _NONE][:2] for case in range(16)], np.int32)
HIDDEN_CLIP = (0.0, 0.0, 2.0, 1.0)  # w = 1, beyond the far plane


@dataclasses.dataclass(frozen=True)
class Budget:
    """How much a surface may have: vertices (one of them is the sentinel), face slots (two a crossing tetrahedron), and
    grid vertices at the ends of crossing edges. The defaults are about three times what a sphere of the size of a head
    needs on 64 cells a side (dossier dyntet §10.1)."""

    vertices: int = 65_536
    faces: int = 131_072
    end_points: int = 32_768

    def __post_init__(self):
        if self.vertices < 2 or self.faces < 2 or self.faces % 2 or self.end_points < 1:
            raise ValueError(f"{self}: expected vertices >= 2, faces even and >= 2, end_points >= 1")


@flax.struct.dataclass
class Topology:
    """What a surface's signs decide.

    edges: the two grid vertices of each mesh vertex. end_points: the grid vertices that occur in them, each once; ends:
    the same pairs as places in `end_points`. used: which vertex slots hold a vertex. faces: three vertices each; unused
    slots name the sentinel M - 1. counts: how many vertices, faces (triangles) and end_points there are, before
    budgets; overflow: how many vertices, face slots and end points were left out, 0 if the budget held. Where vertices
    were left out, end_points are counted among the others.
    """

    edges: Leaf[Int[Array, "M 2"]]
    ends: Leaf[Int[Array, "M 2"]]
    used: Leaf[Bool[Array, " M"]]
    faces: Leaf[Int[Array, "F 3"]]
    end_points: Leaf[Int[Array, " P"]]
    counts: dict[str, Leaf[Int[Array, ""]]]
    overflow: dict[str, Leaf[Int[Array, ""]]]


def extract(sdf: Float[Array, " V"], grid: TetGrid, budget: Budget) -> Topology:
    """The topology of the zero surface of `sdf` at the grid's vertices; 0 counts as inside, as does NaN.

    Integers and booleans only: not differentiable. Nothing of the result's shape depends on values.
    """
    outside = jax.lax.stop_gradient(sdf) > 0
    edges, tets = jnp.asarray(grid.edges), jnp.asarray(grid.tets)
    sentinel = budget.vertices - 1
    crossing = outside[edges[:, 0]] != outside[edges[:, 1]]
    kept, vertex_of, n_vertices = _compact(crossing, sentinel)
    kept = jnp.concatenate([kept, jnp.zeros(1, jnp.int32)])
    used = jnp.arange(budget.vertices) < jnp.minimum(n_vertices, sentinel)
    pairs = jnp.where(used[:, None], edges[kept], 0)

    n = outside.shape[0]
    touched = jnp.zeros(n, bool).at[jnp.where(used[:, None], pairs, n)].set(True, mode="drop")
    end_points, place_of, n_end_points = _compact(touched, budget.end_points)
    ends = place_of[pairs]
    used &= jnp.all(ends < budget.end_points, -1)

    case = jnp.sum(outside[tets] * jnp.array([1, 2, 4, 8], jnp.int32), -1)
    mixed = (case != 0) & (case != 15)
    kept, _, n_mixed = _compact(mixed, budget.faces // 2)
    filled = jnp.arange(budget.faces // 2) < n_mixed
    triangles = jnp.asarray(TRIANGLES)[jnp.where(filled, case[kept], 0)]  # [F/2,2,3] edges of the tetrahedron
    of_edges = vertex_of[jnp.asarray(grid.tet_edges)[kept]]  # [F/2,6], `sentinel` where the vertex was left out
    faces = jnp.take_along_axis(of_edges[:, None], jnp.maximum(triangles, 0), -1)
    whole = jnp.all((triangles >= 0) & used[faces], -1, keepdims=True)
    faces = jnp.where(whole, faces, sentinel).reshape(-1, 3)

    n_triangles = jnp.sum(jnp.asarray((TRIANGLES[:, :, 0] >= 0).sum(1).astype(np.int32))[case])
    counts = {"vertices": n_vertices, "faces": n_triangles, "end_points": n_end_points}
    needed = {"vertices": n_vertices + 1, "faces": 2 * n_mixed, "end_points": n_end_points}
    overflow = {name: jnp.maximum(needed[name] - getattr(budget, name), 0) for name in needed}
    pairs, ends = (jnp.where(used[:, None], x, 0) for x in (pairs, ends))
    return Topology(pairs, ends, used, faces, end_points, counts, overflow)


def _compact(mask: Bool[Array, " N"], size: int) -> tuple[Int[Array, " K"], Int[Array, " N"], Int[Array, ""]]:
    """(numbers of the first `size` true entries, 0 in free slots; the slot of each entry, `size` without one; how many
    are true)."""
    upto = jnp.cumsum(mask.astype(jnp.int32))
    slot = jnp.where(mask, jnp.minimum(upto - 1, size), size)
    numbers = jnp.arange(mask.shape[0], dtype=jnp.int32)
    return jnp.zeros(size, jnp.int32).at[slot].set(numbers, mode="drop"), slot, upto[-1]


def edge_weights(sdf: Float[Array, " V"], topology: Topology) -> Float[Array, " M"]:
    """w = s_a / (s_a - s_b) of each vertex, 0…1; 0 and without gradient in unused slots. Differentiable in both ends.

    `sdf` must have the signs that the topology was found with."""
    a, b = (sdf[topology.edges[:, k]] for k in (0, 1))
    difference = jnp.where(topology.used, a - b, 1.0)
    return jnp.where(topology.used, a / difference, 0.0)


def interpolate(
    values: Float[Array, "*B N C"], pairs: Int[Array, "M 2"], weights: Float[Array, " M"]
) -> Float[Array, "*B M C"]:
    """values_a (1 - w) + values_b w. pairs: `Topology.edges` for values of all grid vertices (N = V), `Topology.ends`
    for values of the end points alone (N = P). Differentiable in values and weights."""
    w = weights[:, None]
    return values[..., pairs[:, 0], :] * (1.0 - w) + values[..., pairs[:, 1], :] * w


def hide_unused(clip: Float[Array, "*B M 4"], used: Bool[Array, " M"]) -> Float[Array, "*B M 4"]:
    """Clip coordinates with the unused slots, the sentinel among them, behind the far plane at w = 1."""
    return jnp.where(used[:, None], clip, jnp.array(HIDDEN_CLIP, clip.dtype))
