"""What the labels of a frame show of themselves, and the verdict on a clip; no truth is needed.

`measure` gives the numbers of `MEASURES` for one frame, in head coordinates (`label_repair`); `judge_clip` takes a high
or low percentile of each over the clip, since a few odd frames among hundreds spoil nothing. Each bound lies well
beyond the worst of what good labels gave: two recorded clips, and the exact labels of six synthetic subjects with
short and long hair; the failures lie where pictures of head and torso show the wrong thing most of the time.
"""

import dataclasses

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from preprocess.checks import Check, judge
from preprocess.regions import label_repair, segment
from tkjax.contract import LABEL_HEAD

SMALL_PX = 160  # longer side of the labels that are measured
LEAST_ZONE = 0.002  # share of the picture below which a zone is too small to say anything
REMEDY = (
    "film before a plain wall of another colour than hair and clothes, name a screen with --background_ref, or give a "
    "face parser with --labels=bisenet=PATH"
)


@dataclasses.dataclass(frozen=True)
class Measure:
    """One number a frame. words: the measure's name in the table; short: on the contact sheet; percentile: of the
    clip's frames that is judged; warn, fail: its bounds (the warning's marks a single frame too); said: what is wrong,
    as the beginning of a sentence."""

    name: str
    words: str
    short: str
    percentile: float
    warn: float
    fail: float | None
    more_is_worse: bool
    said: str


MEASURES = (
    Measure("core", "share of the head's bone that is labelled head", "face not all head", 5, 0.95, 0.7, False,
            "the label of the head leaves out parts of the face or the forehead"),
    Measure("under_chin", "share of person right below the chin", "nothing below chin", 10, 0.75, 0.3, False,
            "neither neck nor clothes are found right below the chin"),
    Measure("head_below", "share of head where the neck must be", "neck labelled head", 80, 0.2, 0.8, True,
            "neck or collar are labelled as head"),
    Measure("apart", "share of the person in loose pieces", "loose pieces", 90, 0.03, 0.25, True,
            "parts of the picture that hang together with neither head nor body are labelled as the person"),
    Measure("beside", "share of body beside the face on both sides", "body beside the face", 80, 0.2, 0.6, True,
            "the background beside the face is labelled as the body"),
    Measure("bite", "deepest bite in the outline of the crown, half faces", "bite in the hair", 80, 0.15, 0.4, True,
            "the hair lacks pieces at the crown"),
    Measure("flicker", "share of the head that flickers", "head flickers", 90, 0.06, 0.2, True,
            "the label of the head changes from frame to frame although the head does not"),
    Measure("area", "change of the head's area over the clip", "head grows or shrinks", 90, 0.25, None, True,
            "the label of the head grows and shrinks"),
)  # fmt: skip
NAMES = tuple(m.name for m in MEASURES)


def _share(mask: np.ndarray, zone: np.ndarray) -> float:
    """Share of the zone that is in the mask; NaN where the picture shows too little of it."""
    return float(mask[zone].mean()) if zone.sum() >= max(4, LEAST_ZONE * zone.size) else float("nan")


def _loose(label: np.ndarray, oval: np.ndarray) -> float:
    """Share of the person that touches neither the face nor the lower border, through the person."""
    person = label > 0
    seed = oval.copy()
    seed[-1] = True
    return 1 - float(label_repair.touching(person, seed).sum()) / max(int(person.sum()), 1)


def measure(label: UInt8[np.ndarray, "H W"], landmarks_px: Float[np.ndarray, "478 2"]) -> Float[np.ndarray, " M"]:
    """`MEASURES` of one frame, NaN where the picture does not show the place; `flicker` and the change of `area` need
    the neighbours (`over_time`): here area is that of the head above the shoulders in head coordinates."""
    s = min(1.0, SMALL_PX / max(label.shape))
    h, w = (max(1, round(n * s)) for n in label.shape)
    points = landmarks_px * np.array([w / label.shape[1], h / label.shape[0]])
    small = cv2.resize(label, (w, h), interpolation=cv2.INTER_NEAREST)
    u, v = segment.head_coordinates(points, h, w)
    oval, head, beside = segment.oval_mask(points, h, w), small == LABEL_HEAD, np.abs(u)
    body = (small > 0) & ~head
    flank = (v > -0.9) & (v < label_repair.HIGHEST_BODY) & (beside > 2) & (beside < 3.5)
    sides = [_share(body, flank & (u * sign > 0)) for sign in (-1, 1)]
    outline, closed = label_repair.crown(head, u, v)
    cells_u, cells_v = label_repair.grid_coordinates()
    grid = label_repair.to_head(label, landmarks_px)
    upper = (cells_v > label_repair.SHOULDERS) & (np.abs(cells_u) < label_repair.REACH_BESIDE)
    row = {
        "core": _share(head, label_repair.core(u, v)),
        "under_chin": _share(small > 0, (v < -1.15) & (v > -1.6) & (beside < 0.4)),
        "head_below": _share(head, (v < -1.35) & (v > -1.8) & (beside < 0.5)),
        "apart": _loose(small, oval),
        "beside": float(np.fmin(*sides)),
        "bite": float(np.where(outline > 0, closed - outline, 0).max()),
        "flicker": 0.0,
        "area": float((grid[upper] == LABEL_HEAD).sum()),
    }
    return np.array([row[name] for name in NAMES], np.float32)


def over_time(rows: Float[np.ndarray, "n M"], grids: UInt8[np.ndarray, "n 96 96"]) -> Float[np.ndarray, "n M"]:
    """The rows of successive frames with `flicker`: the share of the head's cells that changed since the last frame."""
    _, v = label_repair.grid_coordinates()
    head = (grids == LABEL_HEAD) & (v > label_repair.SHOULDERS)
    out = rows.copy()
    changed = (head[1:] != head[:-1]).sum((1, 2)) / np.maximum(head[1:].sum((1, 2)), 1)
    out[:, NAMES.index("flicker")] = np.concatenate([[0], changed])
    return out


def marks(rows: Float[np.ndarray, "n M"]) -> np.ndarray:
    """bool [n,M]: which frames lie beyond the warning of which measure."""
    rows = _relative(rows)
    sign = np.array([1.0 if m.more_is_worse else -1.0 for m in MEASURES])
    return np.nan_to_num(sign * rows, nan=-np.inf) > sign * np.array([m.warn for m in MEASURES])


def _relative(rows: np.ndarray) -> np.ndarray:
    """Rows with the head's area as its change against the clip's median."""
    out = np.array(rows, np.float64)
    k = NAMES.index("area")
    out[:, k] = np.abs(out[:, k] / max(float(np.median(out[:, k])), 1.0) - 1)
    return out


def judge_clip(rows: Float[np.ndarray, "n M"], fps: float) -> list[Check]:
    """The checks of a clip's labels from the rows of its frames. What no frame shows is left out."""
    marked, relative = marks(rows), _relative(rows)
    out = []
    for k, m in enumerate(MEASURES):
        if np.isnan(relative[:, k]).all():
            continue
        value = float(np.nanpercentile(relative[:, k], m.percentile))
        where = np.flatnonzero(marked[:, k])
        times = f" in {len(where)} of {len(rows)} frames, first at {where[0] / fps:.2f} s" if len(where) else ""
        message = f"{m.said}{times} (marked in qa/contact_sheet.png); {REMEDY}"
        out.append(
            judge("labels", m.words, value, warn=m.warn, fail=m.fail, more_is_worse=m.more_is_worse, message=message)
        )
    return out
