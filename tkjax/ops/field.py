"""The field at many samples: `Program.evaluate` of points [N,3], inputs per ray or frame, and parameters.

Only samples 0 … total-1 are evaluated; the rest of the result is zero, whatever lies there, NaN included.
Differentiable with respect to the parameters, the rows and the points; what is not asked for is not computed.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tkjax.ops import dispatch
from tkjax.ops.program import Program


def field(
    program: Program,
    points: Float[Array, "N D"],
    rows: Mapping[str, tuple],
    params: Mapping,
    *,
    total: int | Int[Array, ""] | None = None,
    chunk: int = 2048,
    backend: str | None = None,
) -> Float[Array, "N C"]:
    """The outputs of `program`, concatenated.

    rows: name -> (values [K,C], index [N] int32 into them, clipped to 0…K-1), or (values [1,C], None): one row for
    all samples. params: name -> {"tables" | "kernel_0" …: array} as `program.params` lists them; more may be there.
    chunk: samples that the reference handles at once.
    """
    values, indices = _rows(program, points, rows)
    params = check_params(program, params)
    if points.shape[1] != program.dims:
        raise ValueError(f"field {program.name}: points {points.shape} must be [N, {program.dims}]")
    for name, array in [("points", points), *values.items()]:
        if array.dtype != "float32":
            raise ValueError(f"field {program.name}: {name} must be float32, got {array.dtype}")
    if chunk < 1:
        raise ValueError(f"field {program.name}: chunk must be at least 1, got {chunk}")
    module = dispatch.resolve("field", backend, program)
    total = None if total is None else jnp.asarray(total, jnp.int32)
    with jax.named_scope(f"field.{module.__name__.split('.')[-2]}"):
        return module.forward(program, jnp.asarray(points), values, indices, params, total, chunk)


def _rows(program: Program, points, rows: Mapping):
    """({name: values}, {name: index}) of the rows that the program reads."""
    values, indices = {}, {}
    for name, channels in program.rows.items():
        if name not in rows:
            raise ValueError(f"field {program.name}: row {name!r} is missing; given: {', '.join(rows) or 'none'}")
        table, index = rows[name]
        if table.ndim != 2 or table.shape[1] != channels or table.shape[0] < 1:
            raise ValueError(f"field {program.name}: row {name!r} must be [K, {channels}], got {table.shape}")
        if index is None and table.shape[0] != 1:
            raise ValueError(f"field {program.name}: row {name!r} has {table.shape[0]} rows and no index")
        if index is not None and (index.shape != points.shape[:1] or index.dtype != "int32"):
            raise ValueError(
                f"field {program.name}: the index of row {name!r} must be int32 [{points.shape[0]}], "
                f"got {index.dtype} {index.shape}"
            )
        values[name] = jnp.asarray(table)
        if index is not None:
            indices[name] = jnp.asarray(index)
    return values, indices


def check_params(program: Program, params: Mapping) -> dict[str, dict]:
    """The parameters that the program reads, and nothing else."""
    out: dict[str, dict] = {}
    for name, shapes in program.params.items():
        for leaf, shape in shapes.items():
            if name not in params or leaf not in params[name]:
                raise ValueError(f"field {program.name}: parameter {name}/{leaf} is missing")
            array = params[name][leaf]
            if array.shape != shape or array.dtype != "float32":
                raise ValueError(
                    f"field {program.name}: {name}/{leaf} must be float32 {shape}, got {array.dtype} {array.shape}"
                )
            out.setdefault(name, {})[leaf] = jnp.asarray(array)
    return out
