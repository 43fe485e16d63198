"""cameras.py against the numbers of the ER-NeRF dossier (section 11) and round trips."""

import numpy as np
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
