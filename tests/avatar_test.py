"""The bundle stands on its own, comes back bit for bit, and a damaged one is refused in one sentence."""

import hashlib
import json
import shutil
import types
from copy import copy as shallow_copy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import tiny, tiny_full
from tkjax import config, contract
from tkjax.avatar import avatar_json, bundle
from tkjax.avatar.track import face, info_of
from tkjax.data.dataset_clip import DatasetClip
from tkjax.data.frame_cache import over
from tkjax.drive import driver, stream
from tkjax.errors import UserError
from tkjax.media import audio, images
from tkjax.models import load_system

CONSENT = {"statement": "mine", "asked": True}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("avatar")
    clip = DatasetClip(tiny.make_dataset(folder / "dataset", n=77), folder / "cache")
    return folder, clip, save(folder / "avatar", clip, 0)


def save(folder, clip, seed):
    resolved = tiny.config()
    model = load_system(resolved.system)(resolved, clip.info)
    variables = model.init(jax.random.key(0))
    variables = jax.tree.map(lambda x: x + seed + 0.125, variables)
    spec = bundle.audio_spec(clip.dataset.audio_features("logmel"))
    return bundle.save(folder, resolved, variables, 4, clip, spec, CONSENT), variables


@pytest.fixture
def copy(saved, tmp_path):
    shutil.copytree(saved[0] / "avatar", tmp_path / "copy")
    return tmp_path / "copy"


def test_everything_comes_back_without_the_dataset(saved, copy):
    _, clip, (name, variables) = saved
    subject = bundle.load(copy)
    assert (
        subject.id == name
        and subject.info == info_of(clip, subject.model())
        and (subject.n_train, subject.n_track) == (70, 77)
    )
    loaded = subject.variables(subject.model())
    assert jax.tree.structure(loaded) == jax.tree.structure(variables)
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)
    np.testing.assert_array_equal(subject.cam_to_world, clip.cam_to_world)
    for name in ("expression", "eye_closed", "eye_area"):
        np.testing.assert_array_equal(subject.signals[name].values, clip.signals[name].values)
        assert subject.signals[name].info == clip.signals[name].info and subject.signals[name].info.low
    np.testing.assert_array_equal(subject.plate, clip.plate)
    for i in (0, 63, 64, 76, 3):
        rgba = images.decode_png(clip.dataset.frame_bytes("torso_bytes", i))
        np.testing.assert_array_equal(subject.torso(i), rgba)
        np.testing.assert_array_equal(subject.label(i), clip.label(i))
        inside, head = subject.face(i), clip.label(i) == contract.LABEL_HEAD
        assert inside.any() and not inside[~head].any() and inside.sum() < head.sum()
    assert subject.stages == ("all",)
    assert subject.meta["consent"] == json.loads((copy / "consent.json").read_text()) == CONSENT
    assert all(k in subject.meta["audio"] for k in ("kind", "window", "hop", "channels", "extractor"))


def test_the_same_content_has_the_same_id_and_other_content_another(saved, tmp_path):
    _, clip, (name, _) = saved
    assert save(tmp_path / "again", clip, 0)[0] == name
    assert save(tmp_path / "other", clip, 1)[0] != name


def test_a_second_save_replaces_the_first_and_leaves_no_litter(saved, copy):
    name, _ = save(copy, saved[1], 5)
    subject = bundle.load(copy)
    assert subject.id == name
    entries = subject.meta["files"]
    named = {entries[k]["name"] for k in ("params", "background", "full")} | {t["name"] for t in entries["track"]}
    assert {p.name for p in copy.iterdir()} == named | {"avatar.json", "consent.json"}


def test_a_save_that_is_cut_short_leaves_the_old_avatar(saved, copy, monkeypatch):
    old, write = bundle.load(copy).id, bundle.write_atomic
    for allowed in range(6):  # params, background, two track files, consent.json, avatar.json
        left = [allowed]

        def dies(path, data, left=left):
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            write(path, data)

        monkeypatch.setattr(bundle, "write_atomic", dies)
        with pytest.raises(KeyboardInterrupt):
            save(copy, saved[1], 7)
        assert bundle.load(copy).id == old


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
            bundle.load(folder)
        assert "\n" not in str(error.value) and path.name in str(error.value)
    finally:
        path.write_bytes(good)


