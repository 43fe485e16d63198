"""Poses from feature tracks: simulated heads with known truth, and corners followed through moving pictures."""

import itertools
import json

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from preprocess import chunks
from preprocess.tracking import pose_checks, refine

N, F, CENTRE = 60, 1300.0, np.array([256.0, 256.0])


def runs(first, length, xy_px):
    """Tracks of consecutive frames from `first` on."""
    frames = [np.arange(a, a + m) for a, m in zip(first, length, strict=True)]
    return refine.Tracks(length, np.concatenate([np.zeros(0, int), *frames]), xy_px)


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
    return (
        runs(np.array(first), np.array(length), np.concatenate(xy)),
        rotation,
        translation,
        start,
        moved,
    )


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
    empty = runs(np.zeros(0, int), np.zeros(0, int), np.zeros((0, 2)))
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
    starts = tracks.start
    for begin, m in zip(starts, tracks.length, strict=True):
        xy = tracks.xy_px[begin : begin + m]
        assert ((xy > 38) & (xy < 122)).all()
        np.testing.assert_allclose((xy[-1] - xy[0]) / (m - 1), shift, atol=0.06)


def test_tracks_end_at_a_cut_and_begin_anew():
    texture = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (160, 160)).astype(np.uint8), (0, 0), 2.0)
    where = np.ones((160, 160), bool)
    tracks = refine.follow(iter([(texture, where)] * 30), 0.4, [13])
    first = tracks.frame[tracks.start]
    last = first + tracks.length
    assert len(last) and ((last <= 13) | (first >= 13)).all() and (first == 13).any()


def test_corners_are_carried_as_the_face_moves():
    rng = np.random.default_rng(0)
    before, xy = rng.normal(80, 20, (9, 2)), rng.normal(80, 40, (5, 2))
    turn = 1.2 * Rotation.from_euler("z", 20, degrees=True).as_matrix()[:2, :2]
    np.testing.assert_allclose(refine.carried(xy, before, before @ turn.T + [3, 4]), xy @ turn.T + [3, 4], rtol=1e-4)


@pytest.mark.parametrize("hz", [1.0, 3.0])
def test_corners_are_followed_through_fast_motion(hz):
    rng = np.random.default_rng(0)
    texture = cv2.GaussianBlur(rng.integers(0, 256, (260, 260)).astype(np.uint8), (0, 0), 2.0)
    path = 24 * np.sin(2 * np.pi * hz * np.arange(40) / 25)

    def frames():
        for x in path:
            picture = cv2.warpAffine(texture, np.float32([[1, 0, x - 50], [0, 1, -50]]), (160, 160))
            yield picture, np.ones((160, 160), bool)

    face = np.array([[60.0, 60], [100, 60], [80, 90]]) + np.stack([path, 0 * path], -1)[:, None]
    tracks = refine.follow(frames(), 0.4, face_px=face + rng.normal(0, 0.5, face.shape))
    starts = tracks.start
    assert len(starts) > 20 and np.median(tracks.length) > 15
    for begin, m in zip(starts, tracks.length, strict=True):
        x, at = tracks.xy_px[begin : begin + m, 0], path[tracks.frame[begin : begin + m]]
        np.testing.assert_allclose(x - x[0], at - at[0], atol=1.0)


def test_refinement_keeps_fast_motion():
    time = np.arange(N) / 25
    base = np.diag([1.0, -1.0, -1.0])
    rng = np.random.default_rng(0)
    swing = np.sin(2 * np.pi * 3 * time)
    rotation = Rotation.from_rotvec(np.stack([0.3 * swing, 0 * time, 0.1 * swing], 1)).as_matrix() @ base
    translation = np.stack([5 * swing, 0 * time, 85 + 0 * time], 1)
    xy, m = [], 20
    first = rng.integers(0, N - m + 1, 150)
    for a in first:
        direction = rng.normal(size=3)
        direction[2] = abs(direction[2])
        point = refine.HEAD_CENTRE_CM + direction / np.linalg.norm(direction) * refine.HEAD_RADII_CM
        cam = rotation[a : a + m] @ point + translation[a : a + m]
        xy.append(F * cam[:, :2] / cam[:, 2:] + CENTRE + rng.normal(scale=0.3, size=(m, 2)))
    tracks = runs(first, np.full(150, m), np.concatenate(xy))
    start = Rotation.from_rotvec(rng.normal(0, 0.01, (N, 3))).as_matrix() @ rotation
    found, at, _, _ = refine.adjust(tracks, start, translation, F, CENTRE, 1.0)

    def face(r, t):
        cam = np.einsum("nij,kj->nki", r, refine.ANCHORS_CM) + t[:, None]
        return F * cam[..., :2] / cam[..., 2:]

    off = np.linalg.norm(face(found, at) - face(rotation, translation), axis=-1)
    assert off.max() < 0.01 * F * 17.7 / 85  # a hundredth of the face


