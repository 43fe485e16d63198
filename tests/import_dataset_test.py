"""Folders of the older projects become datasets: same cameras, same pictures, nothing shifts, holes are named."""

import json
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from preprocess.importers import dataset, folder_layout, frame_pictures, track_columns, whole_frames
from preprocess.importers.folder_layout import Notes
from tests import er_layout
from tkjax import cameras, contract, signals
from tkjax.data.dataset_clip import DatasetClip
from tkjax.errors import UserError
from tkjax.formats import feature_arrays, tables, transforms
from tkjax.media import audio, images
from tkjax.media.video import VideoWriter, read_frames
from tkjax.signals import Use

N = 14
SEQUENCE = np.random.default_rng(5).standard_normal((2 * N, 29)).astype(np.float32)


def windows(sequence=SEQUENCE, n=N):
    f = contract.AudioFeatures("deepspeech", sequence, 50.0, 0.01, "x", 16, 2, 8, 8)
    return feature_arrays.to_windows(f, n).astype(np.float64)


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    return er_layout.portrait(tmp_path_factory.mktemp("native") / "dataset", N)


@pytest.fixture(scope="module")
def whole(native, tmp_path_factory):
    """An ER-NeRF folder without holes, and its import."""
    root = tmp_path_factory.mktemp("er")
    folder = er_layout.export(native, root / "Obama", {"aud_ds.npy": windows()})
    return folder, contract.Dataset(dataset.run(folder, root / "w" / "dataset"))


def copy(whole, tmp_path):
    return shutil.copytree(whole[0], tmp_path / whole[0].name)


def imported(folder, tmp_path, capsys=None, **options):
    """(dataset, what was printed) of a folder."""
    d = contract.Dataset(dataset.run(folder, tmp_path / "w" / "dataset", **options))
    return d, capsys.readouterr().out if capsys else ""


def assert_same_frames(a, b, rows, but=()):
    """Frames `rows` of two datasets are equal in everything that a frame holds."""
    for name in a.manifest["members"]:
        if name.endswith("_bytes"):
            if name not in but:
                assert [a.frame_bytes(name, i) for i in rows] == [b.frame_bytes(name, i) for i in rows], name
        elif not name.endswith("_offsets") and name not in but:
            np.testing.assert_array_equal(a.column(name)[rows], b.column(name)[rows], err_msg=name)


# ---------------------------------------------------------------- cameras

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


# ---------------------------------------------------------------- whole folders


def test_the_round_trip_is_exact(native, whole):
    a, b = contract.Dataset(native), whole[1]
    for name in ("cam_to_world", "confidence", *contract.BOXES):
        np.testing.assert_allclose(a.column(name), b.column(name), atol=1e-5)
    np.testing.assert_allclose(a.column("landmarks_px"), b.column("landmarks_px"), atol=2e-6)
    np.testing.assert_allclose(a.column("eye_closed"), b.column("eye_closed"), atol=1e-6)
    assert a.intrinsics == b.intrinsics and a.manifest["split"] == b.manifest["split"]
    for i in range(N):
        assert a.frame_bytes("image_bytes", i) == b.frame_bytes("image_bytes", i)  # the raw frame's own bytes
        assert a.frame_bytes("torso_bytes", i) == b.frame_bytes("torso_bytes", i)
        labels = [images.decode_png(d.frame_bytes("label_bytes", i)) for d in (a, b)]
        np.testing.assert_array_equal(*labels)
    f = b.audio_features("deepspeech")
    np.testing.assert_array_equal(feature_arrays.to_windows(f, N), windows().astype(np.float32))
    pcm = [audio.read_audio(d.path("audio.wav")) for d in (a, b)]
    np.testing.assert_allclose(*pcm, atol=2e-4)
    assert len(pcm[1]) == N * 640 and "logmel" in b.manifest["audio"]


def test_the_loader_makes_the_targets_of_the_folder(whole, tmp_path):
    folder, d = whole
    clip = DatasetClip(d.root, tmp_path / "cache")
    for i in range(N):
        given = images.read_rgb(folder / f"gt_imgs/{i}.jpg")
        assert frame_pictures.psnr(clip.target(i), given) > 38


def test_the_second_import_changes_nothing_and_other_data_is_safe(whole, native, tmp_path, capsys):
    folder, d = whole
    before = (d.root / "manifest.json").read_bytes()
    dataset.run(folder, d.root)
    assert "unchanged" in capsys.readouterr().out and (d.root / "manifest.json").read_bytes() == before
    other = er_layout.export(er_layout.portrait(tmp_path / "n2", 12, seed=9), tmp_path / "other")
    with pytest.raises(UserError, match="of another source"):
        dataset.run(other, d.root)
    with pytest.raises(UserError, match="of another source"):
        dataset.run(folder, shutil.copytree(native, tmp_path / "preprocessed"))
    assert (d.root / "manifest.json").read_bytes() == before


def test_a_source_is_known_by_most_of_its_first_pictures(whole, tmp_path, capsys):
    folder = copy(whole, tmp_path)
    imported(folder, tmp_path)
    for name in ("ori_imgs/0.jpg", "ori_imgs/2.jpg"):
        (folder / name).unlink()
    d, text = imported(folder, tmp_path, capsys)  # no refusal
    assert "no raw frame: the target picture stands in for it: 0, 2" in text and d.column("confidence").all()


