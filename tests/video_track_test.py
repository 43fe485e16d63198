"""A track of a video: its channels against the tracker's own, stopping and going on, and what is refused."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest

from preprocess import video_track, workers
from preprocess.faces import landmarker
from preprocess.tracking import track as posing
from tkjax.app import cli, options
from tkjax.contract import BLENDSHAPES
from tkjax.errors import UserError
from tkjax.formats import head_pose, looks, tracks
from tkjax.media import images, video

pytestmark = pytest.mark.heavy
N = 70  # frames: a chunk of 64 and a part of one


@pytest.fixture(scope="module")
def clip(data_dir, tmp_path_factory) -> Path:
    """Frames of the talking clip at 256 pixels, without sound."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    frames = video.read_frames(data_dir / "talking" / "may_portrait_512.mp4", 0, N)
    with video.VideoWriter(path, 256, 256, fps=25) as out:
        for rgb in frames:
            out.write(images.resize_area(rgb, (256, 256)))
    return path


def run(*arguments) -> int:
    return video_track.main([f"--{name}={value}" for name, value in arguments])


@pytest.fixture(scope="module")
def stopped(clip, models_dir, tmp_path_factory):
    """(the track, what was printed first, what was printed then) of a run that is stopped and goes on."""
    out = tmp_path_factory.mktemp("track") / "t.npz"
    printed, usual = [], sys.stdout

    def stop(*_):
        raise KeyboardInterrupt

    for first in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            if first:
                patch.setattr(posing, "track", stop)
            patch.setattr(sys, "stdout", io.StringIO())
            code = run(("video", clip), ("out", out), ("models_dir", models_dir))
            printed.append(sys.stdout.getvalue())
        assert sys.stdout is usual and code == (130 if first else 0)
        assert out.exists() == (not first) and (out.parent / ".t.npz.stages").exists() == first
    return out, *printed


def test_a_run_that_was_stopped_goes_on_where_it_was(stopped, clip, models_dir, capsys):
    out, first, then = stopped
    assert "faces: starts" in first and "faces: unchanged" in then and "poses: continues" in then
    assert f"{N} frames at 25 a second, {len(video_track.CHANNELS)} channels" in then
    before = out.stat()
    assert run(("video", clip), ("out", out), ("models_dir", models_dir)) == 0
    assert f"{out}: unchanged" in capsys.readouterr().out and out.stat().st_mtime_ns == before.st_mtime_ns


def test_its_channels_are_the_trackers_own(stopped, clip, models_dir, tmp_path):
    track = tracks.read(stopped[0], 60.0)
    assert track.names == video_track.CHANNELS
    np.testing.assert_allclose(track.time_s, np.arange(N) / 25)
    pictures = list(video.read_frames(clip, 0, 12))
    with workers.pool(tmp_path / "log") as executor:
        faces = executor.submit(landmarker.detect, str(models_dir / "face_landmarker.task"), pictures).result()
    np.testing.assert_array_equal(track.columns(BLENDSHAPES)[:12], faces.blendshapes)
    looked = dict(zip(BLENDSHAPES, faces.blendshapes.T, strict=True))
    np.testing.assert_allclose(track.columns(looks.GAZE)[:12], looks.direction_of(looked, 12), atol=1e-6)
    assert (track.columns(["confidence"]) == 1).all()
    closed = track.columns(["eye_closed"])
    assert closed.min() == 0 and 0 <= closed.max() <= 1
    place, turns = track.columns(head_pose.PLACES), track.columns(head_pose.TURNS)
    assert (np.abs(place[:, :2]) < 20).all() and (-150 < place[:, 2]).all() and (place[:, 2] < -40).all()
    eyes = faces.landmarks[:, 263, :2] - faces.landmarks[:, 33, :2]  # the person's left eye lies right in the picture
    roll = np.arctan2(-eyes[:, 1], eyes[:, 0])
    np.testing.assert_allclose(turns[:12, 2], roll, atol=0.08)


def test_a_csv_holds_the_same_numbers(stopped, clip, models_dir, tmp_path):
    cli.run(
        options.parse(
            [
                "launch.py",
                "--mode=track",
                f"--video={clip}",
                f"--out={tmp_path / 't.csv'}",
                f"--models_dir={models_dir}",
            ]
        )
    )
    text, binary = tracks.read(tmp_path / "t.csv", 25.0), tracks.read(stopped[0], 25.0)
    assert text.names == binary.names
    np.testing.assert_allclose(text.values, binary.values, rtol=1e-5, atol=1e-6)
    assert [p.name for p in tmp_path.iterdir()] == ["t.csv"]


def test_what_cannot_become_a_track_is_a_sentence_and_leaves_nothing(clip, models_dir, tmp_path, capsys):
    with video.VideoWriter(tmp_path / "blank.mp4", 64, 64, fps=25) as out:
        for _ in range(30):
            out.write(np.full((64, 64, 3), 90, np.uint8))
    (tmp_path / "text.mp4").write_text("no video")
    there = {p.name for p in tmp_path.iterdir()}
    for source, out, word in (
        (tmp_path / "blank.mp4", tmp_path / "t.npz", "shows no face"),
        (tmp_path / "text.mp4", tmp_path / "t.npz", r"text.mp4"),
        (tmp_path / "none.mp4", tmp_path / "t.npz", "there is no file"),
        (clip, tmp_path / "t.txt", "a track is an .npz or a .csv"),
    ):
        assert run(("video", source), ("out", out), ("models_dir", models_dir)) == 2
        said = capsys.readouterr().err.strip().splitlines()
        assert word in said[-1], said
        assert {p.name for p in tmp_path.iterdir()} == there
    assert run(("video", clip), ("out", tmp_path / "t.npz"), ("models_dir", models_dir), ("min_face", 400)) == 2
    assert "too small" in capsys.readouterr().err and {p.name for p in tmp_path.iterdir()} == there
    with pytest.raises(UserError, match="is the video"):
        cli.run(options.parse(["launch.py", "--mode=track", f"--video={clip}", f"--out={clip}"]))
