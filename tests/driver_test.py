"""Drivers: how long they are, where each signal comes from, edits by channel, and what is refused."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import tiny
from tkjax import contract, interface
from tkjax.avatar import bundle
from tkjax.data.dataset_clip import DatasetClip
from tkjax.drive import driver, motion
from tkjax.errors import UserError
from tkjax.formats import tracks
from tkjax.interface import Rate, Stage
from tkjax.media import audio
from tkjax.models import load_system
from tkjax.signals import SOUND, SignalInfo, Use, of_frames, windows
from tkjax.types import Render, Variables

NAMES = ("jawOpen", "mouthPucker", "browInnerUp")


class Model(interface.Model):
    """Driven by whatever the settings name."""

    def signals(self):
        return tuple(Use(name) for name in self.config.model.driven_by)

    def init(self, key):
        return Variables({"none": jnp.zeros(1)}, {})

    def render(self, variables, batch, key, clock, train):
        rgb = jnp.zeros((*batch.pixels_px.shape[:2], 3))
        return Render(rgb=rgb, alpha=jnp.ones_like(rgb[..., :1]))

    def stages(self):
        return (Stage("all", 4, 16, {"all": Rate(1e-2)}, {"mse": 1.0}),)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """make(*signals) -> (avatar of 30 training and 3 held-out frames that is driven by them, its clip)."""
    folder = tmp_path_factory.mktemp("driver")
    root = tiny.make_dataset(folder / "dataset", names=NAMES)
    clip = DatasetClip(root, folder / "cache")
    cache = {}

    def make(*driven_by):
        if driven_by not in cache:
            config = tiny.config()
            config.system = "tests.driver_test"
            config.model.driven_by = driven_by
            model = load_system(config.system)(config, clip.info)
            out = folder / "-".join(("avatar", *driven_by))
            spec = bundle.audio_spec(clip.audio)
            bundle.save(out, config, model.init(jax.random.key(0)), 4, clip, spec, {"statement": None})
            cache[driven_by] = bundle.load(out)
        return cache[driven_by]

    make.clip, make.root = clip, root
    return make


@pytest.fixture
def wav(tmp_path):
    audio.write_wav(tmp_path / "s.wav", tiny.sound(0.8))
    return tmp_path / "s.wav"


def csv(path: Path, rows, names=NAMES, time=None) -> Path:
    head = ["time_s", *names] if time is not None else list(names)
    lines = [",".join(head)]
    for k, row in enumerate(rows):
        lines.append(",".join(map(str, [time[k], *row] if time is not None else row)))
    path.write_text("\n".join(lines) + "\n")
    return path


# ---------------------------------------------------------------- windows


@given(
    n=st.integers(1, 40), window=st.integers(1, 6), hop=st.integers(1, 3), left=st.integers(0, 5),
    before=st.integers(0, 14), after=st.integers(0, 14), edge=st.sampled_from(["zeros", "repeat"]),
    frames=st.lists(st.integers(0, 45), min_size=1, max_size=5),
)  # fmt: skip
def test_windows_are_the_steps_around_each_frame(n, window, hop, left, before, after, edge, frames):
    left = min(left, window)
    values = np.random.default_rng(n).normal(size=(n, 2)).astype(np.float32)
    info = SignalInfo("any", 2, 25.0 * hop, window=window, hop=hop, left=left)
    signal = driver.Signal(info, values)
    last = -(-n // hop)
    got = windows(signal, np.array(frames), Use("any", before, after, edge))
    assert got.shape == (len(frames), before + 1 + after, window, 2) and info.right == window - left - 1
    for b, i in enumerate(frames):
        for w, j in enumerate(range(i - before, i + after + 1)):
            there = 0 <= j < last
            k = min(max(j, 0), last - 1) if edge == "repeat" else j
            for t in range(window):
                step = hop * k - left + t
                known = 0 <= step < n and (there or edge == "repeat")
                np.testing.assert_array_equal(got[b, w, t], values[step] if known else 0)


# ---------------------------------------------------------------- how long


def test_it_lasts_as_long_as_the_longest_source_that_was_named(made, wav, tmp_path):
    both = made(SOUND, "expression", "eye_closed")
    short, long = csv(tmp_path / "a.csv", np.zeros((7, 3))), csv(tmp_path / "b.csv", np.zeros((31, 3)))
    assert driver.plan(both, audio=wav, drive=short).n_frames == 20
    assert driver.plan(both, audio=wav, drive=long).n_frames == 31
    face = made("expression")
    assert driver.plan(face, drive=short).n_frames == 7
    assert driver.plan(face, drive="own").n_frames == 30
    assert driver.plan(face, drive="own", poses="test").n_frames == 3
    assert driver.plan(face, set="jawOpen=0.5").n_frames == 30
    np.save(tmp_path / "p.npy", np.tile(made.clip.cam_to_world[:1], (11, 1, 1)))
    assert driver.plan(face, set="jawOpen=0.5", pose=tmp_path / "p.npy").n_frames == 11
    assert driver.plan(face, drive=short, pose=tmp_path / "p.npy").n_frames == 7


def test_a_track_shorter_than_the_sound_is_played_forth_and_back(made, wav, tmp_path):
    rows = np.arange(21.0).reshape(7, 3) / 21
    plan = driver.plan(made(SOUND, "expression"), audio=wav, drive=csv(tmp_path / "a.csv", rows))
    loop = [motion.ping_pong(i, 7) for i in range(20)]
    np.testing.assert_allclose(plan.signals["expression"].values, rows[loop], rtol=1e-6)


# ---------------------------------------------------------------- where from


def test_the_own_track_gives_the_frames_that_are_played(made):
    plan = driver.plan(made("expression", "eye_closed"), drive="own", data_range=(4, 9))
    for name in ("expression", "eye_closed"):
        np.testing.assert_array_equal(plan.signals[name].values, made.clip.signals[name].values[4:9])


def test_blinks_are_the_clips_own_and_all_else_must_be_named(made, wav):
    plan = driver.plan(made(SOUND, "eye_closed"), audio=wav)
    np.testing.assert_array_equal(plan.signals["eye_closed"].values, made.clip.signals["eye_closed"].values[:20])
    for driven_by, how, word in (
        ((SOUND,), {}, "sound.*--audio"),
        (("expression",), {}, "expression.*--drive"),
        (("expression",), {"audio": wav}, "expression.*--drive"),
        ((SOUND, "expression"), {"audio": wav}, "expression"),
        ((SOUND, "expression"), {"drive": "own"}, "sound"),
    ):
        with pytest.raises(UserError, match=word):
            driver.plan(made(*driven_by), **how)


def test_channels_are_taken_by_name_and_those_that_lack_rest(made, tmp_path, capsys):
    face = made("expression")
    rest = np.median(made.clip.signals["expression"].values[:30], 0)
    path = csv(tmp_path / "a.csv", [[0.1, 0.9], [0.2, 0.8]], ("browInnerUp", "jawOpen"))
    values = driver.plan(face, drive=path).signals["expression"].values
    np.testing.assert_allclose(values, [[0.9, rest[1], 0.1], [0.8, rest[1], 0.2]], rtol=1e-6)
    assert "2 of the 3 channels" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"none of its channels \(nose\).*jawOpen"):
        driver.plan(face, drive=csv(tmp_path / "b.csv", [[1]], ("nose",)), set="jawOpen=0.1")


def test_another_dataset_avatar_or_workdir_is_retargeted_by_channel(made, tmp_path):
    names = ("mouthPucker", "jawOpen")
    other = tiny.make_dataset(tmp_path / "other" / "dataset", n=22, names=names)
    truth = DatasetClip(other, tmp_path / "cache").signals["expression"].values
    face = made("expression", "eye_closed")
    for source in (other, tmp_path / "other"):
        plan = driver.plan(face, drive=source)
        assert plan.n_frames == 22 and plan.sound is None
        np.testing.assert_array_equal(plan.signals["expression"].values[:, [1, 0]], truth)
        np.testing.assert_array_equal(plan.signals["eye_closed"].values[:, 0], (np.arange(22) % 5 / 5).astype("f4"))
    plan = driver.plan(face, drive=made("eye_closed").folder)
    np.testing.assert_array_equal(plan.signals["expression"].values, made.clip.signals["expression"].values[:30])


def test_poses_come_from_another_dataset_or_avatar_with_its_camera(made, tmp_path):
    other = tiny.make_dataset(tmp_path / "other" / "dataset", n=22, height=48, width=64, names=NAMES)
    truth = contract.Dataset(other)
    plan = driver.plan(made("eye_closed"), pose=tmp_path / "other")
    assert plan.n_frames == 22
    np.testing.assert_array_equal(plan.motion.cam_to_world, truth.column("cam_to_world"))
    np.testing.assert_allclose(plan.motion.intrinsics, np.array(truth.intrinsics) / 2, rtol=1e-6)  # 64 to 32 pixels
    own = driver.plan(made("eye_closed"), pose=made("expression").folder)
    np.testing.assert_array_equal(own.motion.cam_to_world, made.clip.cam_to_world[:30])


def test_a_dataset_also_gives_its_sound(made):
    plan = driver.plan(made(SOUND, "expression"), drive=made.root)
    assert plan.n_frames == 33 and plan.sound.path.name == "audio.wav"
    assert plan.sound.features.name == "audio_logmel.npz"


def test_a_track_is_resampled_to_the_clips_rate(made, tmp_path):
    time = np.arange(61) / 60 + 3.0  # 60 a second, from second 3 on
    rows = np.stack([time - 3, 2 * (time - 3), 0 * time], 1)
    plan = driver.plan(made("expression"), drive=csv(tmp_path / "a.csv", rows, time=time))
    at = np.arange(26) / 25
    np.testing.assert_allclose(plan.signals["expression"].values, np.stack([at, 2 * at, 0 * at], 1), atol=1e-6)
    tracks.save(tmp_path / "a.npz", NAMES, rows, 60)
    same = driver.plan(made("expression"), drive=tmp_path / "a.npz")
    np.testing.assert_allclose(same.signals["expression"].values, plan.signals["expression"].values, atol=1e-6)


def test_eyes_come_as_blinks_and_as_areas(made, tmp_path):
    eyes = made("eye_closed", "eye_area")
    clip = made.clip.signals
    opened, closed = np.percentile(clip["eye_area"].values[:30], (95, 5))

    def areas(**how):
        plan = driver.plan(eyes, **how)
        return plan.signals["eye_closed"].values[:, 0], plan.signals["eye_area"].values[:, 0]

    blink, area = areas()
    np.testing.assert_array_equal(blink, clip["eye_closed"].values[:30, 0])
    np.testing.assert_array_equal(area, clip["eye_area"].values[:30, 0])
    smooth = areas(smooth_eye=True)[0]
    assert smooth[0] == pytest.approx(blink[:2].mean()) and smooth[3] == pytest.approx(blink[2:5].mean())
    for blink, want in ((0.0, opened), (1.0, closed), (0.5, (opened + closed) / 2)):
        assert {*areas(fix_eye=blink)[0].tolist()} == {blink}
        np.testing.assert_allclose(areas(fix_eye=blink)[1], want, rtol=1e-6)
        np.testing.assert_allclose(areas(set=f"eye_closed={blink}")[1], want, rtol=1e-6)
    np.save(tmp_path / "e.npy", np.array([0, 1.0, 0.5]))
    blink, area = areas(eye=tmp_path / "e.npy")
    np.testing.assert_allclose(blink, [0, 1, 0.5])
    np.testing.assert_allclose(area, [opened, closed, (opened + closed) / 2], rtol=1e-6)
    with pytest.raises(UserError, match="exclude"):
        driver.plan(eyes, fix_eye=0.0, eye=tmp_path / "e.npy")


# ---------------------------------------------------------------- edits


@settings(max_examples=50)
@given(a=st.floats(-2, 2, width=32), b=st.floats(-2, 2, width=32), c=st.floats(-2, 2, width=32))
def test_edits_set_scale_and_shift_in_this_order(made, a, b, c):
    face, own = made("expression"), made.clip.signals["expression"].values[:30]
    plan = driver.plan(face, drive="own", set=f"jawOpen={a}", scale=f"expression={b}", offset=f"browInnerUp={c}")
    want = own.copy()
    want[:, 0] = a
    want *= np.float32(b)
    want[:, 2] += np.float32(c)
    np.testing.assert_allclose(plan.signals["expression"].values, want, rtol=1e-6, atol=1e-7)


def test_constants_alone_leave_the_rest_at_rest(made):
    values = driver.plan(made("expression"), set="mouthPucker=0.4").signals["expression"].values
    rest = np.median(made.clip.signals["expression"].values[:30], 0)
    np.testing.assert_allclose(values, np.tile([rest[0], 0.4, rest[2]], (30, 1)), rtol=1e-6)


@pytest.mark.parametrize(
    ("edit", "word"),
    [
        ({"set": "jawopen=1"}, "did you mean jawOpen"),
        ({"set": "nose=1"}, "nose is no channel"),
        ({"set": "jawOpen"}, "jawOpen=0.6"),
        ({"scale": "jawOpen=a"}, "jawOpen=a"),
        ({"offset": "jawOpen=nan"}, "jawOpen=nan"),
        ({"offset": "eye_area=1"}, "eye_area is no channel"),
    ],
)
def test_wrong_edits_are_a_sentence(made, edit, word):
    with pytest.raises(UserError, match=word) as error:
        driver.plan(made("expression"), drive="own", **edit)
    assert "\n" not in str(error.value) and f"--{next(iter(edit))}" in str(error.value)


def test_what_leaves_the_range_of_training_is_said(made, capsys):
    driver.plan(made("expression"), set="jawOpen=0.5")
    assert capsys.readouterr().out == ""
    driver.plan(made("expression"), set="jawOpen=3")
    assert "jawOpen leaves what training has shown" in capsys.readouterr().out


# ---------------------------------------------------------------- files


BAD = {
    "absent.csv": None,
    "empty.csv": "",
    "numbers.csv": "1,2\n3,4\n",
    "text.csv": "jawOpen\nwide\n",
    "gap.csv": "jawOpen,mouthPucker\n0.1,\n",
    "twice.csv": "jawOpen,jawOpen\n1,1\n",
    "back.csv": "time_s,jawOpen\n1,0\n0.5,1\n",
    "hours.csv": "time_s,jawOpen\n1,0\n3600,1\n",
    "header.csv": "jawOpen\n",
    "a.txt": "jawOpen\n1\n",
    "zip.npz": "PK\x03\x04rubbish",
}


@pytest.mark.parametrize("name", BAD)
def test_a_malformed_track_is_one_sentence_with_its_name(made, tmp_path, name):
    if BAD[name] is not None:
        (tmp_path / name).write_text(BAD[name])
    with pytest.raises(UserError, match=name.replace(".", r"\.")) as error:
        driver.plan(made("expression"), drive=tmp_path / name)
    assert "\n" not in str(error.value) and "--drive" in str(error.value)


@pytest.mark.parametrize(
    "arrays",
    [
        {"values": np.zeros((3, 2)), "time_s": np.arange(3)},
        {"any": np.zeros(3)},
        {"values": np.zeros((3, 2)), "channels": np.array(["a"])},
        {"values": np.zeros(3), "channels": np.array(["a"])},
        {"values": np.zeros((3, 1)), "channels": np.array([1])},
        {"values": np.array([["a"]]), "channels": np.array(["a"])},
        {"values": np.zeros((3, 1)), "channels": np.array(["a"]), "time_s": np.zeros(2)},
        {"values": np.zeros((3, 1)), "channels": np.array(["a"]), "rate_hz": 0.0},
        {"values": np.full((3, 1), np.nan), "channels": np.array(["a"])},
        {"values": np.array([[{}]], object), "channels": np.array(["a"])},
    ],
)
def test_a_malformed_npz_is_one_sentence(tmp_path, arrays):
    np.savez(tmp_path / "t.npz", **arrays)
    with pytest.raises(UserError, match=r"t\.npz") as error:
        tracks.read(tmp_path / "t.npz", 25.0)
    assert "\n" not in str(error.value)


def test_a_folder_that_holds_nothing_to_drive_with_is_refused(made, tmp_path):
    with pytest.raises(UserError, match="holds no dataset"):
        driver.plan(made("expression"), drive=tmp_path)


def test_features_without_a_sound_are_refused(made, tmp_path):
    with pytest.raises(UserError, match="--features describes a sound"):
        driver.plan(made(SOUND), features=tmp_path / "f.npz")


# ---------------------------------------------------------------- nothing in silence


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    """make(*signals) -> avatar of a clip whose expression and whose member x_a both have a channel a."""
    folder = tmp_path_factory.mktemp("twins")
    (folder / "d").mkdir()
    root = tiny.make_dataset(folder / "d" / "dataset", names=("a", "b", "c"), twin=np.linspace(5, 6, 33))
    clip = DatasetClip(root, folder / "cache")

    def make(*driven_by):
        config = tiny.config()
        config.system = "tests.driver_test"
        config.model.driven_by = driven_by
        model = load_system(config.system)(config, clip.info)
        out = folder / "-".join(("avatar", *driven_by))
        variables = model.init(jax.random.key(0))
        bundle.save(out, config, variables, 4, clip, bundle.audio_spec(clip.audio), {"statement": None})
        return bundle.load(out)

    make.clip, make.root = clip, root
    return make


def test_channels_of_one_name_in_two_signals_stay_apart(twins, tmp_path):
    both, own = twins("expression", "a"), twins.clip.signals
    for source in ("own", twins.root):
        plan = driver.plan(both, drive=source)
        for name in ("expression", "a"):
            np.testing.assert_array_equal(plan.signals[name].values[:30], own[name].values[:30])
    alone = driver.plan(twins("expression"), drive=twins.root).signals["expression"].values
    np.testing.assert_array_equal(alone, own["expression"].values)
    for how in ({"set": "a=0.5"}, {"drive": csv(tmp_path / "a.csv", [[1]], ("a",))}):
        with pytest.raises(UserError, match=r"several signals; write expression\.a or a\.a"):
            driver.plan(both, **{"drive": "own", **how})
    named = driver.plan(both, drive=csv(tmp_path / "b.csv", [[1, 5.5]], ("expression.a", "a.a")))
    assert named.signals["expression"].values[0, 0] == 1 and named.signals["a"].values[0, 0] == 5.5
    edited = driver.plan(both, drive="own", set="expression.a=0.25").signals
    assert (edited["expression"].values[:, 0] == 0.25).all() and edited["a"].values.min() >= 5


def test_areas_of_eyes_come_from_a_file_that_has_them(made, tmp_path):
    path = csv(tmp_path / "a.csv", [[0.01], [0.02], [0.03]], ("eye_area",))
    got = driver.plan(made("eye_area"), drive=path).signals["eye_area"].values
    np.testing.assert_allclose(got[:, 0], [0.01, 0.02, 0.03], rtol=1e-6)


def test_what_drives_nothing_is_said_and_does_not_count(made, wav, tmp_path, capsys):
    long = csv(tmp_path / "long.csv", np.zeros((31, 1)), ("nose",))
    for avatar in (made(SOUND), made()):
        with pytest.raises(UserError, match="none of its channels"):
            driver.plan(avatar, drive=long, **({"audio": wav} if avatar is made(SOUND) else {}))
    capsys.readouterr()
    for flag, value in (("fix_eye", 1), ("smooth_eye", True), ("smooth_lips", True), ("features", "nothere.npy")):
        driver.plan(made("expression"), drive="own", **{flag: value})
        assert f"--{flag} is not used" in capsys.readouterr().out
    driver.plan(made("expression"), drive=csv(tmp_path / "b.csv", [[1, 2]], ("jawOpen", "time_ms")))
    assert "time_ms drive nothing" in capsys.readouterr().out
    driver.plan(made("expression"), drive=csv(tmp_path / "c.csv", np.zeros((3, 3)), time=[2.0, 2.04, 2.08]))
    assert "at 2 s, is the first frame" in capsys.readouterr().out


@pytest.mark.parametrize("edit", ["set", "scale", "offset"])
def test_numbers_beyond_float32_are_refused(made, tmp_path, edit):
    with pytest.raises(UserError, match="1e39"):
        driver.plan(made("expression"), drive="own", **{edit: "jawOpen=1e39"})
    with pytest.raises(UserError, match="no finite number in row 0"):
        driver.plan(made("expression"), drive=csv(tmp_path / "a.csv", [[1e39, 0, 0]]))
    with pytest.raises(UserError, match="not finite"):
        driver.plan(made("expression"), set="jawOpen=1e30", scale="jawOpen=1e30")
    for blink in (float("nan"), 7.0, -0.1):
        with pytest.raises(UserError, match="--fix_eye"):
            driver.plan(made("eye_closed"), fix_eye=blink)


def test_broken_archives_overlong_words_and_unsigned_times_are_a_sentence(made, tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(3))
    (tmp_path / "a.npy").rename(tmp_path / "a.npz")
    tracks.save(tmp_path / "whole.npz", NAMES, np.random.default_rng(0).normal(size=(500, 3)), 25)
    with np.load(tmp_path / "whole.npz") as file:
        np.savez_compressed(tmp_path / "b.npz", **file)
    data = bytearray((tmp_path / "b.npz").read_bytes())
    data[200:260] = bytes(60)
    (tmp_path / "b.npz").write_bytes(data)
    back = {"values": np.zeros((3, 1)), "channels": np.array(["jawOpen"]), "time_s": np.uint64([2, 1, 0])}
    np.savez(tmp_path / "c.npz", **back)
    for name in ("a.npz", "b.npz", "c.npz"):
        with pytest.raises(UserError, match=name.replace(".", r"\.")):
            driver.plan(made("expression"), drive=tmp_path / name)
    with pytest.raises(UserError, match=r"--drive: there is no file.*constants are given with --set"):
        driver.plan(made("expression"), drive="jawOpen=0.6," * 100)
    for flag in ("pose", "eye"):
        with pytest.raises(UserError, match=f"--{flag}: there is no file"):
            driver.plan(made("eye_closed"), **{flag: "x" * 5000})


def test_a_part_is_divided_at_its_last_equals_sign_and_given_once(made):
    for text, word in (("a=b=0.5", "a=b is no channel"), ("jawOpen=0.1,jawOpen=0.2", "given twice")):
        with pytest.raises(UserError, match=word):
            driver.plan(made("expression"), drive="own", set=text)


def test_names_of_a_signal_default_to_its_own():
    assert of_frames("gaze", np.zeros((3, 2)), 25.0).info.names == ("gaze0", "gaze1")
    assert of_frames("eye_closed", np.zeros(3), 25.0).info.names == ("eye_closed",)
