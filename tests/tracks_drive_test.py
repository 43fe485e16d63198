"""What tracks, and blinks and gaze that nobody recorded, do to an avatar: through the driver."""

import dataclasses

import jax
import numpy as np
import pytest

from tests import tiny
from tests.tracks_test import live_link, take
from tkjax.app import options
from tkjax.avatar import bundle
from tkjax.data.dataset_clip import DatasetClip
from tkjax.drive import driver, eyes, motion
from tkjax.errors import UserError
from tkjax.formats import head_pose, tracks
from tkjax.formats.looks import LOOKS
from tkjax.media import audio
from tkjax.models import load_system
from tkjax.signals import SOUND

NAMES = ("_neutral", "eyeBlinkLeft", "eyeBlinkRight", "jawOpen", "mouthSmileLeft", *LOOKS)
N = 440  # 400 train


def frames():
    """Members of N frames: six blinks, and eyes that look elsewhere now and then."""
    rng = np.random.default_rng(0)
    closed = np.zeros(N, np.float32)
    for at in (20, 75, 140, 190, 260, 330):
        closed[at : at + 6] = [0.2, 0.8, 0.9, 0.6, 0.3, 0.1]
    look = np.repeat(rng.uniform(0, 0.6, (11, len(LOOKS))), 40, 0)
    other = rng.uniform(0, 1, (N, 2))
    expression = np.column_stack([np.zeros(N), closed, 0.9 * closed, other, look]).astype(np.float32)
    return {"eye_closed": closed, "expression": expression, "eye_area": (0.3 - 0.25 * closed).astype(np.float32)}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """make(*signals) -> an avatar that is driven by them."""
    folder = tmp_path_factory.mktemp("tracks")
    root = tiny.make_dataset(folder / "dataset", n=N, height=12, width=16, names=NAMES, more=frames())
    clip = DatasetClip(root, folder / "cache")
    config = tiny.config()
    config.system, config.model.driven_by = "tests.driver_test", (SOUND, "expression", "eye_closed", "eye_area")
    model = load_system(config.system)(config, clip.info)
    bundle.save(
        folder / "avatar",
        config,
        model.init(jax.random.key(0)),
        4,
        clip,
        bundle.audio_spec(clip.audio),
        {"statement": None},
    )
    avatar = bundle.load(folder / "avatar")

    def make(*driven_by):
        other = config.copy_and_resolve_references()
        other.model.driven_by = driven_by
        return dataclasses.replace(avatar, config=other)

    make.clip = clip
    return make


@pytest.fixture
def wav(tmp_path):
    audio.write_wav(tmp_path / "s.wav", tiny.sound(60.0))
    return tmp_path / "s.wav"


def column(plan, name, signal="expression"):
    return plan.signals[signal].values[:, NAMES.index(name)]


# ---------------------------------------------------------------- blinks and gaze


@pytest.mark.heavy
def test_natural_blinks_are_no_loop_of_the_clip_and_keep_its_rate(made, wav):
    plan = driver.plan(made(SOUND, "eye_closed"), audio=wav, blinks="natural", seed=3)
    closed = plan.signals["eye_closed"].values[:, 0].astype(float)
    found = eyes.find_blinks(closed, [(0, len(closed))], 25.0)
    assert plan.n_frames == 1500 and abs(len(found) / 60 - 6 / 16) < 2 * np.sqrt(6) / 16
    assert closed.max() == pytest.approx(0.9, abs=0.01)
    again = driver.plan(made(SOUND, "eye_closed"), audio=wav, blinks="natural", seed=3)
    np.testing.assert_array_equal(again.signals["eye_closed"].values[:, 0], closed.astype(np.float32))
    loop = driver.plan(made(SOUND, "eye_closed"), audio=wav).signals["eye_closed"].values[:, 0]
    other = driver.plan(made(SOUND, "eye_closed"), audio=wav, blinks="natural", seed=4).signals["eye_closed"].values
    assert np.abs(loop - closed).max() > 0.5 and np.abs(other[:, 0] - closed).max() > 0.5


