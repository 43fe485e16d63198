"""A track of any video: `python -m preprocess.video_track --video CLIP --out track.npz`; docs/tracks.md: its channels.

Faces, poses and blinks are found as preprocessing finds them, by its stages, in the whole frames at 25 a second. The
stages lie in a hidden folder beside the track while it is made, so that a run that was stopped goes on; an npz says
what it was made of, and is left as it is where the same would come out again. Exit code 2: the user's to mend.
"""

import argparse
import dataclasses
import io
import json
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType

import numpy as np

import tkjax
from preprocess import checks, chunks
from preprocess.command import exit_code
from preprocess.pipeline import FPS, checked_model, versions
from preprocess.resumable import Stages, hash_json, say, sha256_file
from preprocess.workers import native, pool
from tkjax.contract import BLENDSHAPES
from tkjax.errors import UserError
from tkjax.formats import head_pose, looks, tracks
from tkjax.host.files import write_atomic, writing
from tkjax.host.model_files import is_offline
from tkjax.media import hdr, video

MADE_OF = "made_of"  # of the npz: the key of all that it was made of
CHANNELS = (*BLENDSHAPES, *head_pose.CHANNELS, *looks.GAZE, "eye_closed", "confidence")
SUFFIXES = (".npz", ".csv")
LEAST_FRAMES = 10


@dataclasses.dataclass(frozen=True)
class Options:
    """What the user chose; see `preprocess.pipeline.Options`."""

    video: Path
    out: Path
    models_dir: str | None = None
    models_mirror: str = ""
    offline: bool = False
    min_face: int = 64


def check(options: Options) -> video.VideoInfo:
    """Facts of the video; UserError where it is none, or where the track has no place."""
    if options.out.suffix.lower() not in SUFFIXES:
        raise UserError(f"--out={options.out}: a track is an .npz or a .csv file")
    if options.out.is_dir():
        raise UserError(f"--out={options.out} is a folder, expected the name of a file")
    if not options.video.is_file():
        raise UserError(f"--video: there is no file {options.video}")
    return video.probe(options.video)


def run(options: Options) -> Path:
    """The track of a video; where it is."""
    info = check(options)
    with native("OpenCV (cv2)"):
        import cv2  # noqa: F401
    from preprocess.faces import face_model, fetch, landmarker
    from preprocess.framing import survey
    from preprocess.tracking import content, landmarks, pose, pose_checks, smooth, track

    model = checked_model(fetch.face_landmarker(options.models_dir, options.models_mirror, options.offline))
    source = {"source": sha256_file(options.video), "model": sha256_file(model)}
    facts = {"tkjax": tkjax.__version__, **versions()}
    seen = [landmarks, content, landmarker, survey, chunks, video, hdr]
    posed = [track, pose, smooth, pose_checks, face_model, landmarks, chunks]
    key = hash_json([source, facts, options.min_face, _digests([*seen, *posed, sys.modules[__name__]])])
    if made_of(options.out) == key:
        say(f"{options.out}: unchanged")
        return options.out
    folder = options.out.absolute().with_name(f".{options.out.name}.stages")
    with writing(options.out):
        folder.parent.mkdir(parents=True, exist_ok=True)
    with Stages(folder, facts) as stages:
        try:
            with pool(folder / "workers.log") as executor:
                expected = max(1, round(info.duration_s * FPS))
                found = stages.run(
                    "faces",
                    lambda out: landmarks.landmarks_of_video(
                        out, options.video, expected, model, options.min_face, executor
                    ),
                    {"min_face": options.min_face},
                    source,
                    seen,
                )
            size = json.loads((found.path / landmarks.VIDEO).read_text())
            n, h, w = size["frames"], size["height"], size["width"]
            if n < LEAST_FRAMES:
                raise UserError(
                    f"{options.video} has {n} frames at {FPS:g} a second; at least {LEAST_FRAMES} are needed"
                )
            small, points = (chunks.column(found.path, n, name) for name in ("small", "landmarks"))
            cuts = content.find_cuts(small, points[..., :2], chunks.column(found.path, n, "found")).tolist()
            tracked = stages.run(
                "poses",
                lambda out: track.track(out, found.path, n, h, w, model, FPS, cuts),
                {"height": h, "width": w, "cuts": cuts},
                {"landmarks": found.digest, "model": source["model"]},
                posed,
            )
        except UserError:
            stages.take_back()  # while the lock is held
            raise
        values = collect(tracked.path, n)
        write_atomic(options.out, encode(options.out.suffix, values, key))
        for judged in checks.read(tracked.path):
            if judged.verdict != checks.GOOD:
                say(f"poses: {judged.message}")
        summary(options.out, values)
        shutil.rmtree(folder, ignore_errors=True)
    return options.out


