"""Bundle adjustment against simulated landmarks whose truth is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from preprocess import pose

H = W = 512
Y_DOWN = np.diag([1.0, -1.0, -1.0])


def face_like(rng: np.random.Generator, n: int = 60) -> np.ndarray:
    """Points on the front of an ellipsoid, cm, z to the viewer, about as wide, high and deep as a face."""
    u, v = rng.uniform(-1.2, 1.2, n), rng.uniform(-0.9, 0.9, n)
    return np.stack([7.5 * np.sin(u), 9.5 * np.sin(v), 9 * np.cos(u) * np.cos(v) - 3], -1)


def simulate(seed=0, n=120, focal=1200.0, distance=85.0, swing=1.0, noise=0.5, shape_noise=0.3):
    """(points [n,P,2], canonical [P,3], true rotations [n,3,3], true translations [n,3])."""
    rng = np.random.default_rng(seed)
    canonical = face_like(rng)
    true = canonical + rng.normal(0, shape_noise, canonical.shape)
    t = np.arange(n) / 25
    phase = rng.uniform(0, 6, 6)
    angles = swing * np.stack(
        [8 * np.sin(1.3 * t + phase[0]), 15 * np.sin(0.9 * t + phase[1]), 5 * np.sin(1.7 * t + phase[2])], -1
    )
    rotation = Y_DOWN @ Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    centre = np.stack(
        [2 * np.sin(0.7 * t + phase[3]), 1.5 * np.sin(1.1 * t + phase[4]), distance + 2 * np.sin(0.5 * t + phase[5])],
        -1,
    )
    cam = np.einsum("nij,pj->npi", rotation, true) + centre[:, None]
    points = focal * cam[..., :2] / cam[..., 2:] + [W / 2, H / 2] + rng.normal(0, noise, (n, len(true), 2))
    return points.astype(np.float32), canonical, rotation, centre


def rotation_error(found: np.ndarray, true: np.ndarray) -> float:
    """RMS degrees after the best constant offset on the head's side."""
    relative = Rotation.from_matrix(true.transpose(0, 2, 1) @ found)
    return float(np.degrees(np.sqrt(((relative * relative.mean().inv()).magnitude() ** 2).mean())))


def fit(points, canonical, found=None, **kw):
    found = np.ones(len(points), bool) if found is None else found
    return pose.fit(points, found, canonical, np.ones(len(canonical)), H, W, **kw)


@pytest.mark.parametrize("seed", [0, 1])
def test_rotation_and_reprojection_reach_the_noise(seed):
    points, canonical, rotation, _ = simulate(seed)
    track = fit(points, canonical)
    assert rotation_error(track.rotation, rotation) < 0.5
    assert np.nanmean(track.error_px) < 0.5 * np.sqrt(2) * 1.3


def test_focal_is_found_where_motion_tells_and_kept_near_the_prior_where_not():
    for focal, distance in ((900.0, 60.0), (1800.0, 130.0)):
        points, canonical, _, centre = simulate(
            3, n=250, focal=focal, distance=distance, swing=2.5, noise=0.1, shape_noise=0.05
        )
        track = fit(points, canonical)
        assert abs(np.log(track.f_px / focal)) < 0.15
        assert abs(np.log(track.translation_cm[:, 2].mean() / centre[:, 2].mean())) < 0.15
    points, canonical, _, _ = simulate(4, focal=3000.0, distance=210.0, swing=0.05, noise=1.0)
    still = fit(points, canonical)
    assert abs(np.log(still.f_px / still.f_prior_px)) < 0.35


def test_frames_without_a_face_are_bridged_and_do_not_shift_the_others():
    points, canonical, rotation, _ = simulate(5)
    found = np.ones(len(points), bool)
    found[[0, 1, 40, 41, 42, 43, 90, 119]] = False
    points[~found] = 1e6  # must not be read
    track = fit(points, canonical, found)
    assert np.isnan(track.error_px[~found]).all() and np.isfinite(track.error_px[found]).all()
    assert rotation_error(track.rotation[found], rotation[found]) < 0.5
    bridged = Rotation.from_matrix(rotation[~found].transpose(0, 2, 1) @ track.rotation[~found]).magnitude()
    offset = Rotation.from_matrix(rotation[found].transpose(0, 2, 1) @ track.rotation[found]).magnitude().mean()
    assert np.degrees(bridged - offset).max() < 3.0