def test_a_folder_that_was_mended_is_imported_again(whole, tmp_path, capsys):
    folder = copy(whole, tmp_path)
    (folder / "ori_imgs/5.lms").unlink()
    d, _ = imported(folder, tmp_path, capsys)
    assert d.column("confidence")[5] == 0
    shutil.copy(whole[0] / "ori_imgs/5.lms", folder / "ori_imgs/5.lms")
    d, text = imported(folder, tmp_path, capsys)
    assert d.column("confidence").all() and "hole" not in text and "written" in text


@pytest.mark.parametrize("size", [(47, 41), (64, 33)])
def test_odd_sizes_keep_every_pixel(size, tmp_path):
    native = er_layout.portrait(tmp_path / "n", 4, *size)
    d, _ = imported(er_layout.export(native, tmp_path / "f"), tmp_path)
    assert (d.height, d.width) == size and d.intrinsics == contract.Dataset(native).intrinsics


# ---------------------------------------------------------------- recognition


@pytest.mark.parametrize("system", list(folder_layout.SYSTEMS))
def test_each_project_is_known_by_its_files(system, native, tmp_path, capsys):
    name = {"avatar_ernerf": "audio_feat.npy", "er_nerf": "aud_ds.npy"}.get(system, "aud.npy")
    folder = er_layout.export(native, tmp_path / "f", {name: windows()}, system)
    assert folder_layout.recognise(folder)[0] == system
    d, text = imported(folder, tmp_path, capsys)
    a = contract.Dataset(native)
    assert f"recognised: {folder_layout.SYSTEMS[system]} dataset, because of transforms_train.json" in text
    np.testing.assert_allclose(d.landmarks68(), a.landmarks68(), atol=3e-6)  # AD-NeRF's half pixel is undone
    np.testing.assert_allclose(d.intrinsics, a.intrinsics)
    assert ("moved by +0.5" in text) == (system in ("ad_nerf", "nerfblendshape"))
    kind = "hubert" if system == "avatar_ernerf" else "deepspeech"
    np.testing.assert_array_equal(feature_arrays.to_windows(d.audio_features(kind), N), windows().astype(np.float32))
    forced, text = imported(folder, tmp_path, capsys, system="rad_nerf")
    assert "--system=rad_nerf" in text and forced.manifest["source"]["layout"] == "rad_nerf"


