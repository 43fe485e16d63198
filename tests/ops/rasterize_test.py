"""rasterize and interpolate: known values, loops in float64, watertight edges, what is drawn of spoiled meshes."""

import functools
import importlib.util
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ops import raster_oracle as oracle
from tests.ops.grid_cases import BACKENDS, KERNELS, running
from tests.ops.rays import needs_kernels
from tkjax.ops import Raster, cpu, interpolate, rasterize

ROOT = Path(__file__).resolve().parents[2]
SIZES = [(1, 1), (7, 12), (12, 5)]
KINDS = ["plain", "flat", "behind", "snapped", "spoiled"]
COUNT, VERTICES = 7, 9


@functools.cache
def jitted(backend, height, width):
    return jax.jit(functools.partial(rasterize, height=height, width=width, backend=backend))


def drawn(backend, clip, faces, height, width):
    return jax.tree.map(np.asarray, jitted(backend, height, width)(clip, faces))


@functools.cache
def _to_clip(backend):
    def pull(clip, faces, g):
        return jax.grad(lambda c: jnp.sum(rasterize(c, faces, *g.shape[:2], backend=backend).uv * g))(clip)

    return jax.jit(pull)


def to_clip(backend, clip, faces, g):
    """The gradient of <g, uv> to clip."""
    return np.asarray(_to_clip(backend)(clip, faces, g))


def agrees(got, want):
    """The oracle's picture where rounding does not decide."""
    face, uv, zw, sure = want
    assert got.face.dtype == np.int32 and got.uv.dtype == got.zw.dtype == np.float32
    np.testing.assert_array_equal(got.face[sure], face[sure])
    np.testing.assert_allclose(got.zw[sure], zw[sure], atol=2e-5)
    np.testing.assert_allclose(got.uv[sure], uv[sure], atol=2e-4)
    nothing = got.face == 0
    assert not np.any(got.uv[nothing]) and not np.any(got.zw[nothing])


TRIANGLE = np.array([[-1, -1, 0, 1], [3, -1, 0.5, 2], [-1, 1, 0, 1]], np.float32), np.array([[0, 1, 2]], np.int32)


@pytest.mark.parametrize("name", BACKENDS)
def test_one_triangle_has_the_known_values(name):
    with running(name) as backend:
        got = drawn(backend, *TRIANGLE, 4, 4)
    np.testing.assert_array_equal(got.face, [[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 0], [1, 0, 0, 0]])
    np.testing.assert_allclose(got.uv[0, :3, 0], [0.842105, 0.764706, 0.666667], atol=1e-6)
    for row in (0, 1):
        np.testing.assert_allclose(got.uv[row, :3, 1], [0.052632, 0.176471, 0.333333], atol=1e-6)
        np.testing.assert_allclose(got.zw[row, :3], [0.025, 0.075, 0.125], atol=1e-6)
    np.testing.assert_allclose([*got.uv[1, 3], got.zw[1, 3]], [0.153846, 0.538462, 0.175], atol=1e-6)


@pytest.mark.parametrize("name", BACKENDS)
def test_one_triangle_has_the_known_gradients(name):
    clip, faces = TRIANGLE
    want = {
        0: [(0.096886, 0.235294, 0, 0.083045), (0.036332, 0.088235, 0, 0.031142), (0.072664, 0.176471, 0, 0.062284)],
        1: [(-0.110727, 0, 0, -0.027682), (-0.041522, 0, 0, -0.010381), (-0.083045, 0, 0, -0.020761)],
    }
    with running(name) as backend:
        for k in (0, 1):
            g = np.zeros((4, 4, 2), np.float32)
            g[1, 1, k] = 1
            np.testing.assert_allclose(to_clip(backend, clip, faces, g), want[k], atol=1e-6)


@pytest.mark.heavy
@pytest.mark.parametrize("name", BACKENDS)
@settings(max_examples=14)
@given(seed=st.integers(0, 2**31), kind=st.sampled_from(KINDS), size=st.sampled_from(SIZES))
def test_pictures_are_those_of_the_loop(name, seed, kind, size):
    clip, faces = oracle.soup(seed, kind, COUNT, VERTICES)
    with running(name) as backend:
        got = drawn(backend, clip, faces, *size)
    agrees(got, oracle.rasterize(clip, faces, *size))


