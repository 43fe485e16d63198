"""march and march_packed: the reference against a float64 loop, the kernels against the reference, and the edges."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import oracle
from tests.ops.rays import (
    BOX,
    CASES,
    COMMON,
    DT,
    EACH_CASE,
    ISAS,
    VARIANTS,
    needs_kernels,
    occupancy,
    rays,
    spoiled,
    variant,
)
from tkjax.ops import cpu, march, march_packed, morton_decode

FULL = np.full(16**3 // 8, 255, np.uint8)
SHARES = [0.0, 0.002, 0.3, 0.9, 1.0]


@functools.cache
def dense(case: str, backend: str, **change):
    return jax.jit(functools.partial(march, **(CASES[case] | change), backend=backend))


@functools.cache
def packed(case: str, backend: str, capacity: int):
    return jax.jit(functools.partial(march_packed, **CASES[case], capacity=capacity, backend=backend))


def run(name: str, call, *args):
    with variant(name) as backend:
        return jax.block_until_ready(call(backend)(*args))


def equal(got, want):
    jax.tree.map(np.testing.assert_array_equal, got, want)


# -- which samples are kept


@pytest.mark.heavy
@given(seed=st.integers(0, 2**31), share=st.sampled_from([0.02, 0.3, 0.9]), case=st.sampled_from(sorted(CASES)))
def test_kept_samples_are_those_of_the_loop(seed, share, case):
    rng, n, how = np.random.default_rng(seed), 48, CASES[case]
    (o, d), bits, noise = rays(rng, n, how.get("bound", 1.0)), occupancy(rng, how, share), rng.random(n)
    noise = noise.astype(np.float32)
    got = dense(case, "reference")(o, d, bits, noise)
    agreed = 0
    for i in range(n):
        kept, close = oracle.march(o[i].astype(np.float64), d[i].astype(np.float64), bits, float(noise[i]), **how)
        if close:
            continue
        assert got.count[i] == len(kept)
        want = np.zeros((how["samples"], 2))
        want[: len(kept)] = np.reshape(kept, (-1, 2))
        np.testing.assert_allclose(got.t[i], want[:, 0], atol=1e-4)
        np.testing.assert_allclose(got.dt[i], want[:, 1], atol=1e-5)
        np.testing.assert_array_equal(np.asarray(got.valid[i]), np.arange(how["samples"]) < len(kept))
        agreed += 1
    assert agreed > n // 5


@pytest.mark.heavy
@given(seed=st.integers(0, 2**31), share=st.sampled_from([0.1, 0.9]), case=st.sampled_from(["few", "cone", "vertex"]))
@settings(max_examples=12)
def test_steps_that_are_drawn_for_every_sample(seed, share, case):
    rng, n, how = np.random.default_rng(seed), 32, CASES[case]
    (o, d), bits = rays(rng, n, how.get("bound", 1.0)), occupancy(rng, how, share)
    noise = rng.random((n, 7)).astype(np.float32)
    got = dense(case, "reference")(o, d, bits, noise)
    agreed = 0
    for i in range(n):
        args = o[i].astype(np.float64), d[i].astype(np.float64), bits, noise[i].astype(np.float64)
        kept, close = oracle.march(*args, **how)
        if not close:
            assert got.count[i] == len(kept)
            want = np.reshape(kept, (-1, 2))
            np.testing.assert_allclose(got.t[i, : len(kept)], want[:, 0], atol=1e-4)
            np.testing.assert_allclose(got.dt[i, : len(kept)], want[:, 1], atol=1e-5)
            agreed += 1
    assert agreed > n // 5


@pytest.mark.parametrize("case", ["constant", "few", "many", "cone", "wide"])
def test_leaping_over_empty_cells_keeps_the_same_samples(case):
    """What the docstring claims of the originals' loop, in float64."""
    rng, agreed, how = np.random.default_rng(7), 0, CASES[case]
    bits = occupancy(rng, how, 0.2)
    for o, d in zip(*rays(rng, 100, how.get("bound", 1.0))):
        args = o.astype(np.float64), d.astype(np.float64), bits, rng.random()
        (walked, close), (leapt, _) = (oracle.march(*args, **how, leap=leap) for leap in (False, True))
        if not close:
            np.testing.assert_allclose(np.reshape(walked, (-1, 2)), np.reshape(leapt, (-1, 2)), atol=1e-12)
            agreed += len(walked) > 0
    assert agreed > 20


