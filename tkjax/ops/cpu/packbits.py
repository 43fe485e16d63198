"""Bit packing and dilation through the C++ kernels."""

import jax
import jax.numpy as jnp
import numpy as np

from tkjax.ops import cpu


def packbits(density, threshold):
    out = jax.ShapeDtypeStruct((density.shape[0] // 8,), jnp.uint8)
    return cpu.call("tkjax_packbits", out, density, threshold)


def dilate_morton(density, side: int):
    out = jax.ShapeDtypeStruct(density.shape, jnp.float32)
    return cpu.call("tkjax_dilate_morton", out, density, side=np.int32(side))
