"""The originals' misalignment after a frame without landmarks, and how it is undone.

Their tracker skips frames without .lms, and the last step numbers its rows 0, 1, … as img_id (rad-nerf.md §2.3 trap b,
er-nerf.md §2 "Landmarks"): from the first such frame on, each pose stands at a picture too early. A folder tells:
the json names as many frames as there are landmark files, from 0 without a gap, although the landmark files have gaps.
Whether the poses really are late is then measured, since a folder may have lost a landmark file later on.
"""

from pathlib import Path

import numpy as np
from jaxtyping import Float

from preprocess.import_columns import read_lms
from preprocess.import_layout import Notes, Transforms
from tkjax.tables import ranges

RIGID = (*range(27, 36), 36, 39, 42, 45)  # nose and corners of the eyes
BETTER = 0.8  # the error must fall at least to this share


def rigid_error(
    poses: Float[np.ndarray, "n 4 4"], camera: dict[str, float], points_px: Float[np.ndarray, "n p 2"]
) -> float:
    """Root mean square of a linear fit of fixed world points to their pictures, in pixels times depth units.

    u = cx + fx x / -z and v = cy - fy y / -z with (x, y, z) = R^T (X - c): both are linear in X.
    """
    r, c = poses[:, :3, :3], poses[:, :3, 3]
    x, y, z = r[:, :, 0], r[:, :, 1], r[:, :, 2]
    u, v = points_px[..., 0] - camera["cx"], points_px[..., 1] - camera["cy"]
    total, count = 0.0, 0
    for p in range(points_px.shape[1]):
        a = np.concatenate([u[:, p, None] * z + camera["fx"] * x, v[:, p, None] * z - camera["fy"] * y])
        b = (a * np.concatenate([c, c])).sum(1)
        solution = np.linalg.lstsq(a, b, rcond=None)[0]
        total += float(((a @ solution - b) ** 2).sum())
        count += len(b)
    return (total / max(count, 1)) ** 0.5


def unshift(
    t: Transforms, pictures: dict[int, Path], lms: dict[int, Path], camera: dict[str, float], notes: Notes
) -> Transforms:
    """The transforms with the frame numbers that their poses belong to; the same where nothing was shifted."""
    ids = t.ids
    valid = sorted(i for i in lms if i in pictures)
    if ids != list(range(len(ids))) or len(valid) != len(ids) or valid == ids or set(t.poses) != set(ids):
        return t
    gap = next(k for k, (a, b) in enumerate(zip(ids, valid, strict=True)) if a != b)
    points = {i: read_lms(lms[i]) for i in valid}
    late = [k for k in ids if points[valid[k]] is not None]
    here = [k for k in ids if points.get(k) is not None]

    def error(rows: list[int], number) -> float:
        seen = np.stack([points[number(k)][list(RIGID)] for k in rows])
        return rigid_error(np.stack([t.poses[k] for k in rows]), camera, seen)

    if len(late) < 6 or len(here) < 6:
        return t
    late_error, here_error = error(late, lambda k: valid[k]), error(here, lambda k: k)
    lost = ranges(set(range(valid[-1] + 1)) - set(valid))
    if late_error > BETTER * here_error:
        notes.said.append(f"frames without landmarks ({lost}): the json's poses fit its img_id, they are kept")
        return t
    notes.said.append(
        f"the poses of the json stand too early from img_id {gap} on, because the original counted only frames with "
        f"landmarks (without: {lost}); each pose, split and sound index was put to its own frame"
    )
    number = dict(zip(ids, valid, strict=True))
    return Transforms(
        {number[i]: m for i, m in t.poses.items()},
        {number[i]: a + number[i] - i for i, a in t.aud_id.items()},
        {number[i]: p for i, p in t.part.items()},
        t.head,
        t.parts,
    )
