"""blend_tables: the reference against the formula in float64, the kernels against it, and what they leave out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ops import triton_harness as harness
from tests.ops.grid_cases import BACKENDS, KERNELS, running
from tests.ops.rays import needs_kernels
from tkjax.ops import blend_tables, cpu

SIZES = [(0, 4), (1, 1), (1, 4), (5, 2), (17, 4), (300, 3), (4096, 2), (2051, 8)]  # entries, features
COUNTS = [(1, 1), (2, 5), (3, 17), (17, 3), (1, 53), (2, 53)]  # frames, tables


def inputs(seed, size=(17, 4), counts=(2, 5), zeros=0.5):
    """tables, coefficients of which a share is 0, and a cotangent."""
    rng, (frames, count) = np.random.default_rng(seed), counts
    tables, g = (rng.normal(size=(k, *size)).astype(np.float32) for k in (count, frames))
    coefficients = np.where(rng.random((frames, count)) < zeros, 0, rng.normal(size=(frames, count)))
    return tables, coefficients.astype(np.float32), g


@functools.cache
def jitted(backend):
    def call(tables, coefficients, g):
        out, vjp = jax.vjp(functools.partial(blend_tables, backend=backend), tables, coefficients)
        return (out, *vjp(g))

    return jax.jit(call)


def expected(tables, coefficients, g):
    """Values and gradients by the formula, in float64."""
    t, e, g = (v.astype(np.float64) for v in (tables, coefficients, g))
    return np.einsum("bk,ktf->btf", e, t), np.einsum("bk,btf->ktf", e, g), np.einsum("btf,ktf->bk", g, t)


def close(got, want, terms):
    for name, a, b, n in zip(("value", "tables", "coefficients"), got, want, terms, strict=True):
        assert a.shape == b.shape and a.dtype == np.float32
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * (1 + n) ** 0.5 * 8, err_msg=name)


def terms(tables, coefficients):
    """How many products each result sums."""
    return coefficients.shape[1], coefficients.shape[0], tables[0].size


@pytest.mark.parametrize("name", BACKENDS)
@settings(max_examples=20)
@given(
    seed=st.integers(0, 2**31), size=st.sampled_from(SIZES), counts=st.sampled_from(COUNTS),
    zeros=st.sampled_from([0.0, 0.7, 1.0]),
)  # fmt: skip
def test_values_and_gradients_are_the_formula(name, seed, size, counts, zeros):
    case = inputs(seed, size, counts, zeros)
    with running(name) as backend:
        got = jax.tree.map(np.asarray, jitted(backend)(*case))
    close(got, expected(*case), terms(*case[:2]))


@pytest.mark.parametrize("name", KERNELS)
def test_what_a_coefficient_of_zero_leaves_out_is_not_read(name):
    """Tables without a coefficient may hold anything; without zeros the same bits come out."""
    tables, coefficients, g = inputs(3, (2051, 4), (3, 17))
    unused = ~np.any(coefficients, 0)
    unused[4:6], coefficients[:, 4:6] = True, 0
    spoiled = np.where(unused[:, None, None], np.float32(np.nan), tables)  # not in place: JAX may still be reading
    with running(name) as backend:
        value, to_tables, _ = jax.tree.map(np.asarray, jitted(backend)(tables, coefficients, g))
        again = jax.tree.map(np.asarray, jitted(backend)(spoiled, coefficients, g))
    np.testing.assert_array_equal(again[0], value)
    np.testing.assert_array_equal(again[1], to_tables)
    assert unused.sum() >= 2 and not np.any(to_tables[unused])


@pytest.mark.parametrize("name", KERNELS)
def test_a_frame_alone_has_the_bits_that_it_has_among_others(name):
    tables, coefficients, g = inputs(5, (300, 4), (3, 53), zeros=0.6)
    with running(name) as backend:
        together = np.asarray(jitted(backend)(tables, coefficients, g)[0])
        for b in range(3):
            alone = jitted(backend)(tables, coefficients[b : b + 1], g[b : b + 1])[0]
            np.testing.assert_array_equal(alone[0], together[b])


@pytest.mark.parametrize("name", BACKENDS)
def test_coefficients_that_are_zero_have_their_gradient(name):
    tables, coefficients, g = inputs(7, (17, 4), (2, 5), zeros=1.0)
    with running(name) as backend:
        got = np.asarray(jitted(backend)(tables, coefficients, g)[2])
    assert np.all(np.abs(got) > 0)
    np.testing.assert_allclose(got, expected(tables, coefficients, g)[2], rtol=1e-4)


@pytest.mark.parametrize("name", BACKENDS)
def test_what_is_not_a_number_stays_in_its_frame(name):
    tables, coefficients, g = inputs(8, (17, 4), (2, 5), zeros=0.0)
    coefficients[1, 2] = np.nan
    with running(name) as backend:
        out = np.asarray(jitted(backend)(tables, coefficients, g)[0])
    assert np.all(np.isfinite(out[0])) and np.all(np.isnan(out[1]))


@needs_kernels
def test_only_the_gradient_that_is_asked_for_is_computed():
    tables, coefficients, _ = inputs(1)

    def text(argument):
        loss = lambda *both: jnp.sum(blend_tables(*both, backend="cpu") ** 2)  # noqa: E731
        return jax.jit(jax.grad(loss, argument)).lower(tables, coefficients).as_text()

    to_tables, to_coefficients = text(0), text(1)
    assert to_tables.count("@tkjax_blend_sums") == 2 and "@tkjax_blend_products" not in to_tables
    assert to_coefficients.count("@tkjax_blend_sums") == 1 and "@tkjax_blend_products" in to_coefficients


@pytest.mark.parametrize(
    "tables, coefficients, message",
    [
        ((5, 7, 4), (2, 4), "same K"),
        ((5, 7, 4), (2, 5), "tables must be float32, got bfloat16"),
        ((5, 7, 4), (2, 5), "choose triton, cpu, reference"),
    ],
)
def test_bad_arguments_are_refused(tables, coefficients, message):
    tables = jnp.zeros(tables, jnp.bfloat16 if "bfloat16" in message else jnp.float32)
    backend = "vulkan" if "choose" in message else None
    with pytest.raises(ValueError, match=message):
        blend_tables(tables, jnp.zeros(coefficients), backend=backend)


@needs_kernels
@pytest.mark.parametrize(
    "target, out, args, attributes, message",
    [
        ("sums", (2, 3, 4), ((2, 5), (4, 3, 4)), {"transposed": np.bool_(False)}, "weights must be"),
        ("sums", (2, 3, 4), ((2, 5), (5, 3, 4)), {"transposed": np.bool_(True)}, "weights must be"),
        ("sums", (2, 3, 1), ((2, 5), (5, 3, 4)), {"transposed": np.bool_(False)}, "weights must be"),
        ("products", (2, 2), ((2, 3, 4), (5, 3, 4)), {}, "inner products"),
        ("products", (2, 5), ((2, 3, 4), (5, 4, 4)), {}, "inner products"),
    ],
)
def test_the_handlers_check_what_they_are_given(target, out, args, attributes, message):
    result = jax.ShapeDtypeStruct(out, jnp.float32)
    arrays = [jnp.zeros(shape) for shape in args]
    with pytest.raises(jax.errors.JaxRuntimeError, match=message):
        jax.block_until_ready(cpu.call(f"tkjax_blend_{target}", result, *arrays, **attributes))


# -- Triton, in the interpreter and compiled ahead of time


def in_triton(*case):
    return jitted("triton")(*case)


@harness.needs_interpreter
@pytest.mark.heavy
@settings(max_examples=8)
@given(
    seed=st.integers(0, 2**31), size=st.sampled_from([(0, 4), (1, 1), (129, 4), (300, 8)]),
    counts=st.sampled_from([(1, 1), (1, 5), (2, 3), (17, 2), (3, 17)]), zeros=st.sampled_from([0.0, 0.7, 1.0]),
)  # fmt: skip
def test_triton_kernels_are_the_formula(seed, size, counts, zeros):
    case = inputs(seed, size, counts, zeros)
    close(harness.interpreted(__name__, "in_triton", *case), expected(*case), terms(*case[:2]))


@harness.needs_interpreter
@pytest.mark.heavy
def test_triton_kernels_do_not_read_what_no_frame_uses():
    tables, coefficients, g = inputs(2, (300, 4), (2, 5), zeros=0.0)
    coefficients[:, 2], coefficients[0, 3] = 0, 0
    value = expected(tables, coefficients, g)[0]
    tables[2] = np.nan
    got = harness.interpreted(__name__, "in_triton", tables, coefficients, g)
    np.testing.assert_allclose(got[0], value, atol=1e-5)


@harness.needs_triton
@pytest.mark.heavy
@pytest.mark.parametrize("frames", [1, 16])
def test_triton_kernels_fit_into_registers(frames):
    shape = harness.shape
    tables, coefficients = shape("float32", 53, 246_456, 4), shape("float32", frames, 53)
    g = shape("float32", frames, 246_456, 4)
    launches = harness.recorded(jitted("triton"), tables, coefficients, g)
    assert [launch.name for launch in launches] == ["sums_kernel", "sums_kernel", "products_kernel"]
    harness.check_resources(f"blend {frames} of 53", launches, registers=128)


@pytest.mark.gpu
@pytest.mark.parametrize("counts", COUNTS)
def test_triton_kernels_are_the_formula_on_the_gpu(counts):
    harness.require_gpu()
    case = inputs(4, (2051, 4), counts)
    close(jax.tree.map(np.asarray, jitted("triton")(*case)), expected(*case), terms(*case[:2]))
