"""The square of a half- or full-body picture that shows the head.

Two rules:
- `default_box`: from the face's landmarks and the connected part of the person around the face. How far hair reaches
  beyond the face is measured per look and taken as a percentile, so that a raised hand, another person passing or
  flyaway hair in some looks changes nothing; where the face goes over the clip is covered by its own positions.
- `original_rule`: Avatar-ERNeRF's (dossier §2.4 task 4) from a body detector's points; its known values are §11. The
  traps: the box is clamped to the frame here (there ffmpeg fails and goes on); shoulders that were not found, or whose
  column shows no matte, are left out (there an empty array); where its percentiles keep no frame, all are kept.
Boxes are (x0, y0, x1, y1) pixels of the source picture, half open, square with an even side.
"""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, Float

from preprocess.faces.face_model import FACE_OVAL
from preprocess.regions import segment
from tkjax.errors import UserError

Box = tuple[int, int, int, int]
HEAD_SHARE = 0.46  # of the side, from chin to forehead
AIR = 0.1  # room above the hair, in heights of the face
HAIR, SIDES, SHOULDERS = 0.4, 0.35, 0.6  # above the forehead, beside the face, below the chin, where no mask says more
HAIR_MOST, SIDES_MOST = 1.0, 0.9  # what the mask may claim: more is a hat stand or a hand
PERCENTILE = 70  # of a reach of hair over the looks
SCALE, LEAST_SCORE, STEP = 1.05, 0.3, 25  # of the original: growth, least score of a point, frames between two looks


def even_floor(x: float) -> int:
    """The largest even number that is not above x."""
    return int(x // 2) * 2


def clamp(box: Sequence[float], height: int, width: int) -> Box:
    """The square made no larger than the frame (about its centre), even, and shifted inside."""
    x0, y0, x1, y1 = box
    side = max(2, even_floor(min(x1 - x0, y1 - y0, height, width)))
    left = round(x0) if side == x1 - x0 else round((x0 + x1 - side) / 2)
    top = round(y0) if side == y1 - y0 else round((y0 + y1 - side) / 2)
    left, top = min(max(left, 0), width - side), min(max(top, 0), height - side)
    return left, top, left + side, top + side


# ---------------------------------------------------------------- default


def face_part(person: Bool[np.ndarray, "H W"], landmarks_px: Float[np.ndarray, "478 2"]) -> Bool[np.ndarray, "H W"]:
    """The part of the person above the chin that hangs together with the face, without thin strands; an arm that
    comes up beside the head touches it only below the chin, so it is not part."""
    h, w = person.shape
    points = np.asarray(landmarks_px, np.float64)[:, :2]
    oval = segment.oval_mask(points, h, w)
    tall = float(np.linalg.norm(points[10] - points[152]))
    _, v = segment.head_coordinates(points, h, w)
    mask = (person | oval) & (v > -0.9)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * max(1, round(0.06 * tall)) + 1,) * 2)
    solid = (cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, kernel) > 0) | oval
    _, component = cv2.connectedComponents(solid.astype(np.uint8), connectivity=4)
    ids = np.bincount(component[oval]) if oval.any() else np.zeros(1, np.int64)
    ids[:1] = 0
    return (component == ids.argmax()) & (ids.max() > 0)


def reaches(person: Bool[np.ndarray, "H W"], landmarks_px: Float[np.ndarray, "478 2"]) -> np.ndarray:
    """[3] how far the head reaches beyond the face's outline upwards, left and right, in heights of the face."""
    points = np.asarray(landmarks_px, np.float64)[:, :2]
    part = face_part(person, points)
    tall = max(float(np.linalg.norm(points[10] - points[152])), 1.0)
    low, high = points[list(FACE_OVAL)].min(0), points[list(FACE_OVAL)].max(0)
    rows, columns = np.flatnonzero(part.any(1)), np.flatnonzero(part.any(0))
    if not len(rows):
        return np.array([HAIR, SIDES, SIDES])
    out = np.array([low[1] - rows[0], low[0] - columns[0], columns[-1] + 1 - high[0]]) / tall
    return np.clip(out, 0, [HAIR_MOST, SIDES_MOST, SIDES_MOST])


