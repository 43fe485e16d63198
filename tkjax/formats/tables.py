"""Tables with a row for each frame: OpenFace's csv, or one column of numbers. The one reader for import and `--eye`.

A row goes to the frame that it names, never to the one that its place in the file suggests, as far as the table tells:
- `img_id` is the number of the picture; `frame` counts from 1 as OpenFace does (from 0 where a row says 0).
- `timestamp` in seconds counts where it disagrees with 25 frames a second by more than half a frame: the values are
  then those of a clip at another rate, and are interpolated to 25.
- `face_id`: of several faces that share frames one counts, the one with the most rows (then the surest, then the
  smallest number). Faces that share no frame are one person whom the tracker has lost and found.
- Rows with `success` 0 and values that are no numbers hold no measure.
A byte order mark, blanks around names, semicolons or tabs between cells and decimal commas are read; without a header
the rows count. Everything that is not as plain as a row for each frame is said in `notes`.
"""

import csv
import dataclasses
import io
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tkjax.errors import UserError

FPS = 25.0
AU45, AU45_FULL = "au45_r", 2.0  # OpenFace's blink, and the intensity at which an eye counts as closed (er-nerf.md §2)
INDEX = ("frame", "face_id", "timestamp", "confidence", "success", "img_id")
PLAIN = ("eye", "eye_closed", "blink")  # names of a column of values 0…1 beside those of INDEX
RATES = (5.0, 240.0)  # frames a second; timestamps that say anything else are not in seconds


@dataclasses.dataclass(frozen=True)
class Column:
    """values: {frame from 0: number}. lost, failed: frames whose row holds no number, or says that the tracker failed.
    notes: sentences for a person, without the file's name."""

    values: dict[int, float]
    lost: tuple[int, ...] = ()
    failed: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Table:
    """names: of the columns in small letters, None without a header. header: as they are written. rows: cells without
    blanks around them."""

    path: Path
    names: list[str] | None
    rows: list[list[str]]
    comma: bool  # decimal commas
    header: tuple[str, ...] = ()

    def number(self, row: Sequence[str], column: int) -> float:
        """The number of a cell; NaN where there is none."""
        try:
            return float(row[column].replace(",", ".") if self.comma else row[column])
        except (ValueError, IndexError):
            return float("nan")

    def numbers(self, name: str) -> np.ndarray | None:
        """A column [rows], NaN where a cell is no number; None where there is no such column."""
        if name not in (self.names or ()):
            return None
        column = self.names.index(name)
        return np.array([self.number(row, column) for row in self.rows], np.float64)


def read_table(path: Path) -> Table:
    """The cells of a csv file; UserError where it is none."""
    try:
        data = Path(path).read_bytes()
        text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
        first = text.lstrip().partition("\n")[0]
        mark = max(",;\t", key=lambda c: (first.count(c), c == ","))
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=mark))
    except (OSError, UnicodeError, csv.Error) as e:
        reason = getattr(e, "strerror", None) or " ".join(str(e).split())
        raise UserError(f"{path}: cannot be read as a table ({reason}), expected a csv file") from e
    rows = [[cell.strip() for cell in row] for row in rows]
    rows = [row for row in rows if any(row)]
    comma = mark != ","
    if not rows:
        raise UserError(f"{path}: is empty, expected one column of numbers or OpenFace's AU45_r")
    plain = Table(Path(path), None, rows, comma)
    if all(_is_number(cell, comma) for cell in rows[0] if cell):
        return plain
    return dataclasses.replace(plain, names=[c.casefold() for c in rows[0]], rows=rows[1:], header=tuple(rows[0]))


def _is_number(cell: str, comma: bool) -> bool:
    try:
        float(cell.replace(",", ".") if comma else cell)
    except ValueError:
        return False
    return True


