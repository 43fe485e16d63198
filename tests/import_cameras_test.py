"""Cameras and poses of the older projects are the same cameras here."""

import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocess.importers import folder_layout, track_columns
from preprocess.importers.folder_layout import Notes
from tkjax import cameras
from tkjax.errors import UserError
from tkjax.formats import transforms

angle, shift = st.floats(-0.6, 0.6), st.floats(-0.5, 0.5)


def tracker_matrix(euler, trans):
    """(R, t) and transform_matrix by the dossier's formulas, independent of the importer."""
    (ca, cb, cc), (sa, sb, sc) = np.cos(euler), np.sin(euler)
    r = np.array([[1, 0, 0], [0, ca, -sa], [0, sa, ca]]) @ np.array([[cb, 0, sb], [0, 1, 0], [-sb, 0, cb]])
    r = r @ np.array([[cc, sc, 0], [-sc, cc, 0], [0, 0, 1]])
    m = np.eye(4)
    m[:3, :3], m[:3, 3] = r.T, -r.T @ (np.array(trans) / 10)
    return r, m


@given(
    st.tuples(angle, angle, angle), st.tuples(shift, shift, st.floats(-9, -6)), st.floats(600, 1400),
    st.tuples(st.floats(200, 300), st.floats(180, 260)), st.integers(0, 2**31),
)  # fmt: skip
def test_points_project_as_the_trackers_arithmetic_says(euler, trans, focal, centre, seed):
    r, matrix = tracker_matrix(euler, trans)
    x = np.random.default_rng(seed).uniform(-1, 1, (68, 3))  # units of 10 cm
    c = x @ r.T + trans
    original = np.stack([-focal * c[:, 0] / c[:, 2] + centre[0], focal * c[:, 1] / c[:, 2] + centre[1]], 1)
    head = {"focal_len": focal, "cx": centre[0], "cy": centre[1]}
    pose = transforms.to_contract(matrix).astype(np.float32)  # as it is stored
    np.testing.assert_allclose(pose, cameras.from_adnerf_json(matrix), atol=1e-6)
    for half in (0.0, 0.5):
        k = folder_layout.intrinsics(head, (450, 450), half, Notes())
        ours = cameras.project_world(pose, np.array([k["fx"], k["fy"], k["cx"], k["cy"]]), x / 10 * 4)
        np.testing.assert_allclose(ours, original + half, atol=1e-3)
    np.testing.assert_allclose(track_columns.tracker_poses([euler], [trans])[0], pose, atol=1e-5)


@given(
    st.tuples(angle, angle, angle), st.tuples(shift, shift, st.floats(-9, -6)), st.integers(0, 449), st.integers(0, 449)
)
def test_rays_of_both_conventions_go_through_the_pixel(euler, trans, i, j):
    f, cx, cy = 1200.0, 224.5, 226.0
    _, p = tracker_matrix(euler, trans)
    pose = transforms.to_contract(p)
    # RAD-NeRF and ER-NeRF: loader pose (er-nerf.md §2), ray through i + 0.5, world (y, z, x)
    loader = np.array([[*(p[row, :3] * [1, -1, -1]), 4 * p[row, 3]] for row in (1, 2, 0)])
    d = loader[:, :3] @ [(i + 0.5 - cx) / f, (j + 0.5 - cy) / f, 1]
    point = (loader[:, 3] + 3.1 * d)[[2, 0, 1]]
    k = folder_layout.intrinsics({"focal_len": f, "cx": cx, "cy": cy}, (450, 450), 0.0, Notes())
    ours = cameras.project_world(pose, np.array(list(k.values())), point[None])[0]
    np.testing.assert_allclose(ours, [i + 0.5, j + 0.5], atol=1e-6)
    # AD-NeRF: ray through i, metres (ad-nerf.md §2.7); the contract's centre of pixel i is i + 0.5
    point = (p[:3, 3] + 0.7 * (p[:3, :3] @ [(i - cx) / f, -(j - cy) / f, -1])) * 4
    k = folder_layout.intrinsics({"focal_len": f, "cx": cx, "cy": cy}, (450, 450), 0.5, Notes())
    ours = cameras.project_world(pose, np.array(list(k.values())), point[None])[0]
    np.testing.assert_allclose(ours, [i + 0.5, j + 0.5], atol=1e-6)


