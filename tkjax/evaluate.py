"""Held-out frames against the truth: 8-bit pictures at training size, the same crops for every row (design §8).

Every row states which layers were given; the baselines stand beside the model and are scored alike.
Frames pass one at a time; only sums, the worst few and landmarks stay in memory.
"""

import dataclasses
import heapq
import platform
import tempfile
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from tkjax import __version__, audio, child, contract, drive, metrics, models_dir
from tkjax.errors import UserError
from tkjax.models.base import Model
from tkjax.render.image import final_clock
from tkjax.stream import draw
from tkjax.types import Variables
from tkjax.video import VideoWriter

KEYS = ("psnr", "psnr_face", "psnr_mouth", "ssim", "lmd_px", "lmd_norm")
MORE_KEYS = ("ssim_face", "ssim_mouth")
BASELINES = ("mean_frame", "nearest_frame")
SOURCES = ("model", *BASELINES)
N_WORST = 4
COMPARISON = "comparison.mp4"
NOTES = {
    "frames": "held-out frames only, at training size, rounded to 8 bits; the target is the frame with its "
    "background replaced by the plate",
    "PSNR": "10 log10(255² / MSE) over all pixels and channels of a frame (or of its face or lips box), then the mean "
    "over frames; equal pictures count as 100 dB",
    "boxes": "face: bounding box of the 68 points; mouth: square around the outer lips; frames whose face was "
    "not found by the tracker (confidence 0) count for the full frame only",
    "SSIM": "Gaussian 11x11 window, sigma 1.5, channels averaged, windows wholly inside the picture",
    "LMD": "the face tracker's lip points (48-67 of 68) in the picture and in the true frame, each set centred "
    "on its own mean; mean distance in pixels, and divided by the distance between the eyes' centres",
    "mean frame": "the mean of all training frames",
    "nearest frame": "the training frame whose head pose is nearest: RMS pixel distance of the corners of a 25 cm cube "
    "around the head",
    "rendering speed": "wall time from batch to 8-bit picture on this machine, without the first frame (compilation)",
}


def score(
    image: UInt8[np.ndarray, "H W 3"], target: UInt8[np.ndarray, "H W 3"], face_box, lips_box
) -> dict[str, float]:
    """Picture measures of one frame; NaN in a region whose box is None or empty."""
    out = {"psnr": metrics.psnr(image, target), "ssim": metrics.ssim(image, target)}
    for name, box in (("face", face_box), ("mouth", lips_box)):
        a, b = (None, None) if box is None else (metrics.crop(image, box), metrics.crop(target, box))
        out[f"psnr_{name}"] = float("nan") if a is None else metrics.psnr(a, b)
        out[f"ssim_{name}"] = float("nan") if a is None else metrics.ssim(a, b)
    return out


def mean(values: list[float]) -> float | None:
    """Mean of the finite values, None where there is none."""
    finite = [v for v in values if np.isfinite(v)]
    return float(np.mean(finite)) if finite else None


def mean_frame(clip: Any) -> UInt8[np.ndarray, "H W 3"]:
    """Mean of the training frames' targets, one frame in memory at a time."""
    total = np.zeros((clip.height, clip.width, 3), np.float64)
    for i in range(*clip.train_range):
        total += clip.target(i)
    return np.rint(total / (clip.train_range[1] - clip.train_range[0])).astype(np.uint8)


def frames_to_score(clip: Any, max_frames: int) -> np.ndarray:
    """Held-out frame numbers, evenly thinned to max_frames (0 = all)."""
    first, last = clip.heldout_range
    if last <= first:
        raise UserError(
            "the dataset has no held-out frames; a clip of at least 11 frames keeps every eleventh for scoring"
        )
    frames = np.arange(first, last)
    if 0 < max_frames < len(frames):
        frames = frames[np.linspace(0, len(frames) - 1, max_frames).round().astype(int)]
    return frames


@dataclasses.dataclass
class Pictures:
    """What one pass over the held-out frames leaves: scores by source and key, the worst frames, speed."""

    scores: dict[str, dict[str, list[float]]]
    worst: list[tuple[str, np.ndarray]]
    render_fps: float | None
    lips: "Lips | None"


