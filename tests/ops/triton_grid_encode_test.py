"""grid_encode's Triton kernels: in the interpreter against the reference, compiled ahead of time, lowered for CUDA."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from tests.ops import triton_harness as harness
from tkjax.ops import GridSpec, dispatch, grid_encode

SPECS = {
    "planes": GridSpec(2, 3, 1, 4, 40, 8, "hash"),
    "tiled2d": GridSpec(2, 4, 2, 4, 50, 8, "tiled", "smoothstep"),
    "tiled3d": GridSpec(3, 4, 2, 3, 40, 9, "tiled"),  # the last level leaves a dimension out
    "hash3d": GridSpec(3, 2, 4, 3, 24, 9, "hash", "smoothstep"),
    "modulo": GridSpec(3, 2, 8, 4, 16, 8, "hash", pad=12),  # a table size that is no power of two
    "one_level": GridSpec(2, 1, 8, 8, 8, 5, "hash", pad=1),
}
PLANES = {"planes": 3, "tiled2d": 2}
NAMES = sorted(SPECS)


def inputs(name: str, n: int, seed: int):
    """Points inside, outside, on the border and not finite, some of them many times over; tables; a cotangent."""
    spec, planes, rng = SPECS[name], PLANES.get(name, 1), np.random.default_rng(seed)
    points = rng.uniform(-0.05, 1.05, (n, planes, spec.dims))
    points[rng.random(n) < 0.3] = rng.uniform(0, 1, (planes, spec.dims))  # contention
    odd = rng.random(points.shape) < 0.05
    points = np.where(odd, rng.choice([0.0, 1.0, np.nan, np.inf, -np.inf, -1e-6, 1e30], points.shape), points)
    tables = rng.normal(size=(planes, spec.entries, spec.features))
    g = rng.normal(size=(n, planes, spec.channels))
    return tuple(a.astype(np.float32) for a in (points, tables, g))


def gradients(value, points, tables, g):
    out, vjp = jax.vjp(value, jnp.asarray(points), jnp.asarray(tables))
    return (out.astype(jnp.float32), *vjp(jnp.asarray(g, out.dtype)))


@functools.cache
def reference(name):
    return jax.jit(functools.partial(gradients, lambda x, t: grid_encode(x, t, SPECS[name], backend="reference")))


def expected(name, points, tables, g, most=130):
    """(value, gradient to points, gradient to tables), padded to one size so that each grid compiles once."""
    missing = most - len(points)
    points = np.pad(points, [(0, missing), (0, 0), (0, 0)], constant_values=np.nan)
    value, by_points, by_tables = reference(name)(points, tables, np.pad(g, [(0, missing), (0, 0), (0, 0)]))
    return value[: most - missing], by_points[: most - missing], by_tables


def close(got, want, atol=3e-5):
    for label, a, b in zip(("value", "points", "tables"), got, want, strict=True):
        scale = max(1.0, float(np.max(np.abs(np.asarray(b, np.float32)), initial=0)))
        np.testing.assert_allclose(a, b, atol=atol * scale, rtol=1e-4, err_msg=label)


# -- run in the child process, where the kernels are interpreted


def in_triton(name, points, tables, g, out_dtype="float32", deterministic=False):
    op = dispatch.resolve("grid_encode", "triton").forward
    dtype = jnp.dtype(out_dtype)
    return gradients(lambda x, t: op(x, t, SPECS[name], dtype, deterministic), points, tables, g)


def in_part(name, total, deterministic, points, tables, g):
    """With only the first `total` points there."""
    op = functools.partial(dispatch.resolve("grid_encode", "triton").forward, deterministic=deterministic)
    return gradients(lambda x, t: op(x, t, SPECS[name], total=jnp.int32(total)), points, tables, g)


def over_devices(fn, devices):
    """fn(points, tables) -> a sum over points, as a sum over what `devices` devices give for their share of them."""
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    local = jax.shard_map(
        lambda x, t: jax.lax.psum(fn(x, t), "data"), mesh=mesh, in_specs=(P("data"), P()), out_specs=P(),
        check_vma=False,
    )  # fmt: skip
    return jax.jit(local)


def in_shard_map(name, points, tables, devices):
    def total(t, x):
        return jnp.sum(grid_encode(x, t, SPECS[name], backend="triton") ** 2)

    return over_devices(lambda x, t: jax.value_and_grad(total)(t, x), int(devices))(points, tables)


interpreted = functools.partial(harness.interpreted, __name__)


@harness.needs_interpreter
@given(name=st.sampled_from(NAMES), n=st.sampled_from([0, 1, 63, 64, 65, 130]), seed=st.integers(0, 2**31))
@settings(max_examples=16)
def test_values_and_gradients_equal_the_reference(name, n, seed):
    case = inputs(name, n, seed)
    close(interpreted("in_triton", name, *case), expected(name, *case))


@harness.needs_interpreter
@pytest.mark.parametrize("total, deterministic", [(0, False), (1, False), (70, False), (70, True), (0, True)])
def test_blocks_behind_the_last_point_are_not_read_and_give_zeros(total, deterministic):
    points, tables, g = inputs("planes", 130, 4)
    want = expected("planes", points[:total], tables, g[:total])
    behind = -(-total // 64) * 64  # lanes of a program over 8 levels
    points[total:], g[total:], g[behind:] = 0.5, 0.0, np.nan
    value, by_points, by_tables = interpreted("in_part", "planes", total, deterministic, points, tables, g)
    close((value[:total], by_points[:total], by_tables), want)
    assert not np.any(value[behind:]) and not np.any(by_points[total:])


@harness.needs_interpreter
@pytest.mark.parametrize("name", ["planes", "hash3d"])
def test_the_deterministic_gradient_equals_the_atomic_one(name):
    case = inputs(name, 65, 2)
    got = interpreted("in_triton", name, *case, "float32", True)
    close(got, expected(name, *case))
    for a, b in zip(got, interpreted("in_triton", name, *case, "float32", True), strict=True):
        np.testing.assert_array_equal(a, b)
    empty = interpreted("in_triton", name, *inputs(name, 0, 2), "float32", True)
    assert not empty[2].any()


@harness.needs_interpreter
def test_bfloat16_output_is_the_value_in_bfloat16():
    """The interpreter cuts bits off where the GPU rounds (the PTX says so below): one unit instead of half of one."""
    case = inputs("tiled2d", 65, 3)
    rounded = interpreted("in_triton", "tiled2d", *case, "bfloat16")
    want = expected("tiled2d", *case)
    np.testing.assert_allclose(rounded[0], want[0], rtol=2**-7, atol=1e-6)
    assert np.any(rounded[0] != want[0])
    want = expected("tiled2d", *case[:2], case[2].astype(jnp.bfloat16).astype(np.float32))
    close((want[0], *rounded[1:]), want)


@harness.needs_interpreter
def test_points_outside_give_zero_even_over_tables_of_nan():
    points, tables, g = inputs("hash3d", 65, 4)
    points[:, :, 1] = np.resize([-1e-6, 1.0000001, np.nan, np.inf, -np.inf], (65, 1))
    got = interpreted("in_triton", "hash3d", points, np.full_like(tables, np.nan), np.full_like(g, np.nan))
    for value in got:
        np.testing.assert_array_equal(value, 0.0)


@harness.needs_interpreter
def test_all_points_in_one_cell_add_up():
    points, tables, g = inputs("planes", 130, 5)
    points[:] = 0.3
    close(interpreted("in_triton", "planes", points, tables, g), expected("planes", points, tables, g))


@harness.needs_interpreter
def test_eight_devices_give_what_one_gives():
    points, tables, _ = inputs("planes", 128, 11)
    one, eight = (interpreted("in_shard_map", "planes", points, tables, n) for n in (1, 8))
    assert one[0] > 1.0
    for a, b in zip(one, eight, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4)


# -- compiled and lowered without a GPU, at the sizes of the systems

REAL = {
    "er_nerf": (GridSpec(2, 12, 1, 64, 512, 14, "hash"), 3),
    "torso": (GridSpec(2, 16, 2, 16, 2048, 16, "tiled"), 1),
    "rad_nerf": (GridSpec(3, 16, 2, 16, 2048, 16, "tiled"), 1),
    "nerfblendshape": (GridSpec(3, 16, 4, 16, 1024, 14, "hash", "smoothstep", pad=1), 1),
    "features8": (GridSpec(3, 16, 8, 16, 512, 16, "hash"), 1),
}


def both_gradients(spec, backend="triton"):
    return jax.grad(lambda x, t: grid_encode(x, t, spec, backend=backend).sum(), (0, 1))


def shapes(spec, planes, n=100_000):
    return harness.shape("float32", n, planes, spec.dims), harness.shape("float32", planes, spec.entries, spec.features)


@harness.needs_triton
@pytest.mark.parametrize("name", REAL)
def test_kernels_compile_for_the_gpu_without_spills(name):
    spec, planes = REAL[name]
    launches = harness.recorded(both_gradients(spec), *shapes(spec, planes))
    names = [launch.name for launch in launches]
    assert names == ["forward_kernel", "table_gradient_kernel", "point_gradient_kernel"]
    assert launches[1].zeroed == (0,)
    harness.check_resources(name, launches, registers=128, shared=32_000)
    table_gradient = harness.compiled(launches[1], 90)
    assert ".global.gpu.relaxed.add.f32" in table_gradient.ptx  # a hardware sum, no loop of compare and swap
    assert "bar.sync" not in table_gradient.ptx  # one layout for all: nothing goes through shared memory


@harness.needs_triton
def test_the_deterministic_gradient_compiles(monkeypatch):
    monkeypatch.setenv("TKJAX_TRITON_DETERMINISTIC", "1")
    spec, planes = REAL["er_nerf"]
    launches = harness.recorded(both_gradients(spec), *shapes(spec, planes))
    assert [launch.name for launch in launches][1:3] == ["keys_kernel", "segments_kernel"]
    harness.check_resources("er_nerf", launches[1:3], registers=128, shared=32_000)


@harness.needs_triton
def test_bfloat16_output_is_rounded_on_the_gpu():
    spec, planes = REAL["er_nerf"]
    op = harness.importlib.import_module("tkjax.ops.triton.grid_encode")
    (launch,) = harness.recorded(lambda x, t: op.forward(x, t, spec, jnp.bfloat16), *shapes(spec, planes))
    assert launch.arguments[-1] == "*bf16"
    assert "cvt.rn.bf16" in harness.compiled(launch, 90).ptx


@harness.needs_triton
def test_the_point_gradient_costs_nothing_unless_asked_for():
    spec, planes = REAL["er_nerf"]
    only_tables = jax.grad(lambda x, t: grid_encode(x, t, spec, backend="triton").sum(), 1)
    launches = harness.recorded(jax.jit(only_tables), *shapes(spec, planes))
    assert [launch.name for launch in launches] == ["forward_kernel", "table_gradient_kernel"]


@harness.needs_lowering
def test_the_public_op_lowers_for_cuda():
    spec, planes = REAL["er_nerf"]
    loss = jax.value_and_grad(lambda x, t: grid_encode(x, t, spec, backend="triton").sum(), (0, 1))
    text = harness.lowered(loss, *shapes(spec, planes))
    assert harness.kernel_calls(text) == 3
    frames = jax.vmap(lambda x, t: grid_encode(x, t, spec, backend="triton"), (None, 0))
    points, tables = shapes(spec, planes)
    text = harness.lowered(frames, points, harness.shape("float32", 4, *tables.shape))
    assert harness.kernel_calls(text) == 1
    assert "stablehlo.while" in text  # frame by frame
    text = harness.lowered(over_devices(lambda x, t: loss(x, t)[1][1], 1), points, tables)
    assert harness.kernel_calls(text) == 1  # the tables' gradient needs no other
    assert "grid_encode.triton" in harness.lowered(
        frames, points, harness.shape("float32", 4, *tables.shape), debug=True
    )


@harness.needs_triton
def test_grids_without_a_kernel_say_so():
    op = harness.importlib.import_module("tkjax.ops.triton.grid_encode")
    huge = {"levels": 16, "finest": 4096, "log2_entries": 28, "features": 8}
    cases = ({"dims": 4}, "4 dimensions"), ({"features": 3}, "3 features"), (huge, "fewer than 2.31")
    for change, sentence in cases:
        with pytest.raises(NotImplementedError, match=sentence):
            op.supports(GridSpec(**{"dims": 3, "levels": 2, "base": 4, "finest": 8} | change))


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_on_the_gpu(name):
    harness.require_gpu()
    case = inputs(name, 130, 10)
    close(in_triton(name, *case), expected(name, *case))
    close(in_triton(name, *case, "float32", True), expected(name, *case))