def test_the_dataset_s_own_frames_are_the_whole_ones_where_it_was_not_cropped(saved, copy):
    subject, clip = bundle.load(copy), saved[1]
    assert subject.has_full and not subject.cropped
    assert subject.full_hw == (24, 32) and subject.box == (0, 0, 32, 24) and subject.full_matte(3) is None
    for i in (76, 75, 0, 1, 64):
        raw = images.decode_rgb(clip.dataset.frame_bytes("image_bytes", i))
        assert np.abs(subject.full_frame(i).astype(int) - raw).mean(axis=(0, 1)).max() < 8  # 4:2:0
    subject.close()


@pytest.mark.parametrize("keyed", [False, True])
def test_whole_frames_of_a_crop_are_taken_over(tmp_path, keyed):
    clip = DatasetClip(tiny_full.make_dataset(tmp_path / "dataset", keyed=keyed), tmp_path / "cache")
    save(tmp_path / "avatar", clip, 0)
    shutil.copytree(tmp_path / "avatar", tmp_path / "copy")
    shutil.rmtree(tmp_path / "dataset")
    subject = bundle.load(tmp_path / "copy")
    assert subject.cropped and subject.box == tiny_full.BOX and subject.full_hw == tiny_full.FULL_HW
    for i in (0, 32, 31, 8):
        grey, matte = 60 + 2 * i, tiny_full.matte(i)
        frame = subject.full_frame(i).astype(int)
        if keyed:
            np.testing.assert_array_equal(subject.full_matte(i), matte)
            assert (frame[matte == 0] == tiny_full.TRT).all()
            colour = subject._video("full")[i]
            plate = np.broadcast_to(np.uint8(tiny_full.TRT), colour.shape)
            np.testing.assert_array_equal(frame, over(np.concatenate([colour, matte[..., None]], -1), plate))
        else:
            assert subject.full_matte(i) is None and np.abs(frame[:8].mean((0, 1)) - grey).max() < 2
    assert (tmp_path / "avatar" / subject.meta["files"]["full"]["name"]).is_file()


def test_a_keyed_clip_that_was_not_cropped_keeps_its_matte(tmp_path):
    mattes = [np.random.default_rng(i).integers(0, 256, (24, 32), np.uint8) for i in range(33)]
    more = {"alpha_bytes": [images.encode_png(m) for m in mattes]}
    tiny.make_dataset(tmp_path / "dataset", more=more, source={"background_trt": [40, 0, 120]})
    save(tmp_path / "avatar", DatasetClip(tmp_path / "dataset", tmp_path / "cache"), 0)
    subject = bundle.load(tmp_path / "avatar")
    assert not subject.cropped and not subject.meta["full"]["straight"]
    for i in (32, 0, 7):
        np.testing.assert_array_equal(subject.full_matte(i), mattes[i])
        assert subject.full_frame(i).shape == (24, 32, 3)


def test_parsing_classes_decide_what_the_face_is(tmp_path):
    clip = DatasetClip(tiny.make_dataset(tmp_path / "dataset"), tmp_path / "cache")
    classes = np.zeros((24, 32), np.uint8)
    classes[5:15, 8:20], classes[8:10, 10:14], classes[15:20] = 1, 17, 14

    clip.dataset = types.SimpleNamespace(
        manifest={"members": {"class_bytes": {}}},
        frame_bytes=lambda member, i: images.encode_png(classes),
        where=lambda member, i: f"{member} {i}",
    )
    np.testing.assert_array_equal(face(clip, 0, clip.label(0)), classes == 1)


def test_a_stand_in_without_a_dataset_is_enough(saved, tmp_path):
    clip, stand_in = saved[1], shallow_copy(saved[1])
    stand_in.dataset = stand_in.landmarks68_px = None
    stand_in.torso_rgba, stand_in.has_labels = clip.torso_rgba, False
    stand_in.train_frames, stand_in.heldout_frames = np.arange(5), np.arange(0)
    resolved = tiny.config()
    variables = load_system(resolved.system)(resolved, clip.info).init(jax.random.key(0))
    bundle.save(tmp_path, resolved, variables, 4, stand_in, {"kind": "logmel"}, CONSENT, stages=["all"])
    subject = bundle.load(tmp_path)
    assert (subject.n_train, subject.n_track, subject.has_eye_area, subject.has_full) == (5, 5, True, False)
    np.testing.assert_array_equal(subject.torso(4), bundle.load(saved[0] / "avatar").torso(4))
    with pytest.raises(UserError, match=r"no label pictures.*--mode=train"):
        subject.label(0)
    with pytest.raises(UserError, match=r"no whole frames.*--paste_back=none"):
        subject.full_frame(0)


