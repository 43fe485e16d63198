"""The same speech at any gain gives the same features; silence and steady noise stay what they are."""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tkjax.errors import UserError
from tkjax.media import audio, level
from tkjax.synthetic.speech import speech

SECONDS = 6.0
TEN_DB = np.log(10) / 4  # what 10 dB are in a band far above the floor


@functools.cache
def words(seed: int) -> np.ndarray:
    return speech(seed, SECONDS)[0]


def noise(seconds: float, decibels: float, seed: int = 0) -> np.ndarray:
    """White noise of that power, relative to a sine of full scale."""
    rng = np.random.default_rng(seed)
    return (10 ** (decibels / 20) / np.sqrt(2) * rng.standard_normal(round(seconds * 16000))).astype(np.float32)


def gain(pcm: np.ndarray, decibels: float) -> np.ndarray:
    return (pcm * 10 ** (decibels / 20)).astype(np.float32)


def spoken(pcm: np.ndarray, seconds: float) -> int:
    """The step at which so much of the sound has been louder than a pause."""
    return int(np.flatnonzero(audio.logmel(pcm, audio.RAW).max(1) > 1)[round(seconds * 50)])


@pytest.mark.heavy
@settings(max_examples=15)
@given(seed=st.integers(0, 20), decibels=st.floats(-20, 6))
def test_a_gain_of_minus_20_to_6_db_leaves_the_features_after_0_4_s_of_speech(seed, decibels):
    a, b = audio.logmel(words(seed)), audio.logmel(gain(words(seed), decibels))
    settled = spoken(words(seed), 0.4)
    assert np.abs(a - b)[settled:].max() < 0.01
    assert np.abs(audio.logmel(gain(words(seed), -20), audio.RAW) - audio.logmel(words(seed), audio.RAW)).max() > 0.8


@pytest.mark.parametrize("decibels", [-20, -10])
def test_16_bits_are_enough_for_soft_speech(tmp_path, decibels):
    audio.write_wav(tmp_path / "a.wav", words(3))
    audio.write_wav(tmp_path / "b.wav", gain(words(3), decibels))
    a, b = (audio.audio_features(tmp_path / name).features for name in ("a.wav", "b.wav"))
    assert np.abs(a - b)[spoken(words(3), 0.4) :].max() < 0.05


@pytest.mark.parametrize("decibels", [-20, 0, 6])
def test_the_first_words_are_not_blown_up(decibels):
    """Before the level is known no step counts as louder than it would later, by 6 dB and what the sound is louder."""
    for seed in range(5):
        pcm = words(seed)
        known = audio.logmel(np.concatenate([pcm, pcm]))[len(pcm) // 320 :]
        first = audio.logmel(gain(pcm, decibels))
        assert (first - known).max() < (max(0, decibels) + 6) / 10 * TEN_DB


def test_a_breath_before_the_first_word_is_raised_by_less_than_half_of_what_it_could_be():
    breath = noise(0.4, -50) * np.hanning(6400)
    pcm = np.concatenate([np.zeros(8000), breath, np.zeros(4000), words(5)]).astype(np.float32)
    raised = audio.logmel(pcm)[:57] - audio.logmel(pcm, audio.RAW)[:57]
    assert raised.max() < 1.8 * TEN_DB


def test_the_level_looks_back_only():
    pcm = words(1)
    cut = 3 * 16000
    other = np.concatenate([pcm[:cut], gain(pcm[cut:], 12)])
    steps = (cut - 360) // 320  # the last step that sees no sample from `cut` on
    np.testing.assert_array_equal(audio.logmel(pcm)[:steps], audio.logmel(other)[:steps])


def test_silence_is_exactly_zero_before_between_and_after_words():
    silence = np.zeros(10 * 16000, np.float32)
    features = audio.logmel(np.concatenate([silence, words(0), silence]))
    assert not features[:499].any() and not features[-499:].any()


@pytest.mark.parametrize("decibels", [-30, -50, -70])
@pytest.mark.parametrize("gain_db", [-20, 0])
def test_steady_noise_alone_is_left_as_it_is(decibels, gain_db):
    pcm = gain(noise(12, decibels), gain_db)
    np.testing.assert_array_equal(audio.logmel(pcm), audio.logmel(pcm, audio.RAW))


@pytest.mark.parametrize("under", [20, 35, 50])
def test_a_long_pause_does_not_raise_its_noise(under):
    """Noise 20, 35 or 50 dB under speech is no louder after 30 s of pause than in its first second."""
    pcm = np.concatenate([words(2), np.zeros(30 * 16000, np.float32)])
    pcm = gain(pcm + noise(36, -14 - under), -15)
    features = audio.logmel(pcm)
    pause = features[310:]
    assert abs(pause[-50:].mean() - pause[:50].mean()) < 0.02


def test_one_bang_does_not_silence_the_words_after_it():
    pcm = gain(words(4), -10)
    bang = pcm.copy()
    at = 2 * 16000
    bang[at : at + 800] = np.clip(noise(0.05, 0, 5), -1, 1)
    a, b = audio.logmel(pcm), audio.logmel(bang)
    assert np.abs(a - b)[110:].max() < 0.1  # 4 dB
    assert b.max() < a.max() + TEN_DB


def test_the_level_follows_another_speaker_within_seconds():
    """20 dB softer from one phrase to the next: after 5 s of his speech he sounds as he does alone."""
    soft = gain(speech(9, 12.0)[0], -20)
    after = audio.logmel(np.concatenate([speech(8, 6.0)[0], soft]))[300:]
    assert np.abs(after - audio.logmel(soft))[350:].max() < 0.1


def test_a_speaker_40_db_softer_is_heard_after_10_seconds():
    soft = gain(speech(9, 15.0)[0], -40)
    both = np.concatenate([words(8), np.zeros(2 * 16000, np.float32), soft])
    assert audio.logmel(both)[-100:].max() > 1.5


@given(st.lists(st.floats(0, 1e3), max_size=300))
def test_the_gain_is_finite_and_bounded_for_any_powers(powers):
    state = level.Level()
    for power in powers:
        factor = state.gain(power)
        assert 0 < factor <= 10**4.6 * 1.001
        assert factor * power <= level.REFERENCE * level.TOWERS * 1.001 or factor <= 1


def test_another_extractor_is_refused():
    with pytest.raises(UserError, match="tkjax-logmel-9"):
        audio.LogMel("tkjax-logmel-9")