class Lips:
    """Pictures whose lips will be found by the face tracker, in folders of .npy files."""

    def __init__(self, folder: Path):
        self.folder = folder
        for source in (*SOURCES, "target"):
            (folder / source).mkdir()

    def add(self, source: str, k: int, image: np.ndarray) -> None:
        np.save(self.folder / source / f"{k:06d}.npy", image)

    def find(self, source: str, models: str | None) -> np.ndarray:
        """[n,68,2] points, NaN where no face was found."""
        out = self.folder / f"{source}.npz"
        arguments = ["--frames", str(self.folder / source), "--out", str(out)]
        child.ask("preprocess.lips", arguments + (["--models_dir", str(models)] if models else []))
        with np.load(out, allow_pickle=False) as data:
            points, found = data["landmarks_px"].astype(np.float64), data["confidence"] > 0
        points[~found] = np.nan
        return contract.landmarks68(points, "mediapipe478")


def look(
    clip: Any, model: Model, variables: Variables, step: int, frames: np.ndarray, layer: str, chunk_rays: int,
    video: VideoWriter, lips: Lips | None = None,
) -> Pictures:  # fmt: skip
    """Render every frame over its given layers and score it beside the baselines."""
    clock, hw = final_clock(step), (clip.height, clip.width)
    average = mean_frame(clip)
    train = np.arange(*clip.train_range)
    intrinsics = np.asarray(clip.intrinsics)
    nearest = train[drive.nearest_pose(clip.cam_to_world[frames], intrinsics, clip.cam_to_world[train], intrinsics)]
    scores = {s: {k: [] for k in (*KEYS, *MORE_KEYS)} for s in SOURCES}
    worst: list[tuple[float, int, np.ndarray]] = []
    seconds = []
    for k, i in enumerate(tqdm(frames, desc="evaluate", unit="frame", mininterval=0.5)):
        began = time.perf_counter()
        batch = jax.tree.map(jnp.asarray, _without_truth(clip.frame_batch(int(i), layer)))
        image = np.asarray(draw(model, variables, batch, hw, clip.background(int(i), layer), clock, chunk_rays))
        seconds.append(time.perf_counter() - began)
        target = np.asarray(clip.target(int(i)))
        seen = clip.confidence[i] > 0
        boxes = [clip.boxes[b][i] if seen else None for b in ("face_box_px", "lips_box_px")]
        pictures = {"model": image, "mean_frame": average, "nearest_frame": np.asarray(clip.target(int(nearest[k])))}
        for source, picture in pictures.items():
            for key, value in score(picture, target, *boxes).items():
                scores[source][key].append(value)
            if lips is not None:
                lips.add(source, k, picture)
        if lips is not None:
            lips.add("target", k, target)
        pair = np.concatenate([image, target], 1)
        video.write(pair)
        badness = -scores["model"]["psnr"][-1]
        (heapq.heappush if len(worst) < N_WORST else heapq.heappushpop)(worst, (badness, int(i), pair))
    shown = [(f"frame {i}: {-b:.2f} dB", pair) for b, i, pair in sorted(worst, key=lambda w: -w[0])]
    timed = seconds[1:]
    return Pictures(scores, shown, len(timed) / sum(timed) if timed else None, lips)


def _without_truth(batch):
    return batch.replace(target=None, label=None, in_face=None, in_lips=None)


def add_lips(seen: Pictures, confidence: np.ndarray, models: str | None) -> str | None:
    """Fill in lmd_px and lmd_norm, or say why they are missing."""
    path, reason = models_dir.find_model(models)
    if path is None:
        return f"not computed: {reason}"
    try:
        target = seen.lips.find("target", models)
        for source in SOURCES:
            points = seen.lips.find(source, models)
            for a, b, known in zip(points, target, confidence, strict=True):
                px = metrics.lip_distance_px(a, b) if known else float("nan")
                seen.scores[source]["lmd_px"].append(px)
                seen.scores[source]["lmd_norm"].append(px / metrics.eye_distance_px(b) if known else float("nan"))
    except UserError as error:
        return f"not computed: {error}"
    return None


def row(seen: Pictures, source: str, keys: tuple[str, ...]) -> dict[str, float | None]:
    return {k: mean(seen.scores[source][k]) for k in keys}


