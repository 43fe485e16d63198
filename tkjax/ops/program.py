"""A field as data: which grids and small MLPs make density and colour of a sample, and what goes into each.

A Program is a list of instructions over values [N, channels], N samples. It is written with a ProgramBuilder,

  p = ProgramBuilder("head")
  f = p.grid("planes", spec, p.points, subsets=((0, 1), (1, 2), (0, 2)), bound=1.0)
  h = p.mlp("density", [f, p.row("audio", 32)], (68, 64, 65))
  program = p.build(sigma=p.act(h[0:1], "exp"), geometry=h[1:65])

and evaluated by `ops.field`. Back ends that fuse (C++ tiles, one GPU kernel) read the same list that `evaluate` below
gives its meaning. Programs are frozen and hashable: equal programs share compiled code.

Instructions (x, y are values; what is one channel wide broadcasts in add and mul):
  points; row NAME (an input per ray or frame, or one for all samples); grid NAME of a value's columns, see `grid`;
  mlp NAME of a concatenation; act KIND; add, mul; affine a x + b; clip to [low, high] (NaN stays, derivative 1 within
  and at the ends); slice of channels; concat; stop_gradient; norm (Euclidean, gradient 0 at 0); sum_abs;
  freq (x, then per octave all sines and all cosines of 2**k x).
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from tkjax.ops.field_mlp import check_activation, check_widths
from tkjax.ops.grid_encode import GridSpec

SMALLEST_NORM = 1e-12  # below it a norm counts as 0 and has no gradient


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One value; `inputs` are the numbers of earlier instructions. What an op does not use stays at its default."""

    op: str
    inputs: tuple[int, ...]
    channels: int
    name: str = ""  # of the row, or of the parameters
    spec: GridSpec | None = None
    subsets: tuple[tuple[int, ...], ...] = ()
    widths: tuple[int, ...] = ()
    bias: bool = False
    hidden: str = "none"
    output: str = "none"  # also the activation of act
    numbers: tuple[float, ...] = ()  # grid: bound; affine: scale, shift; clip: low, high
    start: int = 0  # first channel of slice
    octaves: int = 0


class Value:
    """A value while a program is written; v[a:b] takes channels."""

    def __init__(self, builder: "ProgramBuilder", index: int, channels: int):
        self.builder, self.index, self.channels = builder, index, channels

    def __getitem__(self, key: slice) -> "Value":
        if not isinstance(key, slice) or key.step not in (None, 1):
            raise ValueError(f"a value takes a slice of channels without a step, got {key!r}")
        start, stop, _ = key.indices(self.channels)
        if stop <= start:
            raise ValueError(f"slice {key.start}:{key.stop} of {self.channels} channels is empty")
        return self.builder._add("slice", [self], stop - start, start=start)


