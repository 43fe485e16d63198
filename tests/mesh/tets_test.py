"""The grids' counts, volumes and neighbours, and what a grid file is refused for."""

import itertools
from collections import Counter

import numpy as np
import pytest

from tkjax.errors import UserError
from tkjax.mesh.tets import EDGES, KINDS, load_grid, make_grid, signed_volumes

FACES = tuple(itertools.combinations(range(4), 3))
# V, T, E, F (dossier dyntet §11, check 1)
COUNTS = [
    ("kuhn", 1, (8, 6, 19, 18)),
    ("kuhn", 2, (27, 48, 98, 120)),
    ("five", 2, (27, 40, 90, 104)),
    ("bcc", 2, (35, 96, 154, 216)),
    ("bcc", 4, (189, 768, 1052, 1632)),
]
TET = {"vertices": np.array([[0, 0, 0], [0.5, 0, 0], [0, 0.5, 0], [0, 0, 0.5]]), "indices": np.array([[0, 1, 2, 3]])}


def triangles(grid):
    """How many tetrahedra share each triangle."""
    return Counter(tuple(sorted(tet[list(f)].tolist())) for tet in grid.tets for f in FACES)


@pytest.mark.parametrize("kind, n, counts", COUNTS)
def test_counts_are_the_dossiers_and_fill_a_ball(kind, n, counts):
    grid, shared = make_grid(kind, n), triangles(make_grid(kind, n))
    assert (len(grid.vertices), len(grid.tets), len(grid.edges), len(shared)) == counts
    v, t, e, f = counts
    assert v - e + f - t == 1
    assert set(shared.values()) <= {1, 2}
    at_box = [np.abs(grid.vertices[list(tri)]).min(0).max() for tri, times in shared.items() if times == 1]
    assert len(at_box) == 12 * n * n and np.allclose(at_box, 0.5)


@pytest.mark.parametrize("kind, least", [("kuhn", 1 / 48), ("five", 1 / 48), ("bcc", 1 / 96)])
def test_tetrahedra_are_positively_oriented_and_fill_the_box(kind, least):
    grid = make_grid(kind, 2)
    volumes = signed_volumes(grid.vertices, grid.tets)
    assert volumes.min() == pytest.approx(least) and volumes.sum() == pytest.approx(1.0)
    assert (grid.vertices.min(0) == -0.5).all() and (grid.vertices.max(0) == 0.5).all()


@pytest.mark.parametrize("kind", KINDS)
def test_edge_tables_name_each_edge_once(kind):
    grid = make_grid(kind, 3)
    assert (grid.edges[:, 0] < grid.edges[:, 1]).all()
    keys = grid.edges[:, 0].astype(np.int64) * len(grid.vertices) + grid.edges[:, 1]
    assert (np.diff(keys) > 0).all()
    np.testing.assert_array_equal(grid.edges[grid.tet_edges], np.sort(grid.tets[:, np.array(EDGES)], -1))
    assert set(grid.tet_edges.ravel().tolist()) == set(range(len(grid.edges)))


def test_a_scaled_grid_keeps_its_tables():
    grid = make_grid("kuhn", 2)
    large = grid.scaled(2.5)
    assert large.vertices.max() == 1.25 and large.vertices.dtype == np.float32 and large.edges is grid.edges
    with pytest.raises(ValueError, match="positive"):
        grid.scaled(0.0)


@pytest.mark.parametrize("kind, n, message", [("cubes", 2, "choose kuhn"), ("bcc", 1, "at least 2"), ("kuhn", 0, "1 ")])
def test_a_grid_that_is_none_is_refused(kind, n, message):
    with pytest.raises(ValueError, match=message):
        make_grid(kind, n)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_file_gives_the_grid_back_and_turns_what_is_turned(save, tmp_path):
    grid = make_grid("bcc", 2)
    turned = grid.tets[:, [1, 0, 2, 3]].astype(np.int64)
    save(tmp_path / "g.npz", vertices=grid.vertices.astype(np.float64), indices=turned)
    read = load_grid(tmp_path / "g.npz")
    assert (signed_volumes(read.vertices, read.tets) > 0).all() and read.tets.dtype == np.int32
    np.testing.assert_array_equal(read.vertices, grid.vertices)
    np.testing.assert_array_equal(np.sort(read.tets, 1), np.sort(grid.tets, 1))
    np.testing.assert_array_equal(read.edges, grid.edges)


BAD = {
    "vertices missing": ({"vertices": None}, "member vertices is missing"),
    "indices missing": ({"indices": None}, "member indices is missing"),
    "outside": ({"vertices": TET["vertices"] + 0.1}, "member vertices leaves"),
    "nan": ({"vertices": TET["vertices"] * np.nan}, "member vertices leaves"),
    "flat": ({"vertices": TET["vertices"][:, :2]}, r"member vertices is float64 \(4, 2\)"),
    "integers": ({"vertices": np.zeros((4, 3), int)}, "expected floating"),
    "floats": ({"indices": TET["indices"] * 1.0}, "expected whole numbers"),
    "triangles": ({"indices": TET["indices"][:, :3]}, "expected whole numbers"),
    "empty": ({"indices": np.zeros((0, 4), int)}, "expected whole numbers"),
    "too large": ({"indices": TET["indices"] + 1}, "has 1 to 4, expected vertices 0 to 3"),
    "negative": ({"indices": TET["indices"] - 1}, "has -1 to 2"),
    "twice": ({"indices": np.array([[0, 1, 1, 2]])}, "twice"),
    "pickled": ({"vertices": np.array([None], object)}, "not readable"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_wrong_file_is_refused_in_one_sentence(case, tmp_path):
    change, message = BAD[case]
    path = tmp_path / "g.npz"
    np.savez(path, **{name: a for name, a in {**TET, **change}.items() if a is not None})
    with pytest.raises(UserError, match=message) as caught:
        load_grid(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 no archive", None])
def test_what_is_no_archive_is_refused(data, tmp_path):
    if data is not None:
        (tmp_path / "g.npz").write_bytes(data)
    with pytest.raises(UserError, match="expected"):
        load_grid(tmp_path / "g.npz")


def test_damaged_bytes_are_refused(tmp_path):
    path = tmp_path / "g.npz"
    np.savez(path, **TET)
    raw = bytearray(path.read_bytes())
    raw[raw.index(TET["vertices"].tobytes()) + 9] ^= 1
    path.write_bytes(raw)
    with pytest.raises(UserError, match="member vertices is not readable"):
        load_grid(path)
