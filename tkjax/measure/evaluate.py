"""Held-out frames against the truth: 8-bit pictures at training size, the same crops for every row (design §8).

A row is one combination of true and modelled layers (`layers.combinations`), or the picture pasted back into the whole
source frame; the baselines stand beside them and are scored alike. Frames pass one at a time; only sums, the worst few
and landmarks stay in memory.
"""

import contextlib
import dataclasses
import heapq
import platform
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Int, UInt8
from ml_collections import ConfigDict
from tqdm import tqdm

from tkjax import __version__, contract, perceptual
from tkjax.data import split
from tkjax.data.clip import Clip
from tkjax.drive import motion
from tkjax.errors import UserError
from tkjax.interface import Model
from tkjax.measure import curves, fid, formulas, layers, probe, scores
from tkjax.measure.layers import Combination, PasteBack
from tkjax.measure.probe import Actor
from tkjax.measure.response import add_curves, responding_to
from tkjax.measure.scores import KEYS, MORE_KEYS, NAN, SEAM_KEYS
from tkjax.measure.watch import TRUTH, Watch
from tkjax.media import audio
from tkjax.media.video import VideoWriter
from tkjax.types import PyTree, Variables

BASELINES = ("mean_frame", "nearest_frame")
PASTED = "full_frame"  # the row that is pasted back, and its given layer
PER_FRAME = ("psnr", "psnr_face", "psnr_mouth", "ssim", "lpips", "lmd_px", "lmd_norm", "nioe")  # of the first row
N_WORST = 4
COMPARISON = "comparison.mp4"
NOTES = {
    "frames": "held-out frames only, at training size, rounded to 8 bits; the target is the frame with its "
    "background replaced by the plate",
    **scores.NOTES,
    **curves.NOTES,
    **probe.NOTES,
    "paste-back": "row given full_frame: the picture is pasted into the whole source frame, and the crop is cut out of "
    "it again, at training size; its target is the crop of the source frame with its own background. Box edge: mean "
    "absolute difference of the steps across the crop's edges inside the frame, 8-bit levels. PSNR outside mask: over "
    "the pixels of the whole frame whose mask is 0, before encoding",
    "mean frame": "the mean of the training frames with a picture of their own",
    "nearest frame": "of those with a detected face the one whose head pose is nearest: RMS pixel distance of the "
    "corners of a 25 cm cube around the head",
    "rendering speed": "wall time from batch to 8-bit picture on this machine, without the first frame (compilation)",
}
PASTED_ONLY = "of pictures pasted back into the source frame only (row full_frame)"


def real_frames(clip: Clip, seen: bool = False) -> Int[np.ndarray, " n"]:
    """Training frames with a picture of their own; seen: and with a detected face. All of them where there is none."""
    frames = clip.train_frames
    real = frames[~np.asarray(clip.picture_missing)[frames]]
    real = real if len(real) else frames
    found = real[np.asarray(clip.confidence)[real] > 0] if seen else real
    return found if len(found) else real


def mean_frame(clip: Clip, layers: Combination | None = None) -> UInt8[np.ndarray, "H W 3"]:
    """Mean of the targets of `real_frames`, one frame in memory at a time. layers: compared with what; whole frames."""
    total = np.zeros((clip.height, clip.width, 3), np.float64)
    frames = real_frames(clip)
    for i in frames.tolist():
        total += clip.target(i, *(layers.compared if layers else ()))
    return np.rint(total / len(frames)).astype(np.uint8)


def frames_to_score(clip: Clip, max_frames: int) -> Int[np.ndarray, " n"]:
    """Held-out frame numbers with a picture of their own, evenly thinned to max_frames (0 = all)."""
    frames = clip.heldout_frames
    if not len(frames):
        raise UserError(
            "the dataset has no held-out frames; a clip of at least 11 frames keeps every eleventh for scoring"
        )
    first, last = int(frames[0]), int(frames[-1])
    frames = frames[~clip.picture_missing[frames]]
    if not len(frames):
        raise UserError(f"none of the held-out frames {first}..{last} has a picture of its own to score against")
    if 0 < max_frames < len(frames):
        frames = frames[np.linspace(0, len(frames) - 1, max_frames).round().astype(int)]
    return frames


