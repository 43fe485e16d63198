"""Small MLPs on the CPU: a field of one instruction."""

import functools

from tkjax.ops.cpu import field
from tkjax.ops.program import Program, ProgramBuilder


@functools.lru_cache(64)
def program(widths: tuple[int, ...], bias: bool, hidden: str, output: str) -> Program:
    p = ProgramBuilder("field_mlp", dims=widths[0])
    return p.build(y=p.mlp("mlp", [p.points], widths, bias=bias, hidden=hidden, output=output))


def forward(x, kernels, biases, *, hidden: str, output: str):
    widths = (kernels[0].shape[0], *(k.shape[1] for k in kernels))
    params = {f"kernel_{i}": k for i, k in enumerate(kernels)}
    params |= {f"bias_{i}": b for i, b in enumerate(biases or ())}
    what = program(widths, biases is not None, hidden, output)
    return field.forward(what, x, {}, {}, {"mlp": params}, None, 0)
