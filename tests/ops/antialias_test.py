"""antialias and opposite_vertices: known values, loops in float64, gradients that move silhouettes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ops import raster_oracle as oracle
from tests.ops.grid_cases import BACKENDS, running
from tests.ops.rasterize_test import by_differences, drawn
from tkjax.ops import antialias, opposite_vertices, rasterize

across_of = jax.jit(opposite_vertices)
QUAD = np.int32([[0, 1, 2], [0, 2, 3]])


@functools.cache
def blended(backend):
    """(colours, raster, clip, faces, opposite, g) -> picture, gradients to colours and clip."""

    def call(colours, raster, clip, faces, across, g):
        def picture(colours, clip):
            return antialias(colours, raster, clip, faces, across, backend=backend)

        out, vjp = jax.vjp(picture, colours, clip)
        return (out, *vjp(g))

    return jax.jit(call)


@functools.cache
def coverage(backend, size):
    """(clip, faces, g) -> picture of what is covered, gradient of <g, picture> to clip."""

    def picture(clip, faces):
        raster = rasterize(clip, faces, size, size, backend=backend)
        return antialias((raster.face > 0).astype(jnp.float32)[..., None], raster, clip, faces, backend=backend)[..., 0]

    def call(clip, faces, g):
        out, vjp = jax.vjp(lambda c: picture(c, faces), clip)
        return out, vjp(g)[0]

    return jax.jit(call)


def half_plane(e):
    """All pixels of 8 x 8 to the left of column e."""
    x = 2 * e / 8 - 1
    return np.float32([[-2, -2, 0, 1], [x, -2, 0, 1], [x, 2, 0, 1], [-2, 2, 0, 1]])


@pytest.mark.heavy
@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("e, fourth, fifth", [(4.25, 0.25, 0), (4.5, 0.5, 0), (4.75, 0.75, 0), (4.9, 0.9, 0),
                                              (5.25, 1, 0.25)])  # fmt: skip
@pytest.mark.parametrize("upright", [True, False])
def test_a_straight_edge_covers_the_known_shares(name, e, fourth, fifth, upright):
    clip = half_plane(e) if upright else half_plane(e)[:, [1, 0, 2, 3]]
    with running(name) as backend:
        out = np.asarray(coverage(backend, 8)(clip, QUAD, np.zeros((8, 8), np.float32))[0])
    out = out if upright else out.T
    np.testing.assert_allclose(out, np.broadcast_to([1, 1, 1, 1, fourth, fifth, 0, 0], (8, 8)), atol=2e-6)


@pytest.mark.parametrize("name", BACKENDS)
def test_a_straight_edge_has_the_known_gradients(name):
    g = np.zeros((8, 8), np.float32)
    g[3, 4] = 1
    with running(name) as backend:
        slope = np.asarray(coverage(backend, 8)(half_plane(4.75), QUAD, g)[1])
        none = coverage(backend, 8)(half_plane(4.5), QUAD, np.ones((8, 8), np.float32))[1]
    np.testing.assert_allclose(slope[1:3, 0], [2.124867, 1.874883], atol=1e-6)
    np.testing.assert_allclose(slope[1:3, 3], [-0.398420, -0.351548], atol=2e-5)
    assert np.abs(slope[:, 1]).max() < 5e-6 and not np.any(slope[[0, 3]]) and not np.any(slope[:, 2])
    assert not np.any(none)


@pytest.mark.heavy
@pytest.mark.parametrize("name", BACKENDS)
def test_a_turned_square_has_the_known_area(name):
    turn = np.deg2rad(20)
    corners = (
        0.45
        * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
        @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    )
    square = lambda scale: np.float32(np.concatenate([scale * corners + [0.013, 0.007], [[0, 1]] * 4], 1))  # noqa: E731
    with running(name) as backend:
        face = drawn(backend, square(1), QUAD, 64, 64).face
        out, slope = coverage(backend, 64)(square(1), QUAD, np.ones((64, 64), np.float32))
        larger = coverage(backend, 64)(square(1 + 1e-4), QUAD, np.ones((64, 64), np.float32))[0]
    assert np.count_nonzero(face) == 829
    assert np.sum(np.asarray(out, np.float64)) == pytest.approx(828.43, abs=0.01)
    by_scale = np.sum(np.asarray(slope)[:, :2] * corners)
    assert by_scale == pytest.approx(2 * 829, rel=0.05)
    assert np.sum(np.asarray(larger, np.float64) - np.asarray(out)) / 1e-4 == pytest.approx(by_scale, rel=0.05)


@pytest.mark.heavy
@pytest.mark.parametrize("name", BACKENDS)
def test_a_sphere_has_its_area_and_depth(name):
    """Of many faces; the area of the picture is that of the outline's polygon."""
    points, faces = oracle.sphere(24, 32, 0.35)
    clip = np.concatenate([2 * points[:, :2], points[:, 2:], np.ones((len(points), 1))], 1).astype(np.float32)
    with running(name) as backend:
        raster = drawn(backend, clip, faces, 64, 64)
        out, _ = coverage(backend, 64)(clip, faces, np.zeros((64, 64), np.float32))
    area = 0.5 * 32 * np.sin(2 * np.pi / 32) * (0.7 * 32) ** 2
    assert np.count_nonzero(raster.face) == pytest.approx(area, abs=12)
    assert np.sum(np.asarray(out)) == pytest.approx(area, abs=6)
    assert raster.zw[raster.face > 0].mean() == pytest.approx(-0.35 * 2 / 3, rel=0.02)


