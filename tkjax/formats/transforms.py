"""The transforms json of the AD-NeRF line: cameras by number of the picture. The one reader for import and `--pose`.

`transform_matrix` is camera to head in metres, columns x right, y up, backwards (OpenGL), for all four projects
(rad-nerf.md §2.4, er-nerf.md §2 "Pose", ad-nerf.md §2.2): the contract's matrix with the translation times 4. The
intrinsics follow the loader of RAD-NeRF: `focal_len`, else `fl_x`/`fl_y` (NeRFBlendShape: `fx`/`fy`), else
`camera_angle_x/y`; `cx`, `cy`, else the middle; with `h`, `w` they count pixels of that size, which may differ from the
pictures'.
"""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from tkjax.contract import ROTATION_TOLERANCE
from tkjax.errors import UserError

UNITS = 4.0  # contract units in a metre
NUMBER_MOST = 1 << 31
FARTHEST_M = 1e4  # metres between camera and head; larger numbers are damage, and float32 has no room for the largest


@dataclasses.dataclass(frozen=True)
class Entry:
    """One of the json's frames. number: its img_id, None where it has none. sound: its aud_id, None where that is no
    whole number. pose: contract cam_to_world [4,4] float64, None where the matrix is no pose. coefficients: its exp_ori
    (NeRFBlendShape's), None where that is no list of finite numbers."""

    number: int | None
    sound: int | None
    pose: np.ndarray | None
    coefficients: tuple[float, ...] | None = None


def read_json(path: Path) -> dict[str, Any]:
    """A json object; UserError for anything else."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8-sig"))
        json.dumps(data, ensure_ascii=False).encode()  # a lone surrogate is no character
    except OSError as e:
        raise UserError(f"{path}: {e.strerror or e}, expected a json file") from e
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path}: is not json ({' '.join(str(e).split())[:80]}), expected a json object") from e
    if not isinstance(data, dict):
        raise UserError(f"{path}: holds a json {type(data).__name__}, expected an object")
    return data


def split(data: dict[str, Any], path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(everything but the frames, the frames) of a transforms json."""
    frames = data.get("frames")
    if not isinstance(frames, list) or not all(isinstance(f, dict) for f in frames):
        raise UserError(f"{path}: has no list of frames, expected the transforms of one of the five projects")
    return {k: v for k, v in data.items() if k != "frames"}, frames


def whole(value: Any) -> int | None:
    """A whole number of a json, from -2^31 to 2^31; None for anything else (true, 1.5, NaN, Infinity, "7")."""
    if type(value) not in (int, float) or not abs(value) <= NUMBER_MOST or value != int(value):
        return None
    return int(value)


def read_entry(frame: dict[str, Any], where: str) -> Entry:
    """One frame; UserError where it has an img_id that is no number of a picture."""
    number = whole(frame.get("img_id"))
    if "img_id" in frame and (number is None or number < 0):
        raise UserError(f"{where} has img_id {frame['img_id']!r:.60}, expected the number of a picture")
    sound, pose = whole(frame.get("aud_id", number)), _pose(frame.get("transform_matrix"))
    return Entry(number, sound, pose, _coefficients(frame.get("exp_ori")))


def _coefficients(value: Any) -> tuple[float, ...] | None:
    if not isinstance(value, list) or not value or not all(type(v) in (int, float) for v in value):
        return None
    return tuple(float(v) for v in value) if all(abs(v) < FARTHEST_M for v in value) else None  # NaN is not below


def _pose(value: Any) -> np.ndarray | None:
    try:
        matrix = np.array(value, np.float64)
    except (TypeError, ValueError, OverflowError, RecursionError):
        return None
    if matrix.shape == (3, 4):
        matrix = np.concatenate([matrix, [[0, 0, 0, 1]]])
    if matrix.shape != (4, 4) or not is_pose(matrix):
        return None
    matrix[3] = [0, 0, 0, 1]
    return to_contract(matrix)


def to_contract(matrix: Float[np.ndarray, "4 4"]) -> Float[np.ndarray, "4 4"]:
    """[4,4] `transform_matrix` -> cam_to_world."""
    out = np.array(matrix, np.float64)
    out[:3, 3] *= UNITS
    return out


def is_pose(m: np.ndarray) -> bool:
    """Whether [4,4] (or [3,4]) holds a rotation and a centre that is not absurdly far away."""
    if not (np.abs(m) <= FARTHEST_M).all():  # NaN is not below either
        return False
    r = m[:3, :3]
    return bool(np.abs(r @ r.T - np.eye(3)).max() <= ROTATION_TOLERANCE and np.linalg.det(r) > 0)


def number(head: dict[str, Any], key: str) -> float | None:
    """A finite number of the json's head; None where there is none."""
    value = head.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e9:
        raise UserError(f"transforms json: {key} is {value!r:.60}, expected a number")
    return float(value)


def intrinsics(
    head: dict[str, Any], size: tuple[float | int, float | int]
) -> tuple[dict[str, float], tuple[float, float]]:
    """({fx, fy, cx, cy} in pixels, (height, width) that they count) of pictures of (h, w) = size unless the json has
    its own `h`, `w`."""
    h, w = size
    full_h, full_w = (v if (v := number(head, key)) else float(n) for key, n in (("h", h), ("w", w)))
    fx = fy = number(head, "focal_len")
    if fx is None:
        fx, fy = (number(head, f"fl_{k}") or number(head, f"f{k}") for k in "xy")
        if fx is None and fy is None:
            ax, ay = number(head, "camera_angle_x"), number(head, "camera_angle_y")
            fx = None if not ax else full_w / (2 * math.tan(ax / 2))
            fy = None if not ay else full_h / (2 * math.tan(ay / 2))
        fx, fy = fx if fx is not None else fy, fy if fy is not None else fx
    if fx is None or fx <= 0 or fy <= 0 or full_h <= 0 or full_w <= 0:
        raise UserError("transforms json: has no focal length, expected focal_len, fl_x, fl_y or camera_angle_x")
    cx, cy = number(head, "cx"), number(head, "cy")
    cx, cy = full_w / 2 if cx is None else cx, full_h / 2 if cy is None else cy
    return {"fx": fx, "fy": fy, "cx": cx, "cy": cy}, (full_h, full_w)


def between(a: Float[np.ndarray, "4 4"], b: Float[np.ndarray, "4 4"], share: float) -> Float[np.ndarray, "4 4"]:
    """The pose at `share` (0…1) of the way from a to b: the mean of the centres, and the rotation that is nearest to
    the mean of the matrices (for turns below 180°)."""
    mean = (1 - share) * a + share * b
    u, _, vt = np.linalg.svd(mean[:3, :3])
    mean[:3, :3] = u @ np.diag([1, 1, np.linalg.det(u @ vt)]) @ vt
    return mean
