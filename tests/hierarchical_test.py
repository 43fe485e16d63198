"""Depths in two passes: the dossier's known values, and the properties that any distribution must have."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import ad_nerf_oracle as literal
from tkjax.ops import composite
from tkjax.render.composite import over
from tkjax.render.hierarchical import even_depths, finer_depths, inverse_cdf, jittered, ray_weights

N, M = 9, 16  # intervals and samples: one shape, compiled once
draw = jax.jit(inverse_cdf)
many = jax.jit(inverse_cdf)  # of other shapes
unit = st.floats(0, 1, width=32)
weights = st.lists(st.floats(0, 100, width=32), min_size=N, max_size=N).map(np.float32)
quantiles = st.lists(unit, min_size=M, max_size=M).map(np.float32)
steps = st.lists(st.floats(0.0009765625, 2, width=32), min_size=N, max_size=N)
bins = st.tuples(st.floats(-4, 4, width=32), steps).map(lambda t: np.float32(t[0] + np.cumsum([0.0, *t[1]])))


def test_the_first_pass_is_the_dossiers_grid():
    """§11 item 6."""
    z = even_depths(jnp.float32(0.5679027), jnp.float32(1.1679027), 64)
    np.testing.assert_allclose(z[jnp.array([0, 1, 62, 63])], [0.5679027, 0.5774265, 1.1583789, 1.1679027], atol=2e-7)
    np.testing.assert_allclose(jnp.diff(z), 0.0095238, atol=2e-7)


def test_noise_moves_all_depths_but_the_last():
    """§11 item 7; the last is the background's."""
    z = jnp.array([0.0, 0.5, 1.0])
    for last in (0.0, 0.3, 1.0):
        np.testing.assert_allclose(jittered(z, jnp.array([0.5, 0.5, last])), [0.125, 0.5, 1.0])


@given(bins, st.lists(unit, min_size=N + 1, max_size=N + 1).map(np.float32))
def test_jittered_depths_stay_between_the_middles(z, noise):
    moved = np.asarray(jittered(jnp.asarray(z), jnp.asarray(noise)))
    middle = (z[1:] + z[:-1]) / 2
    assert np.all(np.diff(moved) >= -1e-6)
    assert np.all(moved[:-1] >= np.append(z[0], middle[:-1]) - 1e-5) and np.all(moved[:-1] <= middle + 1e-5)
    assert moved[-1] == z[-1]


def test_known_quantiles():
    """§11 item 10."""
    got = draw(jnp.arange(4.0), jnp.array([0.2, 0.5, 0.3]), jnp.linspace(0, 1, 5))
    np.testing.assert_allclose(got, [0, 1.099993, 1.599998, 2.1666694, 3], atol=1e-6)


@given(bins, weights, quantiles)
def test_samples_lie_inside_and_are_as_ordered_as_their_quantiles(edges, w, u):
    u = np.sort(u)
    got = np.asarray(draw(edges, w, u))
    size = 1e-5 * max(1.0, np.abs(edges).max())
    assert got.min() >= edges[0] - size and got.max() <= edges[-1] + size
    assert np.all(np.diff(got) >= -size)


@given(bins, weights, quantiles)
def test_samples_are_those_of_the_formula(edges, w, u):
    """In float64, where no quantile lies within rounding of the end of an interval."""
    w, u = f64(w), f64(u)
    cdf = np.cumsum((w + 1e-5) / np.sum(w + 1e-5))
    clear = np.abs(u[:, None] - np.append(0.0, cdf)).min(1) > 1e-4
    want = literal.inverse_cdf(f64(edges), w, u)
    got = np.asarray(draw(edges, np.float32(w), np.float32(u)))
    share = np.diff(np.append(0.0, cdf)).clip(1e-5)[np.searchsorted(cdf, u, side="right").clip(max=N - 1)]
    # a quantile is off by 1e-6 at most; in an interval of little share that is a large part of it
    slack = 1e-5 + 2e-6 / share * np.diff(edges).max()
    assert np.all(np.abs(got - want)[clear] <= slack[clear])


