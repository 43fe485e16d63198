"""field: programs of any instructions on the CPU kernels, against a float64 evaluation; gradients and the reference."""

import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ops import field_oracle, programs
from tkjax.ops import GridSpec, ProgramBuilder, cpu, dispatch, field
from tkjax.ops.cpu import field as cpu_field

needs_kernels = pytest.mark.skipif(cpu.unavailable() is not None, reason=f"CPU kernels: {cpu.unavailable()}")
BACKENDS = ["reference", pytest.param("cpu", marks=needs_kernels)]
ISAS = cpu.isas() if cpu.unavailable() is None else ()
SIZES = (0, 1, 63, 64, 65, 130)
SMALL = GridSpec(2, 3, 1, 8, 32, 8)
SYSTEMS = {
    "er_nerf": programs.er_nerf_head(SMALL),
    "rad_nerf": programs.rad_nerf_head(),
    "ad_nerf": programs.ad_nerf(width=40, audio=8),
}


def problem(program, n, seed=0):
    """(params, values, points) to differentiate, and {name: index}."""
    points, rows, params = jax.tree.map(jnp.asarray, programs.make(program, n, seed))
    return (params, {k: v for k, (v, _) in rows.items()}, points), {k: i for k, (_, i) in rows.items()}


@functools.cache
def jitted(program, backend):
    def run(args, index, total=None):
        params, values, points = args
        rows = {name: (v, index[name]) for name, v in values.items()}
        return field(program, points, rows, params, total=total, chunk=50, backend=backend)

    return jax.jit(run)


@functools.cache
def gradients(program, backend):
    def loss(args, index, w, total=None):
        return jnp.sum(jitted(program, backend)(args, index, total) * w)

    return jax.jit(jax.grad(loss))


def weights(program, n):
    return jnp.asarray(np.random.default_rng(9).normal(size=(n, program.channels)), jnp.float32)


def close(got, want, tol):
    def one(path, a, b):
        size = 1e-3 + float(np.max(np.abs(b), initial=0.0))
        np.testing.assert_allclose(a, b, rtol=0, atol=tol * size, err_msg=jax.tree_util.keystr(path))

    jax.tree_util.tree_map_with_path(one, got, want)


def check_random_program(backend, seed, n):
    program = programs.random_program(seed)
    args, index = problem(program, n, seed)
    params, values, points = args
    rows = {name: (values[name], index[name]) for name in values}
    want = field_oracle.evaluate(program, np.float64(points), rows, params)
    got = field(program, points, rows, params, backend=backend)
    assert got.shape == (n, program.channels)
    close(got, want, 1e-4)


@needs_kernels
@given(st.integers(0, 10**6), st.sampled_from(SIZES))
def test_any_program_equals_float64(seed, n):
    check_random_program("cpu", seed, n)


@pytest.mark.heavy
@pytest.mark.parametrize("seed, n", [(3, 0), (4, 65), (5, 130)])
def test_the_reference_equals_float64(seed, n):
    """Few: it compiles operation by operation."""
    check_random_program("reference", seed, n)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_for_all_beside_no_samples_is_no_sample(backend):
    p = ProgramBuilder("none")
    program = p.build(y=p.concat([p.points, p.row("audio", 4)]))
    assert field(program, jnp.zeros((0, 3)), {"audio": (jnp.ones((1, 4)), None)}, {}, backend=backend).shape == (0, 7)


@pytest.mark.heavy
@needs_kernels
@settings(max_examples=4)
@given(st.integers(0, 10**6))
def test_any_programs_gradients_equal_the_reference(seed):
    program = programs.random_program(seed)
    args, index = problem(program, 65, seed)
    w = weights(program, 65)
    close(gradients(program, "cpu")(args, index, w), gradients(program, "reference")(args, index, w), 1e-3)