def jittered(seed, kind):
    """A soup or a closed mesh, colours, and what the oracle says of its picture."""
    rng = np.random.default_rng(seed)
    if kind == "sphere":
        points, faces = oracle.sphere(4, 5, 0.7)
        w = 2 + points[:, 2:]
        clip = np.concatenate([points[:, :2] * w, points[:, 2:] * w, w], 1) * rng.uniform(0.9, 1.1, (len(w), 4))
        clip, faces = clip.astype(np.float32), rng.permutation(faces)
    else:
        clip, faces = oracle.soup(seed, kind, 7, 9)
    return clip, faces, rng.normal(size=(9, 12, 2)).astype(np.float32), rng.normal(size=(9, 12, 2)).astype(np.float32)


@pytest.mark.heavy
@pytest.mark.parametrize("name", BACKENDS)
@settings(max_examples=8)
@given(seed=st.integers(0, 2**31), kind=st.sampled_from(["sphere", "plain", "behind", "spoiled"]))
def test_pictures_are_those_of_the_loop(name, seed, kind):
    clip, faces, colours, g = jittered(seed, kind)
    across = oracle.opposite(faces).astype(np.int32)
    with running(name) as backend:
        raster = drawn(backend, clip, faces, 9, 12)
        out = np.asarray(blended(backend)(colours, raster, clip, faces, across, g)[0])
    want, _, doubt = oracle.antialias(colours, raster.face, raster.zw, clip, faces, across)
    unsure = doubt < 1e-4
    near = unsure.any(0)
    near[1:] |= unsure[1, :-1]
    near[:, 1:] |= unsure[0, :, :-1]
    np.testing.assert_allclose(out[~near], want[~near], atol=1e-3)
    assert near.mean() < 0.2


@pytest.mark.parametrize("name", BACKENDS)
@settings(max_examples=5)
@given(seed=st.integers(0, 2**31), kind=st.sampled_from(["sphere", "plain"]))
def test_gradients_are_those_of_differences(name, seed, kind):
    clip, faces, colours, g = jittered(seed, kind)
    across = oracle.opposite(faces).astype(np.int32)
    with running(name) as backend:
        raster = drawn(backend, clip, faces, 9, 12)
        _, to_colours, to_clip = jax.tree.map(np.asarray, blended(backend)(colours, raster, clip, faces, across, g))
    picture = lambda colours, clip: oracle.antialias(colours, raster.face, raster.zw, clip, faces, across)  # noqa: E731
    if picture(colours, clip)[2].min() < 1e-4:
        return  # a decision within the step of a difference
    alphas = picture(colours, clip)[1]
    want = np.array(g, np.float64)
    for axis, alpha in enumerate(alphas):
        for row, column in np.argwhere(alpha):
            p0, p1 = (row, column), (row + axis, column + 1 - axis)
            y = g[p0] if alpha[p0] > 0 else g[p1]
            want[p0] -= alpha[p0] * y
            want[p1] += alpha[p0] * y
    np.testing.assert_allclose(to_colours, want, atol=1e-3)
    want = by_differences(lambda c: np.sum(picture(colours, c)[0] * g), clip, 1e-5)
    np.testing.assert_allclose(to_clip, want, atol=0.01 * (0.1 + np.abs(want).max()))


