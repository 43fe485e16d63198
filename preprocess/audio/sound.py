"""Stage `sound`: the clip's sound as long as its pictures and in step with its lips, and what is wrong with it.

What `--av_offset` says: `auto` takes out the offset that `av_offset.estimate` finds where it is certain and at least
half a frame; a number is taken out whatever was found (0: the sound stays as it is in the clip).
"""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np

from preprocess import checks, chunks
from preprocess.audio import av_offset
from preprocess.framing.normalise import RATE, write_sound
from preprocess.resumable import say
from preprocess.tracking.landmarks import Filled
from tkjax.contract import BLENDSHAPES, FPS
from tkjax.host.files import write_atomic
from tkjax.media import audio, level

STAGE = "sound"  # of the checks
WORTH_MS = 20.0  # half a frame: what one picture stands for
SOFT_DB, SILENT_DB = -45.0, -60.0  # of a sine of full scale; speech has -15 to -35, and level.LOWEST is -60
SPEECH_S = 3.0  # fewer seconds teach no mouth; music or a loud room may hide the speech, so this never fails
END_S = 1.0
OUT_OF_NOISE = 4.0  # 6 dB


def judge_level(wav: Path, seconds: float) -> list[checks.Check]:
    """Whether there is speech in a sound of so many seconds, how loud, and up to when."""
    power = audio.speech_power(wav)
    loud = power[power > level.QUIET]
    top = float(np.percentile(loud, 90)) if len(loud) else 0.0
    decibels = 10 * math.log10(top) if top else -math.inf
    found = "silent" if not top else f"{'all but silent' if decibels < SILENT_DB else 'very soft'} ({decibels:.0f} dB)"
    out = [
        checks.judge(
            STAGE, "level in dB", decibels, warn=SOFT_DB, fail=SILENT_DB, more_is_worse=False,
            message=f"the sound track is {found}; record it louder, or choose a clip in which somebody speaks",
        )
    ]  # fmt: skip
    if not top:
        return out
    steps_hz = audio.LOGMEL["rate_hz"]
    floor = float(np.percentile(power, 10))
    speaks = float((power > max(level.QUIET, OUT_OF_NOISE * floor, level.WITHIN * top)).sum()) / steps_hz
    ends = min(float(np.flatnonzero(power > level.QUIET)[-1] + 1) / steps_hz, seconds)
    return [
        *out,
        checks.judge(
            STAGE, "seconds of speech", speaks, warn=SPEECH_S, more_is_worse=False,
            message=f"only {speaks:.1f} s of the sound stand out of its noise; choose a clip in which somebody speaks",
        ),
        checks.judge(
            STAGE, "silent seconds at the end", seconds - ends, warn=END_S, fail=max(seconds / 2, END_S),
            message=f"nothing is heard after {ends:.1f} s of {seconds:.1f} s; cut the clip there",
        ),
    ]  # fmt: skip


def judge_offset(found: av_offset.Offset, removed_ms: float) -> list[checks.Check]:
    """How certain the offset is, what it is, and what is left of it after `removed_ms` were taken out."""
    certainty = checks.judge(
        STAGE, "certainty of the offset to the lips", found.certainty, warn=av_offset.SHARE, more_is_worse=False,
        message="whether the sound is in step with the lips cannot be told (it explains too little of their motion); "
        "if it is not, say by how much with --av_offset=MS",
    )  # fmt: skip
    if not found.certain:
        return [certainty]
    left = found.ms - removed_ms
    done = f"{removed_ms:.0f} taken out" if removed_ms else "left as it is"
    side = "after" if left > 0 else "before"
    return [
        certainty,
        checks.Check(STAGE, "sound after lips in the clip, ms", round(found.ms, 1), done, checks.GOOD),
        checks.judge(
            STAGE, "sound off the lips in the dataset, ms", abs(left), warn=WORTH_MS,
            message=f"the sound comes {abs(left):.0f} ms {side} the lips; leave --av_offset at auto, or give "
            f"{found.ms:.0f}",
        ),
    ]  # fmt: skip


def measure_offset(folder: Path, n_frames: int, wav: Path) -> av_offset.Offset:
    """The offset between the faces of a landmarks stage and a sound of n_frames frames."""
    rows = Filled(folder, n_frames)
    parts = [rows.rows(i) for i in range(len(chunks.spans(n_frames)))]
    points = np.concatenate([p["landmarks"][..., :2] for p in parts])
    jaw = np.concatenate([p["blendshapes"][:, BLENDSHAPES.index("jawOpen")] for p in parts])
    return av_offset.estimate(points.astype(np.float32), "mediapipe478", jaw, audio.read_audio(wav))


def sound(folder: Path, source: Path, wav: Path, landmarks: Path, n_frames: int, offset_ms: float | None) -> None:
    """Stage: audio.wav, offset.json and checks.json.

    source: the clip, from which the sound is read again where it is shifted, so that nothing is lost at its ends; wav:
    its sound as it lies, as long as the pictures; landmarks: folder of that stage; offset_ms: from `av_offset.parse`.
    """
    found = measure_offset(landmarks, n_frames, wav)
    wanted = offset_ms if offset_ms is not None else found.ms if found.certain and abs(found.ms) >= WORTH_MS else 0.0
    late = round(wanted / 1000 * RATE)
    write_sound(folder / "audio.wav", source, round(n_frames * RATE / FPS), late)
    removed = 1000 * late / RATE
    facts = {"removed_ms": removed, "found_ms": found.ms, "certain": found.certain, **dataclasses.asdict(found)}
    write_atomic(folder / "offset.json", json.dumps(facts, indent=1))
    checks.write(folder, [*judge_level(wav, n_frames / FPS), *judge_offset(found, removed)])


def removed_ms(folder: Path) -> float:
    """By how many milliseconds the sound of a finished stage was late in the clip, as far as that was taken out."""
    facts = json.loads((folder / "offset.json").read_text())
    return float(facts["removed_ms"])


def announce(folder: Path) -> None:
    """One line on what was found and done."""
    facts = json.loads((folder / "offset.json").read_text())
    agree = f"{100 * facts['agree']:.0f} % of random draws agree to half a frame"
    found = f"{facts['found_ms']:+.0f} ms after the lips ({facts['frames']:+.1f} frames, {agree})"
    known = found if facts["certain"] else "offset to the lips cannot be told"
    done = f"{facts['removed_ms']:+.0f} ms taken out" if facts["removed_ms"] else "left as it is"
    say(f"sound: {known}; {done}")
