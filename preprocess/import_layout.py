"""Folders of the AD-NeRF line: which project made one, what lies in it, and the cameras of its transforms json.

`transform_matrix` is camera to head in metres, columns x right, y up, backwards (OpenGL), for all four projects
(rad-nerf.md §2.4, er-nerf.md §2 "Pose", ad-nerf.md §2.2): the contract's matrix with the translation times 4. The
intrinsics follow the loader of RAD-NeRF: `focal_len`, else `fl_x`/`fl_y`, else `camera_angle_x/y`; `cx`, `cy`, else
the middle; with `h`, `w` they count pixels of that size, which may differ from the pictures'.

Half pixels: RAD-NeRF, ER-NeRF and Avatar-ERNeRF shoot the ray of pixel i through i + 0.5, as the contract does: their
numbers stay. AD-NeRF shoots it through i (ad-nerf.md §2.7): its cx, cy and landmarks move by +0.5.
"""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from tkjax.contract import ROTATION_TOLERANCE
from tkjax.errors import UserError

UNITS = 4.0  # contract units in a metre
SYSTEMS = {"ad_nerf": "AD-NeRF", "rad_nerf": "RAD-NeRF", "er_nerf": "ER-NeRF", "avatar_ernerf": "Avatar-ERNeRF"}
# What only one project writes, most telling first.
SIGNS = {
    "avatar_ernerf": ("head_bbox.json", "parsing_label", "model_data.json", "audio_feat.npy", "alpha.mp4"),
    "ad_nerf": ("head_imgs", "com_imgs", "HeadNeRF_config.txt", "TorsoNeRF_config.txt"),
    "er_nerf": ("au.csv", "aud_ds.npy", "aud_hu.npy"),
    "rad_nerf": ("gt_imgs", "torso_imgs", "aud_eo.npy", "aud.npy"),
}
JSONS = {"train": "transforms_train.json", "val": "transforms_val.json"}
PICTURES = (".jpg", ".jpeg", ".png")


@dataclasses.dataclass
class Notes:
    """What the summary says. holes: reason -> numbers of the frames (img_id) that it concerns."""

    took: list[str] = dataclasses.field(default_factory=list)
    said: list[str] = dataclasses.field(default_factory=list)
    holes: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    used: set[Path] = dataclasses.field(default_factory=set)

    def hole(self, reason: str, ids) -> None:
        ids = [int(i) for i in ids]
        if ids:
            self.holes.setdefault(reason, []).extend(ids)


def ranges(ids) -> str:
    """'3, 7-9, 12' of some numbers."""
    ids = sorted({int(i) for i in ids})
    runs: list[list[int]] = []
    for i in ids:
        if runs and i == runs[-1][1] + 1:
            runs[-1][1] = i
        else:
            runs.append([i, i])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def recognise(root: Path, forced: str | None = None) -> tuple[str, list[str]]:
    """(system, the files that decided); UserError when the folder is none of the four."""
    if forced and forced not in SYSTEMS:
        raise UserError(f"--system={forced} is unknown for a dataset folder; choose one of {', '.join(SYSTEMS)}")
    if not root.is_dir():
        raise UserError(f"{root}: {'is a file' if root.exists() else 'no such folder'}, expected a dataset folder")
    base = [name for name in JSONS.values() if (root / name).is_file()]
    frames = [name for name in ("ori_imgs", "gt_imgs", "com_imgs") if (root / name).is_dir()]
    if not base or not frames:
        found = ", ".join(sorted(p.name for p in root.iterdir())[:8]) or "nothing"
        raise UserError(
            f"{root}: is no dataset folder of {', '.join(SYSTEMS.values())}: looked for transforms_train.json or "
            f"transforms_val.json beside ori_imgs, gt_imgs or com_imgs, and found {found}"
        )
    if forced:
        return forced, [f"--system={forced}"]
    for system, signs in SIGNS.items():
        there = [name for name in signs if (root / name).exists()]
        if system == "ad_nerf" and (root / "gt_imgs").is_dir():
            continue  # leftovers of another run beside the later projects' targets
        if there:
            return system, [*base, *there]
    if _has_face_rect(root / base[0]):
        return "ad_nerf", [*base, "face_rect in its frames"]
    return "rad_nerf", [*base, *frames, "no file of another project"]


