"""grid_encode on every back end and instruction set: an independent float64 loop, the dossiers' known values."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import oracle
from tests.ops.grid_cases import BACKENDS, EACH_SPEC, QUICK, SPECS, expected, gradients, inputs, jitted, running
from tkjax.ops import GridSpec, grid_encode

HEAD = GridSpec(dims=2, levels=12, features=1, base=64, finest=512, log2_entries=14, kind="hash")
TORSO = GridSpec(dims=2, levels=16, features=2, base=16, finest=2048, log2_entries=16, kind="tiled")
RAD = GridSpec(dims=3, levels=16, features=2, base=16, finest=2048, log2_entries=16, kind="tiled")
BLEND = GridSpec(3, 16, 4, 16, 1024, 14, "hash", pad=1)

every_backend = pytest.mark.parametrize("backend", BACKENDS)


@every_backend
@pytest.mark.parametrize("name", EACH_SPEC)
@settings(max_examples=6)
@given(seed=st.integers(0, 2**31))
def test_forward_equals_the_loop(name, backend, seed):
    points, tables, _ = inputs(name, seed)
    with running(backend) as which:
        got = jax.block_until_ready(jitted(name, which)(points, tables))
    np.testing.assert_allclose(got, expected(name, points, tables), atol=2e-4)


@pytest.mark.heavy
@every_backend
@pytest.mark.parametrize("name", EACH_SPEC)
def test_table_gradient_is_the_transpose_of_the_loop(name, backend):
    points, tables, g = inputs(name, 3)
    with running(backend) as which:
        _, _, by_tables = jax.block_until_ready(gradients(name, which)(points, tables, g))
    direction = np.random.default_rng(5).normal(size=tables.shape)
    # The op is linear in the tables, so <g, A v> of the loop is <A' g, v>.
    np.testing.assert_allclose(
        np.sum(g * expected(name, points, direction)), np.sum(np.asarray(by_tables) * direction), rtol=2e-4, atol=2e-3
    )


@pytest.mark.heavy
@every_backend
@pytest.mark.parametrize("name", ["planes", "tiled2d", "hash3d", "wide"])
def test_point_gradient_equals_finite_differences(name, backend):
    points, tables, g = inputs(name, 6)
    points = np.clip(points, 0.02, 0.98)
    with running(backend) as which:
        _, got, _ = jax.block_until_ready(gradients(name, which)(points, tables, g))
    step, checked, few = 1e-5, 0, points[:8].astype(np.float64)
    for index in np.ndindex(*few.shape):
        n = index[0]
        moved = [few[n : n + 1].copy() for _ in range(3)]
        moved[0][0, *index[1:]] += step
        moved[2][0, *index[1:]] -= step
        up, here, down = (np.sum(expected(name, p, tables) * g[n]) for p in moved)
        if abs(up + down - 2 * here) > 1e-4 * abs(up - down) + 1e-6:
            continue  # a cell border lies in between: the slope jumps
        np.testing.assert_allclose(got[index], (up - down) / (2 * step), rtol=2e-2, atol=0.2)
        checked += 1
    assert checked > few.size // 2


@pytest.mark.heavy
@every_backend
@pytest.mark.parametrize("bad", [-1e-6, 1.0000001, np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("name", QUICK)
def test_points_outside_give_zero_and_zero_gradient(name, backend, bad):
    points, tables, g = inputs(name, 8)
    points = np.full_like(points, 0.4)
    points[::2, :, 1] = bad  # every other one
    g = np.array(g)
    g[::2] = np.nan  # the cotangent of a point outside is not looked at
    with running(backend) as which:
        value, by_points, by_tables = jax.block_until_ready(gradients(name, which)(points, tables, g))
    np.testing.assert_array_equal(value[::2], 0.0)
    np.testing.assert_array_equal(by_points[::2], 0.0)
    assert np.all(value[1::2] != 0) and np.all(np.isfinite(by_points)) and np.all(np.isfinite(by_tables))
    points[..., 1] = bad
    with running(backend) as which:
        for out in gradients(name, which)(points, tables, g):
            np.testing.assert_array_equal(out, 0.0)


@every_backend
@pytest.mark.parametrize("name", EACH_SPEC)
def test_a_constant_grid_encodes_to_the_constant(name, backend):
    points, tables, _ = inputs(name, 9)
    points = np.clip(points, 0, 1)
    with running(backend) as which:
        got = jax.block_until_ready(jitted(name, which)(points, np.full_like(tables, 0.7)))
    np.testing.assert_allclose(got, 0.7, atol=1e-5)


@every_backend
@pytest.mark.parametrize("name", QUICK)
def test_what_is_not_finite_in_a_table_or_cotangent_stays_where_it_is(name, backend):
    points, tables, g = inputs(name, 11)
    points, tables = np.clip(points, 0.01, 0.99), tables.copy()
    tables[:, ::7], g[3] = np.nan, np.inf
    wanted = expected(name, points, tables)
    with running(backend) as which:
        value, _, by_tables = jax.block_until_ready(gradients(name, which)(points, tables, g))
    np.testing.assert_array_equal(np.isnan(value), np.isnan(wanted))
    only = np.zeros_like(g)
    only[3] = 1.0
    touched = gradients(name, "reference")(points, tables, only)[2]
    np.testing.assert_array_equal(np.isfinite(by_tables), touched == 0)


@every_backend
def test_vmap_over_points_and_tables_equals_a_loop(backend):
    frames = [inputs("planes", seed) for seed in (1, 2, 3)]
    points, tables, g = (jnp.stack(a) for a in zip(*frames))
    with running(backend) as which:
        for axes in ((0, 0, 0), (None, 0, 0)):
            args = (points if axes[0] == 0 else points[0], tables, g)
            mapped = jax.block_until_ready(jax.vmap(gradients("planes", which), axes)(*args))
            for i, frame in enumerate(frames):
                one = gradients("planes", which)(frame[0] if axes[0] == 0 else points[0], *frame[1:])
                for a, b in zip(mapped, one):
                    np.testing.assert_allclose(a[i], b, atol=1e-5)


@pytest.mark.heavy
@every_backend
@pytest.mark.parametrize("name", ["planes", "wide"])
def test_bfloat16_output_is_the_rounded_float32_output(name, backend):
    points, tables, g = inputs(name, 12)
    with running(backend) as which:
        op = jitted(name, which, "bfloat16")
        half, vjp = jax.vjp(op, points, tables)
        whole = jax.block_until_ready(jitted(name, which)(points, tables))
        assert half.dtype == jnp.bfloat16
        near = 0.0 if which != "reference" else 1e-6  # XLA sums the two programs in orders of its own
        assert np.all((half >= (whole - near).astype(jnp.bfloat16)) & (half <= (whole + near).astype(jnp.bfloat16)))
        rounded = jnp.asarray(g, jnp.bfloat16)
        by_points, by_tables = vjp(rounded)
        _, *wanted = gradients(name, which)(points, tables, rounded.astype(jnp.float32))
        assert by_points.dtype == by_tables.dtype == jnp.float32
        np.testing.assert_allclose(by_points, wanted[0], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(by_tables, wanted[1], rtol=1e-4, atol=1e-4)


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
    assert [(level.resolution, level.entries, level.hashed) for level in BLEND.table[:3]] == [
        (16, 4913, False),
        (22, 12167, False),
        (28, 16384, True),
    ]
    assert [BLEND.table[i].resolution for i in (5, 10, 13, 15)] == [64, 256, 589, 1024]
    assert [level.offset for level in BLEND.table[:5]] == [0, 4913, 17080, 33464, 49848] and BLEND.entries == 246456


def test_rad_nerf_levels():
    resolutions = [16, 23, 31, 43, 59, 81, 112, 154, 213, 295, 407, 562, 777, 1073, 1483, 2048]
    assert [level.resolution for level in RAD.table] == resolutions
    assert [level.entries for level in RAD.table] == [4920, 13824, 32768] + [65536] * 13
    assert RAD.entries == 903_480 and not any(level.hashed for level in RAD.table)
    np.testing.assert_allclose([RAD.table[i].scale for i in (0, 1, 9, 15)], [15, 21.1106, 293.0667, 2047], atol=1e-4)
    assert [level.strides[2] == 0 for level in RAD.table] == [False] * 9 + [True] * 7  # the third axis is left out


@functools.cache
def reader(spec, backend):
    return jax.jit(lambda points, tables: grid_encode(points, tables, spec, backend=backend))


def encoded(backend, spec, point, tables):
    """One point, on a back end of BACKENDS."""
    with running(backend) as which:
        return np.asarray(reader(spec, which)(np.asarray(point, np.float32)[None, None], tables))[0, 0]


def reads(backend, spec, level, cell, index):
    """The weight of entry `index` of `level` at a point a quarter into `cell`: 0.75 ** dims if it is the cell's."""
    info = spec.table[level]
    point = (np.asarray(cell) + 0.25 - 0.5) / info.scale
    tables = np.zeros((1, spec.entries, spec.features), np.float32)
    tables[0, info.offset + index] = 1.0
    return float(encoded(backend, spec, point, tables)[level * spec.features])


