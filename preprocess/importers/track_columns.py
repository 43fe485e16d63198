"""Numbers of the frames of an old folder: landmarks, blinks, and the tracker's coefficients."""

import dataclasses
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from preprocess.importers import folder_layout
from preprocess.importers.folder_layout import Notes
from preprocess.workers import native
from tkjax import contract
from tkjax.errors import UserError
from tkjax.formats import tables
from tkjax.formats.facewarehouse import FACEWAREHOUSE
from tkjax.formats.transforms import UNITS

N_EXPRESSION = 79
POSE_TOLERANCE = 2e-3  # between a pose of the json and of the tracker, in contract units; float32 reaches 1e-5
BLINK_DEPTH = 0.65  # share of the open eye's aspect ratio that a closed one has lost


def blendshapes(
    found: dict[int, tuple[float, ...]], ids: np.ndarray, notes: Notes
) -> tuple[Float[np.ndarray, "n K"], list[str]]:
    """exp_ori of all frames and names: FaceWarehouse's of 46, the contract's of 52, else numbers. Frames that have none
    take the nearest one's; UserError where their lengths differ."""
    sizes = {len(v): i for i, v in sorted(found.items(), reverse=True)}
    if len(sizes) > 1:
        (a, i), (b, k) = sorted(sizes.items())[:2]
        raise UserError(
            f"transforms json: exp_ori has {a} numbers in frame {i} and {b} in frame {k}, expected as many in each"
        )
    (count,) = sizes
    names = {46: FACEWAREHOUSE, len(contract.BLENDSHAPES): contract.BLENDSHAPES}.get(count)
    names = names or [f"exp{count}_{j:02d}" for j in range(count)]
    notes.took.append(f"exp_ori of the json: {len(found)} frames of {count} coefficients -> expression")
    notes.hole("no usable exp_ori: coefficients of the nearest frame", [i for i in ids.tolist() if i not in found])
    rows = {i: np.array(v) for i, v in found.items()}
    return folder_layout.fill(rows, ids).astype(np.float32), list(names)


def compare_ranges(root: Path, values: Float[np.ndarray, "t K"], notes: Notes) -> None:
    """Say whether the folder's max_<K>.txt and min_<K>.txt are the range of the training frames, which counts."""
    for name, own in (("high", values.max(0)), ("low", values.min(0))):
        path = root / folder_layout.RANGES[name].format(values.shape[1])
        if not path.is_file():
            continue
        notes.used.add(path)
        try:
            theirs = np.array(path.read_text().split(), np.float64)
        except (OSError, ValueError):
            theirs = np.zeros(0)
        if theirs.shape == own.shape and np.abs(theirs - own).max() < 1e-3:
            notes.took.append(f"{path.name}: the range of the training frames")
        else:
            notes.said.append(f"{path.name} is not the range of the training frames, which counts")


def read_lms(path: Path) -> Float[np.ndarray, "68 2"] | None:
    """68 rows "x y", or MediaPipe's 478, of which they are made; None where the file holds anything else."""
    try:
        rows = [
            [float(x) for x in line.replace(",", " ").split()[:2]]
            for line in path.read_text().splitlines()
            if line.strip()
        ]
        points = np.array(rows, np.float64)
    except (OSError, ValueError):
        return None
    if points.shape == (478, 2):
        points = contract.landmarks68(points[None], "mediapipe478")[0]
    return points if points.shape == (68, 2) and np.isfinite(points).all() else None


def landmarks(
    files: dict[int, Path], ids: np.ndarray, shift: float, notes: Notes
) -> tuple[Float[np.ndarray, "n 68 2"], Bool[np.ndarray, " n"]]:
    """(points, found) of the frames `ids`; frames without points are filled linearly between their neighbours."""
    rows = {}
    for k, i in enumerate(ids.tolist()):
        path = files.get(i)
        if path is None:
            continue
        notes.used.add(path)
        points = read_lms(path)
        if points is None:
            notes.hole("the .lms file does not hold 68 points: treated as missing", [i])
        else:
            rows[k] = points
    found = np.isin(np.arange(len(ids)), list(rows))
    if not rows:
        raise UserError(
            "no frame of the folder has a readable .lms file; run the landmark step of the original project first"
        )
    notes.hole(
        "no .lms: confidence 0 (not trained on), landmarks and boxes between those of the neighbours", ids[~found]
    )
    known = np.array(sorted(rows))
    table = np.stack([rows[k] for k in known]).reshape(len(known), -1)
    at = np.arange(len(ids))
    out = np.stack([np.interp(at, known, column) for column in table.T], 1).reshape(len(ids), 68, 2)
    return (out + shift).astype(np.float32), found


# ---------------------------------------------------------------- blinks


def eye_aspect(points: Float[np.ndarray, "n 68 2"]) -> Float[np.ndarray, " n"]:
    """Mean height of the lids over the width of the eyes."""
    p = np.asarray(points, np.float64)
    total = np.zeros(len(p))
    for a in (36, 42):
        width = np.linalg.norm(p[:, a + 3] - p[:, a], axis=-1)
        height = sum(np.linalg.norm(p[:, a + i] - p[:, a + j], axis=-1) for i, j in ((1, 5), (2, 4))) / 2
        total += height / np.maximum(width, 1e-6) / 2
    return total


