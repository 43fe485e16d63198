"""Recordings of other programs as named channels: Live Link Face's csv, OpenFace's csv, 3DMM coefficients.

Each gives (names or None, values [n,C], times [n] in seconds or None). What a format says otherwise than a track does
is put right here; what is not taken is printed. docs/tracks.md lists it all.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tkjax.contract import BLENDSHAPES
from tkjax.errors import UserError
from tkjax.formats import head_pose, tables
from tkjax.formats.tables import Table

Columns = tuple[list[str] | None, np.ndarray, np.ndarray | None]

EYE = "eye_closed"  # the channel of a blink, 0 open … 1 closed
TIMECODE = re.compile(r"(\d{1,2}):(\d{1,2}):(\d{1,2})[:;.](\d{1,3}(?:\.\d+)?)")  # HH:MM:SS:FF.fff
RATES = (24, 25, 30, 48, 50, 60, 90, 100, 120, 240)  # frames a second that a timecode counts in
APP_RATE = 60  # of Live Link Face where a recording is too short to tell
DAY_S = 86400.0
LONGEST_GAP_S = 1.0  # without a face or a row, beyond which it is said
BLINKS = ("eyeBlinkLeft", "eyeBlinkRight")
APP_TURNS = {"headyaw": (0, 1.0), "headpitch": (1, -1.0), "headroll": (2, 1.0)}  # place in head_pose.TURNS, sign
APP_EYES = tuple(f"{side}eye{axis}" for side in ("left", "right") for axis in ("yaw", "pitch", "roll"))
MISSING = "_neutral"  # MediaPipe's first blendshape, which ARKit lacks, as MediaPipe lacks ARKit's tongueOut
_KNOWN = {name.lower(): name for name in (*BLENDSHAPES, "tongueOut")}


def blendshape(name: str) -> str:
    """MediaPipe's spelling of an ARKit name: `EyeBlinkLeft` and `eyeBlink_L` are eyeBlinkLeft; other names stay."""
    plain = re.sub(r"_([LR])$", lambda m: {"L": "Left", "R": "Right"}[m[1]], name)
    return _KNOWN.get(plain.lower(), name)


# ---------------------------------------------------------------- Live Link Face


def is_live_link(table: Table) -> bool:
    return {"timecode", "blendshapecount"} <= set(table.names or ())


def live_link(table: Table) -> Columns:
    """The csv of a take: blendshapes by MediaPipe's names, the head's turn in radians, and `eye_closed`, the mean of
    both eyeBlink.

    Rows count by their timecode: of frames that the phone dropped there is nothing, and a take may run over midnight.
    Rows without a face (BlendShapeCount 0, or empty cells) hold no measure.
    """
    path, header = table.path, list(table.header)
    at, count = table.names.index("timecode"), table.numbers("blendshapecount")
    keep = [k for k, name in enumerate(table.names) if name not in ("timecode", "blendshapecount", *APP_EYES) and name]
    values = np.array([[table.number(row, k) for k in keep] for row in table.rows], np.float64)
    values = values.reshape(len(table.rows), len(keep))
    face = np.isfinite(values).any(1) & ~(count == 0)
    if not face.any():
        raise UserError(f"{path}: no row of the recording shows a face, expected a BlendShapeCount above 0")
    time_s = timecodes([row[at] if at < len(row) else "" for row in table.rows], path)
    time_s, values = time_s[face], values[face]
    once = np.concatenate([[True], np.diff(time_s) > 0])
    lost, twice = int((~face).sum()), int((~once).sum())
    time_s, values = time_s[once], values[once]
    names, turns = [], np.zeros((len(values), 3))
    place = []
    for column, k in enumerate(keep):
        if table.names[k] in APP_TURNS:
            j, sign = APP_TURNS[table.names[k]]
            turns[:, j] = sign * values[:, column]
        else:
            names.append(blendshape(header[k]))
            place.append(column)
    out = values[:, place]
    if {*APP_TURNS} <= set(table.names):
        names, out = [*names, *head_pose.TURNS], np.concatenate([out, turns], 1)
    if {*BLINKS} <= set(names) and EYE not in names:
        closed = out[:, [names.index(n) for n in BLINKS]].mean(1, keepdims=True)
        names, out = [*names, EYE], np.concatenate([out, closed], 1)
    _say_gaps(path, time_s, lost, twice)
    lacks = [n for n in BLENDSHAPES if n not in names]
    print(
        f"{path}: a recording of Live Link Face, {len(names)} channels; of MediaPipe's 52 blendshapes it lacks "
        f"{', '.join(lacks[:6]) or 'none'}{' and more' if len(lacks) > 6 else ''}; the turns of single eyes are left "
        "out",
        flush=True,
    )
    return names, out, time_s - time_s[0]