def f64(x):
    return np.asarray(x, np.float64)


@given(st.floats(-4, 4, width=32), st.floats(0.125, 8, width=32), st.floats(0, 100, width=32), quantiles)
def test_equal_weights_give_evenly_spread_samples(low, width, weight, u):
    edges = np.float32(np.linspace(low, low + width, N + 1))
    got = draw(edges, np.full(N, weight, np.float32), u)
    np.testing.assert_allclose(got, edges[0] + u * (edges[-1] - edges[0]), atol=1e-4 * width + 2e-6)


@given(weights)
def test_each_interval_gets_its_share_of_many_samples(w):
    u = np.float32((np.arange(4096) + 0.5) / 4096)
    got = np.asarray(many(np.arange(N + 1, dtype=np.float32), w, u))
    share = (f64(w) + 1e-5) / np.sum(f64(w) + 1e-5)
    counted = np.histogram(got, np.arange(N + 1))[0] / 4096
    assert np.abs(counted - share).max() < 3 / 4096 + 1e-5


def test_no_gradient_flows_through_depths():
    z, w, u = jnp.linspace(1.0, 2.0, N), jnp.linspace(0.1, 1.0, N), jnp.linspace(0.1, 0.9, M)
    for depths, given_weights in ((finer_depths, w), (inverse_cdf, w[:-1])):
        gradients = jax.grad(lambda *v, f=depths: jnp.sum(f(*v) ** 2), (0, 1, 2))(z, given_weights, u)
        assert not any(g.any() for g in gradients)


@given(bins, weights, quantiles)
@settings(max_examples=30)
def test_the_second_pass_keeps_the_depths_of_the_first_and_is_sorted(z, w, u):
    z = z[:N]
    fine = np.asarray(finer_depths(jnp.asarray(z), jnp.asarray(w), jnp.asarray(u)))
    assert fine.shape == (N + M,) and np.all(np.diff(fine) >= 0)
    assert set(z) <= set(fine)


def test_known_compositing():
    """§11 item 8: the samples before the last make colour and alpha, the last is the background."""
    z, background, behind = jnp.array([0.6, 0.7, 0.9]), jnp.array([[0.2, 0.4, 0.6]]), jnp.array([[0.5, 0.3, 0.1]])
    sigma, dt = jnp.array([[2.0, 5.0]]), jnp.diff(z)[None]
    rgb = jnp.array([[[1.0, 0, 0], [0, 1.0, 0]]])
    np.testing.assert_allclose(ray_weights(sigma, dt)[0], [0.1812693, 0.5175365], atol=1e-6)
    out = composite(sigma, jnp.ones((1, 2), bool), z[None, :2], rgb, rgb[..., :0], dt=dt, stop=0.0)
    fg, alpha = out.weighted, out.weight_sum[:, None]
    np.testing.assert_allclose(fg[0], [0.1812693, 0.5175365, 0], atol=1e-6)
    assert 1 - float(alpha[0, 0]) == pytest.approx(0.3011941, abs=1e-6)
    assert float(out.depth[0]) + 0.3011941 * 0.9 == pytest.approx(0.7421119, abs=1e-6)
    picture = over([(background, jnp.ones_like(alpha)), (fg, alpha)])[0]
    np.testing.assert_allclose(picture[0], [0.2415082, 0.6380142, 0.1807165], atol=1e-6)
    picture = over([(behind, jnp.ones_like(alpha)), (fg, alpha)])[0]  # the torso over a head of this colour
    np.testing.assert_allclose(picture[0], [0.3318664, 0.6078948, 0.0301194], atol=1e-6)
    whole, *_ = literal.composite(np.array([2.0, 5, 1]), [*np.eye(3)[:2], np.zeros(3)], f64(z), 1.0, f64(background[0]))
    np.testing.assert_allclose(whole, [0.2415082, 0.6380142, 0.1807165], atol=1e-6)
