"""The signals of a dataset: what the manifest says of each (since minor version 1), and the values themselves.

Older manifests say nothing; what they would have said follows from the rest and from the data.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tkjax.contract.audio_features import AudioFeatures, AudioHeader
from tkjax.contract.spec import Layout
from tkjax.signals import SOUND, Signal, SignalInfo, of_frames, ranged

FRAMES = ("expression", "eye_closed", "eye_area")  # members that drive a head, beside x_<name> of floating point
CHANNELS_MOST = 4096  # of an extra member that still counts as a signal


def members(layout: Layout, present: Sequence[str]) -> tuple[str, ...]:
    """Those members that are signals with one step a frame."""
    extra = [
        name for name, (dtype, shape) in layout.extra.items() if dtype.startswith("float") and shape_is_small(shape)
    ]
    empty = {"expression"} if layout.n_expression == 0 else set()
    return tuple(name for name in (*FRAMES, *extra) if name in present and name not in empty)


def shape_is_small(shape: Sequence[int]) -> bool:
    return 1 <= int(np.prod(shape, dtype=np.int64)) <= CHANNELS_MOST


def name_of(member: str) -> str:
    """`x_<name>` -> `<name>`, where no other signal, and no entry of sound, has that name."""
    short = member.removeprefix("x_")
    taken = short in (*FRAMES, SOUND) or short.startswith("audio_")
    return member if taken and short != member else short


def of_member(member: str, values: np.ndarray, fps: float, names: Sequence[str] = ()) -> Signal:
    """The signal that a member of the shards holds, float32; names that a manifest may not have are numbered."""
    width = int(np.prod(values.shape[1:], dtype=np.int64))
    good = len(names) == width and len({*names}) == width and all(map(is_name, names))
    return of_frames(name_of(member), values, fps, names if good else (), source=f"member {member}")


def is_name(text: Any) -> bool:
    """Whether a channel may be called so: 1 to 200 printable characters."""
    return isinstance(text, str) and 0 < len(text) <= 200 and text.isprintable()


def of_sound(features: AudioFeatures) -> Signal:
    """The signal that sound features are."""
    return Signal(sound_info(features.header), features.features)


def sound_info(header: AudioHeader) -> SignalInfo:
    return SignalInfo(
        SOUND, header.channels, header.rate_hz, start_s=header.start_s, window=header.window, hop=header.hop,
        left=header.left, kind=header.kind, source=f"file audio_{header.kind}.npz",
    )  # fmt: skip


def describe(signal: Signal, train: Sequence[int]) -> dict[str, Any]:
    """The entry of the manifest, with the range over the training frames where that is finite."""
    info = ranged(signal.info, signal.values, np.arange(*train))
    if not np.isfinite([*info.low, *info.high]).all():
        info = dataclasses.replace(info, low=(), high=())
    facts = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(info).items()}
    return {**facts, "right": info.right}


def entry_name(info: SignalInfo) -> str:
    """Under which name the manifest has it: there may be several kinds of sound."""
    return f"audio_{info.kind}" if info.name == SOUND else info.name


def info_of(entry: Mapping[str, Any]) -> SignalInfo:
    return SignalInfo.from_json({k: v for k, v in entry.items() if k != "right"})
