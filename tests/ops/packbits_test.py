"""packbits and dilate_morton: the reference against loops, the kernels against the reference, and the edges."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import oracle
from tests.ops.rays import ISAS, VARIANTS, needs_kernels, spoiled, variant
from tkjax.ops import cpu, dilate_morton, packbits

SIDES = [1, 2, 4, 8, 16, 64]
CELLS = [0, 8, 24, 4096, 100_008]


@functools.cache
def packing(backend):
    return jax.jit(functools.partial(packbits, backend=backend))


@functools.cache
def dilation(backend):
    return jax.jit(functools.partial(dilate_morton, backend=backend))


def run(name, make, *args):
    with variant(name) as backend:
        return np.asarray(make(backend)(*args))


def normal(values):
    """Subnormal numbers, which XLA's threads take for zero, replaced by zero."""
    return np.where(np.abs(values) < np.finfo(np.float32).tiny, np.float32(0), values)


@pytest.mark.parametrize("name", VARIANTS)
@settings(max_examples=12)
@given(
    seed=st.integers(0, 2**31),
    cells=st.sampled_from(CELLS),
    threshold=st.sampled_from([0.0, -0.3, 0.25, np.inf, np.nan]),
)
def test_packed_bits_are_the_comparison(name, seed, cells, threshold):
    rng = np.random.default_rng(seed)
    density = normal(spoiled(rng, rng.uniform(-1, 1, cells).astype(np.float32), 0.05))
    density[rng.random(cells) < 0.1] = np.float32(threshold)
    bits = run(name, packing, density, np.float32(threshold))
    np.testing.assert_array_equal(np.unpackbits(bits, bitorder="little"), density > np.float32(threshold))


@pytest.mark.parametrize("name", VARIANTS)
@settings(max_examples=5)
@given(seed=st.integers(0, 2**31), side=st.sampled_from([4, 8]))
def test_dilation_is_the_maximum_over_face_neighbours(name, seed, side):
    raster = np.random.default_rng(seed).normal(size=(side,) * 3).astype(np.float32)
    order = [oracle.morton(x, y, z) for x in range(side) for y in range(side) for z in range(side)]
    grid = np.zeros(side**3, np.float32)
    grid[order] = raster.reshape(-1)
    np.testing.assert_array_equal(run(name, dilation, grid)[order], oracle.dilate(raster).reshape(-1))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("side", SIDES)
def test_dilation_kernels_equal_the_reference_also_for_what_is_no_number(isa, side):
    rng = np.random.default_rng(side)
    density = normal(spoiled(rng, rng.normal(size=side**3).astype(np.float32), 0.02))
    want = run("reference", dilation, density)
    for _ in range(2):
        np.testing.assert_array_equal(run(f"cpu-{isa}", dilation, density), want)
    if side >= 16:
        assert np.isnan(want).sum() > np.isnan(density).sum() > 0  # NaN spreads like a maximum


@pytest.mark.parametrize("name", VARIANTS)
def test_known_bits(name):
    """rad-nerf dossier §11: (1,2,3) has Morton code 53, byte 6, bit 5."""
    side = 8
    density = np.zeros(side**3, np.float32)
    density[oracle.morton(1, 2, 3)] = 11.0
    bits = run(name, packing, density, np.float32(10.0))
    assert bits[6] == 1 << 5 and bits.sum() == 1 << 5
    spread = run(name, dilation, density)
    near = [(1, 2, 3), (0, 2, 3), (2, 2, 3), (1, 1, 3), (1, 3, 3), (1, 2, 2), (1, 2, 4)]
    assert sorted(np.flatnonzero(spread)) == sorted(oracle.morton(*cell) for cell in near)


@pytest.mark.parametrize("name", VARIANTS)
def test_densities_get_no_gradient(name):
    with variant(name) as backend:
        grad = jax.grad(lambda d: jnp.sum(dilation(backend)(d)))(jnp.ones(64))
    np.testing.assert_array_equal(grad, 0.0)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: packbits(jnp.zeros(9), 0.0), "multiple of 8"),
        (lambda: dilate_morton(jnp.zeros(27)), "power of two"),
        (lambda: dilate_morton(jnp.zeros(16)), "no cube"),
        (lambda: dilate_morton(jnp.zeros(0)), "no cube"),
        (lambda: packbits(jnp.zeros(8), 0.0, backend="vulkan"), "choose triton, cpu, reference"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@needs_kernels
@pytest.mark.parametrize(
    "target, out, args, attributes, message",
    [
        ("tkjax_packbits", (1, jnp.uint8), (jnp.zeros(9), jnp.float32(0)), {}, "multiple of 8"),
        ("tkjax_packbits", (2, jnp.uint8), (jnp.zeros(8), jnp.float32(0)), {}, "cells / 8"),
        ("tkjax_packbits", (1, jnp.uint8), (jnp.zeros(8), jnp.zeros(2)), {}, "one number"),
        ("tkjax_packbits", (1, jnp.uint8), (jnp.zeros(8, jnp.int32), jnp.float32(0)), {}, "dtype"),
        ("tkjax_dilate_morton", (27, jnp.float32), (jnp.zeros(27),), {"side": np.int32(3)}, "power of two"),
        ("tkjax_dilate_morton", (64, jnp.float32), (jnp.zeros(64),), {"side": np.int32(8)}, "power of two"),
        ("tkjax_dilate_morton", (8, jnp.float32), (jnp.zeros(64),), {"side": np.int32(4)}, "side\\^3"),
    ],
)
def test_the_handlers_check_what_they_are_given(target, out, args, attributes, message):
    with pytest.raises(jax.errors.JaxRuntimeError, match=message):
        jax.block_until_ready(cpu.call(target, jax.ShapeDtypeStruct((out[0],), out[1]), *args, **attributes))
