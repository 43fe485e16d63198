"""composite against a float64 loop, finite differences, and the dossier's numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from tests import oracle
from tkjax.ops import composite

DT = 0.0270632939
R, S, C, Q = 6, 8, 4, 2
jitted = jax.jit(lambda *args: composite(*args, dt=DT))


def inputs(seed, peak=200.0):
    rng = np.random.default_rng(seed)
    sigma = rng.exponential(1, (R, S)) * rng.choice([1.0, 20.0, peak], (R, 1))
    valid = np.arange(S) < rng.integers(0, S + 1, (R, 1))
    t = 2.9 + DT * np.arange(1, S + 1) + rng.random((R, 1))
    arrays = (sigma, valid, t, rng.random((R, S, C)), rng.random((R, S, Q)))
    return tuple(a if a.dtype == bool else a.astype(np.float32) for a in arrays)


def loop(*arrays):
    rays = [oracle.composite(*(a[i].astype(np.float64) for a in arrays), dt=DT) for i in range(arrays[0].shape[0])]
    return tuple(np.stack(part) for part in zip(*rays))


@given(seed=st.integers(0, 2**31), peak=st.sampled_from([200.0, 2000.0]))
def test_forward_equals_the_loop(seed, peak):
    arrays = inputs(seed, peak)
    for got, want in zip(jitted(*arrays), loop(*arrays)):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_gradients_equal_finite_differences():
    sigma, valid, t, weighted, plain = inputs(1, peak=60.0)
    rng = np.random.default_rng(2)
    gw, gq, gs, gd = rng.normal(size=(R, C)), rng.normal(size=(R, Q)), rng.normal(size=R), rng.normal(size=R)

    def value(sums, plains, ws, depth, xp=np):
        return xp.sum(gw * sums) + xp.sum(gq * plains) + xp.sum(gs * ws) + xp.sum(gd * depth)

    got = jax.grad(lambda s, w, p: value(*jitted(s, valid, t, w, p), xp=jnp), (0, 1, 2))(sigma, weighted, plain)
    without_depth = [sigma.astype(np.float64), weighted.astype(np.float64), plain.astype(np.float64)]
    for which, array in enumerate(without_depth):
        for index in np.ndindex(*array.shape):
            values = []
            for sign in (1, -1):
                moved = [a.copy() for a in without_depth]
                moved[which][index] += sign * 1e-4
                sums, plains, ws, _ = loop(moved[0], valid, t, moved[1], moved[2])
                values.append(value(sums, plains, ws, np.zeros(R)))
            np.testing.assert_allclose(got[which][index], (values[0] - values[1]) / 2e-4, atol=2e-4)


def test_depth_and_plain_sums_give_sigma_nothing():
    sigma, valid, t, weighted, plain = inputs(3)
    for pick in (lambda out: out.depth.sum(), lambda out: out.plain.sum()):
        grad = jax.grad(lambda s, pick=pick: pick(jitted(s, valid, t, weighted, plain)))(sigma)
        np.testing.assert_array_equal(grad, 0.0)


def test_slots_that_are_not_valid_may_hold_anything():
    sigma, valid, t, weighted, plain = inputs(4)
    clean = jitted(sigma, valid, t, weighted, plain)
    fill = [np.where(valid.reshape(R, S, *[1] * (a.ndim - 2)), a, np.nan) for a in (sigma, t, weighted, plain)]
    args = fill[0], valid, fill[1], fill[2], fill[3]
    jax.tree.map(np.testing.assert_array_equal, jitted(*args), clean)
    grads = jax.grad(lambda s, w: jitted(s, valid, args[2], w, args[4]).weighted.sum(), (0, 1))(fill[0], fill[2])
    assert all(np.isfinite(g).all() for g in grads)


def test_infinite_density_is_a_wall():
    sigma = jnp.array([[0.0, jnp.inf, 5.0]])
    channel = jnp.arange(3.0).reshape(1, 3, 1)
    out = composite(sigma, jnp.ones((1, 3), bool), jnp.ones((1, 3)), channel, channel, dt=DT)
    np.testing.assert_allclose([out.weight_sum[0], out.weighted[0, 0], out.plain[0, 0]], [1.0, 1.0, 1.0])


def test_a_ray_stops_after_the_sample_that_makes_it_opaque():
    sigma = jnp.array([[500.0, 500.0, 500.0]])  # transmittance 1.3e-6 after the first
    ones = jnp.ones((1, 3, 1))
    out = composite(sigma, jnp.ones((1, 3), bool), jnp.ones((1, 3)), ones, ones, dt=DT)
    assert out.plain[0, 0] == 1.0
    grad = jax.grad(lambda w: composite(sigma, jnp.ones((1, 3), bool), ones[..., 0], w, ones, dt=DT).weighted.sum())
    np.testing.assert_array_equal(grad(ones)[0, 1:], 0.0)


def test_known_values():
    """er-nerf dossier §11, three samples."""
    sigma = jnp.array([[10.0, 20.0, 40.0]])
    t_end = 2.9 + DT * jnp.arange(1.0, 4.0)[None]
    weighted = jnp.concatenate([jnp.eye(3)[None], jnp.array([0.7, 0.6, 0.5]).reshape(1, 3, 1)], -1)
    plain = jnp.stack([jnp.array([[0.5, 0.25, 1.0]]), jnp.array([[0.1, 0.2, 0.3]])], -1)
    out = composite(sigma, jnp.ones((1, 3), bool), t_end, weighted, plain, dt=DT)
    np.testing.assert_allclose(out.weighted[0], [0.23710353, 0.31888231, 0.29361021, 0.50410696], atol=2e-7)
    np.testing.assert_allclose(out.weight_sum[0], 0.84959604, atol=2e-7)
    np.testing.assert_allclose(out.depth[0], 2.51134352, atol=1e-6)
    np.testing.assert_allclose(out.plain[0], [1.75, 0.6], atol=1e-6)
    np.testing.assert_allclose(
        out.weighted[0, :3] + 1 - out.weight_sum[0], [0.38750748, 0.46928627, 0.44401416], atol=3e-7
    )

    def gradient(pick):
        return jax.grad(lambda s: pick(composite(s, jnp.ones((1, 3), bool), t_end, weighted, plain, dt=DT)))(sigma)[0]

    np.testing.assert_allclose(gradient(lambda o: o.weighted[0, 0]), [0.02064649, 0, 0], atol=1e-7)
    np.testing.assert_allclose(gradient(lambda o: o.weight_sum[0]), [0.00407043] * 3, atol=1e-7)
    np.testing.assert_allclose(gradient(lambda o: o.weighted[0, 3]), [0.00530151, 0.00323686, 0.00203521], atol=1e-7)


@pytest.mark.parametrize("change, message", [({"dt": -1.0}, "dt > 0"), ({"stop": 1.0}, "stop < 1")])
def test_bad_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        composite(*map(jnp.asarray, inputs(0)), **({"dt": DT} | change))


def test_wrong_shapes_are_refused():
    sigma, valid, t, weighted, plain = map(jnp.asarray, inputs(0))
    with pytest.raises((ValueError, TypeCheckError)):  # the latter where annotations are checked
        composite(sigma, valid, t, weighted[:-1], plain, dt=DT)