@pytest.mark.parametrize("case", ["cascades", "vertex"])
def test_elsewhere_the_originals_leap_over_a_few_samples_that_are_kept_here(case):
    """Leaps stay on the lattice, so what they keep is a part of what is kept here (as long as no ray is full)."""
    rng, how, counts = np.random.default_rng(8), CASES[case] | {"samples": 10_000}, np.zeros(2, int)
    bits = occupancy(rng, how, 0.2)
    for o, d in zip(*rays(rng, 60, how["bound"])):
        args = o.astype(np.float64), d.astype(np.float64), bits, rng.random()
        walked, leapt = ({t for t, _ in oracle.march(*args, **how, leap=leap)[0]} for leap in (False, True))
        assert leapt <= walked
        counts += len(leapt), len(walked)
    assert 0.75 < counts[0] / counts[1] < 1  # cells at random: the worst case


@pytest.mark.heavy
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("case", EACH_CASE)
@settings(max_examples=12)
@given(
    seed=st.integers(0, 2**31), share=st.sampled_from(SHARES), n=st.sampled_from([1, 300]), odd=st.booleans(),
    each=st.booleans(),
)  # fmt: skip
def test_kernels_keep_what_the_reference_keeps_to_the_bit(isa, case, seed, share, n, odd, each):
    rng, how = np.random.default_rng(seed), CASES[case]
    (o, d), bits = rays(rng, n, how.get("bound", 1.0)), occupancy(rng, how, share)
    noise = rng.random((n, 5) if each else n).astype(np.float32) * rng.integers(0, 2)
    if odd:
        o, d, noise = (spoiled(rng, v) for v in (o, d, noise))
    args = o, d, bits, noise
    want = dense(case, "reference")(*args)
    got = run(f"cpu-{isa}", functools.partial(dense, case), *args)
    equal(got, want)
    assert all(np.isfinite(v).all() for v in got)
    equal(run(f"cpu-{isa}", functools.partial(dense, case), *args), got)  # once more


@pytest.mark.parametrize("isa", ISAS)
def test_many_rays_on_a_large_grid(isa):
    """A ball in 128^3 cells, as a picture sees it: most rays miss it, and their lattices are skipped."""
    rng, side, n = np.random.default_rng(5), 128, 20_003
    cell = np.asarray(morton_decode(jnp.arange(side**3)))
    bits = np.packbits((((2 * cell + 1) / side - 1 - [0.1, 0.0, -0.2]) ** 2).sum(-1) < 0.1, bitorder="little")
    o = np.broadcast_to(np.float32([0.3, 0.2, -3.3]), (n, 3))
    d = rng.normal(size=(n, 3)) * [0.15, 0.1, 0.0] + [-0.1, -0.05, 1.0]
    d = (d / np.linalg.norm(d, axis=-1, keepdims=True)).astype(np.float32)
    args = o, d, bits, rng.random(n).astype(np.float32)
    want = dense("constant", "reference", side=side)(*args)
    equal(run(f"cpu-{isa}", lambda backend: dense("constant", backend, side=side), *args), want)
    assert 0.1 < np.mean(np.asarray(want.count) > 0) < 0.9


@pytest.mark.heavy
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("case, capacity", [("constant", 0), ("constant", 130), ("few", 2000), ("cascades", 777)])
def test_packed_samples_are_the_dense_ones_ray_by_ray(name, case, capacity, each):
    rng, how, n = np.random.default_rng(3), CASES[case], 130
    (o, d), bits = rays(rng, n, how.get("bound", 1.0)), occupancy(rng, how, 0.3)
    args = o, d, bits, rng.random((n, 3) if each else n).astype(np.float32)
    want = dense(case, "reference")(*args)
    got = run(name, lambda backend: packed(case, backend, capacity), *args)
    valid = np.asarray(want.valid)
    total = min(valid.sum(), capacity)
    assert got.overflow == valid.sum() - total and got.total == total == got.count.sum()
    for field, dense_values in (("t", want.t), ("dt", want.dt), ("ray", np.where(valid, np.arange(n)[:, None], 0))):
        full = np.zeros(capacity, np.float32)
        full[:total] = np.asarray(dense_values)[valid][:total]
        np.testing.assert_array_equal(getattr(got, field), full)
    first = np.cumsum(want.count) - np.asarray(want.count)
    np.testing.assert_array_equal(got.offset, np.minimum(first, capacity))
    np.testing.assert_array_equal(got.count, np.clip(capacity - first, 0, want.count))
    equal((got.near, got.far), (want.near, want.far))


# -- edges