def _say_gaps(path: Path, time_s: np.ndarray, lost: int, twice: int) -> None:
    steps = np.diff(time_s)
    dropped = int((steps > 1.5 * np.median(steps)).sum()) if len(steps) else 0
    parts = [f"{lost} rows without a face"] * bool(lost) + [f"{twice} rows with a time that was there"] * bool(twice)
    parts += [f"{dropped} gaps of dropped frames"] * bool(dropped)
    if parts:
        longest = f", the longest of {steps.max():.2f} s" if len(steps) and steps.max() > LONGEST_GAP_S else ""
        print(f"{path}: {', '.join(parts)}{longest}; between their neighbours", flush=True)


def timecodes(texts: Sequence[str], path: Path | str) -> np.ndarray:
    """Seconds of HH:MM:SS:FF.fff. The rate at which FF counts is the least usual one above the largest FF where the
    recording runs over a whole second, else 60. UserError where one is no timecode, or where they run backwards."""
    parts = [TIMECODE.fullmatch(text.strip()) for text in texts]
    wrong = next((k for k, part in enumerate(parts) if part is None), None)
    if wrong is not None:
        raise UserError(f"{path}: row {wrong + 1} has the timecode {texts[wrong][:40]!r}, expected HH:MM:SS:FF.fff")
    fields = np.array([[float(x) for x in part.groups()] for part in parts], np.float64)
    seconds, frame = fields[:, :3] @ [3600.0, 60.0, 1.0], fields[:, 3]
    whole = len(np.unique(seconds)) > 2  # with three different seconds one of them is whole
    if frame.max() >= RATES[-1]:
        raise UserError(f"{path}: a timecode counts to frame {frame.max():g} of a second, at most {RATES[-1]} are read")
    rate = next(r for r in RATES if r > np.floor(frame.max()) and (whole or r >= APP_RATE))
    time_s = seconds + frame / rate
    time_s = time_s + DAY_S * np.cumsum(np.concatenate([[0], np.diff(time_s) < -DAY_S / 2]))  # over midnight
    back = np.flatnonzero(np.diff(time_s) < 0)
    if len(back):
        raise UserError(f"{path}: the timecode runs backwards from row {back[0] + 1} to the next, expected one take")
    return time_s


# ---------------------------------------------------------------- OpenFace


def is_openface(table: Table) -> bool:
    return bool({"au45_r", "pose_rx"} & set(table.names or ())) and "frame" in (table.names or ())


