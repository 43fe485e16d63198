"""The device functions that Triton kernels share: encodings and codes against the reference, in the interpreter."""

import functools
from typing import no_type_check

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.ops import triton_harness as harness
from tkjax.ops import freq_encode
from tkjax.ops.reference import morton

triton = pytest.importorskip("triton", reason="triton is not installed")
import triton.language as tl  # noqa: E402

from tkjax.ops.triton import device  # noqa: E402


@triton.jit
@no_type_check
def encodings_kernel(points, cells, optical, N, octaves, codes, alphas, BLOCK: tl.constexpr):
    """Four octaves of a 3-D frequency encoding (27 columns of 32), Morton codes, 1 - exp(-x)."""
    n = tl.arange(0, BLOCK)
    mask = n < N
    column = tl.arange(0, 32)[None, :]
    value = tl.load(points + 3 * n[:, None] + column % 3, mask=mask[:, None], other=0.0)
    value = device.frequency(value, column // 3)
    tl.store(octaves + n[:, None] * 27 + column, value, mask=mask[:, None] & (column < 27))
    i = tl.load(cells + 3 * n, mask=mask, other=0)
    j = tl.load(cells + 3 * n + 1, mask=mask, other=0)
    k = tl.load(cells + 3 * n + 2, mask=mask, other=0)
    tl.store(codes + n, device.morton3(i, j, k), mask=mask)
    tl.store(alphas + n, device.alpha(tl.load(optical + n, mask=mask, other=0.0)), mask=mask)


def encodings(points, cells, optical):
    from tkjax.ops.triton import launch

    n = points.shape[0]
    f, i = np.float32, np.int32
    shapes = [((n, 27), f), ((n,), i), ((n,), f)]
    return launch.call(
        encodings_kernel, points, cells, optical, n, out_shape=[jax.ShapeDtypeStruct(*s) for s in shapes],
        grid=(1,), BLOCK=64,
    )  # fmt: skip


def inputs(n=50):
    rng = np.random.default_rng(0)
    points = rng.normal(size=(n, 3))
    points /= np.linalg.norm(points, axis=-1, keepdims=True)
    optical = np.concatenate([[0.0, np.inf, 1e-20, 0.2499, 0.2501], 10.0 ** rng.uniform(-8, 2, n - 5)])
    cells = rng.integers(0, 1024, (n, 3)).astype(np.int32)
    return points.astype(np.float32), cells, optical.astype(np.float32)


@harness.needs_interpreter
def test_encodings_equal_the_reference():
    points, cells, optical = inputs()
    octaves, codes, alphas = harness.interpreted(__name__, "encodings", points, cells, optical)
    points, cells = jnp.asarray(points), jnp.asarray(cells)
    np.testing.assert_allclose(octaves, freq_encode(points, 4, backend="reference"), atol=1e-6)
    np.testing.assert_array_equal(codes, morton.encode_xyz(*cells.T))
    np.testing.assert_allclose(alphas, -np.expm1(-optical.astype(np.float64)), rtol=4e-7)


def test_they_compile():
    """Sine and cosine keep 32 bytes in local memory for the reduction of very large angles, so stack is not asked."""
    shapes = harness.shape("float32", 50, 3), harness.shape("int32", 50, 3), harness.shape("float32", 50)
    (launch,) = harness.recorded(encodings, *shapes)
    assert all(harness.compiled(launch, c).registers <= 128 for c in harness.CAPABILITIES)


@harness.needs_triton
@pytest.mark.parametrize("name", ["grid", "empty", "float"])
def test_launches_that_a_gpu_cannot_do(name):
    """A grid beyond the hardware's limits and a float argument are errors; an empty grid launches nothing."""
    from tkjax.ops.triton import launch

    x = np.zeros((2, 2), np.float32)
    call = functools.partial(launch.call, encodings_kernel, x, out_shape=[jax.ShapeDtypeStruct((0, 3), np.float32)])
    if name == "empty":
        assert call(grid=(0,))[0].shape == (0, 3)
        return
    arguments = dict(grid=(1, 70000)) if name == "grid" else dict(grid=(1,))
    with pytest.raises((ValueError, TypeError), match="65535" if name == "grid" else "constexpr|int"):
        launch.call(
            encodings_kernel, x, *([0.5] if name == "float" else []),
            out_shape=[jax.ShapeDtypeStruct((1,), np.float32)], **arguments,
        )  # fmt: skip