class ProgramBuilder:
    """Writes a Program; every method gives a Value."""

    def __init__(self, name: str, dims: int = 3):
        self.name, self.dims = name, dims
        self._list: list[Instruction] = []
        self.points = self._add("points", [], dims)

    def _add(self, op: str, inputs: Sequence[Value], channels: int, **fields) -> Value:
        if any(v.builder is not self for v in inputs):
            raise ValueError(f"{self.name}: a value of another program was used in {op}")
        instruction = Instruction(op, tuple(v.index for v in inputs), channels, **fields)
        if instruction in self._list:  # the same value once
            return Value(self, self._list.index(instruction), channels)
        self._list.append(instruction)
        return Value(self, len(self._list) - 1, channels)

    def row(self, name: str, channels: int) -> Value:
        if any(i.op == "row" and i.name == name and i.channels != channels for i in self._list):
            raise ValueError(f"{self.name}: row {name!r} has two widths")
        return self._add("row", [], channels, name=name)

    def grid(self, name: str, spec: GridSpec, source: Value, subsets=None, bound: float = 1.0) -> Value:
        """Features [N, P*L*F] of a value's columns: plane p reads columns subsets[p] (default: all, one plane),
        mapped from [-bound, bound] to [0, 1]. params[name]["tables"] is [P, entries, F]."""
        subsets = (tuple(range(source.channels)),) if subsets is None else tuple(tuple(s) for s in subsets)
        if not subsets or any(len(s) != spec.dims or not all(0 <= c < source.channels for c in s) for s in subsets):
            raise ValueError(f"{self.name}: grid {name!r} of {spec.dims} dimensions cannot read columns {subsets}")
        if not bound > 0:
            raise ValueError(f"{self.name}: grid {name!r} needs bound > 0, got {bound}")
        fields = {"name": name, "spec": spec, "subsets": subsets, "numbers": (float(bound),)}
        return self._add("grid", [source], len(subsets) * spec.channels, **fields)

    def mlp(self, name, parts: Sequence[Value], widths, *, bias=False, hidden="relu", output="none") -> Value:
        """`ops.field_mlp` of the concatenated parts; params[name] holds kernel_0… and with `bias` bias_0…"""
        widths, given = tuple(int(w) for w in widths), sum(v.channels for v in parts)
        what = f"{self.name}: mlp {name!r}"
        check_widths(what, widths)
        check_activation(what, hidden)
        check_activation(what, output)
        if given != widths[0]:
            raise ValueError(f"{what} takes {widths[0]} inputs, got {given}")
        fields = {"name": name, "widths": widths, "bias": bool(bias), "hidden": hidden, "output": output}
        return self._add("mlp", parts, widths[-1], **fields)

    def act(self, x: Value, kind: str) -> Value:
        check_activation(f"{self.name}: act", kind)
        return self._add("act", [x], x.channels, output=kind)

    def _pair(self, op: str, x: Value, y: Value) -> Value:
        if x.channels != y.channels and 1 not in (x.channels, y.channels):
            raise ValueError(f"{self.name}: {op} of {x.channels} and {y.channels} channels")
        return self._add(op, [x, y], max(x.channels, y.channels))

    def add(self, x: Value, y: Value) -> Value:
        return self._pair("add", x, y)

    def mul(self, x: Value, y: Value) -> Value:
        return self._pair("mul", x, y)

    def affine(self, x: Value, scale: float, shift: float) -> Value:
        return self._add("affine", [x], x.channels, numbers=(float(scale), float(shift)))

    def clip(self, x: Value, low: float = -math.inf, high: float = math.inf) -> Value:
        if not low <= high:
            raise ValueError(f"{self.name}: clip needs low <= high, got {low} and {high}")
        return self._add("clip", [x], x.channels, numbers=(float(low), float(high)))

    def clip_max(self, x: Value, high: float) -> Value:
        return self.clip(x, high=high)

    def concat(self, parts: Sequence[Value]) -> Value:
        return self._add("concat", parts, sum(v.channels for v in parts))

    def stop_gradient(self, x: Value) -> Value:
        return self._add("stop_gradient", [x], x.channels)

    def norm(self, x: Value) -> Value:
        return self._add("norm", [x], 1)

    def sum_abs(self, x: Value) -> Value:
        return self._add("sum_abs", [x], 1)

    def freq(self, x: Value, octaves: int) -> Value:
        if octaves < 0:
            raise ValueError(f"{self.name}: freq needs octaves >= 0, got {octaves}")
        return self._add("freq", [x], x.channels * (1 + 2 * octaves), octaves=octaves)

    def build(self, **outputs: Value) -> "Program":
        """The program whose result is the concatenation of `outputs` in this order."""
        if not outputs:
            raise ValueError(f"{self.name}: a program needs an output")
        named = tuple((name, v.index) for name, v in outputs.items())
        return _prune(Program(self.name, self.dims, tuple(self._list), named))