def read_blinks(path: Path, n_frames: int | None = None, openface: bool = False) -> Column:
    """Blinks 0 (open) … 1 (closed) of a csv: clip(AU45_r, 0, 2) / 2 (er-nerf.md §2), or one column of such values.

    n_frames: one more than the largest number of a frame, where that is known: it tells a table that lacks its first
    rows from one that was cut out of a longer one. openface: nothing but AU45_r will do. UserError for tables without
    such a column, without any number in it, and for rows of several faces that cannot be told apart.
    """
    table = read_table(path)
    values = _values(table, openface)
    notes: list[str] = []
    keep = one_face(table, np.isfinite(values), notes)
    table = dataclasses.replace(table, rows=list(itertools.compress(table.rows, keep)))
    values, success = values[keep], table.numbers("success")
    failed = np.zeros(len(values), bool) if success is None else success == 0
    good = np.isfinite(values) & ~failed
    if not good.any():
        raise UserError(f"{path}: holds no blink that is a number, expected one for each frame")
    frames = _frames(table, n_frames, notes)
    times = _times(table, frames, notes)
    if times is not None:
        known, values = _resample(times[good], values[good])
        return Column(dict(zip(known.tolist(), values.tolist(), strict=True)), notes=tuple(notes))
    pairs = zip(frames[good].tolist(), values[good].tolist(), strict=True)
    lost = frames[~np.isfinite(values) & ~failed]
    return Column(dict(pairs), tuple(lost.tolist()), tuple(frames[failed].tolist()), tuple(notes))


def _values(table: Table, openface: bool) -> np.ndarray:
    """Blinks of all rows, NaN where there is none."""
    if (values := table.numbers(AU45)) is not None:
        return np.clip(values, 0, AU45_FULL) / AU45_FULL
    if openface:
        raise UserError(f"{table.path}: has no column AU45_r, expected the output of OpenFace's FeatureExtraction")
    wide = max(len(row) for row in table.rows or [[""]])
    names = [n for n in table.names or ["value"] * wide if n not in INDEX]
    alone = len(names) == 1 and (names[0] in PLAIN or len(table.names or names) == 1)
    if not alone:
        raise UserError(f"{table.path}: must have one column, or OpenFace's AU45_r among its columns")
    column = table.names.index(names[0]) if table.names else 0
    for k, row in enumerate(table.rows):
        if column < len(row) and not _is_number(row[column], table.comma):
            raise UserError(f"{table.path}: is not readable as numbers: row {k + 1} holds {row[column][:40]!r}")
    return np.array([table.number(row, column) for row in table.rows], np.float64)


def one_face(table: Table, good: np.ndarray, notes: list[str]) -> np.ndarray:
    """bool [rows]: those of the face that counts."""
    faces, frames = table.numbers("face_id"), table.numbers("frame")
    every = np.ones(len(table.rows), bool)
    if faces is None or len(np.unique(faces)) < 2:
        return every
    at = frames if frames is not None else table.numbers("timestamp")
    if at is not None and len(np.unique(at)) == len(at):
        notes.append(f"{len(np.unique(faces))} numbers of faces, never two in one frame: read as one person")
        return every
    success, confidence = table.numbers("success"), table.numbers("confidence")
    seen = good if success is None else good & (success != 0)
    sure = np.nan_to_num(confidence) if confidence is not None else np.zeros(len(faces))
    rank = {f: ((seen & (faces == f)).sum(), sure[faces == f].mean(), -f) for f in np.unique(faces) if np.isfinite(f)}
    if not rank:
        raise UserError(f"{table.path}: face_id is no number in any row; expected 0 for the first face")
    best = max(rank, key=rank.get)
    n = int((faces == best).sum())
    notes.append(
        f"{len(rank)} faces; face_id {best:g} counts, with {n} rows and a mean confidence of {rank[best][1]:.2f}"
    )
    return faces == best


def _frames(table: Table, n_frames: int | None, notes: list[str]) -> np.ndarray:
    """Number of the frame, from 0, of each row."""
    by_row = np.arange(len(table.rows))
    numbers = table.numbers("img_id")
    pictures = numbers is not None
    numbers = numbers if pictures else table.numbers("frame")
    if numbers is None:
        return by_row
    if not np.isfinite(numbers).all() or (numbers < 0).any() or numbers.max() > 2**31:
        notes.append("the numbers of its frames are not usable: rows count")
        return by_row
    numbers = numbers.astype(np.int64)
    distinct = np.unique(numbers)
    if len(distinct) < len(numbers):
        if 2 * len(distinct) <= len(numbers):
            raise UserError(
                f"{table.path}: has {len(numbers)} rows for {len(distinct)} frames and no face_id that tells them "
                "apart; keep the rows of one face"
            )
        notes.append("the numbers of its frames are not unique: rows count")
        return by_row
    low, high = int(distinct[0]), int(distinct[-1])
    base = 0 if low == 0 or (pictures and (n_frames is not None or low > 1)) else 1
    first, last = low - base, high - base
    if pictures and n_frames is not None:
        cut = False
    elif n_frames is None:
        cut = first >= len(numbers)
    else:
        cut = low > 1 and not (len(numbers) < n_frames and last < n_frames)
    if cut:
        notes.append(f"cut out of a longer table: its first row, number {low}, is frame 0")
        return by_row if n_frames is not None else numbers - low
    missing = last + 1 - len(numbers)
    if missing:
        name = "img_id" if pictures else "frame"
        notes.append(f"rows are missing; each row was put to the frame that its column {name} names")
    return numbers - base


