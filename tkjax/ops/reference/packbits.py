"""Reference bit packing and dilation."""

import functools

import jax.numpy as jnp
import numpy as np


def packbits(density, threshold):
    bits = (density.reshape(-1, 8) > threshold).astype(jnp.uint8)
    return jnp.sum(bits << jnp.arange(8, dtype=jnp.uint8), -1, dtype=jnp.uint8)


@functools.cache
def _morton_of_raster(side: int) -> np.ndarray:
    """Morton code of each cell of the raster [x, y, z], flattened."""
    spread = np.zeros(side, np.int32)
    for bit in range(side.bit_length()):
        spread |= ((np.arange(side, dtype=np.int32) >> bit) & 1) << (3 * bit)
    return (spread[:, None, None] | spread[None, :, None] << 1 | spread[None, None, :] << 2).reshape(-1)


@functools.cache
def _raster_of_morton(side: int) -> np.ndarray:
    return np.argsort(_morton_of_raster(side)).astype(np.int32)


def dilate_morton(density, side: int):
    raster = density[_morton_of_raster(side)].reshape(side, side, side)
    padded = jnp.pad(raster, 1, constant_values=-jnp.inf)
    out = raster
    for axis in range(3):
        for start in (0, 2):
            window = [slice(1, -1)] * 3
            window[axis] = slice(start, start + side)
            out = jnp.maximum(out, padded[tuple(window)])
    return out.reshape(-1)[_raster_of_morton(side)]
