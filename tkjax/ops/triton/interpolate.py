"""interpolate on the GPU: a program has a block of pixels and goes through the channels, a block at a time.

Gradients to attributes are atomic sums: their last bits differ from run to run on a GPU.
"""

from typing import no_type_check

import jax
import jax.numpy as jnp
import triton
import triton.language as tl

from tkjax.ops.interpolate import differentiable
from tkjax.ops.triton import launch

PIXELS, MAX_CHANNELS = 32, 16  # of a tile: with 64 pixels the gradient takes 228 registers


@triton.jit
@no_type_check
def mix_kernel(
    attributes, face, uv, faces, TOTAL, CHANNELS, out, PIXELS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """out [TOTAL, CHANNELS]."""
    i = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    f = tl.load(face + i, mask=i < TOTAL, other=0) - 1
    u = tl.load(uv + 2 * i, mask=f >= 0, other=0.0)[:, None]
    v = tl.load(uv + 2 * i + 1, mask=f >= 0, other=0.0)[:, None]
    c0 = tl.load(faces + 3 * f, mask=f >= 0, other=0).to(tl.int64)[:, None] * CHANNELS
    c1 = tl.load(faces + 3 * f + 1, mask=f >= 0, other=0).to(tl.int64)[:, None] * CHANNELS
    c2 = tl.load(faces + 3 * f + 2, mask=f >= 0, other=0).to(tl.int64)[:, None] * CHANNELS
    for first in range(0, CHANNELS, BLOCK):
        j = first + tl.arange(0, BLOCK)[None, :]
        on = (f >= 0)[:, None] & (j < CHANNELS)
        total = u * tl.load(attributes + c0 + j, mask=on, other=0.0)
        total += v * tl.load(attributes + c1 + j, mask=on, other=0.0)
        total += (1.0 - u - v) * tl.load(attributes + c2 + j, mask=on, other=0.0)
        tl.store(out + i.to(tl.int64)[:, None] * CHANNELS + j, total, mask=(i < TOTAL)[:, None] & (j < CHANNELS))


@triton.jit
@no_type_check
def pull_kernel(
    attributes, face, uv, faces, g, TOTAL, CHANNELS, to_attributes, to_uv, PIXELS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Gradients to attributes (zeros before) and uv."""
    i = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    f = tl.load(face + i, mask=i < TOTAL, other=0) - 1
    u = tl.load(uv + 2 * i, mask=f >= 0, other=0.0)[:, None]
    v = tl.load(uv + 2 * i + 1, mask=f >= 0, other=0.0)[:, None]
    c0 = tl.load(faces + 3 * f, mask=f >= 0, other=0).to(tl.int64)[:, None] * CHANNELS
    c1 = tl.load(faces + 3 * f + 1, mask=f >= 0, other=0).to(tl.int64)[:, None] * CHANNELS
    c2 = tl.load(faces + 3 * f + 2, mask=f >= 0, other=0).to(tl.int64)[:, None] * CHANNELS
    to_u = tl.zeros((PIXELS,), tl.float32)
    to_v = tl.zeros((PIXELS,), tl.float32)
    for first in range(0, CHANNELS, BLOCK):
        j = first + tl.arange(0, BLOCK)[None, :]
        on = (f >= 0)[:, None] & (j < CHANNELS)
        mine = tl.load(g + i.to(tl.int64)[:, None] * CHANNELS + j, mask=on, other=0.0)
        last = tl.load(attributes + c2 + j, mask=on, other=0.0)
        to_u += tl.sum(mine * (tl.load(attributes + c0 + j, mask=on, other=0.0) - last), 1)
        to_v += tl.sum(mine * (tl.load(attributes + c1 + j, mask=on, other=0.0) - last), 1)
        tl.atomic_add(to_attributes + c0 + j, u * mine, mask=on)
        tl.atomic_add(to_attributes + c1 + j, v * mine, mask=on)
        tl.atomic_add(to_attributes + c2 + j, (1.0 - u - v) * mine, mask=on)
    tl.store(to_uv + 2 * i, to_u, mask=i < TOTAL)
    tl.store(to_uv + 2 * i + 1, to_v, mask=i < TOTAL)


# -- launches


def _tile(face, channels: int) -> dict:
    block = min(MAX_CHANNELS, triton.next_power_of_2(channels))
    return dict(grid=(triton.cdiv(face.size, PIXELS),), num_warps=4, PIXELS=PIXELS, BLOCK=block)


def _mix(attributes, face, uv, faces):
    channels = attributes.shape[1]
    out = [jax.ShapeDtypeStruct((*face.shape, channels), jnp.float32)]
    return launch.call(
        mix_kernel, attributes, face, uv, faces, face.size, channels, out_shape=out, **_tile(face, channels)
    )[0]  # fmt: skip


def _pull(attributes, face, uv, faces, g):
    channels = attributes.shape[1]
    out = [jax.ShapeDtypeStruct(v.shape, jnp.float32) for v in (attributes, uv)]
    return launch.call(
        pull_kernel, attributes, face, uv, faces, g, face.size, channels, out_shape=out, zeroed=(0,),
        **_tile(face, channels),
    )  # fmt: skip


forward = differentiable(_mix, _pull)