@pytest.mark.heavy
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", SYSTEMS)
def test_systems_on_every_instruction_set(name, isa):
    program = SYSTEMS[name]
    args, index = problem(program, 200)
    want = jitted(program, "reference")(args, index)
    w = weights(program, 200) * jnp.where(jnp.abs(want) > 10, 0.01, 1.0)
    with cpu.isa(isa):
        got = jax.block_until_ready(jitted(program, "cpu")(args, index))
        grads = jax.block_until_ready(gradients(program, "cpu")(args, index, w))
    close(got, want, 2e-5)
    close(grads, gradients(program, "reference")(args, index, w), 3e-4)


@pytest.mark.heavy
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("total", [0, 1, 64, 100, 130, 500])
def test_what_lies_beyond_total_counts_for_nothing(backend, total):
    program = SYSTEMS["rad_nerf"].select("rgb", "ambient")
    (params, values, points), index = problem(program, 130)
    clean = jitted(program, backend)((params, values, points), index)
    beyond = points.at[total:].set(jnp.nan)
    got = jitted(program, backend)((params, values, beyond), index, total)
    np.testing.assert_array_equal(got[total:], 0.0)
    np.testing.assert_allclose(got[:total], clean[:total], rtol=1e-5, atol=1e-6)
    w = weights(program, 130)
    grads = gradients(program, backend)((params, values, beyond), index, w.at[total:].set(jnp.nan), total)
    want = gradients(program, "reference")((params, values, points), index, w.at[total:].set(0.0))
    close(grads, want, 2e-4)


@needs_kernels
def test_gradients_equal_finite_differences():
    p = ProgramBuilder("smooth")
    a = p.mlp(
        "a", [p.grid("space", programs.TINY_3D, p.points), p.row("audio", 4)], (6, 9, 5), hidden="tanh", bias=True
    )
    y = p.mlp("b", [p.mul(a, p.row("sh", 5)), p.row("audio", 4)], (9, 7, 2), hidden="softplus", output="sigmoid")
    program = p.build(y=y, norm=p.norm(a), wave=p.freq(y, 2))
    args, index = problem(program, 70)
    w = weights(program, 70)
    grads = gradients(program, "cpu")(args, index, w)

    def loss(args):
        params, values, points = args
        rows = {name: (values[name], index[name]) for name in values}
        return np.sum(np.float64(w) * field_oracle.evaluate(program, points, rows, params))

    rng, flat, tree = np.random.default_rng(4), *jax.tree.flatten(args)
    flat = [np.float64(v) for v in flat]
    for k in range(len(flat) - 1):  # each parameter and row by itself; points lie on kinks of the grid too often
        step = rng.normal(size=flat[k].shape)
        ends = ([*flat[:k], flat[k] + s * 1e-6 * step, *flat[k + 1 :]] for s in (1, -1))
        up, down = (loss(jax.tree.unflatten(tree, v)) for v in ends)
        np.testing.assert_allclose(np.sum(jax.tree.leaves(grads)[k] * step), (up - down) / 2e-6, rtol=2e-3, atol=2e-3)


@needs_kernels
def test_nan_and_infinity_stay_in_their_sample():
    program = SYSTEMS["er_nerf"]
    (params, values, points), index = problem(program, 130)
    bad = points.at[3, 1].set(jnp.nan).at[66].set(jnp.inf).at[67].set(-jnp.inf)
    values = {**values, "sh": values["sh"].at[2].set(jnp.nan)}
    got, want = (np.asarray(jitted(program, b)((params, values, bad), index)) for b in ("cpu", "reference"))
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    assert np.isnan(got).any() and np.isfinite(got[66]).all() == np.isfinite(want[66]).all()
    close(np.nan_to_num(got), np.nan_to_num(want), 2e-5)


@needs_kernels
def test_an_index_outside_the_rows_is_clipped_and_rows_may_come_in_any_order():
    program = SYSTEMS["er_nerf"].select("rgb")
    args, index = problem(program, 130)
    index["sh"] = jnp.asarray(np.random.default_rng(0).integers(-3, 12, 130), jnp.int32)
    close(jitted(program, "cpu")(args, index), jitted(program, "reference")(args, index), 2e-5)
    w = weights(program, 130)
    close(gradients(program, "cpu")(args, index, w), gradients(program, "reference")(args, index, w), 2e-4)


