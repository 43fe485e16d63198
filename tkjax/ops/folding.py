"""Fewer products for the same field: a linear layer that feeds a linear layer is multiplied into it beforehand.

Where the last layer of one MLP has no activation and its output, or a slice of it, goes straight into another MLP,
  W_b [x, W_a h] = [W_b,x, W_b,a W_a] [x, h],
so the second MLP can read the hidden layer h and the product W_b,a W_a is formed once. In ER-NeRF and RAD-NeRF density
hands 64 features to colour this way: 4096 of 23,184 multiply-adds a sample fall away (er-nerf dossier §10).
For pictures only: the folded program has other parameters, so there is nothing to train.
"""

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp

from tkjax.ops.program import Instruction, Program


def fold(program: Program, params: Mapping) -> tuple[Program, dict]:
    """A program with the same outputs up to rounding, and its parameters; `program` itself where nothing folds."""
    params = {name: dict(params[name]) for name in program.params}
    k = 0
    while k < len(program.instructions):  # folding at k adds instructions behind k
        i = program.instructions[k]
        if i.op == "mlp" and len(i.widths) > 2 and i.output == "none" and not i.bias:
            program, params = _fold_one(program, params, k)
        k += 1
    return program, params


def _users(program: Program, k: int) -> list[int]:
    return [n for n, i in enumerate(program.instructions) if k in i.inputs]


def _range(program: Program, k: int, first: int) -> tuple[int, int] | None:
    """The channels of instruction `first` that value k is, or None if it is anything else."""
    i = program.instructions[k]
    if k == first:
        return 0, i.channels
    return (i.start, i.start + i.channels) if i.op == "slice" and i.inputs == (first,) else None


def _fold_one(program: Program, params: dict, first: int) -> tuple[Program, dict]:
    old = program.instructions
    source, hidden = old[first], old[first].widths[-2]
    views = {k: r for k in range(len(old)) if (r := _range(program, k, first)) is not None}
    readers = {n for k in views for n in _users(program, k) if old[n].op == "mlp"}
    saved = sum(
        (views[k][1] - views[k][0] - hidden) * old[n].widths[1] for n in readers for k in old[n].inputs if k in views
    )
    linear = {k for k in views if any(n not in readers and n not in views for n in _users(program, k))}
    linear |= {k for k in views if k in {index for _, index in program.outputs}}
    left = hidden * (source.channels - sum(views[k][1] - views[k][0] for k in linear))
    if not readers or saved + left <= 0:
        return program, params

    # The hidden layer takes the place of the MLP; each view that others need becomes a layer of its own.
    own, last = params[source.name], f"kernel_{len(source.widths) - 2}"
    name = f"{source.name}/hidden"
    out: list[Instruction] = []
    number: dict[int, int] = {}  # old value -> new value
    new_params = dict(params)
    new_params[name] = {leaf: v for leaf, v in own.items() if leaf != last}
    for k, i in enumerate(old):
        if k == first:
            place = len(out)
            mapped = tuple(number[n] for n in i.inputs)
            widths = source.widths[:-1]
            out.append(
                dataclasses.replace(i, inputs=mapped, name=name, widths=widths, channels=hidden, output=i.hidden)
            )
        if k in views:
            if k in linear:
                start, stop = views[k]
                view = f"{source.name}/{start}:{stop}"
                new_params[view] = {"kernel_0": own[last][:, start:stop]}
                number[k] = len(out)
                widths = (hidden, stop - start)
                out.append(Instruction("mlp", (place,), stop - start, name=view, widths=widths))
            continue
        if k in readers:
            i, leaves = _read(i, old, views, own[last], params[i.name], hidden)
            new_params[i.name] = leaves
            inputs = tuple(place if n in views else number[n] for n in i.inputs)
        else:
            inputs = tuple(number[n] for n in i.inputs)
        number[k] = len(out)
        out.append(dataclasses.replace(i, inputs=inputs))
    outputs = tuple((label, number[k]) for label, k in program.outputs)
    folded = dataclasses.replace(program, instructions=tuple(out), outputs=outputs)
    return folded, {label: new_params[label] for label in folded.params}


def _read(i: Instruction, old, views, weights, own: dict, hidden: int) -> tuple[Instruction, dict]:
    """A reader whose first kernel takes the hidden layer where it took a view."""
    rows, start = [], 0
    for n in i.inputs:
        stop = start + old[n].channels
        block = own["kernel_0"][start:stop]
        if n in views:
            low, high = views[n]
            block = jnp.matmul(weights[:, low:high], block, precision="highest")
        rows.append(block)
        start = stop
    kernel = jnp.concatenate(rows)
    widths = (kernel.shape[0], *i.widths[1:])
    return dataclasses.replace(i, name=f"{i.name}/folded", widths=widths), {**own, "kernel_0": kernel}
