"""Sound features of a clip, `audio_<kind>.npz`: the sequence and how windows are cut from it."""

import dataclasses
import io
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tkjax.contract.npz import Entry, Rows, npz_index, read_entry, read_rows, write_npz
from tkjax.contract.refusal import ContractError, disk_errors, first_bad, refuse
from tkjax.contract.spec import FPS, VERSION
from tkjax.host import files
from tkjax.signals import cut_windows


@dataclasses.dataclass(frozen=True)
class AudioHeader:
    """What a feature sequence [steps, channels] is and how windows are cut from it.

    Step k is centred at start_s + k / rate_hz seconds. The window of video frame f holds steps hop·f - left ... hop·f -
    left + window - 1, with zeros outside the sequence; ceil(steps / hop) frames have one, so rate_hz is hop times the
    frame rate. `pad` is how many zero steps the kind's original cutter puts at either end.
    """

    kind: str
    rate_hz: float
    start_s: float
    extractor: str
    window: int
    hop: int
    left: int
    pad: int
    steps: int
    channels: int

    def describe(self) -> dict[str, Any]:
        """Everything but the kind, as the manifest and the avatar hold it."""
        return {k: v for k, v in dataclasses.asdict(self).items() if k != "kind"}


RATE_MOST_HZ, STEPS_MOST = 1e6, 10_000  # raw samples at most; no cutter of a system takes more than 29 steps


