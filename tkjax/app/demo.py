"""--mode=demo: the whole path on the synthetic subject, with figures that only a known truth can give.

A clip with its truth, an avatar trained on it, new speech rendered, and the report: how open the avatar's mouth is
against how open the subject's would be for that speech; with the face tracker's model at hand also how well the
tracker sees what is true.
"""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from tkjax import contract, synthetic
from tkjax.app import lock, workflow
from tkjax.avatar import bundle
from tkjax.drive import driver, stream
from tkjax.errors import UserError
from tkjax.host import model_files, torch_side
from tkjax.host.files import write_atomic
from tkjax.measure import curves, formulas
from tkjax.media import audio

WORKDIR = "runs/demo"
CONFIG = "configs/er_nerf.py:demo"
SUBJECT = {
    "seconds": 30.0,  # of 20, unseen sounds opened the mouth a fifth too little
    "size": 256,
    "seed": 0,
    "motion": 1.0,
}
NEW_SPEECH_S = 6.0
NEW_SPEECH_SEED = 1000  # added to the clip's seed
TRACKER_FIGURES = ("frames", "detected_fraction", "rotation_rms_deg", "jaw_correlation", "blink_correlation")
JAW, BLINKS = "jawOpen", ("eyeBlinkLeft", "eyeBlinkRight")
OPENING = (
    "area fraction of the mouth's inside in the lips box, in the rendered frames and in frames of the subject itself "
    "saying the same words in the same poses, by a linear function of the colours that was fitted to the subject's "
    "frames, so that blur does not move it; Pearson correlation over frames"
)
SHARP = (
    "opening_ratio once more, by counting pixels of cavity and teeth colours; blur makes thin gaps vanish from it, so "
    "that half a pixel of it costs 8 %"
)
SPOKEN = (
    "the same measure: opening_ratio is the mean opening over the subject's, sd_ratio the same of the deviations; "
    "correlation, concordance and delay_frames as for held-out frames"
)
TRACKED = (
    "face tracker's preprocessing on the clip against its truth: fraction of frames with a face, RMS angle of the "
    "head's rotation after one constant offset, Pearson correlation of jawOpen and of the blink"
)
TRUE_FRAMES = "how well that measure follows the true lip aperture (jaw open minus mouth close) on the true frames"


def make_subject(folder: Path, settings: dict[str, Any]) -> Path:
    """The clip and its truth; kept where it is there with the same settings."""
    dataset, note = folder / "dataset", folder / "settings.json"
    same = note.is_file() and note.read_text() == json.dumps(settings)
    if not (same and (dataset / contract.MANIFEST).is_file()):
        synthetic.make(folder, **settings)
        write_atomic(note, json.dumps(settings).encode())
    return dataset


def track(clip: Path, workdir: Path, truth: contract.Dataset, models: str | None) -> dict[str, Any]:
    """Run the face tracker's preprocessing on the clip; tracked against true, or null with the reason."""
    reason = model_files.find_model(models)[1]
    if not reason:
        arguments = [f"--video={clip}", f"--workdir={workdir}"] + ([f"--models_dir={models}"] if models else [])
        try:
            torch_side.ask("preprocess", arguments, show=True)
            return {**compare(contract.Dataset(workdir / "dataset", verify=False), truth), "reason": None}
        except UserError as error:
            reason = str(error)
    print(f"tracker: not run: {reason}", flush=True)
    return {**dict.fromkeys(TRACKER_FIGURES), "reason": f"not run: {reason}"}


def compare(tracked: contract.Dataset, truth: contract.Dataset) -> dict[str, Any]:
    """Detection rate, rotation error in degrees after one constant offset, correlations of jaw and blink."""
    n = min(tracked.n_frames, truth.n_frames)
    found = tracked.column("confidence")[:n] > 0

    def rotation(d):  # camera from head
        return np.swapaxes(d.column("cam_to_world")[:n, :3, :3], 1, 2)[found].astype(np.float64)

    def expression(d, name):
        names = d.manifest["expression_names"]
        return d.column("expression")[:n, names.index(name)][found] if name in names else np.full(found.sum(), np.nan)

    def blink(d):
        return np.mean([expression(d, name) for name in BLINKS], 0)

    return {
        "frames": int(n),
        "detected_fraction": float(found.mean()),
        "rotation_rms_deg": formulas.rotation_rms_deg(rotation(tracked), rotation(truth)) if found.any() else None,
        "jaw_correlation": formulas.correlation(expression(tracked, JAW), expression(truth, JAW)),
        "blink_correlation": formulas.correlation(blink(tracked), blink(truth)),
    }


