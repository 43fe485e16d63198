"""rasterize through the C++ kernels: bands of rows on all cores. The same bits with any threads."""

import jax
import jax.numpy as jnp

from tkjax.ops import cpu
from tkjax.ops.rasterize import differentiable


def _draw(clip, faces, height: int, width: int):
    shapes = ((height, width), jnp.int32), ((height, width, 2), jnp.float32), ((height, width), jnp.float32)
    return cpu.call("tkjax_raster_draw", tuple(jax.ShapeDtypeStruct(*s) for s in shapes), clip, faces)


def _pull(clip, faces, face, g_uv):
    return cpu.call("tkjax_raster_pull", jax.ShapeDtypeStruct(clip.shape, jnp.float32), clip, faces, face, g_uv)


forward = differentiable(_draw, _pull)
