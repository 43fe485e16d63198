"""Layers and backgrounds of a frame: what is over what, in the crop and in the whole frame, with and without alpha."""

import dataclasses

import av
import numpy as np
import pytest
from PIL import Image

from tests import peak, tiny, tiny_full, tiny_layers
from tests.alpha_test import read_rgba
from tkjax.app import cli, options
from tkjax.data.dataset_clip import DatasetClip
from tkjax.data.frame_cache import over
from tkjax.drive import driver, motion, stream
from tkjax.drive.scene import Scene, bleed
from tkjax.errors import UserError
from tkjax.media import audio, video
from tkjax.signals import Signal

HEAD, TORSO = (np.round(255 * np.array(c)).astype(int) for c in (tiny_layers.HEAD, tiny_layers.TORSO))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Avatars of a dataset as it is, of one that was cropped, of one that was also keyed; and one without a torso."""
    folder, out = tmp_path_factory.mktemp("scene"), {}
    tiny.make_dataset(folder / "plain")
    tiny_full.make_dataset(folder / "cropped")
    tiny_full.make_dataset(folder / "keyed", keyed=True)
    for name in ("plain", "cropped", "keyed"):
        clip = DatasetClip(folder / name, folder / f"{name}-cache")
        out[name] = tiny_layers.save(folder / f"{name}-avatar", clip)
        if name == "plain":
            out["head"] = tiny_layers.save(folder / "head-avatar", clip, ["head"])
    audio.write_wav(folder / "s.wav", tiny.sound(0.4))
    out["sound"] = folder / "s.wav"
    return out


def render(made, subject, tmp_path, background=None, **how):
    """The frames as an array, through the PNG files."""
    plan = driver.plan(made[subject], audio=made["sound"], background=background)
    stream.render(made[subject], plan, tmp_path / "out", **how)
    return np.stack([np.asarray(Image.open(p)) for p in sorted((tmp_path / "out").glob("*.png"))]).astype(int)


@pytest.mark.heavy
def test_the_modelled_torso_stands_over_the_plate_and_the_given_one_does_not(made, tmp_path):
    subject = made["plain"]
    modelled = render(made, "plain", tmp_path)[3]
    given = render(made, "plain", tmp_path, torso="given")[3]
    plate = subject.plate.astype(int)
    np.testing.assert_allclose(modelled[22, 24], TORSO, atol=1)
    np.testing.assert_allclose(modelled[22, 8], (TORSO + plate[22, 8]) / 2, atol=1)
    np.testing.assert_allclose(given[22, 16], over(subject.torso(3), subject.plate)[22, 16], atol=1)
    np.testing.assert_allclose(given[22, 1], plate[22, 1], atol=1)
    np.testing.assert_allclose(modelled[12, 16, [0, 2]], HEAD[[0, 2]], atol=1)
    np.testing.assert_allclose(modelled[12, 16, 1], 255 * min(1, subject.signals["eye_area"].values[3, 0]), atol=1)
    np.testing.assert_array_equal(render(made, "head", tmp_path)[3], given)


@pytest.mark.heavy
def test_an_untrained_torso_is_refused(made):
    with pytest.raises(UserError, match=r"--torso=modelled.*--stages=torso"):
        Scene(made["head"], motion.plan(made["head"]), torso="modelled")


@pytest.mark.heavy
@pytest.mark.parametrize("torso", ["modelled", "given"])
def test_alpha_of_the_crop_is_that_of_head_and_torso(made, tmp_path, torso):
    subject = made["plain"]
    rgba = render(made, "plain", tmp_path, torso=torso, alpha=True)[3]
    opaque = render(made, "plain", tmp_path, torso=torso)[3]
    assert rgba.shape[-1] == 4 and rgba[1, 1, 3] == 0 and rgba[12, 16, 3] == 255
    if torso == "modelled":
        assert rgba[22, 24, 3] == 255 and rgba[22, 8, 3] == 128
        np.testing.assert_allclose(rgba[22, 8, :3], TORSO, atol=2)
    else:
        assert (rgba[22, 9:24, 3] == 255).all() and rgba[22, 2, 3] == 0
    again = over(rgba.astype(np.uint8), subject.plate)
    assert np.abs(again.astype(int) - opaque).max() <= 2


def test_paste_back_is_the_default_for_a_crop_and_keeps_what_is_outside(made, tmp_path):
    subject = made["cropped"]
    frames = render(made, "cropped", tmp_path)
    assert frames.shape[1:3] == tiny_full.FULL_HW
    x0, y0, x1, y1 = tiny_full.BOX
    outside = np.ones(tiny_full.FULL_HW, bool)
    outside[y0:y1, x0:x1] = False
    for i, frame in enumerate(frames):
        np.testing.assert_array_equal(frame[outside], subject.full_frame(motion.ping_pong(i, 30))[outside])
    assert np.abs(frames[3][30, 44, 0] - HEAD[0]) < 60 and frames[3][30, 44, 2] != subject.full_frame(3)[30, 44, 2]
    small = render(made, "cropped", tmp_path, paste_back="none")
    assert small.shape[1:3] == (24, 32)


@pytest.mark.parametrize("scheme", ["box", "face", "face_neck", "blend"])
def test_every_scheme_pastes_the_rendered_head(made, tmp_path, scheme):
    frame = render(made, "cropped", tmp_path, paste_back=scheme)[0]
    base = made["cropped"].full_frame(0).astype(int)
    changed = np.abs(frame - base).sum(-1) > 12
    x0, y0, x1, y1 = tiny_full.BOX
    assert changed[y0:y1, x0:x1].any() and not changed[:y0].any() and not changed[:, :x0].any()


def test_a_background_swap_of_a_keyed_clip_leaves_nothing_of_the_old_one(made, tmp_path):
    subject = made["keyed"]
    frame = render(made, "keyed", tmp_path, background="#ff00ff")[4]
    plain = render(made, "keyed", tmp_path)[4]
    matte = subject.full_matte(4)
    magenta, outside = np.array([255, 0, 255]), np.ones(matte.shape, bool)
    x0, y0, x1, y1 = tiny_full.BOX
    outside[y0:y1, x0:x1] = False
    assert (plain[(matte == 0) & outside] == tiny_full.TRT).all()
    assert (frame[(matte == 0) & outside] == magenta).all()
    assert np.abs(frame[30, 44] - plain[30, 44]).max() <= 1
    rgba = render(made, "keyed", tmp_path, alpha=True)[4]
    np.testing.assert_array_equal(rgba[..., 3][outside], matte[outside])
    a = rgba[..., 3:] / 255
    assert np.abs(a * rgba[..., :3] + (1 - a) * magenta - frame).max() <= 2
    assert np.abs(a * rgba[..., :3] + (1 - a) * np.array(tiny_full.TRT) - plain)[outside].max() <= 2
    half = (matte > 60) & (matte < 200) & outside
    assert not half.any() or (rgba[half][:, 1] < 150).all()  # grey of the person, no green of the background


def test_inside_the_mask_the_matte_is_that_of_the_rendered_layers(made, tmp_path):
    """Where the old person was and the new one is not, the new background shows."""
    scene = Scene(made["keyed"], motion.plan(made["keyed"]), alpha=True)
    person, mask = np.zeros((24, 32), np.float32), np.ones(tiny_full.FULL_HW, np.float32)
    x0, y0, x1, y1 = tiny_full.BOX
    out = scene._whole_matte(mask, person, None, 0)
    assert (out[y0:y1, x0:x1] == 0).all() and made["keyed"].full_matte(0)[30, 44] == 255


def test_a_clip_that_was_not_cropped_gets_its_matte_from_labels(made, tmp_path):
    frame = render(made, "plain", tmp_path, paste_back="blend", background="#ff00ff")[2]
    assert np.abs(frame[1, 1] - [255, 0, 255]).max() <= 1 and np.abs(frame[12, 16] - [255, 0, 255]).max() > 100


def test_what_cannot_be_composed_is_one_sentence(made, tmp_path):
    for subject, how, match in (
        ("cropped", {"paste_back": "blend", "alpha": True}, r"needs a matte.*--background_ref"),
        ("cropped", {"paste_back": "face", "background": "red"}, r"needs a matte.*--paste_back=none"),
        ("plain", {"alpha": True, "background": "red"}, "exclude"),
    ):
        with pytest.raises(UserError, match=match):
            render(made, subject, tmp_path, **how)
    assert render(made, "cropped", tmp_path, background="red").shape[1:3] == (24, 32)  # default: the crop
    with pytest.raises(UserError, match=r"o\.mp4 cannot hold an alpha channel"):
        stream.render(made["plain"], driver.plan(made["plain"], audio=made["sound"]), tmp_path / "o.mp4", alpha=True)


@pytest.mark.slow  # renders a minute of sound
@pytest.mark.skipif(not peak.can_be_read, reason="peak memory is read from Linux's /proc")
def test_a_minute_needs_no_more_memory_than_five_seconds(made, tmp_path):
    """With paste-back, a new background and maps; the source frames are played forth and back."""
    peaks = []
    for seconds in (5, 60):
        audio.write_wav(tmp_path / "s.wav", tiny.sound(seconds))
        code = (
            "import sys; sys.path.insert(0, '.'); import tests.tiny_layers; from tkjax.avatar import bundle; from "
            "tkjax.drive import driver, stream; "
            f"s = bundle.load({str(made['keyed'].folder)!r}); "
            f"plan = driver.plan(s, audio={str(tmp_path / 's.wav')!r}, background='red'); "
            f"stream.render(s, plan, {str(tmp_path / 'o.mp4')!r}, maps=('depth',))"
        )
        peaks.append(peak.resident_mb(code))
    assert peaks[1] - peaks[0] < 20, f"{peaks} MB"


@pytest.mark.parametrize("suffix", video.ALPHA_SUFFIXES)
def test_alpha_videos_hold_what_the_pictures_hold(made, tmp_path, suffix):
    plan = driver.plan(made["plain"], audio=made["sound"])
    n = stream.render(made["plain"], plan, tmp_path / f"o{suffix}", alpha=True)
    pictures = render(made, "plain", tmp_path, alpha=True)
    frames = read_rgba(tmp_path / f"o{suffix}")
    assert len(frames) == n == len(pictures)
    for a, b in zip(pictures, frames):
        assert np.abs(a[..., 3] - b[..., 3]).mean() < 4
    np.testing.assert_allclose(frames[3][22, 28, :3], pictures[3][22, 28, :3], atol=30)
    with av.open(str(tmp_path / f"o{suffix}")) as container:
        assert container.streams.audio and "ynthetic" in str(dict(container.metadata))


def test_maps_are_written_beside_the_video_and_in_folders(made, tmp_path):
    subject, plan = made["plain"], driver.plan(made["plain"], audio=made["sound"])
    n = stream.render(subject, plan, tmp_path / "o.mp4", maps=("depth", "ambient"))
    for name, width in (("depth", 32), ("ambient", 64)):
        with av.open(str(tmp_path / f"o_{name}.mp4")) as container:
            frames = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
        assert len(frames) == n and frames[0].shape == (24, width, 3)
    stream.render(subject, plan, tmp_path / "out", maps=("depth",))
    depth = np.asarray(Image.open(tmp_path / "out" / "depth" / "000002.png")).astype(int)
    assert depth[1, 1, 0] == 0 and depth[8, 16, 0] > depth[16, 16, 0] and (depth.min(-1) == depth.max(-1)).all()
    with pytest.raises(UserError, match=r"--maps=uncertainty.*it has ambient, depth"):
        stream.render(subject, plan, tmp_path / "p.mp4", maps=("uncertainty",))
    assert not (tmp_path / "p.mp4").exists()


def test_a_video_and_its_maps_appear_together_or_not_at_all(made, tmp_path, monkeypatch):
    subject, plan = made["plain"], driver.plan(made["plain"], audio=made["sound"])
    finish = video.VideoWriter.finish
    (tmp_path / "o.mp4").write_bytes(b"old")

    def breaks(writer):
        if writer.path.name == "o_ambient.mp4":
            raise UserError("no room")
        return finish(writer)

    monkeypatch.setattr(video.VideoWriter, "finish", breaks)
    closed = []
    monkeypatch.setattr(type(subject), "close", lambda self: closed.append(self))
    with pytest.raises(UserError, match="no room"):
        stream.render(subject, plan, tmp_path / "o.mp4", maps=("depth", "ambient"))
    assert [p.name for p in tmp_path.iterdir()] == ["o.mp4"] and (tmp_path / "o.mp4").read_bytes() == b"old"
    assert closed == [subject], "the avatar's videos are given back after a failure too"


def test_colours_bleed_under_a_clear_alpha_but_alpha_stays():
    rgba = np.zeros((64, 64, 4), np.uint8)
    rgba[20:40, 20:40] = [200, 100, 50, 255]
    out = bleed(rgba)
    np.testing.assert_array_equal(out[..., 3], rgba[..., 3])
    np.testing.assert_array_equal(out[20:40, 20:40], rgba[20:40, 20:40])
    assert np.abs(out[..., :3].astype(int) - [200, 100, 50]).max() <= 2
    assert (bleed(np.zeros((3, 5, 4), np.uint8)) == 0).all()


def test_frames_do_not_depend_on_those_before_them(made):
    """The same frame from a scene that drew others first."""
    subject = made["keyed"]
    drives = dataclasses.replace(driver.plan(subject, audio=made["sound"], background="red"), n_frames=40)
    drives.signals["eye_area"] = Signal(drives.signals["eye_area"].info, np.full((40, 1), 0.2, np.float32))
    rows = np.random.default_rng(0).normal(size=(80, subject.meta["audio"]["channels"])).astype(np.float32)
    scenes = [Scene(subject, drives.motion) for _ in range(2)]
    all_frames, again = ([frame for frame, _ in stream.frames(scene, drives, [rows])] for scene in scenes)
    assert all((a == b).all() for a, b in zip(all_frames, again)) and len(all_frames) == 40


def test_the_command_line_reaches_every_option(made, tmp_path):
    (tmp_path / "avatar").symlink_to(made["plain"].folder)
    base = ["launch.py", "--mode=render", f"--workdir={tmp_path}", f"--audio={made['sound']}"]

    def frame(*flags):
        cli.run(options.parse([*base, f"--out={tmp_path / 'out'}", *flags]))
        return np.asarray(Image.open(tmp_path / "out" / "000002.png")).astype(int)

    plain = frame()
    given = frame("--torso=given")
    assert (given != plain).any() and (frame("--torso=given", "--poses=test") != given).any()
    assert (frame("--paste_back=face") != plain).any() and (frame("--paste_back=none") == plain).all()
    assert frame("--alpha").shape[-1] == 4
    frame("--maps=depth,ambient", "--smooth_eye")
    assert (tmp_path / "out" / "ambient" / "000009.png").is_file()
    with pytest.raises(UserError, match="alpha channel"):
        cli.run(options.parse([*base, f"--out={tmp_path / 'o.mp4'}", "--alpha"]))