def test_outliers_hardly_matter():
    points, canonical, rotation, _ = simulate(6)
    rng = np.random.default_rng(0)
    bad = rng.random(points.shape[:2]) < 0.08
    points[bad] += rng.normal(0, 40, (int(bad.sum()), 2)).astype(np.float32)
    assert rotation_error(fit(points, canonical).rotation, rotation) < 0.8


def test_noise_is_smoothed_but_motion_below_the_cutoff_passes():
    points, canonical, rotation, _ = simulate(7, noise=2.0)
    smooth = fit(points, canonical).rotation
    import torch

    shape, weight = torch.from_numpy(canonical @ Y_DOWN), torch.ones(len(canonical)).double()
    centre = torch.tensor([256.0, 256.0]).double()
    # every frame on its own, as a yardstick of noise
    alone, _, _ = pose.weak_perspective(torch.from_numpy(points).double(), shape, weight, 1200.0, centre)

    def jitter(r):
        return np.degrees(Rotation.from_matrix(r[1:] @ r[:-1].transpose(0, 2, 1)).as_rotvec())

    assert np.abs(np.diff(jitter(smooth), axis=0)).mean() < 0.6 * np.abs(np.diff(jitter(alone.numpy()), axis=0)).mean()
    assert rotation_error(smooth, rotation) < 1.0


def test_same_input_gives_the_same_bits():
    points, canonical, _, _ = simulate(8, n=60)
    a, b = fit(points, canonical), fit(points, canonical)
    assert np.array_equal(a.rotation, b.rotation) and a.f_px == b.f_px


def test_too_few_faces_are_refused():
    points, canonical, _, _ = simulate(9, n=10)
    with pytest.raises(ValueError, match="too few"):
        fit(points, canonical, np.arange(10) == 3)


def test_cam_to_world_sees_the_points_where_the_track_put_them():
    points, canonical, _, _ = simulate(10, noise=0.0, shape_noise=0.0)
    track = fit(points, canonical)
    poses = pose.cam_to_world(track, 25.0, np.array([0.0, 0.0, 0.0]))
    world = track.shape_cm / 25.0
    p = np.einsum("nji,npj->npi", poses[:, :3, :3], world[None] - poses[:, None, :3, 3])
    assert (p[..., 2] < 0).all()  # in front of a camera that looks along -z
    px = np.stack([W / 2 + track.f_px * p[..., 0] / -p[..., 2], H / 2 - track.f_px * p[..., 1] / -p[..., 2]], -1)
    assert np.abs(px - points).max() < 1.0
    assert np.allclose(np.linalg.det(poses[:, :3, :3].astype(np.float64)), 1, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-1.5, 1.5), min_size=3, max_size=3))
def test_rotation_vectors_survive_the_round_trip(v):
    import torch

    v = torch.tensor(v, dtype=torch.float64)
    assert torch.allclose(pose.log_so3(pose.exp_so3(v)), v, atol=1e-7)


def test_derivatives_equal_finite_differences():
    import torch

    points, canonical, rotation, translation = simulate(11, n=2)
    args = [torch.from_numpy(x).double() for x in (points, canonical, rotation, translation)]
    centre = torch.tensor([256.0, 256.0]).double()
    _, by_pose, by_point, by_f = pose.linearise(*args, 1200.0, centre)
    eps = 1e-6

    def residual(p=None, shape=None, f=1200.0):
        r, t = args[2], args[3]
        if p is not None:
            r, t = pose.exp_so3(p[:3]) @ r, t + p[3:]
        return pose.linearise(args[0], args[1] if shape is None else shape, r, t, f, centre)[0]

    for k in range(6):
        step = torch.zeros(6, dtype=torch.float64)
        step[k] = eps
        assert torch.allclose((residual(step) - residual(-step)) / (2 * eps), by_pose[..., k], atol=1e-3)
    for k in range(3):
        step = torch.zeros(3, dtype=torch.float64)
        step[k] = eps
        slope = (residual(shape=args[1] + step) - residual(shape=args[1] - step)) / (2 * eps)
        assert torch.allclose(slope, by_point[..., k], atol=1e-3)
    up, down = residual(f=1200.0 * np.exp(eps)), residual(f=1200.0 * np.exp(-eps))
    assert torch.allclose((up - down) / (2 * eps), by_f, atol=1e-3)
