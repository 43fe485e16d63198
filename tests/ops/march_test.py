"""march against the originals' while loop, and at the edges of its domain."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import oracle
from tkjax.ops import march

BOX = (-1.0, -0.5, -1.0, 1.0, 0.5, 1.0)
DT = 2 * 3**0.5 / 128
RAYS = 48


@functools.cache
def jitted(side, samples):
    return jax.jit(
        lambda o, d, bits, noise: march(o, d, bits, noise, side=side, box=BOX, dt=DT, t_min=0.05, samples=samples)
    )


def rays(rng, n=RAYS):
    """Towards the box from outside, from inside, past it, and along the axes."""
    o = rng.normal(size=(n, 3)) * rng.choice([0.3, 2.0, 4.0], (n, 1))
    d = rng.uniform([-1, -0.5, -1], [1, 0.5, 1], (n, 3)) - o
    d[: n // 8] = rng.normal(size=(n // 8, 3))
    d[n // 8 : n // 4] = np.eye(3)[rng.integers(0, 3, n // 4 - n // 8)] * rng.choice([-1, 1], (n // 4 - n // 8, 1))
    d[n // 4 : n // 4 + 2, 0] = 0.0
    d /= np.linalg.norm(d, axis=-1, keepdims=True)
    return o.astype(np.float32), d.astype(np.float32)


@given(seed=st.integers(0, 2**31), share=st.sampled_from([0.02, 0.3, 0.9]), case=st.sampled_from([(16, 16), (32, 5)]))
def test_kept_samples_are_those_of_the_while_loop(seed, share, case):
    side, samples = case
    rng = np.random.default_rng(seed)
    o, d = rays(rng)
    bits = np.packbits(rng.random(side**3) < share, bitorder="little")
    noise = rng.random(RAYS).astype(np.float32)
    got = jitted(side, samples)(o, d, bits, noise)
    agreed = 0
    for i in range(RAYS):
        kept, close = oracle.march(
            o[i].astype(np.float64), d[i].astype(np.float64), bits, float(noise[i]),
            side=side, box=BOX, dt=DT, t_min=0.05, samples=samples,
        )  # fmt: skip
        if close:
            continue
        assert got.count[i] == len(kept)
        np.testing.assert_allclose(got.t[i, : len(kept)], kept, atol=2e-5)
        np.testing.assert_array_equal(got.t[i, len(kept) :], 0.0)
        agreed += 1
    assert agreed > RAYS // 4


def test_full_occupancy_keeps_the_first_lattice_points():
    o, d = jnp.array([[3.0, 0.1, 0.2]]), jnp.array([[-1.0, 0.0, 0.0]])
    for noise in (0.0, 0.5):
        got = jitted(16, 16)(o, d, jnp.full(16**3 // 8, 255, jnp.uint8), jnp.array([noise]))
        np.testing.assert_allclose(got.t[0], 2.0 + DT * (np.arange(16) + noise), rtol=1e-6)
        assert got.count[0] == 16
        np.testing.assert_allclose([got.near[0], got.far[0]], [2.0, 4.0])


def test_empty_occupancy_keeps_nothing():
    o, d = rays(np.random.default_rng(0))
    got = jitted(16, 16)(o, d, jnp.zeros(16**3 // 8, jnp.uint8), jnp.zeros(RAYS))
    assert not got.count.any()
    assert not got.t.any()


@pytest.mark.parametrize(
    "o, d, near, far",
    [
        ((0.0, 0.0, 0.0), (0.0, 1.0, 0.0), 0.05, 0.5),  # from inside: clamped to t_min
        ((0.3, -0.6, 0.0), (1.0, 0.0, 0.0), 0.0, 0.0),  # parallel to a face, outside of it
        ((0.3, 2.0, 0.0), (0.0, 1.0, 0.0), 0.0, 0.0),  # the box lies behind
        ((np.nan, 0.0, 0.0), (1.0, 0.0, 0.0), 0.0, 0.0),
        ((0.0, 0.0, 0.0), (np.nan, 1.0, 0.0), 0.0, 0.0),
        ((np.inf, 0.0, 0.0), (-1.0, 0.0, 0.0), 0.0, 0.0),
        ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0), 0.0, 0.0),
    ],
)
def test_slab(o, d, near, far):
    full = jnp.full(16**3 // 8, 255, jnp.uint8)
    got = jitted(16, 16)(jnp.array([o]), jnp.array([d]), full, jnp.zeros(1))
    np.testing.assert_allclose([got.near[0], got.far[0]], [near, far], rtol=1e-6)
    assert (got.count[0] > 0) == (far > 0)
    assert np.isfinite(got.t).all()


def test_known_rays():
    """er-nerf dossier §11: pose of euler (.1,.2,.3), trans (.5,-.2,-7); f = 1200, 450 by 450."""
    pose = np.array(
        [
            [0.289629, -0.956425, -0.036957, 0.122068],
            [0.198669, 0.097843, -0.975170, 2.682916],
            [0.936293, 0.275096, 0.218351, -0.820648],
        ]
    )
    pixels = np.array([[0.5, 0.5], [225.5, 225.5]])
    d = np.concatenate([(pixels - 225) / 1200, np.ones((2, 1))], 1)
    d = (d / np.linalg.norm(d, axis=-1, keepdims=True)) @ pose[:, :3].T
    np.testing.assert_allclose(d[0], [0.084869, -0.996360, -0.008005], atol=2e-6)
    o = np.broadcast_to(pose[:, 3], (2, 3)).astype(np.float32)
    got = jitted(16, 16)(o, d.astype(np.float32), jnp.full(16**3 // 8, 255, jnp.uint8), jnp.zeros(2))
    np.testing.assert_allclose(got.near, [2.190891, 2.238781], atol=1e-5)
    np.testing.assert_allclose(got.far, [3.194544, 3.264373], atol=1e-5)


def test_no_rays():
    got = jitted(16, 16)(jnp.zeros((0, 3)), jnp.zeros((0, 3)), jnp.zeros(512, jnp.uint8), jnp.zeros(0))
    assert got.t.shape == (0, 16)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"side": 32}, "do not hold 32"),
        ({"dt": 0.0}, "positive"),
        ({"box": (0.0, 0.0, 0.0, 0.0, 1.0, 1.0)}, "low < high"),
        ({"box": (-2.0, 0.0, 0.0, 1.0, 1.0, 1.0)}, "within ±1.0"),
        ({"backend": "vulkan"}, "choose triton, cpu, reference"),
    ],
)
def test_bad_arguments_are_refused(change, message):
    settings = dict(side=16, box=BOX, dt=DT, t_min=0.05, samples=16)
    with pytest.raises(ValueError, match=message):
        march(jnp.zeros((1, 3)), jnp.ones((1, 3)), jnp.zeros(512, jnp.uint8), jnp.zeros(1), **(settings | change))
