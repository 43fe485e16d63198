"""Tetrahedral grids on [-0.5, 0.5]^3: three generators, one file format, and the tables that marching reads.

All tetrahedra are positively oriented: (p1 - p0) . ((p2 - p0) x (p3 - p0)) > 0. With n cells a side (dossier dyntet
§2.6; V vertices, T tetrahedra, E edges, F triangles):

| kind | V | T | E | F |
|---|---|---|---|---|
| kuhn: 6 a cell, one for each order of the axes | (n+1)^3 | 6 n^3 | 7n^3 + 9n^2 + 3n | 12n^3 + 6n^2 |
| five: 5 a cell, cells of odd parity mirrored | (n+1)^3 | 5 n^3 | 6n^3 + 9n^2 + 3n | 10n^3 + 6n^2 |
| bcc: corners and centres; the best shaped | (n+1)^3 + n^3 | 12 n^3 | 14n^3 + 9n^2 + 3n | 24n^3 + 6n^2 |

Numpy, once at set-up; nothing here is differentiable.
"""

import itertools
import math
import zipfile
import zlib
from pathlib import Path

import flax.struct
import numpy as np
from jaxtyping import Float, Int

from tkjax.errors import UserError
from tkjax.types import Array, Leaf

KINDS = ("kuhn", "five", "bcc")
EDGES = ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))  # of a tetrahedron, in the order of the tables (§4)
LARGEST_BYTES = 1 << 28  # of a member; the finest grid that is known (277 410 vertices, 1 524 684 tets) has 24 MB


@flax.struct.dataclass
class TetGrid:
    """A grid with its tables; a pytree, so that a compiled step takes it as an argument.

    edges: of all tetrahedra, each once, its smaller vertex first, in lexicographic order. tet_edges: the number of each
    of a tetrahedron's edges, in the order of `EDGES`.
    """

    vertices: Leaf[Float[Array, "V 3"]]
    tets: Leaf[Int[Array, "T 4"]]
    edges: Leaf[Int[Array, "E 2"]]
    tet_edges: Leaf[Int[Array, "T 6"]]

    def scaled(self, size: float) -> "TetGrid":
        """The grid with its vertices times `size` > 0, the side of its box (dossier dyntet §8: 2.5 dm)."""
        if not (size > 0 and math.isfinite(size)):
            raise ValueError(f"a grid's size must be positive, got {size}")
        return self.replace(vertices=(self.vertices * np.float32(size)).astype(np.float32))


def make_grid(kind: str, n: int) -> TetGrid:
    """The grid of `kind` (`KINDS`) with n cells a side: n >= 1, for bcc n >= 2. ValueError otherwise."""
    if kind not in KINDS:
        raise ValueError(f"tetrahedral grid {kind!r} is unknown; choose {', '.join(KINDS)}")
    if n < (least := 2 if kind == "bcc" else 1):
        raise ValueError(f"a {kind} grid has at least {least} cells a side, got {n}")
    lattice, tets = {"kuhn": _kuhn, "five": _five, "bcc": _bcc}[kind](n)
    return _with_tables(lattice / n - 0.5, tets)


def load_grid(path: str | Path) -> TetGrid:
    """The grid of a file `<res>_tets.npz`: `vertices` float [V,3] in [-0.5, 0.5], `indices` whole numbers [T,4].

    Dossier dyntet §2.6. Compressed or not, nothing is unpickled. Tetrahedra of negative volume are turned (the sign in
    the shipped file is not known, §12). UserError names file, member and what was expected.
    """
    arrays = {name: _member(path, name) for name in ("vertices", "indices")}
    vertices, tets = arrays["vertices"], arrays["indices"]

    def refuse(member: str, found: str, expected: str) -> UserError:
        return UserError(f"{path}: member {member} {found}, expected {expected}")

    if vertices.dtype.kind != "f" or vertices.ndim != 2 or vertices.shape[1] != 3 or not len(vertices):
        raise refuse("vertices", f"is {vertices.dtype} {vertices.shape}", "floating point (V, 3)")
    if tets.dtype.kind not in "iu" or tets.ndim != 2 or tets.shape[1] != 4 or not len(tets):
        raise refuse("indices", f"is {tets.dtype} {tets.shape}", "whole numbers (T, 4)")
    if not np.isfinite(vertices).all() or np.abs(vertices).max() > 0.5:
        raise refuse("vertices", "leaves the box or is not finite", "coordinates in [-0.5, 0.5]")
    if tets.min() < 0 or tets.max() >= len(vertices):
        raise refuse("indices", f"has {tets.min()} to {tets.max()}", f"vertices 0 to {len(vertices) - 1}")
    ordered = np.sort(tets, 1)
    if (ordered[:, 1:] == ordered[:, :-1]).any():
        raise refuse("indices", "names a vertex twice in one tetrahedron", "four different ones")
    return _with_tables(vertices, tets.astype(np.int64))


