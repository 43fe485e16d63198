"""One table for all ops: ops x back ends x {values, gradients, empty, one, uneven, vmap, repeat, second}.

`conformance_cases.py` has the ops and says where a property does not apply. Triton kernels run in Triton's interpreter
and, with `-m gpu`, on the GPU.
"""

import functools

import jax
import numpy as np
import pytest

from tests.ops import conformance_cases as cases
from tests.ops import triton_harness as harness
from tests.ops.conformance_cases import BLOCK, OPS, PROPERTIES
from tests.ops.grid_cases import KERNELS, running
from tkjax import ops
from tkjax.ops import dispatch

BACKENDS = ("reference", *KERNELS, "triton", "triton-gpu")
MARKS = {"triton": [harness.needs_interpreter, pytest.mark.heavy], "triton-gpu": [pytest.mark.gpu]}
COMPILED_ANEW = ("empty", "uneven", "vmap")  # for other sizes; `make check` leaves them out
CELLS = [
    pytest.param(
        op, backend, prop, id=f"{op}-{backend}-{prop}",
        marks=[*MARKS.get(backend, ()), *([pytest.mark.heavy] if prop in COMPILED_ANEW else [])],
    )
    for op in OPS for backend in BACKENDS for prop in PROPERTIES
    if backend.partition("-")[0] in dispatch.backends(OPS[op].module) and cases.why_not(op, backend, prop) is None
]  # fmt: skip


def call(backend: str, what: str, op: str, *args):
    """`cases.<what>(op, back end, *args)`, in the interpreter's process for Triton."""
    if backend == "triton":
        return harness.interpreted(cases.__name__, "in_triton", what, op, "triton", *args)
    if backend == "triton-gpu":
        harness.require_gpu()
        return jax.block_until_ready(getattr(cases, what)(op, "triton", *args))
    with running(backend) as name:
        return jax.block_until_ready(getattr(cases, what)(op, name, *args))


@functools.cache
def wanted(op: str, n: int, seed: int = 1):
    return cases.measured(op, "reference", n, seed)


def close(got, want, tolerance: float):
    """Bit by bit where the tolerance is 0, else relative to the largest of an array."""
    got, want = jax.tree.leaves(got), jax.tree.leaves(want)
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        if tolerance == 0:
            np.testing.assert_array_equal(a, b)
        else:
            size = 1e-3 + float(np.max(np.abs(b), initial=0))
            np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * size)


def has_values(op, backend):
    close(call(backend, "measured", op, BLOCK)[0], wanted(op, BLOCK)[0], OPS[op].tolerance)
    if not backend.startswith("triton"):  # `measured` has made sure of those
        with running(backend) as name:
            text = cases.text_of(op, name)
        assert f"{OPS[op].scope or op}.{name}" in text and ("tkjax_" in text) == (name == "cpu")


def has_gradients(op, backend):
    close(call(backend, "measured", op, BLOCK)[1], wanted(op, BLOCK)[1], OPS[op].tolerance)


def has_empty(op, backend):
    """No rows give no values, and zeros where something else has a gradient."""
    for part in call(backend, "measured", op, 0):
        for array in part:
            assert not np.any(array)


def has_one(op, backend):
    close(call(backend, "measured", op, 1), wanted(op, 1), OPS[op].tolerance)


def has_uneven(op, backend):
    close(call(backend, "measured", op, BLOCK + 1), wanted(op, BLOCK + 1), OPS[op].tolerance)


def has_vmap(op, backend):
    """What vmap gives for two inputs is what each of them gives."""
    n = 1 if op == "dilate_morton" else 5
    got = call(backend, "mapped", op, n)
    for i, seed in enumerate((1, 2)):
        one = jax.tree.map(lambda v, i=i: v[i], got)
        close(one, wanted(op, n, seed), max(OPS[op].tolerance, 2e-6 if backend == "reference" else 0.0))


def has_repeat(op, backend):
    """The same bits again."""
    close(*(call(backend, "measured", op, BLOCK) for _ in range(2)), 0.0)


def has_second(op, backend):
    assert "second derivatives are not available in kernels" in str(call(backend, "twice", op))


@pytest.mark.parametrize("op, backend, prop", CELLS)
def test_cell(op, backend, prop):
    globals()[f"has_{prop}"](op, backend)


def test_the_table_is_whole():
    """Every public op is in it, and what it leaves out is there to be left out."""
    functions = {name for name in ops.__all__ if name[0].islower() and callable(getattr(ops, name))}
    assert {op.partition(",")[0] for op in OPS} == functions
    for op, backend, prop in cases.WHY_NOT:
        assert op in (*OPS, "*") and backend in (*dispatch.BACKENDS, "*") and prop in PROPERTIES
    counted = {name: sum(cell.values[1].startswith(name) for cell in CELLS) for name in dispatch.BACKENDS}
    assert all(counted.values()), counted
