"""Track files: named channels over time, as csv or npz. What drives an avatar from outside, whatever made it.

csv: a header, then a row for each moment. The column `time_s` (also `time` or `timestamp`, seconds) says when; without
it the rows are frames at the avatar's rate. Every other column is a channel. A byte order mark, semicolons or tabs
between cells and decimal commas are read.

npz: `values` [n, C] and `channels` [C] text, with `time_s` [n] or one number `rate_hz`, or neither. Nothing pickled.
"""

import dataclasses
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from tkjax.errors import UserError
from tkjax.formats import tables

TIMES = ("time_s", "time", "timestamp")  # names of a csv's column of seconds
ROWS_MOST, CHANNELS_MOST, BYTES_MOST = 10_000_000, 100_000, 4_000_000_000
SUFFIXES = (".csv", ".npz")
# what numpy and zipfile raise on files that are damaged or something else
UNREADABLE = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, MemoryError,
              SyntaxError, tokenize.TokenError)  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class Track:
    """values [n, C] at n rising times in seconds, channels by name; where: what it is called in sentences."""

    names: tuple[str, ...]
    values: Float[np.ndarray, "n C"]
    time_s: Float[np.ndarray, " n"]
    where: str

    def resampled(self, fps: float) -> "Track":
        """Linear between its moments, at a step every 1 / fps from its first to its last."""
        start, stop = float(self.time_s[0]), float(self.time_s[-1])
        n = max(1, int(np.floor((stop - start) * fps + 0.5)) + 1)
        at = start + np.arange(n) / fps
        if n == len(self.time_s) and np.abs(at - self.time_s).max() <= 1e-3 / fps:
            return dataclasses.replace(self, time_s=at)
        values = np.stack([np.interp(at, self.time_s, column) for column in self.values.T], 1)
        return dataclasses.replace(self, values=values.astype(np.float32), time_s=at)


def read(path: Path | str, fps: float) -> Track:
    """A track file; fps: the rate of rows that name no time.

    Raises:
      UserError: names the file and what is wrong with it.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path} is no track, expected a csv with named columns or an npz with values and channels")
    names, values, time_s = _csv(path) if path.suffix.lower() == ".csv" else _npz(path)
    if len(set(names)) != len(names):
        twice = next(n for n in names if names.count(n) > 1)
        raise UserError(f"{path}: the channel {twice!r} is there twice")
    if not len(values) or not names:
        raise UserError(f"{path}: holds {len(values)} rows of {len(names)} channels, expected at least one of each")
    with np.errstate(over="ignore"):
        values = values.astype(np.float32)
    if not np.isfinite(values).all():
        row, column = np.argwhere(~np.isfinite(values))[0]
        raise UserError(f"{path}: channel {names[column]!r} is no finite number in row {row}")
    time_s = np.arange(len(values)) / fps if time_s is None else np.asarray(time_s, np.float64)
    if not np.isfinite(time_s).all() or (np.diff(time_s) <= 0).any():
        raise UserError(f"{path}: the times do not rise from row to row")
    if len(time_s) > 1 and not 1 <= (len(time_s) - 1) / (time_s[-1] - time_s[0]) <= 1000:
        raise UserError(f"{path}: the times make {(len(time_s) - 1) / (time_s[-1] - time_s[0]):g} rows a second, "
                        "expected 1 to 1000; are they in seconds?")  # fmt: skip
    if time_s[0] != 0:
        print(f"{path}: its first row, at {time_s[0]:g} s, is the first frame", flush=True)
    return Track(tuple(names), values, time_s, str(path))


def _csv(path: Path) -> tuple[list[str], np.ndarray, np.ndarray | None]:
    table = tables.read_table(path)
    header = table.header
    if table.names is None or not table.rows:
        raise UserError(f"{path}: expected a first row with the names of the channels, and numbers below it")
    values = np.array([[table.number(row, k) for k in range(len(header))] for row in table.rows], np.float64)
    when = next((k for k, name in enumerate(header) if name.lower() in TIMES), None)
    keep = [k for k in range(len(header)) if k != when]
    return [header[k] for k in keep], values[:, keep], None if when is None else values[:, when]


def _npz(path: Path) -> tuple[list[str], np.ndarray, np.ndarray | None]:
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > BYTES_MOST:
                raise UserError(f"{path}: holds more than {BYTES_MOST / 1e9:g} GB, no track is as long")
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in ("values", "channels", "time_s", "rate_hz") if name in file.files}
    except UserError:
        raise
    except UNREADABLE as error:
        raise UserError(f"{path} is not readable as numpy data") from error
    for name in ("values", "channels"):
        if name not in found:
            raise UserError(f"{path}: the array {name} is missing, expected values [n,C] and channels [C]")
    values, channels = found["values"], found["channels"]
    good = values.ndim == 2 and values.dtype.kind in "fiu" and channels.dtype.kind == "U"
    if not good or channels.shape != values.shape[1:] or len(values) > ROWS_MOST or values.shape[-1] > CHANNELS_MOST:
        raise UserError(
            f"{path}: has values {values.dtype} {list(values.shape)} and channels {channels.dtype} "
            f"{list(channels.shape)}, expected numbers [n,C] and the C names of their columns"
        )
    time_s, rate = found.get("time_s"), found.get("rate_hz")
    if time_s is not None and (time_s.shape != values.shape[:1] or time_s.dtype.kind not in "fiu"):
        raise UserError(f"{path}: time_s is {list(time_s.shape)}, expected one number of seconds for each row")
    if time_s is None and rate is not None:
        if rate.shape != () or rate.dtype.kind not in "fiu" or not 1 <= rate <= 1000:
            raise UserError(f"{path}: rate_hz must be one number, 1 to 1000 rows a second")
        time_s = np.arange(len(values)) / float(rate)
    return channels.tolist(), np.asarray(values, np.float64), time_s


def save(path: Path | str, names: Sequence[str], values: Float[np.ndarray, "n C"], rate_hz: float | int) -> None:
    """Write a track as npz (for tools and tests; atomic writes are the caller's)."""
    with open(path, "wb") as file:
        np.savez(file, values=np.asarray(values, np.float32), channels=np.array(list(names)), rate_hz=float(rate_hz))