def _member(path: str | Path, name: str) -> np.ndarray:
    """One array of an npz of bounded size."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = archive.getinfo(f"{name}.npy").file_size
        if size > LARGEST_BYTES:
            raise UserError(f"{path}: member {name} has {size} bytes, expected at most {LARGEST_BYTES}")
        with np.load(path, allow_pickle=False) as arrays:
            return arrays[name]
    except OSError as e:
        raise UserError(f"{path}: {e.strerror or e}, expected a grid of tetrahedra (.npz)") from e
    except KeyError as e:
        raise UserError(f"{path}: member {name} is missing, expected vertices and indices") from e
    except UserError:
        raise
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError) as e:
        raise UserError(f"{path}: member {name} is not readable, expected an npz of plain arrays") from e


def signed_volumes(vertices: Float[np.ndarray, "V 3"], tets: Int[np.ndarray, "T 4"]) -> Float[np.ndarray, " T"]:
    """det(p1 - p0, p2 - p0, p3 - p0) / 6 in float64: positive where a tetrahedron is positively oriented."""
    p = np.asarray(vertices, np.float64)[tets]
    a, b, c = (p[:, k] - p[:, 0] for k in (1, 2, 3))
    return np.einsum("ij,ij->i", a, np.cross(b, c)) / 6.0


def _with_tables(vertices: np.ndarray, tets: np.ndarray) -> TetGrid:
    """Orients the tetrahedra and numbers their edges."""
    turned = signed_volumes(vertices, tets) < 0
    tets[turned] = tets[turned][:, [0, 1, 3, 2]]
    pairs = np.sort(tets[:, np.array(EDGES)], -1).reshape(-1, 2)
    keys, tet_edges = np.unique(pairs[:, 0] * len(vertices) + pairs[:, 1], return_inverse=True)
    edges = np.stack(np.divmod(keys, len(vertices)), -1)
    return TetGrid(
        np.asarray(vertices, np.float32), tets.astype(np.int32), edges.astype(np.int32),
        tet_edges.reshape(-1, len(EDGES)).astype(np.int32),
    )  # fmt: skip


def _lattice(n: int) -> np.ndarray:
    """Whole coordinates [n^3, 3], the last axis fastest."""
    return np.stack(np.meshgrid(*[np.arange(n)] * 3, indexing="ij"), -1).reshape(-1, 3)


def _number(at: np.ndarray, n: int) -> np.ndarray:
    """The place of lattice points in `_lattice(n)`."""
    return (at[..., 0] * n + at[..., 1]) * n + at[..., 2]


def _kuhn(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Each tetrahedron walks from a cell's lowest corner to its highest, one axis after the other."""
    steps = np.zeros((6, 4, 3), np.int64)
    for k, order in enumerate(itertools.permutations(range(3))):
        steps[k, 1:] = np.cumsum(np.eye(3, dtype=np.int64)[list(order)], 0)
    corners = _lattice(n)[:, None, None] + steps
    return _lattice(n + 1), _number(corners, n + 1).reshape(-1, 4)


def _five(n: int) -> tuple[np.ndarray, np.ndarray]:
    """A regular tetrahedron in each cell and one at each of the other four corners."""
    middle = ("100", "010", "001", "111")
    others = [(c, *(m for m in middle if sum(a != b for a, b in zip(c, m)) == 1)) for c in ("000", "110", "101", "011")]
    cell = np.array([[[int(bit) for bit in corner] for corner in tet] for tet in (middle, *others)])
    mirrored = cell.copy()
    mirrored[..., 0] = 1 - mirrored[..., 0]
    cells = _lattice(n)
    odd = cells.sum(1) % 2 == 1
    corners = cells[:, None, None] + np.where(odd[:, None, None, None], mirrored, cell)
    return _lattice(n + 1), _number(corners, n + 1).reshape(-1, 4)


def _bcc(n: int) -> tuple[np.ndarray, np.ndarray]:
    """The centres of two neighbouring cells and an edge of the face between them; at the box a centre and half a
    face."""
    cells, axes, tets = _lattice(n), np.eye(3, dtype=np.int64), []
    first_centre = (n + 1) ** 3
    for axis in range(3):
        e, u, v = axes[axis], axes[(axis + 1) % 3], axes[(axis + 2) % 3]
        square = np.array([0 * u, u, u + v, v])
        for side in (0, 1):
            at_box = cells[cells[:, axis] == (n - 1) * side]
            face = _number(at_box[:, None] + side * e + square, n + 1)
            centre = first_centre + _number(at_box, n)
            tets += [np.stack([centre, *face[:, list(half)].T], -1) for half in ((0, 1, 2), (0, 2, 3))]
        inner = cells[cells[:, axis] < n - 1]
        face = _number(inner[:, None] + e + square, n + 1)
        centres = [first_centre + _number(at, n) for at in (inner, inner + e)]
        tets += [np.stack([*centres, face[:, k], face[:, (k + 1) % 4]], -1) for k in range(4)]
    return np.concatenate([_lattice(n + 1), cells + 0.5]), np.concatenate(tets)
