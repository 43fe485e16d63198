"""Streaming: chunks give what one go gives, files are as long as their sound and in step with it."""

import dataclasses
import json
import tracemalloc

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests import peak, tiny
from tests.audio_test import encode
from tkjax import contract, signals
from tkjax.avatar import bundle
from tkjax.contract import described
from tkjax.drive import driver, motion, sounds, stream
from tkjax.errors import UserError
from tkjax.media import audio
from tkjax.models import load_system
from tkjax.signals import SignalInfo, Use


def spec_of(window, hop, left, channels, n_frames, **how):
    return sounds.Spec(
        SignalInfo("sound", channels, 25.0 * hop, window=window, hop=hop, left=left), HEARS, n_frames, **how
    )


HEARS = Use("sound", before=4, after=3)
SPEC = spec_of(16, 2, 8, 3, 0)


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    """An avatar of the tiny dataset with untrained but known variables."""
    from tkjax.data.dataset_clip import DatasetClip

    folder = tmp_path_factory.mktemp("stream")
    clip = DatasetClip(tiny.make_dataset(folder / "dataset"), folder / "cache")
    resolved = tiny.config()
    model = load_system(resolved.system)(resolved, clip.info)
    spec = bundle.audio_spec(clip.dataset.audio_features("logmel"))
    variables = model.init(__import__("jax").random.key(0))
    bundle.save(folder / "avatar", resolved, variables, 4, clip, spec, {"statement": None})
    return bundle.load(folder / "avatar")


@pytest.fixture
def wav(tmp_path):
    def write(seconds, seed=0):
        path = tmp_path / f"sound-{seconds}-{seed}.wav"
        audio.write_wav(path, tiny.sound(seconds, seed))
        return path

    return write