def test_what_is_no_folder_of_theirs_is_one_sentence(tmp_path, capsys):
    (tmp_path / "holiday.jpg").write_bytes(b"x")
    for path in (tmp_path, tmp_path / "none", tmp_path / "holiday.jpg"):
        assert dataset.main(["--source", str(path), "--workdir", str(tmp_path / "w")]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(UserError, match=r"transforms_train\.json.*found holiday\.jpg"):
        folder_layout.recognise(tmp_path)
    with pytest.raises(UserError, match="choose one of ad_nerf"):
        folder_layout.recognise(tmp_path, "nerf")
    assert not (tmp_path / "w").exists()


def test_files_that_are_not_used_are_counted(whole, tmp_path, capsys):
    folder = copy(whole, tmp_path)
    (folder / "logs" / "a").mkdir(parents=True)
    for name in ("logs/a/1.txt", "logs/2.txt", "ori_imgs/99.jpg", "notes.md", "aud.npy"):
        (folder / name).write_bytes(b"1")
    np.save(folder / "aud_eo.npy", np.zeros((N, 16)))
    _, text = imported(folder, tmp_path, capsys)
    left = next(line for line in text.splitlines() if line.startswith("could not use"))
    for said in ("logs/*.txt (2)", "notes.md", "ori_imgs/*.jpg (1)", "aud.npy", "aud_eo.npy"):
        assert said in left
    assert "aud_eo.npy: has shape (14, 16), class labels" in text


# ---------------------------------------------------------------- holes


def test_holes_are_named_and_nothing_else_moves(whole, tmp_path, capsys):
    folder = copy(whole, tmp_path)
    (folder / "ori_imgs/2.lms").unlink()
    (folder / "ori_imgs/3.lms").write_text("1 2\n3 4\n")
    (folder / "ori_imgs/5.jpg").unlink()
    (folder / "gt_imgs/5.jpg").unlink()
    (folder / "parsing/7.png").unlink()
    (folder / "torso_imgs/8.png").write_bytes(b"no picture")
    (folder / "ori_imgs/9.jpg").write_bytes((folder / "ori_imgs/9.jpg").read_bytes()[:200])
    lines = (folder / "au.csv").read_text().splitlines()
    (folder / "au.csv").write_text("\n".join(lines[: 1 + 12]) + "\n")
    np.save(folder / "aud_ds.npy", windows()[:13])
    d, text = imported(folder, tmp_path, capsys)
    good = [0, 1, 4, 6, 10, 11]
    assert_same_frames(d, whole[1], good)
    assert_same_frames(d, whole[1], [8], but=("torso_bytes",))
    np.testing.assert_array_equal(np.flatnonzero(d.column("confidence") == 0), [2, 3, 5, 7])
    np.testing.assert_array_equal(np.flatnonzero(d.column("x_picture_missing")), [5])
    np.testing.assert_array_equal(d.column("cam_to_world"), whole[1].column("cam_to_world"))
    assert d.frame_bytes("image_bytes", 5) == d.frame_bytes("image_bytes", 4)
    holes = {line.split(": ", 1)[1].rsplit(": ", 1)[0]: line.rsplit(": ", 1)[1] for line in text.splitlines() if
             line.startswith("hole")}  # fmt: skip
    found = {next((k for k in holes if part in k), part): part for part in
             ("no .lms", "68 points", "no picture:", "no labels", "torso picture", "cannot be read or has",
              "au.csv has no row", "aud_ds.npy has no window", "stands in for it")}  # fmt: skip
    numbers = {part: holes.get(k, "").split(" (")[0] for k, part in found.items()}
    assert numbers == {
        "no .lms": "2-3", "68 points": "3", "no picture:": "5", "no labels": "7", "torso picture": "8",
        "cannot be read or has": "9", "au.csv has no row": "12-13", "aud_ds.npy has no window": "13",
        "stands in for it": "9",
    }  # fmt: skip


@given(lost=st.sets(st.integers(0, N - 1), max_size=N - 2))
def test_landmarks_of_other_frames_never_move(tmp_path_factory, lost):
    folder = tmp_path_factory.mktemp("lms")
    points = np.random.default_rng(len(lost)).uniform(0, 99, (N, 68, 2))
    for i in set(range(N)) - lost:
        np.savetxt(folder / f"{i}.lms", points[i], "%f")
    notes = Notes()
    out, found = track_columns.landmarks(folder_layout.numbered(folder, (".lms",)), np.arange(N), 0.0, notes)
    kept = sorted(set(range(N)) - lost)
    np.testing.assert_allclose(out[kept], points[kept], atol=1e-5)
    assert sorted(np.flatnonzero(~found)) == sorted(lost) and sum(map(len, notes.holes.values())) == len(lost)
    assert np.isfinite(out).all()


def test_numbers_with_gaps_in_any_order_keep_their_pictures(native, whole, tmp_path, capsys):
    folder = copy(whole, tmp_path)
    for part, drop in (("train", {4, 7}), ("val", set())):
        path = folder / f"transforms_{part}.json"
        data = json.loads(path.read_text())
        data["frames"] = [f for f in reversed(data["frames"]) if f["img_id"] not in drop]
        path.write_text(json.dumps(data))
    d, text = imported(folder, tmp_path, capsys)
    assert_same_frames(d, whole[1], [i for i in range(N) if i not in (4, 7)])
    assert d.manifest["split"] == whole[1].manifest["split"]
    np.testing.assert_array_equal(np.flatnonzero(d.column("confidence") == 0), [4, 7])
    assert "not in the json: confidence 0, pose of the nearest frame: 4, 7 (2 frames)" in text


def test_a_clip_that_starts_late_keeps_its_sound(whole, tmp_path, capsys):
    folder = copy(whole, tmp_path)
    for part in ("train", "val"):
        path = folder / f"transforms_{part}.json"
        data = json.loads(path.read_text())
        data["frames"] = [f for f in data["frames"] if f["img_id"] >= 3]
        path.write_text(json.dumps(data))
    d, text = imported(folder, tmp_path, capsys)
    assert d.n_frames == N - 3 and "img_id 3-13 is frame 0-10" in text
    assert d.train_range == (0, whole[1].train_range[1] - 3)
    for name in ("cam_to_world", "landmarks_px", "eye_closed"):
        np.testing.assert_array_equal(d.column(name), whole[1].column(name)[3:])
    pcm = audio.read_audio(whole[1].path("audio.wav"))
    np.testing.assert_array_equal(audio.read_audio(d.path("audio.wav")), pcm[3 * 640 :])
    f = d.audio_features("deepspeech")
    np.testing.assert_array_equal(f.features, SEQUENCE[6 : 6 + len(f.features)])


@pytest.mark.parametrize("n", [N + 9, N + 2, N + 1, N, N - 1, N - 3])
def test_every_frame_hears_the_windows_that_the_original_gives_it(whole, tmp_path, n):
    """Of arrays of any length, cut from a longer one or whole; zeros where they have no window."""
    folder = copy(whole, tmp_path)
    sequence = np.random.default_rng(n).standard_normal((2 * N + 40, 29)).astype(np.float32)
    array = windows(sequence, n)
    np.save(folder / "aud_ds.npy", array)
    clip = DatasetClip(imported(folder, tmp_path)[0].root, tmp_path / "cache", audio_kind="deepspeech")
    padded = np.concatenate([np.zeros((4, 16, 29)), array, np.zeros((20, 16, 29))])
    for i, heard in enumerate(signals.windows(clip.signals["sound"], np.arange(N), Use("sound", before=4, after=3))):
        np.testing.assert_array_equal(heard, padded[i : i + 8].astype(np.float32), err_msg=f"frame {i}")


def test_aud_id_is_honoured(whole, tmp_path, capsys):
    folder = copy(whole, tmp_path)
    order = np.random.default_rng(1).permutation(N)
    for part in ("train", "val"):
        path = folder / f"transforms_{part}.json"
        data = json.loads(path.read_text())
        for frame in data["frames"]:
            frame["aud_id"] = int(order[frame["img_id"]])
        path.write_text(json.dumps(data))
    d, text = imported(folder, tmp_path, capsys)
    f = d.audio_features("deepspeech")
    np.testing.assert_array_equal(feature_arrays.to_windows(f, N), windows()[order].astype(np.float32))
    pcm = audio.read_audio(whole[1].path("audio.wav")).reshape(N, 640)
    np.testing.assert_array_equal(audio.read_audio(d.path("audio.wav")).reshape(N, 640), pcm[order])
    assert "does not count up one by one" in text


def test_the_originals_shift_after_a_frame_without_landmarks_is_undone(whole, tmp_path, capsys):
    folder = copy(whole, tmp_path)
    (folder / "ori_imgs/4.lms").unlink()
    frames = []
    for part in ("train", "val"):
        frames += json.loads((folder / f"transforms_{part}.json").read_text())["frames"]
    rows = [f["transform_matrix"] for f in frames if f["img_id"] != 4]  # what the tracker had: one row fewer
    a = len(rows) * 10 // 11
    for part, (lo, hi) in (("train", (0, a)), ("val", (a, len(rows)))):
        path = folder / f"transforms_{part}.json"
        data = json.loads(path.read_text())
        data["frames"] = [{"img_id": i, "aud_id": i, "transform_matrix": rows[i]} for i in range(lo, hi)]
        path.write_text(json.dumps(data))
    d, text = imported(folder, tmp_path, capsys)
    assert "stand too early from img_id 4 on" in text and d.n_frames == N
    assert_same_frames(d, whole[1], [i for i in range(N) if i != 4])
    assert d.column("confidence")[4] == 0


def test_a_lost_landmark_file_alone_shifts_nothing(whole, tmp_path, capsys):
    folder = copy(whole, tmp_path)
    (folder / "ori_imgs/4.lms").unlink()
    for name in ("ori_imgs/13.jpg", "ori_imgs/13.lms", "gt_imgs/13.jpg"):  # as many .lms as the shifted case
        (folder / name).unlink()
    path = folder / "transforms_val.json"
    data = json.loads(path.read_text())
    data["frames"] = [f for f in data["frames"] if f["img_id"] < 12]
    path.write_text(json.dumps(data))
    path = folder / "transforms_train.json"
    d, text = imported(folder, tmp_path, capsys)
    assert "too early" not in text
    assert_same_frames(d, whole[1], [i for i in range(12) if i != 4])


# ---------------------------------------------------------------- pictures


def from_one(folder):
    """Every picture and landmark file with a number one higher, as ffmpeg counts."""
    for sub in ("ori_imgs", "gt_imgs", "torso_imgs", "parsing"):
        for path in sorted((folder / sub).iterdir(), key=lambda p: -int(p.stem)):
            path.rename(path.with_stem(str(int(path.stem) + 1)))


@pytest.mark.parametrize("still", [False, True])
def test_pictures_from_1_and_poses_from_0_keep_their_sound(whole, tmp_path, capsys, still):
    folder = copy(whole, tmp_path)
    if still:  # landmarks that do not move say nothing: the count does
        for path in (folder / "ori_imgs").glob("*.lms"):
            path.write_bytes((folder / "ori_imgs/3.lms").read_bytes())
    from_one(folder)
    d, text = imported(folder, tmp_path, capsys)
    assert "picture k is img_id k - 1 (" + ("by their count" if still else "its poses fit") in text
    np.testing.assert_array_equal(d.column("cam_to_world"), whole[1].column("cam_to_world"))
    np.testing.assert_array_equal(d.column("eye_closed"), whole[1].column("eye_closed"))
    np.testing.assert_array_equal(
        audio.read_audio(d.path(contract.AUDIO)), audio.read_audio(whole[1].path(contract.AUDIO))
    )
    assert [d.frame_bytes("image_bytes", i) for i in range(N)] == [
        whole[1].frame_bytes("image_bytes", i) for i in range(N)
    ]


def test_a_lost_first_picture_is_no_numbering_from_1(whole, tmp_path, capsys):
    folder = copy(whole, tmp_path)
    for sub in ("ori_imgs", "gt_imgs", "torso_imgs", "parsing"):
        for path in (folder / sub).glob("0.*"):
            path.unlink()
    d, text = imported(folder, tmp_path, capsys)
    assert "picture 0 is missing, the others have the json's numbers" in text
    np.testing.assert_array_equal(d.column("cam_to_world"), whole[1].column("cam_to_world")[1:])
    np.testing.assert_array_equal(
        audio.read_audio(d.path(contract.AUDIO)), audio.read_audio(whole[1].path(contract.AUDIO))[640:]
    )


def test_colour_maps_in_the_other_order_and_size_are_read(whole, tmp_path, capsys):
    folder = copy(whole, tmp_path)
    for path in (folder / "parsing").iterdir():
        bgr = cv2.imread(str(path))
        big = cv2.resize(bgr, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
        cv2.imwrite(str(path), big[..., ::-1])
    d, text = imported(folder, tmp_path, capsys)
    assert "red-green-blue order" in text
    assert_same_frames(d, whole[1], list(range(N)))


def test_points_on_the_clothes_alone_do_not_swap_the_colours(whole):
    rgb = images.read_rgb(whole[0] / "parsing/0.png")
    below = np.argwhere(frame_pictures.labels_of_colours(rgb) == contract.LABEL_TORSO)[:68, ::-1].astype(float)
    assert len(below) == 68 and not frame_pictures.is_swapped([(rgb, below)])
    assert not frame_pictures.is_swapped([])


def test_other_targets_than_frame_parsing_and_plate_are_named(whole, tmp_path, capsys):
    folder = copy(whole, tmp_path)
    for i in (3, 4, 8):
        rgb = images.read_rgb(folder / f"gt_imgs/{i}.jpg")
        (folder / f"gt_imgs/{i}.jpg").write_bytes(images.encode_jpeg(255 - rgb))
    _, text = imported(folder, tmp_path, capsys)
    assert "the targets in gt_imgs differ from frame + parsing + plate at 3-4, 8" in text


def test_frames_that_are_no_baseline_jpeg_are_encoded_again(whole, tmp_path):
    folder = copy(whole, tmp_path)
    rgb = images.read_rgb(folder / "ori_imgs/1.jpg")
    (folder / "ori_imgs/1.jpg").unlink()
    (folder / "ori_imgs/1.png").write_bytes(images.encode_png(rgb))
    other = Image.fromarray(images.read_rgb(folder / "ori_imgs/2.jpg"))
    other.save(folder / "ori_imgs/2.jpg", quality=97, progressive=True, subsampling=0)
    d, _ = imported(folder, tmp_path)
    for i in (1, 2):
        data = d.frame_bytes("image_bytes", i)
        assert data != whole[1].frame_bytes("image_bytes", i)
        before = images.decode_rgb(whole[1].frame_bytes("image_bytes", i))
        assert frame_pictures.psnr(images.decode_rgb(data), before) > 34
    assert_same_frames(d, whole[1], [0, *range(3, N)])


def test_frames_of_16_bits_and_turned_ones_are_what_they_show(whole, tmp_path):
    folder = copy(whole, tmp_path)
    shown = {i: images.read_rgb(folder / f"ori_imgs/{i}.jpg") for i in (1, 2)}
    for i in shown:
        (folder / f"ori_imgs/{i}.jpg").unlink()
    Image.fromarray(shown[1][..., 0].astype(np.uint16) * 257).save(folder / "ori_imgs/1.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(shown[2])).save(folder / "ori_imgs/2.jpg", quality=97, subsampling=0, exif=exif)
    d, _ = imported(folder, tmp_path)
    for i, expected in ((1, np.repeat(shown[1][..., :1], 3, -1)), (2, shown[2])):
        assert frame_pictures.psnr(images.decode_rgb(d.frame_bytes("image_bytes", i)), expected) > 34
    assert_same_frames(d, whole[1], [0, *range(3, N)])


def test_without_torso_pictures_and_plate_both_are_made(whole, tmp_path, capsys):
    folder = copy(whole, tmp_path)
    shutil.rmtree(folder / "torso_imgs")
    (folder / "bc.jpg").unlink()
    d, text = imported(folder, tmp_path, capsys)
    assert "no bc.jpg" in text and "torso picture" not in text
    rgba = images.decode_png(d.frame_bytes("torso_bytes", 0))
    label = images.decode_png(d.frame_bytes("label_bytes", 0))
    assert (rgba[label == contract.LABEL_TORSO][:, 3] == 255).all()
    plate, true = (images.decode_png(x.path("background.png").read_bytes()) for x in (d, whole[1]))
    assert frame_pictures.psnr(plate[:10], true[:10]) > 30


def test_no_parsing_at_all_is_refused(whole, tmp_path):
    folder = copy(whole, tmp_path)
    shutil.rmtree(folder / "parsing")
    with pytest.raises(UserError, match="parsing step"):
        dataset.run(folder, tmp_path / "w" / "dataset")
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("swapped", [False, True])
def test_every_colour_of_the_map_has_its_label(swapped):
    bgr = er_layout.COLOURS_BGR[None]
    rgb = bgr if swapped else bgr[..., ::-1]
    np.testing.assert_array_equal(frame_pictures.labels_of_colours(np.ascontiguousarray(rgb), swapped), [[0, 1, 2, 3]])
    near = np.clip(rgb.astype(int) + np.random.default_rng(0).integers(-60, 60, rgb.shape), 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(frame_pictures.labels_of_colours(near, swapped), [[0, 1, 2, 3]])


# ---------------------------------------------------------------- blinks


@pytest.mark.parametrize("name", [" AU45_r", "AU45_r"])
def test_blinks_with_and_without_the_blank(name, tmp_path):
    er_layout.write_csv(tmp_path, np.array([0.0, 0.65, 1.5, 0.4]), name)
    rows = track_columns.read_blinks(tmp_path / "au.csv", 4, Notes())
    np.testing.assert_allclose([rows[i] for i in range(4)], [0, 0.65, 1, 0.4])  # clip(AU, 0, 2) / 2


def test_the_real_table_counts_rows(data_dir):
    rows = track_columns.read_blinks(data_dir / "au" / "openface_au_excerpt.csv", 30, Notes())
    assert (
        sorted(rows) == list(range(30)) and rows[3] == pytest.approx(0.07 / 2) and rows[23] == pytest.approx(1.73 / 2)
    )


@pytest.mark.parametrize(
    ("frames", "n", "expected"),
    [
        ([1, 2, 3, 4], 4, [0, 1, 2, 3]),
        ([1, 2, 4, 5], 5, [0, 1, 3, 4]),  # a row is missing: nothing shifts
        ([2, 3, 4], 4, [1, 2, 3]),
        ([0, 1, 3], 4, [0, 1, 3]),
        ([37, 38, 39], 3, [0, 1, 2]),  # a cut table: rows count, as in the originals
        ([1, 1, 2], 3, [0, 1, 2]),
    ],
)
def test_rows_go_to_the_frame_they_name(frames, n, expected, tmp_path):
    (tmp_path / "au.csv").write_text("frame, AU45_r\n" + "".join(f"{f}, 0.5\n" for f in frames))
    assert sorted(track_columns.read_blinks(tmp_path / "au.csv", n, Notes())) == expected


def test_a_bad_number_and_a_bad_table(tmp_path):
    notes = Notes()
    (tmp_path / "au.csv").write_text("frame, AU45_r\n1, 0.5\n2, nan\n3,\n4, x\n5, 1.0\n")
    assert sorted(track_columns.read_blinks(tmp_path / "au.csv", 5, notes)) == [0, 4]
    assert notes.holes == {"au.csv: AU45_r is no number": [1, 2, 3]}
    for text in ("", "frame, AU06_r\n1, 2\n"):
        (tmp_path / "au.csv").write_text(text)
        with pytest.raises(UserError, match="AU45_r"):
            track_columns.read_blinks(tmp_path / "au.csv", 5, Notes())


def test_closed_eyes_are_seen_in_the_landmarks():
    points = np.zeros((10, 68, 2))
    for a in (36, 42):
        points[:, a + 3, 0] = 10
        points[:, [a + 1, a + 2], 1] = 2.0
        points[3, [a + 1, a + 2], 1] = 0.3
    closed = track_columns.blink_from_landmarks(points, np.ones(10, bool))
    assert closed[3] == 1 and np.delete(closed, 3).max() == 0


# ---------------------------------------------------------------- tracker, whole frames


def test_expression_follows_its_frame_by_pose(whole, tmp_path, capsys):
    folder = copy(whole, tmp_path)
    poses = whole[1].column("cam_to_world")
    kept = [i for i in range(N) if i != 6]  # the tracker skipped a frame: its rows shift
    exp = er_layout.write_track(folder, poses[kept], whole[1].intrinsics[0])
    (folder / "ori_imgs/6.lms").unlink()
    path = folder / "transforms_train.json"
    data = json.loads(path.read_text())
    data["frames"] = [f for f in data["frames"] if f["img_id"] != 6]
    path.write_text(json.dumps(data))
    d, text = imported(folder, tmp_path, capsys)
    np.testing.assert_array_equal(d.column("expression")[kept], exp)
    assert d.manifest["expression_names"][:2] == ["exp79_00", "exp79_01"] and len(d.manifest["expression_names"]) == 79
    assert "track_params.pt has no usable row: expression of the nearest frame: 6 (1 frame)" in text
    poses[9, :3, 3] += 0.1  # another run's row
    er_layout.write_track(folder, poses[kept], 900.0)
    _, text = imported(folder, tmp_path, capsys)
    assert "another pose than the json: 9 (1 frame)" in text and "focal length 900" in text


def test_a_track_that_is_no_plain_file_is_not_run(whole, tmp_path, capsys):
    folder = copy(whole, tmp_path)
    evil = "import torch, sys, os\nclass E:\n  def __reduce__(self): return os.mkdir, (sys.argv[2],)\n"
    evil += "torch.save({'exp': E()}, sys.argv[1])"
    subprocess.run([sys.executable, "-c", evil, folder / "track_params.pt", tmp_path / "ran"], check=True)
    d, text = imported(folder, tmp_path, capsys)
    assert "track_params.pt: not used" in text and not (tmp_path / "ran").exists()
    assert d.manifest["expression_names"] == [] and d.column("expression").shape == (N, 0)


@pytest.fixture(scope="module")
def avatar_folder(native, tmp_path_factory):
    """An Avatar-ERNeRF folder with whole frames of 120x96, in which a disc of changing colour stands before grey."""
    folder = tmp_path_factory.mktemp("avatar") / "f"
    er_layout.export(native, folder, {"audio_feat.npy": windows()}, "avatar_ernerf")
    y, x = np.mgrid[:96, :120]
    alpha = np.clip(30 - np.hypot(y - 50, x - 60), 0, 1)[..., None]
    with VideoWriter(folder / "input.mp4", 96, 120) as video, VideoWriter(folder / "alpha.mp4", 96, 120) as mattes:
        for k in range(N):
            shown = alpha * np.array([10 * k, 200, 60]) + (1 - alpha) * 128
            video.write(np.rint(shown).astype(np.uint8))
            mattes.write(np.rint(255 * np.repeat(alpha, 3, -1)).astype(np.uint8))
    (folder / "head_bbox.json").write_text(json.dumps({"head_bbox": [20, 10, 100, 90]}))
    facts = {"afe_model_name": "hubert", "data_dir": "/moved", "infer_params": {"merge_mode": 2}}
    (folder / "model_data.json").write_text(json.dumps({**facts, "background_trt": "gray"}))
    return folder


def test_the_import_needs_neither_torch_nor_jax(whole, tmp_path):
    code = "import sys\nsys.modules.update(torch=None, jax=None)\nfrom preprocess.importers import dataset\n"
    code += "sys.exit(dataset.main(sys.argv[1:]))"
    arguments = ["--source", whole[0], "--workdir", tmp_path / "w"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert_same_frames(contract.Dataset(tmp_path / "w" / "dataset"), whole[1], list(range(N)))


def test_whole_frames_classes_and_facts_of_avatar_ernerf(avatar_folder, tmp_path, capsys):
    folder = shutil.copytree(avatar_folder, tmp_path / "f")
    (folder / "parsing_label/3.png").unlink()
    d, text = imported(folder, tmp_path, capsys)
    source = d.manifest["source"]
    assert source["crop_px"] == [20, 10, 100, 90] and source["full_size"] == [120, 96] and source["scale"] == 0.5
    assert source["model_data"]["infer_params"] == {"merge_mode": 2} and "data_dir" not in source["model_data"]
    for i in range(N):
        label = images.decode_png(d.frame_bytes("label_bytes", i if i != 3 else 2))
        classes = images.decode_png(d.frame_bytes("class_bytes", i))
        np.testing.assert_array_equal(classes, er_layout.CLASS_OF_LABEL[label])
        np.testing.assert_array_equal(frame_pictures.CLASSES[classes], label)
    assert "no parsing_label: classes of the nearest earlier frame: 3" in text
    assert "alpha.mp4 is not used: what stands behind the person is not one colour" in text
    assert "background_trt" not in source and "full_alpha.mp4" not in d.manifest["files"]
    frames, given = (list(read_frames(p)) for p in (d.path("full.mp4"), folder / "input.mp4"))
    assert len(frames) == N and min(frame_pictures.psnr(a, b) for a, b in zip(frames, given)) > 38
    (folder / "head_bbox.json").write_text(json.dumps({"head_bbox": [20, -10, 100, 90]}))
    d, text = imported(folder, tmp_path, capsys)
    assert "is not inside its 120x96 pixels" in text and "full.mp4" not in d.manifest["files"]


def test_a_constant_background_makes_a_keyed_clip(avatar_folder, tmp_path, capsys):
    folder = shutil.copytree(avatar_folder, tmp_path / "f")
    (folder / "bc.jpg").write_bytes(images.encode_jpeg(np.full((48, 40, 3), 128, np.uint8)))
    for part in ("train", "val"):  # frames 0 and 1 are not in the json: whole frames keep in step
        path = folder / f"transforms_{part}.json"
        data = json.loads(path.read_text())
        data["frames"] = [f for f in data["frames"] if f["img_id"] >= 2]
        path.write_text(json.dumps(data))
    d, text = imported(folder, tmp_path, capsys)
    assert d.manifest["source"]["background_trt"] == [128, 128, 128] and "alpha.mp4 -> full_alpha.mp4" in text
    frames = list(read_frames(d.path("full.mp4")))
    mattes = [m[..., 0] for m in read_frames(d.path("full_alpha.mp4"))]
    assert len(frames) == len(mattes) == N - 2
    for k, (rgb, alpha) in enumerate(zip(frames, mattes)):
        assert alpha[50, 60] == 255 and alpha[2, 2] == 0
        np.testing.assert_allclose(rgb[alpha > 40].mean(0), [10 * (k + 2), 200, 60], atol=5)  # no grey at the edge
        np.testing.assert_allclose(rgb[2, 2], [10 * (k + 2), 200, 60], atol=12)  # continued
        crop = images.decode_png(d.frame_bytes("alpha_bytes", k))
        assert crop.shape == (48, 40) and crop[24, 20] == 255 and crop[0, 0] == 0
    clip = DatasetClip(d.root, tmp_path / "cache")
    assert clip.target(0).shape == (48, 40, 3)


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ("gray", (128, 128, 128)), ("(1, 2, 3)", (1, 2, 3)), ([4, 5, 6], (4, 5, 6)), ("cyan", (255, 255, 0)),
        ("yellow", (0, 255, 255)), ("__import__('os')", None),
        ("9" * 5000 + ", 0, 0", None), ("1, ٣, 3", None), ("[007, 8,09]", (7, 8, 9)),
        ("/a/picture.png", None), ([1, 2], None), (None, None),
        ([1, 2, 300], None),
    ],
)  # fmt: skip
def test_target_colours_are_read_as_avatar_ernerf_meant_them(named, expected):
    assert whole_frames.parse_colour(named) == expected
    if expected:
        plate = np.clip(np.array(expected) + np.random.default_rng(0).integers(-3, 4, (9, 9, 3)), 0, 255)
        assert whole_frames.constant_colour(named, plate.astype(np.uint8)) == expected


def test_without_sound_or_arrays_there_is_nothing_to_train_on(whole, tmp_path, capsys):
    folder = copy(whole, tmp_path)
    (folder / "aud.wav").unlink()
    d, _ = imported(folder, tmp_path)
    assert set(d.manifest["audio"]) == {"deepspeech"} and "audio.wav" not in d.manifest["files"]
    np.save(folder / "aud_ds.npy", np.zeros((N, 1)))
    with pytest.raises(UserError, match=r"holds no sound .*class labels"):
        imported(folder, tmp_path)
    (folder / "aud_ds.npy").unlink()
    d, text = imported(folder, tmp_path, capsys)
    assert d.manifest["audio"] == {} and "neither sound nor feature arrays" in text


@given(st.sets(st.integers(0, 60)))
def test_ranges_are_compact_and_complete(numbers):
    text = tables.ranges(numbers)
    back = set()
    for part in filter(None, text.split(", ")):
        a, _, b = part.partition("-")
        back |= set(range(int(a), int(b or a) + 1))
    assert back == numbers and len(text.split(", ")) <= max(1, len(numbers))


def test_other_arrays_and_bad_numbers_are_taken_as_they_are(whole, tmp_path, capsys):
    folder = copy(whole, tmp_path)
    pairs = np.random.default_rng(0).standard_normal((N - 1, 2, 1024)).astype(np.float32)
    pairs[5] = np.nan
    np.save(folder / "aud_hu.npy", pairs)
    foreign = np.random.default_rng(1).standard_normal((N, 16, 44))  # windows that do not overlap consistently
    np.save(folder / "aud_eo.npy", foreign)
    np.save(folder / "aud.npy", windows())  # the name under which DeepSpeech is extracted
    np.save(folder / "Obama_mel.npy", np.ones((N, 8, 80)))
    d, text = imported(folder, tmp_path, capsys)
    assert set(d.manifest["audio"]) == {"logmel", "deepspeech", "wav2vec2", "hubert", "mel"}
    np.testing.assert_array_equal(
        feature_arrays.to_windows(d.audio_features("wav2vec2"), N), foreign.astype(np.float32)
    )
    hubert = feature_arrays.to_windows(d.audio_features("hubert"), N)
    np.testing.assert_array_equal(hubert[[0, 4, 6, N - 2]], pairs[[0, 4, 6, N - 2]])
    assert np.isfinite(hubert).all() and not hubert[N - 1].any()
    for said in (
        "aud_hu.npy is not finite here: the nearest steps instead: 5 (1 frame)",
        "aud_hu.npy has no window for these frames: zeros: 13",
        "window 0 does not begin with zeros",
        "aud.npy is a second deepspeech array",
    ):
        assert said in text


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda d: d.update(focal_len=999.0), "one camera"),
        (lambda d: d.pop("frames"), "no list of frames"),
        (lambda d: d["frames"].append({"transform_matrix": []}), "img_id None"),
        (lambda d: d["frames"].append({"img_id": -1}), "img_id -1"),
        (lambda d: d["frames"].append({"img_id": "7"}), "img_id '7'"),
    ],
)
def test_broken_transforms_are_one_sentence(whole, tmp_path, capsys, change, part):
    folder = copy(whole, tmp_path)
    path = folder / "transforms_val.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    assert dataset.main(["--source", str(folder), "--out", str(tmp_path / "o")]) == 2
    error = capsys.readouterr().err
    assert part in error and "transforms_val.json" in error and error.count("\n") == 1


