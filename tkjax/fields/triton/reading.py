"""How a fused field finds its parts in a Program: backwards from the outputs, by what each instruction computes.

Names of parameters, rows and programs do not matter, nor whether an activation is part of an MLP or follows it. Where a
program is another, NotImplementedError says what would be drawn.
"""

import math
from typing import NamedTuple

from tkjax.ops.program import Instruction, Program


class Reader:
    """Steps through `program`; `what` names the head that is looked for."""

    def __init__(self, program: Program, what: str):
        self.all, self.outputs, self.what = program.instructions, [k for _, k in program.outputs], what

    def need(self, ok: bool) -> None:
        if not ok:
            raise NotImplementedError(f"it draws {self.what} with outputs sigma and rgb, not this program")

    def inputs(self, i: Instruction, *ops: str) -> list[Instruction]:
        """What goes into instruction i, which must be these ops in this order."""
        found = [self.all[k] for k in i.inputs]
        self.need(len(found) == len(ops) and all(v.op == op for v, op in zip(found, ops)))
        return found

    def pair(self, i: Instruction, first: str, second: str) -> list[Instruction]:
        """The factors of a product, in whichever order they stand."""
        self.need(i.op == "mul")
        found = [self.all[k] for k in i.inputs]
        self.need({v.op for v in found} == {first, second})
        return found if found[0].op == first else found[::-1]

    def mlp(self, i: Instruction, output: str, layers: int) -> Instruction:
        """An MLP of relu layers without biases that ends in `output`."""
        if i.op == "act" and i.output == output:
            (i,), output = self.inputs(i, "mlp"), "none"
        self.need(i.op == "mlp" and i.output == output and i.hidden == "relu")
        self.need(not i.bias and len(i.widths) == layers + 1)
        return i


class End(NamedTuple):
    """density (an MLP of three layers), whose first output is log sigma and whose others go into colour (two layers)
    between the rows sh and code: sigma = exp(min(log sigma, highest)), rgb = scale sigmoid(colour) + shift."""

    density: Instruction
    colour: Instruction
    sh: Instruction
    code: Instruction
    highest: float
    scale: float
    shift: float


def end_of(read: Reader) -> End:
    """The end that the fused heads share (`heads.py`)."""
    read.need(len(read.outputs) == 2)
    log, rgb = (read.all[k] for k in read.outputs)
    read.need(log.op == "act" and log.output in ("exp", "trunc_exp"))
    (log,), highest = [read.all[k] for k in log.inputs], math.inf
    if log.op == "clip":
        low, highest = log.numbers
        (log,) = read.inputs(log, "slice")
        read.need(low == -math.inf)
    read.need(log.op == "slice" and (log.start, log.channels) == (0, 1))
    density = read.mlp(read.inputs(log, "mlp")[0], "none", 3)
    scale, shift = 1.0, 0.0
    if rgb.op == "affine":
        (scale, shift), rgb = rgb.numbers, read.all[rgb.inputs[0]]
    colour = read.mlp(rgb, "sigmoid", 2)
    sh, geometry, code = read.inputs(colour, "row", "slice", "row")
    rest = (geometry.start, geometry.channels) == (1, density.channels - 1) and geometry.inputs == log.inputs
    read.need(rest and colour.channels == 3)
    return End(density, colour, sh, code, highest, scale, shift)
