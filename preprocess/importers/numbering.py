"""Pictures that are numbered from 1 beside a json that counts from 0.

ffmpeg numbers pictures from 1 unless it is told otherwise, and the originals' last step numbers its poses from 0: pose,
sound and row k of every table then belong to picture k + 1, and whoever pairs equal numbers ends 40 ms beside the
sound. The same folder may also just lack picture 0. Landmarks tell the two apart where the head moves; else the count
does: as many pictures as the json has frames are all of them.
"""

from pathlib import Path

import numpy as np

from preprocess.importers.folder_layout import Notes, Transforms
from preprocess.importers.misnumbering import BETTER, RIGID, rigid_error
from preprocess.importers.track_columns import read_lms

LEAST = 6  # frames from which the fit says anything
MOST = 400  # frames that are looked at; the fit needs no more


def renumber(
    files: dict[str, dict[int, Path]], t: Transforms, camera: dict[str, float], notes: Notes
) -> dict[str, dict[int, Path]]:
    """The files of all folders by the json's numbers: one less than their own where they count from 1."""
    named = {**files["targets"], **files["ori_imgs"]}
    if not named or min(named) != 1 or 0 not in t.part:
        return files
    early, same = _error(files["lms"], t, camera, 1), _error(files["lms"], t, camera, 0)
    if min(early, same) < BETTER * max(early, same):
        from_one, why = early < same, "its poses fit the landmarks so"
    else:
        from_one, why = max(named) == max(t.part) + 1, "by their count"
    if not from_one:
        notes.said.append(f"picture 0 is missing, the others have the json's numbers ({why})")
        return files
    notes.said.append(
        f"the pictures are numbered from 1 and the json from 0: picture k is img_id k - 1 ({why}); all numbers below "
        "are the json's"
    )
    return {name: {k - 1: p for k, p in found.items()} if 0 not in found else found for name, found in files.items()}


def _error(lms: dict[int, Path], t: Transforms, camera: dict[str, float], late: int) -> float:
    """How badly pose k fits the landmarks of picture k + late, over the frames before the first gap in either
    numbering; NaN where there are too few."""
    poses, points, k = [], [], 0 if late else 1
    while len(poses) < MOST and k in t.poses and k + late in lms:
        found = read_lms(lms[k + late])
        if found is None:
            break
        poses.append(t.poses[k])
        points.append(found[list(RIGID)])
        k += 1
    return rigid_error(np.stack(poses), camera, np.stack(points)) if len(poses) >= LEAST else float("nan")