def default_box(landmarks_px: np.ndarray, height: int, width: int, reach: np.ndarray | None = None) -> Box:
    """The box from landmarks [n,478,2+] of the looks and `reaches` [m,3] of those that have a mask.

    Its side is the largest of: the face at HEAD_SHARE; head with hair over all positions with room; at most the frame.
    """
    points = np.asarray(landmarks_px, np.float64)[:, list(FACE_OVAL), :2]
    tall = float(np.median(np.linalg.norm(landmarks_px[:, 10, :2] - landmarks_px[:, 152, :2], axis=-1)))
    low, high = np.percentile(points.min(1), 2, 0), np.percentile(points.max(1), 98, 0)
    up, left, right = [HAIR, SIDES, SIDES] if reach is None or not len(reach) else np.percentile(reach, PERCENTILE, 0)
    x0, x1 = low[0] - left * tall, high[0] + right * tall
    y0, y1 = low[1] - (up + AIR) * tall, high[1] + SHOULDERS * tall
    side = 2 * round(max(tall / HEAD_SHARE, 1.06 * (x1 - x0), y1 - y0) / 2)
    middle = (x0 + x1) / 2
    # above the hair little air, the rest shows neck and shoulders
    top = y0 - 0.3 * max(0.0, side - (y1 - y0))
    return clamp((middle - side / 2, top, middle + side / 2, top + side), height, width)


# ---------------------------------------------------------------- the original rule


@dataclasses.dataclass(frozen=True)
class Body:
    """A body detector's finding in one frame, pixels of the source: the best face's box (x1, y1, x2, y2) and 5 points
    [5,2], and 17 COCO points [17,3] (x, y, score) of the body; None where nothing was found. n_bodies: how many."""

    face_box: tuple[float, ...] | None
    face_points: np.ndarray | None
    points: np.ndarray | None
    n_bodies: int = 1


def original_frame(
    ears: np.ndarray | None,
    shoulders: Sequence[np.ndarray],
    face_box: Sequence[float],
    matte: Bool[np.ndarray, "H W"],
) -> tuple[tuple[int, int], int, Box]:
    """(centre, edge, box) of one frame by the original rule.

    ears [2,2] (None: not found, then the sides of the face's box), shoulders: the points that were found, matte: alpha
    above 128. Left, right: rounded ear columns; top: topmost matte row; bottom: the lowest of the face's box and the
    topmost matte row in each shoulder's column; edge: 1.05 of the longer side, floored to even; centre: whole numbers.
    """
    rows = np.flatnonzero(matte.any(1))
    if not len(rows):
        raise ValueError("the matte of the frame is empty")
    sides = face_box[0::2] if ears is None else np.asarray(ears)[:, 0]
    xs = [round(float(x)) for x in sides]
    xmin, xmax, ymin = min(xs), max(xs), int(rows[0])
    bottoms = [round(float(face_box[1])), round(float(face_box[3]))]
    for x, _ in shoulders:
        column = round(float(x))
        if 0 <= column < matte.shape[1] and matte[:, column].any():
            bottoms.append(int(matte[:, column].argmax()))
    ymax = max(bottoms)
    edge = even_floor(round(SCALE * max(xmax - xmin, ymax - ymin), 6))
    centre = (xmin + xmax) // 2, (ymin + ymax) // 2
    return centre, edge, square(centre, edge)


def square(centre: Sequence[float], edge: int) -> Box:
    """The square of even `edge` around a centre, truncated to whole pixels as the original does."""
    half = edge // 2
    x, y = centre
    return int(x - half), int(y - half), int(x + half), int(y + half)


def kept(boxes: np.ndarray) -> Bool[np.ndarray, " n"]:
    """Boxes whose area, centre x and centre y each lie within that quantity's 5th to 95th percentile; all where that
    leaves none (few frames: their extremes always fall out)."""
    x0, y0, x1, y1 = np.asarray(boxes, np.float64).T
    keep = np.ones(len(boxes), bool)
    for q in ((x1 - x0) * (y1 - y0), (x0 + x1) / 2, (y0 + y1) / 2):
        keep &= (q >= np.percentile(q, 5)) & (q <= np.percentile(q, 95))
    return keep if keep.any() else np.ones(len(boxes), bool)


