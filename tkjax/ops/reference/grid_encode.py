"""Reference grid_encode: one flat gather for all planes, levels of one kind and corners."""

import itertools

import jax.numpy as jnp
import numpy as np

from tkjax.ops.grid_encode import PRIMES, GridSpec, Level


def forward(points_unit, tables, spec: GridSpec, out_dtype=None):
    """[N,P,D], [P,T,F] -> [N,P,L*F] in `out_dtype`, None: that of the tables.

    Consecutive levels with the same index rule are handled together.
    """
    n, planes, _ = points_unit.shape
    flat = tables.reshape(-1, spec.features)
    x = points_unit.astype(jnp.float32).transpose(2, 1, 0)  # [D,P,N], samples innermost
    inside = jnp.all((x >= 0) & (x <= 1), axis=0)  # false for NaN
    x = jnp.where(inside, x, 0.0)
    plane_offset = np.arange(planes, dtype=np.int32)[:, None, None] * spec.entries
    parts = []
    for _, group in itertools.groupby(spec.table, key=lambda level: (level.hashed, *_wrap(level, spec.dims))):
        parts.append(_encode_levels(x, flat, list(group), plane_offset, spec))
    out = jnp.concatenate(parts, axis=1)  # [P,L,N,F]
    out = jnp.where(inside[:, None, :, None], out, jnp.zeros((), out.dtype))
    return out.transpose(2, 0, 1, 3).reshape(n, planes, spec.channels).astype(out_dtype or out.dtype)


def _wrap(level: Level, dims: int) -> tuple[bool, bool]:
    """Whether indices stay below the entries by themselves, and whether the entries are a power of two."""
    fits = not level.hashed and (level.resolution + 1) ** dims <= level.entries
    return fits, level.entries & (level.entries - 1) == 0


def _encode_levels(x, flat, levels: list[Level], plane_offset, spec: GridSpec):
    """[D,P,N] -> [P,L',N,F] for levels that share the index rule."""

    def column(values, dtype):  # [L',1], broadcasts against [P,L',N]
        return jnp.asarray(np.array(values, dtype)[:, None])

    pos = x[:, :, None, :] * column([level.scale for level in levels], np.float32) + 0.5
    cell = jnp.floor(pos)
    frac = pos - cell
    if spec.interpolation == "smoothstep":
        frac = frac * frac * (3.0 - 2.0 * frac)
    cell = cell.astype(jnp.uint32)
    entries = column([level.entries for level in levels], np.uint32)
    fits, power_of_two = _wrap(levels[0], spec.dims)
    offset = column([level.offset for level in levels], np.int32) + plane_offset
    if levels[0].hashed:
        low = [cell[d] * np.uint32(PRIMES[d]) for d in range(spec.dims)]
        high = [(cell[d] + 1) * np.uint32(PRIMES[d]) for d in range(spec.dims)]
    else:
        strides = [column([level.strides[d] for level in levels], np.uint32) for d in range(spec.dims)]
        low = [cell[d] * strides[d] for d in range(spec.dims)]
        high = [low[d] + strides[d] for d in range(spec.dims)]
    out = 0.0
    for corner in itertools.product((0, 1), repeat=spec.dims):
        index = jnp.uint32(0)
        weight = jnp.float32(1)
        for d, bit in enumerate(corner):
            term = high[d] if bit else low[d]
            index = index ^ term if levels[0].hashed else index + term
            weight = weight * (frac[d] if bit else 1.0 - frac[d])
        if not fits:
            index = index & (entries - 1) if power_of_two else index % entries
        rows = flat.at[index.astype(jnp.int32) + offset].get(mode="promise_in_bounds")
        out = out + weight[..., None].astype(rows.dtype) * rows
    return out