def test_the_oracle_is_sure_of_most_and_sees_faces():
    """Else the test above would not say much."""
    for kind in KINDS:
        made = [oracle.rasterize(*oracle.soup(seed, kind, COUNT, VERTICES), 7, 12) for seed in range(8)]
        assert np.mean([sure for *_, sure in made]) > 0.7, kind
        assert 0.3 < np.mean([face > 0 for face, *_ in made]) and len({f for m in made for f in m[0].flat}) > 4, kind


@pytest.mark.parametrize("name", KERNELS)
@settings(max_examples=14)
@given(seed=st.integers(0, 2**31), kind=st.sampled_from(KINDS), size=st.sampled_from(SIZES))
def test_kernels_have_the_bits_of_the_reference(name, seed, kind, size):
    clip, faces = oracle.soup(seed, kind, COUNT, VERTICES)
    with running(name) as backend:
        got = drawn(backend, clip, faces, *size)
    for a, b in zip(got, drawn("reference", clip, faces, *size)):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", BACKENDS)
@settings(max_examples=14)
@given(
    seed=st.integers(0, 2**31), jitter=st.sampled_from([0.0, 0.35, 0.45]), perspective=st.booleans(),
    snap=st.sampled_from([0, 16, 24, 12]),
)  # fmt: skip
def test_no_pixel_is_missed_between_faces(name, seed, jitter, perspective, snap):
    """Corners on pixel centres and on their borders, edges through both."""
    clip, faces = oracle.sheet(seed, jitter=jitter, perspective=perspective, snap=snap)
    with running(name) as backend:
        assert np.all(drawn(backend, clip, faces, 24, 12).face > 0)


@pytest.mark.parametrize("name", BACKENDS)
def test_every_pixel_off_the_edges_is_covered_by_one_face(name):
    clip, faces = oracle.sheet(5, side=3)
    sure = oracle.rasterize(clip, faces, 24, 12)[3]
    with running(name) as backend:
        each = [drawn(backend, clip, np.repeat(faces[f : f + 1], len(faces), 0), 24, 12).face > 0 for f in range(18)]
    np.testing.assert_array_equal(np.sum(each, 0)[sure], 1)
    assert sure.mean() > 0.95


@pytest.mark.parametrize("name", BACKENDS)
def test_specks_do_not_spread(name):
    """Faces a millionth of a pixel wide, whose edges are rounding errors far away."""
    rng = np.random.default_rng(0)
    centre = rng.uniform(-1, 1, (100, 1, 4)) * [1, 1, 0.5, 0] + [0, 0, 0, 1]
    clip = (centre + rng.normal(size=(100, 3, 4)) * [1e-7, 1e-7, 0, 0]).astype(np.float32).reshape(-1, 4)
    with running(name) as backend:
        assert not np.any(drawn(backend, clip, np.arange(300, dtype=np.int32).reshape(-1, 3), 24, 12).face)


@pytest.mark.parametrize("name", BACKENDS)
@settings(max_examples=10)
@given(seed=st.integers(0, 2**31), kind=st.sampled_from(["plain", "flat", "behind"]))
def test_of_the_same_triangle_twice_the_first_is_seen(name, seed, kind):
    """However its vertices are listed; and nothing but barycentric coordinates depends on that."""
    rng = np.random.default_rng(seed)
    clip, faces = oracle.soup(seed, kind, COUNT, VERTICES)
    again = np.stack([rng.permutation(f) for f in faces])
    with running(name) as backend:
        once, twice = drawn(backend, clip, faces, 12, 7), drawn(backend, clip, np.concatenate([faces, again]), 12, 7)
        listed = drawn(backend, clip, again, 12, 7)
    for a, b in zip(once, twice):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(listed.face, once.face)
    np.testing.assert_array_equal(listed.zw, once.zw)


@pytest.mark.parametrize("name", BACKENDS)
def test_what_is_behind_the_camera_or_past_a_plane_is_not_seen(name):
    clip, faces = map(np.copy, TRIANGLE)
    with running(name) as backend:
        assert not np.any(drawn(backend, -clip, faces, 4, 4).face)  # mirrored through the camera
        for z in (1.01, -1.01, np.nan):
            assert not np.any(drawn(backend, clip * [1, 1, 0, 1] + [0, 0, z * 2, 0], faces, 4, 4).face)
        for z in (1.0, -1.0):
            flat = np.float32([[-1, -1, z, 1], [3, -1, z, 1], [-1, 3, z, 1]])
            assert np.all(drawn(backend, flat, faces, 4, 4).face == 1)


