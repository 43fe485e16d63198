"""Track files: named channels over time. What drives an avatar from outside, whatever made it; see docs/tracks.md.

csv: a header, then a row for each moment. The column `time_s` (also `time` or `timestamp`, seconds) says when; without
it the rows are frames at the avatar's rate. Every other column is a channel. A byte order mark, semicolons or tabs
between cells and decimal commas are read.

npz: `values` [n, C] and `channels` [C] text, with `time_s` [n] or one number `rate_hz`, or neither. Nothing pickled.

Recordings of other programs (`recordings`) are read as they are: Live Link Face's and OpenFace's csv, arrays and .mat
files of 3DMM coefficients. Rows of numbers without any names (csv, npy, npz) are `plain`: they stand for the channels
of the one signal that has as many.
"""

import dataclasses
import io
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from tkjax.errors import UserError
from tkjax.formats import recordings, tables

TIMES = ("time_s", "time", "timestamp")  # names of a csv's column of seconds
ROWS_MOST, CHANNELS_MOST, BYTES_MOST = 10_000_000, 100_000, 4_000_000_000
TEXT_MOST = 1_000_000_000  # bytes of a csv or a .mat, which are read whole
SUFFIXES = (".csv", ".npz", ".npy", ".mat")
MAT_ARRAYS = ("coeff_3dmm", "full_3dmm", "coeff")  # of a .mat, [n,70], [n,73] or [n,257]
CSV_DIGITS = 7
# what numpy and zipfile raise on files that are damaged or something else
UNREADABLE = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, MemoryError,
              SyntaxError, tokenize.TokenError)  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class Track:
    """values [n, C] at n rising times in seconds, channels by name; where: what it is called in sentences. plain: the
    file gave no names, and `names` are numbers."""

    names: tuple[str, ...]
    values: Float[np.ndarray, "n C"]
    time_s: Float[np.ndarray, " n"]
    where: str
    plain: bool = False

    def resampled(self, fps: float) -> "Track":
        """Linear between its moments, at a step every 1 / fps from its first to its last."""
        start, stop = float(self.time_s[0]), float(self.time_s[-1])
        n = max(1, int(np.floor((stop - start) * fps + 0.5)) + 1)
        at = start + np.arange(n) / fps
        if n == len(self.time_s) and np.abs(at - self.time_s).max() <= 1e-3 / fps:
            return dataclasses.replace(self, time_s=at)
        values = np.stack([np.interp(at, self.time_s, column) for column in self.values.T], 1)
        return dataclasses.replace(self, values=values.astype(np.float32), time_s=at)

    def columns(self, names: Sequence[str]) -> Float[np.ndarray, "n k"] | None:
        """The channels of these names in this order; None where one is missing."""
        if self.plain or not {*names} <= {*self.names}:
            return None
        return self.values[:, [self.names.index(name) for name in names]]