@pytest.mark.heavy
def test_areas_and_coefficients_blink_with_the_eyes(made):
    plan = driver.plan(made("expression", "eye_closed", "eye_area"), drive="own", blinks="natural", gaze="natural")
    closed, area = (plan.signals[name].values[:, 0] for name in ("eye_closed", "eye_area"))
    assert np.corrcoef(closed, -area)[0, 1] > 0.99 and closed.max() > 0.8
    np.testing.assert_allclose(column(plan, "eyeBlinkLeft"), closed, atol=0.02)
    np.testing.assert_allclose(column(plan, "eyeBlinkRight"), 0.9 * closed, atol=0.02)
    own = driver.plan(made("expression"), drive="own")
    for name in ("jawOpen", "mouthSmileLeft"):
        np.testing.assert_array_equal(column(plan, name), column(own, name))
    assert np.abs(column(plan, LOOKS[0]) - column(own, LOOKS[0])).max() > 0.05


@pytest.mark.heavy
def test_they_are_enough_to_drive_a_face_that_else_rests(made, capsys):
    plan = driver.plan(made("expression"), blinks="natural", gaze="natural", seed=1)
    assert plan.n_frames == 400 and np.ptp(column(plan, "jawOpen")) == 0
    assert np.ptp(column(plan, "eyeBlinkLeft")) > 0.5 and np.ptp(column(plan, LOOKS[0])) > 0.1
    said = capsys.readouterr().out
    assert "blinks a minute as in the clip (6 in 16 s), seed 1" in said and "fixations of the clip" in said


def test_edits_come_after_them(made):
    plan = driver.plan(made("expression"), blinks="natural", scale="eyeBlinkLeft=0", offset="eyeBlinkRight=0.5")
    assert np.ptp(column(plan, "eyeBlinkLeft")) == 0 and column(plan, "eyeBlinkRight").min() == pytest.approx(0.5)


def test_what_blinks_and_gaze_cannot_do_is_said(made, wav, tmp_path, capsys):
    driver.plan(made(SOUND), audio=wav, blinks="natural")
    driver.plan(made(SOUND, "eye_closed"), audio=wav, gaze="natural")
    said = capsys.readouterr().out
    assert "--blinks is not used" in said and "--gaze is not used" in said
    np.save(tmp_path / "e.npy", np.zeros(3))
    for how in ({"fix_eye": 0.5}, {"eye": tmp_path / "e.npy"}):
        with pytest.raises(UserError, match=f"--blinks=natural and --{next(iter(how))} exclude each other"):
            driver.plan(made("eye_closed"), blinks="natural", **how)


def test_the_command_line_knows_them():
    given = [
        "launch.py",
        "--mode=render",
        "--workdir=w",
        "--out=o.mp4",
        "--blinks=natural",
        "--gaze=natural",
        "--seed=7",
    ]
    assert {k: options.parse(given).flags[k] for k in ("blinks", "gaze", "seed")} == {
        "blinks": "natural", "gaze": "natural", "seed": 7,
    }  # fmt: skip
    with pytest.raises(UserError, match="--blinks=naturl is unknown"):
        options.parse([*given[:-3], "--blinks=naturl"])


# ---------------------------------------------------------------- tracks


def test_a_take_of_a_phone_drives_face_eyes_and_head(made, tmp_path, capsys):
    values = take(300)
    values[:, 52:55] = 0.1 * np.sin(np.arange(300)[:, None] / 20 + np.arange(3))
    path = live_link(tmp_path / "take.csv", np.arange(300), values=values)
    plan = driver.plan(made("expression", "eye_closed"), drive=path)
    assert plan.n_frames == 126
    said = capsys.readouterr().out
    assert "12 of the 13 channels of expression; the others rest" in said and "(_neutral)" in said
    assert "drive nothing in this avatar" in said and "--pose=track would play" in said
    np.testing.assert_array_equal(plan.motion.cam_to_world, made.clip.cam_to_world[:400])
    turned = driver.plan(made("expression", "eye_closed"), drive=path, pose="track")
    got = head_pose.of_cameras(turned.motion.cam_to_world)
    yaw = np.interp(np.arange(126) / 25, np.arange(300) / 60, values[:, 52])
    np.testing.assert_allclose(got[:, 0] - got[:, 0].mean(), yaw - yaw.mean(), atol=0.02)
    assert "--pose=track would play" not in capsys.readouterr().out