@pytest.mark.heavy
@pytest.mark.parametrize("name", BACKENDS)
def test_edges_within_a_surface_are_left_alone(name):
    """A bent sheet that faces the camera everywhere has no silhouette; a fold has one."""
    clip, faces = oracle.sheet(2, jitter=0.2)
    colours = np.random.default_rng(0).random((24, 12, 3)).astype(np.float32)
    across = np.asarray(across_of(faces))
    with running(name) as backend:
        raster = drawn(backend, clip, faces, 24, 12)
        out = np.asarray(blended(backend)(colours, raster, clip, faces, across, colours)[0])
        open_mesh = np.asarray(blended(backend)(colours, raster, clip, faces, np.full_like(across, -1), colours)[0])
    np.testing.assert_array_equal(out, colours)
    assert np.any(open_mesh != colours)


@pytest.mark.parametrize("name", BACKENDS)
def test_a_leading_axis_is_one_picture_after_the_other(name):
    made = [jittered(seed, "sphere") for seed in (1, 1, 2)]
    clips, colours = np.stack([m[0] for m in made]), np.stack([m[2] for m in made])
    faces = made[0][1]
    with running(name) as backend:
        each = [drawn(backend, clip, faces, 9, 12) for clip in clips]
        raster = jax.tree.map(lambda *v: np.stack(v), *each)
        across = oracle.opposite(faces).astype(np.int32)
        out, to_colours, to_clip = blended(backend)(colours, raster, clips, faces, across, colours)
        for i in range(3):
            one = blended(backend)(colours[i], each[i], clips[i], faces, across, colours[i])
            for a, b in zip((out, to_colours, to_clip), one):
                np.testing.assert_allclose(a[i], b, atol=1e-5)


@pytest.mark.parametrize("name", BACKENDS)
def test_a_mesh_of_nothing_leaves_the_colours(name):
    colours = jnp.asarray(np.random.default_rng(0).random((3, 4, 2)).astype(np.float32))
    raster = rasterize(jnp.zeros((0, 4)), jnp.zeros((0, 3), jnp.int32), 3, 4)
    with running(name) as backend:
        for vertices in (0, 5):
            out = antialias(colours, raster, jnp.ones((vertices, 4)), jnp.zeros((0, 3), jnp.int32), backend=backend)
            np.testing.assert_array_equal(out, colours)


@settings(max_examples=25)
@given(seed=st.integers(0, 2**31), vertices=st.integers(1, 12), count=st.sampled_from([0, 1, 20]))
def test_opposite_vertices_are_those_of_the_loop(seed, vertices, count):
    """Of any lists: faces with a vertex twice or without one, three at an edge, the same face twice."""
    faces = np.random.default_rng(seed).integers(-1 if seed % 3 == 0 else 0, vertices, (count, 3)).astype(np.int32)
    np.testing.assert_array_equal(across_of(faces), oracle.opposite(faces))


def test_a_closed_mesh_has_a_neighbour_at_every_edge():
    _, faces = oracle.sphere(6, 7)
    assert np.all(np.asarray(across_of(faces)) >= 0)
    np.testing.assert_array_equal(across_of(QUAD), [[-1, 3, -1], [-1, -1, 1]])


def test_bad_arguments_are_refused():
    clip, faces, colours = jnp.zeros((4, 4)), jnp.asarray(QUAD), jnp.zeros((3, 4, 2))
    raster = rasterize(jnp.zeros((0, 4)), jnp.zeros((0, 3), jnp.int32), 3, 4)
    for arguments, message in (
        ((colours.astype(jnp.bfloat16), raster, clip, faces), "colours must be float32"),
        ((colours[:2], raster, clip, faces), "do not fit together"),
        ((colours, raster, clip[None], faces), "do not fit together"),
        ((colours, raster, clip, faces, faces[:1]), "opposite must be int32 .2, 3."),
    ):
        with pytest.raises(ValueError, match=message):
            antialias(*arguments)
    with pytest.raises(ValueError, match="faces must be int32"):
        opposite_vertices(faces.astype(jnp.int8))
