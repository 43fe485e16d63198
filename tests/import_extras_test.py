"""Blinks, tracked coefficients, whole frames and facts of the older projects' folders."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocess.importers import dataset, frame_pictures, track_columns, whole_frames
from preprocess.importers.folder_layout import Notes
from tests import er_layout
from tests.imported_folder import N, assert_same_frames, copy, imported, windows
from tkjax import contract
from tkjax.data.dataset_clip import DatasetClip
from tkjax.errors import UserError
from tkjax.formats import tables
from tkjax.media import images
from tkjax.media.video import VideoWriter, read_frames


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    return er_layout.portrait(tmp_path_factory.mktemp("native") / "dataset", N)


@pytest.fixture(scope="module")
def whole(native, tmp_path_factory):
    """An ER-NeRF folder without holes, and its import."""
    root = tmp_path_factory.mktemp("er")
    folder = er_layout.export(native, root / "Obama", {"aud_ds.npy": windows()})
    return folder, contract.Dataset(dataset.run(folder, root / "w" / "dataset"))


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


@pytest.mark.heavy
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


@pytest.mark.heavy
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


@given(st.sets(st.integers(0, 60)))
def test_ranges_are_compact_and_complete(numbers):
    text = tables.ranges(numbers)
    back = set()
    for part in filter(None, text.split(", ")):
        a, _, b = part.partition("-")
        back |= set(range(int(a), int(b or a) + 1))
    assert back == numbers and len(text.split(", ")) <= max(1, len(numbers))
