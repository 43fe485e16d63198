"""The Triton kernels of meshes: in Triton's interpreter like the reference, and compiled ahead of time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ops import raster_oracle as oracle
from tests.ops import triton_harness as harness
from tkjax.ops import Raster, antialias, interpolate, opposite_vertices, rasterize

SIZES = [(1, 1), (9, 21)]


@functools.cache
def jitted(backend):
    """(clip, faces, opposite, attributes, g) -> raster, picture, gradients to clip and attributes."""

    def call(clip, faces, opposite, attributes, g):
        def picture(clip, attributes):
            raster = rasterize(clip, faces, *g.shape[:2], backend=backend)
            colours = interpolate(attributes, raster, faces, backend=backend)
            return antialias(colours, raster, clip, faces, opposite, backend=backend), raster

        out, vjp, raster = jax.vjp(picture, clip, attributes, has_aux=True)
        return raster, out, vjp(g)

    return jax.jit(call)


def in_triton(*case):
    return jitted("triton")(*case)


def inputs(seed, kind, size, channels=3):
    clip, faces = oracle.sheet(seed, 3) if kind == "sheet" else oracle.soup(seed, kind, 7, 9)
    rng = np.random.default_rng(seed)
    opposite = np.asarray(opposite_vertices(jnp.asarray(faces)))
    attributes = rng.normal(size=(len(clip), channels)).astype(np.float32)
    return clip, faces, opposite, attributes, rng.normal(size=(*size, channels)).astype(np.float32)


def close(got, want):
    """Faces and depths to the bit, the rest relative to the largest."""
    for name, a, b in zip(Raster._fields, got[0], want[0], strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)
    for a, b in zip(jax.tree.leaves(got[1:]), jax.tree.leaves(want[1:]), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=3e-5 * (1 + np.max(np.abs(b))))


@harness.needs_interpreter
@settings(max_examples=10)
@given(
    seed=st.integers(0, 2**31), kind=st.sampled_from(["plain", "flat", "behind", "snapped", "spoiled", "sheet"]),
    size=st.sampled_from(SIZES),
)  # fmt: skip
def test_triton_kernels_are_the_reference(seed, kind, size):
    case = inputs(seed, kind, size)
    close(harness.interpreted(__name__, "in_triton", *case), jax.tree.map(np.asarray, jitted("reference")(*case)))


@harness.needs_interpreter
@pytest.mark.parametrize("channels", [1, 5, 19])
def test_triton_kernels_take_any_number_of_channels(channels):
    case = inputs(3, "sheet", (9, 21), channels)
    close(harness.interpreted(__name__, "in_triton", *case), jax.tree.map(np.asarray, jitted("reference")(*case)))


@harness.needs_interpreter
def test_triton_kernels_see_a_list_of_faces_that_is_no_multiple_of_their_block():
    """Of 32 faces at a time: the last of 70 is the one that is nearest."""
    clip, faces, _, _, _ = inputs(1, "plain", (9, 21))
    near = np.float32([[-2, -2, -0.99, 1], [4, -2, -0.99, 1], [-2, 4, -0.99, 1]])
    clip, faces = np.concatenate([clip, near]), np.concatenate([np.tile(faces, (10, 1))[:69], np.int32([[9, 10, 11]])])
    opposite, rng = np.full_like(faces, -1), np.random.default_rng(0)
    case = clip, faces, opposite, rng.normal(size=(12, 2)).astype(np.float32), np.ones((9, 21, 2), np.float32)
    got = harness.interpreted(__name__, "in_triton", *case)
    assert np.all(got[0].face == 70)
    close(got, jax.tree.map(np.asarray, jitted("reference")(*case)))


@harness.needs_triton
def test_triton_kernels_fit_into_registers():
    shape = harness.shape
    mesh = shape("float32", 25_000, 4), shape("int32", 50_000, 3), shape("int32", 50_000, 3)
    launches = harness.recorded(jitted("triton"), *mesh, shape("float32", 25_000, 9), shape("float32", 448, 448, 9))
    names = [launch.name for launch in launches]
    assert sorted(names) == sorted(
        ["draw_kernel", "mix_kernel", "find_kernel", "pull_kernel", "pull_kernel", "pull_kernel"]
    )
    harness.check_resources("mesh", launches, registers=128)
    for launch in launches:
        if launch.name in ("draw_kernel", "find_kernel"):  # they decide: products and sums are rounded one by one
            assert "fma.rn.f32" not in harness.compiled(launch, 90).ptx


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["plain", "behind", "snapped", "sheet"])
def test_triton_kernels_are_the_reference_on_the_gpu(kind):
    harness.require_gpu()
    case = inputs(4, kind, (100, 75))
    got, want = (jax.tree.map(np.asarray, jitted(backend)(*case)) for backend in ("triton", "reference"))
    assert np.mean(got[0].face != want[0].face) < 1e-3
    np.testing.assert_allclose(got[1], want[1], atol=0.1)
