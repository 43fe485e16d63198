"""composite's Triton kernels: in the interpreter against the reference, compiled ahead of time, lowered for CUDA."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ops import triton_harness as harness
from tkjax.ops import composite, composite_packed

DT = 0.0270632939
SIZES = {  # rays, samples, weighted channels, plain channels
    "none": (0, 4, 3, 1),
    "one": (1, 1, 1, 0),
    "training": (19, 16, 4, 2),
    "long": (5, 37, 3, 0),  # several tiles of samples
    "plain": (17, 5, 0, 3),
}


def inputs(size: str, seed: int):
    """Thin and dense rays, walls, steps of no length, slots that are not valid and hold anything; cotangents."""
    (rays, samples, channels, plain), rng = SIZES[size], np.random.default_rng(seed)
    sigma = rng.exponential(1, (rays, samples)) * rng.choice([0.1, 5.0, 20.0, 200.0], (rays, 1))
    sigma[rng.random(sigma.shape) < 0.03] = np.inf
    sigma[rng.random(sigma.shape) < 0.1] = 0.0
    valid = np.arange(samples) < rng.integers(0, samples + 1, (rays, 1))
    valid &= rng.random(valid.shape) < 0.9
    t = 2.9 + DT * np.arange(1, samples + 1) + rng.random((rays, 1))
    dt = rng.choice([0.0, DT, 2 * DT, -DT], (rays, samples), p=[0.05, 0.6, 0.3, 0.05])
    weighted, extra = rng.random((rays, samples, channels)), rng.normal(size=(rays, samples, plain))
    for v in (sigma, t, weighted, extra):
        v[~valid] = np.nan
    g = [rng.normal(size=shape) for shape in ((rays, channels), (rays, plain), (rays,), (rays,))]
    arrays = (sigma, t, weighted, extra, dt, *g)
    return valid, *(v.astype(np.float32) for v in arrays)


def pack(valid, sigma, t, weighted, extra, dt, *g):
    """The same samples packed, with two unused slots behind them that hold NaN."""

    def packed(v):
        return np.concatenate([v[valid], np.full((2, *v.shape[2:]), np.nan, v.dtype)])

    count = valid.sum(1).astype(np.int32)
    return (np.cumsum(count).astype(np.int32) - count, count, *map(packed, (sigma, t, weighted, extra, dt)), *g)


def gradients(fn, g, *values):
    out, vjp = jax.vjp(fn, *values)
    return tuple(out), vjp(type(out)(*g))


def dense(valid, sigma, t, weighted, extra, dt, *g, backend):
    def fn(sigma, t, weighted, extra):
        return composite(sigma, valid, t, weighted, extra, dt=dt, backend=backend)

    return gradients(fn, g, sigma, t, weighted, extra)


def packed(offset, count, sigma, t, weighted, extra, dt, *g, backend):
    def fn(sigma, t, weighted, extra):
        return composite_packed(sigma, t, dt, offset, count, weighted, extra, backend=backend)

    return gradients(fn, g, sigma, t, weighted, extra)


reference = {
    what: jax.jit(functools.partial(fn, backend="reference")) for what, fn in (("dense", dense), ("packed", packed))
}


# -- run in the child process, where the kernels are interpreted


def in_triton(what, *args):
    fn = jax.jit(functools.partial({"dense": dense, "packed": packed}[what], backend="triton"))
    return fn(*map(jnp.asarray, args))


interpreted = functools.partial(harness.interpreted, __name__)


def close(got, want):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, atol=3e-6, rtol=3e-5)


@harness.needs_interpreter
@given(size=st.sampled_from(sorted(SIZES)), seed=st.integers(0, 2**31), what=st.sampled_from(["dense", "packed"]))
@settings(max_examples=15)
def test_values_and_gradients_equal_the_reference(size, seed, what):
    args = inputs(size, seed)
    if what == "packed":
        if size == "none":  # the reference has no gradient for no rays at all
            (sums, *_), slopes = interpreted("in_triton", what, *pack(*args))
            assert sums.shape == (0, 3)
            for slope in slopes:
                np.testing.assert_array_equal(slope, 0.0)
            return
        rows = -(-len(pack(*args)[2]) // 128) * 128  # one size of the reference for several counts
        args = pack(*args)
        grow = [(0, rows - len(args[2]))]
        args = (*args[:2], *(np.pad(v, grow + [(0, 0)] * (v.ndim - 1)) for v in args[2:7]), *args[7:])
    close(interpreted("in_triton", what, *args), reference[what](*args))


@harness.needs_interpreter
def test_one_step_for_all_samples():
    args = list(inputs("training", 1))
    args[5] = np.float32(DT)
    close(interpreted("in_triton", "dense", *args), reference["dense"](*args))


@harness.needs_interpreter
def test_nan_stays_within_its_ray():
    valid, *rest = inputs("training", 2)
    valid[3, :5] = True
    for v, fill in zip(rest[:4], (1.0, 2.0, 0.5, 0.5)):
        v[3, :5] = fill
    rest[4][:] = DT
    rest[0][3, 2] = np.nan
    value, slopes = interpreted("in_triton", "dense", valid, *rest)
    want, want_slopes = reference["dense"](valid, *rest)
    close(value, want)
    assert np.isnan(value[2][3])
    assert np.isfinite(np.delete(value[2], 3)).all()
    others = np.arange(len(valid)) != 3
    close([v[others] for v in slopes], [v[others] for v in want_slopes])


# -- compiled and lowered without a GPU


def loss(samples_are_packed: bool):
    def dense_loss(sigma, t, weighted, plain, valid, dt):
        out = composite(sigma, valid, t, weighted, plain, dt=dt, backend="triton")
        return sum(v.sum() for v in out)

    def packed_loss(sigma, t, weighted, plain, dt, offset, count):
        out = composite_packed(sigma, t, dt, offset, count, weighted, plain, backend="triton")
        return sum(v.sum() for v in out)

    return packed_loss if samples_are_packed else dense_loss


def shapes(samples_are_packed: bool, rays=4096, samples=16, channels=4, plain=2):
    f = functools.partial(harness.shape, "float32")
    if samples_are_packed:
        m = rays * samples
        ranges = [harness.shape("int32", rays)] * 2
        return f(m), f(m), f(m, channels), f(m, plain), f(m), *ranges
    size = rays, samples
    return f(*size), f(*size), f(*size, channels), f(*size, plain), harness.shape("bool", *size), f(*size)


@harness.needs_triton
@pytest.mark.parametrize("samples_are_packed", [False, True])
@pytest.mark.parametrize("channels", [3, 8])
def test_kernels_compile_without_spills(samples_are_packed, channels):
    fn = jax.grad(loss(samples_are_packed), (0, 1, 2, 3))
    found = harness.recorded(fn, *shapes(samples_are_packed, channels=channels))
    assert [launch.name for launch in found] == ["forward_kernel", "backward_kernel"]
    assert found[1].zeroed == (0, 1, 2, 3)
    assert dict(found[1].meta)["WITH_T"]
    harness.check_resources("packed" if samples_are_packed else "dense", found, 96, 16_000, full_house=8)


@harness.needs_triton
def test_the_gradient_to_t_costs_nothing_unless_asked_for():
    found = harness.recorded(jax.grad(loss(False), (0, 2)), *shapes(False))
    assert not dict(found[1].meta)["WITH_T"]


@harness.needs_lowering
@pytest.mark.parametrize("samples_are_packed", [False, True])
def test_the_public_ops_lower_for_cuda(samples_are_packed):
    fn = jax.value_and_grad(loss(samples_are_packed), (0, 1, 2, 3))
    assert harness.kernel_calls(harness.lowered(fn, *shapes(samples_are_packed))) == 2


@pytest.mark.gpu
@pytest.mark.parametrize("size", sorted(SIZES))
def test_on_the_gpu(size):
    harness.require_gpu()
    args = inputs(size, 6)
    close(in_triton("dense", *args), reference["dense"](*args))
    args = pack(*args)
    close(in_triton("packed", *args), reference["packed"](*args))
