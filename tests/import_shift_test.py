"""Poses that the originals put to other frames come back to their own, whatever was done to the folder since."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocess.importers import dataset, misnumbering
from preprocess.importers.folder_layout import Notes, Transforms
from tests import er_layout
from tkjax import cameras, contract

N, SIZE, FOCAL = 60, 450, 1200.0
CAMERA = {"fx": FOCAL, "fy": FOCAL, "cx": SIZE / 2, "cy": SIZE / 2}


@dataclasses.dataclass
class Head:
    """A head that sways and nods: contract poses [n,4,4] and landmarks [n,68,2] with noise."""

    poses: np.ndarray
    points: np.ndarray


def head(seed: int, noise_px: float, n: int = N, sway: float = 1.0) -> Head:
    rng = np.random.default_rng(seed)
    world = rng.uniform([-0.35, -0.45, 0.0], [0.35, 0.45, 0.3], (68, 3))
    seconds, hertz, phase = np.arange(n)[:, None] / 25, rng.uniform(0.2, 0.7, 6), rng.uniform(0, 6, 6)
    waves = sway * np.sin(2 * np.pi * hertz * seconds + phase)
    poses = np.tile(np.eye(4), (n, 1, 1))
    for k, (a, b, c, x, y, z) in enumerate(waves * [0.15, 0.15, 0.1, 0.1, 0.1, 0.1]):
        turn = [[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]]
        turn = turn @ np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
        poses[k, :3, :3] = turn @ [[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]]
        poses[k, :3, 3] = poses[k, :3, :3] @ [x, y, 3.4 + z]
    k = np.array([FOCAL, FOCAL, SIZE / 2, SIZE / 2])
    points = np.stack([cameras.project_world(pose, k, world) for pose in poses])
    return Head(poses, points + noise_px * rng.standard_normal(points.shape))


def moved(folder: Path, h: Head, rows: list[int], lms: dict[int, int], pictures) -> tuple[Transforms, Notes]:
    """What the import makes of a json whose row k is frame rows[k]'s pose, beside landmark files {frame: whose}."""
    files = {}
    for i, whose in lms.items():
        files[i] = folder / f"{i}.lms"
        np.savetxt(files[i], h.points[whose], "%f")
    k = range(len(rows))
    part = {i: "train" if i < len(rows) * 10 // 11 else "val" for i in k}
    t, notes = Transforms({i: h.poses[rows[i]] for i in k}, {i: i for i in k}, part, {}, ["train", "val"]), Notes()
    out = misnumbering.unshift(t, {i: folder for i in pictures}, files, CAMERA, notes)
    misnumbering.check_fit(out, files, CAMERA, 0.0, notes)
    return out, notes


def assert_own(out: Transforms, h: Head, frames) -> None:
    """Those of the frames that have a pose have their own, and the sound of their own time."""
    for i, pose in out.poses.items():
        if i in frames:
            np.testing.assert_array_equal(pose, h.poses[i], err_msg=f"frame {i}")
            assert out.aud_id[i] == i


skipped_frames = st.sets(st.integers(2, N - 8), min_size=1, max_size=6)
HOW = (
    "untouched",
    "copied from before",
    "copied from behind",
    "more lost",
    "pictures cut",
    "json cut",
    "copied and cut",
)


@pytest.mark.heavy
@settings(max_examples=20)
@given(skipped_frames, st.sampled_from(HOW), st.integers(0, 99), st.sampled_from([0.0, 0.5, 1.5]), st.data())
def test_poses_come_back_to_their_frames(tmp_path_factory, skipped, how, seed, noise, data):
    h, rows = head(seed, noise), [i for i in range(N) if i not in skipped]
    lms, pictures = {i: i for i in rows}, range(N)
    if how.startswith("copied"):
        step = 1 if how == "copied from behind" else -1
        for i in sorted(skipped, reverse=step == 1):
            lms[i] = lms.get(i + step, i)
    if how == "more lost":
        for i in data.draw(st.sets(st.sampled_from(rows), min_size=1, max_size=3)):
            lms.pop(i)
    if how in ("pictures cut", "copied and cut"):
        pictures = range(len(rows))
    if how in ("json cut", "copied and cut"):
        rows = rows[: len(rows) * 10 // 11]
    lms = {i: whose for i, whose in lms.items() if i in pictures}
    out, notes = moved(tmp_path_factory.mktemp("lms"), h, rows, lms, pictures)
    if sum(i > min(skipped) for i in rows if i in lms) < 12:
        return  # too few frames behind the first that was skipped to tell anything
    assert "stand too early" in notes.said[0]
    # frames without landmarks are not trained on, and whose landmarks a frame has cannot be told from its copy's
    assert_own(out, h, {i for i in lms if list(lms.values()).count(lms[i]) == 1})
    assert not any("do not fit" in text for text in notes.said)


@pytest.mark.heavy
@settings(max_examples=15)
@given(
    st.sets(st.integers(0, N - 1), max_size=20), st.sets(st.integers(1, N - 1), max_size=6), st.integers(0, 99),
    st.sampled_from([0.0, 1.5]), st.sampled_from([0.0, 0.2, 1.0]), st.integers(N - 20, N),
)  # fmt: skip
def test_poses_that_are_in_their_place_stay(tmp_path_factory, lost, copied, seed, noise, sway, n):
    """Lost or copied landmarks, a still head, or a json of the first frames alone shift nothing."""
    h, lms = head(seed, noise, sway=sway), {i: i for i in range(N) if i not in lost}
    lms |= {i: lms[i - 1] for i in sorted(copied) if i - 1 in lms}
    out, notes = moved(tmp_path_factory.mktemp("lms"), h, list(range(n)), lms, range(N))
    assert out.ids == list(range(n))
    assert_own(out, h, range(N))
    assert not any("too early" in text or "do not fit" in text for text in notes.said)


def test_landmarks_that_were_made_again_are_no_evidence_of_a_frame_that_counted(tmp_path):
    skipped = {10, 25, 26}
    h, rows = head(3, 0.5), [i for i in range(N) if i not in skipped]
    out, _ = moved(tmp_path, h, rows, {i: i for i in range(N)}, range(N))
    assert_own(out, h, range(N))


def test_poses_of_another_clip_are_told(tmp_path):
    h = head(1, 0.5)
    other = dataclasses.replace(head(2, 0.5), points=h.points)
    _, notes = moved(tmp_path, other, list(range(N)), {i: i for i in range(N)}, range(N))
    (said,) = (text for text in notes.said if "do not fit" in text)
    assert "in no numbering" in said and "px of a face of" not in said and "at img_id" in said


@pytest.mark.heavy
def test_a_long_clip_with_many_skipped_frames(tmp_path):
    rng = np.random.default_rng(0)
    n = 600
    skipped = set(rng.choice(n - 10, 40, replace=False).tolist())
    h, rows = head(5, 1.0, n), [i for i in range(n) if i not in skipped]
    out, _ = moved(tmp_path, h, rows, {i: i for i in rows}, range(n))
    assert_own(out, h, rows)


@pytest.mark.heavy
@pytest.mark.parametrize("how", ["copied", "more lost", "pictures cut", "val missing"])
def test_a_shifted_folder_that_was_worked_on_is_imported_with_its_own_poses(how, tmp_path, capsys):
    n, skipped = 24, (5, 11)
    native = er_layout.portrait(tmp_path / "native", n)
    folder = er_layout.export(native, tmp_path / "f")
    for i in skipped:
        (folder / f"ori_imgs/{i}.lms").unlink()
        if how == "copied":  # the originals' loader does not start without
            shutil.copy(folder / f"ori_imgs/{i - 1}.lms", folder / f"ori_imgs/{i}.lms")
    if how == "more lost":
        (folder / "ori_imgs/15.lms").unlink()
    if how == "pictures cut":
        for path in [p for i in (22, 23) for p in folder.glob(f"*/{i}.*")]:
            path.unlink()
    rows = [i for i in range(n) if i not in skipped]
    poses, a = contract.Dataset(native).column("cam_to_world"), len(rows) * 10 // 11
    for part, (lo, hi) in (("train", (0, a)), ("val", (a, len(rows)))):
        path = folder / f"transforms_{part}.json"
        data = json.loads(path.read_text())
        frames = [
            {"img_id": k, "aud_id": k, "transform_matrix": er_layout.json_pose(poses[rows[k]])} for k in range(lo, hi)
        ]
        path.write_text(json.dumps({**data, "frames": frames}))
    if how == "val missing":
        (folder / "transforms_val.json").unlink()
    d = contract.Dataset(dataset.run(folder, tmp_path / "w" / "dataset"))
    assert "stand too early from img_id 5 on" in capsys.readouterr().out
    good = d.column("confidence") > 0
    assert good.sum() >= 17 and not good[list(skipped)].any()
    np.testing.assert_allclose(d.column("cam_to_world")[good], poses[: d.n_frames][good], atol=1e-6)
