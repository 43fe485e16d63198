"""Wide MLPs on Triton, layer by layer: in the interpreter against the reference, compiled ahead of time, on the GPU."""

import functools
import itertools
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ops import programs
from tests.ops import triton_harness as harness
from tests.ops.triton_field_mlp_test import TOLERANCE, close, expected, gradients, inputs
from tkjax.ops import dispatch, field
from tkjax.ops.field_mlp import ACTIVATIONS, field_mlp

# The parts of AD-NeRF's networks that are wide (the trunk shorter), and awkward ones.
WIDTHS = [(127, 256, 256, 256), (425, 256, 256), (283, 128, 128, 128, 3), (300, 200, 129, 1), (33, 240, 250, 17)]
SIZES = [0, 1, 31, 32, 33, 127, 128, 130]

interpreted = functools.partial(harness.interpreted, "tests.ops.triton_field_mlp_test")


@harness.needs_interpreter
@given(
    widths=st.sampled_from(WIDTHS), n=st.sampled_from(SIZES), biased=st.booleans(), seed=st.integers(0, 2**31),
    hidden=st.sampled_from(ACTIVATIONS), output=st.sampled_from(ACTIVATIONS),
    precision=st.sampled_from(["ieee", "tf32x3", "tf32"]),
)  # fmt: skip
@settings(max_examples=6)
@pytest.mark.heavy
def test_values_and_gradients_equal_the_reference(widths, n, biased, seed, hidden, output, precision):
    case = inputs(widths, n, biased, seed, 0.3 if "exp" in hidden + output else 1.0)
    got = interpreted("in_triton", hidden, output, precision, *case)
    want = expected(hidden, output, *case)
    if precision == "tf32" and hidden in ("relu", "leaky_relu"):  # a rounded unit may be on the other side of zero
        got, want = got[0], want[0]
    close(got, want, (4.0 if "exp" in hidden + output else 2.0) * TOLERANCE[precision])


@harness.needs_interpreter
@pytest.mark.heavy
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_stays_in_its_sample_and_means_the_same(bad):
    """Padding of 200 to 224 and of 129 to 160 channels must not turn infinity into NaN."""
    x, kernels, biases, g = inputs((300, 200, 129, 2), 33, True, 3)
    clean = interpreted("in_triton", "relu", "none", "ieee", x, kernels, biases, g)
    kernels = tuple(np.abs(k) for k in kernels)  # infinity meets no infinity of the other sign
    x[5, 1] = bad
    got = interpreted("in_triton", "relu", "none", "ieee", x, kernels, biases, g)
    want = expected("relu", "none", x, kernels, biases, g)
    np.testing.assert_array_equal(np.isnan(got[0]), np.isnan(want[0]))
    np.testing.assert_array_equal(np.isinf(got[0]), np.isinf(want[0]))
    assert np.isnan(got[0][5]).all() if np.isnan(bad) else np.isinf(got[0][5]).all()
    assert np.isfinite(np.delete(got[0], 5, 0)).all() and clean[0].shape == got[0].shape


@harness.needs_interpreter
@pytest.mark.heavy
@pytest.mark.parametrize("total", [0, 37, 128])
def test_blocks_behind_the_last_row_are_not_read_and_give_zeros(total, n=300):
    x, kernels, biases, g = inputs((127, 256, 250, 5), n, True, 5)
    want = expected("relu", "tanh", x[:total], kernels, biases, g[:total], n)
    behind = -(-total // 128) * 128
    g[total:], x[behind:], g[behind:] = 0.0, np.nan, np.nan
    y, by_x, *rest = interpreted("in_part", total, x, kernels, biases, g)
    close((y[:total], by_x[:total], *rest), want, 2e-5)
    assert not np.any(y[behind:]) and not np.any(by_x[total:])


# -- compiled without a GPU


def loss(x, kernels, biases):
    return field_mlp(x, kernels, biases, output="relu", backend="triton").sum()


def shapes(widths, n=100_000):
    kernels = tuple(harness.shape("float32", *s) for s in pairwise(widths))
    return harness.shape("float32", n, widths[0]), kernels, tuple(harness.shape("float32", m) for m in widths[1:])


@harness.needs_triton
@pytest.mark.heavy
def test_kernels_compile_for_the_gpu_without_spills():
    """The layers around the skip: 383 -> 256 -> 256."""
    launches = harness.recorded(jax.grad(loss, (0, 1, 2)), *shapes((383, 256, 256)))
    assert [launch.name for launch in launches] == [
        "layer_kernel", "layer_kernel", "slope_kernel", "weights_kernel", "layer_kernel", "weights_kernel",
        "layer_kernel",
    ]  # fmt: skip
    harness.check_resources("wide 383-256-256", launches)
    products = [launch for launch in launches if launch.name != "slope_kernel"]
    for launch, capability in itertools.product(products, harness.CAPABILITIES):
        assert "mma" in harness.compiled(launch, capability).ptx


@harness.needs_triton
def test_a_network_takes_one_kernel_a_layer_and_no_kernel_holds_all_of_it():
    program = programs.ad_nerf()
    params = {k: {leaf: harness.shape("float32", *s) for leaf, s in v.items()} for k, v in program.params.items()}
    rows = {k: harness.shape("float32", 1, c) for k, c in program.rows.items()}

    def evaluate(points, rows, params):
        return field(program, points, {k: (v, None) for k, v in rows.items()}, params, backend="triton")

    launches = harness.recorded(evaluate, harness.shape("float32", 1000, 3), rows, params)
    assert [launch.name for launch in launches] == ["layer_kernel"] * 8 + ["forward_kernel"] + ["layer_kernel"] * 4
    # One row for all is a bias: neither the signal nor the direction are among the inputs.
    inner = [dict(launch.meta)["INNER"] for launch in launches if launch.name == "layer_kernel"]
    assert inner == [64, 256, 256, 256, 256, 320, 256, 256, 256, 128, 128, 128]


@harness.needs_triton
def test_no_gradient_to_x_is_computed_where_none_is_asked_for():
    launches = harness.recorded(jax.grad(loss, 1), *shapes((383, 256, 256)))
    assert sum(launch.name == "layer_kernel" for launch in launches) == 3


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["tf32", "bf16", "tf32x3"])
@pytest.mark.parametrize("widths", WIDTHS[:3], ids=str)
def test_on_the_gpu_against_the_reference(widths, precision):
    harness.require_gpu()
    case = inputs(widths, 10_000, True, 10)
    module = dispatch.resolve("field_mlp", "triton")
    fn = functools.partial(module.forward, hidden="tanh", output="none", precision=precision)
    with jax.default_matmul_precision("highest"):
        want = expected("tanh", "none", *case)
    got = jax.device_get(gradients(jax.jit(fn), *jax.tree.map(jnp.asarray, case)))
    close(got, want, 2 * TOLERANCE[precision])
    jax.tree.map(np.testing.assert_array_equal, got, jax.device_get(gradients(jax.jit(fn), *case)))