@dataclasses.dataclass
class Seen:
    """What one pass over the held-out frames leaves: scores by source and key, the worst frames, seconds by source."""

    scores: dict[str, dict[str, list[float]]]
    worst: list[tuple[str, np.ndarray]]
    seconds: dict[str, list[float]]

    def row(self, source: str, keys: tuple[str, ...]) -> dict[str, float | None]:
        return {k: scores.mean(self.scores[source][k]) for k in keys}

    def fps(self, source: str) -> float | None:
        timed = self.seconds[source][1:]
        return len(timed) / sum(timed) if timed else None


def look(
    clip: Clip, frames: Int[np.ndarray, " n"], actors: Sequence[Actor], video: VideoWriter, watch: Watch | None, *,
    paste: PasteBack | None = None, lpips=None, inception: fid.Fid | None = None, structure: bool = True,
) -> Seen:  # fmt: skip
    """Render every frame in every combination of layers and score it beside the baselines; the last combination is
    pasted back. The video gets the combinations side by side, then the truth; `watch` sees every picture. structure:
    with SSIM."""
    average = mean_frame(clip, actors[0].layers)
    train = real_frames(clip, seen=True)
    combined = [a.layers for a in actors]
    intrinsics = np.asarray(clip.intrinsics)
    nearest = train[motion.nearest_pose(clip.cam_to_world[frames], intrinsics, clip.cam_to_world[train], intrinsics)]
    rendered = (*(c.name for c in combined), *((PASTED,) if paste else ()))
    all_scores = {s: {k: [] for k in (*KEYS, *MORE_KEYS, *SEAM_KEYS)} for s in (*rendered, *BASELINES)}
    seconds: dict[str, list[float]] = {s: [] for s in rendered}
    worst: list[tuple[float, int, np.ndarray]] = []
    for k, i in enumerate(tqdm(frames.tolist(), desc="evaluate", unit="frame", mininterval=0.5)):
        first = actors[0].layers
        truth = np.asarray(clip.target(i))
        target, label, seen = (
            np.asarray(clip.target(i, *first.compared)),
            np.asarray(clip.label(i)),
            clip.confidence[i] > 0,
        )
        head = label == contract.LABEL_HEAD
        boxes = [clip.boxes[b][i] if seen else None for b in ("face_box_px", "lips_box_px")]
        pictures = {}
        for actor in actors:
            began = time.perf_counter()
            pictures[actor.layers.name], alpha = actor(i)
            seconds[actor.layers.name].append(time.perf_counter() - began)
        strip = np.concatenate([*pictures.values(), target], 1)
        targets = dict.fromkeys((*pictures, *BASELINES), target)
        targets |= {c.name: np.asarray(clip.target(i, *c.compared)) for c in combined[1:]}
        if paste:
            began = time.perf_counter()
            frame, base, mask = paste.paste(i, pictures[combined[-1].name], alpha, label)
            seconds[PASTED].append(seconds[combined[-1].name][-1] + time.perf_counter() - began)
            pictures[PASTED], targets[PASTED] = (paste.cut(v, target.shape[:2]) for v in (frame, base))
            all_scores[PASTED]["box_edge"].append(formulas.box_edge_error(frame, base, paste.box))
            all_scores[PASTED]["psnr_outside_mask"].append(formulas.psnr_outside(frame, base, mask))
        for source in rendered:
            seam = formulas.seam_error(pictures[source], targets[source], label) if seen else NAN
            all_scores[source]["seam"].append(seam)
        pictures |= {"mean_frame": average, "nearest_frame": np.asarray(clip.target(int(nearest[k]), *first.compared))}
        for source, image in pictures.items():
            for key, value in scores.score(image, targets[source], *boxes, head, structure).items():
                all_scores[source][key].append(value)
            if lpips is not None:
                all_scores[source]["lpips"].append(lpips(image, targets[source]))
            if inception is not None and source in rendered:
                inception.add(source, image, targets[source])
            if watch is not None:
                watch.add(source, i, image)
        if watch is not None:
            watch.add(TRUTH, i, truth)
        video.write(strip)
        badness = -all_scores[rendered[0]]["psnr"][-1]
        (heapq.heappush if len(worst) < N_WORST else heapq.heappushpop)(worst, (badness, i, strip))
    shown = [(f"frame {i}: {-b:.2f} dB", strip) for b, i, strip in sorted(worst, key=lambda w: -w[0])]
    return Seen(all_scores, shown, seconds)


