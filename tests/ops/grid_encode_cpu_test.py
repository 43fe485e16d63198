"""What only the C++ kernels of grid_encode promise: bits, refusals, what is computed, several devices."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import oracle
from tests.ops.grid_cases import KERNELS, SPECS, expected, gradients, inputs, running
from tkjax.ops import GridSpec, cpu, grid_encode
from tkjax.ops.cpu import grid_encode as kernels

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(cpu.unavailable() is not None, reason=f"CPU kernels: {cpu.unavailable()}")
every_isa = pytest.mark.parametrize("isa", KERNELS)


def scatter(spec, points, g):
    """Table gradient [P,T,F] in float64: np.add.at, level by level, corner by corner."""
    _n, planes, dims = points.shape
    out = np.zeros((planes, spec.entries, spec.features))
    table, _ = oracle.grid_levels(dims, spec.levels, spec.base, spec.finest, spec.log2_entries, spec.pad)
    for p in range(planes):
        inside = np.all((points[:, p] >= 0) & (points[:, p] <= 1), -1)
        for level, (scale, resolution, entries, offset) in enumerate(table):
            pos = points[inside, p].astype(np.float64) * scale + 0.5
            cell = np.floor(pos).astype(np.int64)
            for corner in np.ndindex(*(2,) * dims):
                weight = np.prod(np.where(corner, pos - cell, 1 - (pos - cell)), -1)
                cells, back = np.unique(cell + corner, axis=0, return_inverse=True)
                index = np.array([oracle.grid_index(c.tolist(), resolution, entries, spec.kind) for c in cells])
                rows = g[inside, p, level * spec.features : (level + 1) * spec.features]
                np.add.at(out[p], offset + index[back.reshape(-1)], weight[:, None] * rows)
    return out


LARGE = {
    "parts": (GridSpec(3, 2, 2, 4, 8, 8, "hash"), 1, 6000),  # few entries: parts with tables of their own
    "slabs": (GridSpec(2, 32, 8, 4, 8, 6, "tiled"), 4, 4500),  # wide: more than one slab
}


@functools.cache
def large(name):
    spec, planes, n = LARGE[name]
    rng = np.random.default_rng(1)
    points = rng.uniform(-0.02, 1.02, (n, planes, spec.dims)).astype(np.float32)
    points[: n // 2] = np.round(points[: n // 2] * 4) / 4  # many on the same spots
    g = rng.normal(size=(n, planes, spec.channels)).astype(np.float32)
    return points, g, scatter(spec, points, g)


@every_isa
@pytest.mark.parametrize("name", LARGE)
def test_many_samples_sum_up(name, isa):
    spec, planes, _ = LARGE[name]
    points, g, wanted = large(name)
    tables = jnp.zeros((planes, spec.entries, spec.features))
    with running(isa) as which:
        op = jax.jit(lambda g: jax.vjp(lambda t: grid_encode(points_, t, spec, backend=which), tables)[1](g)[0])
        points_ = jnp.asarray(points)
        got, again = op(g), op(g)
        np.testing.assert_array_equal(got, again)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4 * np.sqrt(np.mean(wanted**2)) * 10)


@every_isa
@settings(max_examples=8)
@given(n=st.sampled_from([2, 63, 64, 65, 200, 1029]), name=st.sampled_from(sorted(SPECS)), seed=st.integers(0, 2**31))
def test_any_number_of_points_is_that_many_single_points(n, name, seed, isa):
    points, tables, g = inputs(name, seed, n)
    with running(isa) as which:
        value, by_points, by_tables = jax.block_until_ready(gradients(name, which)(points, tables, g))
        again = jax.block_until_ready(gradients(name, which)(points, tables, g))
    for a, b in zip((value, by_points, by_tables), again):
        np.testing.assert_array_equal(a, b)
    some = np.random.default_rng(seed).integers(0, n, 3)
    np.testing.assert_allclose(value[some], expected(name, points[some], tables), atol=2e-4)
    with running(isa) as which:  # lanes do not touch each other
        one = jax.block_until_ready(gradients(name, which)(points[some[:1]], tables, g[some[:1]]))
    np.testing.assert_array_equal(one[0], value[some[:1]])
    np.testing.assert_array_equal(one[1], by_points[some[:1]])


@pytest.mark.parametrize("name", sorted(SPECS))
def test_gradients_equal_those_of_the_reference(name):
    points, tables, g = inputs(name, 21)
    wanted = gradients(name, "reference")(points, tables, g)
    for isa in cpu.isas():
        with cpu.isa(isa):
            got = jax.block_until_ready(gradients(name, "cpu")(points, tables, g))
        for label, a, b in zip(("value", "points", "tables"), got, wanted):
            scale = max(1.0, float(np.max(np.abs(b))))
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5 * scale, err_msg=f"{isa} {label}")


# -- what is computed


def lowered(differentiate):
    points, tables, g = inputs("planes", 1)

    def loss(points, tables):
        return jnp.sum(grid_encode(points, tables, SPECS["planes"], backend="cpu") * g)

    text = jax.jit(jax.grad(loss, differentiate)).lower(points, tables).as_text()
    return {what for what in ("tables_gradient", "points_gradient", "both_gradients") if f"grid_encode_{what}" in text}


def test_only_the_gradients_that_are_asked_for_are_computed():
    assert lowered(1) == {"tables_gradient"}
    assert lowered(0) == {"points_gradient"}
    assert lowered((0, 1)) == {"both_gradients"}


def test_gradients_to_points_under_vmap_with_shared_tables():
    points = np.stack([inputs("planes", seed)[0] for seed in (1, 2)])
    _, tables, g = inputs("planes", 1)

    def loss(points, tables):
        return jnp.sum(grid_encode(points, tables, SPECS["planes"], backend="cpu") * g)

    got = jax.jit(jax.vmap(jax.grad(loss, (0, 1)), (0, None)))(points, tables)
    for i in range(2):
        one = jax.jit(jax.grad(loss, (0, 1)))(points[i], tables)
        for a, b in zip(got, one):
            np.testing.assert_array_equal(a[i], b)


# -- refusals


@pytest.mark.parametrize(
    "spec, reason",
    [
        (GridSpec(4, 2, 1, 3, 4, 10), "4 dimensions"),
        (GridSpec(2, 2, 3, 4, 8, 6), "3 features"),
        (GridSpec(2, 33, 1, 4, 8, 6), "33 levels"),
        (GridSpec(2, 2, 1, 4, 64, 6, pad=12), "72 entries"),
        (GridSpec(2, 1, 1, 2**25, 2**25, 6), "2.24 cells"),
    ],
)
def test_cases_without_a_kernel_run_on_the_reference_or_are_refused_by_name(spec, reason):
    points, tables = jnp.full((2, 1, spec.dims), 0.3), jnp.ones((1, spec.entries, spec.features))
    np.testing.assert_allclose(grid_encode(points, tables, spec), 1.0, atol=1e-6)
    with pytest.raises(ValueError, match=f"grid_encode: back end 'cpu' does not work here: .*{reason}"):
        grid_encode(points, tables, spec, backend="cpu")


def test_tables_of_another_dtype_run_on_the_reference_or_are_refused_by_name():
    points, tables, _ = map(jnp.asarray, inputs("planes", 1))
    tables = tables.astype(jnp.bfloat16)
    assert grid_encode(points, tables, SPECS["planes"]).dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="tables of bfloat16"):
        grid_encode(points, tables, SPECS["planes"], backend="cpu")


def call(points=None, tables=None, out=None, words=None, target="forward"):
    """The handler itself, past the checks of the public op."""
    spec = SPECS["planes"]
    points = jnp.zeros((5, 3, 2)) if points is None else points
    tables = jnp.zeros((3, spec.entries, 1)) if tables is None else tables
    out = jax.ShapeDtypeStruct((5, 3, 5), jnp.float32) if out is None else out
    return cpu.call(
        f"tkjax_grid_encode_{target}", out, points, tables, words=kernels.words(spec) if words is None else words
    )


def changed(position, value):
    words = kernels.words(SPECS["planes"]).copy()
    words[position] = value
    return words


def shape(*dims, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(dims, dtype)


@pytest.mark.parametrize(
    "wrong, sentence",
    [
        ({"points": jnp.zeros((5, 3))}, "points must be"),
        ({"points": jnp.zeros((5, 3, 3))}, "points must be"),
        ({"points": jnp.zeros((5, 0, 2)), "tables": jnp.zeros((0, 3, 1))}, "planes"),
        ({"points": jnp.zeros((5, 3, 2), jnp.int32)}, "(?i)type"),
        ({"tables": jnp.zeros((3, 7, 1))}, "tables must be"),
        ({"tables": jnp.zeros((3, 7))}, "tables must be"),
        ({"tables": jnp.zeros((3, SPECS["planes"].entries, 1), jnp.bfloat16)}, "(?i)type"),
        ({"out": shape(5, 3, 6)}, "features must be"),
        ({"out": shape(5, 15)}, "features must be"),
        ({"out": shape(5, 3, 5, dtype=jnp.float16)}, "float32 or bfloat16"),
        ({"words": np.zeros(3, np.int32)}, "too short"),
        ({"words": np.zeros(44, np.int64)}, "(?i)attr|type"),
        ({"words": kernels.words(SPECS["planes"])[:-1].copy()}, "wrong length"),
        ({"words": changed(0, 5)}, "dims must be"),
        ({"words": changed(1, 0)}, "levels must be"),
        ({"words": changed(2, 3)}, "features must be 1, 2, 4 or 8"),
        ({"words": changed(4, np.float32(np.nan).view(np.int32))}, "scale"),
        ({"words": changed(5, -1)}, "scale"),
        ({"words": changed(5, 2)}, "scale"),
        ({"words": changed(6, 2**30)}, "follow each other"),
        ({"words": changed(6, 7)}, "power of two|follow"),
        ({"words": changed(7, 1)}, "follow each other"),
        ({"words": changed(9, -5)}, "strides"),
        ({"words": changed(9, 0)}, "stride 1"),
        ({"words": changed(16, 1)}, "power of two"),
        ({"target": "tables_gradient", "out": shape(3, 9, 1), "tables": jnp.zeros((5, 3, 5))}, "tables must be"),
        ({"target": "tables_gradient", "out": shape(3, 832, 1), "tables": jnp.zeros((4, 3, 5))}, "features must be"),
    ],
)
def test_a_wrong_call_is_an_error_and_never_a_crash(wrong, sentence):
    with pytest.raises(Exception, match=sentence) as info:
        jax.block_until_ready(call(**wrong))
    assert type(info.value).__name__ in ("JaxRuntimeError", "XlaRuntimeError"), info.value


# -- threads and devices

CHILD = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, PartitionSpec as P
from tkjax.ops import GridSpec, grid_encode
spec = GridSpec(3, 4, 2, 8, 64, 12, "hash")
rng = np.random.default_rng(0)
n = 8 * 700
points = rng.uniform(-0.05, 1.05, (n, 1, 3)).astype(np.float32)
tables = rng.normal(size=(1, spec.entries, 2)).astype(np.float32)
g = rng.normal(size=(n, 1, 8)).astype(np.float32)

def local(points, tables, g):
    out, vjp = jax.vjp(lambda p, t: grid_encode(p, t, spec, backend="cpu"), points, tables)
    by_points, by_tables = vjp(g)
    return out, by_points, by_tables

def shared(points, tables, g):
    out, by_points, by_tables = local(points, tables, g)
    return out, by_points, jax.lax.psum(by_tables, "data")

mesh = jax.make_mesh((len(jax.devices()),), ("data",), axis_types=(AxisType.Auto,))
spread = jax.shard_map(shared, mesh=mesh, in_specs=(P("data"), P(), P("data")),
                       out_specs=(P("data"), P("data"), P()), check_vma=False)
results = [np.asarray(a) for a in jax.jit(spread)(points, tables, g)]
np.savez(sys.argv[1], *results, devices=len(jax.devices()))
"""


def child(tmp_path, name, **environment):
    path = tmp_path / f"{name}.npz"
    env = {k: v for k, v in os.environ.items() if not k.startswith("TKJAX_")} | environment
    done = subprocess.run([sys.executable, "-c", CHILD, str(path)], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return np.load(path)


@pytest.mark.heavy
def test_any_number_of_threads_gives_the_same_bits(tmp_path):
    one, many = child(tmp_path, "one", NPROC="1"), child(tmp_path, "many", NPROC="7")
    for key in one:
        np.testing.assert_array_equal(one[key], many[key])


@pytest.mark.heavy
def test_eight_devices_equal_one(tmp_path):
    one = child(tmp_path, "one")
    eight = child(
        tmp_path, "eight", XLA_FLAGS=f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    )
    assert (one["devices"], eight["devices"]) == (1, 8)
    for key in ("arr_0", "arr_1"):
        np.testing.assert_array_equal(one[key], eight[key])
    np.testing.assert_allclose(one["arr_2"], eight["arr_2"], atol=1e-4)
