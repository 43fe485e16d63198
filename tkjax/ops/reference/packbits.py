"""Reference bit packing and dilation."""

import jax
import jax.numpy as jnp

from tkjax.ops.reference.morton import decode, encode_xyz


def packbits(density, threshold):
    bits = (density.reshape(-1, 8) > threshold).astype(jnp.uint8)
    return jnp.sum(bits << jnp.arange(8, dtype=jnp.uint8), -1, dtype=jnp.uint8)


def dilate_morton(density, side: int):
    axis = [jax.lax.broadcasted_iota(jnp.int32, (side, side, side), i) for i in range(3)]
    raster = density[encode_xyz(*axis)]  # codes are computed, not stored: 8 MB of constants at a side of 128
    padded = jnp.pad(raster, 1, constant_values=-jnp.inf)
    out = raster
    for i in range(3):
        for start in (0, 2):
            window = [slice(1, -1)] * 3
            window[i] = slice(start, start + side)
            out = jnp.maximum(out, padded[tuple(window)])
    cell = decode(jax.lax.iota(jnp.int32, side**3))
    return out.reshape(-1)[(cell[:, 0] * side + cell[:, 1]) * side + cell[:, 2]]