def read(path: Path | str, fps: float) -> Track:
    """A track file; fps: the rate of rows that name no time.

    Raises:
      UserError: names the file and what is wrong with it.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(
            f"{path} is no track, expected a csv with named columns or an npz with values and channels (or an .npy or "
            ".mat of coefficients)"
        )
    names, values, time_s = {".csv": _csv, ".npz": _npz, ".npy": _npy, ".mat": _mat}[suffix](path)
    plain = names is None
    names = [str(k) for k in range(values.shape[1])] if plain else names
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
    return Track(tuple(names), values, time_s, str(path), plain)


def is_track(path: Path | str) -> bool:
    """Whether a file is a track by its suffix, or as an npz by its members."""
    path = Path(path)
    if path.suffix.lower() != ".npz":
        return path.suffix.lower() in (".csv", ".mat")
    try:
        with np.load(path, allow_pickle=False) as file:
            return "channels" in file.files
    except (*UNREADABLE, AttributeError):
        return False


def _text_size(path: Path) -> None:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if size > TEXT_MOST:
        raise UserError(f"{path}: has {size / 1e9:.1f} GB, no track is as long")


def _csv(path: Path) -> recordings.Columns:
    _text_size(path)
    table = tables.read_table(path)
    header = table.header
    if not table.rows:
        raise UserError(f"{path}: expected a first row with the names of the channels, and numbers below it")
    if table.names is None:
        wide = max(len(row) for row in table.rows)
        return None, np.array([[table.number(row, k) for k in range(wide)] for row in table.rows], np.float64), None
    for is_it, take in ((recordings.is_live_link, recordings.live_link), (recordings.is_openface, recordings.openface)):
        if is_it(table):
            return take(table)
    values = np.array([[table.number(row, k) for k in range(len(header))] for row in table.rows], np.float64)
    when = next((k for k, name in enumerate(header) if name.lower() in TIMES), None)
    keep = [k for k in range(len(header)) if k != when]
    names = [recordings.blendshape(header[k]) for k in keep]
    return names, values[:, keep], None if when is None else values[:, when]


def _npz(path: Path) -> recordings.Columns:
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > BYTES_MOST:
                raise UserError(f"{path}: holds more than {BYTES_MOST / 1e9:g} GB, no track is as long")
        with np.load(path, allow_pickle=False) as file:
            wanted = ("values", "channels", "time_s", "rate_hz")
            alone = file.files if len(file.files) == 1 else ()
            found = {name: file[name] for name in (*wanted, *alone) if name in file.files}
    except UserError:
        raise
    except UNREADABLE as error:
        raise UserError(f"{path} is not readable as numpy data") from error
    if len(found) == 1:
        return _array(path, next(iter(found.values())))
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


def _npy(path: Path) -> recordings.Columns:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)  # the file is as long as it says, or refused
    except UNREADABLE as error:
        raise UserError(f"{path} is not readable as numpy data") from error
    if not isinstance(array, np.ndarray):
        raise UserError(f"{path} is an archive and no array, expected [n,C] numbers")
    return _array(path, array)


def _array(path: Path, array: np.ndarray) -> recordings.Columns:
    """An array alone: 3DMM coefficients by its width, else rows without names."""
    good = array.ndim == 2 and array.dtype.kind in "fiu" and len(array) <= ROWS_MOST
    if not good or array.shape[1] > CHANNELS_MOST:
        raise UserError(f"{path}: has an array {array.dtype} {list(array.shape)}, expected numbers [n,C]")
    values = np.asarray(array, np.float64)
    named = recordings.coefficients(values)
    if named is None:
        return None, values, None
    print(f"{path}: rows of {array.shape[1]} numbers are 3DMM coefficients, named by their place", flush=True)
    return *named, None


def _mat(path: Path) -> recordings.Columns:
    """coeff_3dmm, full_3dmm or coeff of SadTalker and PIRender, or id, exp, tex, angle, gamma, trans."""
    _text_size(path)
    try:
        from scipy import io as scipy_io  # an extra; reads numbers and texts, runs nothing
    except ImportError as error:
        raise UserError(f"{path}: a .mat file needs scipy, which is missing; install tkjax[preprocess]") from error
    parts = (*recordings.PARTS, "angle", "trans")
    try:
        there = {name: shape for name, shape, _ in scipy_io.whosmat(path)}
        wanted = [name for name in (*MAT_ARRAYS, *parts) if name in there]
        if any(int(np.prod(there[name], dtype=np.float64)) > BYTES_MOST // 8 for name in wanted):
            raise UserError(f"{path}: holds more than {BYTES_MOST / 1e9:g} GB, no track is as long")
        found = scipy_io.loadmat(path, variable_names=wanted)
    except UserError:
        raise
    except Exception as error:  # scipy's reader raises whatever comes of damaged bytes
        raise UserError(f"{path} is not readable as a MATLAB file of version 4 to 7.2") from error
    for name in MAT_ARRAYS:
        if name in found:
            return _array(path, found[name])
    arrays = {n: found[n] for n in wanted if found[n].ndim == 2 and found[n].dtype.kind in "fiu"}
    lengths = {len(a) for a in arrays.values()}
    wide = all(arrays[n].shape[1] == recordings.PARTS.get(n, 3) for n in arrays)
    if "exp" not in arrays or len(lengths) != 1 or not wide:
        raise UserError(
            f"{path}: holds {', '.join(there) or 'nothing'}, expected coeff_3dmm [n,70], [n,73] or [n,257], or exp "
            "[n,64] with angle and trans [n,3]"
        )
    names, columns = [], []
    for part in (p for p in recordings.PARTS if p in arrays):
        names += recordings.names_of("light" if part == "gamma" else part, recordings.PARTS[part])
        columns.append(arrays[part])
    if {"angle", "trans"} <= set(arrays):
        names += recordings.head_pose.CHANNELS
        columns.append(recordings.head_channels(arrays["angle"], arrays["trans"]))
    return names, np.concatenate(columns, 1).astype(np.float64), None


# ---------------------------------------------------------------- writing


def encode(
    suffix: str, names: Sequence[str], values: Float[np.ndarray, "n C"], rate_hz: float, start_s: float = 0.0
) -> bytes:
    """The bytes of a track file, .npz or .csv, with its times; the same track gives the same bytes."""
    values, time_s = np.asarray(values, np.float32), start_s + np.arange(len(values)) / float(rate_hz)
    if suffix.lower() == ".csv":
        lines = [",".join(["time_s", *names])]
        lines += [
            ",".join([f"{t:.6g}" if t < 1000 else f"{t:.3f}", *(f"{v:.{CSV_DIGITS}g}" for v in row)])
            for t, row in zip(time_s, values.tolist(), strict=True)
        ]
        return ("\n".join(lines) + "\n").encode()
    out = io.BytesIO()
    np.savez(out, values=values, channels=np.array(list(names)), time_s=time_s)
    return out.getvalue()


def save(path: Path | str, names: Sequence[str], values: Float[np.ndarray, "n C"], rate_hz: float | int) -> None:
    """Write a track as npz (for tools and tests; atomic writes are the caller's)."""
    with open(path, "wb") as file:
        np.savez(file, values=np.asarray(values, np.float32), channels=np.array(list(names)), rate_hz=float(rate_hz))
