"""Blinks and gaze that nobody recorded: seeded point processes with the statistics of an avatar's own clip.

Blinks are a renewal process. The interval from one onset to the next is f + G with a fixed dead time f (the mean length
of a blink) and a gamma variate G, so that mean and coefficient of variation are the clip's:

  G ~ Gamma(shape e² / (v m)², scale (v m)² / e),  m = T / N,  e = m - f,

for N blinks in T seconds of training frames, whose intervals vary by v (standard deviation over mean). Each blink is
one of the clip's own, drawn at random: its closing curve, and with it its depth, are what the person does.

Gaze rests on one of the clip's own fixations, drawn at random with its duration (times a log-normal factor), and goes
on to another within `SACCADE` frames.

The k-th event draws from a generator that is seeded with the seed, the kind of process and k alone, and `advance` hands
on where it stands: the same seed gives the same numbers in blocks of any size.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from tkjax.formats.looks import LOOKS, direction_of
from tkjax.signals import Signal

EYE = "eye_closed"
BLINK_CHANNELS = ("eyeBlinkLeft", "eyeBlinkRight")

SHUT = 0.3  # share of the clip's deepest closure beyond which an eye blinks
LEAST_DEPTH = 0.15  # of a closure 0…1: what moves less is no blink
FOOT = 0.15  # share of a blink's depth below which it has begun or ended
NOISES = 4.0  # standard deviations of the open eye that a blink exceeds
REACH_S = 0.5  # a blink ends at the latest so long after its peak
USUAL_CV = 0.6  # of intervals, where the clip shows fewer than four blinks
CV_RANGE = 0.2, 1.2
SLACK = 1.25  # the mean interval is at least so many mean lengths of a blink

SACCADE = 2  # frames from one fixation to the next: 40 to 80 ms
SHORTEST_S = 0.12  # fixation
APART = 0.35  # share of the gaze's usual deviation that counts as another fixation
NEAR = 0.03  # of a coefficient: closer is the same fixation in any case
JITTER = 0.25  # standard deviation of the logarithm of a duration's factor


# ---------------------------------------------------------------- what the clip shows


@dataclasses.dataclass(frozen=True)
class Clip:
    """An avatar's training frames in the order of time. signals: those that it keeps; wanted: the names of those that
    are to be made; runs: (start, stop) of frames without a gap."""

    signals: Mapping[str, Signal]
    wanted: tuple[str, ...]
    runs: tuple[tuple[int, int], ...]
    fps: float

    @classmethod
    def of(
        cls, kept: Mapping[str, Signal], wanted: Sequence[str], numbers: Int[np.ndarray, " n"], fps: float
    ) -> "Clip":
        """numbers: of the first rows of the signals, which are the training frames."""
        rows = np.argsort(numbers, kind="stable")
        edges = np.flatnonzero(np.diff(np.asarray(numbers)[rows]) != 1) + 1
        ends = [0, *edges.tolist(), len(rows)]
        ordered = {n: dataclasses.replace(s, values=s.values[rows]) for n, s in kept.items()}
        return cls(ordered, tuple(wanted), tuple(itertools.pairwise(ends)), fps)

    @property
    def seconds(self) -> float:
        return sum(b - a for a, b in self.runs) / self.fps

    def closure(self) -> Float[np.ndarray, " n"] | None:
        """How far the eyes are closed: `eye_closed` where it moves, else the mean of the blink coefficients."""
        if EYE in self.signals and np.ptp(self.signals[EYE].values) >= LEAST_DEPTH:
            return self.signals[EYE].values[:, 0].astype(np.float64)
        found = [s.values[:, s.info.names.index(c)] for s in self.signals.values() for c in _in(s, BLINK_CHANNELS)]
        return np.mean(found, 0, dtype=np.float64) if found else None

    def columns(self, channels: Sequence[str]) -> dict[str, list[int]]:
        """Where the signals that are to be made have channels of these names, or are called so."""
        out = {}
        for name in self.wanted:
            info = self.signals[name].info
            own = [info.names.index(c) for c in _in(self.signals[name], channels)]
            own = own or ([0] if name in channels and info.channels == 1 else [])
            if own:
                out[name] = own
        return out


def _in(signal: Signal, channels: Sequence[str]) -> list[str]:
    return [c for c in channels if c in signal.info.names]


def find_blinks(closed: Float[np.ndarray, " n"], runs: Sequence[tuple[int, int]], fps: float) -> list[tuple[int, int]]:
    """(start, stop) of every blink of a closure, in order.

    A blink is a stretch beyond open + max(`SHUT` (deepest - open), `NOISES` sigma) of the clip, where open is the
    median and sigma the robust deviation from it; it reaches down to `FOOT` of its own depth, and a frame on."""
    opened = float(np.median(closed)) if len(closed) else 0.0
    sigma = 1.4826 * float(np.median(np.abs(closed - opened))) if len(closed) else 0.0
    depth = float(closed.max()) - opened if len(closed) else 0.0
    if depth < LEAST_DEPTH:
        return []
    limit, reach = opened + max(SHUT * depth, NOISES * sigma), round(REACH_S * fps)
    out: list[tuple[int, int]] = []
    for a, b in runs:
        k = a
        while k < b:
            if closed[k] <= limit:
                k += 1
                continue
            end = k
            while end < b and closed[end] > limit:
                end += 1
            peak = k + int(np.argmax(closed[k:end]))
            foot = opened + FOOT * (closed[peak] - opened)
            low, high = peak, peak + 1
            floor = max(a, peak - reach, out[-1][1] if out else a)
            while low > floor and closed[low - 1] > foot:
                low -= 1
            while high < min(b, peak + reach) and closed[high] > foot:
                high += 1
            out.append((max(low - 1, floor), min(high + 1, b)))
            k = max(end, out[-1][1])
    return out


def find_fixations(
    gaze: Float[np.ndarray, "n 2"], runs: Sequence[tuple[int, int]], fps: float
) -> list[tuple[int, int]]:
    """(start, stop) of every fixation of at least `SHORTEST_S`.

    The next one begins with the first of two frames in a row that lie further from the mean of this one than `APART` of
    the clip's deviation (the larger of both axes), than `NEAR`, and than three deviations of single frames."""
    if len(gaze) < 2:
        return []
    spread = float(np.std(gaze, 0).max())
    noise = 1.4826 * float(np.median(np.abs(np.diff(gaze, axis=0)))) / np.sqrt(2)
    limit, out = max(APART * spread, NEAR, 3 * noise), []
    for a, b in runs:
        start, mean, away = a, gaze[a].copy(), 0
        for k in range(a + 1, b):
            away = away + 1 if np.linalg.norm(gaze[k] - mean) > limit else 0
            if away == 2:
                out.append((start, k - 1))
                start, mean, away = k - 1, gaze[k - 1 : k + 1].mean(0), 0
            elif not away:
                mean += (gaze[k] - mean) / (k - start + 1)
        out.append((start, b))
    return [(s, e) for s, e in out if e - s >= SHORTEST_S * fps]