@needs_kernels
def test_parameters_used_twice_get_both_gradients():
    p = ProgramBuilder("twice")
    once = p.mlp("net", [p.points], (3, 8, 3), hidden="tanh")
    program = p.build(y=p.mlp("net", [once], (3, 8, 3), hidden="tanh"))
    args, index = problem(program, 65)
    w = weights(program, 65)
    close(gradients(program, "cpu")(args, index, w), gradients(program, "reference")(args, index, w), 1e-4)


@needs_kernels
def test_only_what_is_asked_for_is_computed():
    program = SYSTEMS["er_nerf"]
    (params, values, points), index = problem(program, 65)

    def loss(tables):
        return jnp.sum(jitted(program, "cpu")(({**params, "planes": {"tables": tables}}, values, points), index))

    text = jax.jit(jax.grad(loss)).lower(params["planes"]["tables"]).as_text()
    call = next(line for line in text.splitlines() if "@tkjax_field_backward" in line)
    assert call.rsplit("->", 1)[1].count("tensor<") == 1
    full = gradients(program, "cpu")((params, values, points), index, jnp.ones((65, program.channels)))
    np.testing.assert_array_equal(jax.grad(loss)(params["planes"]["tables"]), full[0]["planes"]["tables"])


@needs_kernels
def test_linear_layers_are_folded_only_where_no_gradient_is_taken():
    program = SYSTEMS["er_nerf"].select("sigma", "rgb")
    args, index = problem(program, 130)
    plain = jitted(program, "cpu")(args, index)
    again, _ = jax.vjp(lambda args: jitted(program, "cpu")(args, index), args)
    close(plain, again, 1e-5)

    def takes(fn, kernel):  # whether the C++ kernel gets the last layer of density as it is
        text = jax.jit(fn).lower(args).as_text()
        return kernel in next(line for line in text.splitlines() if "@tkjax_field_forward" in line)

    assert not takes(lambda args: jitted(program, "cpu")(args, index), "tensor<64x65xf32>")
    assert takes(lambda args: jax.vjp(lambda a: jitted(program, "cpu")(a, index), args)[0], "tensor<64x65xf32>")


@needs_kernels
def test_second_derivatives_are_refused_and_the_reference_has_them():
    program = SYSTEMS["er_nerf"].select("rgb")
    (params, values, points), index = problem(program, 10)

    def twice(backend):
        loss = lambda eye: jnp.sum(jitted(program, backend)((params, {**values, "eye": eye}, points), index) ** 2)  # noqa: E731
        return jax.grad(lambda eye: jnp.sum(jax.grad(loss)(eye) ** 2))(values["eye"])

    with pytest.raises(NotImplementedError, match="second derivatives"):
        twice("cpu")
    assert np.isfinite(twice("reference")).all()


DIGEST = """
import hashlib, os, sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import PartitionSpec as P
from tests.ops import field_test as t
from tkjax.ops import dispatch
program = t.SYSTEMS["rad_nerf"]
args, index = t.problem(program, 4096)
run = t.jitted(program, "cpu")
grads = t.gradients(program, "cpu")
w = t.weights(program, 4096)
digest = hashlib.sha256()
for _ in range(2):
    for v in jax.tree.leaves((run(args, index), grads(args, index, w))):
        digest.update(np.asarray(v).tobytes())
    print(digest.hexdigest() if _ else "", end="")
devices = len(jax.devices())
if devices > 1:
    params, values, points = args
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    where = {k: P("data") if i is not None else None for k, i in index.items()}
    step = jax.shard_map(
        lambda params, values, points, index, w: (
            run((params, values, points), index),
            jax.lax.psum(grads((params, values, points), index, w)[0], "data"),
        ),
        mesh=mesh, in_specs=(P(), P(), P("data"), where, P("data")), out_specs=(P("data"), P()), check_vma=False,
    )
    out, dparams = jax.jit(step)(params, values, points, index, w)
    np.testing.assert_array_equal(out, run(args, index))
    t.close(dparams, grads(args, index, w)[0], 1e-4)
    print(" sharded", end="")
"""


