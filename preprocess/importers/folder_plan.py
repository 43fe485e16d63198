"""What a folder gives apart from its pictures: frames and cameras, split, columns, and the summary."""

import collections
import dataclasses
import os
from pathlib import Path

import numpy as np

from preprocess.importers import folder_layout, misnumbering, numbering, track_columns
from preprocess.importers.folder_layout import Notes, Transforms
from preprocess.resumable import say
from tkjax import contract
from tkjax.contract import boxes_from_landmarks68
from tkjax.errors import UserError
from tkjax.formats import tables
from tkjax.media import images

FOLDERS = ("ori_imgs", "gt_imgs", "com_imgs", "head_imgs", "torso_imgs", "parsing", "parsing_label")


@dataclasses.dataclass
class Plan:
    """Everything about a folder but its pictures. ids: img_id of frame k; holes that are known are in `notes`."""

    root: Path
    system: str
    size: tuple[int, int]
    camera: dict[str, float]
    transforms: Transforms
    ids: np.ndarray
    files: dict[str, dict[int, Path]]
    notes: Notes

    @property
    def subject(self) -> str:
        return self.root.resolve().name or "imported"


def make_plan(root: Path, system: str, notes: Notes) -> Plan:
    """Read the json files and see which frames there are; UserError when they are of no use."""
    files = {name: folder_layout.numbered(root / name, folder_layout.PICTURES) for name in FOLDERS}
    files["targets"] = files["gt_imgs"] or files["com_imgs"]
    files["lms"] = folder_layout.numbered(root / "ori_imgs", (".lms",))
    if system == "nerfblendshape":
        if lacking := sorted(set(files["head_imgs"]) - set(files["ori_imgs"])):
            notes.hole("no frame in ori_imgs: the head over the background (head_imgs) stands in for it", lacking)
        files["ori_imgs"] = {**files["head_imgs"], **files["ori_imgs"]}
    transforms = folder_layout.read_transforms(root, notes)
    pictures = {**files["targets"], **files["ori_imgs"]}
    size = picture_size(pictures, root)
    half = folder_layout.HALF_PIXEL.get(system, 0.0)
    camera = folder_layout.intrinsics(transforms.head, size, half, notes)
    if system == "nerfblendshape" and len(transforms.parts) == 1:
        folder_layout.hold_out_last(transforms, notes)
    files = numbering.renumber(files, transforms, camera, notes)
    pictures = {**files["targets"], **files["ori_imgs"]}
    if not half:
        transforms = misnumbering.unshift(transforms, pictures, files["lms"], camera, notes)
    misnumbering.check_fit(transforms, files["lms"], camera, half, notes)
    named = transforms.ids
    seen = [i for i in named if i in pictures]
    if not seen:
        raise UserError(
            f"{root}: none of the {len(named)} frames of the json ({tables.ranges(named)}) has a picture in ori_imgs; "
            "expected <img_id>.jpg files"
        )
    notes.hole("named by the json, but without any picture at the end of the clip: left out",
               [i for i in named if not seen[0] <= i <= seen[-1]])  # fmt: skip
    have = sum(seen[0] <= i <= seen[-1] for i in pictures)
    if 2 * have < seen[-1] + 1 - seen[0]:
        raise UserError(
            f"{root}: only {have} of the frames {seen[0]}-{seen[-1]} have a picture; more than half would be made up, "
            "so complete ori_imgs or cut the json"
        )
    ids = np.arange(seen[0], seen[-1] + 1)
    if not (files["parsing"] or files["parsing_label"]):
        raise UserError(f"{root}: has no parsing pictures; run the parsing step of the original project first")
    return Plan(root, system, size, camera, transforms, ids, files, notes)


def picture_size(pictures: dict[int, Path], root: Path) -> tuple[int, int]:
    """(h, w) that most of the first readable pictures have."""
    found: collections.Counter = collections.Counter()
    for i in sorted(pictures):
        size = images.size_of(pictures[i].read_bytes())
        if size:
            found[size] += 1
        if sum(found.values()) >= 9:
            break
    if not found:
        raise UserError(f"{root}: no picture of ori_imgs can be read, expected jpg or png files")
    return found.most_common(1)[0][0]


# ---------------------------------------------------------------- columns


def split_of(plan: Plan) -> dict[str, list[int]]:
    """The json's split as ranges of frames; the default one (and a word) where it is none."""
    first, n = int(plan.ids[0]), len(plan.ids)
    spans = {}
    for part in ("train", "val"):
        rows = [i - first for i, p in plan.transforms.part.items() if p == part and 0 <= i - first < n]
        if rows:
            spans[part] = [min(rows), max(rows) + 1]
    if len(spans) < 2:
        plan.notes.said.append("the json files name one part only: the first 10/11 of the frames train")
    elif spans["train"][1] <= spans["val"][0] or spans["val"][1] <= spans["train"][0]:
        return {"train": spans["train"], "heldout": spans["val"]}
    else:
        plan.notes.said.append("train and val of the json interleave: the first 10/11 of the frames train instead")
    return contract.default_split(n)


