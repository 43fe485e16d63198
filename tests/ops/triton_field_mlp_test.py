"""field_mlp's Triton kernels: in the interpreter against the reference, compiled ahead of time, lowered for CUDA."""

import functools
import importlib.metadata
import itertools
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ops import triton_harness as harness
from tkjax.ops import dispatch
from tkjax.ops.field_mlp import ACTIVATIONS, field_mlp

# Widths of the systems' parts, and awkward ones.
WIDTHS = [(36, 64, 32), (36, 16, 1), (69, 64, 64, 65), (84, 64, 3), (1, 1), (3, 17, 33, 15, 2), (130, 16, 128)]
SIZES = [0, 1, 15, 16, 17, 63, 64, 65, 130]
TOLERANCE = {"ieee": 1e-5, "tf32x3": 1e-5, "tf32": 3e-3, "bf16": 3e-2}  # relative to the largest value


def inputs(widths, n: int, biased: bool, seed: int, scale=1.0):
    """x, kernels, biases (or None), a cotangent."""
    rng = np.random.default_rng(seed)
    kernels = tuple(scale * rng.normal(size=s) / np.sqrt(s[0]) for s in pairwise(widths))
    biases = tuple(rng.normal(size=m) for m in widths[1:]) if biased else None
    case = rng.normal(size=(n, widths[0])), kernels, biases, rng.normal(size=(n, widths[-1]))
    return jax.tree.map(lambda a: a.astype(np.float32), case)


def gradients(fn, x, kernels, biases, g):
    """(value, gradients to x, kernels and biases)."""
    y, vjp = jax.vjp(fn, *jax.tree.map(jnp.asarray, (x, kernels, biases)))
    return y, *vjp(jnp.asarray(g))


def expected(hidden, output, x, kernels, biases, g, most=130):
    """The reference's, with rows of zeros added up to one size, so that each set of widths compiles once."""
    n, fn = len(x), functools.partial(field_mlp, hidden=hidden, output=output, backend="reference")
    x, g = (np.pad(v, ((0, max(0, most - n)), (0, 0))) for v in (x, g))
    y, by_x, *rest = gradients(fn, x, kernels, biases, g)
    return y[:n], by_x[:n], *rest


def close(got, want, tolerance):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.shape == b.shape
        scale = max(1e-3, float(np.max(np.abs(b), initial=0)))
        np.testing.assert_allclose(a, b, atol=tolerance * scale, rtol=0)


# -- run in the child process, where the kernels are interpreted


def _multiply_bfloat16():
    """Triton 3.9's interpreter multiplies the bit patterns of bfloat16 operands of a dot; here they are numbers."""
    from triton.runtime import interpreter

    def value(handle):
        if handle.dtype.is_bf16() and handle.data.dtype == np.uint16:
            return (handle.data.astype(np.uint32) << 16).view(np.float32)
        return handle.data

    def dot(self, a, b, d, *options):
        return interpreter.TensorHandle(np.matmul(value(a), value(b), dtype=np.float32) + d.data, d.dtype.scalar)

    interpreter.InterpreterBuilder.create_dot = dot


def in_triton(hidden, output, precision, x, kernels, biases, g, programs=256):
    _multiply_bfloat16()
    module = dispatch.resolve("field_mlp", "triton")
    module.PROGRAMS = programs
    fn = functools.partial(module.forward, hidden=hidden, output=output, precision=precision)
    return gradients(fn, x, kernels, biases, g)


def in_part(total, x, kernels, biases, g):
    """With only the first `total` rows there."""
    module = dispatch.resolve("field_mlp", "triton")
    fn = functools.partial(module.forward, hidden="relu", output="tanh", precision="ieee", total=jnp.int32(total))
    return gradients(fn, x, kernels, biases, g)


interpreted = functools.partial(harness.interpreted, __name__)


