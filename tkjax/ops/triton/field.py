"""field on the GPU: `Program.evaluate` with the Triton kernels for grids and MLPs; XLA fuses what lies between them.

The kernels evaluate samples 0 … total - 1; blocks behind them end at once, and their gradients cost as little. What XLA
does between two kernels (a product of two values, an activation) goes over all N. Points and rows behind the last
sample are made zeros first, so what is there is finite, and it is masked at the end: nothing of it is seen, in values
or gradients. Differentiable as its parts are.
"""

import functools

import jax
import jax.numpy as jnp

from tkjax.ops.program import Program
from tkjax.ops.triton import field_mlp, grid_encode


def supports(program: Program) -> None:
    """NotImplementedError with the reason where a part is not there."""
    for instruction in program.instructions:
        if instruction.op == "grid":
            grid_encode.supports(instruction.spec)


def mlp_of_parts(parts, kernels, biases, *, hidden: str, output: str, total=None):
    """The MLP of the concatenation of `parts` [N or 1, K_i]; what is one row for all goes into the first bias."""
    n = next((part.shape[0] for part in parts if part.shape[0] != 1), 1)
    constant, columns, shared, start = [], [], 0.0, 0
    for part in parts:
        rows = kernels[0][start : start + part.shape[1]]
        start += part.shape[1]
        if part.shape[0] == 1 and n != 1:
            shared = shared + jnp.matmul(part, rows, precision=jax.lax.Precision.HIGHEST)[0]
            constant.append(part)
        else:
            columns.append((part, rows))
    if constant:
        biases = tuple(jnp.zeros(k.shape[1], k.dtype) for k in kernels) if biases is None else biases
        biases = (biases[0] + shared, *biases[1:])
    x = jnp.concatenate([part for part, _ in columns], 1)
    first = jnp.concatenate([rows for _, rows in columns])
    return field_mlp.forward(x, (first, *kernels[1:]), biases, hidden=hidden, output=output, total=total)


def forward(program: Program, points, values, indices, params, total, chunk: int):
    """As ops.field; `chunk` does not matter here."""
    del chunk
    live = None if total is None else (jnp.arange(points.shape[0]) < total)[:, None]

    def mask(value):
        return value if live is None else jnp.where(live, value, 0.0)

    rows = dict(values)
    for name, index in indices.items():
        rows[name] = mask(values[name][jnp.clip(index, 0, values[name].shape[0] - 1)])
    mlp, grid = (functools.partial(fn, total=total) for fn in (mlp_of_parts, grid_encode.forward))
    return mask(program.evaluate(mask(points), rows, params, mlp=mlp, grid=grid))