@pytest.mark.parametrize("name", BACKENDS)
def test_a_floor_that_reaches_behind_the_camera_ends_at_its_plane(name):
    """y = -1 below a camera with a field of 90 degrees: depth w on row y is -1 / y, for rows above none."""
    corners = np.float32([[-50, -1, -50], [50, -1, -50], [50, -1, 50], [-50, -1, 50]])  # x, y, camera z
    w = -corners[:, 2:]
    near, far = 1.0, 10.0
    z = (w * (far + near) - 2 * far * near) / (far - near)
    clip = np.concatenate([corners[:, :2], z, w], 1).astype(np.float32)
    faces = np.int32([[0, 1, 2], [0, 2, 3]])
    with running(name) as backend:
        got = drawn(backend, clip, faces, 64, 9)
    y = oracle.centres(64)
    depth = np.where(y < 0, -1 / y, np.inf)
    np.testing.assert_array_equal(got.face > 0, ((depth > near) & (depth < far))[:, None] & np.ones(9, bool))
    row = np.flatnonzero(got.face[:, 4])
    w_seen = 2 * far * near / (far + near - got.zw[row, 4] * (far - near))
    np.testing.assert_allclose(w_seen, depth[row], rtol=1e-4)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("vertices, count", [(0, 0), (9, 0), (0, 7)])
def test_a_mesh_of_nothing_is_background(name, vertices, count):
    clip, faces = jnp.ones((vertices, 4)), jnp.zeros((count, 3), jnp.int32)
    with running(name) as backend:
        got = rasterize(clip, faces, 3, 5, backend=backend)
        assert got.face.shape == (3, 5) and got.uv.shape == (3, 5, 2) and got.zw.shape == (3, 5)
        assert not any(np.any(v) for v in got)
        slope = to_clip(backend, clip, faces, np.ones((3, 5, 2), np.float32))
        assert slope.shape == clip.shape and not np.any(slope)
        assert not np.any(interpolate(jnp.ones((vertices, 2)), got, faces, backend=backend))


@pytest.mark.heavy
@pytest.mark.parametrize("name", BACKENDS)
def test_a_leading_axis_and_vmap_are_one_mesh_after_the_other(name):
    clips = np.stack([oracle.soup(seed, "plain", COUNT, VERTICES)[0] for seed in range(3)])
    faces = oracle.soup(0, "plain", COUNT, VERTICES)[1]
    values = np.random.default_rng(0).normal(size=(3, VERTICES, 2)).astype(np.float32)
    with running(name) as backend:
        mix = jax.jit(functools.partial(interpolate, backend=backend))
        batch = jitted(backend, 7, 12)(clips, faces)
        mapped = jax.jit(jax.vmap(lambda c, f: rasterize(c, f, 7, 12, backend=backend)))(clips, np.stack([faces] * 3))
        own, shared = mix(values, batch, faces), mix(values[0], batch, faces)
        for i in range(3):
            one = drawn(backend, clips[i], faces, 7, 12)
            np.testing.assert_allclose(own[i], mix(values[i], one, faces), atol=1e-6)
            for a, b, c in zip(batch, mapped, one):
                np.testing.assert_array_equal(a[i], c)
                np.testing.assert_array_equal(b[i], c)
    np.testing.assert_allclose(shared[0], own[0], atol=1e-6)


# -- gradients, and interpolation


@functools.cache
def pulled(backend, height, width):
    """(clip, faces, attributes, g) -> picture, gradients to clip and attributes."""

    def call(clip, faces, attributes, g):
        def picture(clip, attributes):
            return interpolate(
                attributes, rasterize(clip, faces, height, width, backend=backend), faces, backend=backend
            )

        out, vjp = jax.vjp(picture, clip, attributes)
        return (out, *vjp(g))

    return jax.jit(call)


def picture_of(clip, faces, face, attributes):
    uv = oracle.coordinates(clip, faces, face)
    b = np.concatenate([uv, 1 - uv.sum(-1, keepdims=True)], -1)
    return np.where((face > 0)[..., None], np.einsum("hwk,hwkc->hwc", b, attributes[faces[np.maximum(face - 1, 0)]]), 0)


def by_differences(fn, x, step=1e-6):
    """The gradient of a number by its differences, in float64."""
    x, out = np.asarray(x, np.float64), np.zeros(x.shape)
    for i in np.ndindex(x.shape):
        change = np.zeros(x.shape)
        change[i] = step
        out[i] = (fn(x + change) - fn(x - change)) / (2 * step)
    return out