def _times(table: Table, frames: np.ndarray, notes: list[str]) -> np.ndarray | None:
    """Position of each row in frames at 25 a second, where the timestamps disagree with `frames`; else None."""
    stamps = table.numbers("timestamp")
    if stamps is None or table.numbers("img_id") is not None or len(stamps) < 2:
        return None
    order = np.argsort(frames)
    stamps, numbers = stamps[order], frames[order]
    if np.ptp(stamps) == 0:  # OpenFace on a folder of pictures
        return None
    if not np.isfinite(stamps).all() or (np.diff(stamps) <= 0).any():
        notes.append("its timestamps do not rise: the numbers of the frames count")
        return None
    rate = float((numbers[-1] - numbers[0]) / (stamps[-1] - stamps[0]))
    if not RATES[0] <= rate <= RATES[1]:
        raise UserError(
            f"{table.path}: its timestamps say {rate:.4g} frames a second, expected seconds; correct the column "
            "timestamp or remove it"
        )
    start = stamps[0] - numbers[0] / rate  # 0 unless the table was cut out of a longer one
    positions = (stamps - (start if numbers[0] == 0 else 0.0)) * FPS
    if positions[-1] > 100 * len(positions):  # a length that nobody means, before anything of that size is made
        raise UserError(
            f"{table.path}: holds {len(positions)} rows for {stamps[-1]:.4g} s, expected one for each frame"
        )
    if np.abs(positions - numbers).max() <= 0.5:
        return None
    notes.append(f"its timestamps say {rate:.4g} frames a second: interpolated to {FPS:g}")
    out = np.empty(len(positions))
    out[order] = positions
    return out


def _resample(positions: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(frames, values there) between rows at positions in frames; none in gaps of more than 1.5 usual distances."""
    order = np.argsort(positions)
    positions, values = positions[order], values[order]
    frames = np.arange(int(np.ceil(positions[0] - 0.5)), int(np.floor(positions[-1] + 0.5)) + 1)
    if len(positions) > 1:
        usual = max(1.0, float(np.median(np.diff(positions))))
        right = np.clip(np.searchsorted(positions, frames), 1, len(positions) - 1)
        before, after = positions[right - 1], positions[right]
        close = np.minimum(np.abs(frames - before), np.abs(frames - after)) <= 0.1 * usual
        frames = frames[close | (after - before <= 1.5 * usual)]
    return frames, np.interp(frames, positions, values)


def filled(column: Column, path: Path) -> tuple[np.ndarray, str]:
    """(values of frames 0 … last, what was made up): gaps between their neighbours, the start as the first value.

    UserError where more than half of the frames have none.
    """
    known = np.array(sorted(column.values))
    n = max(int(known[-1]), *column.lost, *column.failed, 0) + 1
    if 2 * len(known) < n:
        raise UserError(
            f"{path}: holds a blink for {len(known)} of the frames 0-{n - 1}; more than half would be made up, so "
            "complete the table"
        )
    values = np.interp(np.arange(n), known, [column.values[k] for k in known.tolist()])
    gaps = ranges(set(range(n)) - set(known.tolist()))
    return values, f"no blink for the frames {gaps} (counted from 0): between their neighbours" if gaps else ""


def ranges(numbers) -> str:
    """'3, 7-9, 12' of some numbers."""
    runs: list[list[int]] = []
    for i in sorted({int(i) for i in numbers}):
        if runs and i == runs[-1][1] + 1:
            runs[-1][1] = i
        else:
            runs.append([i, i])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
