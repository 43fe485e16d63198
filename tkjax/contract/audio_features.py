"""Sound features of a clip, `audio_<kind>.npz`: the sequence and how windows are cut from it."""

import contextlib
import dataclasses
import io
import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from tkjax.contract.commit import fsync
from tkjax.contract.npz import npz_index, read_entry, write_npz
from tkjax.contract.refusal import ContractError, disk_errors, first_bad, refuse
from tkjax.contract.spec import VERSION


@dataclasses.dataclass(frozen=True)
class AudioFeatures:
    """A whole clip's feature sequence and how windows are cut from it.

    features float32 [n, C]; step k is centred at start_s + k / rate_hz seconds. The window of video frame
    f holds steps hop·f - left ... hop·f - left + window - 1, with zeros outside the sequence; ceil(n / hop)
    frames have one. `pad` is how many zero steps the kind's original cutter puts at either end.
    """

    kind: str
    features: np.ndarray
    rate_hz: float
    start_s: float
    extractor: str
    window: int
    hop: int
    left: int
    pad: int

    @property
    def channels(self) -> int:
        return self.features.shape[1]

    @property
    def n_windows(self) -> int:
        """Video frames that the sound lasts: ceil(n / hop)."""
        return -(-len(self.features) // self.hop)

    def window_at(self, frame: int) -> np.ndarray:
        """[window, C] of video frame `frame` (any integer), zeros outside the sequence."""
        first = self.hop * int(frame) - self.left
        out = np.zeros((self.window, self.channels), np.float32)
        a, b = max(first, 0), min(first + self.window, len(self.features))
        if a < b:
            out[a - first : b - first] = self.features[a:b]
        return out

    def describe(self) -> dict[str, Any]:
        """Everything but the features, as the manifest and the avatar hold it."""
        d = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("features", "kind")}
        return {**d, "steps": len(self.features), "channels": self.channels}


# member -> kind of dtype, shape
_MEMBERS = {
    "version": ("i", ()),
    "kind": ("U", ()),
    "features": ("f", (None, None)),
    "rate_hz": ("f", ()),
    "start_s": ("f", ()),
    "extractor": ("U", ()),
    "window": ("i", ()),
    "hop": ("i", ()),
    "left": ("i", ()),
    "pad": ("i", ()),
}


def _check(where: Any, a: AudioFeatures) -> AudioFeatures:
    def require(member: str, good: bool, expected: str) -> None:
        if not good:
            raise refuse(where, member, f"is {getattr(a, member)!r}", expected)

    require("kind", bool(re.fullmatch(r"[A-Za-z0-9_-]+", a.kind)), "letters, digits, hyphens and underscores")
    require("rate_hz", math.isfinite(a.rate_hz) and a.rate_hz > 0, "a positive number of steps a second")
    require("start_s", math.isfinite(a.start_s), "a finite time in seconds")
    require("extractor", bool(a.extractor), "the name of the extractor")
    require("window", a.window >= 1, "at least 1 step")
    require("hop", a.hop >= 1, "at least 1 step a frame")
    require("left", 0 <= a.left <= a.window, f"0..{a.window}")
    require("pad", 0 <= a.pad <= a.window, f"0..{a.window}")
    f = a.features
    if f.dtype != np.float32:
        raise refuse(where, "features", f"has dtype {f.dtype}", "float32")
    if f.ndim != 2 or f.shape[0] < 1 or f.shape[1] < 1:
        raise refuse(where, "features", f"has shape {f.shape}", "(steps, channels), both at least 1")
    if not np.isfinite(f).all():
        raise refuse(where, "features", f"is not finite at step {first_bad(np.isfinite(f))}", "finite numbers")
    return a


def save_audio_features(
    path: str | Path,
    kind: str,
    features: np.ndarray,
    rate_hz: float | int,
    start_s: float | int,
    extractor: str,
    window: int,
    hop: int,
    left: int,
    pad: int,
) -> None:
    """Write `audio_<kind>.npz` (any path), whole or not at all; arguments as in `AudioFeatures`."""
    sizes = {"window": int(window), "hop": int(hop), "left": int(left), "pad": int(pad)}
    a = AudioFeatures(kind, np.asarray(features), float(rate_hz), float(start_s), extractor, **sizes)
    _check(path, a)
    arrays = {"version": np.int64(VERSION), "features": a.features, "kind": np.str_(kind)}
    arrays |= {"rate_hz": np.float64(a.rate_hz), "start_s": np.float64(a.start_s), "extractor": np.str_(extractor)}
    arrays |= {k: np.int64(v) for k, v in sizes.items()}
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with disk_errors(path, "a place that can be written"):
            with open(part, "wb") as f:
                write_npz(f, arrays)
                fsync(f)
            os.replace(part, path)
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def load_audio_features(path: str | Path) -> AudioFeatures:
    """Read and check `audio_<kind>.npz`."""
    with disk_errors(path, "a file of sound features"):
        data = Path(path).read_bytes()
    return parse_audio(data, path)


def parse_audio(data: bytes, where: Any, kind: str | None = None) -> AudioFeatures:
    """The content of an `audio_<kind>.npz`, checked; also its kind where that is given."""
    file = io.BytesIO(data)
    index = npz_index(file, where)
    values = {}
    for name, (letter, shape) in _MEMBERS.items():
        if name not in index:
            raise refuse(where, name, "is missing", f"the members {', '.join(_MEMBERS)}")
        e = index[name]
        want = {"i": "int64", "f": "float32" if name == "features" else "float64", "U": "text"}[letter]
        if e.dtype.kind != letter or (letter != "U" and e.dtype != np.dtype(want).newbyteorder("<")):
            raise refuse(where, name, f"has dtype {e.dtype}", want)
        if len(e.shape) != len(shape):
            raise refuse(where, name, f"has shape {e.shape}", "(steps, channels)" if shape else "a single value")
        try:
            a = read_entry(file, e, where, name, check=True)
            values[name] = a if name == "features" else a.item()
        except ValueError as error:  # text that is no text
            if isinstance(error, ContractError):
                raise
            raise refuse(where, name, "is not readable", want) from error
    for name in index:
        if name not in _MEMBERS:
            raise refuse(where, name, "is unknown", f"only the members {', '.join(_MEMBERS)}")
    if values.pop("version") != VERSION:
        raise refuse(where, "version", "is not known to this program", f"{VERSION}")
    a = _check(where, AudioFeatures(**values))
    if kind not in (None, a.kind):
        raise refuse(where, "kind", f"is {a.kind}", kind)
    return a
