"""How far the sound of a clip is off its lips, from how well each shift lets the sound explain the mouth.

For every shift between -10 and 10 frames a ridge regression predicts four curves of the mouth (gap of the inner lips,
blendshape jawOpen, width of the mouth, lips shut) from the energies of 12 frequency bands at that one instant. The
share that is explained peaks where sounds meet the lips that make them: loud vowels the open mouth, hum or silence
with nothing above 300 Hz the shut lips of m, b and p, hiss the narrow ones. Which band says what is learnt from the
clip itself, so voice and microphone do not matter. Only changes within half a second count (a Gaussian of 0.2 s is
subtracted): the lips part long before the first word and stay open after the last, and that says nothing of a shift.
The peak is read to a fraction of a frame by a parabola.

Certainty: the estimate is repeated on 200 random draws (with replacement) of the clip's seconds. It is certain where
90 % of the draws agree to half a frame and the peak stands out of all other shifts by 30 %.

The synthetic subject, whose lips and sound are made of one sequence, gives 0.0 to 0.2 frames; nothing is subtracted for
that. In natural speech the lips are up to a frame (40 ms) ahead of their sound, so an estimate below one frame on a
real clip may be no fault at all; taking it out is harmless, since nobody sees so little.
"""

import dataclasses
import functools
import math

import numpy as np
from jaxtyping import Float
from scipy.ndimage import gaussian_filter1d

from tkjax.contract import FPS, landmarks68
from tkjax.errors import UserError
from tkjax.media import audio

AUTO = "auto"
MOST_MS = 2000.0  # a shift that large is another take
REACH = 10  # frames to both sides; more than 0.4 s nobody fails to notice
STEP = 0.5  # frames between shifts that are tried: a syllable lasts 4, so a parabola through three of them is close
BANDS = 12  # of the 80 of log-mel: enough to tell vowels and hiss apart, few enough for 10 s of speech
SMOOTH = 1.0  # steps of 20 ms: about one picture
TREND = 5.0  # frames, deviation of the Gaussian that is subtracted
RIDGE = 0.02  # of each band's variance
DRAWS = 200
BLOCK = 25  # frames of the pieces that are drawn
AGREE = 0.5  # frames
SHARE = 0.9  # of the draws that must agree
FAR = 4  # frames from the peak on where other shifts begin: a syllable
STANDS_OUT = 1.3
LEAST = 0.05  # explained; real clips in step have 0.3, another person's sound 0.02 of a minute
MIN_FRAMES = 100  # 4 s; less holds too few syllables to tell a shift from chance


@dataclasses.dataclass(frozen=True)
class Offset:
    """frames: by how much the sound is late (negative: early); agree: share of the draws within half a frame of it;
    explained: share of the mouth's changes that the sound explains there; elsewhere: the best that other shifts do."""

    frames: float
    agree: float
    explained: float
    elsewhere: float

    @property
    def certainty(self) -> float:
        """agree, or 0 where no shift stands out of the others."""
        return self.agree if self.explained >= max(LEAST, STANDS_OUT * self.elsewhere) else 0.0

    @property
    def certain(self) -> bool:
        return self.certainty >= SHARE

    @property
    def ms(self) -> float:
        return 1000 * self.frames / FPS


NOTHING = Offset(0.0, 0.0, 0.0, 0.0)


def parse(text: str) -> float | None:
    """`auto` -> None, else milliseconds by which the sound is late; UserError for anything else."""
    if text == AUTO:
        return None
    try:
        ms = float(text)
    except ValueError:
        ms = math.nan
    if not abs(ms) <= MOST_MS:
        raise UserError(
            f"--av_offset={text} is not understood; give auto, 0, or by how many milliseconds the sound is late "
            f"(negative: early), at most {MOST_MS:g}"
        )
    return ms


def _changes(x: np.ndarray, axis: int = 0) -> np.ndarray:
    return x - gaussian_filter1d(x, TREND, axis=axis)


