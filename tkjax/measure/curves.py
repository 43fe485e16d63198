"""Does the mouth move with the sound, do the eyes close: how one curve follows another, in numpy alone.

A curve is a lip gap or an eye opening with one value per frame, NaN where nothing could be measured. `true` is that of
the true frames, `rendered` that of the model's pictures of them. All curves are dense: frames that were not scored are
NaN, so a lag or a neighbour never crosses a hole.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

KEYS = ("sd_ratio", "correlation", "concordance", "delay_frames", "closures_closed")
MIN_FRAMES = 25  # one second: below it neither a deviation nor a correlation says anything about speech
MIN_SPREAD = 0.3  # least deviation of held-out curves, of the training frames' own: below it they are too still
MIN_MOTION = {"lips": 0.006, "eyes": 0.01}  # least deviation at all: several times what the tracker's points tremble
MEASURED_IN = {"lips": "the distance between the eyes", "eyes": "the eyes' width"}
MAX_DELAY = 10  # frames to either side that are searched for the delay
MIN_PEAK = 0.3  # correlation at the best lag below which there is nothing to align
OPEN, SHUT = 0.15, 0.20  # shares of the clip's range: below OPEN the truth is closed, below SHUT the rendered curve is
RANGE_PERCENTILES = (1, 99)
NEAR = 1  # frames by which a rendered closure may be early or late
MOUTH_PAIRS, EYE_PAIRS = ((61, 67), (62, 66), (63, 65)), ((37, 41), (38, 40), (43, 47), (44, 46))
RIGHT_CORNERS, LEFT_CORNERS = (36, 39), (42, 45)
NOTES = {
    "response": "held-out frames; rendered (r) against true (t) curves of lip gap and eye opening. sd_ratio: sd(r) / "
    "sd(t). correlation: Pearson. concordance (Lin): 2 cov(r, t) / (var r + var t + (mean r - mean t)²). delay_frames: "
    f"lag of the highest correlation within ±{MAX_DELAY} frames, by a parabola through it and its neighbours; positive "
    "where the picture is late",
    "closures": f"a run of true frames below {100 * OPEN:g} % of the clip's range (percentiles {RANGE_PERCENTILES[0]} "
    f"to {RANGE_PERCENTILES[1]} of the true curve, scored and sampled training frames together) is a closure; it "
    f"closes where the rendered curve is below {100 * SHUT:g} % within ±{NEAR} frame of half of its frames, and above "
    "that somewhere in the true openings next to it, so that a mouth that never opens closes nothing. "
    "closures_closed: share of the closures that close; closures: their number, and of those that close",
    "lip gap": "by the face tracker: mean distance of the inner lips' three middle pairs of points (61-67, 62-66, "
    "63-65 of 68) over the distance between the eyes' centres. Without it: see `measured by`",
    "eye opening": "by the face tracker: mean distance of the lids' four pairs of points over the eyes' mean width",
}


def lip_gap(points68: Float[np.ndarray, "n 68 2"]) -> Float[np.ndarray, " n"]:
    """Mean distance of the inner lips' middle pairs of points over the distance between the eyes' centres."""
    p = np.asarray(points68, np.float64)
    gap = np.mean([np.linalg.norm(p[:, a] - p[:, b], axis=-1) for a, b in MOUTH_PAIRS], 0)
    return _over(gap, np.linalg.norm(p[:, 36:42].mean(1) - p[:, 42:48].mean(1), axis=-1))


def eye_opening(points68: Float[np.ndarray, "n 68 2"]) -> Float[np.ndarray, " n"]:
    """Mean distance of the lids' pairs of points over the mean distance of the eyes' corners; both eyes."""
    p = np.asarray(points68, np.float64)
    lids = np.mean([np.linalg.norm(p[:, a] - p[:, b], axis=-1) for a, b in EYE_PAIRS], 0)
    width = np.mean([np.linalg.norm(p[:, a] - p[:, b], axis=-1) for a, b in (RIGHT_CORNERS, LEFT_CORNERS)], 0)
    return _over(lids, width)


def _over(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a / b, NaN where b is 0: points that are no face."""
    return np.where(b > 0, a, np.nan) / np.where(b > 0, b, 1)


CURVES = {"lips": lip_gap, "eyes": eye_opening}


def dense(frames: Int[np.ndarray, " n"], values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " m"]:
    """The values on a line of every frame from the first to the last; NaN where there was none. frames ascend."""
    out = np.full(int(frames[-1] - frames[0]) + 1, np.nan)
    out[np.asarray(frames) - frames[0]] = values
    return out