@dataclasses.dataclass(frozen=True)
class Program:
    """See the module's docstring; made by ProgramBuilder.build."""

    name: str
    dims: int
    instructions: tuple[Instruction, ...]
    outputs: tuple[tuple[str, int], ...]

    @functools.cached_property
    def slices(self) -> dict[str, slice]:
        """Where each output lies in the result."""
        out, start = {}, 0
        for name, index in self.outputs:
            out[name] = slice(start, start + self.instructions[index].channels)
            start = out[name].stop
        return out

    @property
    def channels(self) -> int:
        return sum(self.instructions[index].channels for _, index in self.outputs)

    @functools.cached_property
    def rows(self) -> dict[str, int]:
        """Names and channels of the rows that are read."""
        return {i.name: i.channels for i in self.instructions if i.op == "row"}

    @functools.cached_property
    def params(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """Shapes of the parameters that are read."""
        out: dict[str, dict[str, tuple[int, ...]]] = {}
        for i in self.instructions:
            shapes = out.setdefault(i.name, {}) if i.op in ("grid", "mlp") else {}
            if i.op == "grid":
                shapes["tables"] = (len(i.subsets), i.spec.entries, i.spec.features)
            for k, (a, b) in enumerate(zip(i.widths, i.widths[1:])):
                shapes[f"kernel_{k}"] = (a, b)
                if i.bias:
                    shapes[f"bias_{k}"] = (b,)
        return out

    @property
    def flops(self) -> int:
        """Multiply-adds of the MLPs times two, per sample."""
        return 2 * sum(a * b for i in self.instructions for a, b in zip(i.widths, i.widths[1:]))

    def select(self, *names: str) -> "Program":
        """The program of some outputs only, in the order given; what they do not need is left out."""
        all_outputs = dict(self.outputs)
        if missing := [name for name in names if name not in all_outputs] or (not names and ["no name"]):
            raise ValueError(f"{self.name} has no output {', '.join(missing)}; choose {', '.join(all_outputs)}")
        return _prune(dataclasses.replace(self, outputs=tuple((name, all_outputs[name]) for name in names)))

    def evaluate(self, points, rows: Mapping, params: Mapping, mlp=None, grid=None):
        """[N, channels] in plain jnp. points [N, dims]; rows: name -> [N or 1, C].

        `mlp(parts, kernels, biases, hidden=, output=)` and `grid(points_unit [N,P,D], tables, spec)` may come from
        another back end; parts are [N or 1, K_i].
        """
        if mlp is None or grid is None:
            from tkjax.ops.reference import field_mlp, grid_encode  # they import the public modules

            mlp, grid = mlp or field_mlp.forward_parts, grid or grid_encode.forward
        values: list = []
        for i in self.instructions:
            inputs = [values[k] for k in i.inputs]
            values.append(_step(i, inputs, points, rows, params, mlp, grid))
        n = points.shape[0]
        columns = [jnp.broadcast_to(values[k], (n, values[k].shape[1])) for _, k in self.outputs]
        return jnp.concatenate(columns, -1)


def _prune(program: Program) -> Program:
    """Without the instructions that no output needs; points stay, as number 0."""
    needed = {0} | {index for _, index in program.outputs}
    for k in reversed(range(len(program.instructions))):
        if k in needed:
            needed.update(program.instructions[k].inputs)
    number = {old: new for new, old in enumerate(sorted(needed))}
    kept = tuple(
        dataclasses.replace(i, inputs=tuple(number[k] for k in i.inputs))
        for old, i in enumerate(program.instructions)
        if old in needed
    )
    outputs = tuple((name, number[index]) for name, index in program.outputs)
    return dataclasses.replace(program, instructions=kept, outputs=outputs)


def _step(i: Instruction, inputs, points, rows, params, mlp, grid):
    """The value of one instruction."""
    if i.op == "points":
        return points
    if i.op == "row":
        return rows[i.name]
    if i.op == "grid":
        return _grid(i, inputs[0], params[i.name]["tables"], grid)
    if i.op == "mlp":
        layers, own = range(len(i.widths) - 1), params[i.name]
        biases = tuple(own[f"bias_{k}"] for k in layers) if i.bias else None
        kernels = tuple(own[f"kernel_{k}"] for k in layers)
        return mlp(inputs, kernels, biases, hidden=i.hidden, output=i.output)
    if i.op == "concat":
        n = next((v.shape[0] for v in inputs if v.shape[0] != 1), 1)  # none, where there is no sample
        return jnp.concatenate([jnp.broadcast_to(v, (n, v.shape[1])) for v in inputs], -1)
    return _elementwise(i, *inputs)


def _elementwise(i: Instruction, x, y=None):
    if i.op == "act":
        from tkjax.ops.reference.field_mlp import activate

        return activate(i.output, x)
    if i.op == "add":
        return x + y
    if i.op == "mul":
        return x * y
    if i.op == "affine":
        return x * i.numbers[0] + i.numbers[1]
    if i.op == "clip":
        low, high = i.numbers
        return jnp.where(x > high, high, jnp.where(x < low, low, x))
    if i.op == "slice":
        return x[:, i.start : i.start + i.channels]
    if i.op == "stop_gradient":
        return jax.lax.stop_gradient(x)
    if i.op == "norm":
        square = jnp.sum(x * x, -1, keepdims=True)
        zero = square < SMALLEST_NORM**2
        return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, square)))
    if i.op == "sum_abs":
        return jnp.sum(jnp.abs(x), -1, keepdims=True)
    if i.op == "freq":
        waves = [fn(x * 2.0**k) for k in range(i.octaves) for fn in (jnp.sin, jnp.cos)]
        return jnp.concatenate([x, *waves], -1)
    raise ValueError(f"instruction {i.op!r} is unknown")


def _grid(i: Instruction, source, tables, grid):
    bound = i.numbers[0]
    unit = (source + bound) / (2 * bound)
    planes = jnp.stack([unit[:, list(columns)] for columns in i.subsets], 1)
    return grid(planes, tables, i.spec).reshape(source.shape[0], i.channels)