def pictures(path):
    with av.open(str(path)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


def split(rows, cuts):
    return np.split(rows, sorted(min(c, len(rows)) for c in cuts))


@given(st.integers(0, 60), st.lists(st.integers(0, 60), max_size=8), st.integers(1, 30), st.booleans())
def test_chunks_of_any_size_give_the_same_windows(n_rows, cuts, n_frames, smooth):
    rows = np.random.default_rng(n_rows).normal(size=(n_rows, 3)).astype(np.float32)
    spec = dataclasses.replace(SPEC, n_frames=n_frames, smooth_lips=smooth)
    whole = np.stack(list(sounds.windows(spec, [rows])))
    parts = np.stack(list(sounds.windows(spec, split(rows, cuts))))
    np.testing.assert_array_equal(whole, parts)
    assert len(whole) == n_frames


@given(st.integers(0, 60), st.integers(1, 30))
def test_windows_are_those_of_the_contract(n_rows, n_frames):
    rows = np.random.default_rng(n_rows).normal(size=(n_rows, 3)).astype(np.float32)
    features = contract.AudioFeatures("logmel", rows, 50.0, 0.01, "x", 16, 2, 8, 8)
    got = np.stack(list(sounds.windows(dataclasses.replace(SPEC, n_frames=n_frames), [rows])))
    for i in range(n_frames):
        for k, j in enumerate(range(i - 4, i + 4)):
            expected = features.window_at(j) if 0 <= j < features.n_windows else np.zeros((16, 3))
            np.testing.assert_array_equal(got[i, k], expected)


@pytest.mark.parametrize(("window", "hop", "left", "pad"), [(16, 2, 8, 8), (2, 2, 0, 0), (5, 3, 1, 2), (4, 2, 4, 4)])
@given(n_rows=st.integers(1, 70), cuts=st.lists(st.integers(0, 70), max_size=6))
def test_windows_are_those_of_the_training_loader(window, hop, left, pad, n_rows, cuts):
    rows = np.random.default_rng(0).normal(size=(n_rows, 3)).astype(np.float32)
    features = contract.AudioFeatures("logmel", rows, 50.0, 0.01, "x", window, hop, left, pad)
    n = max(1, n_rows // hop)
    trained = signals.windows(described.of_sound(features), np.arange(n), HEARS)
    spec = spec_of(window, hop, left, 3, n)
    np.testing.assert_array_equal(trained, np.stack(list(sounds.windows(spec, split(rows, cuts)))))


def test_the_carry_does_not_grow_with_the_length_of_the_sound():
    spec = dataclasses.replace(SPEC, n_frames=4000)
    carry, largest = sounds.start(spec), 0
    for _ in range(160):
        carry, _ = sounds.advance(spec, carry, np.zeros((50, 3), np.float32), False)
        largest = max(largest, len(carry.rows))
    assert carry.frame > 3900 and largest <= 2 * (8 + 16)


def test_smoothed_lips_follow_the_recurrence():
    rows = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    spec = dataclasses.replace(SPEC, n_frames=6)
    plain = list(sounds.windows(spec, [rows]))
    smooth = list(sounds.windows(dataclasses.replace(spec, smooth_lips=True), [rows]))
    expected = plain[0]
    for a, b in zip(plain, smooth):
        expected = a if a is plain[0] else 0.35 * expected + 0.65 * a
        np.testing.assert_allclose(b, expected, rtol=1e-6)


@pytest.mark.heavy
@pytest.mark.parametrize("seconds", [0.07, 1.0, 1.99, 3.33])
def test_the_video_lasts_as_long_as_the_sound_within_one_frame(subject, wav, tmp_path, seconds):
    out = tmp_path / "o.mp4"
    n = stream.render(subject, driver.plan(subject, audio=wav(seconds)), out)
    assert abs(n / 25 - seconds) <= 1 / 25 and len(pictures(out)) == n
    with av.open(str(out)) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        assert container.streams.audio[0].codec_context.name == "aac"
        sound = container.streams.audio[0]
        assert abs(float(sound.duration * sound.time_base) - seconds) <= 1 / 25 + 1024 / 16000
        text = json.dumps(dict(container.metadata))
    assert "ynthetic" in text and subject.id in text


def test_pictures_are_in_step_with_the_sound(subject, tmp_path):
    """Sound switches on at 1.0 s and off at 2.0 s; the disc's red follows within one frame."""
    pcm = tiny.sound(3.0)
    pcm[:16000] = pcm[32000:] = 0
    audio.write_wav(tmp_path / "s.wav", pcm)
    stream.render(subject, driver.plan(subject, audio=tmp_path / "s.wav", fix_eye=0.5), tmp_path / "o.mp4")
    red = pictures(tmp_path / "o.mp4")[:, 12, 16, 0].astype(float)
    middle = (red.min() + red.max()) / 2
    loud = np.flatnonzero(red > middle)
    assert abs(loud[0] - 25) <= 4 and abs(loud[-1] - 49) <= 4  # a frame hears 8 windows of 0.32 s
    assert abs((loud[0] + loud[-1]) / 2 - 37) <= 1
    heard = audio.read_audio(tmp_path / "o.mp4")
    on = np.flatnonzero(np.abs(heard) > 0.1)
    assert abs(on[0] / 16000 - 1) < 0.04 and abs(on[-1] / 16000 - 2) < 0.04


def test_poses_and_blinks_run_forth_and_back_and_the_torso_goes_with_them(subject, wav, tmp_path):
    out = tmp_path / "frames"
    stream.render(subject, driver.plan(subject, audio=wav(3.0), data_range=(0, 10)), out)
    files = sorted(out.glob("*.png"))
    shown = np.stack([np.asarray(Image.open(f)) for f in files])
    assert len(shown) == 75
    blink, torso = shown[:, 12, 16, 1].astype(int), shown[:, 22, 16, 1].astype(int)
    loop = [motion.ping_pong(i, 10) for i in range(75)]
    np.testing.assert_allclose(torso, [30 + k for k in loop], atol=1)
    np.testing.assert_allclose(blink, [round(255 * (k % 5) / 5) for k in loop], atol=1)
    assert subject.id in json.loads((out / "frames.json").read_text())["avatar"]
    assert "ynthetic" in str(Image.open(files[0]).text)


def test_a_background_replaces_the_plate_but_neither_torso_nor_head(subject, wav, tmp_path):
    plain, green = tmp_path / "plain", tmp_path / "green"
    stream.render(subject, driver.plan(subject, audio=wav(0.2)), plain)
    stream.render(subject, driver.plan(subject, audio=wav(0.2), background="#00ff00"), green)
    a, b = (np.asarray(Image.open(p / "000000.png")) for p in (plain, green))
    assert (b[1, 1] == [0, 255, 0]).all() and (a[1, 1] != b[1, 1]).any()
    assert (a[22, 16] == b[22, 16]).all() and (np.abs(a[12, 16].astype(int) - b[12, 16]) <= 1).all()


def test_a_visible_mark_is_added_only_when_asked_for(subject, wav, tmp_path):
    for mark in (False, True):
        stream.render(subject, driver.plan(subject, audio=wav(0.2)), tmp_path / str(mark), visible_mark=mark)
    a, b = (np.asarray(Image.open(tmp_path / m / "000000.png")).astype(int) for m in ("False", "True"))
    changed = np.abs(a - b).sum(-1) > 0
    assert changed[-8:, -10:].any() and not changed[:6].any()


def test_features_of_another_kind_are_refused_with_the_way_out(subject, wav, tmp_path):
    rows = np.zeros((50, 5), np.float32)
    contract.save_audio_features(tmp_path / "f.npz", "hubert", rows, 50.0, 0.0, "h", 2, 2, 0, 0)
    with pytest.raises(UserError, match=r"f\.npz.*hubert.*logmel"):
        stream.render(subject, driver.plan(subject, audio=wav(1.0), features=tmp_path / "f.npz"), tmp_path / "o.mp4")
    assert not (tmp_path / "o.mp4").exists()


def test_features_of_a_longer_sound_are_refused(subject, wav, tmp_path):
    contract.save_audio_features(tmp_path / "f.npz", **vars(audio.audio_features(wav(2.0))))
    with pytest.raises(UserError, match=r"last 2\.0\d s, but the sound 1\.00 s"):
        stream.render(subject, driver.plan(subject, audio=wav(1.0), features=tmp_path / "f.npz"), tmp_path / "o.mp4")
    assert not (tmp_path / "o.mp4").exists()


def test_given_features_equal_computed_ones(subject, wav, tmp_path):
    features = audio.audio_features(wav(1.0))
    contract.save_audio_features(tmp_path / "f.npz", **vars(features))
    for name, given_features in (("a", None), ("b", tmp_path / "f.npz")):
        stream.render(subject, driver.plan(subject, audio=wav(1.0), features=given_features), tmp_path / name)
    for a in (tmp_path / "a").glob("*.png"):
        assert (np.asarray(Image.open(a)) == np.asarray(Image.open(tmp_path / "b" / a.name))).all()


@pytest.mark.parametrize("content", [None, b"", b"no sound at all" * 100])
def test_a_bad_sound_is_one_sentence_and_the_old_file_stays(subject, tmp_path, content):
    sound, out = tmp_path / "s.wav", tmp_path / "o.mp4"
    out.write_bytes(b"old")
    if content is not None:
        sound.write_bytes(content)
    with pytest.raises(UserError) as error:
        stream.render(subject, driver.plan(subject, audio=sound), out)
    assert "s.wav" in str(error.value) and "\n" not in str(error.value) and out.read_bytes() == b"old"


@pytest.mark.parametrize("whole", [True, False])
def test_windows_of_wide_features_take_no_memory_that_grows_with_the_sound(tmp_path, whole):
    """HuBERT's: half a MB a frame. Peaks of 4 and 16 s differ by the features themselves at most, or by nothing."""
    peaks = []
    for seconds in (4, 16):
        n, width = 50 * seconds, 1024
        rows = np.ones((n, width), np.float32)
        contract.save_audio_features(tmp_path / "f.npz", "hubert", rows, 50.0, 0.0, "h", 16, 2, 8, 8)
        spec = spec_of(16, 2, 8, width, 25 * seconds)
        tracemalloc.start()
        try:
            chunks = [rows] if whole else contract.stream_audio_features(tmp_path / "f.npz", sounds.BLOCK_ROWS)[1]
            assert sum(1 for _ in sounds.windows(spec, chunks)) == 25 * seconds
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert max(peaks) < 30e6 and abs(peaks[1] - peaks[0]) < 1e6


@pytest.mark.parametrize("out", ["o.mp4", "pictures"])
def test_sound_that_is_no_number_is_refused_before_a_frame_is_drawn(subject, tmp_path, out):
    pcm = tiny.sound(1.0)
    pcm[8000] = np.nan
    encode(tmp_path / "s.wav", pcm, "pcm_f32le", audio.RATE)
    drawn = []
    with pytest.raises(UserError, match=r"s\.wav: the sample at 0\.500 s is not a number"):
        stream.render(
            subject,
            driver.plan(subject, audio=tmp_path / "s.wav"),
            tmp_path / out,
            on_frame=lambda i, _: drawn.append(i),
        )
    assert not drawn and not (tmp_path / out).exists()


@pytest.mark.slow  # renders six minutes of sound
@pytest.mark.skipif(not peak.can_be_read, reason="peak memory is read from Linux's /proc")
def test_resident_memory_does_not_grow_with_the_length_of_the_sound(subject, tmp_path):
    peaks = []
    for seconds in (30, 330):
        audio.write_wav(tmp_path / "s.wav", tiny.sound(seconds))
        code = (
            "import sys; sys.path.insert(0, '.'); import tests.tiny; from tkjax.avatar import bundle; from "
            "tkjax.drive import driver, stream; "
            f"s = bundle.load({str(subject.folder)!r}); "
            f"stream.render(s, driver.plan(s, audio={str(tmp_path / 's.wav')!r}), {str(tmp_path / 'o.mp4')!r})"
        )
        peaks.append(peak.resident_mb(code))
    assert peaks[1] - peaks[0] < 30, f"{peaks} MB"


def test_a_destination_that_is_not_ours_is_refused(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "o_depth.mp4").mkdir()
    (tmp_path / "file").write_text("x")
    for name in ("full", "folder.mp4", "file", "o.avi", "o.mp4"):
        with pytest.raises(UserError, match="--out"):
            stream.check_out(tmp_path / name, maps=["depth"])
    for name in ("new", "new.mp4", "deep/new.mp4"):
        stream.check_out(tmp_path / name)


def test_audio_kinds_that_the_avatar_does_not_hear_are_said():
    from preprocess.audio import extract

    assert sounds.unheard(None, "logmel", False) == "" and sounds.unheard("logmel", "logmel", False) == ""
    assert sounds.unheard("logmel,hubert=x", "hubert", False) == ""
    assert "hears logmel" in sounds.unheard("hubert=x", "logmel", False)
    assert "--features" in sounds.unheard("hubert=x", "hubert", True)
    with pytest.raises(UserError, match=r"deepspeech is unknown, expected some of logmel"):
        sounds.unheard("deepspeech=x", "logmel", False)
    assert sounds.MADE == extract.KINDS