@pytest.mark.parametrize("name", VARIANTS)
def test_full_occupancy_keeps_the_first_lattice_points(name):
    o, d = np.array([[3.0, 0.1, 0.2]], np.float32), np.array([[-1.0, 0.0, 0.0]], np.float32)
    for noise in (0.0, 0.5):
        got = run(name, functools.partial(dense, "constant"), o, d, FULL, np.full(1, noise, np.float32))
        np.testing.assert_allclose(got.t[0], 2.0 + DT * (np.arange(16) + noise), rtol=1e-6)
        np.testing.assert_array_equal(got.dt[0], np.float32(DT))
        assert got.count[0] == 16
        np.testing.assert_allclose([got.near[0], got.far[0]], [2.0, 4.0])


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize(
    "o, d, near, far",
    [
        ((0.0, 0.0, 0.0), (0.0, 1.0, 0.0), 0.05, 0.5),  # from inside: clamped to t_min
        ((0.3, -0.6, 0.0), (1.0, 0.0, 0.0), 0.0, 0.0),  # parallel to a face, outside of it
        ((0.3, -0.5, 0.0), (1.0, 0.0, 0.0), 0.05, 0.7),  # within a face
        ((0.3, 2.0, 0.0), (0.0, 1.0, 0.0), 0.0, 0.0),  # the box lies behind
        ((0.3, 0.1, -2.0), (1e-39, 0.0, 1.0), 1.0, 3.0),  # below the normal numbers counts as parallel
        ((np.nan, 0.0, 0.0), (1.0, 0.0, 0.0), 0.0, 0.0),
        ((0.0, 0.0, 0.0), (np.nan, 1.0, 0.0), 0.0, 0.0),
        ((np.inf, 0.0, 0.0), (-1.0, 0.0, 0.0), 0.0, 0.0),
        ((0.0, 0.0, 0.0), (np.inf, 0.0, 0.0), 0.0, 0.0),
        ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0), 0.0, 0.0),
    ],
)
def test_slab(name, o, d, near, far):
    got = run(name, functools.partial(dense, "constant"), *np.float32([[o], [d]]), FULL, np.zeros(1, np.float32))
    np.testing.assert_allclose([got.near[0], got.far[0]], [near, far], rtol=1e-6)
    assert (got.count[0] > 0) == (far > 0)
    assert np.isfinite(got.t).all()


@pytest.mark.parametrize("name", VARIANTS)
def test_noise_out_of_range(name):
    o, d = np.float32([[3.0, 0.1, 0.2]] * 6), np.float32([[-1.0, 0.0, 0.0]] * 6)
    noise = np.float32([np.nan, np.inf, -np.inf, -1.0, 2.0, 0.0])
    got = run(name, functools.partial(dense, "constant"), o, d, FULL, noise)
    np.testing.assert_allclose(got.t[:, 0], 2.0 + DT * np.array([0, 0, 0, 0, 1, 0]), rtol=1e-6)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_step_that_rounding_swallows_ends_the_lattice(name):
    o, d = np.float32([[3.0, 0.1, 0.2]]), np.float32([[-1.0, 0.0, 0.0]])
    tiny = dict(dt=1e-9, dt_gamma=1e-9, dt_max=2e-9)
    got = run(name, lambda backend: dense("constant", backend, **tiny), o, d, FULL, np.zeros(1, np.float32))
    assert got.count[0] == 1 and got.t[0, 0] == 2.0


# -- known values


@pytest.mark.parametrize("name", VARIANTS)
def test_known_rays(name):
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
    call = functools.partial(dense, "constant")
    got = run(name, call, o, d.astype(np.float32), FULL, np.zeros(2, np.float32))
    np.testing.assert_allclose(got.near, [2.190891, 2.238781], atol=1e-5)
    np.testing.assert_allclose(got.far, [3.194544, 3.264373], atol=1e-5)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("cell, bit", [("trunc", 1835008), ("vertex", (64 * 129 + 64) * 129 + 64)])