def speak(workdir: Path, subject_seed: int, seconds: float) -> dict[str, Any]:
    """Render demo.mp4 with speech that was not in training; its mouth against the subject's own."""
    seed = subject_seed + NEW_SPEECH_SEED
    pcm, tracks = synthetic.speech(seed, seconds)
    sound = workdir / "demo.wav"
    audio.write_wav(sound, pcm)
    subject = bundle.load(workdir / "avatar")
    drives = driver.plan(subject, audio=sound)
    n = drives.n_frames
    poses = np.stack([drives.motion.pose(i) for i in range(n)])
    size = (subject.info.height, subject.info.width)
    truth = synthetic.true_opening(tracks, poses, subject_seed=subject_seed, size=size, seed=seed)
    opening: list[float] = []
    sharp: list[float] = []

    def measure(i: int, rgb: np.ndarray) -> None:
        if i < len(truth.opening):
            opening.append(truth.measure(rgb, truth.boxes[i]))
            sharp.append(synthetic.mouth_opening(rgb, truth.boxes[i]))

    began = time.perf_counter()
    stream.render(subject, drives, workdir / "demo.mp4", on_frame=measure)
    seconds_taken = time.perf_counter() - began
    shown, true = np.array(opening), truth.opening[: len(opening)]
    return {
        "video": "demo.mp4",
        "speech_seed": seed,
        "frames": n,
        "render_seconds": seconds_taken,
        "mouth_correlation": formulas.correlation(shown, true),
        "mouth_correlation_on_true_frames": truth.jaw_correlation,
        "mouth_opening_rendered_mean": float(shown.mean()),
        "mouth_opening_true_mean": float(true.mean()),
        "opening_ratio_sharp": new_speech(np.array(sharp), truth.sharp[: len(sharp)])["opening_ratio"],
        "new_speech": new_speech(shown, true),
    }


def new_speech(shown: Float[np.ndarray, " n"], true: Float[np.ndarray, " n"]) -> dict[str, float | None]:
    """How the avatar says what it never heard, against the subject saying it: mean opening over mean opening, the same
    of the deviations, Pearson's and Lin's correlation, and by how many frames it is late (see `response`)."""
    values = {
        "opening_ratio": float(shown.mean() / true.mean()) if true.mean() > 0 else None,
        "sd_ratio": curves.sd_ratio(true, shown),
        "correlation": curves.pearson(true, shown),
        "concordance": curves.concordance(true, shown),
        "delay_frames": curves.delay(true, shown)[0],
    }
    return {k: v if v is not None and np.isfinite(v) else None for k, v in values.items()}


def run(
    workdir: str | os.PathLike = WORKDIR, spec: str = CONFIG, overrides: workflow.Overrides = (), *,
    subject: Mapping[str, Any] = {}, models: str | None = None,
) -> None:  # fmt: skip
    """The demo in a workdir; the same call again continues it. subject: what differs from SUBJECT."""
    workdir, settings = Path(workdir), {**SUBJECT, **subject}
    if settings["seconds"] < 2:
        raise UserError(f"--seconds={settings['seconds']:g} is too short to learn from; give at least 2")
    resolved = workflow.resolve(workdir, spec, overrides)
    with lock.alone(workdir):
        _make(workdir, settings, resolved, models)


def _make(workdir: Path, settings: dict[str, Any], resolved: ConfigDict, models: str | None) -> None:
    dataset = make_subject(workdir / "subject", settings)
    tracker = track(workdir / "subject" / "clip.mp4", workdir / "tracked", contract.Dataset(dataset), models)
    clip = workflow.train_and_save(resolved, dataset, workdir, workflow.consent_record(None, False))
    spoken = speak(workdir, int(settings["seed"]), NEW_SPEECH_S)
    notes = {
        "mouth correlation": OPENING,
        "new speech": SPOKEN,
        "opening ratio sharp": SHARP,
        "mouth correlation on true frames": TRUE_FRAMES,
        "tracker": TRACKED,
    }
    said = spoken.pop("new_speech")
    extra = {"demo": spoken, "new_speech": said, "tracker": tracker, "notes": notes}
    videos = [(workdir / "demo.mp4", "New speech, not in training")]
    workflow.score(workdir, clip, models, extra, videos)
    ratio = "–" if said["opening_ratio"] is None else f"{said['opening_ratio']:.2f}"
    print(
        f"mouth opening on new speech: {ratio} of the subject's, correlation {spoken['mouth_correlation']:.3f} with "
        "what the subject would show (the measure follows the true aperture with "
        f"{spoken['mouth_correlation_on_true_frames']:.3f} on true frames)"
    )
    if tracker["reason"] is None:
        print("tracked against true: " + ", ".join(f"{k} {v:.3f}" for k, v in tracker.items() if isinstance(v, float)))