def blink_from_landmarks(points: Float[np.ndarray, "n 68 2"], found: Bool[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """0 open … 1 closed by the lids' aspect ratio: 0 at the clip's median, 1 where 65 % of it is gone."""
    aspect = eye_aspect(points)
    level = float(np.median(aspect[found] if found.any() else aspect))
    return np.clip((level - aspect) / max(BLINK_DEPTH * level, 1e-6), 0, 1)


def read_blinks(path: Path, n_ids: int, notes: Notes) -> dict[int, float]:
    """{img_id: clip(AU45_r, 0, 2) / 2} of an OpenFace table; n_ids: one more than the largest img_id (`tables`).

    The originals take row i for frame i. So do we, unless the table itself says that its rows belong to other frames.
    Rows without a finite number, and those where the tracker failed, are left out.
    """
    column = tables.read_blinks(path, n_ids, openface=True)
    notes.said += [f"{path.name}: {text}" for text in column.notes]
    notes.hole(f"{path.name}: AU45_r is no number", column.lost)
    notes.hole(f"{path.name}: success is 0, the tracker failed", column.failed)
    return column.values


# ---------------------------------------------------------------- the tracker's output


@dataclasses.dataclass(frozen=True)
class Track:
    """track_params.pt: coefficients and contract poses of its rows."""

    exp: Float[np.ndarray, "m K"]
    poses: Float[np.ndarray, "m 4 4"] | None
    focal: float | None


def rotation(euler: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3 3"]:
    """R = Rx(a) Ry(b) Rz(-c) of the tracker (rad-nerf.md §2.3)."""
    (ca, cb, cc), (sa, sb, sc) = np.cos(euler).T, np.sin(euler).T
    one, zero = np.ones_like(ca), np.zeros_like(ca)
    x = np.array([[one, zero, zero], [zero, ca, -sa], [zero, sa, ca]])
    y = np.array([[cb, zero, sb], [zero, one, zero], [-sb, zero, cb]])
    z = np.array([[cc, sc, zero], [-sc, cc, zero], [zero, zero, one]])
    return np.einsum("ijn,jkn,kln->nil", x, y, z)


def tracker_poses(euler: np.ndarray, trans: np.ndarray) -> Float[np.ndarray, "n 4 4"]:
    """Contract cam_to_world of x_cam = R x + t with x in units of 10 cm: [R^T | -R^T t / 10 * 4]."""
    r = rotation(np.asarray(euler, np.float64))
    out = np.tile(np.eye(4), (len(r), 1, 1))
    out[:, :3, :3] = r.transpose(0, 2, 1)
    out[:, :3, 3] = -np.einsum("nji,nj->ni", r, np.asarray(trans, np.float64) / 10 * UNITS)
    return out


def read_track(path: Path, notes: Notes) -> Track | None:
    """The tracker's file, without running anything in it; None (and a word) where it cannot be used."""
    with native("torch"):
        import torch
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
        table = {k: np.asarray(v.detach().float().numpy()) for k, v in data.items() if isinstance(v, torch.Tensor)}
    except Exception as e:  # torch raises many kinds for what is not a plain file of tensors
        notes.said.append(f"{path.name}: not used, it is no plain file of tensors ({type(e).__name__})")
        return None
    exp = table.get("exp")
    if exp is None or exp.ndim != 2 or 0 in exp.shape:
        notes.said.append(f"{path.name}: not used, it has no table exp [frames, {N_EXPRESSION}]")
        return None
    euler, trans = table.get("euler"), table.get("trans")
    shapes = {None if a is None else a.shape for a in (euler, trans)}
    poses = tracker_poses(euler, trans) if shapes == {(len(exp), 3)} else None
    focal = table.get("focal")
    return Track(exp.astype(np.float32), poses, float(focal.ravel()[0]) if focal is not None and focal.size else None)


def expression(track: Track, poses: dict[int, np.ndarray], ids: np.ndarray, notes: Notes) -> dict[int, np.ndarray]:
    """{img_id: exp [K]}. The tracker's rows count the frames that had landmarks, so a row belongs to the frame whose
    pose it has: row img_id, or the row by rank among the json's frames; a frame that fits neither gets none."""
    rank = {i: r for r, i in enumerate(sorted(poses))}
    out, missing, other = {}, [], []
    for i in ids.tolist():
        rows = [r for r in dict.fromkeys((i, rank.get(i, i))) if r < len(track.exp)]
        if track.poses is None:
            fits = rows[:1]
        elif i not in poses:
            fits = []
        else:
            fits = [r for r in rows if np.abs(track.poses[r] - poses[i]).max() <= POSE_TOLERANCE]
            if rows and not fits:
                other.append(i)
        if fits and np.isfinite(track.exp[fits[0]]).all():
            out[i] = track.exp[fits[0]]
        else:
            missing.append(i)
    notes.hole("track_params.pt has another pose than the json", other)
    notes.hole("track_params.pt has no usable row: expression of the nearest frame", missing)
    return out