def test_a_frame_that_refinement_takes_off_its_landmarks_is_undone_and_a_lost_one_not_trusted(tmp_path):
    n, shape = 5, np.array([[-5.0, 0, 4], [5, 0, 4], [0, 6, 4], [0, -6, 4]])
    rotation, translation = np.tile(np.diag([1.0, -1, -1]), (n, 1, 1)), np.tile([0.0, 0, 80], (n, 1))
    cam = np.einsum("nij,pj->npi", rotation, shape) + translation[:, None]
    points = F * cam[..., :2] / cam[..., 2:] + CENTRE
    points[3] += np.random.default_rng(0).normal(0, 60, (4, 2))
    rows = {"landmarks_px": points.astype(np.float32), "error_px": np.float32([0, 0, 0, 50, np.nan])}
    chunks.write_chunk(tmp_path, 0, rows)
    text = json.dumps({"ids": [0, 1, 2, 3], "weights": [1, 1, 1, 1], "shape_cm": shape.tolist()})
    (tmp_path / pose_checks.SHAPE).write_text(text)
    landmarked = refine._Landmarked(tmp_path, n, F, tuple(CENTRE))
    shifts = np.zeros((n, 3))
    shifts[1], shifts[2] = (0.05, 0, 0), (2.0, 0, 0)
    kept = landmarked.worse(rotation, translation, np.zeros((n, 3)), shifts)
    assert kept.tolist() == [False, False, True, False, False]
    sure, judged = landmarked.judge(landmarked.error(rotation, translation), rotation, translation, ())
    assert sure.tolist() == [True, True, True, False, False] and judged[1].verdict == "fail"


def test_windows_cover_every_frame_and_overlap():
    for n in (1, 399, 400, 401, 721, 15000):
        spans = refine.windows(n)
        assert spans[0][0] == 0 and spans[-1][1] == n
        assert all(a < b <= n for a, b in spans)
        assert all(before[1] - after[0] >= min(refine.OVERLAP, 1) for before, after in itertools.pairwise(spans))


@pytest.mark.heavy
def test_corners_are_found_again_far_from_their_tracks_but_not_in_another_shot():
    texture = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (220, 220)).astype(np.uint8), (0, 0), 2.0)
    n, cut = 3 * refine.MAX_AGE, 2 * refine.MAX_AGE + 40
    path = np.stack([12 * np.sin(np.arange(n) / 9), 7 * np.cos(np.arange(n) / 23)], -1)

    where = np.zeros((160, 160), bool)
    where[12:-12, 12:-12] = True

    def frames():
        for x, y in path:
            yield cv2.warpAffine(texture, np.float32([[1, 0, x - 30], [0, 1, y - 30]]), (160, 160)), where

    face = np.array([[60.0, 60], [100, 60], [80, 90]]) + path[:, None]
    tracks = refine.follow(frames(), 0.4, [cut], face + np.random.default_rng(1).normal(0, 1.5, face.shape))
    far, off = 0, []
    for begin, m in zip(tracks.start, tracks.length, strict=True):
        frame, xy = tracks.frame[begin : begin + m], tracks.xy_px[begin : begin + m]
        assert (np.diff(frame) > 0).all() and (frame[0] < cut) == (frame[-1] < cut)
        far += frame[-1] - frame[0] > refine.MAX_AGE
        off.append(np.abs(xy - xy[0] - path[frame] + path[frame[0]]).max(1))
    assert np.mean(np.concatenate(off) < 0.7) > 0.995 and np.concatenate(off).max() < 3
    assert far > 0.5 * len(tracks.length)


@pytest.mark.parametrize("seed", [0, 1])
def test_what_is_found_again_holds_the_drift_of_chains(seed):
    """Short tracks whose corners slip a little downwards from frame to frame: the head seems to nod away."""
    rng = np.random.default_rng(seed)
    n, m, slip = 120, 20, 0.03
    rotation = np.tile(np.diag([1.0, -1.0, -1.0]), (n, 1, 1))
    translation = np.tile([0.0, 0, 85], (n, 1))
    chains, closed = ([], []), ([], [])
    for a in rng.integers(0, n - m + 1, 120):
        direction = rng.normal(size=3)
        direction[2] = abs(direction[2])
        point = refine.HEAD_CENTRE_CM + direction / np.linalg.norm(direction) * refine.HEAD_RADII_CM
        cam = rotation[0] @ point + translation[0]
        at = F * cam[:2] / cam[2:] + CENTRE
        chain = [(f, at + rng.normal(0, 0.1, 2) + [0, slip * (f - a - m // 2)]) for f in range(a, a + m)]
        again = [(f, at + rng.normal(0, 0.3, 2)) for f in range(0, n, refine.KEY_EVERY) if not a <= f < a + m]
        for (frames, xy), seen in ((chains, chain), (closed, sorted(chain + again, key=lambda s: s[0]))):
            frames.append([f for f, _ in seen])
            xy.append([p for _, p in seen])

    def error(frames, xy):
        lengths = np.array([len(f) for f in frames])
        tracks = refine.Tracks(lengths, np.concatenate(frames), np.concatenate(xy))
        return relative_error_deg(refine.adjust(tracks, rotation, translation, F, CENTRE, 1.0)[0], rotation)

    drifted, held = error(*chains), error(*closed)
    print(f"degrees RMS: chains {drifted:.3f}, with what was found again {held:.3f}")
    assert held < 0.35 * drifted
