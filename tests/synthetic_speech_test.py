"""Synthetic speech: sound and mouth tell the same story."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tkjax.synthetic.mouth import inside_weight, mouth_opening
from tkjax.synthetic.speech import SAMPLE_RATE, speech


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not():
    a, tracks_a = speech(5, 3.0)
    b, tracks_b = speech(5, 3.0)
    c, _ = speech(6, 3.0)
    assert np.array_equal(a, b) and all(np.array_equal(tracks_a[k], tracks_b[k]) for k in tracks_a)
    assert not np.array_equal(a, c)


@given(seed=st.integers(0, 2**31 - 1), seconds=st.floats(0.1, 6.0))
def test_lengths_and_ranges(seed, seconds):
    pcm, tracks = speech(seed, seconds)
    assert pcm.dtype == np.float32 and pcm.shape == (round(seconds * 16000),)
    assert np.abs(pcm).max() <= 1.0 and np.isfinite(pcm).all()
    for track in tracks.values():
        assert track.dtype == np.float32 and track.shape == (max(round(seconds * 25), 1),)
        assert 0.0 <= track.min() and track.max() <= 1.0
    assert (tracks["mouthClose"] <= tracks["jawOpen"] + 1e-6).all()  # lips cannot do more than meet


@pytest.mark.heavy
@pytest.mark.parametrize("seed", range(6))
def test_the_louder_the_more_open(seed):
    _, tracks = speech(seed, 20.0)
    aperture = tracks["jawOpen"] - tracks["mouthClose"]
    assert np.corrcoef(aperture, tracks["envelope"])[0, 1] > 0.7


@pytest.mark.parametrize("seed", range(4))
def test_pauses_are_silent_with_closed_lips_and_speech_opens_them(seed):
    pcm, tracks = speech(seed, 20.0)
    aperture = tracks["jawOpen"] - tracks["mouthClose"]
    silent = tracks["envelope"] < 0.01
    assert 0.05 < silent.mean() < 0.6
    # silence is a pause or the hold of a stop: the mouth is never wide open in it
    assert np.percentile(aperture[silent], 90) < 0.3
    inside_pause = np.convolve(silent, np.ones(7), "same") == 7
    assert inside_pause.any() and aperture[inside_pause].max() < 0.02
    assert aperture.max() > 0.4
    assert np.abs(pcm[: int(0.05 * SAMPLE_RATE)]).max() < 1e-3  # begins in silence


@pytest.mark.parametrize("seed", range(4))
def test_lips_meet_completely_in_a_closure(seed):
    _, tracks = speech(seed, 20.0)
    shut = tracks["closure"] > 0.99
    runs = np.diff(np.concatenate([[0], shut.astype(int), [0]]))
    assert (runs == 1).sum() >= 8  # bilabials and pauses
    assert np.abs(tracks["jawOpen"] - tracks["mouthClose"])[shut].max() < 0.01


def test_vowels_have_formants():
    """Energy below 4 kHz dominates voiced speech, and it is harmonic, not noise."""
    pcm, tracks = speech(3, 10.0)
    loud = np.argmax(tracks["envelope"][5:-5]) + 5
    piece = pcm[loud * 640 - 512 : loud * 640 + 512] * np.hanning(1024)
    spectrum = np.abs(np.fft.rfft(piece)) ** 2
    freq = np.fft.rfftfreq(1024, 1 / SAMPLE_RATE)
    assert spectrum[freq < 4000].sum() > 0.9 * spectrum.sum()
    autocorrelation = np.fft.irfft(np.abs(np.fft.rfft(piece, 2048)) ** 2)
    lags = slice(SAMPLE_RATE // 300, SAMPLE_RATE // 80)
    assert autocorrelation[lags].max() > 0.5 * autocorrelation[0]


def test_bad_length_is_refused_by_name():
    for seconds in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="seconds"):
            speech(0, seconds)


# ---- the measure of the mouth


def test_opening_counts_cavity_and_teeth_but_not_skin_or_lips():
    skin, lips, cavity, teeth = (224, 178, 152), (182, 96, 92), (40, 14, 14), (226, 221, 208)
    picture = np.zeros((20, 20, 3), np.uint8)
    for colour, expected in ((skin, 0.0), (lips, 0.0), (cavity, 1.0), (teeth, 1.0)):
        picture[:] = colour
        assert mouth_opening(picture, (2, 3, 12, 15)) == pytest.approx(expected, abs=0.02)


@given(rows=st.integers(0, 16), x0=st.integers(-4, 4), y0=st.integers(-4, 4))
def test_opening_is_the_painted_share_of_the_box(rows, x0, y0):
    picture = np.full((32, 32, 3), (224, 178, 152), np.uint8)
    picture[8 + y0 : 8 + y0 + rows, 8 + x0 : 24 + x0] = (30, 10, 10)
    box = (8 + x0, 8 + y0, 24 + x0, 24 + y0)
    assert mouth_opening(picture, box) == pytest.approx(rows / 16, abs=0.01)
    weights = inside_weight(picture)
    assert weights.min() >= 0 and weights.max() <= 1


def test_a_box_outside_the_picture_is_refused():
    with pytest.raises(ValueError, match="lips_box"):
        mouth_opening(np.zeros((8, 8, 3), np.uint8), (20, 20, 30, 30))
