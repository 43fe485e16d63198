"""The cube of light, its filter and lookup, and the split sum, against float64 formulas and the dossier's numbers."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tkjax.render import cubemap, shade
from tkjax.render.cubemap import (
    Filter,
    LightSpec,
    SeamedLight,
    cutoff,
    face_of,
    prefilter_weights,
    texel_areas,
    texel_directions,
)
from tkjax.render.shade import combine, light_level, lookup, split_sum, split_sum_table, unit

TINY = LightSpec(base=8, smallest=2)  # levels of 8, 4, 2
# eager calls compile each operation by itself
prefilter, seamed, sample = map(jax.jit, (cubemap.prefilter, cubemap.seamed, cubemap.sample))
shaded = jax.jit(shade.shade)
RNG = np.random.default_rng(0)


@functools.cache
def filters():
    return prefilter_weights(TINY)


def random_directions(n):
    return unit(jnp.asarray(RNG.normal(size=(n, 3)), jnp.float32))


# Geometry of the cube


def test_texels_look_where_the_dossier_says_and_are_found_again():
    f = np.array([-0.75, -0.25, 0.25, 0.75])
    d = texel_directions(4)
    for y, x in ((0, 0), (1, 3), (2, 1)):
        fx, fy = f[x], f[y]
        faces = [(1, -fy, -fx), (-1, -fy, fx), (fx, 1, fy), (fx, -1, -fy), (fx, -fy, 1), (-fx, -fy, -1)]
        np.testing.assert_allclose(d[:, y, x], np.array(faces) / math.sqrt(1 + fx**2 + fy**2), atol=1e-12)
    face, fx, fy = face_of(d.astype(np.float32))
    np.testing.assert_array_equal(face, np.broadcast_to(np.arange(6)[:, None, None], (6, 4, 4)))
    np.testing.assert_allclose(fx, np.broadcast_to(f, (6, 4, 4)), atol=1e-6)
    np.testing.assert_allclose(fy, np.broadcast_to(f[:, None], (6, 4, 4)), atol=1e-6)


def test_areas_are_solid_angles_or_the_originals():
    assert 6 * texel_areas(16).sum() == pytest.approx(4 * math.pi, rel=1e-12)
    directions, areas = texel_directions(64), texel_areas(64)
    second = np.einsum("fyxi,fyxj,yx->ij", directions, directions, areas)
    np.testing.assert_allclose(second, 4 * math.pi / 3 * np.eye(3), atol=3e-3)
    assert 6 * texel_areas(16, original=True).sum() == pytest.approx(13.594, abs=5e-4)


def test_the_originals_levels_have_the_dossiers_roughness_and_cutoffs():
    spec = LightSpec(base=512, smallest=16)
    assert spec.sides == (512, 256, 128, 64, 32, 16)
    np.testing.assert_allclose(spec.roughness, [0.08, 0.185, 0.29, 0.395, 0.5, 1.0])
    known = [0.999767, 0.993212, 0.955017, 0.805819, 0.446214, 0.015706]
    np.testing.assert_allclose([cutoff(r) for r in spec.roughness], known, atol=1e-6)
    light = jax.eval_shape(lambda: cubemap.initial_light(spec))
    assert light.size == 4_718_592  # check 12


def test_the_light_starts_grey():
    light = cubemap.initial_light(TINY)
    assert light.shape == (6, 8, 8, 3) and light.dtype == jnp.float32 and bool((light == 0.5).all())


@pytest.mark.parametrize("bad", [{"base": 48}, {"base": 16, "smallest": 8}, {"smallest": 1}])
def test_a_light_that_is_none_is_refused(bad):
    with pytest.raises(ValueError, match="expected powers of two"):
        LightSpec(**bad)


# Filter


@pytest.mark.parametrize("original", [False, True])
def test_the_filter_equals_a_loop_over_texels(original):
    spec = LightSpec(base=16, smallest=4, original_area=original)
    for k, (side, roughness, got) in enumerate(zip(spec.sides, spec.roughness, prefilter_weights(spec))):
        directions, limit = texel_directions(side).reshape(-1, 3), cutoff(roughness)
        areas = np.tile(texel_areas(side, original).ravel(), 6)
        for t in (0, side + 1, 6 * side * side - 1):
            v, expected = directions[t], np.zeros(len(directions))
            for i, light in enumerate(directions):
                if light @ v >= limit:
                    h = (light + v) / np.linalg.norm(light + v)
                    d = roughness**4 / (math.pi * ((v @ h) ** 2 * (roughness**4 - 1) + 1) ** 2)
                    expected[i] = max(light @ v, 0) * d * areas[i] / 4
            row = np.zeros(len(directions))
            np.add.at(row, np.arange(len(row)) if got.index is None else got.index[t], got.weights[t])
            np.testing.assert_allclose(row, expected / expected.sum(), atol=1e-6, err_msg=f"level {k}, texel {t}")


def test_sparse_and_full_weights_are_used_alike():
    """The first level of the default light is sparse; its filter is a product of the same texels."""
    sparse = prefilter_weights(LightSpec(base=32, smallest=8))[0]
    assert sparse.index is not None and sparse.weights.shape[1] < 32
    cube = RNG.uniform(size=(6, 32, 32, 3)).astype(np.float32)
    texels = cube.reshape(-1, 3)
    expected = np.einsum("tk,tkc->tc", sparse.weights.astype(np.float64), texels[sparse.index]).reshape(cube.shape)
    np.testing.assert_allclose(prefilter(cube, (sparse,))[0], expected, atol=1e-6)
    few = Filter(np.eye(24, dtype=np.float32)[::-1].copy(), None)
    small = RNG.uniform(size=(6, 2, 2, 3)).astype(np.float32)
    np.testing.assert_array_equal(prefilter(small, (few,))[0].reshape(-1, 3), small.reshape(-1, 3)[::-1])


def test_levels_are_filtered_means_and_a_constant_stays():
    cube = RNG.uniform(size=(6, 8, 8, 3)).astype(np.float32)
    levels = prefilter(cube, filters())
    assert [level.shape for level in levels] == [(6, 8, 8, 3), (6, 4, 4, 3), (6, 2, 2, 3)]
    half = cube.astype(np.float64).reshape(6, 4, 2, 4, 2, 3).mean((2, 4))
    np.testing.assert_allclose(levels[1].reshape(-1, 3), filters()[1].weights @ half.reshape(-1, 3), atol=1e-6)
    for level in prefilter(np.full((6, 8, 8, 3), 0.37, np.float32), filters()):
        np.testing.assert_allclose(level, 0.37, atol=1e-6)  # check 24


def test_a_cube_of_another_size_is_refused():
    with pytest.raises(ValueError, match="level 0 has 96 texels, its filter 384"):
        prefilter(np.zeros((6, 4, 4, 3), np.float32), filters())


# Lookup


def levels_of(f, sides=(8, 4, 2)):
    return tuple(jnp.asarray(f(texel_directions(s)), jnp.float32) for s in sides)


def test_a_texels_direction_gives_the_texel():
    cube = [RNG.uniform(size=(6, s, s, 2)).astype(np.float32) for s in TINY.sides]
    light = seamed(tuple(map(jnp.asarray, cube)))
    for k, (side, level) in enumerate(zip(TINY.sides, cube)):
        d = texel_directions(side).reshape(-1, 3).astype(np.float32)
        got = sample(light, d, np.full(len(d), k, np.float32))
        np.testing.assert_allclose(got, level.reshape(-1, 2), atol=1e-5)


def test_between_levels_the_light_is_their_mix_and_beyond_them_the_outermost():
    light = SeamedLight(jnp.concatenate([jnp.full((6 * (s + 2) ** 2, 1), s) for s in TINY.sides]), TINY.sides)
    level = np.array([-1.0, 0.0, 0.25, 1.0, 1.5, 2.0, 7.0], np.float32)
    got = sample(light, random_directions(len(level)), level)[:, 0]
    np.testing.assert_allclose(got, [8, 8, 7, 4, 3, 2, 2], atol=1e-5)


def test_a_smooth_light_is_smooth_across_edges_and_corners():
    """Lookup of a linear function of the direction is near it everywhere; without borders it would be a texel off."""
    light = seamed(levels_of(lambda d: d @ np.array([[0.3], [0.5], [-0.4]]), (16, 8, 4)))
    at = np.concatenate([RNG.normal(size=(500, 3)), RNG.choice([-1, 1], (200, 3)) + 0.02 * RNG.normal(size=(200, 3))])
    d = np.asarray(unit(jnp.asarray(at, jnp.float32)))
    got = np.asarray(sample(light, d, np.zeros(len(d), np.float32)))[:, 0]
    np.testing.assert_allclose(got, d @ [0.3, 0.5, -0.4], atol=0.012)
    for edge in ((1, 1, 0.3), (1, -0.2, 1), (0.1, -1, -1), (-1, 1, 0.7), (1, 1, 1), (-1, 1, -1)):
        both = np.array(edge) * np.where(np.abs(edge) == 1, [[1.0], [1.0]], 1.0)
        first = int(np.flatnonzero(np.abs(edge) == 1)[0])
        both[0, first] *= 1 + 1e-5
        both[1, first] *= 1 - 1e-5
        a, b = sample(light, unit(jnp.asarray(both, jnp.float32)), jnp.zeros(2))
        np.testing.assert_allclose(a, b, atol=2e-3)


def test_beyond_an_edge_lies_the_neighbouring_texel():
    cube = RNG.uniform(size=(6, 4, 4, 1)).astype(np.float32)
    faces = np.asarray(seamed((jnp.asarray(cube),) * 3).texels)[: 6 * 36].reshape(6, 6, 6)
    # +x's left edge (fx = -1) looks along (1, -fy, 1): the right edge of +z (fx = 1), row by row
    np.testing.assert_array_equal(faces[0, 1:5, 0], cube[4, :, 3, 0])
    np.testing.assert_array_equal(faces[4, 1:5, 5], cube[0, :, 0, 0])
    # +y's lower edge (fy = 1) looks along (fx, 1, 1): the upper edge of +z
    np.testing.assert_array_equal(faces[2, 5, 1:5], cube[4, 0, :, 0])
    three = cube[0, 0, 0, 0] + faces[0, 0, 1] + faces[0, 1, 0]
    assert faces[0, 0, 0] == pytest.approx(three / 3, rel=1e-6)


@pytest.mark.heavy
def test_the_light_has_gradients_to_texels_directions_and_level():
    cube, d = jnp.asarray(RNG.uniform(size=(6, 8, 8, 3)), jnp.float32), random_directions(40)
    level = jnp.asarray(RNG.uniform(0.1, 1.9, 40), jnp.float32)
    weight = jnp.asarray(RNG.normal(size=(40, 3)), jnp.float32)

    @jax.jit
    def loss(cube, d, level):
        return jnp.sum(sample(seamed(prefilter(cube, filters())), d, level) * weight)

    by_cube, by_d, by_level = jax.jit(jax.grad(loss, (0, 1, 2)))(cube, d, level)
    assert float(jnp.vdot(by_cube, cube)) == pytest.approx(float(loss(cube, d, level)), rel=1e-4)  # linear
    for number, grad in ((1, by_d), (2, by_level)):
        x = [cube, d, level]
        moved = jnp.asarray(RNG.normal(size=x[number].shape), jnp.float32)
        ends = []
        for step in (-1e-4, 1e-4):
            y = list(x)
            y[number] = x[number] + step * moved
            ends.append(float(loss(*y)))
        assert float(jnp.vdot(grad, moved)) == pytest.approx((ends[1] - ends[0]) / 2e-4, rel=0.05, abs=0.05)


# Shading


def test_levels_of_roughness_are_the_dossiers():
    """Dossier dyntet §11, check 24; of 4 levels the last but one is 2."""
    r = np.array([0.0, 0.1, 0.29, 0.5, 0.75, 1.0, 1.5], np.float32)
    np.testing.assert_allclose(light_level(r, 6), [0, 0.190476, 2, 4, 4.5, 5, 5], atol=1e-5)
    np.testing.assert_allclose(light_level(r, 4), [0, 0.095238, 1, 2, 2.5, 3, 3], atol=1e-5)


# row, column of the table -> A, B (dossier dyntet §11, check 25)
TABLE = {
    (0, 0): (0.009727, 0.990249),
    (0, 255): (1.0, 0.0),
    (25, 128): (0.968915, 0.030767),
    (64, 32): (0.552970, 0.357087),
    (128, 128): (0.834264, 0.021933),
    (255, 0): (0.941525, 0.046538),
    (255, 255): (0.309277, 0.000035),
}


@pytest.mark.parametrize("at", TABLE, ids=str)
def test_the_split_sum_is_the_dossiers(at):
    row, column = (np.array([(k + 0.5) / 256]) for k in at)
    np.testing.assert_allclose(split_sum(row, column)[0, 0], TABLE[at], atol=1e-3)


def test_the_split_sum_is_the_mean_over_random_half_vectors():
    r, nv, n = 0.6, 0.4, 400_000
    a2, u, phi = r**4, RNG.uniform(size=n), RNG.uniform(0, 2 * math.pi, n)
    c = np.sqrt((1 - u) / (1 + (a2 - 1) * u))
    h = np.stack([np.sqrt(1 - c * c) * np.cos(phi), np.sqrt(1 - c * c) * np.sin(phi), c], -1)
    v = np.array([math.sqrt(1 - nv * nv), 0, nv])
    vh = h @ v
    light = 2 * vh[:, None] * h - v
    up = (light[:, 2] > 0) & (vh > 0)
    nl = light[up, 2]
    smith = 2 * nl * nv / (nl * np.sqrt(a2 + (1 - a2) * nv**2) + nv * np.sqrt(a2 + (1 - a2) * nl**2))
    g, fc = smith * vh[up] / (c[up] * nv), (1 - vh[up]) ** 5
    expected = np.sum((1 - fc) * g) / n, np.sum(fc * g) / n
    np.testing.assert_allclose(split_sum(np.array([r]), np.array([nv]))[0, 0], expected, atol=3e-3)


def test_the_table_is_read_between_texel_centres_and_clamped():
    table = RNG.uniform(size=(4, 4, 2)).astype(np.float32)
    got = np.asarray(lookup(table, np.array([0.375, 0.5, 0.0, 1.0]), np.array([0.625, 0.625, 0.0, 1.0])))
    expected = [table[2, 1], (table[2, 1] + table[2, 2]) / 2, table[0, 0], table[3, 3]]
    np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.heavy
def test_the_whole_table_holds_the_split_sum():
    table = split_sum_table()
    assert table.shape == (256, 256, 2) and table.dtype == np.float32 and np.isfinite(table).all()
    assert (table >= 0).all() and (table.sum(-1) <= 1.001).all()
    for at, known in TABLE.items():
        np.testing.assert_allclose(table[at], known, atol=1e-3)


def test_a_colour_is_the_dossiers():
    """Dossier dyntet §11, check 26."""
    kd, ab = np.array([0.6, 0.4, 0.3], np.float32), np.array([0.915751, 0.00003], np.float32)
    occlusion, metalness = np.array([0.1], np.float32), np.array([0.2], np.float32)
    got = combine(kd, occlusion, metalness, np.full(3, 0.5, np.float32), ab)
    np.testing.assert_allclose(got, [0.494651, 0.334167, 0.253925], atol=1e-6)


def test_shading_joins_light_table_and_material():
    n = 6
    material = RNG.uniform(0.1, 0.9, (n, 9)).astype(np.float32)
    normals, to_eye = RNG.normal(size=(2, n, 3)).astype(np.float32)
    light = seamed(prefilter(jnp.asarray(RNG.uniform(size=(6, 8, 8, 3)), jnp.float32), filters()))
    table = split_sum_table(16)
    got = shaded(material, normals, to_eye, light, table)
    normal, v = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (normals.astype(float), to_eye.astype(float)))
    cosine = np.sum(normal * v, 1)
    mirrored = (2 * cosine[:, None] * normal - v).astype(np.float32)
    r = material[:, 4]
    s = np.asarray(sample(light, mirrored, np.asarray(light_level(r, 3))))
    ab = np.asarray(lookup(table, np.maximum(cosine, 1e-4).astype(np.float32), r))
    kd, o, m = material[:, :3], material[:, 3:4], material[:, 5:6]
    spec = 0.04 * (1 - m) + kd * m
    np.testing.assert_allclose(got, (kd * (1 - m) + s * (spec * ab[:, :1] + ab[:, 1:])) * (1 - o), atol=1e-5)
    assert (cosine < 0).any() and (cosine > 0).any()


def test_what_has_no_length_has_no_direction_and_no_gradient():
    v = jnp.array([[0.0, 0, 0], [3, 0, 4]])
    value, vjp = jax.vjp(jax.jit(unit), v)
    np.testing.assert_allclose(value, [[0, 0, 0], [0.6, 0, 0.8]], atol=1e-7)
    np.testing.assert_allclose(vjp(jnp.ones_like(v))[0], [[0, 0, 0], [0.032, 0.2, -0.024]], atol=1e-6)