def before_signals(meta):
    """What avatar.json said of signals in formats 1 and 2."""
    sizes = {s["name"]: (s["channels"], s["window"], s["kind"]) for s in meta["info"].pop("signals")}
    channels, steps, kind = sizes["sound"]
    meta["info"] |= {"audio_kind": kind, "audio_channels": channels, "audio_steps": steps, "audio_windows": 8}
    meta["info"]["n_expression"] = sizes["expression"][0]


def test_an_avatar_of_format_1_is_still_read(copy):
    meta = json.loads((copy / "avatar.json").read_text())
    for entry in meta["files"]["track"]:
        data = dict(np.load(copy / entry["name"], allow_pickle=False))
        lacking = ("label_", "face_png", "face_offsets", "eye_area")
        raw = bundle._npz({k: v for k, v in data.items() if not k.startswith(lacking)})
        (copy / entry["name"]).write_bytes(raw)
        entry["sha256"] = hashlib.sha256(raw).hexdigest()
    meta["format"] = 1
    before_signals(meta)
    for name in ("stages", "n_train", "heldout_first", "full", "background_trt"):
        del meta[name]
    del meta["files"]["full"]
    meta["digest"] = avatar_json.json_digest(meta)
    (copy / "avatar.json").write_bytes(avatar_json.dump(meta))
    subject = bundle.load(copy)
    assert subject.stages == ("all",) and subject.n_train == subject.n_track and not subject.has_full
    assert subject.torso(3).shape == (24, 32, 4)
    closed, area = (subject.signals[name].values for name in ("eye_closed", "eye_area"))
    np.testing.assert_allclose(area, 0.25 * (1 - closed), rtol=1e-6)  # the program's guess, as it kept no areas
    assert not subject.has_eye_area and subject.signals["expression"].info.names == ()
    with pytest.raises(UserError, match="no face pictures"):
        subject.face(0)


def test_the_golden_avatar_of_format_2_is_read_and_speaks(tmp_path):
    """Made before signals were described; its sizes and its track say what there is of them."""
    subject = bundle.load(Path(__file__).parent / "golden" / "avatar_2")
    assert subject.meta["format"] == 2 and (subject.n_train, subject.n_track) == (10, 11)
    assert [s.name for s in subject.info.signals] == ["sound", "expression", "eye_closed", "eye_area"]
    heard, eyes = subject.info.signal("sound"), subject.signals["eye_closed"]
    assert (heard.channels, heard.window, heard.kind) == (80, 16, "logmel")
    np.testing.assert_allclose(eyes.values[:, 0], np.arange(11) % 5 / 5, rtol=1e-6)
    assert eyes.info.low == (0.0,) and eyes.info.high == (eyes.values.max(),)
    audio.write_wav(tmp_path / "s.wav", tiny.sound(0.2))
    driven = driver.plan(subject, audio=tmp_path / "s.wav")
    assert stream.render(subject, driven, tmp_path / "out") == 5
    shown = np.stack([tiny.png(tmp_path / "out" / f"{i:06d}.png") for i in range(5)])
    assert shown.shape == (5, 24, 32, 3) and np.ptp(shown) > 50


def test_missing_parts_are_named(copy):
    track = sorted(copy.glob("track-*"))[1]
    track.unlink()
    with pytest.raises(UserError, match=track.name):
        bundle.load(copy)
    (copy / "avatar.json").unlink()
    with pytest.raises(UserError, match=r"holds no avatar.*--mode"):
        bundle.load(copy)


def test_arrays_that_do_not_fit_a_tree_are_named():
    tree = {"a": jnp.zeros(3), "b": {"c": jnp.zeros((2, 2))}}
    flat = bundle.arrays_of(tree)
    assert set(flat) == {"a", "b/c"}
    for wrong, name in (({**flat, "x": flat["a"]}, "x"), ({"a": flat["a"]}, "b/c"), ({**flat, "a": np.zeros(4)}, "a")):
        with pytest.raises(UserError, match=name):
            bundle.fitted(tree, wrong, "file")


def test_an_avatar_of_an_earlier_config_gets_what_the_settings_have_gained():
    from configs import er_nerf

    old = er_nerf.get_config("cpu")
    old.train.head.steps = 77
    del old.train.lips, old.model.torso_code_dim
    new = config.completed(old)
    assert new.train.head.steps == 77 and new.model.torso_code_dim == 8
    assert new.train.lips.to_dict() == er_nerf.get_config("cpu").train.lips.to_dict()
    old.variant = "gone"  # never an incomplete config without a word: any variant knows the keys
    assert config.completed(old).train.lips.to_dict() == er_nerf.get_config("full").train.lips.to_dict()
    old.system = "tests.tiny"
    assert config.completed(old) is old