def digest(**environment):
    env = {**os.environ, **environment, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", DIGEST], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@needs_kernels
@pytest.mark.heavy
def test_bits_depend_on_neither_repeats_nor_threads_and_eight_devices_equal_one():
    """NPROC is what XLA sizes its thread pool by."""
    one, three = digest(NPROC="1"), digest(NPROC="3")
    assert len(one) == 64 and one == three
    eight = digest(XLA_FLAGS=f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8")
    assert eight == f"{one} sharded"


def test_what_does_not_fit_is_refused():
    program = SYSTEMS["er_nerf"]
    (params, values, points), index = problem(program, 10)
    rows = {name: (values[name], index[name]) for name in values}
    with pytest.raises(ValueError, match=r"must be \[N, 3\]"):
        field(program, points[:, :2], rows, params)
    with pytest.raises(ValueError, match="row 'audio' is missing"):
        field(program, points, {k: v for k, v in rows.items() if k != "audio"}, params)
    with pytest.raises(ValueError, match="row 'audio' must be"):
        field(program, points, {**rows, "audio": (values["audio"][:, :3], None)}, params)
    with pytest.raises(ValueError, match="no index"):
        field(program, points, {**rows, "sh": (values["sh"], None)}, params)
    with pytest.raises(ValueError, match="index of row 'sh' must be int32"):
        field(program, points, {**rows, "sh": (values["sh"], index["sh"].astype(jnp.float32))}, params)
    with pytest.raises(ValueError, match="density/kernel_1 must be float32"):
        field(program, points, rows, {**params, "density": {**params["density"], "kernel_1": jnp.zeros((3, 3))}})
    with pytest.raises(ValueError, match="points must be float32"):
        field(program, points.astype(jnp.bfloat16), rows, params)
    with pytest.raises(ValueError, match="has no output depth; choose sigma"):
        program.select("depth")


@needs_kernels
@settings(max_examples=40)
@given(st.integers(0, 10**6))
def test_damaged_words_and_buffers_are_errors_and_never_a_crash(seed):
    """Straight to the handler, past the checks of the public op."""
    rng = np.random.default_rng(seed)
    program = SYSTEMS[list(SYSTEMS)[seed % 3]].select("rgb")
    (params, values, points), index = problem(program, 65)
    words = cpu_field.words(program).copy()
    for _ in range(int(rng.integers(1, 4))):
        words[rng.integers(len(words))] = rng.choice([-1, 0, 1, 2, 7, 65, 2**20, 2**31 - 1])
    words = words[: rng.integers(1, len(words) + 1)] if rng.integers(2) else words
    arrays = cpu_field._buffers(values, {k: v for k, v in index.items() if v is not None}, params, program)
    out = jax.ShapeDtypeStruct((65, program.channels), jnp.float32)
    flags, plain = np.array([index[name] is not None for name in program.rows], np.int32), {"bf16": np.int32(0)}
    try:
        total = jnp.int32(65)
        np.asarray(cpu.call("tkjax_field_forward", out, points, total, *arrays, words=words, indexed=flags, **plain))
    except jax.errors.JaxRuntimeError as error:
        assert "tkjax" in str(error)
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"wrong|Index out of range"):
        good = cpu_field.words(program)
        jax.block_until_ready(
            cpu.call(
                "tkjax_field_forward", out, points, jnp.int32(65), *arrays[:-1], words=good, indexed=flags, **plain
            )
        )


@needs_kernels
def test_the_kernels_run_by_default_and_a_program_that_is_too_large_does_not_use_them():
    program = SYSTEMS["er_nerf"]
    args, index = problem(program, 10)
    with dispatch.use(None):
        text = jitted(program, None).lower(args, index).as_text(debug_info=True)
    assert "tkjax_field_forward" in text and "field.cpu" in text and "cpu" in dispatch.ran()["field"]
    p = ProgramBuilder("large")
    value = p.points
    for k in range(70):
        value = p.affine(value, 1.0, float(k))
    large = p.build(y=value)
    with pytest.raises(ValueError, match="71 instructions"):
        field(large, args[2], {}, {}, backend="cpu")
    assert field(large, args[2], {}, {}).shape == (10, 3)
