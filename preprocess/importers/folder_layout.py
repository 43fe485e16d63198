"""Folders of the AD-NeRF line and of NeRFBlendShape: which project made one, what lies in it, its json's cameras.

What a json says is read by `tkjax.formats.transforms`.

Half pixels: RAD-NeRF, ER-NeRF and Avatar-ERNeRF shoot the ray of pixel i through i + 0.5, as the contract does: their
numbers stay. AD-NeRF and NeRFBlendShape shoot it through i (ad-nerf.md §2.7, nerfblendshape.md §2.3): their cx, cy and
landmarks move by +0.5.
"""

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np

from tkjax.errors import UserError
from tkjax.formats import transforms
from tkjax.formats.transforms import read_entry, read_json

SYSTEMS = {
    "ad_nerf": "AD-NeRF",
    "rad_nerf": "RAD-NeRF",
    "er_nerf": "ER-NeRF",
    "avatar_ernerf": "Avatar-ERNeRF",
    "nerfblendshape": "NeRFBlendShape",
}
HALF_PIXEL = {"ad_nerf": 0.5, "nerfblendshape": 0.5}  # of those that shoot rays through whole pixel numbers
# What only one project writes, most telling first.
SIGNS = {
    "avatar_ernerf": ("head_bbox.json", "parsing_label", "model_data.json", "audio_feat.npy", "alpha.mp4"),
    "ad_nerf": ("head_imgs", "com_imgs", "HeadNeRF_config.txt", "TorsoNeRF_config.txt"),
    "er_nerf": ("au.csv", "aud_ds.npy", "aud_hu.npy"),
    "rad_nerf": ("gt_imgs", "torso_imgs", "aud_eo.npy", "aud.npy"),
}
JSONS = {"train": "transforms_train.json", "val": "transforms_val.json"}
WHOLE = "transforms.json"  # NeRFBlendShape's, of all frames; an older release of its data has transforms_train.json
HELD_OUT = 500  # its scripts hold out the last so many frames (nerfblendshape.md §2.7)
RANGES = {"high": "max_{}.txt", "low": "min_{}.txt"}  # of its coefficients, by their number
NUMBER = re.compile(r"[0-9]{1,9}")
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


def recognise(root: Path, forced: str | None = None) -> tuple[str, list[str]]:
    """(system, the files that decided); UserError when the folder is none of the five."""
    if forced and forced not in SYSTEMS:
        raise UserError(f"--system={forced} is unknown for a dataset folder; choose one of {', '.join(SYSTEMS)}")
    if not root.is_dir():
        raise UserError(f"{root}: {'is a file' if root.exists() else 'no such folder'}, expected a dataset folder")
    base = [name for name in (*JSONS.values(), WHOLE) if (root / name).is_file()]
    frames = [name for name in ("ori_imgs", "gt_imgs", "com_imgs", "head_imgs") if (root / name).is_dir()]
    if not base or not frames:
        found = ", ".join(sorted(p.name for p in root.iterdir())[:8]) or "nothing"
        raise UserError(
            f"{root}: is no dataset folder of {', '.join(SYSTEMS.values())}: looked for transforms_train.json, "
            f"transforms_val.json or transforms.json beside ori_imgs, gt_imgs, com_imgs or head_imgs, and found {found}"
        )
    if forced:
        return forced, [f"--system={forced}"]
    blended = [name for name in base if _first_frame_has(root / name, "exp_ori")]
    if blended:
        return "nerfblendshape", [*blended, "exp_ori in its frames"]
    for system, signs in SIGNS.items():
        there = [name for name in signs if (root / name).exists()]
        if system == "ad_nerf" and (root / "gt_imgs").is_dir():
            continue  # leftovers of another run beside the later projects' targets
        if there:
            return system, [*base, *there]
    if _first_frame_has(root / base[0], "face_rect"):
        return "ad_nerf", [*base, "face_rect in its frames"]
    return "rad_nerf", [*base, *frames, "no file of another project"]


def _first_frame_has(path: Path, key: str) -> bool:
    frames = read_json(path).get("frames")
    return isinstance(frames, list) and bool(frames) and isinstance(frames[0], dict) and key in frames[0]


def numbered(folder: Path, suffixes: tuple[str, ...]) -> dict[int, Path]:
    """{number: file} of `<number>.<suffix>` in a folder; of two suffixes the first named wins.

    Numbers are written in the digits 0 to 9, nine of them at most: what else Unicode calls a digit is none ("5²").
    """
    out: dict[int, Path] = {}
    if folder.is_dir():
        files = sorted(folder.iterdir())
        for suffix in reversed(suffixes):
            for path in files:
                if path.suffix.lower() == suffix and NUMBER.fullmatch(path.stem) and path.is_file():
                    out[int(path.stem)] = path
    return out


# ---------------------------------------------------------------- cameras


