"""Lips and eyes read from colours: exact enough where the picture shows them, and not trusted where it does not."""

import numpy as np
import pytest

from tests.curves_test import face, speech
from tkjax.measure import curves, picture_reading

H, W, SCALE = 120, 120, 40.0
N, TRAIN = 160, np.arange(110)


def truth(seed: int):
    """Landmarks of a face that moves, speaks and blinks."""
    gap, lids = 0.3 * speech(N, seed), np.clip(1.5 * speech(N, seed + 50), 0, 1)
    points = np.stack([face(g, o, SCALE, 0.1 * np.sin(k / 9)) for k, (g, o) in enumerate(zip(gap, lids))])
    rigid = [33, 27]
    points[:, rigid] = np.stack([face(0, 0, SCALE, 0.1 * np.sin(k / 9))[[36, 42]].mean(0) for k in range(N)])[:, None]
    points[:, 33] += SCALE * 0.45 * np.stack([[-np.sin(0.1 * np.sin(k / 9)), 1.0] for k in range(N)])
    return points + 20 + 4 * np.sin(np.arange(N) / 7)[:, None, None]


def paint(points: np.ndarray, shade: float = 1.0) -> np.ndarray:
    """Skin with a dark mouth and white eyes as open as the landmarks say."""
    y, x = (np.mgrid[:H, :W] + 0.5).astype(float)
    image = np.full((H, W, 3), (200.0, 150.0, 120.0)) * shade
    for pairs, colour, wide in ((curves.MOUTH_PAIRS, (60, 20, 20), 0.2), (curves.EYE_PAIRS, (240, 240, 240), 0.16)):
        for part in (pairs[:2], pairs[2:]) if len(pairs) == 4 else (pairs,):
            at = np.concatenate([points[list(p)] for p in part])
            (cx, cy), high = at.mean(0), np.mean([np.linalg.norm(points[a] - points[b]) for a, b in part]) / 2
            soft = 1 / (
                1 + np.exp(np.clip((np.hypot((x - cx) / (wide * SCALE), (y - cy) / max(high, 0.05)) - 1) * 6, -40, 40))
            )
            image += soft[..., None] * (np.array(colour) * shade - image)
    return np.clip(image, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def clip():
    points = truth(0)
    return points, [paint(p) for p in points]


@pytest.mark.parametrize("kind", ["lips", "eyes"])
def test_a_reading_learnt_on_training_frames_follows_frames_that_it_has_not_seen(clip, kind):
    points, pictures = clip
    reader = picture_reading.Reader(kind, points, TRAIN, lambda i: pictures[i])
    held = np.arange(110, N)
    read = np.array([reader(int(i), pictures[i]) for i in held])
    true = curves.CURVES[kind](points[held])
    assert curves.pearson(true, read) > 0.95 and curves.sd_ratio(true, read) == pytest.approx(1, abs=0.2)
    assert reader.why == "" and reader.doubt(held, read) == ""
    still = np.array([reader(int(i), pictures[i]) for i in np.full(20, 120)])
    assert np.ptp(still) == 0
    assert "correlation of" in reader.doubt(held, np.random.default_rng(0).random(len(held)))


def test_a_mouth_that_is_drawn_half_as_open_reads_so(clip):
    points, pictures = clip
    reader = picture_reading.Reader("lips", points, TRAIN, lambda i: pictures[i])
    held, half = np.arange(110, N), points.copy()
    for a, b in curves.MOUTH_PAIRS:
        middle, apart = (points[:, a] + points[:, b]) / 2, (points[:, b] - points[:, a]) / 2
        half[:, a], half[:, b] = middle - 0.5 * apart, middle + 0.5 * apart
    true = np.array([reader(int(i), pictures[i]) for i in held])
    drawn = np.array([reader(int(i), paint(half[i])) for i in held])
    assert curves.sd_ratio(true, drawn) == pytest.approx(0.5, abs=0.15) and curves.pearson(true, drawn) > 0.9


def test_landmarks_that_do_not_move_teach_nothing():
    points = np.repeat(face(0.1, 0.5)[None], 40, 0)
    reader = picture_reading.Reader("lips", points, np.arange(40), lambda i: np.zeros((8, 8, 3), np.uint8))
    assert "do not move" in reader.why and np.isnan(reader(0, np.zeros((8, 8, 3), np.uint8)))
    assert reader.doubt(np.arange(3), np.zeros(3)) == reader.why


def test_colours_between_pixels_are_interpolated_and_the_border_goes_on():
    image = np.zeros((2, 3, 3), np.uint8)
    image[:, 1] = 100
    at = np.array([[1.5, 0.5], [1.0, 1.0], [-5.0, 9.0], [2.0, 0.5]])
    assert picture_reading.sample(image, at)[:, 0].tolist() == [100, 50, 0, 50]
