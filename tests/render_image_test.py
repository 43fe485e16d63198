"""Pictures from renders, layers, and whole images in tiles."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from tests.infos import subject_info
from tkjax.interface import Model as BaseModel
from tkjax.interface import Rate, Stage
from tkjax.render.composite import over
from tkjax.render.image import picture, pixel_grid, render_image
from tkjax.types import Batch, Render, Variables

HW = (7, 5)


class Gradient(BaseModel):
    """Paints its pixel positions; counts how many pixels it was given at once."""

    sampler, calls = "rays", ()

    def render(self, variables, batch, key, clock, train):
        assert not train and key is None and batch.target is None
        type(self).calls += ((batch.pixels_px.shape[1], batch.image_hw),)
        x, y = batch.pixels_px[..., :1], batch.pixels_px[..., 1:]
        return Render(
            rgb=jnp.concatenate([x, y, batch.background[..., :1]], -1) * variables.params,
            alpha=jnp.ones_like(x) * clock.progress,
            depth=x + 100 * y if self.config.depth else None,
        )

    def stages(self):
        return (Stage("all", 1, 1, {"all": Rate(1.0)}, {}, samplers=(self.sampler,)),)


class Whole(Gradient):
    sampler = "frame"


def frame(background=None):
    empty = jnp.zeros((1, 0, 3)) if background is None else background
    return Batch(
        frame=jnp.zeros(1, jnp.int32), cam_to_world=jnp.eye(4)[None], intrinsics=jnp.ones((1, 4)),
        pixels_px=jnp.zeros((1, 0, 2)), background=empty,
        signals={"eye_closed": jnp.zeros((1, 1, 1, 1))},
    )  # fmt: skip


def model(kind=Gradient, depth=True):
    kind.calls = ()
    return kind(ConfigDict({"depth": depth}), subject_info(1, *HW, "logmel", 3, 2, 4, (1.0, 1.0, 0.0, 0.0)))


@pytest.mark.parametrize("chunk", [0, 1, 4, 34, 35, 36])
def test_every_pixel_is_drawn_once_in_its_place_whatever_the_tiles(chunk):
    background = jnp.arange(35 * 3.0).reshape(1, 35, 3)
    image = render_image(model(), Variables(jnp.float32(2), {}), frame(background), HW, chunk_rays=chunk)
    rows, columns = np.mgrid[:7, :5] + 0.5
    np.testing.assert_allclose(image.rgb[..., 0], 2 * columns)
    np.testing.assert_allclose(image.rgb[..., 1], 2 * rows)
    np.testing.assert_allclose(image.rgb[..., 2], 2 * background[0, :, 0].reshape(HW))
    np.testing.assert_allclose(image.depth[..., 0], columns + 100 * rows)
    assert (image.alpha == 1).all()


def test_tiles_have_the_size_asked_for_and_whole_frames_are_named():
    tiled, whole = model(), model(Whole)
    render_image(tiled, Variables(jnp.float32(1), {}), frame(), HW, chunk_rays=8)
    assert tiled.calls == ((8, None),)
    render_image(whole, Variables(jnp.float32(1), {}), frame(), HW, chunk_rays=8)
    assert whole.calls == ((35, HW),)


def test_a_model_without_depth_has_none():
    assert render_image(model(depth=False), Variables(jnp.float32(1), {}), frame(), HW).depth is None


@pytest.mark.parametrize("hw, chunk", [((0, 5), 8), ((7, 5), -1)])
def test_bad_sizes_are_refused(hw, chunk):
    with pytest.raises(ValueError, match="at least 1x1"):
        render_image(model(), Variables(jnp.float32(1), {}), frame(), hw, chunk_rays=chunk)


def test_pixel_centres():
    np.testing.assert_array_equal(pixel_grid(2, 3)[:4], [[0.5, 0.5], [1.5, 0.5], [2.5, 0.5], [0.5, 1.5]])


colours = st.lists(st.floats(0, 1, width=32), min_size=3, max_size=3).map(jnp.array)
alphas = st.floats(0, 1, width=32).map(lambda a: jnp.array([a]))


@given(colours, colours, colours, alphas, alphas)
def test_over_is_associative_and_opaque_layers_hide(a, b, c, alpha_b, alpha_c):
    layers = [(a, jnp.ones(1)), (b * alpha_b, alpha_b), (c * alpha_c, alpha_c)]
    flat = over(layers)
    for grouped in (over([over(layers[:2]), layers[2]]), over([layers[0], over(layers[1:])])):
        for got, want in zip(grouped, flat):
            np.testing.assert_allclose(got, want, atol=1e-6)
    np.testing.assert_allclose(flat[1], 1.0, atol=1e-6)
    np.testing.assert_array_equal(over([*layers, (c, jnp.ones(1))])[0], c)


@given(colours, colours, alphas)
def test_picture_is_the_clipped_layer_over_its_background(rgb, background, alpha):
    render = Render(rgb=(2 * rgb)[None, None], alpha=alpha[None, None])
    got = picture(render, background[None, None])[0, 0]
    np.testing.assert_allclose(got, np.clip(2 * rgb + (1 - alpha) * background, 0, 1), atol=1e-6)
