"""The measures of response: exact where a curve is known, silent where nothing can be said."""

import numpy as np
import pytest

from tkjax.measure import curves


def speech(n: int = 200, seed: int = 0) -> np.ndarray:
    """A curve with closures: smoothed noise between 0 and 1."""
    x = np.convolve(np.random.default_rng(seed).standard_normal(n + 20), np.hanning(9), "same")[10:-10]
    return np.clip(0.4 + 0.2 * x, 0, 1)


def measured(true, rendered, kind="lips"):
    return curves.compare(kind, true, rendered, true)


def test_a_curve_against_itself_is_perfect():
    values, why = measured(speech(), speech())
    assert values["sd_ratio"] == pytest.approx(1) and values["correlation"] == pytest.approx(1)
    assert values["concordance"] == pytest.approx(1) and values["delay_frames"] == pytest.approx(0, abs=1e-6)
    assert values["closures_closed"] == 1 and why == {} and set(values) == set(curves.KEYS)


@pytest.mark.parametrize("scale", [0.2, 0.5, 1.0, 1.7])
def test_the_deviation_scales_and_the_correlation_does_not(scale):
    true = speech()
    values, _ = measured(true, true.mean() + scale * (true - true.mean()))
    assert values["sd_ratio"] == pytest.approx(scale) and values["correlation"] == pytest.approx(1)
    assert values["concordance"] == pytest.approx(2 * scale / (1 + scale**2))


def test_an_offset_lowers_the_concordance_alone():
    true = speech()
    values, _ = measured(true, true + 2 * true.std())
    assert values["correlation"] == pytest.approx(1) and values["concordance"] == pytest.approx(2 / 6)


@pytest.mark.parametrize("late", [-6.0, -2.5, -0.4, 0.0, 1.3, 4.0])
def test_a_shifted_curve_has_that_delay(late):
    t = np.arange(240)
    curve = lambda t: sum(np.sin(t * w + p) for w, p in ((0.21, 0.3), (0.37, 1.0), (0.83, 2.0), (1.1, 0.1)))  # noqa: E731
    found, why = curves.delay(curve(t), curve(t - late))
    assert why == "" and found == pytest.approx(late, abs=0.1)


def test_a_delay_that_nothing_shows_is_not_given():
    noise = np.random.default_rng(1).standard_normal((2, 150))
    assert "agree at no lag" in curves.delay(*noise)[1]
    t = np.arange(200)
    assert "end of the search" in curves.delay(np.sin(t / 15), np.sin((t - 14) / 15))[1]
    thinned = np.where(t % 30 == 0, np.sin(t), np.nan)
    assert "follow one another" in curves.delay(thinned, thinned)[1]


def test_a_mouth_that_never_shuts_closes_nothing_and_one_that_is_two_frames_late_closes_all():
    true = np.where(np.arange(120) % 20 < 3, 0.0, 1.0)
    assert curves.closures(true, 0.5 + 0.5 * true, (0.0, 1.0)) == (6, 0)
    assert curves.closures(true, np.roll(true, 2), (0.0, 1.0)) == (6, 6)
    assert curves.closures(true, np.roll(true, 4), (0.0, 1.0)) == (6, 0)
    assert curves.closures(true, np.zeros(120), (0.0, 1.0)) == (6, 0)  # never open: nothing closes
    mumbling = np.where(np.arange(120) < 63, true, 0.0)  # opens up to the fourth closure, and stays shut from it on
    assert curves.closures(true, mumbling, (0.0, 1.0)) == (6, 4)
    long = np.where((np.arange(60) > 20) & (np.arange(60) < 40), 0.0, 1.0)  # a pause: shut at its edges is not shut
    assert curves.closures(long, np.where(np.arange(60) == 21, 0.0, 1.0), (0.0, 1.0)) == (1, 0)
    assert curves.closures(long, np.roll(long, 5), (0.0, 1.0)) == (1, 1)
    half = np.where(np.arange(120) < 60, true, 1.0)
    assert curves.closures(true, half, (0.0, 1.0)) == (6, 3)


def test_frames_that_were_not_measured_count_for_nothing():
    true = speech()
    hole = np.where((np.arange(200) > 50) & (np.arange(200) < 70), np.nan, true)
    assert measured(hole, true)[0]["sd_ratio"] == pytest.approx(1)
    assert measured(true, hole)[0]["correlation"] == pytest.approx(1)
    assert curves.closures(np.zeros(50), np.full(50, np.nan), (0.0, 1.0)) == (0, 0)


@pytest.mark.parametrize(("kind", "word"), [("lips", "speech"), ("eyes", "blinks")])
def test_a_held_out_part_that_is_too_still_gives_a_sentence_and_no_number(kind, word):
    true = speech()
    quiet = 0.4 + 0.1 * (true - true.mean())
    values, why = curves.compare(kind, quiet, quiet, true)
    assert set(values.values()) == {None} and set(why) == set(curves.KEYS)
    assert all("too still" in r and word in r and "--split=blocks" in r for r in why.values())
    assert "at least 25" in curves.compare(kind, true[:10], true[:10], true)[1]["sd_ratio"]
    whole = curves.compare(kind, 0.01 * true, 0.01 * true, 0.01 * true)  # a clip in which nobody speaks or blinks
    assert set(whole[0].values()) == {None} and f"a clip with {word}" in whole[1]["correlation"]
    assert curves.compare(kind, np.ones(99), true[:99], np.ones(99))[0] == dict.fromkeys(curves.KEYS)


def test_a_still_picture_follows_nothing():
    values, why = measured(speech(), np.full(200, 0.5))
    assert values["sd_ratio"] == 0 and values["correlation"] == 0 and values["closures_closed"] == 0
    assert values["delay_frames"] is None and "no lag" in why["delay_frames"]


def face(gap: float, lids: float, scale: float = 100.0, turn: float = 0.0) -> np.ndarray:
    """68 points with this lip gap over the eyes' distance, and these lids over the eyes' width."""
    p = np.zeros((68, 2))
    for first, x in ((36, -0.5), (42, 0.5)):
        p[first : first + 6] = [(x - 0.2, 0), (x - 0.1, 0), (x + 0.1, 0), (x + 0.2, 0), (x + 0.1, 0), (x - 0.1, 0)]
        p[first + 1 : first + 3, 1], p[first + 4 : first + 6, 1] = -0.2 * lids, 0.2 * lids
    for k, (a, b) in enumerate(curves.MOUTH_PAIRS):
        p[a], p[b] = (0.1 * k - 0.1, 1.0 - gap / 2), (0.1 * k - 0.1, 1.0 + gap / 2)
    c, s = np.cos(turn), np.sin(turn)
    return scale * p @ np.array([[c, s], [-s, c]]) + 37.0


@pytest.mark.parametrize(("scale", "turn"), [(20.0, 0.0), (300.0, 0.4), (100.0, -1.0)])
def test_the_landmarks_openings_do_not_depend_on_size_place_and_roll(scale, turn):
    for gap, lids in ((0.0, 0.0), (0.3, 0.5), (0.1, 1.0)):
        points = face(gap, lids, scale, turn)[None]
        assert curves.lip_gap(points)[0] == pytest.approx(gap) and curves.eye_opening(points)[0] == pytest.approx(lids)