def _digests(modules: list[ModuleType]) -> dict[str, str]:
    return {m.__name__: sha256_file(Path(m.__file__)) for m in modules}


def collect(folder: Path, n: int) -> np.ndarray:
    """[n, C] in the order of `CHANNELS`, of the chunks of the stage `track`."""
    expression, closed, sure, cameras = (
        chunks.column(folder, n, name) for name in ("expression", "eye_closed", "confidence", "cam_to_world")
    )
    gaze = looks.direction_of(dict(zip(BLENDSHAPES, expression.T, strict=True)), n)
    parts = [expression, head_pose.of_cameras(cameras), gaze, closed[:, None], sure[:, None]]
    return np.concatenate(parts, 1).astype(np.float32)


def encode(suffix: str, values: np.ndarray, key: str) -> bytes:
    """The file; an npz with the key of what it was made of."""
    if suffix.lower() == ".csv":
        return tracks.encode(suffix, CHANNELS, values, FPS)
    with np.load(io.BytesIO(tracks.encode(suffix, CHANNELS, values, FPS)), allow_pickle=False) as made:
        members = dict(made)
    out = io.BytesIO()
    np.savez(out, **members, **{MADE_OF: np.array(key)})
    return out.getvalue()


def made_of(path: Path) -> str:
    """The key of a track that is there, "" where it tells none."""
    if path.suffix.lower() != ".npz" or not path.is_file():
        return ""
    try:
        with np.load(path, allow_pickle=False) as file:
            return str(file[MADE_OF]) if MADE_OF in file.files else ""
    except (*tracks.UNREADABLE, AttributeError):
        return ""


def summary(out: Path, values: np.ndarray) -> None:
    """Lines on what the track holds."""
    part = dict(zip(CHANNELS, values.T, strict=True))
    turns = " ".join(f"{name.split('_')[1]} {np.degrees(np.ptp(part[name])):.0f}" for name in head_pose.TURNS)
    sure, n = int(part["confidence"].sum()), len(values)
    say(
        f"{out}: {n} frames at {FPS:g} a second, {len(CHANNELS)} channels, a face and a pose that fits it in {sure} of "
        f"them; the head turns over {turns} degrees"
    )


def parser() -> argparse.ArgumentParser:
    """The flags, each with what it does."""
    p = argparse.ArgumentParser("preprocess.video_track", description="A track of channels of any video of one face.")
    p.add_argument("--video", required=True, type=Path, help="a video of one person, with or without sound")
    p.add_argument("--out", required=True, type=Path, help="the track, .npz or .csv")
    p.add_argument("--models_dir", help="folder with face_landmarker.task; else $TKJAX_MODELS, ~/.cache/tkjax")
    p.add_argument(
        "--models_mirror", default="", help="http(s) folder that the model is fetched from where it is missing"
    )
    p.add_argument("--offline", nargs="?", const="true", default="", help="fetch nothing, as TKJAX_OFFLINE=1")
    p.add_argument("--min_face", type=int, default=64, help="least height of the face in the video, in pixels")
    return p


def main(argv: list[str] | None = None) -> int:
    """0, or 2 with one sentence on standard error."""
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    args = parser().parse_args(argv)
    args.offline = args.offline.lower() not in ("", "0", "false", "no") or is_offline()
    return exit_code(lambda: run(Options(**vars(args))), "track")


if __name__ == "__main__":
    sys.exit(main())