dossier = pytest.mark.parametrize("backend", ["reference", "cpu-generic", "cpu-avx512"])


@dossier
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
def test_head_indices(level, cell, index, backend):
    if 0 in cell:
        assert oracle.grid_index(cell, 512, 16384, "hash") == index
        cell, index = (137, 1), oracle.grid_index((137, 1), 512, 16384, "hash")
    assert reads(backend, HEAD, level, cell, index) == pytest.approx(0.75**2, abs=2e-3)


@dossier
@pytest.mark.parametrize("level, cell, index", [(9, (10, 250), 8474), (15, (5, 40), 16429), (0, (3, 5), 88)])
def test_torso_indices(level, cell, index, backend):
    assert reads(backend, TORSO, level, cell, index) == pytest.approx(0.75**2, abs=2e-3)


@dossier
@pytest.mark.parametrize("cell, index", [((1, 2, 3), 13788), ((10, 20, 30), 680), ((511, 512, 513), 8810)])
def test_three_dimensional_hash(cell, index, backend):
    assert reads(backend, BLEND, 15, cell, index) == pytest.approx(0.75**3, abs=3e-3)


@dossier
@pytest.mark.parametrize("level, index", [(0, 2111), (1, 3821)])
def test_three_dimensional_dense_levels(level, index, backend):
    assert reads(backend, BLEND, level, (3, 5, 7), index) == pytest.approx(0.75**3, abs=3e-3)


