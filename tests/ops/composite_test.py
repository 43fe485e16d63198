"""composite and composite_packed against a float64 loop, finite differences, the dossier's numbers, and each other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from tests import oracle
from tests.ops.rays import ISAS, VARIANTS, needs_kernels, spoiled, variant
from tkjax.ops import composite, composite_packed, cpu

DT = 0.0270632939
R, S, C, Q = 6, 8, 4, 2
SHAPES = [(1, 1, 1, 0), (7, 16, 4, 2), (300, 5, 3, 1), (5, 61, 5, 0), (3, 33, 0, 1)]  # rays, slots, channels, plains


@functools.cache
def forward(backend, each=False, stop=1e-4):
    if each:
        return jax.jit(lambda dt, *args: composite(*args, dt=dt, stop=stop, backend=backend))
    return jax.jit(lambda *args: composite(*args, dt=DT, stop=stop, backend=backend))


@functools.cache
def packed_forward(backend):
    return jax.jit(lambda *args: composite_packed(*args, backend=backend))


@functools.cache
def backward(call, which):
    """Gradients of the sums weighted with `cotangents` to the arguments `which`."""

    def total(cotangents, *args):
        return sum(jnp.sum(a * b) for a, b in zip(call(*args), cotangents))

    return jax.jit(jax.grad(total, tuple(1 + i for i in which)))


def run(name, make, *args):
    with variant(name) as backend:
        return jax.block_until_ready(make(backend)(*args))


def inputs(seed, peak=200.0, shape=(R, S, C, Q), prefix=True):
    r, s, c, q = shape
    rng = np.random.default_rng(seed)
    sigma = rng.exponential(1, (r, s)) * rng.choice([1.0, 20.0, peak], (r, 1))
    valid = np.arange(s) < rng.integers(0, s + 1, (r, 1)) if prefix else rng.random((r, s)) < 0.6
    t = 2.9 + DT * np.arange(1, s + 1) + rng.random((r, 1))
    arrays = (sigma, valid, t, rng.random((r, s, c)), rng.random((r, s, q)))
    return tuple(a if a.dtype == bool else a.astype(np.float32) for a in arrays)


def cotangents(seed, shape):
    r, _, c, q = shape
    rng = np.random.default_rng(seed)
    return tuple(rng.normal(size=v).astype(np.float32) for v in ((r, c), (r, q), (r,), (r,)))


def to_packed(dense, dt, rng):
    """The valid samples of dense arrays, with gaps that hold NaN between the rays."""
    sigma, valid, t, weighted, plain = dense
    count = valid.sum(-1)
    end = np.cumsum(count + rng.integers(0, 3, len(count)))
    offset, slots = end - count, int(end[-1]) + 2

    def place(values):
        out = np.full((slots, *values.shape[2:]), np.nan, np.float32)
        for r in range(len(count)):
            out[offset[r] : offset[r] + count[r]] = values[r][valid[r]]
        return out

    ranges = offset.astype(np.int32), count.astype(np.int32)
    return place(sigma), place(t), place(dt), *ranges, place(weighted), place(plain)


def loop(*arrays, dt=DT):
    dt = np.broadcast_to(dt, arrays[0].shape)
    rays = [oracle.composite(*(a[i].astype(np.float64) for a in arrays), dt=dt[i]) for i in range(len(dt))]
    return tuple(np.stack(part) for part in zip(*rays))


def near_stop(sigma, valid, dt, stop=1e-4):
    """Rays whose transmittance comes so close to `stop` that rounding may decide where they end."""
    optical = np.cumsum(np.where(valid, sigma.astype(np.float64) * dt, 0), -1)
    return np.any(np.abs(optical + np.log(stop)) < 1e-3, -1)


def close(got, want, rays=slice(None), atol=1e-5):
    for a, b in zip(got, want):
        np.testing.assert_allclose(np.asarray(a)[rays], np.asarray(b)[rays], rtol=1e-4, atol=atol)


# -- forward


@pytest.mark.parametrize("name", VARIANTS)
@settings(max_examples=12)
@given(
    seed=st.integers(0, 2**31), peak=st.sampled_from([200.0, 2000.0]), shape=st.sampled_from(SHAPES[:2] + SHAPES[3:])
)
def test_forward_equals_the_loop(name, seed, peak, shape):
    arrays = inputs(seed, peak, shape, prefix=seed % 2 == 0)
    sure = ~near_stop(arrays[0], arrays[1], DT)
    close(run(name, forward, *arrays), loop(*arrays), sure)


@pytest.mark.parametrize("name", VARIANTS)
@settings(max_examples=8)
@given(seed=st.integers(0, 2**31))
def test_a_step_for_each_sample_dense_and_packed(name, seed):
    rng, shape = np.random.default_rng(seed), SHAPES[1]
    dense = inputs(seed, 60.0, shape, prefix=False)
    dt = (rng.random(dense[0].shape) * 0.1).astype(np.float32)
    dt[rng.random(dt.shape) < 0.1] = 0.0
    sure = ~near_stop(dense[0], dense[1], dt)
    want = loop(*dense, dt=dt)
    close(run(name, lambda backend: forward(backend, True), dt, *dense), want, sure)
    args = to_packed(dense, dt, rng)
    slots = 128  # one compilation
    args = [np.pad(v, [(0, slots - len(v))] + [(0, 0)] * (v.ndim - 1)) if len(v) != shape[0] else v for v in args]
    close(run(name, packed_forward, *args), want, sure)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shape", SHAPES)
def test_kernels_equal_the_reference_with_gradients_and_again(isa, shape):
    arrays = inputs(5, 60.0, shape, prefix=False)
    sure = ~near_stop(arrays[0], arrays[1], DT)
    args, which = (cotangents(6, shape), *arrays), (0, 2, 3, 4)
    want = forward("reference")(*arrays), backward(forward("reference"), which)(*args)
    with cpu.isa(isa):
        got = jax.block_until_ready((forward("cpu")(*arrays), backward(forward("cpu"), which)(*args)))
        again = jax.block_until_ready((forward("cpu")(*arrays), backward(forward("cpu"), which)(*args)))
    close(got[0], want[0], sure, 2e-6)
    close(got[1], want[1], sure, 5e-6)
    jax.tree.map(np.testing.assert_array_equal, got, again)


@pytest.mark.heavy
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shape", SHAPES[1:4])
def test_packed_kernels_equal_the_reference_with_gradients(isa, shape):
    rng, dense = np.random.default_rng(8), inputs(8, 60.0, shape, prefix=False)
    dt = (rng.random(dense[0].shape) * 0.1).astype(np.float32)
    sure = ~near_stop(dense[0], dense[1], dt)
    args = to_packed(dense, dt, rng)
    which, cots = (0, 1, 5, 6), cotangents(9, shape)
    ray = np.full(args[0].shape, -1)
    for r, (o, n) in enumerate(zip(*args[3:5])):
        ray[o : o + n] = r
    want = packed_forward("reference")(*args), backward(packed_forward("reference"), which)(cots, *args)
    with cpu.isa(isa):
        got = jax.block_until_ready((packed_forward("cpu")(*args), backward(packed_forward("cpu"), which)(cots, *args)))
    close(got[0], want[0], sure, 2e-6)
    close(got[1], want[1], (ray < 0) | sure[ray], 5e-6)
    for g in got[1]:
        np.testing.assert_array_equal(np.asarray(g)[ray < 0], 0.0)


# -- gradients


@pytest.mark.parametrize("name", VARIANTS)
def test_gradients_equal_finite_differences(name):
    sigma, valid, t, weighted, plain = inputs(1, peak=60.0)
    gw, gq, gs, gd = cotangents(2, (R, S, C, Q))
    got = run(name, lambda b: backward(forward(b), (0, 3, 4)), (gw, gq, gs, gd), sigma, valid, t, weighted, plain)
    double = [v.astype(np.float64) for v in (sigma, weighted, plain)]
    for which, array in enumerate(double):
        for index in np.ndindex(*array.shape):
            values = []
            for sign in (1, -1):
                moved = [a.copy() for a in double]
                moved[which][index] += sign * 1e-4
                sums, plains, ws, _ = loop(moved[0], valid, t, moved[1], moved[2])
                values.append(np.sum(gw * sums) + np.sum(gq * plains) + np.sum(gs * ws))
            np.testing.assert_allclose(got[which][index], (values[0] - values[1]) / 2e-4, atol=2e-4)


@pytest.mark.parametrize("name", VARIANTS)
def test_depth_and_plain_sums_give_sigma_nothing(name):
    arrays = inputs(3)
    gw, gq, gs, gd = cotangents(4, (R, S, C, Q))
    grad = run(name, lambda b: backward(forward(b), (0,)), (0 * gw, gq, 0 * gs, gd), *arrays)
    np.testing.assert_array_equal(grad[0], 0.0)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_steps_get_no_gradient(backend):
    if backend == "cpu" and cpu.unavailable():
        pytest.skip(cpu.unavailable())
    dt, arrays = jnp.full((R, S), DT), inputs(3)
    grad = jax.grad(lambda dt: jnp.sum(forward(backend, True)(dt, *arrays).weighted))(dt)
    np.testing.assert_array_equal(grad, 0.0)


# -- edges


@pytest.mark.parametrize("name", VARIANTS)
def test_slots_that_are_not_valid_may_hold_anything(name):
    rng = np.random.default_rng(4)
    sigma, valid, t, weighted, plain = inputs(4, prefix=False)
    fill = [
        np.where(valid.reshape(R, S, *[1] * (a.ndim - 2)), a, spoiled(rng, a, 0.9)) for a in (sigma, t, weighted, plain)
    ]
    args, which = (fill[0], valid, *fill[1:]), (0, 2, 3, 4)
    want = run(name, forward, sigma, valid, t, weighted, plain)
    jax.tree.map(np.testing.assert_array_equal, run(name, forward, *args), want)
    cots = cotangents(5, (R, S, C, Q))
    for g in run(name, lambda b: backward(forward(b), which), cots, *args):
        assert np.isfinite(g).all()
        np.testing.assert_array_equal(np.asarray(g)[~valid], 0.0)


@pytest.mark.parametrize("name", VARIANTS)
def test_nan_stays_in_its_ray_and_its_sum(name):
    sigma, valid, t, weighted, plain = inputs(11, peak=5.0)
    valid[:] = True
    clean = run(name, forward, sigma, valid, t, weighted, plain)
    sigma, t, weighted, plain = (v.copy() for v in (sigma, t, weighted, plain))
    sigma[0, 3], t[1, 2], weighted[2, 1, 1], plain[3, 2, 0], weighted[4, 5, 2] = np.nan, np.nan, np.nan, np.inf, np.inf
    got = run(name, forward, sigma, valid, t, weighted, plain)
    assert np.isnan(got.weighted[0]).all() and np.isnan(got.weight_sum[0]) and np.isnan(got.depth[0])
    np.testing.assert_allclose(got.plain[0], plain[0, :4].sum(0), rtol=1e-6)  # the ray ends where sigma is NaN
    changed = [np.zeros(np.shape(v), bool) for v in got]
    changed[0][0], changed[1][0], changed[2][0], changed[3][0] = True, True, True, True
    changed[3][1], changed[0][2, 1], changed[1][3, 0], changed[0][4, 2] = True, True, True, True
    for value, before, where in zip(got, clean, changed):
        np.testing.assert_array_equal(np.asarray(value)[~where], np.asarray(before)[~where])
    assert np.isnan([got.depth[1], got.weighted[2, 1]]).all() and np.isinf([got.plain[3, 0], got.weighted[4, 2]]).all()


@pytest.mark.parametrize("name", VARIANTS)
def test_infinite_density_is_a_wall(name):
    sigma, ones = np.float32([[0.0, np.inf, 5.0]]), np.ones((1, 3), np.float32)
    channel = np.arange(3, dtype=np.float32).reshape(1, 3, 1)
    args = sigma, ones > 0, ones, channel, channel
    out = run(name, forward, *args)
    np.testing.assert_allclose([out.weight_sum[0], out.weighted[0, 0], out.plain[0, 0]], [1.0, 1.0, 1.0])
    grads = run(name, lambda b: backward(forward(b), (0, 3)), cotangents(1, (1, 3, 1, 1)), *args)
    assert np.isfinite(grads[0]).all() and grads[0][0, 1] == 0 and not np.any(grads[1][0, ::2])
    zero = run(name, lambda b: forward(b, True), np.float32([[DT, 0.0, DT]]), *args)
    assert 0 < zero.weight_sum[0] < 0.2  # a wall without thickness


@pytest.mark.parametrize("name", VARIANTS)
def test_a_ray_stops_after_the_sample_that_makes_it_opaque(name):
    sigma, ones = np.full((1, 3), 500.0, np.float32), np.ones((1, 3, 1), np.float32)  # 1.3e-6 is left after the first
    args = sigma, ones[..., 0] > 0, ones[..., 0], ones, ones
    assert run(name, forward, *args).plain[0, 0] == 1.0
    grad = run(name, lambda b: backward(forward(b), (3,)), cotangents(1, (1, 3, 1, 1)), *args)[0]
    np.testing.assert_array_equal(grad[0, 1:], 0.0)
    assert run(name, lambda b: forward(b, stop=0.0), *args).plain[0, 0] == 3.0


@pytest.mark.parametrize("name", VARIANTS)
def test_no_rays_and_no_samples(name):
    out = run(name, forward, *(v[:0] for v in inputs(0)))
    assert out.weighted.shape == (0, C)
    out = run(name, forward, *(v[:, :0] for v in inputs(0)))
    assert out.plain.shape == (R, Q) and not any(v.any() for v in out)
    sigma, _, t, weighted, plain = (v[0] for v in inputs(0))
    none = np.zeros(0, np.int32)
    empty = (sigma, t, np.float32(DT), none, none, weighted, plain)
    assert run(name, packed_forward, *empty).weighted.shape == (0, C)
    with variant(name) as backend:
        grad = jax.grad(lambda s: packed_forward(backend)(s, *empty[1:]).weighted.sum())(sigma)
        np.testing.assert_array_equal(grad, 0.0)
    zeros = np.zeros(R, np.int32)
    out = run(name, packed_forward, sigma[:0], t[:0], np.float32(DT), zeros, zeros, weighted[:0], plain[:0])
    assert out.plain.shape == (R, Q) and not any(v.any() for v in out)


@pytest.mark.parametrize("name", VARIANTS)
def test_known_values(name):
    """er-nerf dossier §11, three samples."""
    sigma = np.float32([[10.0, 20.0, 40.0]])
    t_end = np.float32(2.9 + DT * np.arange(1.0, 4.0)[None])
    weighted = np.concatenate([np.eye(3)[None], np.array([0.7, 0.6, 0.5]).reshape(1, 3, 1)], -1).astype(np.float32)
    plain = np.float32([[[0.5, 0.1], [0.25, 0.2], [1.0, 0.3]]])
    args = sigma, np.ones((1, 3), bool), t_end, weighted, plain
    out = run(name, forward, *args)
    np.testing.assert_allclose(out.weighted[0], [0.23710353, 0.31888231, 0.29361021, 0.50410696], atol=2e-7)
    np.testing.assert_allclose(out.weight_sum[0], 0.84959604, atol=2e-7)
    np.testing.assert_allclose(out.depth[0], 2.51134352, atol=1e-6)
    np.testing.assert_allclose(out.plain[0], [1.75, 0.6], atol=1e-6)
    white = out.weighted[0, :3] + 1 - out.weight_sum[0]
    np.testing.assert_allclose(white, [0.38750748, 0.46928627, 0.44401416], atol=3e-7)

    def gradient(weighted=(0, 0, 0, 0), weight_sum=0):
        cots = np.float32([weighted]), np.zeros((1, 2), np.float32), np.float32([weight_sum]), np.zeros(1, np.float32)
        return run(name, lambda b: backward(forward(b), (0,)), cots, *args)[0][0]

    np.testing.assert_allclose(gradient((1, 0, 0, 0)), [0.02064649, 0, 0], atol=1e-7)
    np.testing.assert_allclose(gradient(weight_sum=1), [0.00407043] * 3, atol=1e-7)
    np.testing.assert_allclose(gradient((0, 0, 0, 1)), [0.00530151, 0.00323686, 0.00203521], atol=1e-7)


# -- transformations, choice of back end, refusals


@pytest.mark.parametrize(
    "change, message", [({"dt": -1.0}, "dt > 0"), ({"stop": 1.0}, "stop < 1"), ({"stop": -0.1}, "0 <=")]
)
def test_bad_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        composite(*map(jnp.asarray, inputs(0)), **({"dt": DT} | change))


def test_wrong_shapes_are_refused():
    sigma, valid, t, weighted, plain = map(jnp.asarray, inputs(0))
    with pytest.raises((ValueError, TypeCheckError)):  # the latter where annotations are checked
        composite(sigma, valid, t, weighted[:-1], plain, dt=DT)
    with pytest.raises((ValueError, TypeCheckError)):
        composite(sigma, valid, t, weighted, plain, dt=jnp.ones((R, S - 1)))
    with pytest.raises((ValueError, TypeCheckError)):
        offset, count = jnp.zeros(R, jnp.int32), jnp.zeros(R - 1, jnp.int32)
        composite_packed(sigma[0], t[0], DT, offset, count, weighted[0], plain[0])


@needs_kernels
@pytest.mark.parametrize(
    "offset, count, message",
    [
        ([0, 3], [4, 2], "without overlap"),
        ([4, 0], [2, 2], "without overlap"),
        ([0, 4], [4, 5], "beyond the end"),
        ([-1, 4], [1, 1], "without overlap"),
        ([0, 4], [-1, 1], "without overlap"),
    ],
)
def test_rays_that_overlap_or_run_out_are_refused(offset, count, message):
    sigma, _, t, weighted, plain = (jnp.asarray(v[0]) for v in inputs(0))
    ranges = np.int32(offset), np.int32(count)
    with pytest.raises(jax.errors.JaxRuntimeError, match=message):
        jax.block_until_ready(packed_forward("cpu")(sigma, t, jnp.float32(DT), *ranges, weighted, plain))


@needs_kernels
@pytest.mark.parametrize(
    "change, message",
    [
        ({0: jnp.zeros((R, S), jnp.bfloat16)}, "dtype"),
        ({0: jnp.zeros(R)}, "must be \\[R,S\\]"),
        ({1: jnp.zeros((R, S - 1), bool)}, "must be \\[R,S\\]"),
        ({2: jnp.zeros((R, S + 1))}, "do not agree"),
        ({3: jnp.zeros(3)}, "one number or one per sample"),
        ({4: jnp.zeros((R, S))}, "do not agree"),
        ({4: jnp.zeros((R, S, C + 1))}, "results must be"),
    ],
)
def test_the_handler_checks_what_it_is_given(change, message):
    sigma, valid, t, weighted, plain = map(jnp.asarray, inputs(0))
    args = [change.get(i, v) for i, v in enumerate((sigma, valid, t, jnp.float32(DT), weighted, plain))]
    out = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((R, C), (R, Q), (R,), (R,))]
    with pytest.raises(jax.errors.JaxRuntimeError, match=message):
        jax.block_until_ready(cpu.call("tkjax_composite_forward", out, *args, stop=np.float32(1e-4)))