def _both(a, b) -> tuple[np.ndarray, np.ndarray]:
    ok = np.isfinite(a) & np.isfinite(b)
    return np.asarray(a, np.float64)[ok], np.asarray(b, np.float64)[ok]


def sd_ratio(true: Float[np.ndarray, " n"], rendered: Float[np.ndarray, " n"]) -> float:
    """sd(rendered) / sd(true) over the frames that have both; NaN where the truth does not vary."""
    t, r = _both(true, rendered)
    return float(r.std() / t.std()) if len(t) > 1 and t.std() > 0 else float("nan")


def pearson(true: Float[np.ndarray, " n"], rendered: Float[np.ndarray, " n"]) -> float:
    """Pearson's r; 0 where only the rendered curve is constant (it follows nothing), NaN where the truth is."""
    t, r = _both(true, rendered)
    if len(t) < 3 or np.ptp(t) == 0:
        return float("nan")
    return 0.0 if np.ptp(r) == 0 else float(np.clip(np.corrcoef(t, r)[0, 1], -1, 1))


def concordance(true: Float[np.ndarray, " n"], rendered: Float[np.ndarray, " n"]) -> float:
    """Lin's coefficient 2 cov / (var + var + (difference of the means)²): 1 for equal curves only."""
    t, r = _both(true, rendered)
    if len(t) < 3 or np.ptp(t) == 0:
        return float("nan")
    cov = np.mean((t - t.mean()) * (r - r.mean()))
    return float(2 * cov / (t.var() + r.var() + (t.mean() - r.mean()) ** 2))


def delay(true: Float[np.ndarray, " n"], rendered: Float[np.ndarray, " n"]) -> tuple[float, str]:
    """(frames by which the rendered curve is late, "") or (NaN, why it cannot be said)."""
    lags = np.arange(-MAX_DELAY, MAX_DELAY + 1)
    peaks = np.full(len(lags), np.nan)
    for k, lag in enumerate(lags):
        t, r = (true[: len(true) - lag], rendered[lag:]) if lag >= 0 else (true[-lag:], rendered[:lag])
        if len(_both(t, r)[0]) >= MIN_FRAMES - MAX_DELAY:
            peaks[k] = pearson(t, r)
    if not np.isfinite(peaks).all():
        return float("nan"), f"too few scored frames follow one another to shift them by {MAX_DELAY} frames"
    best = int(np.argmax(peaks))
    if peaks[best] < MIN_PEAK:
        return float("nan"), f"the curves agree at no lag (highest correlation {peaks[best]:.2f}, below {MIN_PEAK})"
    if best in (0, len(lags) - 1):
        return float("nan"), f"the curves agree best at or beyond {lags[best]:+d} frames, the end of the search"
    before, at, after = peaks[best - 1 : best + 2]
    bend = before - 2 * at + after
    return float(lags[best] + (0.5 * (before - after) / bend if bend < 0 else 0.0)), ""


