"""Bundle adjustment against simulated landmarks whose truth is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from preprocess.tracking import pose, pose_checks

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


SWAY, BOUNCE, NOD = (5.0, 0, 0), (0, 4.0, 0), (0, 0, 18.0)  # cm, cm, degrees


def moving(kind, hz, n=150, noise=0.5, when=None, seed=0):
    """(points, canonical, true points) of a head that sways, bounces or nods about a drifting pose."""
    rng = np.random.default_rng(seed)
    canonical = face_like(rng)
    t = np.arange(n) / 25
    swing = np.sin(2 * np.pi * hz * t + 0.3) * (np.ones(n) if when is None else when)
    angles = np.stack([kind[2] * swing, 8 * np.sin(0.7 * t), 3 * np.sin(0.4 * t)], -1)
    rotation = Y_DOWN @ Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    centre = np.stack([kind[0] * swing, kind[1] * swing, 85 + np.sin(0.5 * t)], -1)
    cam = np.einsum("nij,pj->npi", rotation, canonical) + centre[:, None]
    true = 1200 * cam[..., :2] / cam[..., 2:] + [W / 2, H / 2]
    return (true + rng.normal(0, noise, true.shape)).astype(np.float32), canonical, true


def distance_of_face(track, true):
    """Of each frame: how far its face lies from the true one, in heights of the face (RMS over its points)."""
    px = np.einsum("nij,pj->npi", track.rotation, track.shape_cm) + track.translation_cm[:, None]
    px = track.f_px * px[..., :2] / px[..., 2:] + [W / 2, H / 2]
    heights = pose_checks.face_heights(track.translation_cm, track.f_px)
    return np.sqrt(((px - true) ** 2).sum(-1).mean(-1)) / heights


@pytest.mark.heavy
@pytest.mark.parametrize("kind", [SWAY, BOUNCE, NOD], ids=["sway", "bounce", "nod"])
@pytest.mark.parametrize("hz", [0.5, 1.0, 2.0, 3.0])
def test_a_head_that_moves_at_up_to_3_hz_is_followed_within_a_hundredth_of_the_face(kind, hz):
    points, canonical, true = moving(kind, hz)
    track = fit(points, canonical)
    assert distance_of_face(track, true).max() < 0.01
    assert np.median(distance_of_face(track, true)) < 0.003
    assert not pose_checks.lost(track.error_px, pose_checks.face_heights(track.translation_cm, track.f_px)).any()


def test_a_short_fast_nod_in_a_calm_clip_is_followed_and_the_calm_part_stays_smooth():
    when = (np.arange(500) // 50 == 5).astype(float)
    points, canonical, true = moving(NOD, 3.0, n=500, noise=1.5, when=when)
    track = fit(points, canonical)
    assert distance_of_face(track, true).max() < 0.015
    calm, lively = track.bandwidth_hz[50:150], track.bandwidth_hz[255:295]
    assert np.median(calm) < 5.0 and lively.max(1).min() > 8.0


def test_the_same_head_with_more_noise_is_smoothed_more():
    quiet, loud = (fit(*moving(SWAY, 1.0, noise=n)[:2]).bandwidth_hz for n in (0.1, 4.0))
    assert np.median(loud) < np.median(quiet) - 1


def test_a_covered_half_of_a_moving_face_does_not_take_the_pose_along():
    points, canonical, true = moving(SWAY, 2.0)
    right = canonical[:, 0] > 2
    assert 0.2 < right.mean() < 0.45
    rng = np.random.default_rng(2)
    points[60:90, right] += rng.normal(0, 25, (int(right.sum()), 2)).astype(np.float32)  # guessed, alike in all frames
    track = fit(points, canonical)
    seen = np.r_[0:58, 92:150]
    assert distance_of_face(track, true)[seen].max() < 0.01
    assert np.median(distance_of_face(track, true)[60:90]) < 0.01


def test_lost_frames_in_fast_motion_are_bridged_and_their_neighbours_stay():
    points, canonical, true = moving(SWAY, 2.0)
    found = np.ones(150, bool)
    found[[40, 41, 90]] = False
    points[~found] = 1e6
    track = fit(points, canonical, found)
    assert distance_of_face(track, true)[found].max() < 0.01
    assert distance_of_face(track, true)[~found].max() < 0.08
    assert np.isnan(track.error_px[~found]).all()


def test_a_frame_that_stands_alone_is_bridged_and_known_as_lost():
    points, canonical, true = moving(NOD, 2.0)
    points[75] += np.float32([25, -15])
    track = fit(points, canonical)
    assert distance_of_face(track, true).max() < 0.02
    bad = pose_checks.lost(track.error_px, pose_checks.face_heights(track.translation_cm, track.f_px))
    assert np.flatnonzero(bad).tolist() == [75]


def test_a_jump_that_stays_is_no_frame_that_stands_alone():
    points, canonical, true = moving(BOUNCE, 0.5)
    points[80:] += np.float32([60, -30])
    true[80:] += [60, -30]
    assert distance_of_face(fit(points, canonical, cuts=np.array([80])), true).max() < 0.01


def test_nothing_is_smoothed_across_a_cut():
    points, canonical, true = moving(BOUNCE, 0.5, noise=1.0)
    points[80:] += np.float32([40, -20])
    true[80:] += [40, -20]
    across = distance_of_face(fit(points, canonical), true)
    within = distance_of_face(fit(points, canonical, cuts=np.array([80])), true)
    assert within[76:84].max() < 0.01 and within[76:84].mean() < across[76:84].mean()


@pytest.mark.heavy
def test_frames_whose_landmarks_fit_no_face_lose_their_confidence_and_many_refuse_the_clip():
    points, canonical, true = moving(SWAY, 1.0, n=100)
    rng = np.random.default_rng(1)
    for first, last, verdict in ((50, 52, "good"), (50, 57, "warn"), (40, 70, "fail")):
        torn = points.copy()
        torn[first:last] += rng.normal(0, 40, torn[first:last].shape).astype(np.float32)
        track = fit(torn, canonical)
        heights = pose_checks.face_heights(track.translation_cm, track.f_px)
        lost = np.flatnonzero(pose_checks.lost(track.error_px, heights))
        assert set(lost) == set(range(first, last))
        assert distance_of_face(track, true)[:first].max() < 0.01
        assert verdict == "fail" or distance_of_face(track, true).max() < 0.08  # bridged
        judged = pose_checks.judge_poses(track.error_px, heights, np.ones(100, bool), torn, track.rotation)
        assert [c.verdict for c in judged] == ["good", verdict]
        assert verdict == "good" or (f"{last - first} of 100" in judged[1].message and "cause" in judged[1].message)


@pytest.mark.parametrize("cause", ["a cut", "turned away", "fast motion", "covered"])
def test_the_likely_cause_is_named(cause):
    n = 60
    points = np.zeros((n, 4, 2)) + 100.0
    rotation = np.tile(np.eye(3), (n, 1, 1))
    found, cuts, heights = np.ones(n, bool), [], np.full(n, 100.0)
    bad = [30, 31]
    if cause == "a cut":
        cuts = [31]
    elif cause == "turned away":
        rotation[28:34] = Rotation.from_euler("y", 60, degrees=True).as_matrix()
    elif cause == "fast motion":
        points[29:33] += np.arange(4)[:, None, None] * 12.0
    else:
        found[32:36] = False
    assert cause in pose_checks.causes(bad, points, found, rotation, heights, cuts)


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