def count(parts: Mapping[str, PyTree]) -> dict[str, int]:
    """Numbers of parameters by part, and `total`."""
    sizes = {name: sum(int(np.size(leaf)) for leaf in jax.tree.leaves(part)) for name, part in parts.items()}
    return {**sizes, "total": sum(sizes.values())}


def perceptual_note(config: ConfigDict, finished: Sequence[str]) -> dict[str, str]:
    """A note on the perceptual term of training, chosen as the model chooses it; none where no stage uses one."""
    name = config.train.get("lips", {}).get("perceptual")
    if name is None:
        return {}
    try:
        used = perceptual.choose(name).describe
    except UserError:
        used = f"{name}, whose weights are not on this machine"
    return {"perceptual term": used if "lips" in finished else "none: the lips stage was not trained"}


def versions() -> dict[str, str]:
    out = {"tkjax": __version__, "python": platform.python_version()}
    out |= {name: metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax", "numpy")}
    out["device"] = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    return out


def comparison(
    clip: Clip, path: Path, frames: Int[np.ndarray, " n"], columns: int, text: Mapping[str, str]
) -> VideoWriter:
    """The comparison video of so many pictures a row; with the held-out sound where the frames are one run."""
    sound = heldout_sound(clip, frames) if len(frames) == frames[-1] - frames[0] + 1 else None
    return VideoWriter(path, clip.height, columns * clip.width, fps=clip.fps, audio=sound, metadata=text)


def heldout_sound(clip: Clip, frames: np.ndarray) -> Iterator[np.ndarray] | None:
    """The blocks of the clip's sound that belong to these frames."""
    if clip.dataset is None or contract.AUDIO not in clip.dataset.manifest["files"]:
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
    clip: Clip, model: Model, variables: Variables, step: int, workdir: Path, *, system: str, max_frames: int = 0,
    chunk_rays: int = 8192, models: str | None = None, marks: Mapping[str, str] | None = None,
    stages: Sequence[str] | None = None, paste: PasteBack | str = "not computed: the avatar has no whole source frames",
    metrics: Sequence[str] | None = None,
) -> tuple[dict, list[tuple[str, np.ndarray]]]:  # fmt: skip
    """(report of system, split, metrics, baselines, rows, params, reasons, notes; worst frames with captions).

    The report's own metrics are those of its first row; `box_edge` and `psnr_outside_mask` are those of the row that
    is pasted back. Writes workdir/comparison.mp4. `models` is --models_dir; what needs a model file that is not there
    is None and `reasons` says why. stages: those that are finished, None for all. paste: or why nothing is pasted.
    metrics: names of `scores.OF_METRIC` to compute, None for all; the others are None with that reason.
    """
    chosen = set(metrics or scores.OF_METRIC)
    frames, combined = frames_to_score(clip, max_frames), layers.combinations(model, stages)
    lpips, no_lpips = scores.lpips(models) if "lpips" in chosen else (None, "")
    inception, no_fid = fid.open_fid(models) if "fid" in chosen else (None, "")
    paste, no_paste = (None, paste) if isinstance(paste, str) else (paste, "")
    actors = [Actor(clip, model, variables, step, c, chunk_rays) for c in combined]
    train = real_frames(clip, seen=True)
    followed, watched = "response" in chosen, bool(chosen & {"response", "lmd", "nioe"})
    responding = None
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="tkjax-eval-"))
        watch = stack.enter_context(Watch(clip, train, Path(folder), models, followed)) if watched else None
        with comparison(clip, Path(workdir) / COMPARISON, frames, len(combined) + 1, marks or {}) as video:
            of_pictures = {"lpips": lpips, "inception": inception, "structure": "ssim" in chosen}
            seen = look(clip, frames, actors, video, watch, paste=paste, **of_pictures)
        if followed:
            responding = responding_to(watch, actors[0], frames, train)
        if watch is not None:
            watch.finish()
    missing = ({"lpips": no_lpips} if no_lpips else {}) | ({"fid": no_fid} if no_fid else {})
    if watch is not None and watch.points is None:
        missing |= dict.fromkeys(("lmd_px, lmd_norm", "nioe"), f"not computed: {watch.why_untracked}")
    elif watch is not None:
        scores.add_lips(seen.scores, watch.points, clip.confidence[frames] > 0)
    if inception is not None:
        for source, value in inception.values().items():
            seen.scores[source]["fid"] = [value]
        if not any(np.isfinite(seen.scores[source]["fid"][0]) for source in seen.seconds):
            missing["fid"] = "not computed: it needs at least two scored frames"
    for metric in scores.OF_METRIC.keys() - chosen:
        for key in scores.OF_METRIC[metric]:
            missing[key] = f"not asked for (--metrics={','.join(metrics or ())})"
            for of_source in seen.scores.values():
                of_source[key] = []
    if followed:
        add_curves(responding, watch, list(seen.seconds), BASELINES)
    facts = {
        "kind": clip.split,
        "train_frames": len(clip.train_frames),
        "heldout_frames": len(clip.heldout_frames),
        "heldout_runs": split.runs(clip.heldout_frames),
        "train_range": [int(v) for v in clip.train_range],
        "heldout_range": [int(v) for v in clip.heldout_range],
        "scored_frames": len(frames),
    }
    common = {"system": system, "split": facts, "params": count(model.parts(variables.params))}
    baselines = {
        "baselines": {b: seen.row(b, KEYS) for b in BASELINES},
        "more_baselines": {b: seen.row(b, MORE_KEYS) for b in BASELINES},
    }
    rows = [_row(seen, c.name, c.given, missing) | common | baselines for c in combined]
    if paste:
        rows.append(_row(seen, PASTED, (PASTED,), missing) | common | {"paste_back": paste.scheme})
    for row, source in zip(rows, seen.seconds, strict=True):
        row["response"] = responding["rows"][source] if followed else None
    of_frames = {k: rows[-1][k] if paste else None for k in ("box_edge", "psnr_outside_mask")}
    why = rows[-1]["reasons"] if paste else dict.fromkeys(of_frames, no_paste)
    report = {
        **rows[0],
        **of_frames,
        "response": {k: v for k, v in responding.items() if k != "rows"} if followed else None,
        "rows": rows,
        "reasons": {k: v for k, v in rows[0]["reasons"].items() if k not in of_frames}
        | {k: why[k] for k, value in of_frames.items() if value is None},
        "notes": dict(NOTES),
        "comparison": [*(c.caption for c in combined), "truth"],
        "size": [int(clip.height), int(clip.width)],
        "spread": {k: _spread(seen.scores[combined[0].name][k]) for k in (*KEYS, *MORE_KEYS) if k != "fid"},
        "per_frame": {
            "frame": frames.tolist(),
            **{k: _known(v) for k in PER_FRAME if (v := seen.scores[combined[0].name][k])},
        },
    }
    return report, seen.worst