def columns(plan: Plan) -> tuple[dict[str, np.ndarray], list[str]]:
    """(per-frame members, names of the expression) of all frames; holes go to the notes."""
    ids, notes, files, t = plan.ids, plan.notes, plan.files, plan.transforms
    shift = folder_layout.HALF_PIXEL.get(plan.system, 0.0)
    points, found = track_columns.landmarks(files["lms"], ids, shift, notes)
    named = np.isin(ids, t.ids)
    posed = np.isin(ids, list(t.poses))
    notes.hole("not in the json: confidence 0, pose of the nearest frame", ids[~named])
    out = {
        "cam_to_world": folder_layout.fill(t.poses, ids).astype(np.float32),
        "landmarks_px": points,
        **boxes_from_landmarks68(points, *plan.size),
        "eye_closed": blinks(plan, points, found),
        "confidence": (found & posed).astype(np.float32),
    }
    out["expression"], names = expression(plan)
    return out, names


def blinks(plan: Plan, points: np.ndarray, found: np.ndarray) -> np.ndarray:
    """eye_closed of all frames: au.csv, and the landmarks where it has no row."""
    guess = track_columns.blink_from_landmarks(points, found).astype(np.float32)
    path = plan.root / "au.csv"
    if not path.is_file():
        plan.notes.said.append("no au.csv: blinks are measured from the landmarks")
        return guess
    plan.notes.used.add(path)
    rows = track_columns.read_blinks(path, int(plan.ids[-1]) + 1, plan.notes)
    plan.notes.took.append(f"au.csv: {len(rows)} rows of AU45_r -> eye_closed")
    have = np.isin(plan.ids, list(rows))
    plan.notes.hole("au.csv has no row: blink from the landmarks", plan.ids[~have])
    return np.where(have, [rows.get(int(i), 0.0) for i in plan.ids], guess).astype(np.float32)


def expression(plan: Plan) -> tuple[np.ndarray, list[str]]:
    """exp_ori of the json, else exp of track_params.pt, for all frames, and names; no columns where there is none."""
    if plan.transforms.coefficients:
        values, names = track_columns.blendshapes(plan.transforms.coefficients, plan.ids, plan.notes)
        train = np.isin(plan.ids, [i for i, part in plan.transforms.part.items() if part == "train"])
        track_columns.compare_ranges(plan.root, values[train], plan.notes)
        return values, names
    path, notes = plan.root / "track_params.pt", plan.notes
    track = track_columns.read_track(path, notes) if path.is_file() else None
    if track is None:
        notes.said.append("no expression coefficients: systems that are driven by them cannot use this dataset")
        return np.zeros((len(plan.ids), 0), np.float32), []
    notes.used.add(path)
    focal = folder_layout.intrinsics(plan.transforms.head, plan.size, 0.0, Notes())["fx"]
    if track.focal is not None and abs(track.focal - focal) > 1e-3 * focal:
        notes.said.append(f"track_params.pt has focal length {track.focal:g}, the json {focal:g}; the json counts")
    rows = track_columns.expression(track, plan.transforms.poses, plan.ids, notes)
    if not rows:
        notes.said.append("track_params.pt: no row fits a frame of the json, so it gives no expression")
        return np.zeros((len(plan.ids), 0), np.float32), []
    k = track.exp.shape[1]
    notes.took.append(f"track_params.pt: exp [{len(track.exp)}, {k}] -> expression")
    return folder_layout.fill(rows, plan.ids).astype(np.float32), [f"exp{k}_{j:02d}" for j in range(k)]


def sound_numbers(plan: Plan) -> np.ndarray:
    """aud_id of all frames: those of frames that the json lacks run on from the nearest."""
    offsets = {i: np.int64(a - i) for i, a in plan.transforms.aud_id.items()}
    return plan.ids + folder_layout.fill(offsets, plan.ids)


# ---------------------------------------------------------------- summary


def left_over(root: Path, used: set[Path]) -> dict[str, int]:
    """{"folder/*.suffix": files that were not used}; single files at the top by name."""
    counts: collections.Counter = collections.Counter()
    for folder, _, names in os.walk(root):
        relative = Path(folder).relative_to(root)
        for name in names:
            path = Path(folder, name)
            if path in used:
                continue
            top = relative.parts[0] if relative.parts else ""
            counts[f"{top}/*{path.suffix}" if top else name] += 1
    return dict(sorted(counts.items()))


def summary(plan: Plan, out: Path, split: dict[str, list[int]], unchanged: bool) -> None:
    """Say what the dataset is made of, what was left, and every hole frame by frame."""
    first, last, notes = int(plan.ids[0]), int(plan.ids[-1]), plan.notes
    c, (h, w) = plan.camera, plan.size
    (a, b), (d, e) = split["train"], split["heldout"]
    say(f"took: {len(plan.ids)} frames of {w}x{h} (img_id {first}-{last} is frame 0-{last - first}), "
        f"train {a}-{b - 1}, held out {f'{d}-{e - 1}' if e > d else 'none'}")  # fmt: skip
    say(f"took: camera fx {c['fx']:g} fy {c['fy']:g} cx {c['cx']:g} cy {c['cy']:g} px, poses in units of 25 cm")
    if plan.system in folder_layout.HALF_PIXEL:
        name = folder_layout.SYSTEMS[plan.system]
        say(f"took: {name} counts pixel centres as whole numbers: cx, cy and landmarks moved by +0.5 px")
    for text in notes.took:
        say(f"took: {text}")
    for text in notes.said:
        say(f"note: {text}")
    for text, ids in notes.holes.items():
        say(f"hole: {text}: {tables.ranges(ids)} ({len(set(ids))} frame{'s' if len(set(ids)) > 1 else ''})")
    left = left_over(plan.root, notes.used)
    said = ", ".join(name if n == 1 and "*" not in name else f"{name} ({n})" for name, n in left.items())
    say(f"could not use: {said or 'nothing was left over'}")
    if not unchanged:
        say(f"dataset: written to {out}")