@pytest.mark.heavy
@pytest.mark.parametrize("name", BACKENDS)
@settings(max_examples=6)
@given(seed=st.integers(0, 2**31), kind=st.sampled_from(["plain", "flat"]))
def test_gradients_are_those_of_differences(name, seed, kind):
    clip, faces = oracle.soup(seed, kind, 4, 6)
    rng = np.random.default_rng(seed)
    attributes, g = rng.normal(size=(6, 3)).astype(np.float32), rng.normal(size=(7, 9, 3)).astype(np.float32)
    with running(name) as backend:
        out, to_clip, to_attributes = jax.tree.map(np.asarray, pulled(backend, 7, 9)(clip, faces, attributes, g))
        face = drawn(backend, clip, faces, 7, 9).face
    slivers = [np.abs(oracle.weights(clip[f].astype(np.float64), 0, 0)[0].sum()) < 0.05 for f in faces]
    if any(slivers):
        return  # the bound on gradients and rounding show; `test_slivers…` looks at those
    np.testing.assert_allclose(out, picture_of(clip, faces, face, attributes), atol=1e-4)
    loss = lambda c, a: np.sum(picture_of(c, faces, face, a) * g)  # noqa: E731
    want = by_differences(lambda c: loss(c, attributes), clip)
    np.testing.assert_allclose(to_clip, want, atol=2e-3 * (1 + np.abs(want).max()))
    want = by_differences(lambda a: loss(clip, a), attributes)
    np.testing.assert_allclose(to_attributes, want, atol=1e-4 * (1 + np.abs(want).max()))
    assert not np.any(to_clip[:, 2])


@pytest.mark.parametrize("name", BACKENDS)
def test_slivers_have_the_gradients_of_the_closed_form(name):
    """A face so narrow that the 1e-6 beside its area counts."""
    clip = np.float32([[-1, -1, 0, 1], [1, 1 - 4e-6, 0, 1], [1, 1 + 4e-6, 0, 1]])
    faces, g = np.int32([[0, 1, 2]]), np.float32([0.7, -0.4])
    with running(name) as backend:
        got = to_clip(backend, clip, faces, np.pad(g[None, None], ((1, 1), (1, 1), (0, 0))))
        u, v = drawn(backend, clip, faces, 3, 3).uv[1, 1]
    x, y = clip[:, 0].astype(np.float64), clip[:, 1].astype(np.float64)
    total = oracle.weights(clip.astype(np.float64), 0, 0)[0].sum()
    r = 1 / (total + np.copysign(1e-6, total))
    h0, h1 = g * r
    h = h0 * u + h1 * v
    to_x = [h * (y[2] - y[1]) - h1 * y[2], h * (y[0] - y[2]) + h0 * y[2], h * (y[1] - y[0]) - h0 * y[1] + h1 * y[0]]
    to_y = [h * (x[1] - x[2]) + h1 * x[2], h * (x[2] - x[0]) - h0 * x[2], h * (x[0] - x[1]) + h0 * x[1] - h1 * x[0]]
    np.testing.assert_allclose(got[:, 0], to_x, rtol=1e-3)
    np.testing.assert_allclose(got[:, 1], to_y, rtol=1e-3)
    assert np.abs(to_x).max() < 0.95 * np.abs(np.array(to_x) * r**-1 / total).max()


@pytest.mark.parametrize("name", BACKENDS)
def test_what_is_not_a_number_stays_where_it_is(name):
    """A vertex that is not finite takes its faces away and has no gradient; others have theirs."""
    clip, faces = oracle.sheet(3)
    clip[7] = np.nan
    rng = np.random.default_rng(0)
    attributes, g = rng.normal(size=(25, 2)).astype(np.float32), rng.normal(size=(24, 12, 2)).astype(np.float32)
    with running(name) as backend:
        out, to_clip, to_attributes = pulled(backend, 24, 12)(clip, faces, attributes, g)
    assert np.all(np.isfinite(out)) and np.all(np.isfinite(to_clip)) and np.all(np.isfinite(to_attributes))
    assert not np.any(to_clip[7]) and np.count_nonzero(to_clip) > 30


@pytest.mark.parametrize("name", BACKENDS)
def test_attributes_that_are_planes_in_space_are_those_planes_at_pixels(name):
    """1 everywhere is 1 where a face is, and X / W is the pixel's own x, since both are in perspective."""
    clip, faces = oracle.sheet(4)
    with running(name) as backend:
        raster = jitted(backend, 24, 12)(clip, faces)
        mix = jax.jit(functools.partial(interpolate, backend=backend))
        got = np.asarray(mix(np.concatenate([clip, np.ones((25, 1), np.float32)], 1), raster, faces))
    np.testing.assert_allclose(got[..., 4], 1, atol=1e-6)
    np.testing.assert_allclose(got[..., 0] / got[..., 3], np.broadcast_to(oracle.centres(12), (24, 12)), atol=1e-4)
    np.testing.assert_allclose(got[..., 2] / got[..., 3], raster.zw, atol=1e-4)