def _known(values: Sequence[float]) -> list[float | None]:
    return [float(v) if np.isfinite(v) else None for v in values]


def _spread(values: Sequence[float]) -> float | None:
    """Standard deviation (population) of the finite values."""
    finite = np.array(values, np.float64)
    finite = finite[np.isfinite(finite)]
    return float(finite.std()) if len(finite) else None


def _row(seen: Seen, source: str, given: Sequence[str], missing: Mapping[str, str]) -> dict[str, Any]:
    """The measures of one row, each None with a reason."""
    out = {
        "ground_truth_layers": list(given),
        "metrics": seen.row(source, KEYS),
        "more_metrics": seen.row(source, MORE_KEYS),
        **seen.row(source, SEAM_KEYS),
        "render_fps": seen.fps(source),
    }
    edge = "not computed: no edge of the crop lies inside the source frame"
    why = {
        "seam": "not computed: in no scored frame the head's label touches neck or torso",
        "box_edge": edge if source == PASTED else PASTED_ONLY,
        "psnr_outside_mask": "not computed: the mask covers the whole frame" if source == PASTED else PASTED_ONLY,
        "render_fps": "not computed: one frame only, and it includes compilation",
    }
    box = "not computed: no scored frame has a detected face, or its box is empty"
    why |= {k: box for k in KEYS if not k.startswith("lmd")}
    why["psnr_head"] = "not computed: no scored frame has a pixel that is labelled head"
    why |= {f"ssim_{k}": f"not computed: no {k} box has {formulas.SSIM_SIDE} pixels a side" for k in ("face", "mouth")}
    values = {**out["metrics"], **out["more_metrics"], **out}
    why |= {k: reason for k, reason in missing.items() if k in values}
    return out | {"reasons": {**missing, **{k: reason for k, reason in why.items() if values[k] is None}}}
