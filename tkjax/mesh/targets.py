"""Signed distances that a surface starts from, negative inside: an ellipsoid, or a mesh that need not be closed.

The network of distances is fitted to one of them before training, on all grid vertices (dossier dyntet §5).
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from tkjax.errors import UserError
from tkjax.types import Array

ELLIPSOID_RADIUS = 0.8  # dm (dossier dyntet §5)
POINTS_A_BLOCK = 64


def ellipsoid(points: Float[Array, "*N 3"], radii: float | Float[Array, "3"] = ELLIPSOID_RADIUS) -> Float[Array, "*N"]:
    """|x / radii| - 1: zero on the ellipsoid, -1 in its middle; a distance in units of the radius. Differentiable but
    in the middle."""
    return jnp.sqrt(jnp.sum(jnp.square(points / radii), -1)) - 1.0


def mesh_distance(
    points: Float[np.ndarray, "N 3"], vertices: Float[np.ndarray, "V 3"], faces: Int[np.ndarray, "F 3"]
) -> Float[np.ndarray, " N"]:
    """Distance to the nearest triangle, float64; positive on the side that its normal (p1 - p0) x (p2 - p0) points to.

    The side is told by the angle-weighted normal of what is nearest (a face, an edge or a vertex; Baerentzen and Aanaes
    2005), which is right everywhere for a closed mesh, and goes on through the rim of an open one as if its border
    faces went on flat. Numpy, at set-up: points are visited in blocks of neighbours, each with the triangles that can
    be nearest to one of them. UserError for a mesh without triangles, with such of no area only, or not finite.
    """
    vertices, faces = np.asarray(vertices, np.float64), np.asarray(faces, np.int64)
    if not len(faces) or faces.min() < 0 or faces.max() >= len(vertices) or not np.isfinite(vertices).all():
        raise UserError(
            f"mesh: {len(vertices)} vertices and {len(faces)} faces do not fit, expected finite vertices and faces of "
            "them"
        )
    corners = vertices[faces]
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    faces, corners = faces[area > 0], corners[area > 0]
    if not len(faces):
        raise UserError("mesh: all faces have no area, expected triangles")
    normals = _feature_normals(faces, corners, len(vertices))
    centres = corners.mean(1)
    radii = np.linalg.norm(corners - centres[:, None], axis=2).max(1)

    points = np.asarray(points, np.float64)
    out = np.empty(len(points))
    for block in _blocks(points):
        p = points[block]
        middle = (p.max(0) + p.min(0)) / 2
        reach = np.linalg.norm(p - middle, axis=1).max()
        to_centre = np.linalg.norm(centres - middle, axis=1)
        # the nearest triangle of the middle is at most that far from it, and from a point of the block `reach` more
        most = (to_centre + radii).min() + 2 * reach
        near = np.flatnonzero(to_centre - radii <= most)
        out[block] = _signed(p, near, corners, centres, radii, normals)
    return out


def _blocks(points: np.ndarray):
    """Numbers of points in blocks of neighbours: halves along the longest side of their box."""
    waiting = [np.arange(len(points))] if len(points) else []
    while waiting:
        block = waiting.pop()
        if len(block) <= POINTS_A_BLOCK:
            yield block
            continue
        axis = np.argmax(np.ptp(points[block], axis=0))
        order = block[np.argsort(points[block, axis], kind="stable")]
        waiting += [order[: len(order) // 2], order[len(order) // 2 :]]


def _signed(p, near, corners, centres, radii, normals) -> np.ndarray:
    """Signed distances [n] of points [n,3] to the triangles `near`."""
    to_centre = np.sqrt(np.maximum(_squares(p, centres[near]), 0))
    most = (to_centre + radii[near]).min(1)
    point, k = np.nonzero(to_centre - radii[near] <= most[:, None] + 1e-9)
    triangle = near[k]
    bary = closest_barycentric(p[point], corners[triangle])
    offset = p[point] - np.einsum("nk,nkc->nc", bary, corners[triangle])
    square = np.einsum("nc,nc->n", offset, offset)
    order = np.lexsort((square, point))
    best = order[np.searchsorted(point[order], np.arange(len(p)))]
    t, b, offset = triangle[best], bary[best], offset[best]
    # the feature: 0-2 the vertex, 3-5 the edge opposite to it, 6 the face
    zero = b <= 1e-12
    count = zero.sum(1)
    feature = np.where(count == 2, np.argmin(zero, 1), np.where(count == 1, 3 + np.argmax(zero, 1), 6))
    side = np.einsum("nc,nc->n", offset, normals[t, feature])
    return np.where(side < 0, -1.0, 1.0) * np.sqrt(square[best])


def _squares(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.sum(a * a, 1)[:, None] + np.sum(b * b, 1) - 2 * a @ b.T


def _feature_normals(faces: np.ndarray, corners: np.ndarray, n_vertices: int) -> np.ndarray:
    """[F,7,3]: the normals of each face's three vertices (weighted by angle), of the edges opposite to them (summed
    over the faces that share one), and its own. Not all unit vectors: signs are what counts."""
    own = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    own /= np.linalg.norm(own, axis=1, keepdims=True)
    of_vertices = np.zeros((n_vertices, 3))
    edges = np.empty((len(faces), 3), np.int64)
    for k in range(3):
        a, b = (corners[:, (k + j) % 3] - corners[:, k] for j in (1, 2))
        cosine = np.einsum("fc,fc->f", a, b) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
        np.add.at(of_vertices, faces[:, k], np.arccos(np.clip(cosine, -1, 1))[:, None] * own)
        ends = np.sort(faces[:, [(k + 1) % 3, (k + 2) % 3]], 1)
        edges[:, k] = ends[:, 0] * n_vertices + ends[:, 1]
    _, number = np.unique(edges, return_inverse=True)
    number = number.reshape(edges.shape)
    of_edges = np.zeros((number.max() + 1, 3))
    for k in range(3):
        np.add.at(of_edges, number[:, k], own)
    return np.concatenate([of_vertices[faces], of_edges[number], own[:, None]], 1)


def closest_barycentric(p: Float[np.ndarray, "N 3"], corners: Float[np.ndarray, "N 3 3"]) -> Float[np.ndarray, "N 3"]:
    """Barycentric coordinates of the point of each triangle that is nearest to p, exact zeros on edges and vertices."""
    a, b, c = (corners[:, k] for k in range(3))
    ab, ac = b - a, c - a
    dot = lambda x, y: np.einsum("nc,nc->n", x, y)  # noqa: E731
    normal = np.cross(ab, ac)
    area = dot(normal, normal)
    v = dot(np.cross(p - a, ac), normal) / area
    w = dot(np.cross(ab, p - a), normal) / area
    out = np.stack([1 - v - w, v, w], -1)
    outside = (out < 0).any(1)
    best = np.full(len(p), math.inf)
    for i, j in ((0, 1), (1, 2), (2, 0)):
        start, along = corners[:, i], corners[:, j] - corners[:, i]
        t = np.clip(dot(p - start, along) / np.maximum(dot(along, along), 1e-300), 0, 1)
        off = p - start - t[:, None] * along
        square = dot(off, off)
        closer = outside & (square < best)
        best = np.where(closer, square, best)
        edge = np.zeros_like(out)
        edge[:, i], edge[:, j] = 1 - t, t
        out = np.where(closer[:, None], edge, out)
    return out