def union(boxes: np.ndarray) -> Box:
    """The square about the centre of the union of boxes [n,4], as wide as the union's shorter side, floored to even."""
    x0, y0 = (int(v) for v in np.asarray(boxes)[:, :2].min(0))
    x1, y1 = (int(v) for v in np.asarray(boxes)[:, 2:].max(0))
    return square(((x0 + x1) // 2, (y0 + y1) // 2), even_floor(min(x1 - x0, y1 - y0)))


def original_rule(looks: Iterable[tuple[Body, Bool[np.ndarray, "H W"]]], only_first: bool, name: str) -> Box:
    """The box of a clip, not yet clamped, from the finding and the matte of each look (the first one of frame 0).

    only_first: frame 0 alone decides, about the mean of its 5 face points. UserError where no frame can be used.
    """
    found, reasons = [], []
    for body, mask in looks:
        reason = _unusable(body, mask, only_first)
        if reason:
            reasons.append(reason)
        else:
            found.append((body, original_frame(*_points(body), body.face_box, mask)))
        if only_first:
            break
    if not found:
        first = reasons[0] if reasons else "it has none of the frames that are looked at (every 25th from 0)"
        raise UserError(f"--body_points: no frame of {name} can be used; {first}")
    if only_first:
        body, (_, edge, _) = found[0]
        return square(tuple(np.asarray(body.face_points, np.float64).mean(0)), edge)
    boxes = np.array([box for _, (_, _, box) in found])
    return union(boxes[kept(boxes)])


def _unusable(body: Body, mask: np.ndarray, only_first: bool) -> str:
    if body.face_box is None or (only_first and body.face_points is None):
        return "a face is missing, expected its box (and 5 points)"
    if body.points is None or body.n_bodies != 1:
        return f"a frame has {0 if body.points is None else body.n_bodies} bodies, expected exactly one"
    return "" if mask.any() else "no person stands out of the background in a frame"


def _points(body: Body) -> tuple[np.ndarray | None, list[np.ndarray]]:
    """(ears or None, shoulders that count): COCO points 3, 4 and 5, 6 with a score of at least 0.3."""
    good = body.points[:, 2] >= LEAST_SCORE
    ears = body.points[3:5, :2] if good[3:5].all() else None
    return ears, [body.points[k, :2] for k in (5, 6) if good[k]]


# ---------------------------------------------------------------- the file


@dataclasses.dataclass(frozen=True)
class BodyPoints:
    """What --body_points holds: findings by frame number, and which rule to use."""

    bodies: dict[int, Body]
    only_first: bool


def read_points(path: str | Path) -> BodyPoints:
    """A json or npz file of a body detector's findings; UserError in one sentence.

    json: {"only_first": false, "frames": [{"frame": 0, "face": {"box": [4], "score": s, "points": [[x, y] x 5]},
    "body": [[x, y, score] x 17], "n_bodies": 1}, ...]}; face and body may be null, `face` may be a list (the best score
    counts). npz: frame [n], face_box [n,4], face_points [n,5,2], body_points [n,17,3], and where they exist face_score
    [n], n_bodies [n], only_first []; rows of NaN where nothing was found. Pixels of the source at 25 frames a second.
    """
    path = Path(path)
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as z:
                rows, first = _npz_rows({k: z[k] for k in z.files})
        else:
            data = json.loads(path.read_text())
            rows, first = data["frames"], bool(data.get("only_first", False))
        bodies = {int(r["frame"]): _body(r) for r in rows}
    except OSError as e:
        raise UserError(f"--body_points={path}: {e.strerror or e}, expected a json or npz file") from e
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as e:
        what = f"lacks {e}" if isinstance(e, KeyError) else f"cannot be read ({str(e)[:80]})"
        raise UserError(
            f"--body_points={path} {what}, expected frames with frame, face (box, points) and body (17 points)"
        ) from e
    if not bodies:
        raise UserError(f"--body_points={path} holds no frame, expected one at least every second")
    return BodyPoints(bodies, first)


def _npz_rows(z: dict[str, np.ndarray]) -> tuple[list[dict[str, Any]], bool]:
    def row(i: int) -> dict[str, Any]:
        box, points, body = z["face_box"][i], z["face_points"][i], z["body_points"][i]
        face = None if np.isnan(box).any() else {"box": box, "points": None if np.isnan(points).any() else points}
        count = int(z["n_bodies"][i]) if "n_bodies" in z else 1
        seen = not np.isnan(body).all()
        return {"frame": z["frame"][i], "face": face, "body": np.nan_to_num(body) if seen else None, "n_bodies": count}

    return [row(i) for i in range(len(z["frame"]))], bool(z.get("only_first", False))


def _array(value: Any, shape: tuple[int, ...], what: str) -> np.ndarray:
    out = np.asarray(value, np.float64)
    if out.shape != shape or not np.isfinite(out).all():
        raise ValueError(f"{what} has shape {out.shape}, expected {shape} finite numbers")
    return out


def _body(row: dict[str, Any]) -> Body:
    face = row.get("face")
    if isinstance(face, list):
        face = max(face, key=lambda f: f.get("score", 0.0), default=None)
    box = None if face is None else tuple(_array(face["box"], (4,), "face box").tolist())
    points = None if face is None or face.get("points") is None else _array(face["points"], (5, 2), "face points")
    body = None if row.get("body") is None else _array(row["body"], (17, 3), "body")
    return Body(box, points, body, int(row.get("n_bodies", 1)))
