"""cameras.py against the numbers of the ER-NeRF dossier (section 11) and round trips."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tkjax import cameras

JSON_POSE = np.eye(4)
JSON_POSE[:3] = [
    [0.936293, -0.275096, -0.218351, -0.205162],
    [0.289629, 0.956425, 0.036957, 0.030517],
    [0.198669, -0.097843, 0.975170, 0.670729],
]


def rotation(euler):
    cx, cy, cz = np.cos(euler)
    sx, sy, sz = np.sin(euler)
    return (
        np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
        @ np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
        @ np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    )


def test_json_pose_becomes_the_originals_loader_pose():
    expected = [
        [0.289629, -0.956425, -0.036957, 0.122068],
        [0.198669, 0.097843, -0.975170, 2.682916],
        [0.936293, 0.275096, 0.218351, -0.820648],
    ]
    pose = cameras.to_ngp_pose(cameras.from_adnerf_json(JSON_POSE))
    np.testing.assert_allclose(pose[:3], expected, atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(pose[:3, 3]), 2.808273, atol=5e-6)


def test_corner_ray_has_the_dossiers_direction_in_marching_axes():
    pose = cameras.from_adnerf_json(JSON_POSE)[None]
    intrinsics = np.array([[1200.0, 1200.0, 225.0, 225.0]], np.float32)
    o, d = cameras.pixel_rays(pose, intrinsics, np.array([[[0.5, 0.5]]], np.float32))
    np.testing.assert_allclose(cameras.to_ngp_axes(d)[0, 0], [0.084869, -0.996360, -0.008005], atol=2e-6)
    np.testing.assert_allclose(cameras.to_ngp_axes(o)[0, 0], [0.122068, 2.682916, -0.820648], atol=4e-6)


@given(
    st.tuples(*[st.floats(-0.6, 0.6)] * 3),
    st.tuples(st.floats(-0.5, 0.5), st.floats(-0.5, 0.5), st.floats(2.5, 4)),
    st.integers(0, 2**31),
)
def test_projection_undoes_pixel_rays(euler, centre, seed):
    rng = np.random.default_rng(seed)
    pose = np.eye(4, dtype=np.float32)
    pose[:3, :3], pose[:3, 3] = rotation(euler), rotation(euler) @ np.array(centre)
    intrinsics = np.array([700.0, 650.0, 120.0, 140.0], np.float32)
    pixels = rng.uniform(0, 256, (5, 2)).astype(np.float32)
    o, d = cameras.pixel_rays(pose, intrinsics, pixels)
    t = rng.uniform(1, 5, (5, 1)).astype(np.float32)
    xyz = np.asarray(o + t * d)
    np.testing.assert_allclose(cameras.project_world(pose, intrinsics, xyz), pixels, atol=2e-2)
    z = cameras.camera_z(pose, d, t[:, 0])
    np.testing.assert_allclose(z, -((xyz - pose[:3, 3]) @ pose[:3, :3])[:, 2], rtol=1e-4)


# Rasterising (dossier dyntet §11, checks 5 and 6)

CAMERA = np.array([1200.0, 1200.0, 224.0, 224.0], np.float32)


def test_the_projection_is_the_dossiers():
    p = np.asarray(cameras.camera_to_clip(CAMERA, 448, 448))
    np.testing.assert_allclose(np.diag(p), [5.357143, -5.357143, -1.000200, 0], atol=1e-6)
    np.testing.assert_allclose([p[2, 3], p[3, 2]], [-0.200020, -1], atol=1e-6)
    assert np.count_nonzero(p) == 5
    assert 2 * np.arctan(1 / -p[1, 1]) == pytest.approx(0.369086, abs=1e-6)  # the vertical field of view
    clip = np.asarray(cameras.to_clip(np.array([[0.3, 0.5, -7.0]], np.float32), p))[0]
    np.testing.assert_allclose(clip, [1.607143, -2.678571, 6.801380, 7], atol=2e-6)
    assert clip[2] / clip[3] == pytest.approx(0.971626, abs=1e-6)
    pixel = (clip[:2] / clip[3] + 1) * 224
    np.testing.assert_allclose(pixel, [275.428571, 138.285714], atol=1e-4)


@given(st.lists(st.floats(-1, 1), min_size=6, max_size=6), st.integers(0, 2**31))
def test_clip_coordinates_are_the_pixels_and_depths_of_the_contract(pose, seed):
    rng = np.random.default_rng(seed)
    cam_to_world = np.eye(4, dtype=np.float32)
    cam_to_world[:3, :3] = rotation(np.array(pose[:3]))
    cam_to_world[:3, 3] = cam_to_world[:3, :3] @ [pose[3], pose[4], 4 + pose[5]]
    intrinsics = np.array([500.0, 520.0, 150.0, 90.0], np.float32)
    points = rng.uniform(-0.5, 0.5, (5, 3)).astype(np.float32)
    view = cameras.world_to_camera(cam_to_world[None], cameras.DECIMETRES)
    world_to_clip = cameras.camera_to_clip(intrinsics[None], 320, 200) @ view
    clip = np.asarray(cameras.to_clip(points[None] * np.float32(2.5), world_to_clip))[0]
    pixels = (clip[:, :2] / clip[:, 3:] + 1) / 2 * [320, 200]
    np.testing.assert_allclose(pixels, cameras.project_world(cam_to_world, intrinsics, points), atol=0.01)
    depth = -((points - cam_to_world[:3, 3]) @ cam_to_world[:3, 2])
    np.testing.assert_allclose(clip[:, 3], 2.5 * depth, rtol=1e-4)
    near_far = np.array([[0, 0, -0.1], [0, 0, -1000.0]], np.float32)
    ends = np.asarray(cameras.to_clip(near_far, cameras.camera_to_clip(intrinsics, 320, 200)))
    np.testing.assert_allclose(ends[:, 2] / ends[:, 3], [-1, 1], atol=1e-4)


def test_the_eye_is_the_cameras_centre_or_the_originals_slip():
    view = np.eye(4, dtype=np.float32)
    view[:3, :3] = cameras.euler_xyz(np.array([0.1, -0.2, -0.05], np.float32))
    expected = [[0.978842, 0.048983, -0.198669], [-0.069539, 0.992769, -0.097843], [0.192440, 0.109588, 0.975170]]
    np.testing.assert_allclose(view[:3, :3], expected, atol=1e-6)
    view[:3, 3] = [0.1, -0.2, -7]
    np.testing.assert_allclose(cameras.eye_position(view), [1.235289, 0.960774, 6.826491], atol=2e-6)
    np.testing.assert_allclose(cameras.eye_position(view, original=True), [-0.1, 0.2, 7])
    back = np.linalg.inv(view)
    np.testing.assert_allclose(cameras.world_to_camera(back.astype(np.float32)), view, atol=2e-6)


@pytest.mark.parametrize("near, far", [(0.0, 1.0), (2.0, 1.0)])
def test_planes_in_the_wrong_order_are_refused(near, far):
    with pytest.raises(ValueError, match="0 < near < far"):
        cameras.camera_to_clip(CAMERA, 448, 448, near, far)