def test_bad_arguments_are_refused():
    clip, faces = jnp.zeros((4, 4)), jnp.zeros((2, 3), jnp.int32)
    for arguments, message in (
        ((clip.astype(jnp.bfloat16), faces, 4, 4), "clip coordinates must be float32, got bfloat16"),
        ((clip, faces.astype(jnp.int16), 4, 4), "faces must be int32"),
        ((clip, faces, 0, 4), "1 … 32768, got 0 x 4"),
        ((clip[None, None], faces, 4, 4), "must be .V,4. or .B,V,4."),
    ):
        with pytest.raises(ValueError, match=message):
            rasterize(*arguments)
    raster = Raster(jnp.zeros((4, 4), jnp.int32), jnp.zeros((4, 4, 2)), jnp.zeros((4, 4)))
    with pytest.raises(ValueError, match="do not fit together"):
        interpolate(jnp.zeros((2, 4, 3)), raster, faces)
    with pytest.raises(ValueError, match="attributes and uv must be float32"):
        interpolate(jnp.zeros((4, 3), jnp.bfloat16), raster, faces)


@needs_kernels
@pytest.mark.parametrize(
    "target, out, args, message",
    [
        ("raster_draw", [(4, 5), (4, 5, 2), (4, 5)], [(6, 3), (2, 3, "i")], "clip must be .V,4."),
        ("raster_draw", [(4, 5), (4, 5), (4, 5)], [(6, 4), (2, 3, "i")], "uv .H,W,2."),
        ("raster_pull", [(6, 4)], [(6, 4), (2, 3, "i"), (4, 5, "i"), (4, 4, 2)], "cotangent must be"),
        ("mix_draw", [(4, 5, 3)], [(6, 3), (4, 5, "i"), (4, 5, 1), (2, 3, "i")], "needs attributes"),
        ("mix_draw", [(4, 5, 2)], [(6, 3), (4, 5, "i"), (4, 5, 2), (2, 3, "i")], "result must be"),
        ("silhouette_draw", [(4, 5), (4, 5)], [(6, 4), (4, 5, "i"), (4, 5), (2, 3, "i"), (1, 3, "i")], "opposite"),
    ],
)  # fmt: skip
def test_the_handlers_check_what_they_are_given(target, out, args, message):
    def empty(shape):
        return np.zeros([n for n in shape if n != "i"], np.int32 if "i" in shape else np.float32)

    results = [jax.ShapeDtypeStruct(s, jnp.int32 if (target, i) == ("raster_draw", 0) else jnp.float32)
               for i, s in enumerate(out)]  # fmt: skip
    with pytest.raises(jax.errors.JaxRuntimeError, match=message):
        jax.block_until_ready(cpu.call(f"tkjax_{target}", results, *map(empty, args)))


@pytest.mark.parametrize("name", KERNELS)
def test_a_picture_of_another_mesh_is_refused_or_background(name):
    faces, uv = np.int32([[0, 1, 2], [0, 1, 9]]), np.full((2, 2, 2), 0.25, np.float32)
    mix = jax.jit(functools.partial(interpolate, backend="cpu"))
    with running(name):
        got = mix(np.ones((3, 1), np.float32), Raster(np.int32([[0, 1], [2, 2]]), uv, uv[..., 0]), faces)
        np.testing.assert_array_equal(got[..., 0], [[0, 1], [0, 0]])  # the vertex 9 is not there
        with pytest.raises((ValueError, jax.errors.JaxRuntimeError), match="a face that the mesh has not"):
            jax.block_until_ready(
                mix(np.ones((3, 1), np.float32), Raster(np.full((2, 2), 3, np.int32), uv, uv[..., 0]), faces)
            )


@pytest.mark.heavy
def test_the_plain_loop_of_the_benchmark_draws_the_same():
    """Else its time would be no measure."""
    spec = importlib.util.spec_from_file_location("raster_plain", ROOT / "benchmarks/raster_plain.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        text = module.run("generic", 20, 100, 1)
    except OSError as error:
        pytest.skip(str(error))
    faces, covered, differ = map(int, re.match(r"(\d+) faces, (\d+) pixels covered, (\d+) differ", text).groups())
    assert faces == 800 and covered > 5000 and differ <= 10