def openface(table: Table) -> Columns:
    """The csv of OpenFace's FeatureExtraction: `eye_closed` of AU45_r, the head's pose of pose_R and pose_T, and its
    action units by their own names. Rows without success hold no measure; of several faces one counts
    (`tables.one_face`)."""
    path, notes = table.path, []
    if any(not name for name in table.names):
        raise UserError(f"{path}: a column has no name, expected the csv of OpenFace as it is")
    read = {n: table.numbers(n) for n in table.names}
    good = np.isfinite(np.stack([v for n, v in read.items() if n.startswith(("au", "pose_"))])).all(0)
    keep = tables.one_face(table, good, notes) & good
    if "success" in read:
        keep &= read["success"] != 0
    if not keep.any():
        raise UserError(f"{path}: no row holds a face with success, expected one for each frame")
    part = {name: values[keep] for name, values in read.items()}
    time_s = part.get("timestamp")
    if time_s is None or np.ptp(time_s) == 0:
        time_s = part["frame"] / tables.FPS
    names = [n for n in table.names if re.fullmatch(r"au\d\d_r", n)]
    columns = [part[n] for n in names]
    names = [n.upper().replace("_R", "_r") for n in names]
    if tables.AU45 in part:
        names.append(EYE)
        columns.append(np.clip(part[tables.AU45], 0, tables.AU45_FULL) / tables.AU45_FULL)
    six = [f"pose_{kind}{axis}" for kind in "rt" for axis in "xyz"]
    if {*six} <= set(part):
        rx, ry, rz, *place = (part[n] for n in six)
        flip = np.diag([1.0, -1.0, -1.0])  # its axes: x right, y down, z away from the camera; millimetres
        rotation = flip @ head_pose.turn(0, rx) @ head_pose.turn(1, ry) @ head_pose.turn(2, rz) @ flip
        names += head_pose.CHANNELS
        columns += [*head_pose.angles(rotation).T, *(0.1 * flip @ np.stack(place))]
    for note in notes:
        print(f"{path}: {note}", flush=True)
    if not keep.all():
        print(f"{path}: {int((~keep).sum())} of {len(keep)} rows hold no measure; between their neighbours", flush=True)
    return names, np.stack(columns, 1), time_s


# ---------------------------------------------------------------- 3DMM coefficients


# (columns of the array, name of the part, its numbers) of Deep3DFaceRecon's 257 coefficients, as SadTalker, PIRender
# and DynTet store them, and of the 70 or 73 that SadTalker writes
FULL = ((0, "id", 80), (80, "exp", 64), (144, "tex", 80), (227, "light", 27))
WIDTHS = {
    257: (FULL, 224, 254),
    262: (FULL, 224, 254),
    70: (((0, "exp", 64),), 64, 67),
    73: (((0, "exp", 64),), 64, 67),
}
PARTS = {"id": 80, "exp": 64, "tex": 80, "gamma": 27}  # Deep3DFaceRecon's own files, with angle [n,3] and trans [n,3]
CAMERA, UNIT = 10.0, 10.0  # distance of its camera in its unit, and centimetres of that unit


def names_of(part: str, n: int) -> list[str]:
    """`exp64_00` … `exp64_63`: the names that imported expressions have too."""
    return [f"{part}{n}_{k:02d}" for k in range(n)]


def coefficients(values: np.ndarray) -> tuple[list[str], np.ndarray] | None:
    """Names for an array [n,C] of one of the known widths; None for others. Crop parameters behind them are left out.

    The head's pose is R = Rz(c) Ry(b) Rx(a) of the angles (a, b, c) and of the translation in units of 10 cm before a
    camera 10 units away."""
    if values.ndim != 2 or values.shape[1] not in WIDTHS:
        return None
    parts, angle, trans = WIDTHS[values.shape[1]]
    names = [name for _, part, n in parts for name in names_of(part, n)]
    columns = [values[:, start : start + n] for start, _, n in parts]
    return [*names, *head_pose.CHANNELS], np.concatenate(
        [*columns, head_channels(values[:, angle : angle + 3], values[:, trans : trans + 3])], 1
    )


def head_channels(angle: np.ndarray, trans: np.ndarray) -> np.ndarray:
    """[n,6] of angles and translations [n,3]; see `coefficients`."""
    a, b, c = np.asarray(angle, np.float64).T
    rotation = head_pose.turn(2, c) @ head_pose.turn(1, b) @ head_pose.turn(0, a)
    return np.concatenate([head_pose.angles(rotation), UNIT * (np.asarray(trans) - [0, 0, CAMERA])], 1)
