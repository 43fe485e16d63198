"""What drives an avatar: named channels over time, whatever they are (sound features, blinks, expression coefficients).

Training and driving cut a frame's windows with `windows`, so that a model is driven by what it was trained on.
Numpy only.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from tkjax.errors import UserError

EDGES = ("zeros", "repeat")  # what stands before the first and behind the last frame
OPEN_EYES = 0.25  # eye area in per cent of the picture where nothing is known of it (rad-nerf dossier §2.1, §2.6)
SOUND = "sound"  # the name of the signal that sound features are, of whatever kind
EXPRESSION = "expression"  # that of a face's coefficients, which a speech network gives (tkjax.voice)


@dataclasses.dataclass(frozen=True)
class SignalInfo:
    """What is known of a signal beside its values.

    name: `sound`, `expression`, `eye_closed`, `eye_area`, or that of an extra member `x_<name>`. channels: how many.
    names: of the channels, empty where they have none (sound features). rate_hz: steps a second; start_s: time of step
    0. window, hop, left: the window of frame i holds the steps hop·i - left … hop·i - left + window - 1. low, high: the
    range of each channel over the training frames, empty where it is not known. kind: of sound features (`logmel`, …).
    source: where it came from (a member or file of the dataset, a file that the user named).
    """

    name: str
    channels: int
    rate_hz: float
    names: tuple[str, ...] = ()
    start_s: float = 0.0
    window: int = 1
    hop: int = 1
    left: int = 0
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    kind: str = ""
    source: str = ""

    @property
    def right(self) -> int:
        """Steps behind hop·i that the window of frame i reaches."""
        return self.window - self.left - 1

    @property
    def per_frame(self) -> bool:
        """One step for each frame, which is also its window."""
        return self.window == self.hop == 1 and self.left == 0

    def to_json(self) -> dict[str, Any]:
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "SignalInfo":
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in data.items()})


@dataclasses.dataclass(frozen=True, eq=False)
class Signal:
    """A signal with its values [n, C]; see `SignalInfo`."""

    info: SignalInfo
    values: Float[np.ndarray, "n C"]

    def __post_init__(self):
        if self.values.ndim != 2 or self.values.shape[1] != self.info.channels:
            raise ValueError(f"signal {self.info.name}: values {self.values.shape}, {self.info.channels} channels")

    @property
    def n_frames(self) -> int:
        """Frames that have a window: ceil(n / hop)."""
        return -(-len(self.values) // self.info.hop)

    def with_range(self, frames: Int[np.ndarray, " t"]) -> "Signal":
        """The same with the range of its channels over these frames."""
        return dataclasses.replace(self, info=ranged(self.info, self.values, frames))


@dataclasses.dataclass(frozen=True)
class Use:
    """That a system is driven by a signal: the windows of the frame itself, of `before` frames before it and `after`
    behind it. edge: what stands for a neighbour outside the clip, `zeros`, or `repeat` the first or last frame."""

    name: str
    before: int = 0
    after: int = 0
    edge: str = "zeros"

    def __post_init__(self):
        if self.edge not in EDGES or self.before < 0 or self.after < 0:
            raise ValueError(f"{self}: edge is one of {', '.join(EDGES)}, before and after are not negative")

    @property
    def neighbours(self) -> int:
        """Windows for each frame; its own has index `before`."""
        return self.before + 1 + self.after


def ranged(info: SignalInfo, values: Float[np.ndarray, "n C"], frames: Int[np.ndarray, " t"]) -> SignalInfo:
    """`info` with the range of the values over the steps of these frames (hop·i … hop·i + hop - 1)."""
    if not len(values) or not len(frames):
        return info
    steps = (np.asarray(frames)[:, None] * info.hop + np.arange(info.hop)).ravel()
    part = values[steps[steps < len(values)]]
    if not len(part):
        return info
    low, high = (tuple(float(v) for v in f(0)) for f in (part.min, part.max))
    return dataclasses.replace(info, low=low, high=high)


def cut_windows(
    rows: np.ndarray, frames: np.ndarray, window: int, hop: int, left: int, first: int = 0, end: int | None = None
) -> np.ndarray:
    """The windows of video frames, float32 [*frames, window, C]: steps hop·f - left … hop·f - left + window - 1.

    rows: [m, C], the steps first … first + m - 1 of the sequence; there are zeros outside them. frames: whole numbers
    of any shape. end: frames before 0, and from this one on, have windows of zeros alone; None: all frames have steps.
    """
    frames = np.asarray(frames, np.int64)
    steps = hop * frames[..., None] - left - first + np.arange(window)
    inside = (steps >= 0) & (steps < len(rows))
    if end is not None:
        inside &= ((frames >= 0) & (frames < end))[..., None]
    out = np.zeros((*steps.shape, rows.shape[1]), np.float32)
    out[inside] = rows[steps[inside]]
    return out


def windows(
    signal: Signal, frames: Int[np.ndarray, " B"], use: Use, first: int = 0, n_frames: int | None = None
) -> Float[np.ndarray, "B W T C"]:
    """What a model hears of a signal at each frame: its W windows of T steps, see `cut_windows`.

    A neighbour outside the clip is zeros; with edge `repeat` the window of the first or last frame stands there. Of a
    signal that streams, values[0] is its step number `first`, and n_frames frames have a window (None: as many as the
    values last).
    """
    last = signal.n_frames if n_frames is None else n_frames
    around = np.asarray(frames, np.int64)[:, None] + np.arange(-use.before, use.after + 1)
    if use.edge == "repeat":
        around = np.clip(around, 0, last - 1)
    i = signal.info
    return cut_windows(signal.values, around, i.window, i.hop, i.left, first, last)


def of_frames(
    name: str, values: Float[np.ndarray, "n *C"], rate_hz: float, names: Sequence[str] = (), source: str = ""
) -> Signal:
    """A signal with one step for each frame; names default to the signal's own, or to it with a number."""
    with np.errstate(over="ignore"):  # what float32 does not hold is infinite, and refused where it is used
        values = np.asarray(values, np.float32)
    values = values[:, None] if values.ndim == 1 else values.reshape(len(values), -1)
    channels = values.shape[1]
    names = tuple(names) or ((name,) if channels == 1 else tuple(f"{name}{k}" for k in range(channels)))
    return Signal(SignalInfo(name, channels, float(rate_hz), names, source=source), values)


def check_finite(signal: Signal, where: str) -> None:
    """UserError names the first step of a signal that holds no finite number."""
    bad = ~np.isfinite(signal.values).all(1)
    if bad.any():
        step = int(np.argmax(bad))
        raise UserError(
            f"{where}: signal {signal.info.name} ({signal.info.source}) is not finite at step {step}, expected numbers "
            "that float32 holds in every frame"
        )


def outside(info: SignalInfo, values: Float[np.ndarray, "n C"], slack: float = 0.25) -> Bool[np.ndarray, " C"]:
    """Which channels leave their range of the training frames by more than `slack` of it."""
    if not info.low:
        return np.zeros(info.channels, bool)
    low, high = np.array(info.low), np.array(info.high)
    margin = slack * np.maximum(high - low, 1e-6)
    return (values.min(0) < low - margin) | (values.max(0) > high + margin)
