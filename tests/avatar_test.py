"""The bundle stands on its own, comes back bit for bit, and a damaged one is refused in one sentence."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import tiny
from tkjax import avatar, images
from tkjax.errors import UserError
from tkjax.models import base

CONSENT = {"statement": "mine", "asked": True}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    from tkjax.data import Clip

    folder = tmp_path_factory.mktemp("avatar")
    clip = Clip(tiny.make_dataset(folder / "dataset", n=77), folder / "cache")
    return folder, clip, save(folder / "avatar", clip, 0)


def save(folder, clip, seed):
    resolved = tiny.config()
    model = base.load(resolved.system)(resolved, clip.info)
    variables = model.init(jax.random.key(0))
    variables = jax.tree.map(lambda x: x + seed + 0.125, variables)
    spec = avatar.audio_spec(clip.dataset.audio_features("logmel"))
    return avatar.save(folder, resolved, variables, 4, clip, spec, CONSENT), variables


@pytest.fixture
def copy(saved, tmp_path):
    shutil.copytree(saved[0] / "avatar", tmp_path / "copy")
    return tmp_path / "copy"


def test_everything_comes_back_without_the_dataset(saved, copy):
    _, clip, (name, variables) = saved
    subject = avatar.load(copy)
    assert subject.id == name and subject.info == clip.info and subject.n_track == 70
    loaded = subject.variables(subject.model())
    assert jax.tree.structure(loaded) == jax.tree.structure(variables)
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)
    np.testing.assert_array_equal(subject.cam_to_world, clip.cam_to_world[:70])
    np.testing.assert_array_equal(subject.expression, clip.expression[:70])
    np.testing.assert_array_equal(subject.plate, clip.plate)
    for i in (0, 63, 64, 69, 3):
        rgba = images.decode_png(clip.dataset.frame_bytes("torso_bytes", i))
        np.testing.assert_array_equal(subject.torso(i), rgba)
    assert subject.meta["consent"] == json.loads((copy / "consent.json").read_text()) == CONSENT
    assert all(k in subject.meta["audio"] for k in ("kind", "window", "hop", "channels", "extractor"))


def test_the_same_content_has_the_same_id_and_other_content_another(saved, tmp_path):
    _, clip, (name, _) = saved
    assert save(tmp_path / "again", clip, 0)[0] == name
    assert save(tmp_path / "other", clip, 1)[0] != name


def test_a_second_save_replaces_the_first_and_leaves_no_litter(saved, copy):
    name, _ = save(copy, saved[1], 5)
    subject = avatar.load(copy)
    assert subject.id == name
    entries = subject.meta["files"]
    named = {entries["params"]["name"], entries["background"]["name"], *(t["name"] for t in entries["track"])}
    assert {p.name for p in copy.iterdir()} == named | {"avatar.json", "consent.json"}


def test_a_save_that_is_cut_short_leaves_the_old_avatar(saved, copy, monkeypatch):
    old, write = avatar.load(copy).id, images.write_atomic
    for allowed in range(6):  # params, background, two track files, consent.json, avatar.json
        left = [allowed]

        def dies(path, data, left=left):
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            write(path, data)

        monkeypatch.setattr(images, "write_atomic", dies)
        with pytest.raises(KeyboardInterrupt):
            save(copy, saved[1], 7)
        assert avatar.load(copy).id == old


@given(data=st.data())
def test_any_changed_byte_is_noticed(saved, data):
    folder = saved[0] / "avatar"
    path = data.draw(st.sampled_from(sorted(p for p in folder.iterdir() if p.name != "consent.json")))
    good = path.read_bytes()
    i = data.draw(st.integers(0, len(good) - 1))
    bad = bytearray(good)
    bad[i] ^= data.draw(st.integers(1, 255))
    path.write_bytes(bytes(bad))
    try:
        with pytest.raises(UserError) as error:
            avatar.load(folder)
        assert "\n" not in str(error.value) and path.name in str(error.value)
    finally:
        path.write_bytes(good)


def test_missing_parts_are_named(copy):
    track = sorted(copy.glob("track-*"))[1]
    track.unlink()
    with pytest.raises(UserError, match=track.name):
        avatar.load(copy)
    (copy / "avatar.json").unlink()
    with pytest.raises(UserError, match=r"holds no avatar.*--mode"):
        avatar.load(copy)


def test_unflatten_names_what_does_not_fit():
    tree = {"a": jnp.zeros(3), "b": {"c": jnp.zeros((2, 2))}}
    flat = avatar.flatten(tree)
    assert set(flat) == {"a", "b/c"}
    for wrong, name in (({**flat, "x": flat["a"]}, "x"), ({"a": flat["a"]}, "b/c"), ({**flat, "a": np.zeros(4)}, "a")):
        with pytest.raises(UserError, match=name):
            avatar.unflatten(tree, wrong, "file")
