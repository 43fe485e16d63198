"""Samples of any kind become sound in -1..1, or one sentence with file and time."""

import logging

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.audio_test import encode
from tkjax.errors import UserError
from tkjax.media import audio
from tkjax.media.video import VideoWriter

RATE = 16000


def voice(seconds: float = 1.0, seed: int = 0) -> np.ndarray:
    t = np.arange(round(seconds * RATE)) / RATE
    hiss = np.random.default_rng(seed).standard_normal(len(t))
    return (0.3 * np.sin(900 * t) * (np.sin(25 * t) > 0) + 0.01 * hiss).astype(np.float32)


def wav(path, pcm, codec="pcm_f32le"):
    """A wav of one channel [n] or two [2, n] whose samples are stored as they are."""
    pcm = np.atleast_2d(pcm)
    return encode(path, pcm, codec, RATE, channels=len(pcm))


@pytest.mark.heavy
@pytest.mark.parametrize("bad, word", [(np.nan, "not a number"), (np.inf, "infinite"), (-np.inf, "infinite")])
@given(at=st.integers(0, 15999), channel=st.integers(0, 1), channels=st.integers(1, 2))
def test_a_sample_that_is_no_number_is_one_sentence_with_file_and_time(
    tmp_path_factory, bad, word, at, channel, channels
):
    pcm = np.tile(voice(), (channels, 1))
    pcm[channel % channels, at] = bad
    path = wav(tmp_path_factory.mktemp("n") / "a.wav", pcm)
    for read in (audio.read_audio, lambda p: next(audio.decode_audio(p, 48000, 2)), audio.audio_features):
        with pytest.raises(UserError, match=word) as error:
            read(path)
        assert f"{path}: the sample at {at / RATE:.3f} s" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("bits", [16, 24, 32])
def test_counts_in_floating_point_are_brought_to_full_scale(tmp_path, caplog, bits):
    path = wav(tmp_path / "a.wav", voice() * 2.0 ** (bits - 1))
    with caplog.at_level(logging.WARNING):
        np.testing.assert_allclose(audio.read_audio(path), voice(), atol=1e-6)
        audio.read_audio(path)
    assert len(caplog.records) == 1 and f"counts of {bits} bit" in caplog.text and str(path) in caplog.text


@given(peak=st.floats(1.001, 7.9))
def test_sound_over_full_scale_keeps_its_shape(tmp_path_factory, peak):
    pcm = voice() * (peak / np.abs(voice()).max())
    heard = audio.read_audio(wav(tmp_path_factory.mktemp("o") / "a.wav", pcm))
    assert np.abs(heard).max() == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(heard, pcm / np.abs(pcm).max(), atol=1e-6)


def test_a_wild_sample_in_quiet_sound_and_a_sound_beyond_all_scales_are_refused(tmp_path):
    pcm = voice()
    pcm[4000] = 1e4
    for bad, time in ((pcm, "0.250"), (voice() * 1e12, None)):
        with pytest.raises(UserError, match="expected -1 to 1") as error:
            audio.read_audio(wav(tmp_path / f"{time}.wav", bad))
        assert time is None or f"at {time} s" in str(error.value)


def test_sound_within_range_is_left_as_it_is(tmp_path, caplog):
    stereo = np.stack([voice(), 0.5 * voice(seed=1)])
    for k, pcm in enumerate((voice(), stereo, np.tile(voice(), (2, 1)), 0 * stereo)):
        heard = audio.read_audio(wav(tmp_path / f"{k}.wav", pcm))
        np.testing.assert_allclose(heard, np.atleast_2d(pcm).mean(0), atol=1e-7)
    assert not caplog.records


@pytest.mark.parametrize("codec, exact", [("pcm_f32le", 1e-6), ("pcm_s16le", 1e-4)])
@pytest.mark.parametrize(
    "left, right, word",
    [(1.0, -1.0, "antiphase"), (-0.7, 0.6, "antiphase"), (1.0, 0.0, "right channel is silent"),
     (0.0, 0.9, "left channel is silent"), (0.9, 0.005, "right channel is silent")],
)  # fmt: skip
def test_channels_that_cancel_or_are_dead_are_heard_and_said(tmp_path, caplog, codec, exact, left, right, word):
    path = wav(tmp_path / "a.wav", np.stack([left * voice(), right * voice()]), codec)
    heard = audio.read_audio(path)
    loudest = max(abs(left), abs(right))
    share = np.abs(heard @ voice()) / (voice() @ voice())
    assert share == pytest.approx(loudest if "silent" in word else (abs(left) + abs(right)) / 2, abs=exact * 10)
    assert word in caplog.text


def test_a_video_gets_the_sound_at_the_same_scale(tmp_path):
    loud = wav(tmp_path / "loud.wav", voice(2.0) * 2.0**15)
    same = wav(tmp_path / "same.wav", voice(2.0))
    for name, sound in (("a.mp4", loud), ("b.mp4", same)):
        with VideoWriter(tmp_path / name, 16, 16, audio=sound) as video:
            for _ in range(50):
                video.write(np.zeros((16, 16, 3), np.uint8))
    a, b = (audio.read_audio(tmp_path / name) for name in ("a.mp4", "b.mp4"))
    assert np.abs(b).max() > 0.2
    np.testing.assert_allclose(a, b, atol=1e-3)


def test_a_file_that_changes_is_looked_at_again(tmp_path):
    path = wav(tmp_path / "a.wav", voice() * 2.0**15)
    assert np.abs(audio.read_audio(path)).max() < 1
    wav(path, voice(1.5))
    np.testing.assert_allclose(audio.read_audio(path), voice(1.5), atol=1e-6)