def test_the_cell_of_the_origin(name, cell, bit):
    """rad-nerf dossier §11: Morton code of (64,64,64); nerfblendshape dossier §4.1: vertex (64,64,64) of 129^3."""
    side, vertex = 128, cell == "vertex"
    bits = np.zeros(((side + 1) ** 3 + 7) // 8 if vertex else side**3 // 8, np.uint8)
    bits[bit // 8] = 1 << (bit % 8)
    o, d = np.float32([[-2.0, 0.002, 0.003]]), np.float32([[1.0, 0.0, 0.0]])
    call = functools.partial(
        dense, "constant", side=side, cell=cell, dt=0.001, samples=64, box=(-1.0,) * 3 + (1.0,) * 3
    )
    got = run(name, lambda backend: call(backend), o, d, bits, np.full(1, 0.5, np.float32))
    x = np.asarray(got.t[0, : int(got.count[0])]) - 2.0
    low, high = (-1 / 128, 1 / 128) if vertex else (0.0, 1 / 64)
    assert abs(got.count[0] - 1000 / 64) <= 1
    assert low - 1e-6 <= x.min() < low + 1.1e-3 and high - 1.1e-3 < x.max() <= high + 1e-6


# -- transformations, choice of back end, refusals


@pytest.mark.parametrize("name", VARIANTS)
def test_rays_get_no_gradient(name):
    o, d = map(jnp.asarray, rays(np.random.default_rng(1), 8))
    with variant(name) as backend:
        grads = jax.grad(lambda o, d: jnp.sum(dense("constant", backend)(o, d, FULL, jnp.zeros(8)).t), (0, 1))(o, d)
    assert not any(g.any() for g in grads)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"side": 32}, "do not hold 32"),
        ({"side": 12}, "no power of two"),
        ({"side": 2048}, "beyond"),
        ({"dt": 0.0}, "positive"),
        ({"samples": 0}, "positive"),
        ({"t_min": -1.0}, "t_min >= 0"),
        ({"dt_gamma": -1.0}, "dt_gamma >= 0"),
        ({"dt_max": 1e-3}, "dt <= dt_max"),
        ({"dt_max": np.inf}, "finite"),
        ({"box": (0.0, 0.0, 0.0, 0.0, 1.0, 1.0)}, "low < high"),
        ({"box": (-2.0, 0.0, 0.0, 1.0, 1.0, 1.0)}, "within ±1.0"),
        ({"cell": "round"}, "choose trunc or vertex"),
        ({"cascades": 0}, "occupancy bytes"),
        ({"cascades": 2, "bound": 1.0}, "occupancy bytes"),
        ({"backend": "vulkan"}, "choose triton, cpu, reference"),
    ],
)
def test_bad_arguments_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        march(jnp.zeros((1, 3)), jnp.ones((1, 3)), jnp.zeros(512, jnp.uint8), jnp.zeros(1), **(COMMON | change))


def test_cascades_must_fit_the_bound():
    def bits(cascades):
        return jnp.zeros(cascades * 512, jnp.uint8)

    args = jnp.zeros((1, 3)), jnp.ones((1, 3))
    with pytest.raises(ValueError, match="2 cascades do not go with bound 1"):
        march(*args, bits(2), jnp.zeros(1), **(COMMON | {"cascades": 2}))
    with pytest.raises(ValueError, match="at most 1 \\+ ceil"):
        march(*args, bits(4), jnp.zeros(1), **(COMMON | {"cascades": 4, "bound": 4.0}))
    with pytest.raises(ValueError, match="capacity"):
        march_packed(*args, bits(1), jnp.zeros(1), **COMMON, capacity=-1)


@needs_kernels
@pytest.mark.parametrize(
    "change, message",
    [
        ({"o": jnp.zeros((4, 2))}, "must be \\[R,3\\]"),
        ({"d": jnp.zeros((5, 3))}, "must be \\[R,3\\]"),
        ({"noise": jnp.zeros(3)}, "noise must be"),
        ({"noise": jnp.zeros((4, 0))}, "noise must be"),
        ({"o": jnp.zeros((4, 3), jnp.int32)}, "dtype"),
        ({"bits": jnp.zeros(508, jnp.uint8)}, "hold all cells"),
        ({"bits": jnp.zeros(515, jnp.uint8)}, "whole 32-bit words"),
        ({"side": np.int32(12)}, "power of two"),
        ({"dt": np.float32(np.nan)}, "0 < dt"),
        ({"box": np.zeros(5, np.float32)}, "six numbers"),
        ({"samples": np.int32(8)}, "results must be"),
    ],
)
def test_the_handler_checks_what_it_is_given(change, message):
    """Beneath the public op: whatever reaches the library is an error in Python, not a crash."""
    spec = dict(side=16, cascades=1, vertex=0, samples=16)
    attributes = {k: np.int32(v) for k, v in spec.items()} | {"box": np.asarray(BOX, np.float32)}
    attributes |= {k: np.float32(v) for k, v in dict(dt=DT, t_min=0.05, bound=1.0, dt_gamma=0.0, dt_max=DT).items()}
    arrays = {"o": jnp.zeros((4, 3)), "d": jnp.ones((4, 3)), "bits": jnp.asarray(FULL), "noise": jnp.zeros(4)}
    arrays |= {k: v for k, v in change.items() if k in arrays}
    attributes |= {k: v for k, v in change.items() if k not in arrays}
    floats = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((4, 16), (4, 16), (4,), (4,))]
    out = (*floats[:2], jax.ShapeDtypeStruct((4,), jnp.int32), *floats[2:])
    with pytest.raises(jax.errors.JaxRuntimeError, match=message):
        jax.block_until_ready(cpu.call("tkjax_march_dense", out, *arrays.values(), **attributes))
