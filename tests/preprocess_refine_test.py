"""Poses from feature tracks: simulated heads with known truth, and corners followed through moving pictures."""

import itertools

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from preprocess import refine

N, F, CENTRE = 60, 1300.0, np.array([256.0, 256.0])


def simulated(seed: int, noise_px: float, outliers: float):
    """True poses, tracks of points on a lumpy head, and landmark-like poses that are off by slow rotations."""
    rng = np.random.default_rng(seed)
    time = np.arange(N) / 25
    turns = np.stack([0.12 * np.sin(1.3 * time), 0.2 * np.sin(0.9 * time + 1), 0.05 * np.cos(2 * time)], 1)
    base = np.diag([1.0, -1.0, -1.0])
    rotation = Rotation.from_rotvec(turns).as_matrix() @ base
    translation = np.stack([np.sin(time), 0.5 * np.cos(time), 85 + 0.5 * np.sin(time)], 1)
    first, length, xy = [], [], []
    for _ in range(150):
        m = int(rng.integers(20, N + 1))
        a = int(rng.integers(0, N - m + 1))
        direction = rng.normal(size=3)
        direction[2] = abs(direction[2])
        point = refine.HEAD_CENTRE_CM + direction / np.linalg.norm(direction) * refine.HEAD_RADII_CM
        point = point + rng.normal(scale=1.0, size=3)
        cam = rotation[a : a + m] @ point + translation[a : a + m]
        seen = F * cam[:, :2] / cam[:, 2:] + CENTRE + rng.normal(scale=noise_px, size=(m, 2))
        if rng.random() < outliers:
            seen += np.cumsum(rng.normal(scale=1.5, size=(m, 2)), 0)
        first.append(a)
        length.append(m)
        xy.append(seen)
    wrong = np.stack([0.02 * np.sin(2.2 * time), 0.03 * np.cos(1.7 * time), 0.005 * np.sin(3 * time)], 1)
    start = Rotation.from_rotvec(wrong).as_matrix() @ rotation
    pivot = np.array([0.0, 0.0, 5.0])  # the face stays in place
    moved = translation + np.einsum("nij,j->ni", rotation - start, pivot)
    return refine.Tracks(np.array(first), np.array(length), np.concatenate(xy)), rotation, translation, start, moved


def relative_error_deg(found, true):
    """RMS angle after one constant rotation."""
    off = found @ np.swapaxes(true, 1, 2)
    mean = Rotation.from_matrix(off).mean().as_matrix()
    return np.degrees(np.sqrt((Rotation.from_matrix(off @ mean.T).magnitude() ** 2).mean()))


@pytest.mark.parametrize(("noise_px", "outliers"), [(0.0, 0.0), (0.3, 0.2)])
def test_tracks_take_the_landmarks_error_out_of_the_rotation(noise_px, outliers):
    tracks, rotation, _translation, start, moved = simulated(3, noise_px, outliers)
    found, _, before, after = refine.adjust(tracks, start, moved, F, CENTRE, 1.0)
    assert relative_error_deg(start, rotation) > 1.2
    assert relative_error_deg(found, rotation) < 0.45
    assert after < 0.35 * before


def test_true_poses_stay_as_they_are():
    tracks, rotation, translation, _, _ = simulated(4, 0.1, 0.0)
    found, at, _, after = refine.adjust(tracks, rotation, translation, F, CENTRE, 1.0)
    assert relative_error_deg(found, rotation) < 0.2 and np.abs(at - translation).max() < 0.6 and after < 0.2


def test_without_tracks_nothing_changes():
    _, rotation, translation, _, _ = simulated(5, 0.0, 0.0)
    empty = refine.Tracks(np.zeros(0, int), np.zeros(0, int), np.zeros((0, 2)))
    found, at, before, after = refine.adjust(empty, rotation, translation, F, CENTRE, 1.0)
    np.testing.assert_array_equal(found, rotation)
    np.testing.assert_array_equal(at, translation)
    assert np.isnan(before) and np.isnan(after)


def test_corners_are_followed_inside_the_mask_only():
    rng = np.random.default_rng(0)
    texture = cv2.GaussianBlur(rng.integers(0, 256, (220, 220)).astype(np.uint8), (0, 0), 2.0)
    shift = np.array([0.7, -0.4])
    where = np.zeros((160, 160), bool)
    where[40:120, 40:120] = True

    def frames():
        for i in range(20):
            move = np.float32([[1, 0, i * shift[0] - 30], [0, 1, i * shift[1] - 30]])
            yield cv2.warpAffine(texture, move, (160, 160)), where

    tracks = refine.follow(frames(), 0.4)
    assert len(tracks.length) > 10 and tracks.length.max() > 10
    starts = np.cumsum(tracks.length) - tracks.length
    for begin, m in zip(starts, tracks.length, strict=True):
        xy = tracks.xy_px[begin : begin + m]
        assert ((xy > 38) & (xy < 122)).all()
        np.testing.assert_allclose((xy[-1] - xy[0]) / (m - 1), shift, atol=0.06)


def test_windows_cover_every_frame_and_overlap():
    for n in (1, 399, 400, 401, 721, 15000):
        spans = refine.windows(n)
        assert spans[0][0] == 0 and spans[-1][1] == n
        assert all(a < b <= n for a, b in spans)
        assert all(before[1] - after[0] >= min(refine.OVERLAP, 1) for before, after in itertools.pairwise(spans))
