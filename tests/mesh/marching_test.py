"""Marching tetrahedra against the dossier's numbers, closedness of random surfaces, gradients and full budgets."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.mesh.surfaces import area, build, cross, directed_edges, surface, volume
from tkjax.mesh.marching import HIDDEN_CLIP, Budget, edge_weights, extract, hide_unused, interpolate
from tkjax.mesh.normals import vertex_normals
from tkjax.mesh.tets import EDGES, TetGrid, make_grid

ONE = TetGrid(
    np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32),
    np.array([[0, 1, 2, 3]], np.int32),
    np.array(EDGES, np.int32),
    np.arange(6, dtype=np.int32)[None],
)
FEW = Budget(8, 2, 4)
GRIDS = {kind: make_grid(kind, 3) for kind in ("kuhn", "five", "bcc")}


def ball(grid, radius=0.35):
    return (np.linalg.norm(grid.vertices.astype(np.float64), axis=1) - radius).astype(np.float32)


def test_one_tetrahedron_with_one_triangle():
    """Dossier dyntet §11, check 2."""
    sdf = np.array([0.2, -0.6, -0.2, -1.8], np.float32)
    positions, faces, topology = surface(ONE, sdf, FEW)
    np.testing.assert_allclose(positions[:3], [(0.25, 0, 0), (0, 0.5, 0), (0, 0, 0.1)], atol=1e-7)
    np.testing.assert_array_equal(faces, [(1, 0, 2)])
    by_sdf = jax.jit(jax.grad(lambda s: edge_weights(s, topology)[0]))(sdf)
    np.testing.assert_allclose(by_sdf, [0.9375, 0.3125, 0, 0], rtol=1e-6)


def test_one_tetrahedron_with_two_triangles():
    """Dossier dyntet §11, check 3."""
    positions, faces, topology = surface(ONE, np.array([-1, -1, 0.5, 0.5], np.float32), FEW)
    expected = [(0, 2 / 3, 0), (0, 0, 2 / 3), (1 / 3, 2 / 3, 0), (1 / 3, 0, 2 / 3)]
    np.testing.assert_allclose(positions[:4], expected, atol=1e-7)
    np.testing.assert_array_equal(faces, [(3, 0, 1), (3, 2, 0)])
    assert {k: int(v) for k, v in topology.counts.items()} == {"vertices": 4, "faces": 2, "end_points": 4}


@pytest.mark.parametrize("signs", [s for s in itertools.product((-1, 1), repeat=4) if abs(sum(s)) != 4], ids=str)
def test_every_case_faces_outwards(signs):
    """Along each triangle's normal the linear function through the four distances rises."""
    sdf = np.array(signs) * np.array([0.3, 0.7, 0.5, 0.9])
    positions, faces, _ = surface(ONE, sdf.astype(np.float32), FEW)
    assert len(faces) == (1 if abs(sum(signs)) == 2 else 2)
    gradient = sdf[1:] - sdf[0]  # of the linear function on the unit tetrahedron
    normals = cross(positions, faces)
    cosine = normals @ gradient / np.linalg.norm(normals, axis=1) / np.linalg.norm(gradient)
    np.testing.assert_allclose(cosine, 1.0, atol=1e-6)


# grid, n -> crossing tets, vertices, faces, volume (dossier dyntet §11, check 4)
BALLS = [
    ("kuhn", 8, 588, 386, 768, 0.168319),
    pytest.param("kuhn", 16, 2640, 1730, 3456, 0.176763, marks=pytest.mark.heavy),
    ("five", 8, 464, 294, 584, 0.168863),
    ("bcc", 8, 864, 566, 1128, 0.173987),
]


@pytest.mark.parametrize("kind, n, tets, vertices, faces, size", BALLS)
def test_a_ball_has_the_dossiers_counts_and_volume(kind, n, tets, vertices, faces, size):
    grid = make_grid(kind, n)
    sdf = ball(grid)
    positions, found, topology = surface(grid, sdf)
    assert (int(topology.counts["vertices"]), len(found), int(topology.counts["faces"])) == (vertices, faces, faces)
    inner = (sdf[grid.tets] > 0).sum(1)
    assert np.sum((inner > 0) & (inner < 4)) == tets
    assert volume(positions, found) == pytest.approx(size, abs=2e-6)
    edges = directed_edges(found)
    assert all(edges[b, a] == times == 1 for (a, b), times in edges.items())
    assert vertices - len(edges) // 2 + faces == 2
    middles = positions[found].mean(1)
    assert (np.einsum("ij,ij->i", cross(positions, found), middles) > 0).all()
    assert all(int(v) == 0 for v in topology.overflow.values())