def _has_face_rect(path: Path) -> bool:
    frames = read_json(path).get("frames")
    return isinstance(frames, list) and bool(frames) and isinstance(frames[0], dict) and "face_rect" in frames[0]


def read_json(path: Path) -> dict[str, Any]:
    """A json object; UserError for anything else."""
    try:
        data = json.loads(path.read_text())
    except OSError as e:
        raise UserError(f"{path}: {e.strerror or e}, expected a json file") from e
    except ValueError as e:
        raise UserError(f"{path}: is not json ({' '.join(str(e).split())[:80]}), expected a json object") from e
    if not isinstance(data, dict):
        raise UserError(f"{path}: holds a json {type(data).__name__}, expected an object")
    return data


def numbered(folder: Path, suffixes: tuple[str, ...]) -> dict[int, Path]:
    """{number: file} of `<number>.<suffix>` in a folder; of two suffixes the first named wins."""
    out: dict[int, Path] = {}
    if folder.is_dir():
        for suffix in reversed(suffixes):
            for path in folder.iterdir():
                if path.suffix.lower() == suffix and path.stem.isdigit() and path.is_file():
                    out[int(path.stem)] = path
    return out


# ---------------------------------------------------------------- cameras


@dataclasses.dataclass
class Transforms:
    """Frames of both json files by img_id. poses: contract cam_to_world [4,4]; part: 'train' or 'val'."""

    poses: dict[int, np.ndarray]
    aud_id: dict[int, int]
    part: dict[int, str]
    head: dict[str, Any]  # of the first file: everything but the frames
    parts: list[str]  # which files are there

    @property
    def ids(self) -> list[int]:
        return sorted(self.part)


def to_contract(matrix: np.ndarray) -> np.ndarray:
    """[4,4] `transform_matrix` -> cam_to_world."""
    out = np.array(matrix, np.float64)
    out[:3, 3] *= UNITS
    return out


def is_pose(m: np.ndarray) -> bool:
    """Whether [4,4] (or [3,4]) holds a rotation and a finite centre."""
    if not np.isfinite(m).all():
        return False
    r = m[:3, :3]
    return bool(np.abs(r @ r.T - np.eye(3)).max() <= ROTATION_TOLERANCE and np.linalg.det(r) > 0)


def read_transforms(root: Path, notes: Notes) -> Transforms:
    """Both json files, in any order of frames; frames that cannot be used are holes."""
    out = Transforms({}, {}, {}, {}, [])
    for part, name in JSONS.items():
        path = root / name
        if not path.is_file():
            continue
        data = read_json(path)
        frames = data.get("frames")
        if not isinstance(frames, list) or not all(isinstance(f, dict) for f in frames):
            raise UserError(f"{path}: has no list of frames, expected the transforms of one of the four projects")
        head = {k: v for k, v in data.items() if k != "frames"}
        out.head = out.head or head
        for key in ("focal_len", "fl_x", "fl_y", "camera_angle_x", "camera_angle_y", "cx", "cy", "w", "h"):
            if head.get(key) != out.head.get(key):
                raise UserError(
                    f"{path}: {key} is {head.get(key)}, but {out.head.get(key)} in {JSONS[out.parts[0]]}; "
                    "one dataset has one camera, so split the folder or correct the file"
                )
        out.parts.append(part)
        notes.used.add(path)
        for i, frame in enumerate(frames):
            _add(out, part, frame, f"{path}: frame {i}", notes)
    if not out.part:
        raise UserError(
            f"{root / JSONS[out.parts[0]]}: names no frame, expected frames with img_id and transform_matrix"
        )
    if not out.poses:
        raise UserError(f"{root / JSONS[out.parts[0]]}: no frame has a pose, expected 4x4 transform_matrix entries")
    return out


