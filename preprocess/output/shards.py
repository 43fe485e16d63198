"""The last step: stage outputs into a dataset of the contract."""

import json
from pathlib import Path

import numpy as np

from preprocess import chunks
from preprocess.resumable import progress
from tkjax.contract import BLENDSHAPES, DatasetWriter, boxes_from_landmarks68, landmarks68

SCHEME = "mediapipe478"


def write_dataset(
    root: Path,
    folders: dict[str, Path],
    *,
    n_frames: int,
    height: int,
    width: int,
    subject: str,
    source: dict,
    tools: dict,
    licences: dict,
    checks: list[dict],
) -> None:
    """Write W/dataset, one chunk in memory at a time; the old dataset stays until the new one is whole.

    folders: where the stages frames, track, labels, torso, plate, sound, audio and qa lie, and full where the crop is
    not the whole picture. checks: `checks.rows` for the manifest.
    """
    frames, track, labels, torso, plate, audio, qa = (
        folders[k] for k in ("frames", "track", "labels", "torso", "plate", "audio", "qa")
    )
    figures = json.loads((track / "track.json").read_text())
    focal = figures["focal_px"]
    camera = {"fx": focal, "fy": focal, "cx": width / 2, "cy": height / 2}
    with DatasetWriter(root, subject=subject, height=height, width=width, camera=camera, landmark_scheme=SCHEME,
                       expression_names=BLENDSHAPES, source=source, tools={**tools, "track": figures},
                       licences=licences, checks=checks) as writer:  # fmt: skip
        for i in progress(range(len(chunks.spans(n_frames))), len(chunks.spans(n_frames)), "dataset", "shards"):
            tracked, pictures = chunks.read_chunk(track, i), chunks.read_chunk(frames, i)
            matte = {"alpha_bytes": chunks.unpack(pictures, "alpha")} if "alpha_bytes" in pictures else {}
            points = tracked["landmarks_px"]
            writer.add({
                "image_bytes": chunks.unpack(pictures, "image"),
                **matte,
                "label_bytes": chunks.unpack(chunks.read_chunk(labels, i), "label"),
                "torso_bytes": chunks.unpack(chunks.read_chunk(torso, i), "torso"),
                "cam_to_world": tracked["cam_to_world"],
                "landmarks_px": points,
                **boxes_from_landmarks68(landmarks68(points, SCHEME), height, width),
                "expression": np.clip(tracked["expression"], 0, 1),
                "eye_closed": tracked["eye_closed"],
                "confidence": tracked["confidence"],
            })  # fmt: skip
        writer.add_file("background.png", plate / "background.png")
        writer.add_file("audio.wav", folders["sound"] / "audio.wav")
        for path in sorted(audio.glob("audio_*.npz")):
            writer.add_file(path.name, path)
        for path in sorted(folders["full"].glob("full*.mp4")) if "full" in folders else []:
            writer.add_file(path.name, path)
        for path in sorted(qa.glob("*.*")):
            if path.suffix != ".json":
                writer.add_file(f"qa/{path.name}", path)
