"""The field on Triton kernels: values and gradients in the interpreter against the reference, and its lowering."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.ops import programs
from tests.ops import triton_harness as harness
from tkjax.ops import GridSpec, dispatch, field

SPEC = GridSpec(2, 4, 1, 8, 64, 8)
PROGRAMS = {
    "er_nerf": lambda: programs.er_nerf_head(SPEC, 32, 16),
    "rad_nerf": lambda: programs.rad_nerf_head(width=16),  # the gradient goes through a grid's coordinates
}


def run(name, points, rows, params, total, g, backend):
    """(value, gradients to points, rows and params)."""
    values = {k: jnp.asarray(v) for k, (v, _) in rows.items()}
    indices = {k: None if i is None else jnp.asarray(i) for k, (_, i) in rows.items()}

    def evaluate(points, values, params):
        return field(
            PROGRAMS[name](), points, {k: (v, indices[k]) for k, v in values.items()}, params, total=total,
            backend=backend,
        )  # fmt: skip

    with jax.default_matmul_precision("highest"):
        y, vjp = jax.vjp(jax.jit(evaluate), *jax.tree.map(jnp.asarray, (points, values, params)))
        out = y, *vjp(jnp.asarray(g))
    assert backend in dispatch.ran()["field"]
    return out


def inputs(name, n, seed, garbage=0):
    program = PROGRAMS[name]()
    points, rows, params = programs.make(program, n, seed)
    g = np.random.default_rng(seed + 1).normal(size=(n, program.channels)).astype(np.float32)
    if garbage:
        points[-garbage:] = np.nan
        rows = {k: (v, i if i is None else np.where(np.arange(n) < n - garbage, i, 10**9).astype(np.int32))
                for k, (v, i) in rows.items()}  # fmt: skip
    return points, rows, params, n - garbage if garbage else None, g


interpreted = functools.partial(harness.interpreted, __name__)


@harness.needs_interpreter
@pytest.mark.parametrize("name, garbage", [("er_nerf", 9), ("rad_nerf", 0)])
def test_values_and_gradients_equal_the_reference(name, garbage):
    case = inputs(name, 33, 1, garbage)
    got, want = interpreted("run", name, *case, "triton"), run(name, *case, "reference")
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * max(1.0, float(np.max(np.abs(b)))))
    if garbage:
        assert not np.any(got[0][-garbage:]) and not np.any(got[1][-garbage:])


@harness.needs_triton
def test_kernels_are_one_for_the_planes_and_one_for_each_mlp():
    program = programs.er_nerf_head().select("sigma", "rgb")
    params = {k: {leaf: harness.shape("float32", *s) for leaf, s in v.items()} for k, v in program.params.items()}
    rows = {k: harness.shape("float32", 1, c) for k, c in program.rows.items()}

    def evaluate(points, rows, params):
        return field(program, points, {k: (v, None) for k, v in rows.items()}, params, backend="triton")

    launches = harness.recorded(evaluate, harness.shape("float32", 1000, 3), rows, params)
    assert len(launches) == 5
    assert [dict(launch.meta).get("WIDTHS") for launch in launches[1:]] == [
        (36, 64, 32), (36, 16, 1), (69, 64, 64, 65), (64, 64, 3),
    ]  # fmt: skip