# ---------------------------------------------------------------- the processes


@dataclasses.dataclass(frozen=True)
class Carry:
    """State between blocks. frame: the next to make. number: of the event that is under way or to come; at: when it
    begins, in frames; start: its first frame; mark: which of the clip's own it is; before: the mark before it."""

    frame: int
    number: int
    at: float
    start: int
    mark: int
    before: int = -1


@dataclasses.dataclass(frozen=True, eq=False)
class Process:
    """Makes values [n,C] of some channels, frame by frame. about: a sentence for the user."""

    seed: int
    about: str
    kind = 0  # of process: each has random numbers of its own

    def begin(self) -> Carry:
        raise NotImplementedError

    def advance(self, carry: Carry, n: int) -> tuple[Carry, Float[np.ndarray, "n C"]]:
        """The next n frames, and what is left over."""
        raise NotImplementedError

    def frames(self, n: int) -> Float[np.ndarray, "n C"]:
        """The first n frames."""
        return self.advance(self.begin(), n)[1]

    def draws(self, number: int) -> np.random.Generator:
        """The generator of an event, from 1; 0 is that of the start."""
        return np.random.default_rng([self.seed, self.kind, number])


@dataclasses.dataclass(frozen=True, eq=False)
class Blinks(Process):
    """rest: the channels of open eyes; curves: the change from it of each of the clip's blinks; interval: mean in
    frames; cv: its coefficient of variation."""

    rest: Float[np.ndarray, " C"]
    curves: tuple[Float[np.ndarray, "m C"], ...]
    interval: float
    cv: float

    def gap(self, number: int) -> tuple[float, int]:
        """(frames from the onset of event `number` - 1 to its own, which curve it has)."""
        rng = self.draws(number)
        dead = float(np.mean([len(c) for c in self.curves]))
        excess = max(self.interval, SLACK * dead) - dead
        deviation = self.cv * max(self.interval, SLACK * dead)
        shape = (excess / deviation) ** 2
        return dead + float(rng.gamma(shape, excess / shape)), int(rng.integers(len(self.curves)))

    def begin(self) -> Carry:
        if not self.curves:
            return Carry(0, 0, np.inf, 0, -1)
        gap, mark = self.gap(1)
        at = gap * float(self.draws(0).uniform())
        return Carry(0, 1, at, round(at), mark)

    def advance(self, carry: Carry, n: int) -> tuple[Carry, Float[np.ndarray, "n C"]]:
        out, stop = np.tile(self.rest, (n, 1)).astype(np.float32), carry.frame + n
        while self.curves and carry.start < stop:
            curve = self.curves[carry.mark]
            a, b = max(carry.start, carry.frame), min(carry.start + len(curve), stop)
            out[a - carry.frame : b - carry.frame] += curve[a - carry.start : b - carry.start]
            if carry.start + len(curve) > stop:
                break
            gap, mark = self.gap(carry.number + 1)
            end, at = carry.start + len(curve), carry.at + gap
            carry = dataclasses.replace(carry, number=carry.number + 1, at=at, start=max(round(at), end), mark=mark)
        return dataclasses.replace(carry, frame=stop), out