@dataclasses.dataclass(frozen=True)
class AudioFeatures:
    """A whole clip's feature sequence, features float32 [n, C], and how windows are cut from it: see `AudioHeader`."""

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
    def header(self) -> AudioHeader:
        facts = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "features"}
        return AudioHeader(**facts, steps=len(self.features), channels=self.features.shape[1])

    @property
    def channels(self) -> int:
        return self.features.shape[1]

    @property
    def n_windows(self) -> int:
        """Video frames that the sound lasts: ceil(n / hop)."""
        return -(-len(self.features) // self.hop)

    def window_at(self, frame: int) -> np.ndarray:
        """[window, C] of video frame `frame` (any integer), zeros outside the sequence."""
        return cut_windows(self.features, np.array(frame), self.window, self.hop, self.left)

    def describe(self) -> dict[str, Any]:
        """Everything but the features and their kind, as the manifest and the avatar hold it."""
        return self.header.describe()


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


_BLOCK = 4096  # steps read at once by what looks at every one of them


def _check(where: Any, a: AudioHeader) -> None:
    def require(member: str, good: bool, expected: str) -> None:
        if not good:
            raise refuse(where, member, f"is {getattr(a, member)!r}", expected)

    require("kind", bool(re.fullmatch(r"[A-Za-z0-9_-]+", a.kind)), "letters, digits, hyphens and underscores")
    require(
        "rate_hz", 0 < a.rate_hz <= RATE_MOST_HZ, f"a positive number of steps a second, at most {RATE_MOST_HZ:.0e}"
    )
    require("start_s", math.isfinite(a.start_s), "a finite time in seconds")
    require("extractor", 0 < len(a.extractor) <= 1000 and a.extractor.isprintable(), "the name of the extractor")
    require("window", 1 <= a.window <= STEPS_MOST, f"1..{STEPS_MOST} steps")
    require("hop", 1 <= a.hop <= STEPS_MOST, f"1..{STEPS_MOST} steps a frame")
    require("left", 0 <= a.left <= a.window, f"0..{a.window}")
    require("pad", 0 <= a.pad <= a.window, f"0..{a.window}")
    rate = a.hop * FPS  # else windows would drift away from their frames
    require(
        "rate_hz", abs(a.rate_hz - rate) <= 1e-6 * rate, f"{rate:g}, {a.hop} steps for each of {FPS:g} frames a second"
    )
    if a.steps < 1 or a.channels < 1:
        raise refuse(where, "features", f"has shape {(a.steps, a.channels)}", "(steps, channels), both at least 1")


def _check_rows(where: Any, f: np.ndarray, first: int = 0) -> None:
    if not np.isfinite(f).all():
        raise refuse(where, "features", f"is not finite at step {first + first_bad(np.isfinite(f))}", "finite numbers")


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
    f = np.asarray(features)
    if f.dtype != np.float32:
        raise refuse(path, "features", f"has dtype {f.dtype}", "float32")
    if f.ndim != 2:
        raise refuse(path, "features", f"has shape {f.shape}", "(steps, channels), both at least 1")
    sizes = {"window": int(window), "hop": int(hop), "left": int(left), "pad": int(pad)}
    header = AudioHeader(
        kind, float(rate_hz), float(start_s), extractor, **sizes, steps=f.shape[0], channels=f.shape[1]
    )
    save_audio_rows(path, header, (f[a : a + _BLOCK] for a in range(0, len(f), _BLOCK)))


def save_audio_rows(path: str | Path, header: AudioHeader, blocks: Iterable[np.ndarray]) -> None:
    """The same from float32 blocks [k, channels] that together are header.steps long: memory is that of a block."""
    _check(path, header)

    def checked() -> Iterator[np.ndarray]:
        first = 0
        for block in blocks:
            _check_rows(path, block, first)
            first += len(block)
            yield block

    arrays = {"version": np.int64(VERSION), "features": Rows((header.steps, header.channels), checked())}
    for name, (letter, shape) in _MEMBERS.items():
        if not shape and name != "version":
            arrays[name] = {"i": np.int64, "f": np.float64, "U": np.str_}[letter](getattr(header, name))
    with files.whole(path) as part, open(part, "wb") as f:
        write_npz(f, arrays)


def load_audio_features(path: str | Path) -> AudioFeatures:
    """Read and check `audio_<kind>.npz`."""
    with disk_errors(path, "a file of sound features"):
        data = Path(path).read_bytes()
    return parse_audio(data, path)


def parse_audio(data: bytes, where: Any, kind: str | None = None) -> AudioFeatures:
    """The content of an `audio_<kind>.npz`, checked; also its kind where that is given."""
    file = io.BytesIO(data)
    header, entry = _read_header(file, where)
    if kind not in (None, header.kind):
        raise refuse(where, "kind", f"is {header.kind}", kind)
    rows = read_entry(file, entry, where, "features", check=True)
    _check_rows(where, rows)
    return AudioFeatures(features=rows, **{f.name: getattr(header, f.name) for f in dataclasses.fields(AudioFeatures)
                                           if f.name != "features"})  # fmt: skip


def stream_audio_features(path: str | Path, rows: int) -> tuple[AudioHeader, Iterator[np.ndarray]]:
    """(header, blocks [rows, channels] as they are asked for) of `audio_<kind>.npz`; memory is that of a block.

    All of the file is looked at once before this returns: damage and numbers that are not finite are refused here.
    """
    with disk_errors(path, "a file of sound features"), open(path, "rb") as file:
        header, entry = _read_header(file, path)
        for k, block in enumerate(read_rows(file, entry, path, "features", _BLOCK, check=True)):
            _check_rows(path, block, k * _BLOCK)

    def blocks() -> Iterator[np.ndarray]:
        with disk_errors(path, "a file of sound features"), open(path, "rb") as file:
            yield from read_rows(file, entry, path, "features", rows)

    return header, blocks()


def _read_header(file: io.BufferedIOBase, where: Any) -> tuple[AudioHeader, Entry]:
    """All members but the features, checked, and where those lie."""
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
        if name == "features":
            continue
        try:
            values[name] = read_entry(file, e, where, name, check=True).item()
        except ValueError as error:  # text that is no text
            if isinstance(error, ContractError):
                raise
            raise refuse(where, name, "is not readable", want) from error
    for name in index:
        if name not in _MEMBERS:
            raise refuse(where, name, "is unknown", f"only the members {', '.join(_MEMBERS)}")
    if values.pop("version") != VERSION:
        raise refuse(where, "version", "is not known to this program", f"{VERSION}")
    steps, channels = index["features"].shape
    header = AudioHeader(**values, steps=steps, channels=channels)
    _check(where, header)
    return header, index["features"]
