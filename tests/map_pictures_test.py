"""Map pictures: for models of rays and of whole frames, with one range that no single frame can spoil."""

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from tests.infos import subject_info
from tests.render_image_test import HW, frame
from tkjax.errors import UserError
from tkjax.interface import Model, Rate, Stage
from tkjax.render.image import final_clock
from tkjax.render.map_pictures import Maps, render_maps
from tkjax.types import Variables


class Rays(Model):
    """A model that says where its pixels lie."""

    SAMPLER = "rays"

    def maps(self, variables, batch, clock):
        assert batch.background.shape[1] == batch.pixels_px.shape[1]
        return {"depth": batch.pixels_px[..., 0] + 100 * batch.pixels_px[..., 1]}

    def stages(self):
        return (Stage("all", 1, 4, {"all": Rate(1.0)}, {}, (self.SAMPLER,)),)


class Whole(Rays):
    """One that is drawn whole, by the size of the picture."""

    SAMPLER = "frame"

    def maps(self, variables, batch, clock):
        if batch.image_hw is None:
            raise ValueError("a mesh is drawn whole: the batch needs image_hw")
        rows, columns = jnp.meshgrid(*(jnp.arange(n) + 0.5 for n in batch.image_hw), indexing="ij")
        return {"depth": (columns + 100 * rows).reshape(1, -1)}


@pytest.mark.parametrize("kind", [Rays, Whole])
@pytest.mark.parametrize("chunk", [0, 8, 1000])
def test_models_of_rays_and_of_whole_frames_have_the_same_maps(kind, chunk):
    model = kind(ConfigDict(), subject_info(1, *HW, "logmel", 3, 2, 4, (1.0, 1.0, 0.0, 0.0)))
    value = render_maps(model, Variables({}, {}), frame(), HW, final_clock(), chunk)["depth"]
    columns, rows = np.arange(HW[1]) + 0.5, np.arange(HW[0])[:, None] + 0.5
    np.testing.assert_allclose(value, columns + 100 * rows)


DEPTH = jnp.linspace(3, 4, 200).reshape(10, 20)
NOTHING = jnp.full((10, 20), jnp.nan)


@pytest.mark.parametrize("name, key, empty", [("depth", "depth", NOTHING), ("ambient", "sound", 0 * DEPTH)])
def test_a_first_frame_that_shows_nothing_spoils_nothing(name, key, empty):
    late, plain = Maps([name]), Maps([name])
    first = late.pictures({key: empty})[name]
    assert (first == first[0, 0]).all()
    np.testing.assert_array_equal(late.pictures({key: DEPTH})[name], plain.pictures({key: DEPTH})[name])


def test_the_range_widens_with_what_frames_bring_and_never_narrows():
    shown = Maps(["ambient", "depth"])

    def levels(scale):
        out = shown.pictures({"sound": scale * (DEPTH - 3), "depth": 3.5 + scale * (DEPTH - 3.5)})
        lit = np.abs(out["ambient"].astype(int) - out["ambient"][0, 0]).sum(-1)
        return len(np.unique(lit)), np.ptp(out["depth"].astype(int))

    quiet, loud, quiet_again = levels(0.01), levels(1), levels(0.01)
    assert quiet[1] >= 250 and loud[1] >= 250, "each new extreme has the whole range"
    assert loud[0] > 50, "a frame after a quiet one is not saturated"
    assert quiet_again[0] < 8 and quiet_again[1] < 8, "and it stays as wide as the widest"


def test_a_system_without_such_a_map_is_one_sentence():
    with pytest.raises(UserError, match=r"--maps=uncertainty.*it has depth"):
        Maps(["uncertainty"]).pictures({"depth": DEPTH})
    with pytest.raises(UserError, match="expected some of depth, ambient, uncertainty"):
        Maps(["heat"])