def mouth_curves(points_px: Float[np.ndarray, "n V 2"], scheme: str, jaw_open: Float[np.ndarray, " n"]) -> np.ndarray:
    """[n, 4]: changes of the lips' gap, of jawOpen, of the mouth's width and of lips shut (0…1), lengths over the eyes'
    distance, each with deviation 1 (0 where it does not change)."""
    p = landmarks68(np.asarray(points_px, np.float32), scheme).astype(np.float64)
    eyes = np.linalg.norm(p[:, 36] - p[:, 45], axis=1)
    scale = np.median(eyes) if (eyes > 0).any() else 1.0
    gap = np.linalg.norm(p[:, 61:64] - p[:, [67, 66, 65]], axis=2).mean(1) / scale
    width = np.linalg.norm(p[:, 48] - p[:, 54], axis=1) / scale
    low, high = np.percentile(gap, [2, 90])
    reach = max(high - low, 1e-6)
    shut = 1 / (1 + np.exp(np.clip((gap - low - 0.12 * reach) / (0.05 * reach), -50, 50)))
    curves = _changes(np.stack([gap, np.asarray(jaw_open, np.float64), width, shut], 1))
    return curves / np.maximum(curves.std(0), 1e-6)


def _heard(pcm: np.ndarray, n: int, shifts: np.ndarray) -> np.ndarray:
    """[shifts, n, BANDS]: changes of the bands' energies at each frame's instant and so many frames later."""
    steps = audio.logmel(pcm).astype(np.float64)
    bands = np.stack([steps[:, i].mean(1) for i in np.array_split(np.arange(steps.shape[1]), BANDS)], 1)
    bands = gaussian_filter1d(bands, SMOOTH, axis=0)
    at = audio.LOGMEL["start_s"] + np.arange(len(bands)) / audio.LOGMEL["rate_hz"]
    when = (np.arange(n) + shifts[:, None]) / FPS
    heard = np.stack([np.interp(when, at, band) for band in bands.T], -1)
    heard = _changes(heard, axis=1)
    return heard / np.maximum(heard.std((0, 1)), 1e-6)


def _explained(gram: np.ndarray, cross: np.ndarray, total: np.ndarray, n: int) -> np.ndarray:
    """Share of the curves' variance explained at each shift: means over the curves, from sums over frames."""
    w = np.linalg.solve(gram + RIDGE * n * np.eye(gram.shape[-1]), cross)
    gained = 2 * (w * cross).sum(1) - (w * (gram @ w)).sum(1)
    return (gained / np.maximum(total, 1e-9)).mean(1)


def _peak(curve: np.ndarray, shifts: np.ndarray) -> float:
    k = int(np.clip(curve.argmax(), 1, len(curve) - 2))
    a, b, c = curve[k - 1 : k + 2]
    bend = a - 2 * b + c
    return float(shifts[k] + (STEP * 0.5 * np.clip((a - c) / bend, -1, 1) if bend < 0 else 0.0))


def estimate(
    points_px: Float[np.ndarray, "n V 2"], scheme: str, jaw_open: Float[np.ndarray, " n"], pcm: Float[np.ndarray, " m"]
) -> Offset:
    """The offset between pictures, of which landmarks (in a scheme of the contract) and jawOpen are given, frame i
    shown at i / 25 s, and their sound at 16 kHz. Clips too short or silent to tell give one that is not certain."""
    n = len(points_px)
    if n < MIN_FRAMES or not np.any(pcm):
        return NOTHING
    shifts = np.arange(-REACH, REACH + STEP / 2, STEP)
    seen, heard = mouth_curves(points_px, scheme, jaw_open), _heard(pcm, n, shifts)
    blocks = np.array_split(np.arange(n), n // BLOCK)
    gram = np.stack([heard[:, b].transpose(0, 2, 1) @ heard[:, b] for b in blocks])
    cross = np.stack([heard[:, b].transpose(0, 2, 1) @ seen[b] for b in blocks])
    total = np.stack([(seen[b] ** 2).sum(0) for b in blocks])
    explain = functools.partial(_explained, n=n)
    curve = explain(gram.sum(0), cross.sum(0), total.sum(0))
    peak = _peak(curve, shifts)
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(DRAWS):
        times = np.bincount(rng.integers(0, len(blocks), len(blocks)), minlength=len(blocks)).astype(np.float64)
        drawn = explain(*(np.tensordot(times, part, 1) for part in (gram, cross, total)))
        draws.append(_peak(drawn, shifts))
    agree = float(np.mean(np.abs(np.array(draws) - peak) <= AGREE))
    far = curve[np.abs(shifts - peak) > FAR]
    return Offset(peak, agree, float(curve.max()), float(max(far.max(), 0)))
