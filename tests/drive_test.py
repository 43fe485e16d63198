"""Poses, blinks and backdrops from files: what is given is what is played, and mistakes are one sentence."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict
from PIL import Image
from scipy.spatial.transform import Rotation

from tests.infos import subject_info
from tkjax.avatar.bundle import Avatar
from tkjax.drive import motion
from tkjax.errors import UserError
from tkjax.signals import of_frames

H, W = 20, 30


def poses(n, seed=0):
    rng = np.random.default_rng(seed)
    out = np.tile(np.eye(4), (n, 1, 1))
    out[:, :3, :3] = Rotation.from_rotvec(rng.normal(0, 0.2, (n, 3))).as_matrix()
    out[:, :3, 3] = out[:, :3, 2] * 3.3 + rng.normal(0, 0.05, (n, 3))
    return out.astype(np.float32)


@pytest.fixture
def subject():
    n = 12
    return Avatar(
        folder=Path("none"),
        meta={"n_train": 9},
        config=ConfigDict(),
        info=subject_info(n, H, W, "logmel", 80, 16, 2, (90.0, 90.0, W / 2, H / 2)),
        plate=np.full((H, W, 3), 7, np.uint8),
        cam_to_world=poses(n),
        signals={
            "eye_closed": of_frames("eye_closed", np.linspace(0, 1, n), 25.0),
            "eye_area": of_frames("eye_area", np.linspace(0.3, 0.1, n), 25.0),
            "expression": of_frames("expression", np.zeros((n, 2)), 25.0, ("jawOpen", "mouthPucker")),
        },
        confidence=np.ones(n, np.float32),
        face_box_px=np.zeros((n, 4), np.int32),
        lips_box_px=np.zeros((n, 4), np.int32),
    )


@given(st.integers(1, 9), st.integers(0, 60))
def test_ping_pong_goes_forth_and_back_and_repeats_the_ends(n, i):
    forth = list(range(n))
    assert motion.ping_pong(i, n) == (forth + forth[::-1])[i % (2 * n)]


def test_output_frames_are_paired_with_source_frames_as_in_the_original(subject):
    def paired(n, start, end):
        plan = motion.plan(subject, data_range=(start, end))
        return [plan.track_frame(k) for k in range(n)]

    assert paired(9, 4, 7) == [4, 5, 6, 6, 5, 4, 4, 5, 6]
    assert paired(3, 4, 5) == [4, 4, 4]
    for start, end in ((5, 5), (7, -2)):
        with pytest.raises(UserError, match="must lie within"):
            paired(1, start, end)


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=9))
def test_smoothed_eyes_are_means_of_three(values):
    v = np.array(values, np.float32)
    expected = [np.mean(v[max(0, i - 1) : i + 2]) for i in range(len(v))]
    np.testing.assert_allclose(motion.smooth_eyes(v), expected, atol=1e-6)


def test_held_out_frames_are_played_when_asked_for(subject):
    plan = motion.plan(subject, poses="test")
    assert [plan.track_frame(i) for i in range(4)] == [9, 10, 11, 11]
    np.testing.assert_array_equal(plan.pose(0), subject.cam_to_world[9])
    assert [motion.plan(subject, poses="test", data_range=(1, 2)).track_frame(i) for i in range(2)] == [10, 10]
    with pytest.raises(UserError, match="3 held-out frames"):
        motion.plan(subject, poses="test", data_range=(0, 4))
    subject.meta["n_train"] = 12
    with pytest.raises(UserError, match=r"--poses=test.*no held-out frames"):
        motion.plan(subject, poses="test")


def test_smoothing_equals_scipy_mean_rotation_and_leaves_a_still_head_alone():
    path = poses(15)
    smooth = motion.smooth_path(path, 7)
    for i in (0, 2, 7, 14):
        part = path[max(0, i - 3) : i + 4]
        mean = Rotation.from_matrix(part[:, :3, :3]).mean().as_matrix()
        np.testing.assert_allclose(smooth[i, :3, :3], mean, atol=1e-5)
        np.testing.assert_allclose(smooth[i, :3, 3], part[:, :3, 3].mean(0), atol=1e-6)
    still = np.repeat(path[:1], 9, 0)
    np.testing.assert_allclose(motion.smooth_path(still, 7), still, atol=1e-6)


def test_the_nearest_pose_of_a_path_to_itself_is_itself():
    path, k = poses(9), np.array([90.0, 90, W / 2, H / 2])
    assert motion.nearest_pose(path, k, path, k).tolist() == list(range(9))
    assert motion.nearest_pose(path[[4, 2]], k, path, k).tolist() == [4, 2]


@pytest.mark.parametrize("name", ["p.npy", "p.npz", "other.npz"])
def test_pose_files_are_played_as_they_are(tmp_path, subject, name):
    path = poses(5, seed=3)
    if name.endswith(".npy"):
        np.save(tmp_path / name, path)
    else:
        np.savez(tmp_path / name, **{"cam_to_world" if name == "p.npz" else "anything": path})
    plan = motion.plan(subject, pose=tmp_path / name)
    np.testing.assert_array_equal(np.stack([plan.pose(i) for i in range(10)]), np.concatenate([path, path[::-1]]))


def test_adnerf_json_keeps_its_focal_length_relative_to_the_width(tmp_path, subject):
    matrix = poses(1)[0].astype(float)
    matrix[:3, 3] /= 4
    data = {"focal_len": 1100, "cx": 225, "cy": 225, "frames": [{"transform_matrix": matrix.tolist()}]}
    (tmp_path / "t.json").write_text(json.dumps(data))
    plan = motion.plan(subject, pose=tmp_path / "t.json")
    np.testing.assert_allclose(plan.pose(3), poses(1)[0], atol=1e-6)
    np.testing.assert_allclose(plan.intrinsics, [1100 * W / 450, 1100 * W / 450, W / 2, H / 2], rtol=1e-6)


def test_a_real_transforms_file_gives_500_poses_in_front_of_the_head(data_dir, subject):
    plan = motion.plan(subject, pose=data_dir / "pose/adnerf_obama_poses_7272_7771.json")
    assert len(plan.cam_to_world) == 500
    assert (plan.cam_to_world[:, 2, 3] > 2).all() and (plan.cam_to_world[:, 2, 2] > 0.9).all()
    corners = motion.corners_px(plan.cam_to_world, plan.intrinsics)
    middle = corners.mean(1) / [W, W]
    assert (np.abs(middle[:, 0] - 0.5) < 0.15).all() and np.ptp(corners[..., 0], 1).mean() > 0.2 * W


def transforms_of(path, numbers, frames, **head):
    """A transforms json of these poses in contract units."""
    frames = np.array(frames, float)
    frames[:, :3, 3] /= 4
    listed = [{"img_id": i, "transform_matrix": m.tolist()} for i, m in zip(numbers, frames, strict=True)]
    path.write_text(json.dumps({**(head or {"focal_len": 90.0, "cx": W / 2, "cy": H / 2}), "frames": listed}))
    return path


def test_poses_of_a_json_are_played_by_number_and_gaps_are_filled_and_said(tmp_path, subject, capsys):
    path = poses(6, seed=4)
    order = [5, 0, 3, 1]
    plan = motion.plan(subject, pose=transforms_of(tmp_path / "t.json", [10 + k for k in order], path[order]))
    assert len(plan.cam_to_world) == 6 and "no pose for img_id 12, 14: between" in capsys.readouterr().out
    for k in order:
        np.testing.assert_allclose(plan.pose(k), path[k], atol=1e-6)
    mean = Rotation.from_matrix(path[[1, 3], :3, :3]).mean().as_matrix()
    np.testing.assert_allclose(plan.pose(2)[:3, :3], mean, atol=1e-5)
    np.testing.assert_allclose(plan.pose(2)[:3, 3], path[[1, 3], :3, 3].mean(0), atol=1e-6)
    plan = motion.plan(subject, pose=transforms_of(tmp_path / "t.json", [0, 50, 900], path[:3]))
    assert len(plan.cam_to_world) == 3 and "one after the other" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("head", "focal", "middle"),
    [
        ({"fl_x": 80.0, "w": 60, "h": 40}, 40, (15, 10)),
        ({"camera_angle_x": 2 * np.arctan(0.5), "w": 60, "h": 40}, 30, (15, 10)),
        ({"focal_len": 80.0, "cx": 33.0, "cy": 18.0, "w": 60, "h": 40}, 40, (16.5, 9)),
    ],
)
def test_a_json_may_write_its_camera_in_every_way_that_import_reads(tmp_path, subject, head, focal, middle):
    plan = motion.plan(subject, pose=transforms_of(tmp_path / "t.json", [0], poses(1), **head))
    np.testing.assert_allclose(plan.intrinsics, [focal, focal, *middle], rtol=1e-6)


def test_poses_that_leave_the_head_out_of_view_are_said(tmp_path, subject, capsys):
    def said(path):
        np.save(tmp_path / "p.npy", path)
        motion.plan(subject, pose=tmp_path / "p.npy")
        return capsys.readouterr().out

    own = poses(5, seed=2)
    assert said(own) == ""
    metres, beside, behind, far = (own.copy() for _ in range(4))
    metres[:, :3, 3] /= 4
    beside[2:, :3, 3] += 3 * beside[2:, :3, 0]
    behind[1, :3, 3] *= -1
    far[:, :3, 3] *= 25
    assert "5 of 5 frames" in said(metres) and "in metres?" in said(metres)
    assert "3 of 5 frames" in said(beside) and "?" not in said(beside)
    assert "1 of 5 frames" in said(behind)
    assert "in centimetres?" in said(far)


def write_npy(path, value):
    np.save(path, value, allow_pickle=True)


BAD_POSES = {
    "absent.npy": None,
    "text.npy": b"hello",
    "empty.npy": np.zeros((0, 4, 4)),
    "shape.npy": np.zeros((3, 3, 4)),
    "nan.npy": np.full((2, 4, 4), np.nan),
    "sheared.npy": np.ones((2, 4, 4)),
    "mirror.npy": np.diag([1.0, 1, -1, 1])[None],
    "words.npy": np.array(["a"]),
    "object.npy": np.array([{}], object),
    "pose.txt": b"1 2 3",
    "list.json": b"[]",
    "broken.json": b"{",
    "keys.json": b'{"focal_len": 1, "cx": 1, "cy": 1, "frames": [{}]}',
    "focal.json": b'{"focal_len": 0, "cx": 1, "cy": 1, "frames": []}',
    "none.json": b'{"focal_len": 1, "cx": 1, "cy": 1, "frames": []}',
    "zip.npz": b"PK\x03\x04rubbish",
}


@pytest.mark.parametrize("name", BAD_POSES)
def test_a_malformed_pose_file_is_one_sentence_with_its_name(tmp_path, subject, name):
    value, path = BAD_POSES[name], tmp_path / name
    if isinstance(value, bytes):
        path.write_bytes(value)
    elif value is not None:
        write_npy(path, value)
    with pytest.raises(UserError) as error:
        motion.plan(subject, pose=path)
    assert name in str(error.value) and "\n" not in str(error.value)


def test_blinks_come_from_numbers_or_openface(tmp_path, data_dir):
    np.save(tmp_path / "e.npy", np.array([0, 0.5, 1]))
    (tmp_path / "e.csv").write_text("eye\n0\n0.5\n1\n")
    (tmp_path / "f.csv").write_text("0\n0.5\n1\n")
    for name in ("e.npy", "e.csv", "f.csv"):
        assert motion.read_blinks(tmp_path / name).tolist() == [0, 0.5, 1]
    blink = motion.read_blinks(data_dir / "au/openface_au_excerpt.csv")
    assert len(blink) == 30 and 0.8 < blink.max() <= 1 and blink.min() >= 0


@pytest.mark.parametrize("text", ["a\nb\n", "1,2\n3,4\n", "2\n", "", "nan\n"])
def test_a_malformed_blink_file_is_one_sentence(tmp_path, text):
    (tmp_path / "e.csv").write_text(text)
    with pytest.raises(UserError, match=r"--eye.*e\.csv"):
        motion.read_blinks(tmp_path / "e.csv")


def test_backgrounds_are_colours_or_pictures_cut_around_their_centre(tmp_path):
    assert (motion.read_background("white", (H, W)) == 255).all()
    assert (motion.read_background("#102030", (H, W)) == [16, 32, 48]).all()
    tall = np.zeros((400, 60, 3), np.uint8)
    tall[180:220] = 200
    Image.fromarray(tall).save(tmp_path / "b.png")
    assert (motion.read_background(str(tmp_path / "b.png"), (H, W)) == 200).all()
    (tmp_path / "no.png").write_text("no picture")
    for wrong in (str(tmp_path / "no.png"), "nocolour", str(tmp_path / "absent.png")):
        with pytest.raises(UserError, match="--background"):
            motion.read_background(wrong, (H, W))


@pytest.mark.parametrize(
    "text",
    ["rgb(300,0,0)", "rgb(101%,0%,0%)", "hsl(0,300%,50%)", "#11223344", "rgba(1,2,3,4)", "#12", "a" * 5000, "\0"],
)
def test_colours_that_are_none_are_one_sentence(text):
    with pytest.raises(UserError, match="--background"):
        motion.read_background(text, (H, W))


def test_a_transparent_background_is_white_and_says_so(tmp_path, capsys):
    rgba = np.zeros((H, W, 4), np.uint8)
    rgba[..., 0], rgba[: H // 2, :, 3] = 250, 255
    Image.fromarray(rgba).save(tmp_path / "b.png")
    shown = motion.read_background(str(tmp_path / "b.png"), (H, W))
    assert (shown[0] == [250, 0, 0]).all() and (shown[-1] == 255).all()
    assert "transparent in parts" in capsys.readouterr().out


def test_data_range_limits_the_loop_and_its_torso(subject):
    plan = motion.plan(subject, data_range=(3, 5))
    assert [plan.track_frame(i) for i in range(5)] == [3, 4, 4, 3, 3]
    np.testing.assert_array_equal(plan.pose(1), subject.cam_to_world[4])
    for wrong in ((5, 5), (-1, 3), (0, 99)):
        with pytest.raises(UserError, match="data_range"):
            motion.plan(subject, data_range=wrong)


def test_contradictions_are_refused(subject):
    with pytest.raises(UserError, match="odd"):
        motion.plan(subject, smooth_window=4)
