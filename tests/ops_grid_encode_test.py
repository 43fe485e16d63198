"""grid_encode against an independent float64 loop, and the dossiers' known values."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import oracle
from tkjax.ops import GridSpec, grid_encode

HEAD = GridSpec(dims=2, levels=12, features=1, base=64, finest=512, log2_entries=14, kind="hash")
TORSO = GridSpec(dims=2, levels=16, features=2, base=16, finest=2048, log2_entries=16, kind="tiled")
# Small grids of every kind: levels that fit, levels that wrap, one and several features.
SPECS = {
    "planes": GridSpec(2, 5, 1, 4, 40, 8, "hash"),
    "tiled2d": GridSpec(2, 4, 2, 4, 50, 8, "tiled"),
    "tiled3d": GridSpec(3, 4, 2, 3, 40, 9, "tiled"),  # the last level leaves a dimension out
    "hash3d": GridSpec(3, 4, 4, 3, 24, 9, "hash", "smoothstep"),
    "unpadded": GridSpec(3, 3, 1, 4, 16, 10, "hash", pad=1),
    "one_level": GridSpec(2, 1, 2, 8, 8, 5, "hash"),
}
PLANES = {"planes": 3, "tiled2d": 2}


@functools.cache
def jitted(name):
    return jax.jit(lambda points, tables: grid_encode(points, tables, SPECS[name]))


@functools.cache
def gradients(name):
    return jax.jit(jax.grad(lambda points, tables: jnp.sum(jitted(name)(points, tables)), (0, 1)))


def expected(name, points, tables):
    s = SPECS[name]
    return oracle.grid_encode(
        points, tables, levels=s.levels, base=s.base, finest=s.finest, log2_entries=s.log2_entries, kind=s.kind,
        interpolation=s.interpolation, pad=s.pad,
    )  # fmt: skip


def inputs(name, seed, n=24):
    spec, planes, rng = SPECS[name], PLANES.get(name, 1), np.random.default_rng(seed)
    points = rng.uniform(-0.1, 1.1, (n, planes, spec.dims)).astype(np.float32)
    points[0], points[1] = 0.0, 1.0  # corners belong to the grid
    tables = rng.normal(size=(planes, spec.entries, spec.features)).astype(np.float32)
    return points, tables


@pytest.mark.parametrize("name", SPECS)
@given(seed=st.integers(0, 2**31))
def test_forward_equals_the_loop(name, seed):
    points, tables = inputs(name, seed)
    np.testing.assert_allclose(jitted(name)(points, tables), expected(name, points, tables), atol=2e-4)


@pytest.mark.parametrize("name", SPECS)
def test_table_gradient_is_the_transpose_of_the_loop(name):
    points, tables = inputs(name, 3)
    out, vjp = jax.vjp(lambda t: jitted(name)(points, t), tables)
    g = np.random.default_rng(4).normal(size=out.shape).astype(np.float32)
    direction = np.random.default_rng(5).normal(size=tables.shape)
    # The op is linear in the tables, so <g, A v> of the loop is <A' g, v>.
    np.testing.assert_allclose(
        np.sum(g * expected(name, points, direction)), np.sum(np.asarray(vjp(g)[0]) * direction), rtol=2e-4, atol=2e-3
    )


@pytest.mark.parametrize("name", ["planes", "tiled2d", "hash3d"])
def test_point_gradient_equals_finite_differences(name):
    points, tables = inputs(name, 6, n=10)
    points = np.clip(points, 0.02, 0.98)
    g = np.random.default_rng(7).normal(size=jitted(name)(points, tables).shape)
    got = jax.grad(lambda x: jnp.sum(jitted(name)(x, tables) * g))(points)
    step, checked = 1e-5, 0
    for index in np.ndindex(*points.shape):
        moved = [points.astype(np.float64) for _ in range(2)]
        moved[0][index] += step
        moved[1][index] -= step
        up, here, down = (
            np.sum(expected(name, p, tables) * g) for p in (moved[0], points.astype(np.float64), moved[1])
        )
        if abs(up + down - 2 * here) > 1e-4 * abs(up - down) + 1e-6:
            continue  # a cell border lies in between: the slope jumps
        np.testing.assert_allclose(got[index], (up - down) / (2 * step), rtol=2e-2, atol=0.2)
        checked += 1
    assert checked > points.size // 2


@pytest.mark.parametrize("bad", [-1e-6, 1.0000001, np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("name", ["planes", "hash3d"])
def test_points_outside_give_zero_and_zero_gradient(name, bad):
    points, tables = inputs(name, 8)
    points = np.full_like(points, 0.4)
    points[..., 1] = bad
    for value in (jitted(name)(points, tables), *gradients(name)(points, tables)):
        np.testing.assert_array_equal(value, 0.0)


@pytest.mark.parametrize("name", SPECS)
def test_a_constant_grid_encodes_to_the_constant(name):
    spec, planes = SPECS[name], PLANES.get(name, 1)
    points = np.random.default_rng(9).uniform(size=(24, planes, spec.dims)).astype(np.float32)
    tables = np.full((planes, spec.entries, spec.features), 0.7, np.float32)
    np.testing.assert_allclose(jitted(name)(points, tables), 0.7, atol=1e-5)


def test_vmap_over_tables_equals_a_loop():
    points, _ = inputs("planes", 1)
    tables = np.stack([inputs("planes", seed)[1] for seed in (1, 2)])
    mapped = jax.vmap(jitted("planes"), (None, 0))(points, tables)
    np.testing.assert_allclose(mapped, np.stack([jitted("planes")(points, t) for t in tables]), atol=1e-6)


@pytest.mark.parametrize("n", [0, 1])
def test_few_points(n):
    points, tables = inputs("planes", 1)
    assert jitted("planes")(points[:n], tables).shape == (n, 3, 5)


# -- known values (er-nerf dossier §11)


def test_head_levels():
    assert HEAD.per_level_scale == pytest.approx(8 ** (1 / 11), rel=1e-12)  # 1.208089
    scales = [63, 76.31773, 92.40672, 111.84369, 135.32526, 163.69310, 197.96402, 239.36633, 289.38403, 349.80988]
    np.testing.assert_allclose([level.scale for level in HEAD.table], [*scales, 422.80969, 511], atol=5e-5)
    assert [level.entries for level in HEAD.table] == [4232, 6248, 9032, 13000] + [16384] * 8
    assert [level.strides[1] for level in HEAD.table[:4]] == [65, 79, 95, 114]
    assert [level.offset for level in HEAD.table[:6]] == [0, 4232, 10480, 19512, 32512, 32512 + 16384]
    assert [level.hashed for level in HEAD.table] == [False] * 4 + [True] * 8
    assert HEAD.entries == 163_584


def test_torso_levels():
    assert TORSO.per_level_scale == pytest.approx(1.38191288, abs=5e-9)
    entries = [296, 576, 1024, 1936, 3600, 6728, 12776, 24032, 45800]
    assert [level.entries for level in TORSO.table] == entries + [65536] * 7
    assert TORSO.entries == 555_520
    assert (TORSO.table[9].resolution, TORSO.table[15].resolution) == (295, 2048)


def test_nerfblendshape_levels():
    spec = GridSpec(3, 16, 4, 16, 1024, 14, "hash", pad=1)
    assert [(level.resolution, level.entries, level.hashed) for level in spec.table[:3]] == [
        (16, 4913, False),
        (22, 12167, False),
        (28, 16384, True),
    ]
    assert [spec.table[i].resolution for i in (5, 10, 13, 15)] == [64, 256, 589, 1024]


@functools.cache
def reader(spec):
    return jax.jit(lambda points, tables: grid_encode(points, tables, spec))


def reads(spec, level, cell, index):
    """The weight of entry `index` of `level` at a point a quarter into `cell`: 0.75 ** dims if it is the cell's."""
    info = spec.table[level]
    point = (np.asarray(cell) + 0.25 - 0.5) / info.scale
    tables = np.zeros((1, spec.entries, spec.features), np.float32)
    tables[0, info.offset + index] = 1.0
    out = reader(spec)(np.asarray(point, np.float32)[None, None], tables)
    return float(out[0, 0, level * spec.features])


