"""grid_encode through the C++ kernels. Table gradients are sums in a fixed order: the same bits with any threads."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from tkjax.ops import cpu, dispatch
from tkjax.ops.grid_encode import GridSpec

MAX_LEVELS = 32
MAX_RESOLUTION = 2**24


def supports(spec: GridSpec, dtype=np.float32) -> None:
    """NotImplementedError with the reason where the kernels do not have the case."""
    if dtype != np.float32:
        raise NotImplementedError(f"tables of {dtype} (float32 is there)")
    if spec.dims not in (2, 3):
        raise NotImplementedError(f"grids of {spec.dims} dimensions (2 and 3 are there)")
    if spec.features not in (1, 2, 4, 8):
        raise NotImplementedError(f"{spec.features} features per level (1, 2, 4 and 8 are there)")
    if spec.levels > MAX_LEVELS:
        raise NotImplementedError(f"{spec.levels} levels (up to {MAX_LEVELS} are there)")
    if spec.table[-1].resolution >= MAX_RESOLUTION or spec.entries * spec.features >= 2**31:
        raise NotImplementedError("grids as fine as 2^24 cells, or of 2^31 numbers")
    for level in spec.table:
        wraps = level.hashed or (level.resolution + 1) ** spec.dims > level.entries
        if wraps and level.entries & (level.entries - 1):
            raise NotImplementedError(f"{level.entries} entries in a level that wraps (powers of two are there)")


@functools.cache
def words(spec: GridSpec) -> np.ndarray:
    """The grid as int32 numbers, as `grid_parse` in grid_encode.h reads them. Field kernels take them too."""
    out = [spec.dims, spec.levels, spec.features, int(spec.interpolation == "smoothstep")]
    for level in spec.table:
        strides = (*level.strides, 0, 0, 0)[:3]
        scale = int(np.float32(level.scale).view(np.int32))
        out += [scale, level.resolution, level.entries, level.offset, int(level.hashed), *strides]
    return np.array(out, np.int32)


def _floats(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


@functools.cache
def _op(spec: GridSpec, out_dtype):
    """The differentiable function of (points, tables) for these settings."""

    @dispatch.once_differentiable("grid_encode")
    def gradients(points, tables, want_tables, g):
        like_points, like_tables = _floats(*points.shape), _floats(points.shape[1], spec.entries, spec.features)
        call = functools.partial(cpu.call, words=words(spec))
        if tables is None:
            return None, call("tkjax_grid_encode_tables_gradient", like_tables, points, g)
        if want_tables is None:
            return call("tkjax_grid_encode_points_gradient", like_points, points, tables, g), None
        return tuple(call("tkjax_grid_encode_both_gradients", (like_points, like_tables), points, tables, g))

    @jax.custom_vjp
    def encode(points, tables):
        n, planes, _ = points.shape
        out = jax.ShapeDtypeStruct((n, planes, spec.channels), out_dtype)
        return cpu.call("tkjax_grid_encode_forward", out, points, tables, words=words(spec))

    def forward(points, tables):
        # What is kept says what was asked for: tables for the gradient to the points, () for that to the tables.
        kept = tables.value if points.perturbed else None
        return encode(points.value, tables.value), (points.value, kept, () if tables.perturbed else None)

    def backward(residuals, g):
        points, tables, want_tables = residuals
        if isinstance(g, SymbolicZero) or (tables is None and want_tables is None):
            return None, None
        return gradients(points, tables, want_tables, g)

    encode.defvjp(forward, backward, symbolic_zeros=True)
    return encode


def forward(points_unit, tables, spec: GridSpec, out_dtype=None):
    """[N,P,D], [P,T,F] float32 -> [N,P,L*F] in `out_dtype`: float32 or bfloat16."""
    op = _op(spec, jnp.dtype(jnp.float32 if out_dtype is None else out_dtype))
    return op(points_unit.astype(jnp.float32), tables)