@dataclasses.dataclass(frozen=True, eq=False)
class Gaze(Process):
    """points: the channels of each of the clip's fixations; lengths: their durations in frames."""

    kind = 1
    points: Float[np.ndarray, "f C"]
    lengths: Float[np.ndarray, " f"]

    def next(self, number: int, before: int) -> tuple[int, int]:
        """(which fixation comes as number `number`, how many frames it lasts); not the same twice."""
        rng = self.draws(number)
        mark = int(rng.integers(len(self.points)))
        if mark == before:
            mark = (mark + 1) % len(self.points)
        factor = np.exp(JITTER * rng.standard_normal() - JITTER**2 / 2)
        return mark, max(SACCADE + 1, round(float(self.lengths[mark] * factor)))

    def begin(self) -> Carry:
        mark, length = self.next(1, -1)
        return Carry(0, 1, float(length), 0, mark, mark)

    def advance(self, carry: Carry, n: int) -> tuple[Carry, Float[np.ndarray, "n C"]]:
        out, stop = np.empty((n, self.points.shape[1]), np.float32), carry.frame + n
        at = carry.frame
        while at < stop:
            end = min(stop, int(carry.at))
            share = np.clip((np.arange(at, end) - carry.start + 1) / (SACCADE + 1), 0, 1)[:, None]
            a, b = self.points[carry.before], self.points[carry.mark]
            out[at - carry.frame : end - carry.frame] = a + share * share * (3 - 2 * share) * (b - a)
            at = end
            if at == int(carry.at):
                mark, length = self.next(carry.number + 1, carry.mark)
                carry = dataclasses.replace(
                    carry, number=carry.number + 1, at=carry.at + length, start=at, mark=mark, before=carry.mark
                )
        return dataclasses.replace(carry, frame=stop), out


# ---------------------------------------------------------------- learning them


Parts = list[tuple[str, list[int], Process]]  # signal, its columns, what makes them


def blinks(clip: Clip, seed: int) -> Parts:
    """What makes the blinks of every signal that shows them: `eye_closed`, and eyeBlink coefficients. All of them blink
    at the same time, each as it did in the clip. Eyes of a clip without a blink stay open."""
    places, closed = clip.columns((EYE, *BLINK_CHANNELS)), clip.closure()
    if not places:
        return []
    found = [] if closed is None else find_blinks(closed, clip.runs, clip.fps)
    onsets = np.array([a for a, _ in found], float)
    inside = np.zeros(sum(b - a for a, b in clip.runs), bool)
    for a, b in found:
        inside[a:b] = True
    same = [any(a <= x and y < b for a, b in clip.runs) for x, y in itertools.pairwise(onsets)]
    gaps = np.diff(onsets)[same] if len(onsets) > 1 else np.zeros(0)
    cv = float(np.std(gaps, ddof=1) / np.mean(gaps)) if len(gaps) >= 3 else USUAL_CV
    interval = clip.seconds * clip.fps / max(len(found), 1)
    n, seconds = len(found), clip.seconds
    about = f"{60 * n / seconds:.0f} blinks a minute as in the clip ({n} in {seconds:.0f} s), seed {seed}"
    if not found:
        about = f"the clip shows no blink in {seconds:.0f} s, so the eyes stay open"
    out: Parts = []
    for name, columns in places.items():
        values = clip.signals[name].values[:, columns].astype(np.float64)
        rest = np.median(values[~inside] if (~inside).any() else values, 0)
        curves = tuple(_tapered(values[a:b] - rest) for a, b in found)
        out.append((name, columns, Blinks(seed, about, rest, curves, interval, float(np.clip(cv, *CV_RANGE)))))
    return out


def _tapered(curve: Float[np.ndarray, "m C"]) -> Float[np.ndarray, "m C"]:
    """The same with half of its first and last frame, so that it begins and ends near the open eye."""
    out = curve.copy()
    out[[0, -1]] *= 0.5
    return out


def gaze(clip: Clip, seed: int) -> Parts:
    """What makes the gaze of every signal that has eyeLook coefficients; a clip whose eyes rest gives a resting one."""
    out: Parts = []
    for name, columns in clip.columns(LOOKS).items():
        info, closed = clip.signals[name].info, clip.closure()
        values = clip.signals[name].values[:, columns].astype(np.float64)
        shut = np.zeros(len(values), bool)
        for a, b in [] if closed is None else find_blinks(closed, clip.runs, clip.fps):
            shut[a:b] = True  # what a tracker says of closed eyes is no gaze
        if shut.any() and not shut.all():
            known = np.flatnonzero(~shut)
            values = np.stack([np.interp(np.arange(len(v)), known, v[known]) for v in values.T], 1)
        direction = direction_of(dict(zip([info.names[k] for k in columns], values.T, strict=True)), len(values))
        found = find_fixations(direction, clip.runs, clip.fps) or [(0, len(values))]
        points = np.stack([np.median(values[a:b], 0) for a, b in found])
        lengths = np.array([b - a for a, b in found], float)
        about = f"{len(found)} fixations of the clip, {lengths.mean() / clip.fps:.1f} s long on average, seed {seed}"
        out.append((name, columns, Gaze(seed, about, points, lengths)))
    return out