def span(values: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """The range of a clip's true curve: percentiles 1 and 99, so that one wrong frame does not set it."""
    finite = values[np.isfinite(values)]
    return tuple(float(v) for v in np.percentile(finite, RANGE_PERCENTILES)) if len(finite) else (np.nan, np.nan)


def closures(
    true: Float[np.ndarray, " n"], rendered: Float[np.ndarray, " n"], limits: tuple[float, float]
) -> tuple[int, int]:
    """(true closures, those of them that close), as NOTES says. limits: the clip's range."""
    low, high = limits
    below = np.isfinite(true) & (true < low + OPEN * (high - low))
    shut = np.isfinite(rendered) & (rendered < low + SHUT * (high - low))
    wide = np.isfinite(rendered) & ~shut & np.isfinite(true) & ~below  # open, as the truth is
    edges = np.flatnonzero(np.diff(np.concatenate([[0], below.astype(np.int8), [0]])))
    runs, total, closed = edges.reshape(-1, 2), 0, 0
    for k, (a, b) in enumerate(runs):
        near = slice(max(0, a - NEAR), b + NEAR)
        if not np.isfinite(rendered[near]).any():
            continue
        before = 0 if k == 0 else runs[k - 1][1]
        after = len(true) if k + 1 == len(runs) else runs[k + 1][0]
        total += 1
        closed += bool(_near(shut)[a:b].mean() >= 0.5 and wide[before:after].any())
    return total, closed


def _near(mask: Bool[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Places within NEAR frames of one that is set."""
    return np.convolve(mask, np.ones(2 * NEAR + 1), "full")[NEAR : NEAR + len(mask)] > 0


def stillness(kind: str, true: Float[np.ndarray, " n"], training: Float[np.ndarray, " m"]) -> str:
    """Why held-out curves of this kind say nothing, "" where they do. training: the true curve of training frames."""
    mine, theirs = true[np.isfinite(true)], training[np.isfinite(training)]
    what, act = {"lips": ("mouth", "speech"), "eyes": ("eyes", "blinks")}[kind]
    if len(mine) < MIN_FRAMES:
        return f"{len(mine)} held-out frames with a face say nothing about {act}; at least {MIN_FRAMES} are needed"
    spread, whole = float(mine.std()), float(theirs.std()) if len(theirs) else 0.0
    still = f"the held-out part is too still to say anything about {act}: its {what}"
    if spread < MIN_SPREAD * whole:
        return (
            f"{still} move {100 * spread / whole:.0f} % of what the training frames' do (at least "
            f"{100 * MIN_SPREAD:.0f} % are needed); train with --split=blocks or a longer clip"
        )
    if spread < MIN_MOTION[kind]:
        return (
            f"{still} move by {spread:.4f} of {MEASURED_IN[kind]} (at least {MIN_MOTION[kind]} is needed), those of "
            f"the training frames by {whole:.4f}; a clip with {act} is needed"
        )
    return ""


def compare(
    kind: str,
    true: Float[np.ndarray, " n"],
    rendered: Float[np.ndarray, " n"],
    training: Float[np.ndarray, " m"],
) -> tuple[dict[str, float | None], dict[str, str]]:
    """(KEYS of one kind, `lips` or `eyes`; reasons of those that are None). Curves are dense; training: the true curve
    of a sample of training frames, measured alike."""
    empty = dict.fromkeys(KEYS)
    still = stillness(kind, np.where(np.isfinite(rendered), true, np.nan), training)
    if still:
        return empty, dict.fromkeys(KEYS, still)
    late, why_not = delay(true, rendered)
    total, closed = closures(true, rendered, span(np.concatenate([true, training])))
    values = {
        "sd_ratio": sd_ratio(true, rendered),
        "correlation": pearson(true, rendered),
        "concordance": concordance(true, rendered),
        "delay_frames": late,
        "closures_closed": closed / total if total else float("nan"),
    }
    why = {"delay_frames": why_not, "closures_closed": f"the {kind} never close in the held-out frames"}
    out = {k: v if np.isfinite(v) else None for k, v in values.items()}
    return out, {k: why.get(k) or "the curve is constant" for k, v in out.items() if v is None}


def lines(response: Mapping[str, Any]) -> str:
    """Lips, eyes and the drive test for a log: one line each."""
    reasons, out = response["reasons"], []
    names = {"sd_ratio": "sd ratio", "delay_frames": "delay", "closures_closed": "closures closed"}
    for kind in CURVES:
        values = ", ".join(f"{names.get(k, k)} {_short(response[kind][k])}" for k in KEYS)
        train = ", ".join(f"{names.get(k, k)} {_short(v)}" for k, v in response["train_sample"].get(kind, {}).items())
        unknown = all(response[kind][k] is None for k in KEYS)
        said = f"not measured: {reasons[f'{kind}.{KEYS[0]}']}" if unknown else values
        out.append(f"{kind} held out: {said}" + (f" (training frames: {train})" if train else ""))
    moved = (
        f"{name} {v['changed_px']:.0f} px, mean {v['mean_change']:.2f}, {v['region'] or 'nowhere'}"
        for name, v in response["drive_test"].items()
        if v is not None
    )
    still = f"still {_short(response['still_px'])} px, silence {_short(response['silence_motion'])}"
    return "\n".join([*out, "drive test: " + "; ".join([*moved, still])])


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def flat(prefix: str, reasons: Mapping[str, str]) -> dict[str, str]:
    """Reasons under dotted names."""
    return {f"{prefix}.{k}": v for k, v in reasons.items()}


def rounded(values: Sequence[float] | np.ndarray) -> list[float | None]:
    """Curves as a report holds them: four decimals, None for NaN."""
    return [round(float(v), 4) if np.isfinite(v) else None for v in values]