def test_the_balls_area_radii_and_end_points():
    grid = make_grid("kuhn", 8)
    positions, faces, topology = surface(grid, ball(grid))
    assert area(positions, faces) == pytest.approx(1.488651, abs=2e-6) and len(directed_edges(faces)) == 2 * 1152
    assert int(topology.counts["end_points"]) == 208
    radii = np.linalg.norm(positions[np.asarray(topology.used)], axis=1)
    assert radii.min() == pytest.approx(0.33579, abs=1e-5) and radii.max() == pytest.approx(0.35, abs=1e-6)


def test_end_points_are_the_same_pairs_without_the_grid():
    grid = make_grid("bcc", 4)
    _, w, topology = build(ball(grid), grid)
    used, ends = np.asarray(topology.used), np.asarray(topology.ends)
    np.testing.assert_array_equal(np.asarray(topology.end_points)[ends][used], np.asarray(topology.edges)[used])
    n = int(topology.counts["end_points"])
    assert set(ends[used].ravel().tolist()) == set(range(n)) and len(set(topology.end_points[:n].tolist())) == n
    values = np.random.default_rng(0).normal(size=(2, len(grid.vertices), 5)).astype(np.float32)
    whole = np.asarray(interpolate(values, topology.edges, w))
    compact = interpolate(values[:, np.asarray(topology.end_points)], topology.ends, w)
    np.testing.assert_array_equal(whole[:, used], np.asarray(compact)[:, used])
    a, b = np.asarray(topology.edges)[used].T
    sdf = ball(grid).astype(np.float64)
    w64 = (sdf[a] / (sdf[a] - sdf[b]))[:, None]
    np.testing.assert_allclose(whole[:, used], values[:, a] * (1 - w64) + values[:, b] * w64, atol=1e-5)


@pytest.mark.parametrize("budget", [Budget(300, 8192, 4096), Budget(4096, 1000, 4096), Budget(4096, 8192, 100)])
def test_a_full_budget_is_counted_and_leaves_a_sound_part(budget):
    grid = make_grid("kuhn", 8)
    positions, faces, topology = surface(grid, ball(grid), budget)
    whole, all_faces, _ = surface(grid, ball(grid))
    needed = {"vertices": 386 + 1, "faces": 2 * 588, "end_points": 208}
    for name, count in needed.items():
        over = max(0, count - getattr(budget, name))
        if name != "end_points" or budget.vertices > 386:
            assert int(topology.overflow[name]) == over
    assert 0 < len(faces) < len(all_faces) and int(topology.counts["faces"]) == 768
    assert np.asarray(topology.used)[faces].all()
    known = {tuple(np.round(t, 5)) for t in whole[all_faces].reshape(-1, 9)}
    assert all(tuple(np.round(t, 5)) in known for t in positions[faces].reshape(-1, 9))


def test_a_grid_without_a_surface_gives_sentinels_and_finite_gradients():
    grid = make_grid("kuhn", 2)
    sdf = np.ones(len(grid.vertices), np.float32)
    _, faces, topology = surface(grid, sdf)
    assert len(faces) == 0 and not topology.used.any() and all(int(v) == 0 for v in topology.counts.values())
    gradient = jax.jit(jax.grad(lambda s: jnp.sum(edge_weights(s, topology))))(sdf)
    np.testing.assert_array_equal(gradient, 0.0)


def test_gradients_reach_distances_and_positions_through_jit():
    grid, budget = make_grid("kuhn", 8), Budget(512, 2048, 256)

    @jax.jit
    def size(sdf, vertices):
        topology = extract(sdf, grid, budget)
        p = interpolate(vertices, topology.edges, edge_weights(sdf, topology))[topology.faces]
        return jnp.sum(p[:, 0] * jnp.cross(p[:, 1], p[:, 2])) / 6

    sdf = ball(grid)
    by_sdf, by_vertices = jax.grad(size, (0, 1))(sdf, grid.vertices)
    # the volume shrinks by the area when the distance grows: d(volume) = -area on average
    assert float(jnp.sum(by_sdf)) == pytest.approx(-1.4887, rel=0.02)
    assert float(jnp.sum(by_vertices * grid.vertices)) == pytest.approx(
        3 * 0.168319, rel=1e-4
    )  # homogeneous of degree 3
    for k in np.argsort(-np.abs(by_sdf))[:3]:
        step = np.zeros_like(sdf)
        step[k] = 1e-3
        slope = (float(size(sdf + step, grid.vertices)) - float(size(sdf - step, grid.vertices))) / 2e-3
        assert float(by_sdf[k]) == pytest.approx(slope, rel=0.02)