def test_a_track_moves_the_head_by_pose_alone_or_with_its_drive(made, wav, tmp_path):
    channels = head_pose.of_cameras(made.clip.cam_to_world[:50])
    np.testing.assert_allclose(channels[:, 2], 0, atol=1e-6)
    path = tmp_path / "head.npz"
    path.write_bytes(tracks.encode(".npz", head_pose.CHANNELS, channels, 25.0))
    plan = driver.plan(made(SOUND), audio=wav, pose=path)
    own = made.clip.cam_to_world[:400]
    still = np.linalg.norm(plan.motion.cam_to_world[:, :3, 3] - own[:50, :3, 3], axis=1)
    assert len(plan.motion.cam_to_world) == 50 and still.max() < 0.05
    also = driver.plan(made(SOUND), audio=wav, drive=path, pose="track")
    np.testing.assert_array_equal(also.motion.cam_to_world, plan.motion.cam_to_world)
    smooth = driver.plan(made(SOUND), audio=wav, pose=path, smooth_window=5)
    assert np.abs(np.diff(smooth.motion.cam_to_world, axis=0)).max() < np.abs(np.diff(own[:50], axis=0)).max()
    with pytest.raises(UserError, match="--pose=track takes the head's motion from --drive"):
        driver.plan(made(SOUND), audio=wav, pose=motion.TRACK)
    (tmp_path / "face.csv").write_text("jawOpen\n0.1\n0.2\n")
    with pytest.raises(UserError, match=r"--pose: .*face\.csv says nothing of the head"):
        driver.plan(made("expression"), drive=tmp_path / "face.csv", pose="track")


def test_rows_without_names_are_the_signal_of_their_width(made, tmp_path, capsys):
    rows = np.random.default_rng(1).uniform(0, 1, (20, len(NAMES))).astype(np.float32)
    np.save(tmp_path / "a.npy", rows)
    plan = driver.plan(made("expression"), drive=tmp_path / "a.npy")
    np.testing.assert_array_equal(plan.signals["expression"].values, rows)
    assert "rows without names are taken as expression: _neutral" in capsys.readouterr().out
    np.save(tmp_path / "b.npy", rows[:, :5])
    with pytest.raises(UserError, match=r"rows of 5 numbers have no names and fit no signal.*expression 13"):
        driver.plan(made("expression"), drive=tmp_path / "b.npy")


def test_a_video_is_no_track_and_the_sentence_says_how_to_make_one(made, tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"any")
    with pytest.raises(UserError, match=r"is a video; make a track of it first: --mode=track"):
        driver.plan(made("expression"), drive=tmp_path / "a.mp4")


# ---------------------------------------------------------------- single channels


def test_single_channels_of_any_signal_are_set_scaled_and_shifted(made, capsys):
    avatar = made("expression", "eye_closed")
    plan = driver.plan(
        avatar, set="jawOpen=0.6,mouthSmileLeft=0.3,eye_closed=0.2", scale="eye_closed=2", offset="jawOpen=0.1"
    )
    assert plan.signals["eye_closed"].values == pytest.approx(0.4)
    assert column(plan, "jawOpen") == pytest.approx(0.7) and column(plan, "mouthSmileLeft") == pytest.approx(0.3)
    for flag, name, near in (("set", "jawOpne", "jawOpen"), ("scale", "eye_close", "eye_closed"),
                             ("offset", "eyeBlinkleft", "eyeBlinkLeft")):  # fmt: skip
        with pytest.raises(UserError, match=f"--{flag}: {name} is no channel .*did you mean .*{near}"):
            driver.plan(avatar, **{flag: f"{name}=1"})
