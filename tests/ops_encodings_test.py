"""Directions, frequencies, Morton codes and bits: closed forms and the dossier's known values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import oracle
from tkjax.ops import freq_encode, morton_decode, sh_encode
from tkjax.ops.reference.morton import encode_xyz


@pytest.mark.parametrize(
    "cell, code",
    [((1, 2, 3), 53), ((5, 6, 7), 501), ((64, 32, 100), 1507584), ((127, 127, 127), 2097151), ((0, 0, 0), 0)],
)
def test_known_morton_codes(cell, code):
    assert encode_xyz(*map(jnp.int32, cell)) == code
    assert tuple(morton_decode(jnp.int32(code))) == cell


@given(st.lists(st.tuples(*[st.integers(0, 1023)] * 3), min_size=4, max_size=4))
def test_morton_decode_inverts_encode(cells):
    cells = jnp.array(cells, jnp.int32)
    codes = encode_xyz(*cells.T)
    assert codes.tolist() == [oracle.morton(*cell) for cell in cells.tolist()]
    np.testing.assert_array_equal(morton_decode(codes), cells)


def test_known_spherical_harmonics():
    """er-nerf dossier §11 at (0.6, 0, 0.8)."""
    want = [0.282094792, 0, 0.390882010, -0.293161507, 0, 0, 0.290160240, -0.524423247, 0.196658718]
    want += [0, 0, 0, 0.059708213, -0.603300455, 0.416248048, -0.127449415]
    np.testing.assert_allclose(sh_encode(jnp.array([0.6, 0.0, 0.8])), want, atol=1e-7)


def test_spherical_harmonics_are_orthonormal():
    z, w = np.polynomial.legendre.leggauss(8)
    phi = np.arange(16) * 2 * np.pi / 16
    sin = np.sqrt(1 - z**2)[:, None]
    d = np.stack([sin * np.cos(phi), sin * np.sin(phi), np.broadcast_to(z[:, None], (8, 16))], -1)
    weights = np.repeat(w, 16) * 2 * np.pi / 16
    values = np.asarray(sh_encode(jnp.asarray(d.reshape(-1, 3), jnp.float32)))
    np.testing.assert_allclose((values * weights[:, None]).T @ values, np.eye(16), atol=1e-5)


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_lower_degrees_are_prefixes(degree):
    d = jnp.array([[0.36, -0.48, 0.8]])
    np.testing.assert_array_equal(sh_encode(d, degree), sh_encode(d)[:, : degree**2])


@given(st.lists(st.floats(-3, 3, width=32), min_size=2, max_size=2))
def test_frequencies_are_raw_then_sines_then_cosines(values):
    x = np.array(values, np.float32)
    want = np.concatenate([x] + [f(x * 2.0**k) for k in range(3) for f in (np.sin, np.cos)])
    np.testing.assert_allclose(freq_encode(jnp.asarray(x), 3), want, atol=1e-5)


def test_frequency_widths_of_the_torso():
    assert freq_encode(jnp.zeros((4, 6)), 3).shape == (4, 42)
    assert freq_encode(jnp.zeros((4, 2)), 8).shape == (4, 34)


def test_encodings_have_finite_gradients():
    assert np.isfinite(jax.grad(lambda d: sh_encode(d).sum())(jnp.zeros((2, 3)))).all()
    assert np.isfinite(jax.grad(lambda d: freq_encode(d, 3).sum())(jnp.zeros((2, 3)))).all()


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: sh_encode(jnp.zeros((1, 3)), 5), "degree"),
        (lambda: freq_encode(jnp.zeros((1, 3)), -1), "octaves"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