@dossier
@pytest.mark.parametrize(
    "level, cell, index",
    [
        (0, (3, 5, 7), 2111),
        (8, (100, 50, 20), 9216),
        (9, (200, 200, 100), 200 + 200 * 296),  # below 65536, and for any third coordinate
        (9, (200, 200, 7), 200 + 200 * 296),
        (9, (280, 250, 7), (280 + 250 * 296) % 65536),
    ],
)
def test_rad_nerf_tiled_indices(level, cell, index, backend):
    # The corners of a level without its third axis meet in pairs: their weights add up to 0.75**2.
    weight = 0.75 ** (3 if level < 9 else 2)
    assert reads(backend, RAD, level, cell, index) == pytest.approx(weight, abs=3e-3)


def test_hashes_of_the_dossier():
    for cell, index in {(1, 2, 3): 62940, (100, 200, 300): 45232, (1, 1, 1): 11813, (10, 20): 33246}.items():
        assert oracle.grid_index(cell, 2048, 65536, "hash") == index


@dossier
def test_tables_that_hold_their_index(backend):
    """er-nerf: x = 0.25 of ±1 lies at 39.875 on level 0 and 48.198579 on level 1. rad-nerf: rows 3319, 3320, 3608, 3609
    with weights 3, 1, 9, 3 sixteenths. nerfblendshape: rows 4204 and 4221, half each."""
    columns = np.zeros((1, HEAD.entries, 1), np.float32)
    for level in HEAD.table[:2]:
        columns[0, level.offset : level.offset + level.entries, 0] = np.arange(level.entries) % level.strides[1]
    out = encoded(backend, HEAD, [(0.25 + 1) / 2] * 2, columns)
    np.testing.assert_allclose(out[:2], [39.875, 48.198579], atol=5e-6 * 48)
    for spec, point, value in (
        (RAD, (0.25, 0.5, 0.75), (3 * 3319 + 3320 + 9 * 3608 + 3 * 3609) / 16),
        (RAD, (0.5, 0.5, 0.5), 2456),
        (BLEND, (0.3, 0.6, 0.9), 4212.5),
    ):
        rows = np.broadcast_to(
            np.arange(spec.entries, dtype=np.float32)[None, :, None], (1, spec.entries, spec.features)
        )
        np.testing.assert_allclose(encoded(backend, spec, point, rows)[: spec.features], value, rtol=2e-6)