@harness.needs_interpreter
@given(
    widths=st.sampled_from(WIDTHS), n=st.sampled_from(SIZES), biased=st.booleans(), seed=st.integers(0, 2**31),
    hidden=st.sampled_from(ACTIVATIONS), output=st.sampled_from(ACTIVATIONS),
    precision=st.sampled_from(["ieee", "tf32x3", "tf32"]),
)  # fmt: skip
@settings(max_examples=14)
def test_values_and_gradients_equal_the_reference(widths, n, biased, seed, hidden, output, precision):
    case = inputs(widths, n, biased, seed, 0.5 if "exp" in hidden + output else 1.0)
    got = interpreted("in_triton", hidden, output, precision, *case)
    want = expected(hidden, output, *case)
    if precision == "tf32" and hidden in ("relu", "leaky_relu"):  # a rounded unit may be on the other side of zero
        got, want = got[0], want[0]
    close(got, want, (4.0 if "exp" in hidden + output else 1.0) * TOLERANCE[precision])


@harness.needs_interpreter
@pytest.mark.parametrize("precision", TOLERANCE)
def test_each_precision_is_as_good_as_it_says_and_no_better(precision):
    case = inputs((69, 64, 64, 65), 65, False, 1)
    got, want = interpreted("in_triton", "tanh", "none", precision, *case), expected("tanh", "none", *case)
    close(got, want, TOLERANCE[precision])
    if precision in ("tf32", "bf16"):  # the rounding is there, so the interpreter shows what it does to results
        error = np.max(np.abs(got[0] - want[0])) / np.max(np.abs(want[0]))
        assert error > TOLERANCE[precision] / 100


@harness.needs_interpreter
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_and_their_derivatives_far_out(name):
    x = np.array([-1e4, -100, -20, -15.5, -1e-3, -1e-30, 0, 1e-30, 1e-3, 10, 15.5, 20, 80], np.float32)[:, None]
    case = x, (np.ones((1, 1), np.float32),), None, np.ones_like(x)
    got, want = interpreted("in_triton", "none", name, "ieee", *case), expected("none", name, *case)
    for a, b in zip(got[:2], want[:2]):
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=4e-7)  # 1 - tanh² of a tanh that is 1 to a last place or two


@harness.needs_interpreter
@given(bad=st.sampled_from([np.nan, np.inf, -np.inf]), hidden=st.sampled_from(ACTIVATIONS), seed=st.integers(0, 99))
@settings(max_examples=6)
def test_what_is_not_finite_stays_in_its_sample_and_means_the_same(bad, hidden, seed):
    x, kernels, biases, g = inputs((3, 17, 2), 17, True, seed)
    clean = interpreted("in_triton", hidden, "none", "ieee", x, kernels, biases, g)
    x[5, 1] = bad
    got = interpreted("in_triton", hidden, "none", "ieee", x, kernels, biases, g)
    want = expected(hidden, "none", x, kernels, biases, g)
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(np.delete(got[0], 5, 0), np.delete(clean[0], 5, 0))
    np.testing.assert_array_equal(np.delete(got[1], 5, 0), np.delete(clean[1], 5, 0))


@harness.needs_interpreter
def test_infinity_in_a_padded_layer_does_not_become_nan():
    """exp of 17 units overflows in one sample; the 15 padded ones must not turn the sum into infinity times zero."""
    x, kernels, biases, g = inputs((3, 17, 2), 17, True, 3)
    biases[0][:] = 100.0  # also in the rows that do not exist
    got, want = (f(*a, x, kernels, biases, g) for f, a in (
        (functools.partial(interpreted, "in_triton"), ("exp", "none", "ieee")), (expected, ("exp", "none")),
    ))  # fmt: skip
    np.testing.assert_array_equal(np.isnan(got[0]), np.isnan(want[0]))
    np.testing.assert_array_equal(got[0], want[0])


