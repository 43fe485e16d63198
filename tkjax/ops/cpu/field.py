"""Field through the C++ tile interpreter, forward and backward.

The program goes to C++ as a list of int32 words (floats by their bits); arrays go in the order points, total,
parameters, rows' values, indices. The backward call is told what is asked for, and gives nothing else.

Under `jax.default_matmul_precision("bfloat16")`, where no gradient is taken and the processor has AVX512_BF16, operands
of the products are rounded to bfloat16 (sums stay float32): for pictures of wide networks.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from tkjax.ops import cpu, dispatch
from tkjax.ops.cpu import grid_encode
from tkjax.ops.field_mlp import ACTIVATIONS
from tkjax.ops.folding import fold
from tkjax.ops.program import Instruction, Program

OPS = (
    "points", "row", "grid", "mlp", "act", "add", "mul", "affine", "clip", "slice", "concat", "stop_gradient", "norm",
    "sum_abs", "freq",
)  # fmt: skip
BFLOAT16 = ("bfloat16", "BF16_BF16_F32")  # of jax_default_matmul_precision
MAX_STEPS, MAX_ROWS, MAX_PARAMS, MAX_OUTPUTS = 64, 16, 128, 32  # as in field.h


def supports(program: Program) -> None:
    """NotImplementedError where the interpreter does not hold the program."""
    leaves = sum(len(shapes) for shapes in program.params.values())
    sizes = {
        "instructions": (len(program.instructions), MAX_STEPS), "rows": (len(program.rows), MAX_ROWS),
        "parameters": (leaves, MAX_PARAMS), "outputs": (len(program.outputs), MAX_OUTPUTS),
        "layers of an MLP": (max((len(i.widths) - 1 for i in program.instructions), default=0), 12),
        "grids": (sum(i.op == "grid" for i in program.instructions), 6),
        "planes of a grid": (max((len(i.subsets) for i in program.instructions), default=0), 8),
        "parts of an input": (max(_parts(program, k) for k in range(len(program.instructions))), 16),
        "channels": (max(i.channels for i in program.instructions), 16384),
        "columns of points": (program.dims, 512),
    }  # fmt: skip
    for name, (size, most) in sizes.items():
        if size > most:
            raise NotImplementedError(f"{program.name} has {size} {name}; the C++ kernels hold {most}")
    for i in program.instructions:
        if i.op == "grid":
            grid_encode.supports(i.spec)


def _parts(program: Program, k: int) -> int:
    i = program.instructions[k]
    nested = (_parts(program, n) if program.instructions[n].op == "concat" else 1 for n in i.inputs)
    return sum(nested) if i.op in ("mlp", "concat") else len(i.inputs)


def _bits(*values: float) -> list[int]:
    return np.array(values, np.float32).view(np.int32).tolist()


@functools.lru_cache(64)
def leaves(program: Program) -> tuple[tuple[str, str], ...]:
    """(name, leaf) of the parameters in the order of the buffers."""
    return tuple((name, leaf) for name, shapes in program.params.items() for leaf in _order(shapes))


def _order(shapes) -> list[str]:
    """Kernels, then biases."""
    return sorted(shapes, key=lambda leaf: (leaf.startswith("bias"), int(leaf.split("_")[-1]) if "_" in leaf else 0))


def _payload(program: Program, i: Instruction) -> list[int]:
    """The words of an instruction behind op, channels and inputs."""
    number = {key: k for k, key in enumerate(leaves(program))}
    if i.op == "row":
        return [list(program.rows).index(i.name)]
    if i.op == "grid":
        grid = np.asarray(grid_encode.words(i.spec), np.int32).tolist()
        columns = [c for subset in i.subsets for c in subset]
        head = [number[i.name, "tables"], len(i.subsets), i.spec.dims]
        return [*head, *columns, *_bits(i.numbers[0]), len(grid), *grid]
    if i.op == "mlp":
        kinds = ACTIVATIONS.index(i.hidden), ACTIVATIONS.index(i.output)
        return [number[i.name, "kernel_0"], len(i.widths) - 1, *i.widths, int(i.bias), *kinds]
    if i.op == "act":
        return [ACTIVATIONS.index(i.output)]
    if i.op in ("affine", "clip"):
        return _bits(*i.numbers)
    if i.op in ("slice", "freq"):
        return [i.start if i.op == "slice" else i.octaves]
    return []


@functools.lru_cache(64)
def words(program: Program) -> np.ndarray:
    """The program as field_parse reads it."""
    out = [program.dims, len(program.instructions), len(program.rows), len(leaves(program)), len(program.outputs)]
    out += [*program.rows.values(), *(k for _, k in program.outputs)]
    for i in program.instructions:
        out += [OPS.index(i.op), i.channels, len(i.inputs), *i.inputs, *_payload(program, i)]
    return np.array(out, np.int32)


def _buffers(values, indices, params, program: Program):
    arrays = [params[name][leaf] for name, leaf in leaves(program)]
    return arrays + [values[name] for name in program.rows] + [indices[k] for k in program.rows if k in indices]


def _indexed(program: Program, indices) -> np.ndarray:
    return np.array([name in indices for name in program.rows], np.int32)


def _forward(program: Program, points, values, indices, params, total, rounded: bool = False):
    out = jax.ShapeDtypeStruct((points.shape[0], program.channels), jnp.float32)
    arrays = _buffers(values, indices, params, program)
    attributes = {"words": words(program), "indexed": _indexed(program, indices), "bf16": np.int32(rounded)}
    return cpu.call("tkjax_field_forward", out, points, total, *arrays, **attributes)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _field(program: Program, points, values, indices, params, total):
    """Where no gradient is taken, linear layers are multiplied together first (`ops.folding`)."""
    folded, fewer = fold(program, params)
    try:
        supports(folded)
    except NotImplementedError:  # it has an instruction more for each layer that is taken apart
        folded, fewer = program, params
    rounded = str(jax.config.jax_default_matmul_precision) in BFLOAT16
    return _forward(folded, points, values, indices, fewer, total, rounded)


def _field_fwd(program: Program, points, values, indices, params, total):
    primal = lambda tree: jax.tree.map(lambda v: v.value, tree, is_leaf=lambda v: hasattr(v, "perturbed"))  # noqa: E731
    arrays = primal((points, values, indices, params, total))
    # What is asked for travels as structure: () or None, since residuals are arrays.
    asked = jax.tree.map(
        lambda v: () if v.perturbed else None, (points, values, params), is_leaf=lambda v: hasattr(v, "perturbed")
    )
    once = dispatch.once_differentiable("field")(functools.partial(_forward, program))
    return once(*arrays), (arrays, asked)


def _field_bwd(program: Program, residuals, dout):
    (points, values, indices, params, total), (points_asked, values_asked, params_asked) = residuals
    if isinstance(dout, jax.custom_derivatives.SymbolicZero):
        return None, None, None, None, None
    names, rows = leaves(program), list(program.rows)
    asked = [params_asked[name][leaf] is not None for name, leaf in names]
    asked += [values_asked[name] is not None for name in rows] + [points_asked is not None]
    everything = [params[name][leaf] for name, leaf in names] + [values[name] for name in rows] + [points]
    given = iter(_backward(program, asked, everything, indices, total, dout))
    grads = [next(given) if want else None for want in asked]
    dparams: dict[str, dict] = {}
    for (name, leaf), g in zip(names, grads):
        dparams.setdefault(name, {})[leaf] = g
    return grads[-1], dict(zip(rows, grads[len(names) : -1])), {name: None for name in indices}, dparams, None


def _backward(program: Program, asked, everything, indices, total, dout):
    """The gradients asked for, of [parameters, rows' values, points]."""
    *arrays, points = everything
    out = [jax.ShapeDtypeStruct(v.shape, jnp.float32) for v, want in zip(everything, asked) if want]
    arrays += [indices[name] for name in program.rows if name in indices]
    attributes = {"words": words(program), "indexed": _indexed(program, indices), "asked": np.array(asked, np.int32)}

    @dispatch.once_differentiable("field")
    def call(points, total, dout, *arrays):
        return tuple(cpu.call("tkjax_field_backward", out, points, total, dout, *arrays, **attributes))

    return call(points, total, dout, *arrays)


_field.defvjp(_field_fwd, _field_bwd, symbolic_zeros=True)


def forward(program: Program, points, values, indices, params, total, chunk: int):
    del chunk  # tiles of 64 samples
    total = jnp.int32(points.shape[0]) if total is None else total
    return _field(program, points, values, indices, params, total)