@dossier
def test_corners_of_a_hashed_cell(backend):
    """nerfblendshape: level 2 at (0.3, 0.6, 0.9), corners with x fastest."""
    slots = [12000, 12001, 8497, 8496, 5781, 5780, 6468, 6469]
    frac = (0.557285, 0.614571, 0.671856)
    for i, slot in enumerate(slots):
        tables = np.zeros((1, BLEND.entries, BLEND.features), np.float32)
        tables[0, BLEND.table[2].offset + slot] = 1.0
        weight = np.prod([f if i >> d & 1 else 1 - f for d, f in enumerate(frac)])
        assert encoded(backend, BLEND, (0.3, 0.6, 0.9), tables)[8] == pytest.approx(weight, abs=2e-5)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"kind": "dense"}, "choose hash, tiled"),
        ({"interpolation": "cubic"}, "choose linear or smoothstep"),
        ({"dims": 9}, "dims"),
        ({"finest": 1}, "finest >= base"),
    ],
)
def test_bad_specs_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        GridSpec(**change)


def test_wrong_shapes_dtypes_and_back_ends_are_refused():
    points, tables, _ = inputs("planes", 1)
    with pytest.raises(ValueError, match="expected points"):
        grid_encode(jnp.asarray(points), jnp.asarray(tables[:, :-1]), SPECS["planes"])
    with pytest.raises(ValueError, match="choose triton, cpu, reference"):
        grid_encode(jnp.asarray(points), jnp.asarray(tables), SPECS["planes"], backend="cuda")
    with pytest.raises(ValueError, match="out_dtype must be float32 or bfloat16"):
        grid_encode(jnp.asarray(points), jnp.asarray(tables), SPECS["planes"], out_dtype="float16")


TILE = GridSpec(3, 16, 2, 16, 4096, 19, "base_tiled")
TILE_2025 = GridSpec(3, 16, 2, 16, 4096, 19, "base_tiled_2025")


def test_levels_of_the_original_tile_are_the_dossiers():
    """Dossier dyntet §11, check 11."""
    resolutions = [16, 24, 34, 49, 71, 102, 148, 213, 308, 446, 646, 934, 1352, 1956, 2831, 4096]
    for spec in (TILE, TILE_2025):
        assert [level.resolution for level in spec.table] == resolutions and spec.entries == 16 * 4096
        assert {level.entries for level in spec.table} == {4096} and not any(level.hashed for level in spec.table)
        assert spec.table[1].scale == pytest.approx(22.1563, abs=5e-5)


@pytest.mark.parametrize(
    "spec, known",
    [
        (TILE, {0: 3733, 1: 3647, 3: 2278, 4: 3003, 9: 431, 15: 1228}),
        (TILE_2025, {4: 153, 9: 2031, 13: 0, 14: 0, 15: 0}),
    ],
    ids=lambda v: getattr(v, "kind", ""),
)
def test_entries_of_the_original_tile_are_the_dossiers(spec, known):
    """Which entry of each level the lowest corner of the cell around (0.3, 0.6, 0.9) reads (check 11)."""
    cells = {0: (5, 9, 14), 4: (21, 42, 62), 15: (1228, 2457, 3685)}
    for number, entry in known.items():
        level = spec.table[number]
        # the original's finest scale is 4094.9985, in float32: its x and z miss a whole number by 5e-4
        cell = np.floor(np.array([0.3, 0.6, 0.9]) * level.scale + (0.5 if number != 15 else 0.499)).astype(int)
        assert tuple(cell) == cells.get(number, tuple(cell))
        assert int(cell @ np.array(level.strides)) % level.entries == entry


@every_backend
def test_indices_of_the_original_tile_wrap_at_32_bits(backend):
    """Level 12 of the rule of 2025 has indices beyond 2^31: 1352 + 1352^2 * 1352 and so on, modulo 2^32."""
    rng = np.random.default_rng(0)
    points = np.round(rng.uniform(0.8, 1, (12, 1, 3)) * 1024).astype(np.float32) / 1024
    tables = rng.normal(size=(1, TILE_2025.entries, 2)).astype(np.float32)
    expected_there = oracle.grid_encode(
        points, tables, levels=16, base=16, finest=4096, log2_entries=19, kind="base_tiled_2025"
    )
    with running(backend) as which:
        got = grid_encode(jnp.asarray(points), jnp.asarray(tables), TILE_2025, backend=which)
    np.testing.assert_allclose(got, expected_there, atol=2e-3)