@harness.needs_interpreter
def test_more_blocks_than_programs_and_repeated_runs_give_the_same_bits():
    case = inputs((36, 16, 1), 7 * 32 + 5, True, 5)
    got, again = (interpreted("in_triton", "relu", "none", "ieee", *case, 3) for _ in range(2))
    close(got, expected("relu", "none", *case), 1e-5)
    jax.tree.map(np.testing.assert_array_equal, got, again)


@harness.needs_interpreter
@pytest.mark.parametrize("total", [0, 1, 37, 64, 200])
def test_blocks_behind_the_last_row_are_not_read_and_give_zeros(total, n=200):
    x, kernels, biases, g = inputs((36, 16, 5), n, True, 5)
    want = expected("relu", "tanh", x[:total], kernels, biases, g[:total], n)
    behind = -(-total // 128) * 128
    g[total:], x[behind:], g[behind:] = 0.0, np.nan, np.nan
    y, by_x, *rest = interpreted("in_part", total, x, kernels, biases, g)
    close((y[:total], by_x[:total], *rest), want, 1e-5)
    assert not np.any(y[behind:]) and not np.any(by_x[total:])


def test_an_unknown_precision_is_refused():
    pytest.importorskip("triton")
    from tkjax.ops.triton import field_mlp as module

    with pytest.raises(ValueError, match="choose tf32"):
        module.precision_of("fp8")
    with jax.default_matmul_precision("bfloat16"):
        assert module.precision_of(None) == "bf16"
    assert module.precision_of(None) == "tf32"


# -- compiled and lowered without a GPU, at the sizes of the systems

REAL = [(36, 64, 32), (69, 64, 64, 65)]


def loss(x, kernels):
    return field_mlp(x, kernels, backend="triton").sum()


def shapes(widths, n=100_000):
    return harness.shape("float32", n, widths[0]), tuple(harness.shape("float32", *s) for s in pairwise(widths))


def _triton_version() -> tuple[int, ...]:
    return tuple(int(part) for part in importlib.metadata.version("triton").split(".")[:2])


@harness.needs_triton
@pytest.mark.parametrize("widths", REAL, ids=str)
def test_kernels_compile_for_the_gpu_without_spills(widths):
    launches = harness.recorded(jax.grad(loss, (0, 1)), *shapes(widths))
    assert [launch.name for launch in launches] == ["forward_kernel", "backward_kernel"]
    if _triton_version() >= (3, 9):
        harness.check_resources(f"field_mlp {widths}", launches)
    for launch, capability in itertools.product(launches, harness.CAPABILITIES):
        assert harness.compiled(launch, capability).stack <= 32  # Triton 3.7 spills 16 bytes of one of them
    assert all("mma" in harness.compiled(launch, c).ptx for launch in launches for c in harness.CAPABILITIES)


@harness.needs_lowering
def test_gradients_lower_for_cuda_in_two_kernels():
    text = harness.lowered(jax.value_and_grad(loss, (0, 1)), *shapes((36, 16, 1)))
    assert harness.kernel_calls(text) == 2


@harness.needs_lowering
def test_no_gradient_to_x_is_computed_where_none_is_asked_for():
    launches = harness.recorded(jax.grad(loss, 1), *shapes((36, 16, 1)))
    assert not dict(launches[-1].meta)["DX"]


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["tf32", "bf16", "tf32x3"])
def test_on_the_gpu_against_the_reference(precision):
    harness.require_gpu()
    case = inputs((69, 64, 64, 65), 10_000, True, 10)
    module = dispatch.resolve("field_mlp", "triton")
    fn = functools.partial(module.forward, hidden="tanh", output="none", precision=precision)
    with jax.default_matmul_precision("highest"):
        want = expected("tanh", "none", *case)
    got = jax.device_get(gradients(jax.jit(fn), *case))
    close(got, want, TOLERANCE[precision])
    jax.tree.map(np.testing.assert_array_equal, got, jax.device_get(gradients(jax.jit(fn), *case)))