def test_the_dossiers_numbers():
    pose = track_columns.tracker_poses([[0.1, 0.2, 0.3]], [[0.05, -0.1, -7.5]])[0]  # ad-nerf.md §11.2
    np.testing.assert_allclose(pose[:3, 3] / 4, [-0.1711954, 0.0358339, 0.7294060], atol=1e-7)
    pose = track_columns.tracker_poses(np.zeros((1, 3)), np.array([[0, 0, -8.0]]))[0]  # rad-nerf.md §11.13
    uv = cameras.project_world(pose, np.array([1200.0, 1200, 256, 256]), np.array([[0.1, 0.2, 0.3]]) / 10 * 4)
    np.testing.assert_allclose(uv[0], [271.584, 224.831], atol=1e-3)
    pose = track_columns.tracker_poses([[-0.0249975, 0.0804689, -0.1314287]], [[-0.191734, -0.161036, -7.646222]])[0]
    rows = [[0.9881677, 0.1290179, -0.0829395, -0.0423932], [-0.1306266, 0.9913292, -0.0142485, 0.0025647],
            [0.0803820, 0.0249140, 0.9964527, 0.7638523]]  # fmt: skip  # ad-nerf.md §11.4
    np.testing.assert_allclose(pose[:3] / [1, 1, 1, 4], rows, atol=2e-6)


def test_the_real_poses_are_read(data_dir, tmp_path):
    shutil.copy(data_dir / "pose" / "adnerf_obama_poses_7272_7771.json", tmp_path / "transforms_val.json")
    notes = Notes()
    t = folder_layout.read_transforms(tmp_path, notes)
    assert t.ids == list(range(7272, 7772)) and len(t.poses) == 500 and not notes.holes
    np.testing.assert_allclose(t.poses[7272][:3, 3] / 4, [-0.0423932, 0.0025647, 0.7638523], atol=1e-6)
    (tmp_path / "com_imgs").mkdir()
    assert folder_layout.recognise(tmp_path)[0] == "ad_nerf"  # only AD-NeRF writes face_rect


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ({"focal_len": 700.0, "cx": 20.5, "cy": 23.5}, (700, 700, 20.5, 23.5)),  # odd sizes keep their half pixel
        ({"focal_len": 700.0, "cx": 17.0, "cy": 30.0}, (700, 700, 17, 30)),  # not the middle
        ({"focal_len": 700.0}, (700, 700, 20.5, 23.5)),
        ({"fl_x": 700.0, "cx": 20.0, "cy": 23.0}, (700, 700, 20, 23)),
        ({"fl_x": 700.0, "fl_y": 710.0}, (700, 710, 20.5, 23.5)),
        ({"camera_angle_x": 2 * np.arctan(0.5)}, (41, 41, 20.5, 23.5)),
        ({"camera_angle_y": 2 * np.arctan(0.5)}, (47, 47, 20.5, 23.5)),
        ({"focal_len": 700.0, "cx": 41.0, "cy": 47.0, "w": 82, "h": 94}, (350, 350, 20.5, 23.5)),
    ],
)
def test_every_way_to_write_intrinsics(head, expected):
    k = folder_layout.intrinsics(head, (47, 41), 0.0, Notes())
    np.testing.assert_allclose(list(k.values()), expected, rtol=1e-12)


@pytest.mark.parametrize("head", [{}, {"focal_len": -1.0}, {"focal_len": "x"}, {"cx": 3.0}, {"fl_x": float("nan")}])
def test_no_focal_length_is_one_sentence(head):
    with pytest.raises(UserError, match="transforms json"):
        folder_layout.intrinsics(head, (47, 41), 0.0, Notes())