@pytest.mark.parametrize(
    "level, cell, index",
    [
        (0, (3, 5), 328),
        (1, (3, 5), 398),
        (3, (3, 5), 573),
        (11, (3, 5), 8310),
        (11, (100, 200), 4652),
        (11, (137, 0), 137),  # a quarter into cell 0 lies outside, see below
        (11, (1, 1), 14768),
        (11, (137, 137), 7984),
    ],
)
def test_head_indices(level, cell, index):
    if 0 in cell:
        assert oracle.grid_index(cell, 512, 16384, "hash") == index
        cell, index = (137, 1), oracle.grid_index((137, 1), 512, 16384, "hash")
    assert reads(HEAD, level, cell, index) == pytest.approx(0.75**2, abs=2e-3)


def test_unreduced_hash():
    assert 3 ^ (5 * 2654435761) % 2**32 == 387276918


@pytest.mark.parametrize("level, cell, index", [(9, (10, 250), 8474), (15, (5, 40), 16429), (0, (3, 5), 88)])
def test_torso_indices(level, cell, index):
    assert reads(TORSO, level, cell, index) == pytest.approx(0.75**2, abs=2e-3)


@pytest.mark.parametrize("cell, index", [((1, 2, 3), 13788), ((10, 20, 30), 680), ((511, 512, 513), 8810)])
def test_three_dimensional_hash(cell, index):
    spec = GridSpec(3, 16, 4, 16, 1024, 14, "hash", pad=1)
    assert reads(spec, 15, cell, index) == pytest.approx(0.75**3, abs=3e-3)


def test_position_of_a_quarter():
    """x = 0.25 of ±1 lies at 39.875 on level 0 and 48.198579 on level 1."""
    tables = np.zeros((1, HEAD.entries, 1), np.float32)
    for level in (0, 1):
        info = HEAD.table[level]
        column = np.arange(info.entries) % info.strides[1]
        tables[0, info.offset : info.offset + info.entries, 0] = column
    x = (0.25 + 1) / 2
    out = reader(HEAD)(np.full((1, 1, 2), x, np.float32), tables)
    np.testing.assert_allclose(out[0, 0, :2], [39.875, 48.198579], atol=5e-6 * 48)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"kind": "dense"}, "choose hash or tiled"),
        ({"interpolation": "cubic"}, "choose linear or smoothstep"),
        ({"dims": 9}, "dims"),
        ({"finest": 1}, "finest >= base"),
    ],
)
def test_bad_specs_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        GridSpec(**change)


def test_wrong_shapes_and_back_ends_are_refused():
    points, tables = inputs("planes", 1)
    with pytest.raises(ValueError, match="expected points"):
        grid_encode(jnp.asarray(points), jnp.asarray(tables[:, :-1]), SPECS["planes"])
    with pytest.raises(ValueError, match="choose reference"):
        grid_encode(jnp.asarray(points), jnp.asarray(tables), SPECS["planes"], backend="cuda")
