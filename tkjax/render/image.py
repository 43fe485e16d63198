"""Whole images: the one place where a picture is composed, tiled, padded and put together again."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tkjax.interface import Model
from tkjax.render.composite import over
from tkjax.types import Batch, Clock, PyTree, Render, Variables


class Image(NamedTuple):
    """A rendered frame without its background: premultiplied rgb, alpha, camera-z depth or None, and `front`, the
    alpha of the head alone (alpha itself where nothing else was drawn)."""

    rgb: Float[Array, "H W 3"]
    alpha: Float[Array, "H W 1"]
    depth: Float[Array, "H W 1"] | None
    front: Float[Array, "H W 1"]


def picture(render: Render | Image, background: Float[Array | np.ndarray, "*N 3"]) -> Float[Array, "*N 3"]:
    """clip(rgb + (1 - alpha) * background, 0, 1): the picture of anything with premultiplied rgb and alpha."""
    rgb, _ = over([(background, jnp.ones_like(render.alpha)), (render.rgb, render.alpha)])
    return jnp.clip(rgb, 0.0, 1.0)


def pixel_grid(height: int, width: int) -> Float[Array, "HW 2"]:
    """Pixel centres (column + 0.5, row + 0.5) in row-major order."""
    rows, columns = jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij")
    return jnp.stack([columns, rows], -1).reshape(-1, 2).astype(jnp.float32) + 0.5


def needs_whole_frame(model: Model) -> bool:
    """A model that is trained on whole frames is rendered whole; the others take any set of pixels."""
    return any("frame" in stage.samplers for stage in model.stages())


def chunk_of(model: Model, hw: tuple[int, int], chunk_rays: int) -> int:
    """Pixels that a model draws at once; 0 for the whole frame, which some models need."""
    whole = chunk_rays == 0 or chunk_rays >= hw[0] * hw[1] or needs_whole_frame(model)
    return 0 if whole else chunk_rays


def in_tiles(part: Callable[..., PyTree], hw: tuple[int, int], chunk: int, background: Float[Array, "HW 3"]) -> PyTree:
    """A tree of [HW, …] from part(pixels_px [R,2], background [R,3], image_hw), which gives a tree of [R, …] for any
    pixels. chunk: R; with 0 all pixels at once, and only then image_hw is their size, else None."""
    grid = pixel_grid(*hw)
    if chunk == 0:
        return part(grid, background, hw)
    missing = -grid.shape[0] % chunk
    tiles = [
        jnp.pad(v, ((0, missing), (0, 0)), mode="edge").reshape(-1, chunk, v.shape[-1]) for v in (grid, background)
    ]
    parts = jax.lax.map(lambda tile: part(*tile, None), tuple(tiles))
    return jax.tree.map(lambda v: v.reshape(-1, *v.shape[2:])[: grid.shape[0]], parts)


def final_clock(stage_steps: int = 1, stage: str = "") -> Clock:
    """The clock at the end of a stage, which is when pictures are taken."""
    return Clock(step=jnp.int32(stage_steps), progress=jnp.float32(1), stage=stage)


def to_draw(frame: Batch, background: Float[Array, "1 R 3"] | Float[np.ndarray, "1 R 3"]) -> Batch:
    """A frame as a renderer wants it: without pixels, which it chooses itself, and without anything of the truth."""
    return frame.replace(
        pixels_px=jnp.zeros((1, 0, 2), jnp.float32),
        background=background,
        target=None,
        label=None,
        masks={},
        truth={},
        image_hw=None,
        patches=None,
    )


def render_image(
    model: Model,
    variables: Variables,
    frame: Batch,
    hw: tuple[int, int],
    clock: Clock | None = None,
    chunk_rays: int = 8192,
) -> Image:
    """Render one frame (B = 1), deterministically. `frame.pixels_px` is ignored; `frame.background` is passed on
    if it holds the whole frame. chunk_rays: pixels at once, 0 for the whole frame; clock None = end of training.

    Compiles once per model object, size and chunk.
    """
    height, width = hw
    pixels = height * width
    if frame.frame.shape[0] != 1:
        raise ValueError(f"render_image takes one frame, got {frame.frame.shape[0]}")
    if height < 1 or width < 1 or chunk_rays < 0:
        raise ValueError(f"render_image needs a size of at least 1x1 and chunk_rays >= 0, got {hw} and {chunk_rays}")
    background = frame.background
    if background.shape[1] != pixels:
        background = jnp.zeros((1, pixels, 3), jnp.float32)
    chunk = chunk_of(model, hw, chunk_rays)
    return _render(model, hw, chunk, variables, to_draw(frame, background), clock or final_clock())


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _render(model: Model, hw: tuple[int, int], chunk: int, variables: Variables, frame: Batch, clock: Clock) -> Image:
    def part(pixels_px, background, image_hw):
        batch = frame.replace(pixels_px=pixels_px[None], background=background[None], image_hw=image_hw)
        out = model.render(variables, batch, None, clock, False)
        front = out.alpha if out.front is None else out.front
        return tuple(None if v is None else v[0] for v in (out.rgb, out.alpha, out.depth, front))

    parts = in_tiles(part, hw, chunk, frame.background[0])
    return Image(*(None if v is None else v.reshape(*hw, -1) for v in parts))
