"""Write a clip of the synthetic subject, and its truth as a dataset of the contract."""

import contextlib
import tempfile
from pathlib import Path

import numpy as np
from tqdm import tqdm

import tkjax
from tkjax import contract
from tkjax.errors import UserError
from tkjax.media.audio import logmel, logmel_features, write_wav
from tkjax.media.images import encode_jpeg, encode_png
from tkjax.media.video import VideoWriter
from tkjax.synthetic.performance import perform
from tkjax.synthetic.speech import speech

BLOCK = 16  # frames handed to the writer at once


def make(
    out: str | Path,
    seconds: float | int = 12,
    size: int = 256,
    seed: int = 0,
    motion: float | int = 1.0,
    subject_seed: int | None = None,
    progress: bool = True,
) -> Path:
    """Write out/clip.mp4 (25 fps, H.264 and AAC) and out/dataset (its exact truth); returns the dataset's path.

    size: pixels of the square picture; motion: range of the head's motion, 1 is natural; subject_seed: who
    speaks (default: seed). The same arguments give the same pictures. The frames of the dataset are the
    renders themselves, not the decoded mp4. Members besides the required ones: depth (float16 camera z in
    units at the pixel centre, NaN on the background) and alpha (coverage of the head).
    """
    if not (np.isfinite(seconds) and seconds >= 0.04):
        raise UserError(f"seconds is {seconds}, expected at least 0.04 (one frame)")
    if int(size) != size or not 32 <= size <= 4096:
        raise UserError(f"size is {size}, expected a whole number of pixels from 32 to 4096")
    if not (np.isfinite(motion) and 0 <= motion <= 3):
        raise UserError(f"motion is {motion}, expected 0 (none) to 3 (1 is natural)")
    out, size, who = Path(out), int(size), seed if subject_seed is None else subject_seed
    pcm, tracks = speech(seed, seconds)
    p = perform(tracks, seed=seed, subject_seed=who, motion_range=motion, size=size)
    k = p.camera.intrinsics
    landmarks, cam_to_world = p.landmarks_px(), p.cam_to_world
    columns = {
        "cam_to_world": cam_to_world,
        "landmarks_px": landmarks,
        **contract.boxes_from_landmarks68(landmarks, size, size),
        "expression": p.expression,
        "eye_closed": p.eye_closed,
        "confidence": np.ones(p.n_frames, np.float32),
    }
    made = {"seconds": float(seconds), "size": size, "seed": int(seed), "motion": float(motion)}
    made["subject_seed"] = int(who)
    writer = contract.DatasetWriter(
        out / "dataset",
        subject=f"synthetic-{who}",
        height=size,
        width=size,
        camera=dict(zip(("fx", "fy", "cx", "cy"), map(float, k))),
        landmark_scheme="ibug68",
        expression_names=contract.BLENDSHAPES,
        source={"kind": "synthetic", **made},
        tools={"tkjax": tkjax.__version__, "synthetic": made},
    )
    note = {
        "title": "tkjax synthetic subject",
        "comment": "Synthetic: a rendered figure and synthesised speech, no real person.",
    }
    blocks = np.split(pcm, range(contract.AUDIO_HZ, len(pcm), contract.AUDIO_HZ))
    with contextlib.ExitStack() as stack:
        dataset = stack.enter_context(writer)
        video = stack.enter_context(VideoWriter(out / "clip.mp4", size, size, audio=blocks, metadata=note))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tkjax-synthetic-")))
        frames = tqdm(p.frames(), total=p.n_frames, desc="synthetic", unit="frame", disable=not progress)
        rows: dict[str, list] = {}
        for i, frame in enumerate(frames):
            video.write(frame["rgb"])
            row = {
                "image_bytes": encode_jpeg(frame["rgb"], 96),
                "torso_bytes": encode_png(frame["torso"]),
                "label_bytes": encode_png(frame["label"]),
                "alpha_bytes": encode_png(frame["alpha"]),
                "depth": frame["depth"],
            }
            for name, value in row.items():
                rows.setdefault(name, []).append(value)
            count = len(rows["depth"])
            if count == BLOCK or i + 1 == p.n_frames:
                part = {name: values[i + 1 - count : i + 1] for name, values in columns.items()}
                dataset.add({**part, **rows, "depth": np.stack(rows["depth"])})
                rows = {}
        dataset.add_file(contract.BACKGROUND, encode_png(p.plate()))
        write_wav(folder / "audio.wav", pcm)
        dataset.add_file(contract.AUDIO, folder / "audio.wav")
        f = logmel_features(logmel(pcm))
        contract.save_audio_features(
            folder / "logmel.npz", f.kind, f.features, f.rate_hz, f.start_s, f.extractor, f.window, f.hop, f.left, f.pad
        )
        dataset.add_file(f"audio_{f.kind}.npz", folder / "logmel.npz")
    return out / "dataset"
