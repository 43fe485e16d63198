"""Folded programs: the same outputs, fewer products, and nothing folded where it would not pay."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tkjax.ops import GridSpec, ProgramBuilder
from tkjax.ops.folding import fold

SPEC = GridSpec(3, 2, 2, 4, 8, 8)


def parameters(program, seed=0):
    keys = iter(jax.random.split(jax.random.key(seed), 200))
    return {
        name: {leaf: jax.random.normal(next(keys), shape) * 0.5 for leaf, shape in shapes.items()}
        for name, shapes in program.params.items()
    }


def head(geometry=16, output="none", bias=False, whole=False, hidden=16):
    """Density whose features go into colour, as in the RAD-NeRF family."""
    p = ProgramBuilder("head")
    f = p.grid("grid", SPEC, p.points)
    h = p.mlp("density", [f, p.row("a", 3)], (7, 12, hidden, 1 + geometry), output=output, bias=bias)
    colour = p.mlp("colour", [p.row("d", 4), h if whole else h[1:], f], (8 + geometry + whole, 16, 3))
    return p.build(sigma=p.act(h[:1], "exp"), rgb=p.act(colour, "sigmoid"))


def both(program, seed=0):
    params = parameters(program, seed)
    folded, new = fold(program, params)
    points = jax.random.uniform(jax.random.key(9), (33, 3), minval=-1, maxval=1)
    rows = {name: jax.random.normal(jax.random.key(len(name)), (33, c)) for name, c in program.rows.items()}
    return folded, new, program.evaluate(points, rows, params), folded.evaluate(points, rows, new)


@pytest.mark.heavy
@settings(max_examples=6)  # each compiles anew
@given(seed=st.integers(0, 2**20), geometry=st.integers(8, 24), whole=st.booleans())
def test_outputs_are_the_same(seed, geometry, whole):
    program = head(geometry, whole=whole)
    folded, new, want, got = both(program, seed)
    np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-5)
    assert folded.params.keys() == new.keys() and folded.slices == program.slices
    assert {n: {k: v.shape for k, v in leaves.items()} for n, leaves in new.items()} == folded.params


@pytest.mark.heavy
def test_the_er_nerf_head_loses_its_4096():
    from tkjax.models.er_nerf import head_program

    program = head_program(GridSpec(2, 12, 1, 64, 512, 14), 32, 4).select("sigma", "rgb")
    assert program.flops == 46_368
    folded, _ = fold(program, parameters(program))
    assert folded.flops == 46_368 - 2 * 4096


@pytest.mark.heavy
@pytest.mark.parametrize("change", [{"output": "relu"}, {"bias": True}, {"geometry": 2, "hidden": 64}])
def test_what_is_not_linear_or_does_not_pay_stays(change):
    program = head(**change)
    folded, new, want, got = both(program)
    assert folded == program and new.keys() == program.params.keys()
    np.testing.assert_array_equal(got, want)


def test_a_value_that_others_read_as_well_stays_available():
    p = ProgramBuilder("shared")
    h = p.mlp("a", [p.points], (3, 16, 16))
    g = p.mlp("b", [h], (16, 16, 2))
    program = p.build(g=g, h=h, norm=p.norm(h[2:7]))
    _, _, want, got = both(program)
    np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-5)


def test_folding_twice_in_a_row():
    p = ProgramBuilder("chain")
    a = p.mlp("a", [p.points], (3, 8, 12))
    b = p.mlp("b", [a], (12, 8, 12))
    program = p.build(c=p.mlp("c", [b], (12, 8, 1)))
    folded, _, want, got = both(program)
    assert folded.flops < program.flops
    np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-5)
