"""march's Triton kernels: in the interpreter against the reference, compiled ahead of time, lowered for CUDA."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ops import triton_harness as harness
from tkjax.ops import march, march_packed

BOX = (-1.0, -0.5, -1.0, 1.0, 0.5, 1.0)
COMMON = dict(box=BOX, t_min=0.05, samples=16)
CASES = {
    "constant": dict(COMMON, side=16, dt=2 * 3**0.5 / 64),
    "few": dict(COMMON, side=32, dt=2 * 3**0.5 / 128, samples=5),
    "cone": dict(COMMON, side=16, dt=0.02, dt_gamma=0.03, dt_max=0.11),
    "cascades": dict(
        side=16,
        dt=0.03,
        dt_gamma=0.02,
        dt_max=0.5,
        cascades=3,
        bound=3.0,
        t_min=0.05,
        samples=16,
        box=(-3.0, -3.0, -2.0, 3.0, 3.0, 3.0),
    ),
    "vertex": dict(COMMON, side=12, dt=0.03, cell="vertex", bound=1.5, box=(-1.5, -1.0, -1.0, 1.5, 1.0, 1.0)),
}
RAYS = 65


def occupancy(case: dict, rng, share: float):
    cells = (case["side"] + 1) ** 3 if case.get("cell") == "vertex" else case["side"] ** 3 * case.get("cascades", 1)
    bits = np.pad(rng.random(cells) < share, (0, -cells % 8))
    return np.packbits(bits, bitorder="little")


def inputs(name: str, seed: int, share: float = 0.3, n: int = RAYS):
    """Rays from in- and outside, along axes, past the box, with zeros, NaN and infinity; noise likewise."""
    rng, bound = np.random.default_rng(seed), CASES[name].get("bound", 1.0)
    o = rng.normal(size=(n, 3)) * rng.choice([0.3, 2.0, 4.0], (n, 1)) * bound
    d = rng.uniform([-1, -0.5, -1], [1, 0.5, 1], (n, 3)) * bound - o
    axis = rng.random(n) < 0.2
    d[axis] = np.eye(3)[rng.integers(0, 3, axis.sum())] * rng.choice([-1, 1], (axis.sum(), 1))
    d[rng.random(n) < 0.1, 0] = 0.0
    d /= np.maximum(np.linalg.norm(d, axis=-1, keepdims=True), 1e-9)
    for v in (o, d):
        odd = rng.random(v.shape) < 0.02
        v[odd] = rng.choice([np.nan, np.inf, -np.inf, 1e-39, -0.0, 1e30], odd.sum())
    noise = rng.choice([0.0, 1.0, 0.5, np.nan, np.inf, -1.0, 2.0], n)
    noise = np.where(rng.random(n) < 0.7, rng.random(n), noise)
    return o.astype(np.float32), d.astype(np.float32), occupancy(CASES[name], rng, share), noise.astype(np.float32)


def dense(name, backend, *args):
    return march(*args, **CASES[name], backend=backend)


def pack(name, backend, capacity, *args):
    return march_packed(*args, **CASES[name], capacity=capacity, backend=backend)


@functools.cache
def reference(name):
    return jax.jit(functools.partial(dense, name, "reference"))


@functools.cache
def reference_packed(name, capacity):
    return jax.jit(functools.partial(pack, name, "reference", capacity))


# -- run in the child process, where the kernels are interpreted


def in_triton(name, *args):
    return tuple(jax.jit(functools.partial(dense, name, "triton"))(*args))


def in_packed(name, capacity, *args):
    return tuple(jax.jit(functools.partial(pack, name, "triton", capacity))(*args))


interpreted = functools.partial(harness.interpreted, __name__)


def same(got, want):
    """Bit by bit: no product is contracted with a sum anywhere."""
    for label, a, b in zip(type(want)._fields, got, want, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=label)


@harness.needs_interpreter
@given(name=st.sampled_from(sorted(CASES)), seed=st.integers(0, 2**31), share=st.sampled_from([0.02, 0.3, 0.9]))
@settings(max_examples=15)
def test_the_same_samples_as_the_reference(name, seed, share):
    args = inputs(name, seed, share)
    want = reference(name)(*args)
    assert share < 0.3 or want.count.any()
    same(interpreted("in_triton", name, *args), want)


@harness.needs_interpreter
@pytest.mark.parametrize("name", sorted(CASES))
@pytest.mark.parametrize("fill", [0, 255])
def test_empty_and_full_occupancy(name, fill):
    o, d, bits, noise = inputs(name, 1)
    args = o, d, np.full_like(bits, fill), noise
    want = reference(name)(*args)
    assert bool(want.count.any()) == (fill == 255)
    same(interpreted("in_triton", name, *args), want)


@harness.needs_interpreter
@pytest.mark.parametrize("name", ["constant", "cascades"])
@pytest.mark.parametrize("capacity", [0, 100, 4096])
def test_packed_samples_are_the_reference_s(name, capacity):
    args = inputs(name, 3)
    want = reference_packed(name, capacity)(*args)
    assert (want.overflow > 0) == (capacity < 4096)
    same(interpreted("in_packed", name, capacity, *args), want)


# -- compiled and lowered without a GPU


def launches(name, packed=False):
    case = CASES[name] | {"side": 128}
    size = 129**3 // 8 + 1 if case.get("cell") == "vertex" else 128**3 // 8 * case.get("cascades", 1)
    shapes = (
        *[harness.shape("float32", 65536, 3)] * 2, harness.shape("uint8", size), harness.shape("float32", 65536)
    )  # fmt: skip
    if packed:
        return (lambda *a: march_packed(*a, **case, capacity=500_000, backend="triton")), shapes
    return (lambda *a: march(*a, **case, backend="triton")), shapes


@harness.needs_triton
@pytest.mark.parametrize("name", ["constant", "cascades", "vertex"])
def test_kernels_compile_without_spills_and_without_contractions(name):
    found = harness.recorded(*_spread(launches(name)))
    if name == "cascades":
        found += harness.recorded(*_spread(launches(name, packed=True)))
        assert [launch.name for launch in found] == ["dense_kernel", "dense_kernel", "write_kernel"]
        assert [launch.zeroed for launch in found] == [(0, 1), (0, 1), (0, 1, 2)]
    harness.check_resources(name, found, registers=128, shared=16_000)
    for launch in found:
        for capability in harness.CAPABILITIES:
            ptx = harness.compiled(launch, capability).ptx
            assert "mul.rn.f32" in ptx  # the pattern below knows how products are written
            assert not harness.contractions(ptx)


def _spread(pair):
    return pair[0], *pair[1]


@harness.needs_triton
def test_a_contraction_would_be_seen():
    """The check above on the same kernel with contraction allowed."""
    launch = harness.recorded(*_spread(launches("constant")))[0]
    fused = harness.dataclasses.replace(launch, fp_fusion=True)
    assert harness.contractions(harness.compiled(fused, 90).ptx)


@harness.needs_lowering
def test_the_public_ops_lower_for_cuda():
    text = harness.lowered(*_spread(launches("constant")))
    assert harness.kernel_calls(text) == 1
    (kernel,) = harness.lowered_kernels(text)
    assert "mul.rn.f32" in kernel  # jax-triton passes the compiler option on
    assert not harness.contractions(kernel)
    assert harness.kernel_calls(harness.lowered(*_spread(launches("cascades", packed=True)))) == 2


@pytest.mark.gpu
@pytest.mark.parametrize("name", sorted(CASES))
def test_on_the_gpu(name):
    harness.require_gpu()
    args = tuple(map(jnp.asarray, inputs(name, 5)))
    same(in_triton(name, *args), reference(name)(*args))
    same(in_packed(name, 100, *args), reference_packed(name, 100)(*args))