def test_poses_that_are_none_are_holes(whole, tmp_path, capsys):
    folder = copy(whole, tmp_path)
    path = folder / "transforms_train.json"
    data = json.loads(path.read_text())
    for frame in data["frames"]:
        if frame["img_id"] in (1, 6, 7):
            frame["transform_matrix"][frame["img_id"] % 3][0] = float("nan") if frame["img_id"] == 1 else 5.0
        if frame["img_id"] == 9:
            del frame["transform_matrix"]
    path.write_text(json.dumps(data))
    d, text = imported(folder, tmp_path, capsys)
    assert "no usable transform_matrix: 1, 6-7, 9 (4 frames)" in text
    np.testing.assert_array_equal(np.flatnonzero(d.column("confidence") == 0), [1, 6, 7, 9])
    assert_same_frames(d, whole[1], [0, 2, 3, 4, 5, 8, 10, 11, 12, 13])


def test_a_split_that_interleaves_is_said(whole, tmp_path, capsys):
    folder = copy(whole, tmp_path)
    both = [json.loads((folder / f"transforms_{p}.json").read_text()) for p in ("train", "val")]
    frames = both[0]["frames"] + both[1]["frames"]
    for data, part, odd in zip(both, ("train", "val"), (0, 1)):
        (folder / f"transforms_{part}.json").write_text(json.dumps({**data, "frames": frames[odd::2]}))
    d, text = imported(folder, tmp_path, capsys)
    assert "interleave" in text and d.train_range == (0, N * 10 // 11)
    (folder / "transforms_train.json").unlink()
    d, text = imported(folder, tmp_path, capsys)
    assert "one part only" in text and d.n_frames == N - 1 and d.manifest["source"]["first_img_id"] == 1
