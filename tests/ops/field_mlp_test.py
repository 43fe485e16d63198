"""field_mlp on the CPU kernels and the reference against a float64 evaluation, and its gradients."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ops import field_oracle
from tkjax.ops import cpu, dispatch, field_mlp
from tkjax.ops.field_mlp import ACTIVATIONS

needs_kernels = pytest.mark.skipif(cpu.unavailable() is not None, reason=f"CPU kernels: {cpu.unavailable()}")
BACKENDS = ["reference", pytest.param("cpu", marks=needs_kernels)]
ISAS = cpu.isas() if cpu.unavailable() is None else ()
SIZES = (0, 1, 63, 64, 65, 200, 2049)
SHAPES = (
    (1, 1),
    (3, 5, 2),
    (16, 16, 1),
    (17, 65, 33, 4),
    (36, 64, 32),
    (64, 64, 64, 65),
    (130, 128, 128),
    (300, 256, 7),
    (127, 256, 256, 256),
    (425, 256, 129, 1),
)


def problem(widths, n, bias, seed=0):
    rng, pairs = np.random.default_rng(seed), itertools.pairwise(widths)
    kernels = tuple(jnp.asarray(rng.normal(size=(a, b)) / np.sqrt(a), jnp.float32) for a, b in pairs)
    biases = tuple(jnp.asarray(rng.normal(size=b), jnp.float32) for b in widths[1:]) if bias else None
    return jnp.asarray(rng.normal(size=(n, widths[0])), jnp.float32), kernels, biases


@functools.cache
def jitted(backend, hidden="relu", output="none"):
    return jax.jit(functools.partial(field_mlp, hidden=hidden, output=output, backend=backend))


@functools.cache
def gradients(backend, hidden="relu", output="none"):
    return jax.jit(jax.grad(lambda args, w: jnp.sum(jitted(backend, hidden, output)(*args) * w)))


def close(a, b, tol=1e-5):
    def one(x, y):
        np.testing.assert_allclose(x, y, rtol=tol, atol=tol * (1 + float(jnp.max(jnp.abs(y), initial=0.0))))

    jax.tree.map(one, a, b)


@pytest.mark.heavy
@pytest.mark.parametrize("backend", BACKENDS)
@given(st.sampled_from(SHAPES), st.sampled_from(SIZES), st.booleans())
def test_forward_equals_float64(backend, widths, n, bias):
    x, kernels, biases = problem(widths, n, bias)
    want = field_oracle.mlp(np.float64(x), kernels, biases, "relu", "none")
    close(jitted(backend)(x, kernels, biases), jnp.asarray(want, jnp.float32))


@pytest.mark.parametrize("kind", ACTIVATIONS)
@pytest.mark.parametrize("isa", ISAS)
def test_activations_equal_float64_on_every_instruction_set(isa, kind):
    x = jnp.asarray(np.concatenate([np.linspace(-120, 120, 4801), 10.0 ** np.linspace(-30, 2, 65)]), jnp.float32)[
        :, None
    ]
    with cpu.isa(isa):
        got = jax.block_until_ready(jitted("cpu", output=kind)(x, (jnp.ones((1, 1)),), None))
    with np.errstate(over="ignore"):
        want = field_oracle.activation(kind, np.float64(x)).astype(np.float32)
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=3e-38)  # XLA's threads flush denormals to zero


def exp_of_exp(x, kernels, biases, w):
    """The gradients of sum w exp(exp(x A + a) B + b) in float64, like (x, kernels, biases)."""
    x, (a, b), (c, d), w = jax.tree.map(np.float64, (x, tuple(kernels), tuple(biases), w))
    h = np.exp(x @ a + c)
    outer = w * np.exp(h @ b + d)
    inner = outer @ b.T * h
    return inner @ a.T, (x.T @ inner, h.T @ outer), (inner.sum(0), outer.sum(0))


@pytest.mark.parametrize("kind", ACTIVATIONS)
@pytest.mark.parametrize("isa", ISAS)
def test_gradients_of_activations_equal_the_reference(isa, kind):
    x, kernels, biases = problem((7, 33, 5), 200, True)
    w = jnp.asarray(np.random.default_rng(1).normal(size=(200, 5)), jnp.float32)
    with cpu.isa(isa):
        got = jax.block_until_ready(gradients("cpu", kind, kind)((x, kernels, biases), w))
    # exp of exp reaches 1e36, where the reference itself may be 6e-5 off the exact gradient
    exact = exp_of_exp(x, kernels, biases, w) if kind == "exp" else None
    close(got, exact or gradients("reference", kind, kind)((x, kernels, biases), w), 2e-5)


@needs_kernels
def test_derivatives_far_from_zero():
    x = jnp.asarray([-200.0, -90.0, -20.0, -1e-3, 0.0, 1e-3, 20.0, 90.0, 200.0])[:, None]
    one = (jnp.ones((1, 1)),)
    for kind in ACTIVATIONS:
        got, want = (
            jax.grad(lambda x, b=b, k=kind: jnp.sum(jitted(b, output=k)(x, one, None)))(x) for b in ("cpu", "reference")
        )
        np.testing.assert_allclose(got, want, rtol=3e-6, atol=2e-7, err_msg=kind)


@pytest.mark.heavy
@needs_kernels
@settings(max_examples=12)
@given(st.sampled_from(SHAPES), st.sampled_from(SIZES), st.booleans())
def test_gradients_equal_the_reference(widths, n, bias):
    args = problem(widths, n, bias)
    w = jnp.asarray(np.random.default_rng(2).normal(size=(n, widths[-1])), jnp.float32)
    close(gradients("cpu")(args, w), gradients("reference")(args, w), 3e-5)


@needs_kernels
def test_gradient_equals_finite_differences():
    args = problem((5, 17, 3), 70, True)
    w = jnp.asarray(np.random.default_rng(3).normal(size=(70, 3)), jnp.float32)
    grads = gradients("cpu", "tanh", "softplus")(args, w)

    def loss(args):
        x, kernels, biases = args
        return np.sum(np.float64(w) * field_oracle.mlp(np.float64(x), kernels, biases, "tanh", "softplus"))

    rng, flat, tree = np.random.default_rng(4), *jax.tree.flatten(args)
    for _ in range(5):
        step = [rng.normal(size=v.shape) for v in flat]
        up, down = ([np.float64(v) + s * 1e-5 * d for v, d in zip(flat, step)] for s in (1, -1))
        want = (loss(jax.tree.unflatten(tree, up)) - loss(jax.tree.unflatten(tree, down))) / 2e-5
        got = sum(np.sum(np.float64(g) * d) for g, d in zip(jax.tree.leaves(grads), step))
        np.testing.assert_allclose(got, want, rtol=1e-4)


@needs_kernels
def test_nan_and_infinity_stay_in_their_sample_and_are_those_of_the_reference():
    x, kernels, _ = problem((9, 33, 6), 130, False)
    bad = x.at[3, 2].set(jnp.nan).at[70, 0].set(jnp.inf).at[71, 0].set(-jnp.inf).at[129].set(3e38)
    for kind in ACTIVATIONS:
        got, want = (np.asarray(jitted(b, kind, kind)(bad, kernels, None)) for b in ("cpu", "reference"))
        np.testing.assert_array_equal(np.isfinite(got), np.isfinite(want), err_msg=kind)
        # in the last sample both are lost, one as infinity and one as NaN: partial sums pass float32's end
        np.testing.assert_array_equal(np.isnan(got)[:-1], np.isnan(want)[:-1], err_msg=kind)
        np.testing.assert_array_equal(np.isinf(got)[:-1], np.isinf(want)[:-1], err_msg=kind)
        clean = np.asarray(jitted("cpu", kind, kind)(x, kernels, None))
        others = np.setdiff1d(np.arange(130), [3, 70, 71, 129])
        np.testing.assert_array_equal(got[others], clean[others])


@needs_kernels
def test_second_derivatives_are_refused_and_the_reference_has_them():
    x, kernels, _ = problem((4, 8, 1), 10, False)

    def twice(backend):
        loss = lambda x: jnp.sum(field_mlp(x, kernels, hidden="tanh", backend=backend))  # noqa: E731
        return jax.grad(lambda x: jnp.sum(jax.grad(loss)(x) ** 2))(x)

    with pytest.raises(NotImplementedError, match="second derivatives"):
        twice("cpu")
    assert np.isfinite(twice("reference")).all()


def test_what_does_not_fit_is_refused():
    x, kernels, biases = problem((4, 8, 2), 10, True)
    with pytest.raises(ValueError, match="fit together"):
        field_mlp(x[:, :3], kernels, biases)
    with pytest.raises(ValueError, match="fit together"):
        field_mlp(x, kernels, biases[:1])
    with pytest.raises(ValueError, match="float32"):
        field_mlp(x, tuple(k.astype(jnp.bfloat16) for k in kernels))
    with pytest.raises(ValueError, match="unknown; choose none, relu"):
        field_mlp(x, kernels, hidden="gelu")
    with pytest.raises(ValueError, match="widths"):
        field_mlp(x, (jnp.zeros((4, 300)),))


@needs_kernels
def test_the_kernels_run_by_default():
    args = problem((4, 8, 2), 10, False)
    with dispatch.use(None):
        text = jax.jit(field_mlp).lower(*args).as_text(debug_info=True)
    assert "tkjax_field_forward" in text and "field_mlp.cpu" in text
    assert "cpu" in dispatch.ran()["field_mlp"]