def versions() -> dict[str, str]:
    out = {"tkjax": __version__, "python": platform.python_version()}
    out |= {name: metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax", "numpy")}
    out["device"] = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    return out


def comparison(clip: Any, path: Path, frames: np.ndarray, text: Mapping[str, str]) -> VideoWriter:
    """The comparison video; with the held-out sound where the frames are one run."""
    sound = _sound(clip, frames) if len(frames) == frames[-1] - frames[0] + 1 else None
    return VideoWriter(path, clip.height, 2 * clip.width, fps=clip.fps, audio=sound, metadata=text)


def _sound(clip: Any, frames: np.ndarray) -> Iterator[np.ndarray] | None:
    """The blocks of the clip's sound that belong to these frames."""
    if contract.AUDIO not in clip.dataset.manifest["files"]:
        return None
    rate = contract.AUDIO_HZ
    first, last = (round(f / clip.fps * rate) for f in (int(frames[0]), int(frames[-1]) + 1))

    def blocks():
        at = 0
        for block in audio.stream_audio(clip.dataset.path(contract.AUDIO), rate, rate):
            part = block[max(0, first - at) : max(0, last - at)]
            at += len(block)
            if len(part):
                yield part

    return blocks()


def training_speed(rows: list[dict]) -> dict[str, float | None]:
    """steps/s and seconds of training over all stages, from metrics.jsonl (compilation apart)."""
    last: dict[str, dict] = {}
    for r in rows:
        if "stage" in r and "seconds" in r:
            last[r["stage"]] = r
    seconds, steps = sum(r["seconds"] for r in last.values()), sum(r["step"] for r in last.values())
    return {"train_steps_per_s": steps / seconds if seconds else None, "train_seconds": seconds or None}


def evaluate(
    clip: Any, model: Model, variables: Variables, step: int, workdir: Path, *, system: str, max_frames: int = 0,
    chunk_rays: int = 8192, models: str | None = None, marks: Mapping[str, str] | None = None,
) -> tuple[dict, list[tuple[str, np.ndarray]]]:  # fmt: skip
    """(report of system, split, metrics, baselines, rows, render_fps, reasons, notes; worst frames with captions).

    Writes workdir/comparison.mp4. `models` is --models_dir; without the tracker's model the lip measures are
    None and `reasons` says why.
    """
    frames = frames_to_score(clip, max_frames)
    layer = model.stages()[-1].background
    given = ["torso", "background"] if layer == "torso" else ["background"]
    with tempfile.TemporaryDirectory(prefix="tkjax-eval-") as folder:
        lips = Lips(Path(folder)) if models_dir.find_model(models)[0] is not None else None
        with comparison(clip, Path(workdir) / COMPARISON, frames, marks or {}) as video:
            seen = look(clip, model, variables, step, frames, layer, chunk_rays, video, lips)
        reason = add_lips(seen, clip.confidence[frames] > 0, models)
    split = {
        "train_frames": int(clip.train_range[1] - clip.train_range[0]),
        "heldout_frames": int(clip.heldout_range[1] - clip.heldout_range[0]),
        "train_range": [int(v) for v in clip.train_range],
        "heldout_range": [int(v) for v in clip.heldout_range],
        "scored_frames": len(frames),
    }
    head = {
        "system": system,
        "split": split,
        "ground_truth_layers": given,
        "metrics": row(seen, "model", KEYS),
        "more_metrics": row(seen, "model", MORE_KEYS),
        "baselines": {b: row(seen, b, KEYS) for b in BASELINES},
        "more_baselines": {b: row(seen, b, MORE_KEYS) for b in BASELINES},
    }
    reasons = {"lmd_px, lmd_norm": reason} if reason else {}
    for key, value in head["metrics"].items():
        if value is None and not key.startswith("lmd"):
            reasons[key] = "not computed: no scored frame has a detected face, or its box is empty"
    if seen.render_fps is None:
        reasons["render_fps"] = "not computed: one frame only, and it includes compilation"
    report = {
        **head,
        "rows": [head],
        "render_fps": seen.render_fps,
        "reasons": reasons,
        "notes": dict(NOTES),
        "size": [int(clip.height), int(clip.width)],
    }
    return report, seen.worst