@given(seed=st.integers(0, 2**31), kind=st.sampled_from(["kuhn", "five", "bcc"]))
def test_random_distances_give_a_closed_oriented_surface_up_to_the_box(seed, kind):
    grid = GRIDS[kind]
    sdf = np.random.default_rng(seed).normal(size=len(grid.vertices)).astype(np.float32)
    _, faces, topology = surface(grid, sdf)
    edges = directed_edges(faces)
    assert len(faces) == int(topology.counts["faces"]) > 0 and set(edges.values()) == {1}
    pairs = grid.vertices[np.asarray(topology.edges)]
    at_box = np.abs(pairs).min(1) == 0.5  # [M,3], on the planes of which axis both ends of the grid edge lie
    side = np.sign(pairs[:, 0])
    for a, b in edges:
        if (b, a) not in edges:
            assert (at_box[a] & at_box[b] & (side[a] == side[b])).any()


def test_unused_slots_are_hidden_behind_the_far_plane():
    clip = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    hidden = np.asarray(hide_unused(clip, np.array([True, False, False])))
    np.testing.assert_array_equal(hidden[:, 0], clip[:, 0])
    np.testing.assert_array_equal(hidden[:, 1:], np.broadcast_to(HIDDEN_CLIP, (2, 2, 4)))


@pytest.mark.parametrize("bad", [{"vertices": 1}, {"faces": 7}, {"faces": 0}, {"end_points": 0}])
def test_a_budget_that_is_none_is_refused(bad):
    with pytest.raises(ValueError, match="expected vertices"):
        Budget(**bad)


def test_normals_are_the_area_weighted_mean_and_outward_on_a_ball():
    grid = make_grid("bcc", 8)
    positions, faces, topology = surface(grid, ball(grid))
    got = np.asarray(jax.jit(vertex_normals)(positions.astype(np.float32), topology.faces))
    total = np.zeros_like(positions)
    np.add.at(total, faces, np.repeat(cross(positions, faces)[:, None], 3, 1))
    used = np.asarray(topology.used)
    length = np.linalg.norm(total[used], axis=1)
    np.testing.assert_allclose(got[used], total[used] / length[:, None], atol=2e-4)
    radial = positions[used] / np.linalg.norm(positions[used], axis=1)[:, None]
    assert np.einsum("ij,ij->i", got[used], radial).min() > 0.9
    np.testing.assert_array_equal(got[~used], np.broadcast_to([0.0, 0.0, 1.0], (np.sum(~used), 3)))


def test_normals_of_batches_and_gradients_of_zero_areas():
    p = np.array([[0, 0, 0], [2, 0, 0], [0, 1, 0], [5, 5, 5]], np.float32)
    faces = np.array([[0, 1, 2], [3, 3, 3]], np.int32)
    both = np.stack([p, p[:, [2, 0, 1]]])
    got = np.asarray(jax.jit(vertex_normals)(both, faces))
    np.testing.assert_allclose(got[0], np.broadcast_to([0, 0, 1], (4, 3)), atol=1e-7)
    np.testing.assert_allclose(got[1, :3], np.broadcast_to([1, 0, 0], (3, 3)), atol=1e-7)
    weight = np.random.default_rng(0).normal(size=p.shape).astype(np.float32)
    gradient = np.asarray(jax.jit(jax.grad(lambda x: jnp.sum(vertex_normals(x, faces) * weight)))(p))
    np.testing.assert_array_equal(gradient[3], 0.0)
    # a tilted triangle: z of vertex 2 turns the normal (0, 0, 1) towards -y by 1 per unit
    assert gradient[2, 2] == pytest.approx(-weight[:3, 1].sum(), rel=1e-5)


@pytest.mark.heavy
@pytest.mark.parametrize(
    "kind, n, tets, vertices, faces, ends",
    [("kuhn", 64, 36_072, 23_642, 47_280, 12_436), ("bcc", 51, 33_264, 21_638, 43_272, 11_632)],
)
def test_a_head_of_full_size_fits_the_default_budget(kind, n, tets, vertices, faces, ends):
    """A ball of 0.8 dm in the box of 2.5 dm (dossier dyntet §10.1); sizes of the grids (§2.6)."""
    grid = make_grid(kind, n).scaled(2.5)
    sizes = {"kuhn": (274_625, 1_572_864, 1_872_064), "bcc": (273_259, 1_591_812, 1_880_676)}
    assert (len(grid.vertices), len(grid.tets), len(grid.edges)) == sizes[kind]
    _, found, topology = surface(grid, ball(grid, 0.8), Budget())
    counts = {k: int(v) for k, v in topology.counts.items()}
    assert counts == {"vertices": vertices, "faces": faces, "end_points": ends} and len(found) == faces
    inner = (ball(grid, 0.8)[grid.tets] > 0).sum(1)
    assert np.sum((inner > 0) & (inner < 4)) == tets and not any(int(v) for v in topology.overflow.values())
