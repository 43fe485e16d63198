"""Speech networks of avatars: trained beside a system that is driven by expression and not by sound, and asked for the
coefficients of a sound. None of this knows a concrete system."""

import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from tkjax import contract, voice
from tkjax.app.workdir import existing_workdir
from tkjax.avatar import bundle
from tkjax.contract.npz import write_npz
from tkjax.data.dataset_clip import DatasetClip
from tkjax.drive import driver
from tkjax.errors import UserError
from tkjax.formats import tracks
from tkjax.host.files import whole
from tkjax.interface import Model
from tkjax.measure import curves
from tkjax.media import audio
from tkjax.signals import EXPRESSION, SOUND
from tkjax.voice import Voice
from tkjax.voice.training import LEAST_FRAMES

VERSION = 1  # of what training computes: a network of another one is trained again


def network_of(resolved: ConfigDict, clip: DatasetClip, workdir: Path, model: Model) -> Voice | None:
    """The speech network of a run, trained where the workdir holds none of this clip and these settings; None for a
    system that hears or has no coefficients, and, with a line that says why, where there is nothing to learn from."""
    settings = resolved.train.get("voice")  # a config.json of an older run has none
    uses = {use.name for use in model.signals()}
    if SOUND in uses or EXPRESSION not in uses or settings is None or settings.steps < 1:
        return None
    learned = np.zeros(clip.n_frames, bool)
    learned[clip.train_frames] = clip.confidence[clip.train_frames] > 0
    reason = _reason(clip, learned)
    if reason:
        print(f"voice: {reason}, so this avatar does not speak from sound alone", flush=True)
        return None
    signal = clip.signals[EXPRESSION]
    facts = {"version": VERSION, "dataset": clip.digest, "frames": hashlib.sha256(learned.tobytes()).hexdigest(),
             "seed": resolved.seed, **settings.to_dict()}  # fmt: skip
    path = workdir / "checkpoints" / f"voice-{_digest(facts)}.npz"
    about = {"columns": voice.mouth(signal.info.names, signal.info.channels), "width": settings.width}
    if path.is_file():
        try:
            found = bundle.read_voice(path, about)
            print(f"voice: {path} is there", flush=True)
            return found
        except UserError:  # cut short or damaged: it is made again
            path.unlink()
    pcm = audio.read_audio(clip.dataset.path(contract.AUDIO))
    n = sum(learned)
    with tqdm(desc="voice", total=settings.steps, unit="step", mininterval=0.5) as bar:
        trained = voice.train(
            pcm, signal.values, signal.info.names, learned, seed=resolved.seed, steps=settings.steps,
            width=settings.width, rate=settings.rate, on_step=functools.partial(_show, bar),
        )  # fmt: skip
    found = _heldout(trained, clip, pcm)
    print(f"voice: learned {len(trained.columns)} channels of {EXPRESSION} from {n} frames; {found}", flush=True)
    with whole(path) as part, open(part, "wb") as file:
        write_npz(file, bundle.arrays_of(trained.tree()))
    for old in path.parent.glob("voice-*.npz"):
        if old != path:
            old.unlink()
    return trained


def _show(bar: tqdm, done: int, loss: float) -> None:
    if not np.isfinite(loss):
        raise UserError(f"voice: the loss is {loss} at step {done}; lower --config.train.voice.rate")
    bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
    bar.update(done - bar.n)


def _digest(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _reason(clip: DatasetClip, learned: np.ndarray) -> str:
    """Why there is nothing to learn from, else ""."""
    if clip.dataset is None or contract.AUDIO not in clip.dataset.manifest["files"]:
        return "the dataset holds no sound"
    if clip.signals[EXPRESSION].info.channels == 0:
        return "the dataset holds no coefficients"
    if learned.sum() < LEAST_FRAMES:
        return f"there are {learned.sum()} training frames with a face, fewer than {LEAST_FRAMES}"
    if not np.isfinite(clip.signals[EXPRESSION].values[learned]).all():
        return "coefficients of the dataset are not finite"
    return ""


def _heldout(trained: Voice, clip: DatasetClip, pcm: np.ndarray) -> str:
    """How the lips of the held-out frames open, in words."""
    signal, frames = clip.signals[EXPRESSION], np.asarray(clip.heldout_frames)
    frames = frames[clip.confidence[frames] > 0] if len(frames) else frames
    if len(frames) < curves.MIN_FRAMES:
        return "too few held-out frames to score it"
    weights = voice.opening(signal.info.names, trained.columns)
    if not weights.any():
        return "none of the channels has a name that says how far lips open"
    told = voice.spoken(trained, [pcm], int(frames[-1]) + 1)[frames] @ weights
    true = signal.values[frames][:, list(trained.columns)] @ weights
    return (
        f"opening of the lips in {len(frames)} held-out frames: correlation {curves.pearson(true, told):.2f}, ratio of "
        f"deviations {curves.sd_ratio(true, told):.2f}"
    )


def coefficients(workdir: Path | str, sound: Path | str, out: Path | str, **driving: Any) -> int:
    """Write what an avatar's face does to a sound as a track (npz or csv) of its expression, 25 frames a second; how
    many frames. driving: further arguments of `driver.plan`."""
    workdir, out = existing_workdir(workdir), Path(out)
    if out.suffix.lower() not in tracks.SUFFIXES:
        raise UserError(f"--out={out}: a track is written as .npz or .csv")
    if out.exists() and Path(sound).exists() and out.samefile(sound):
        raise UserError(f"--out={out} is the sound to speak; name another file, so that it stays")
    subject = bundle.load(workdir / "avatar")
    if subject.voice is None:
        raise UserError(
            f"{subject.folder} holds no speech network; train an avatar of a system that is driven by expression on a "
            "dataset with sound"
        )
    planned = driver.plan(subject, audio=sound, **driving)
    signal = planned.signals[EXPRESSION]
    names = signal.info.names or tuple(f"{EXPRESSION}{k}" for k in range(signal.info.channels))
    with whole(out) as part:
        if out.suffix.lower() == ".npz":
            tracks.save(part, names, signal.values, contract.FPS)
        else:
            times = np.arange(len(signal.values)) / contract.FPS
            rows = [f"{t:.2f}," + ",".join(f"{v:.6g}" for v in row) for t, row in zip(times, signal.values)]
            part.write_text("\n".join([",".join(("time_s", *names)), *rows]) + "\n")
    print(f"{out}: {len(signal.values)} frames of {len(names)} channels")
    return len(signal.values)
