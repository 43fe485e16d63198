"""Packed samples: pack, packed_map and unpack against the dense computation; nothing is dropped."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tkjax.ops.packing import pack, unpack
from tkjax.ops.reference.chunks import packed_map

RAYS, SAMPLES = 13, 5
counts = st.lists(st.integers(0, SAMPLES), min_size=RAYS, max_size=RAYS)


def field(params, x, rows):
    return {"out": jnp.tanh(x @ params["w"]) * rows["scale"][:, None]}


@functools.cache
def mapped(chunk):
    return jax.jit(lambda params, x, rows, total: packed_map(field, chunk, params, x, rows, total)["out"])


def problem(seed, rows=RAYS * SAMPLES):
    rng = np.random.default_rng(seed)
    params = {"w": rng.normal(size=(3, 4)).astype(np.float32)}
    return params, rng.normal(size=(rows, 3)).astype(np.float32), {"scale": rng.normal(size=rows).astype(np.float32)}


@pytest.mark.heavy
@given(counts)
def test_packed_samples_are_the_rays_samples_in_order(count):
    packing = jax.jit(lambda c: pack(c, SAMPLES))(jnp.array(count))
    want = [(r, s) for r, n in enumerate(count) for s in range(n)]
    assert int(packing.total) == len(want)
    assert list(zip(packing.ray.tolist(), packing.slot.tolist()))[: len(want)] == want


@pytest.mark.heavy
@given(st.lists(st.booleans(), min_size=RAYS, max_size=RAYS))
def test_a_mask_is_packed_as_rays_of_one_sample(mask):
    packing = jax.jit(lambda m: pack(m, 1))(jnp.array(mask))
    where = np.flatnonzero(mask)
    assert int(packing.total) == len(where)
    np.testing.assert_array_equal(packing.ray[: len(where)], where)
    np.testing.assert_array_equal(packing.start[where], np.arange(len(where)))
    values = unpack(jnp.arange(1.0, RAYS + 1)[:, None], packing, jnp.array(mask)[:, None])[:, 0, 0]
    np.testing.assert_array_equal(values, np.cumsum(mask) * np.array(mask))


@given(counts, st.integers(0, 2**31))
def test_unpack_inverts_pack_and_its_gradient_is_the_transpose(count, seed):
    count = jnp.array(count)
    packing, valid = pack(count, SAMPLES), jnp.arange(SAMPLES) < count[:, None]
    rng = np.random.default_rng(seed)
    packed = rng.normal(size=(RAYS * SAMPLES, 2)).astype(np.float32)
    dense, vjp = jax.vjp(lambda p: unpack(p, packing, valid), packed)
    assert not np.asarray(dense)[~np.asarray(valid)].any()
    np.testing.assert_array_equal(np.asarray(dense)[np.asarray(valid)], packed[: int(packing.total)])
    g = rng.normal(size=dense.shape).astype(np.float32)
    back = np.asarray(vjp(g)[0])
    np.testing.assert_array_equal(back[: int(packing.total)], g[np.asarray(valid)])
    assert not back[int(packing.total) :].any()


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
@pytest.mark.parametrize("total", [0, 1, 7, 8, 64, 65])
def test_packed_map_is_the_map(chunk, total):
    params, x, rows = problem(0)
    out = mapped(chunk)(params, x, rows, total)
    assert out.shape == (RAYS * SAMPLES, 4)
    np.testing.assert_allclose(out[:total], field(params, x, rows)["out"][:total], rtol=1e-5)
    beyond = -(-total // chunk) * chunk
    assert not np.asarray(out[beyond:]).any()


@pytest.mark.parametrize("chunk", [7, 64])
@pytest.mark.parametrize("total", [0, 8, 65])
def test_packed_map_has_the_gradient_of_the_map(chunk, total):
    params, x, rows = problem(1)

    def loss(fn, params, x):
        return jnp.sum(jnp.square(fn(params, x)[:total]))

    got = jax.grad(lambda p, x: loss(lambda p, x: mapped(chunk)(p, x, rows, total), p, x), (0, 1))(params, x)
    want = jax.grad(lambda p, x: loss(lambda p, x: field(p, x, rows)["out"], p, x), (0, 1))(params, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, want)
