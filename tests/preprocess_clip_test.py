"""Clips through the command: errors in one sentence with nothing left, a real clip to a valid dataset, kills."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from preprocess import lips
from preprocess.__main__ import main
from preprocess.framing.survey import Framing, choose_framing, timestamps
from tkjax import contract
from tkjax.media import audio, images, video

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 3


def write(path: Path, frames, sound=True) -> Path:
    frames = list(frames)
    pcm = [0.1 * np.sin(np.arange(640) / 9).astype(np.float32)] * len(frames) if sound else None
    with video.VideoWriter(path, *frames[0].shape[:2], audio=None if pcm is None else iter(pcm)) as w:
        for f in frames:
            w.write(f)
    return path


@pytest.fixture(scope="session")
def talking(data_dir) -> list[np.ndarray]:
    """The first three seconds of the talking clip at 256 pixels."""
    frames = video.read_frames(data_dir / "talking" / "may_portrait_512.mp4", 0, SECONDS * 25)
    return [images.resize_area(f, (256, 256)) for f in frames]


@pytest.fixture(scope="session")
def clip(talking, tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("clip") / "clip.mp4", talking)


def command(video_path, workdir, models_dir, *flags) -> list[str]:
    return ["--video", str(video_path), "--workdir", str(workdir), "--models_dir", str(models_dir), *flags]


def refused(capsys, tmp_path, video_path, models_dir, *flags) -> str:
    """The sentence of a run that must fail and leave no trace."""
    workdir = tmp_path / "deep" / "W"
    assert main(command(video_path, workdir, models_dir, *flags)) == 2
    out = capsys.readouterr()
    assert out.err.count("\n") == 1 and out.err.strip(), out.err
    assert not (tmp_path / "deep").exists()
    return out.err


NOISE = np.random.default_rng(0).integers(90, 160, (128, 128, 3)).astype(np.uint8)


def test_files_that_are_no_talking_clip_are_refused(capsys, tmp_path):
    nowhere = tmp_path / "none"
    assert "no such file" in refused(capsys, tmp_path, tmp_path / "missing.mp4", nowhere)
    (tmp_path / "text.mp4").write_text("this is not a video")
    assert "text.mp4" in refused(capsys, tmp_path, tmp_path / "text.mp4", nowhere)
    assert "folder" in refused(capsys, tmp_path, tmp_path, nowhere)
    audio.write_wav(tmp_path / "sound.wav", np.zeros(48000, np.float32))
    assert "no moving picture" in refused(capsys, tmp_path, tmp_path / "sound.wav", nowhere)
    assert "no sound track" in refused(
        capsys, tmp_path, write(tmp_path / "mute.mp4", [NOISE] * 60, sound=False), nowhere
    )
    assert "1.60 s" in refused(capsys, tmp_path, write(tmp_path / "short.mp4", [NOISE] * 40), nowhere)
    assert "face_landmarker.task" in refused(capsys, tmp_path, write(tmp_path / "ok.mp4", [NOISE] * 60), nowhere)


def test_settings_that_make_no_sense_are_refused(capsys, tmp_path):
    ok = write(tmp_path / "ok.mp4", [NOISE] * 60)
    assert "--size=33" in refused(capsys, tmp_path, ok, tmp_path, "--size", "33")
    assert "foo" in refused(capsys, tmp_path, ok, tmp_path, "--audio_kinds", "foo")
    assert "--labels=foo" in refused(capsys, tmp_path, ok, tmp_path, "--labels", "foo")
    (tmp_path / "face_landmarker.task").write_bytes(b"PK" + bytes(99))
    assert "not a readable face landmarker bundle" in refused(capsys, tmp_path, ok, tmp_path)
    (tmp_path / "file").write_text("")
    assert main(command(ok, tmp_path / "file" / "W", tmp_path)) == 2


@pytest.mark.heavy
def test_clips_without_one_large_face_are_refused(capsys, tmp_path, talking, models_dir):
    blank = np.full((256, 256, 3), 120, np.uint8)
    assert "no face" in refused(capsys, tmp_path, write(tmp_path / "none.mp4", [blank] * 60), models_dir)
    gap = [blank if 20 <= i < 38 else f for i, f in enumerate(talking)]
    sentence = refused(capsys, tmp_path, write(tmp_path / "gap.mp4", gap), models_dir)
    assert "18 of 75" in sentence and "0.80 s, 0.84 s, 0.88 s" in sentence
    two = [np.concatenate([f, f[:, ::-1]], 1) for f in talking]
    assert "two people" in refused(capsys, tmp_path, write(tmp_path / "two.mp4", two), models_dir)
    small = []
    for f in talking:
        canvas = blank.copy()
        canvas[60:156, 60:156] = images.resize_area(f, (96, 96))
        small.append(canvas)
    assert "too small" in refused(capsys, tmp_path, write(tmp_path / "small.mp4", small), models_dir)


@pytest.fixture(scope="session")
def finished(clip, models_dir, tmp_path_factory) -> Path:
    """The workdir of an undisturbed run."""
    workdir = tmp_path_factory.mktemp("undisturbed") / "W"
    assert main(command(clip, workdir, models_dir)) == 0
    return workdir


@pytest.mark.heavy
def test_a_real_clip_becomes_a_valid_dataset(finished, talking):
    d = contract.Dataset(finished / "dataset")
    n = SECONDS * 25
    assert (d.n_frames, d.height, d.width, d.fps) == (n, 256, 256, 25.0)
    assert d.column("confidence").min() == 1
    first = images.decode_rgb(d.frame_bytes("image_bytes", 10))
    assert np.abs(first.astype(int) - talking[10]).mean() < 4
    figures = d.manifest["tools"]["track"]
    assert figures["error_px_mean"] < 1.0 and figures["jitter_deg"] < 0.4
    assert d.column("eye_closed").max() > 0.6  # she blinks in the first second
    labels = np.stack([images.decode_png(d.frame_bytes("label_bytes", i)) for i in range(0, n, 10)])
    share = np.bincount(labels.ravel(), minlength=4) / labels.size
    assert 0.2 < share[0] < 0.6 and 0.3 < share[1] < 0.6 and 0.01 < share[2] < 0.15 and 0.03 < share[3] < 0.3
    # labels are steady: few pixels change from frame to frame
    a, b = (images.decode_png(d.frame_bytes("label_bytes", i)) for i in (30, 31))
    assert (a != b).mean() < 0.02
    torso = images.decode_png(d.frame_bytes("torso_bytes", 10))
    own = labels[1] == 3
    assert (torso[own, 3] == 255).all() and np.array_equal(torso[own, :3], first[own])
    with np.load(finished / "dataset" / "audio_logmel.npz") as z:
        assert z["features"].shape == (n * 2, 80)
    assert {"qa/contact_sheet.png", "qa/overlay.mp4", "qa/reprojection_error.png"} <= set(d.manifest["files"])
    info = video.probe(finished / "dataset" / "qa" / "overlay.mp4")
    assert info.n_frames == n and info.has_audio


@pytest.mark.heavy
def test_landmarks_project_where_the_track_says(finished, models_dir):
    from preprocess.faces.face_model import RIGID_IDS, load_canonical

    d = contract.Dataset(finished / "dataset")
    world = load_canonical(models_dir / "face_landmarker.task").vertices_cm[list(RIGID_IDS)] / contract.UNIT_CM
    poses, (fx, fy, cx, cy) = d.column("cam_to_world").astype(np.float64), d.intrinsics
    p = np.einsum("nji,npj->npi", poses[:, :3, :3], world[None] - poses[:, None, :3, 3])
    px = np.stack([cx + fx * p[..., 0] / -p[..., 2], cy - fy * p[..., 1] / -p[..., 2]], -1)
    error = np.linalg.norm(px - d.column("landmarks_px")[:, list(RIGID_IDS)], axis=-1)
    assert error.mean() < 4  # the mean face on another person's, at 256 pixels
    assert 1.5 < np.linalg.norm(poses[:, :3, 3], axis=1).mean() < 6


@pytest.mark.heavy
def test_a_second_run_changes_nothing_and_a_new_setting_reruns_only_what_needs_it(finished, clip, models_dir, capsys):
    manifest = (finished / "dataset" / "manifest.json").read_bytes()
    assert main(command(clip, finished, models_dir)) == 0
    lines = capsys.readouterr().out
    assert lines.count("unchanged") == 13 and "starts" not in lines
    assert (finished / "dataset" / "manifest.json").read_bytes() == manifest


@pytest.mark.heavy
def test_frames_without_a_face_get_confidence_0_and_shift_nothing(talking, models_dir, tmp_path, finished):
    blank = np.full((256, 256, 3), 120, np.uint8)
    gap = [blank if 40 <= i < 46 else f for i, f in enumerate(talking)]
    assert main(command(write(tmp_path / "gap.mp4", gap), tmp_path / "W", models_dir)) == 0
    a, b = contract.Dataset(finished / "dataset"), contract.Dataset(tmp_path / "W" / "dataset")
    assert np.flatnonzero(b.column("confidence") == 0).tolist() == list(range(40, 46)) and b.n_frames == a.n_frames
    seen = b.column("confidence") > 0
    assert np.abs(a.column("landmarks_px") - b.column("landmarks_px"))[seen].max() < 3
    r = np.einsum("nji,njk->nik", a.column("cam_to_world")[:, :3, :3], b.column("cam_to_world")[:, :3, :3])
    assert np.degrees(np.arccos(np.clip((np.trace(r, axis1=1, axis2=2) - 1) / 2, -1, 1))).max() < 4


@pytest.mark.heavy
def test_a_clip_of_two_framings_stops_before_its_labels_until_that_is_accepted(talking, models_dir, tmp_path, capsys):
    near = [images.resize_area(np.kron(f[32:224, 32:224], np.ones((2, 2, 1), np.uint8)), (256, 256)) for f in talking]
    two = write(tmp_path / "two.mp4", [*talking[:40], *near[40:]])
    workdir = tmp_path / "W"
    assert main(command(two, workdir, models_dir)) == 2
    out = capsys.readouterr()
    assert out.err.count("\n") == 1 and "1.60 s" in out.err and "--accept=content" in out.err
    assert not (workdir / "dataset").exists() and not (workdir / "preprocess" / "labels").exists()
    rows = json.loads((workdir / "preprocess" / "checks.json").read_text())
    assert {r["verdict"] for r in rows if r["stage"] == "poses"} == {"good"}  # the cut is known to the tracker
    assert main(command(two, workdir, models_dir, "--accept", "content")) == 0
    assert "fail, accepted" in capsys.readouterr().out
    found = contract.validate(workdir / "dataset")["checks"]
    assert [r["accepted"] for r in found if r["verdict"] == "fail"] == [True]


@pytest.mark.heavy
@pytest.mark.parametrize("hz", [2.0, 3.0])
def test_real_landmarks_of_a_swinging_head_are_followed(talking, models_dir, tmp_path, hz):
    from preprocess.faces import landmarker
    from preprocess.faces.face_model import load_canonical
    from preprocess.tracking import pose
    from preprocess.tracking.pose_checks import face_heights
    from preprocess.workers import pool

    model = models_dir / "face_landmarker.task"
    swing = (30 * np.sin(2 * np.pi * hz * np.arange(50) / 25)).round().astype(int)
    pictures = [np.roll(f, x, 1) for f, x in zip(talking, swing, strict=False)]
    with pool(tmp_path / "log") as executor:
        faces = executor.submit(landmarker.detect, str(model), pictures).result()
    ids, weight = pose.rigid_points()
    canonical = load_canonical(model).vertices_cm[ids]
    track = pose.fit(faces.landmarks[:, ids, :2], faces.found, canonical, weight, 256, 256)
    error = track.error_px / face_heights(track.translation_cm, track.f_px)
    assert np.nanmedian(error) < 0.005 and np.nanmax(error) < 0.01


@pytest.mark.heavy
def test_lips_of_a_video_and_of_a_folder_of_its_frames_agree(talking, models_dir, tmp_path, finished):
    short = [talking[0], np.full((256, 256, 3), 120, np.uint8), *talking[1:4]]
    (tmp_path / "frames").mkdir()
    for i, f in enumerate(short):
        np.save(tmp_path / "frames" / f"{i:03d}.npy", f)
    for source in (write(tmp_path / "v.mp4", short), tmp_path / "frames"):
        out = tmp_path / f"{source.name}.npz"
        assert lips.main(["--frames", str(source), "--out", str(out), "--models_dir", str(models_dir)]) == 0
    a, b = np.load(tmp_path / "v.mp4.npz"), np.load(tmp_path / "frames.npz")
    assert a["landmarks_px"].shape == (5, 478, 2) and (a["height"], a["width"]) == (256, 256)
    assert a["confidence"].tolist() == b["confidence"].tolist() == [1, 0, 1, 1, 1]
    assert np.abs(a["landmarks_px"] - b["landmarks_px"]).max() < 4
    tracked = contract.Dataset(finished / "dataset").column("landmarks_px")
    assert np.abs(b["landmarks_px"][2:] - tracked[1:4]).mean() < 1


def test_lips_without_a_model_or_frames_say_why(tmp_path, capsys):
    ok = write(tmp_path / "ok.mp4", [NOISE] * 3)
    for frames in (ok, tmp_path / "missing.mp4"):
        assert (
            lips.main(["--frames", str(frames), "--out", str(tmp_path / "x.npz"), "--models_dir", str(tmp_path)]) == 2
        )
        assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "x.npz").exists()


def start(clip, workdir, models_dir) -> subprocess.Popen:
    args = [sys.executable, "-m", "preprocess", *command(clip, workdir, models_dir)]
    return subprocess.Popen(
        args, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ}
    )


def killed_and_restarted(clip, workdir, models_dir, moments) -> None:
    """Kill -9 after each of the stages named in `moments` has started (and a little later), then run to the end."""
    for stage, later in moments:
        process = start(clip, workdir, models_dir)
        for line in process.stdout:
            if line.startswith((f"{stage}: starts", f"{stage}: continues")):
                break
        time.sleep(later)
        process.kill()
        process.wait()
        process.stdout.close()
    process = start(clip, workdir, models_dir)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output


@pytest.mark.heavy
def test_a_killed_run_completes_with_the_same_bytes(clip, finished, models_dir, tmp_path):
    killed_and_restarted(clip, tmp_path / "W", models_dir, [("labels", 0.5)])
    same_dataset(tmp_path / "W", finished)


@pytest.mark.slow  # six runs of the whole command
def test_five_kills_at_random_moments_change_nothing(clip, finished, models_dir, tmp_path):
    rng = random.Random(0)
    moments = [(s, rng.uniform(0, 2)) for s in ("survey", "normalise", "landmarks", "torso", "qa")]
    killed_and_restarted(clip, tmp_path / "W", models_dir, moments)
    same_dataset(tmp_path / "W", finished)


def same_dataset(a: Path, b: Path) -> None:
    one, two = (json.loads((w / "dataset" / "manifest.json").read_text()) for w in (a, b))
    assert one["files"] == two["files"] and one["digest"] == two["digest"]
    contract.validate(a / "dataset")
    assert not list((a / "preprocess").glob("*.partial-*"))


def face_at(x: float, y: float, height: float) -> np.ndarray:
    """[1,478,2] landmarks of a face of that height around (x, y)."""
    out = np.full((1, 478, 2), [x, y], np.float64)
    out[0, 10], out[0, 152] = (x, y - height / 2), (x, y + height / 2)
    return out


@pytest.mark.parametrize("x, y, tall", [(200, 300, 150), (1800, 500, 400), (960, 60, 90), (20, 1000, 900)])
def test_a_crop_is_a_square_inside_the_picture_that_holds_the_face(x, y, tall):
    f = choose_framing(face_at(x, y, tall), 1080, 1920, "auto", 0)
    x0, y0, x1, y1 = f.crop_px
    assert 0 <= x0 < x1 <= 1920 and 0 <= y0 < y1 <= 1080 and x1 - x0 == y1 - y0
    assert x0 <= x <= x1 and y0 <= y <= y1
    assert f.height == f.width <= 512 and f.height % 2 == 0


def test_a_square_portrait_stays_whole_and_keeps_its_pixels():
    assert choose_framing(face_at(256, 240, 230), 512, 512, "auto", 0) == Framing((0, 0, 512, 512), 512, 512)
    assert choose_framing(face_at(400, 400, 100), 600, 800, "none", 0) == Framing((0, 0, 800, 600), 384, 512)
    assert choose_framing(face_at(256, 240, 230), 512, 512, "auto", 256) == Framing((0, 0, 512, 512), 256, 256)


def test_timestamps_name_the_first_frames():
    assert timestamps(np.array([0, 12])) == "0.00 s, 0.48 s"
    assert timestamps(np.arange(5)) == "0.00 s, 0.04 s, 0.08 s and 2 more"
