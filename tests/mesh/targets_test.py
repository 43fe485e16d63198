"""Distances to an ellipsoid and to meshes, against a loop over triangles and the winding number."""

import math

import numpy as np
import pytest

from tests.mesh.surfaces import surface
from tkjax.errors import UserError
from tkjax.mesh.targets import closest_barycentric, ellipsoid, mesh_distance
from tkjax.mesh.tets import make_grid

RNG = np.random.default_rng(0)


def ball():
    grid = make_grid("bcc", 6)
    sdf = (np.linalg.norm(grid.vertices, axis=1) - 0.35).astype(np.float32)
    positions, faces, _ = surface(grid, sdf)
    return positions, faces


def winding(points, corners):
    """The share of the sphere that a mesh covers, seen from each point: 1 inside a closed one, 0 outside."""
    a, b, c = (corners[None, :, k] - points[:, None] for k in range(3))
    la, lb, lc = (np.linalg.norm(x, axis=2) for x in (a, b, c))
    dot = lambda x, y: np.einsum("pfc,pfc->pf", x, y)  # noqa: E731
    numerator = dot(a, np.cross(b, c))
    return np.arctan2(numerator, la * lb * lc + dot(a, b) * lc + dot(b, c) * la + dot(c, a) * lb).sum(1) / (2 * math.pi)


def nearest_by_search(p, triangle):
    """Distance by trying many points of a triangle."""
    u, v = np.meshgrid(np.linspace(0, 1, 201), np.linspace(0, 1, 201))
    keep = u + v <= 1
    u, v = u[keep][:, None], v[keep][:, None]
    at = triangle[0] * (1 - u - v) + triangle[1] * u + triangle[2] * v
    return np.linalg.norm(at - p, axis=1).min()


def test_the_ellipsoid_is_zero_on_its_surface():
    d = RNG.normal(size=(5, 3))
    d /= np.linalg.norm(d, axis=1, keepdims=True)
    d = d.astype(np.float32)
    np.testing.assert_allclose(ellipsoid(0.8 * d), 0, atol=1e-6)
    np.testing.assert_allclose(ellipsoid(0.2 * d), -0.75, atol=1e-6)
    radii = np.array([0.7, 0.9, 0.6], np.float32)
    np.testing.assert_allclose(ellipsoid(2 * radii * d, radii), 1, atol=1e-6)


def test_the_nearest_point_of_a_triangle_is_where_a_search_finds_it():
    corners = RNG.normal(size=(40, 3, 3))
    points = RNG.normal(size=(40, 3)) * 1.5
    bary = closest_barycentric(points, corners)
    assert (bary >= 0).all() and np.allclose(bary.sum(1), 1)
    got = np.linalg.norm(points - np.einsum("nk,nkc->nc", bary, corners), axis=1)
    searched = np.array([nearest_by_search(p, t) for p, t in zip(points, corners)])
    assert (got <= searched + 1e-12).all() and (searched - got < 0.02).all()
    assert {int((b == 0).sum()) for b in bary} == {0, 1, 2}  # inside, on an edge, at a vertex


def test_distances_to_a_closed_mesh_have_the_winding_numbers_sign():
    positions, faces = ball()
    points = np.concatenate([RNG.uniform(-0.5, 0.5, (300, 3)), positions[faces].mean(1)[:50] * 1.01])
    got = mesh_distance(points, positions, faces)
    corners = positions[faces]
    every = [
        np.linalg.norm(p - np.einsum("fk,fkc->fc", closest_barycentric(np.tile(p, (len(faces), 1)), corners), corners),
                       axis=1).min()
        for p in points
    ]  # fmt: skip
    np.testing.assert_allclose(np.abs(got), every, atol=1e-12)
    inside = winding(points, corners) > 0.5
    assert inside.any() and not inside.all()
    np.testing.assert_array_equal(got < 0, inside)


def test_an_open_mesh_has_its_inside_behind_its_faces():
    """A square: in front of it positive, behind it negative, and the sign goes on beyond its rim."""
    vertices = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], float)
    faces = np.array([[0, 1, 2], [0, 2, 3]])
    points = np.array([[0.3, 0.4, 0.2], [0.5, 0.5, -0.3], [2.0, 0.5, 0.1], [-1.0, -1.0, -0.1]])
    got = mesh_distance(points, vertices, faces)
    np.testing.assert_allclose(got, [0.2, -0.3, math.sqrt(1.01), -math.sqrt(2.01)], atol=1e-12)


def test_a_sharp_edge_does_not_turn_the_sign():
    """Beside the edge of a thin wedge a single face's normal would say inside."""
    a = 0.1
    vertices = np.array([[0, 0, 0], [0, 1, 0], [-1, 0, a], [-1, 1, a], [-1, 0, -a], [-1, 1, -a]])
    faces = np.array([[0, 1, 2], [1, 3, 2], [0, 4, 1], [1, 4, 5]])  # normals up and down, edge along y at x = 0
    assert (mesh_distance(np.array([[0.5, 0.5, 0.02], [0.5, 0.5, -0.02]]), vertices, faces) > 0).all()
    assert mesh_distance(np.array([[-0.8, 0.5, 0.0]]), vertices, faces)[0] < 0


def test_no_points_have_no_distances():
    assert mesh_distance(np.zeros((0, 3)), *ball()).shape == (0,)


@pytest.mark.parametrize(
    "vertices, faces, message",
    [
        (np.zeros((3, 3)), np.zeros((0, 3), int), "do not fit"),
        (np.eye(3), np.array([[0, 1, 3]]), "do not fit"),
        (np.full((3, 3), np.nan), np.array([[0, 1, 2]]), "do not fit"),
        (np.ones((3, 3)), np.array([[0, 1, 2]]), "no area"),
    ],
)
def test_a_mesh_that_is_none_is_refused(vertices, faces, message):
    with pytest.raises(UserError, match=message):
        mesh_distance(np.zeros((1, 3)), vertices, faces)
