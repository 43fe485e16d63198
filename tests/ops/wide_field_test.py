"""AD-NeRF's networks, 8 layers of 256 with a skip, as fields at their real size: the CPU kernels and the reference."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ops import field_oracle, programs
from tests.ops.field_test import close, gradients, jitted, needs_kernels, problem, weights
from tkjax.ops import cpu, field
from tkjax.ops.cpu import field as cpu_field

HEAD, TORSO = programs.ad_nerf(), programs.ad_nerf(audio=106)
SIZES = (0, 1, 63, 64, 65, 150)
ISAS = cpu.isas() if cpu.unavailable() is None else ()


@pytest.mark.parametrize("program, macs, active", [(HEAD, 593_408, 595_844), (TORSO, 614_912, 617_348)])
def test_they_are_the_networks_of_the_dossier(program, macs, active):
    sizes = [int(np.prod(shape)) for shapes in program.params.values() for shape in shapes.values()]
    assert program.flops == 2 * macs and sum(sizes) == active
    assert max(i.widths[0] for i in program.instructions if i.widths) == (383 if program is HEAD else 425)
    cpu_field.supports(program)


@pytest.mark.heavy
@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=needs_kernels)])
@settings(max_examples=4)
@given(st.sampled_from([HEAD, TORSO]), st.sampled_from(SIZES), st.integers(0, 999))
def test_values_equal_float64(backend, program, n, seed):
    args, index = problem(program, n, seed)
    params, values, points = args
    rows = {name: (values[name], index[name]) for name in values}
    got = jitted(program, backend)(args, index)
    assert got.shape == (n, 4)
    close(got, field_oracle.evaluate(program, np.float64(points), rows, params), 3e-5)


@pytest.mark.heavy
@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=4)
@given(st.sampled_from([HEAD, TORSO]), st.sampled_from(SIZES), st.integers(0, 999))
def test_gradients_to_parameters_rows_and_points_equal_the_reference(isa, program, n, seed):
    args, index = problem(program, n, seed)
    w = weights(program, n)
    with cpu.isa(isa):
        got = jax.block_until_ready(gradients(program, "cpu")(args, index, w))
    close(got, gradients(program, "reference")(args, index, w), 1e-4)


@needs_kernels
def test_gradients_of_more_than_a_block_of_tiles_are_the_sum_of_its_parts(n=16 * 8 * 64 + 65):
    """Where partitions of the sums are used twice. Against the reference a few of so many units lie on the other side
    of zero."""
    (params, values, points), index = problem(HEAD, n)
    w = weights(HEAD, n)

    def part(first, last):
        some = {name: None if i is None else i[first:last] for name, i in index.items()}
        return gradients(HEAD, "cpu")((params, values, points[first:last]), some, w[first:last])

    whole, again, left, right = part(0, n), part(0, n), part(0, 4000), part(4000, n)
    jax.tree.map(np.testing.assert_array_equal, whole, again)
    close(whole[:2], jax.tree.map(jnp.add, left[:2], right[:2]), 3e-5)
    np.testing.assert_array_equal(whole[2], jnp.concatenate([left[2], right[2]]))


@pytest.mark.parametrize("isa", ISAS)
def test_the_bits_of_a_sample_do_not_depend_on_its_place(isa, n=200):
    args, index = problem(HEAD, n)
    order = np.random.default_rng(1).permutation(n)
    with cpu.isa(isa):
        got = np.asarray(jitted(HEAD, "cpu")(args, index))
        moved = {name: None if i is None else i[order] for name, i in index.items()}
        np.testing.assert_array_equal(jitted(HEAD, "cpu")((*args[:2], args[2][order]), moved), got[order])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("program", [HEAD, TORSO], ids=["head", "torso"])
def test_a_row_for_all_is_what_it_is_as_a_row_for_each_sample(isa, program, n=70):
    """In the first case its products are made once."""
    (params, values, points), index = problem(program, n)
    with cpu.isa(isa):
        folded = jitted(program, "cpu")((params, values, points), index)
        each = jitted(program, "cpu")((params, values, points), index | {"audio": jnp.zeros(n, jnp.int32)})
        jax.block_until_ready((folded, each))
    close(folded, each, 1e-5)


@pytest.mark.heavy
@needs_kernels
@pytest.mark.parametrize("total", [0, 1, 65, 150])
def test_what_lies_beyond_total_counts_for_nothing(total, n=150):
    (params, values, points), index = problem(HEAD, n)
    bad = points.at[total:].set(jnp.nan)
    got = jitted(HEAD, "cpu")((params, values, bad), index, total)
    np.testing.assert_array_equal(got[total:], 0.0)
    np.testing.assert_array_equal(got[:total], jitted(HEAD, "cpu")((params, values, points), index)[:total])
    w = weights(HEAD, n)
    grads = gradients(HEAD, "cpu")((params, values, bad), index, w.at[total:].set(jnp.nan), total)
    want = gradients(HEAD, "reference")((params, values, points), index, w.at[total:].set(0.0))
    close(grads, want, 1e-4)


@pytest.mark.parametrize("isa", ISAS)
def test_bfloat16_rounds_pictures_where_the_processor_multiplies_it_and_never_gradients(isa, n=130):
    args, index = problem(HEAD, n)
    params, values, points = args
    rows = {name: (values[name], index[name]) for name in values}

    def draw(params):
        return field(HEAD, points, rows, params, backend="cpu")

    def slope(params):
        return jax.grad(lambda p: jnp.sum(draw(p)))(params)

    with cpu.isa(isa):
        plain, plain_slope = jax.block_until_ready((jax.jit(draw)(params), jax.jit(slope)(params)))
        with jax.default_matmul_precision("bfloat16"):
            rounded, rounded_slope = jax.block_until_ready((jax.jit(draw)(params), jax.jit(slope)(params)))
            text = jax.jit(draw).lower(params).as_text()
    assert "bf16 = 1" in text and "bf16 = 0" in jax.jit(draw).lower(params).as_text()
    close(rounded, plain, 5e-2)  # weights alone, rounded in the float64 formula, move a value by 1.9 % of the largest
    assert np.sqrt(np.mean((rounded - plain) ** 2)) < 1e-2 * np.max(np.abs(plain))
    if isa != "avx512":  # only there are such instructions
        np.testing.assert_array_equal(rounded, plain)
    jax.tree.map(np.testing.assert_array_equal, rounded_slope, plain_slope)


@pytest.mark.heavy
def test_awkward_widths_around_the_limits_of_wide_layers():
    """128 inputs are the most that are not copied; outputs leave one to five over a panel."""
    for inputs, outputs in itertools.product((128, 129, 512), (1, 11, 256)):
        p = programs.ProgramBuilder("limits", dims=inputs)
        program = p.build(y=p.mlp("mlp", [p.points], (inputs, outputs), bias=True, hidden="relu", output="tanh"))
        args, index = problem(program, 65)
        w = weights(program, 65)
        for isa in ISAS:
            with cpu.isa(isa):
                got = jax.block_until_ready(
                    (jitted(program, "cpu")(args, index), gradients(program, "cpu")(args, index, w))
                )
            close(
                got, (jitted(program, "reference")(args, index), gradients(program, "reference")(args, index, w)), 3e-5
            )
