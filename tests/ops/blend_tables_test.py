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