@dataclasses.dataclass
class Transforms:
    """Frames of the json files by img_id. poses: contract cam_to_world [4,4]; part: 'train' or 'val'; coefficients:
    exp_ori of those that have it."""

    poses: dict[int, np.ndarray]
    aud_id: dict[int, int]
    part: dict[int, str]
    head: dict[str, Any]  # of the first file: everything but the frames
    parts: list[str]  # which files are there
    coefficients: dict[int, tuple[float, ...]] = dataclasses.field(default_factory=dict)

    @property
    def ids(self) -> list[int]:
        return sorted(self.part)


def read_transforms(root: Path, notes: Notes) -> Transforms:
    """The json files, in any order of frames; frames that cannot be used are holes. One that lists all frames is read
    as `train`; `hold_out_last` divides it."""
    out = Transforms({}, {}, {}, {}, [])
    one = (root / WHOLE).is_file() and not any((root / name).is_file() for name in JSONS.values())
    for part, name in ({"train": WHOLE} if one else JSONS).items():
        path = root / name
        if not path.is_file():
            continue
        head, frames = transforms.split(read_json(path), path)
        out.head = out.head or head
        for key in ("focal_len", "fl_x", "fl_y", "camera_angle_x", "camera_angle_y", "cx", "cy", "w", "h"):
            if out.parts and head.get(key) != out.head.get(key):
                raise UserError(
                    f"{path}: {key} is {head.get(key)!r:.60}, but {out.head.get(key)!r:.60} in "
                    f"{JSONS[out.parts[0]]}; one dataset has one camera, so split the folder or correct the file"
                )
        out.parts.append(part)
        notes.used.add(path)
        for i, frame in enumerate(frames):
            _add(out, part, frame, f"{path}: frame {i}", notes)
    if not out.part:
        raise UserError(f"{path}: names no frame, expected frames with img_id and transform_matrix")
    if not out.poses:
        raise UserError(f"{path}: no frame has a pose, expected 4x4 transform_matrix entries")
    return out


def hold_out_last(t: Transforms, notes: Notes) -> None:
    """The last HELD_OUT frames of a json of all frames become `val`, where at least as many are left to train on."""
    ids = t.ids
    if len(ids) < 2 * HELD_OUT:
        notes.said.append(f"the json names {len(ids)} frames: holding out the last {HELD_OUT} would leave too few")
        return
    t.part.update(dict.fromkeys(ids[-HELD_OUT:], "val"))


def _add(out: Transforms, part: str, frame: dict[str, Any], where: str, notes: Notes) -> None:
    entry = read_entry(frame, where)
    number = entry.number
    if number is None:
        raise UserError(f"{where} has img_id None, expected the number of a picture")
    if number in out.part:
        notes.hole("named twice in the transforms; the first entry counts", [number])
        return
    if entry.sound is None:
        notes.hole("aud_id is no number; img_id counts", [number])
    out.part[number], out.aud_id[number] = part, number if entry.sound is None else entry.sound
    if entry.coefficients is not None:
        out.coefficients[number] = entry.coefficients
    if entry.pose is None:
        notes.hole("no usable transform_matrix", [number])
    else:
        out.poses[number] = entry.pose


def intrinsics(head: dict[str, Any], size: tuple[int, int], half_pixel: float, notes: Notes) -> dict[str, float]:
    """fx, fy, cx, cy in pixels of pictures of (h, w) = size. half_pixel: 0.5 for rays through whole numbers."""
    h, w = size
    k, (full_h, full_w) = transforms.intrinsics(head, size)
    sx, sy = w / full_w, h / full_h
    if (sx, sy) != (1, 1):
        notes.said.append(f"the json counts pixels of {full_w:g}x{full_h:g}, the pictures have {w}x{h}: camera scaled")
    elif "w" not in head and (2 * int(k["cx"]), 2 * int(k["cy"])) != (w, h):
        notes.said.append(
            f"the originals would take {2 * int(k['cx'])}x{2 * int(k['cy'])} pixels from cx, cy; the pictures' {w}x{h} "
            "count"
        )
    return {"fx": k["fx"] * sx, "fy": k["fy"] * sy, "cx": k["cx"] * sx + half_pixel, "cy": k["cy"] * sy + half_pixel}


def fill(values: dict[int, np.ndarray], ids: np.ndarray) -> np.ndarray:
    """One value for each of `ids`; those that have none take the nearest one's (the earlier of two)."""
    known = np.array(sorted(values))
    right = np.clip(np.searchsorted(known, ids), 0, len(known) - 1)
    left = np.clip(right - 1, 0, len(known) - 1)
    nearest = np.where(np.abs(known[left] - ids) <= np.abs(known[right] - ids), known[left], known[right])
    exact = np.isin(ids, known)
    return np.stack([values[int(i if e else k)] for i, e, k in zip(ids, exact, nearest, strict=True)])
