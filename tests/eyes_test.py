"""Blinks and gaze that are made of a clip's statistics: what is found, what is made, and that blocks do not matter."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tkjax.drive import eyes
from tkjax.formats.looks import LOOKS, SIDES, direction_of
from tkjax.signals import of_frames

FPS = 25.0
CURVE = np.array([0.05, 0.5, 1.0, 0.9, 0.6, 0.3, 0.1])


def recorded(seconds: float, per_minute: float, seed: int, left: float = 1.0, right: float = 1.0):
    """(eye_closed [n], expression [n,3], onsets) of somebody who blinks at random, never within half a second."""
    rng, n = np.random.default_rng(seed), int(seconds * FPS)
    closed, onsets, at = np.zeros(n), [], 0.0
    while True:
        at += 15 + rng.gamma(3.0, (60 * FPS / per_minute - 15) / 3)
        if at + len(CURVE) >= n:
            break
        onsets.append(int(at))
        closed[int(at) : int(at) + len(CURVE)] = rng.uniform(0.7, 1.0) * CURVE
    noisy = np.clip(0.02 + closed + 0.01 * rng.standard_normal(n), 0, 1)
    expression = np.stack([left * noisy, right * noisy, rng.uniform(0, 1, n)], 1)
    return noisy, expression, onsets


def clip_of(
    closed, expression, names=("eyeBlinkLeft", "eyeBlinkRight", "jawOpen"), wanted=("eye_closed", "expression")
):
    kept = {"expression": of_frames("expression", expression, FPS, names)}
    if closed is not None:
        kept["eye_closed"] = of_frames("eye_closed", closed, FPS)
    return eyes.Clip.of(kept, wanted, np.arange(len(expression)), FPS)


def made(clip, seed=0, learn=eyes.blinks):
    return {name: (columns, process) for name, columns, process in learn(clip, seed)}


@settings(max_examples=20, deadline=None)
@given(per_minute=st.floats(8, 35), seed=st.integers(0, 99), scale=st.floats(0.4, 1))
def test_blinks_that_were_made_are_found(per_minute, seed, scale):
    closed, _, onsets = recorded(60, per_minute, seed)
    found = eyes.find_blinks(scale * closed, [(0, len(closed))], FPS)
    assert len(found) == len(onsets)
    assert all(abs(a - (onset - 1)) <= 1 for (a, _), onset in zip(found, onsets, strict=True))


@settings(max_examples=15, deadline=None)
@given(per_minute=st.floats(8, 35), seed=st.integers(0, 99))
def test_rate_depth_and_variation_are_the_clips_within_its_uncertainty(per_minute, seed):
    closed, expression, onsets = recorded(90, per_minute, seed)
    clip = clip_of(closed, expression)
    _, process = made(clip, seed)["eye_closed"]
    n = 30 * 60 * 25
    values = process.frames(n)[:, 0]
    found = eyes.find_blinks(values.astype(float), [(0, n)], FPS)
    rate, clips = len(found) / 30, len(onsets) / 1.5
    assert abs(rate - clips) <= 2.5 * np.sqrt(len(onsets)) / 1.5
    own = np.array([closed[a:b].max() for a, b in eyes.find_blinks(closed, clip.runs, FPS)])
    depths = np.array([values[a:b].max() for a, b in found])
    assert abs(depths.mean() - own.mean()) <= 3 * own.std() / np.sqrt(len(own)) + 0.01
    assert depths.max() <= own.max() + 1e-6
    gaps = np.diff([a for a, _ in found])
    assert np.std(gaps) / np.mean(gaps) == pytest.approx(process.cv, abs=0.1)


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(1, 400), min_size=1, max_size=8), seed=st.integers(0, 2**31 - 1))
def test_blocks_of_any_size_give_the_same_numbers(cuts, seed):
    closed, expression, _ = recorded(60, 20, 3)
    rng = np.random.default_rng(1)
    look = np.repeat(rng.uniform(0, 0.6, (40, 8)), 38, 0)[: len(closed)]
    clip = clip_of(closed, np.concatenate([expression, look], 1), ("eyeBlinkLeft", "eyeBlinkRight", "jawOpen", *LOOKS))
    for learn in (eyes.blinks, eyes.gaze):
        for _, process in made(clip, seed, learn).values():
            carry, parts = process.begin(), []
            for n in cuts:
                carry, part = process.advance(carry, n)
                parts.append(part)
            np.testing.assert_array_equal(np.concatenate(parts), process.frames(sum(cuts)))


def test_the_seed_decides_and_both_eyes_of_all_signals_close_together():
    closed, expression, _ = recorded(90, 20, 5, right=0.8)
    clip = clip_of(closed, expression)
    first, again, other = made(clip, 1), made(clip, 1), made(clip, 2)
    for name in ("eye_closed", "expression"):
        a, b, c = (m[name][1].frames(1500) for m in (first, again, other))
        np.testing.assert_array_equal(a, b)
        assert np.abs(a - c).max() > 0.3
    columns, process = first["expression"]
    assert columns == [0, 1]
    blink, area = process.frames(1500), first["eye_closed"][1].frames(1500)[:, 0]
    np.testing.assert_allclose(blink[:, 0], area, atol=0.02)
    np.testing.assert_allclose(blink[:, 1], 0.8 * area, atol=0.02)


def test_coefficients_are_enough_where_eye_closed_does_not_move():
    closed, expression, onsets = recorded(60, 20, 7)
    process = made(clip_of(np.zeros_like(closed), expression))["expression"][1]
    assert len(process.curves) == len(onsets)


def test_a_clip_without_a_blink_leaves_the_eyes_open_and_says_so():
    noise = 0.05 + 0.02 * np.random.default_rng(0).standard_normal((500, 3))
    _, process = made(clip_of(noise[:, 0], noise))["expression"]
    assert "no blink" in process.about
    values = process.frames(400)
    np.testing.assert_allclose(values, np.tile(np.median(noise[:, :2], 0), (400, 1)), atol=1e-6)


def test_gaps_between_training_frames_are_no_intervals_and_cut_no_blink_in_two():
    closed, expression, onsets = recorded(60, 20, 9)
    numbers = np.arange(len(closed))
    numbers[700:] += 50
    kept = {"expression": of_frames("expression", expression, FPS, ("eyeBlinkLeft", "eyeBlinkRight", "c"))}
    clip = eyes.Clip.of(kept, ("expression",), numbers, FPS)
    assert clip.runs == ((0, 700), (700, len(closed))) and clip.seconds == pytest.approx(60)
    assert abs(len(made(clip)["expression"][1].curves) - len(onsets)) <= 1
    shuffled = np.random.default_rng(0).permutation(len(numbers))
    moved = {n: of_frames(n, s.values[shuffled], FPS, s.info.names) for n, s in kept.items()}
    same = eyes.Clip.of(moved, ("expression",), numbers[shuffled], FPS)
    np.testing.assert_array_equal(same.signals["expression"].values, clip.signals["expression"].values)


def test_nothing_is_made_for_signals_without_such_channels():
    expression = np.random.default_rng(0).uniform(0, 1, (100, 2))
    clip = clip_of(None, expression, ("jawOpen", "mouthPucker"), ("expression",))
    assert eyes.blinks(clip, 0) == [] and eyes.gaze(clip, 0) == []


# ---------------------------------------------------------------- gaze


def looking(seed: int, seconds: float = 90.0):
    """(expression of the 8 eyeLook coefficients [n,8], points [f,8]) of eyes that rest and jump."""
    rng, parts, points = np.random.default_rng(seed), [], []
    while sum(map(len, parts)) < seconds * FPS:
        point, n = rng.uniform(0.0, 0.7, 8), int(rng.uniform(15, 60))
        parts.append(point + 0.01 * rng.standard_normal((n, 8)))
        points.append(point)
    return np.concatenate(parts), np.array(points)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 50))
def test_gaze_has_the_places_and_durations_of_the_clip(seed):
    values, points = looking(seed)
    process = made(clip_of(None, values, LOOKS, ("expression",)), seed, eyes.gaze)["expression"][1]
    assert 0.7 * len(points) <= len(process.points) <= len(points)  # neighbours that hardly differ are one
    drawn = process.frames(20 * 60 * 25)
    error = 3 * values.std(0) / np.sqrt(len(points)) + 0.02
    assert (np.abs(drawn.mean(0) - values.mean(0)) <= error).all()
    assert (drawn.min(0) >= values.min(0) - 0.02).all() and (drawn.max(0) <= values.max(0) + 0.02).all()
    still = (np.abs(np.diff(drawn, axis=0)) < 1e-7).all(1)
    moves = np.flatnonzero(still[:-1] & ~still[1:])
    assert np.diff(moves).mean() == pytest.approx(process.lengths.mean(), rel=0.25)
    assert still.mean() > 0.8


def test_what_closed_eyes_seem_to_look_at_is_no_gaze():
    closed, expression, _ = recorded(60, 20, 3)
    look = np.zeros((len(closed), 8))
    look[:, LOOKS.index("eyeLookDownLeft")] = 0.1 + 0.8 * closed
    names = ("eyeBlinkLeft", "eyeBlinkRight", "jawOpen", *LOOKS)
    process = made(clip_of(closed, np.concatenate([expression, look], 1), names), 0, eyes.gaze)["expression"][1]
    assert process.frames(3000).max() < 0.3


@given(x=st.floats(-1, 1), y=st.floats(-1, 1))
def test_the_direction_of_coefficients(x, y):
    looks = {f"eyeLook{way}{side}": np.zeros(1) for way in ("In", "Out", "Up", "Down") for side in SIDES}
    looks["eyeLookOutLeft" if x > 0 else "eyeLookInLeft"] += abs(x)
    looks["eyeLookInRight" if x > 0 else "eyeLookOutRight"] += abs(x)
    for side in SIDES:
        looks[f"eyeLook{'Up' if y > 0 else 'Down'}{side}"] += abs(y)
    np.testing.assert_allclose(direction_of(looks, 1), [[x, y]], atol=1e-12)