def _add(out: Transforms, part: str, frame: dict[str, Any], where: str, notes: Notes) -> None:
    number = frame.get("img_id")
    if type(number) not in (int, float) or number != int(number) or number < 0:
        raise UserError(f"{where} has img_id {number!r}, expected the number of a picture")
    number = int(number)
    if number in out.part:
        notes.hole("named twice in the transforms; the first entry counts", [number])
        return
    audio = frame.get("aud_id", number)
    good = type(audio) in (int, float) and math.isfinite(audio) and audio == int(audio)
    if not good:
        notes.hole("aud_id is no number; img_id counts", [number])
    out.part[number], out.aud_id[number] = part, int(audio) if good else number
    try:
        matrix = np.array(frame.get("transform_matrix"), np.float64)
    except (TypeError, ValueError):
        matrix = np.zeros(0)
    if matrix.shape == (3, 4):
        matrix = np.concatenate([matrix, [[0, 0, 0, 1]]])
    if matrix.shape != (4, 4) or not is_pose(matrix):
        notes.hole("no usable transform_matrix", [number])
        return
    matrix[3] = [0, 0, 0, 1]
    out.poses[number] = to_contract(matrix)


def intrinsics(head: dict[str, Any], size: tuple[int, int], half_pixel: float, notes: Notes) -> dict[str, float]:
    """fx, fy, cx, cy in pixels of pictures of (h, w) = size. half_pixel: 0.5 for AD-NeRF, else 0."""

    def number(key: str) -> float | None:
        value = head.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise UserError(f"transforms json: {key} is {value!r}, expected a number")
        return float(value)

    h, w = size
    full_w, full_h = number("w") or float(w), number("h") or float(h)
    fx = fy = number("focal_len")
    if fx is None:
        fx, fy = number("fl_x"), number("fl_y")
        if fx is None and fy is None:
            ax, ay = number("camera_angle_x"), number("camera_angle_y")
            fx = None if ax is None else full_w / (2 * math.tan(ax / 2))
            fy = None if ay is None else full_h / (2 * math.tan(ay / 2))
        fx, fy = fx if fx is not None else fy, fy if fy is not None else fx
    if fx is None or fx <= 0 or fy <= 0:
        raise UserError("transforms json: has no focal length, expected focal_len, fl_x, fl_y or camera_angle_x")
    cx, cy = number("cx"), number("cy")
    cx, cy = full_w / 2 if cx is None else cx, full_h / 2 if cy is None else cy
    sx, sy = w / full_w, h / full_h
    if (sx, sy) != (1, 1):
        notes.said.append(f"the json counts pixels of {full_w:g}x{full_h:g}, the pictures have {w}x{h}: camera scaled")
    elif "w" not in head and (2 * int(cx), 2 * int(cy)) != (w, h):
        notes.said.append(
            f"the originals would take {2 * int(cx)}x{2 * int(cy)} pixels from cx, cy; the pictures' {w}x{h} count"
        )
    return {"fx": fx * sx, "fy": fy * sy, "cx": cx * sx + half_pixel, "cy": cy * sy + half_pixel}


def fill(values: dict[int, np.ndarray], ids: np.ndarray) -> np.ndarray:
    """One value for each of `ids`; those that have none take the nearest one's (the earlier of two)."""
    known = np.array(sorted(values))
    right = np.clip(np.searchsorted(known, ids), 0, len(known) - 1)
    left = np.clip(right - 1, 0, len(known) - 1)
    nearest = np.where(np.abs(known[left] - ids) <= np.abs(known[right] - ids), known[left], known[right])
    exact = np.isin(ids, known)
    return np.stack([values[int(i if e else k)] for i, e, k in zip(ids, exact, nearest, strict=True)])
