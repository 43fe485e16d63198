"""What the place of the head says about labels: repairs of single frames, and a vote over time in head coordinates.

Head coordinates (u, v) are those of `segment.head_coordinates`: u across in half widths of the face, v up in half
heights, +1 at the top of the forehead, -1 at the chin; they are an affine map of the picture, so `cv2.warpAffine` goes
to a grid of them and back. In half heights of the canonical face (8.85 cm) a skull ends at about v = 1.55 and is 1.16
wide to either side; the bounds below keep away from these by what a turned or nodding head needs.
"""

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from tkjax.contract import LABEL_BACKGROUND, LABEL_HEAD

CORE = (0.95, 1.1)  # half axes around (0, 0.1) of what is always head: bone, whatever the colours say
SKULL = (1.5, 1.75)  # half axes around (0, 0.1) of head with close hair
REACH_BESIDE, REACH_BELOW = 2.6, 1.9  # |u| of the widest hair: beside the face, and below the chin
SHOULDERS = -0.55  # v: what lies lower is head only where it is face or hair
THIN = 0.1  # half heights: what is no wider does not hold hair together
HIGHEST_BODY = -0.3  # v: no shoulder of an upright or leaning person rises higher
GRID, SPAN = 96, (-2.4, 2.4, -2.4, 2.4)  # cells and (u0, u1, v0, v1) of the grid in head coordinates
DIP_DEGREES = 35  # half the width of gaps in the outline of the crown that count as bites
CROWN = slice(35, 146)  # degrees of the outline that are above the ears
DIP = 0.06  # half heights; shallower ones are how hair lies
NEAR = 6  # frames before and after that vote
SURE = 0.75  # share of them that outvotes a frame


def affine(landmarks_px: Float[np.ndarray, "478 2"]) -> Float[np.ndarray, "2 3"]:
    """(u, v) = affine @ (x, y, 1) of picture coordinates in which pixel (i, j) spans [i, i+1)."""
    top, chin = landmarks_px[10], landmarks_px[152]
    half = max(float(np.linalg.norm(top - chin)) / 2, 1.0)
    up = (top - chin) / (2 * half)
    right = np.array([-up[1], up[0]])
    middle = (top + chin) / 2
    centre = middle + right * float((landmarks_px[[454, 234]].mean(0) - middle) @ right)
    linear = np.stack([right / (0.74 * half), up / half])
    return np.concatenate([linear, -(linear @ centre)[:, None]], 1)


def _to_cells(landmarks_px: np.ndarray) -> np.ndarray:
    """Pixel centres (x, y) -> centres of grid cells, for cv2.warpAffine."""
    u0, u1, v0, v1 = SPAN
    scale = np.array([GRID / (u1 - u0), -GRID / (v1 - v0)])  # v up, rows down
    m = affine(landmarks_px)
    out = m * scale[:, None]
    out[:, 2] += -np.array([u0, v1]) * scale + m[:, :2].sum(1) * 0.5 * scale - 0.5
    return out


def grid_coordinates() -> tuple[np.ndarray, np.ndarray]:
    """u, v [GRID,GRID] of the cells."""
    u0, u1, v0, v1 = SPAN
    at = (np.arange(GRID) + 0.5) / GRID
    return np.meshgrid(u0 + (u1 - u0) * at, v1 - (v1 - v0) * at)


def to_head(label: UInt8[np.ndarray, "H W"], landmarks_px: np.ndarray) -> UInt8[np.ndarray, "96 96"]:
    """Labels in head coordinates; 255 beyond the picture."""
    size = (GRID, GRID)
    return cv2.warpAffine(label, _to_cells(landmarks_px), size, flags=cv2.INTER_NEAREST, borderValue=255)


def to_picture(grid: Float[np.ndarray, "96 96"], landmarks_px: np.ndarray, height: int, width: int) -> np.ndarray:
    """A float grid of head coordinates at the pixels [H,W]; NaN beyond its reach."""
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(
        grid.astype(np.float32), _to_cells(landmarks_px), (width, height), flags=flags, borderValue=float("nan")
    )


def core(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """bool: where the bone of the head is."""
    return (u / CORE[0]) ** 2 + ((v - 0.1) / CORE[1]) ** 2 < 1


def touching(mask: np.ndarray, seed: np.ndarray) -> np.ndarray:
    """The parts of bool [H,W] that hold a pixel of `seed`."""
    if not (mask & seed).any():
        return np.zeros_like(mask)
    _, component = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    kept = np.zeros(component.max() + 1, bool)
    kept[component[mask & seed]] = True
    return mask & kept[component]


def hanging(hair: Bool[np.ndarray, "H W"], v: Float[np.ndarray, "H W"], half: float) -> Bool[np.ndarray, "H W"]:
    """Hair that hangs together with the crown by strands wider than THIN; `half`: half the face's height in pixels. The
    rim of mixed colours along ear and jaw is thinner, and at its end there may be a collar."""
    r = max(1, round(THIN / 2 * half))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * r + 1,) * 2)
    thick = cv2.morphologyEx(hair.astype(np.uint8), cv2.MORPH_OPEN, disc) > 0
    held = touching(thick | (hair & (v > 0.2)), v > 0.4)
    return hair & (cv2.dilate(held.astype(np.uint8), disc) > 0)


def head_of(
    person: Bool[np.ndarray, "H W"],
    hair: Bool[np.ndarray, "H W"],
    cloth: Bool[np.ndarray, "H W"],
    oval: Bool[np.ndarray, "H W"],
    u: Float[np.ndarray, "H W"],
    v: Float[np.ndarray, "H W"],
    half: float,
) -> Bool[np.ndarray, "H W"]:
    """Which pixels of the person are head: the face, what lies within the skull and is no shoulder, hair that hangs
    together with the crown or, as a beard, with the chin. `hair` and `cloth` are what colours say; half: pixels."""
    beside = np.abs(u)
    hair = person & hair & (beside < np.where(v > -0.2, REACH_BESIDE, REACH_BELOW))
    beard = touching(hair & (beside < 0.7) & (v > -1.45), oval)
    skull = (u / SKULL[0]) ** 2 + ((v - 0.1) / SKULL[1]) ** 2 < 1
    skull &= (v > SHOULDERS) & ~(cloth & (beside > 0.95) & (v < 0))
    return person & (oval | skull | hanging(hair, v, half) | beard)


def _polar(u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(degree int32, radius in half heights) around (0, 0.1); 0 lies to the right, 90 upwards."""
    x, y = 0.74 * u, v - 0.1
    return np.clip(np.degrees(np.arctan2(y, x)), 0, 179.9).astype(np.int32), np.hypot(x, y)


def crown(head: Bool[np.ndarray, "H W"], u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(radius [180], radius without bites [180]) of the outline over the head, degree by degree from one ear over the
    crown to the other, in half heights around (0, 0.1); 0 where there is no head."""
    inner = cv2.erode(head.astype(np.uint8), np.ones((3, 3), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0)
    rows, columns = np.nonzero(head & (inner == 0) & (v > 0.1))
    degree, radius = _polar(u[rows, columns], v[rows, columns])
    outline = np.zeros(180, np.float32)
    np.maximum.at(outline, degree, radius.astype(np.float32))
    outline = cv2.dilate(outline[:, None], np.ones((5, 1), np.uint8))[:, 0]  # of small pictures a degree may be empty
    kernel = np.ones((2 * DIP_DEGREES + 1, 1), np.uint8)
    closed = cv2.morphologyEx(outline[:, None], cv2.MORPH_CLOSE, kernel, borderType=cv2.BORDER_REPLICATE)[:, 0]
    cut = degree[(rows == 0) | (columns == 0) | (columns == head.shape[1] - 1)]  # by the picture: that is no bite
    closed[cut] = outline[cut]
    closed[: CROWN.start], closed[CROWN.stop :] = outline[: CROWN.start], outline[CROWN.stop :]
    return outline, closed


def fill_crown(head: np.ndarray, likely: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The head with bites in the outline of its crown filled where bool `likely` does not speak against hair."""
    outline, closed = crown(head, u, v)
    bites = closed - outline > DIP
    if not bites.any():
        return head
    rows, columns = np.nonzero(likely & ~head & (v > 0.1))
    degree, radius = _polar(u[rows, columns], v[rows, columns])
    inside = bites[degree] & (radius < closed[degree])
    out = head.copy()
    out[rows[inside], columns[inside]] = True
    return out


def lower(label: UInt8[np.ndarray, "H W"], v: np.ndarray) -> UInt8[np.ndarray, "H W"]:
    """Labels without neck or torso above where shoulders can be: that is background."""
    out = label.copy()
    out[(label != LABEL_HEAD) & (v > HIGHEST_BODY)] = LABEL_BACKGROUND
    return out


def votes(grids: UInt8[np.ndarray, "n 96 96"]) -> Float[np.ndarray, "n 96 96"]:
    """Share of the frames from NEAR before to NEAR after, without the frame itself, that show head at each cell."""
    n = len(grids)
    total = np.concatenate([np.zeros((1, GRID, GRID), np.int32), np.cumsum(grids == LABEL_HEAD, 0, dtype=np.int32)])
    first, last = np.maximum(np.arange(n) - NEAR, 0), np.minimum(np.arange(n) + NEAR + 1, n)
    others = total[last] - total[first] - (grids == LABEL_HEAD)
    return (others / np.maximum(last - first - 1, 1)[:, None, None]).astype(np.float32)


def steady(labels: list[np.ndarray], landmarks_px: Float[np.ndarray, "n 478 2"]) -> list[np.ndarray]:
    """Labels [H,W] of successive frames whose head above the shoulders agrees with most of its neighbours in time:
    what only a few frames take off the head, or put on it, is put back. Less than three frames stay as they are."""
    if len(labels) < 3:
        return labels
    share = votes(np.stack([to_head(label, p) for label, p in zip(labels, landmarks_px, strict=True)]))
    _, v = grid_coordinates()
    share[:, v < SHOULDERS + 0.15] = np.nan
    out = []
    for label, points, vote in zip(labels, landmarks_px, share, strict=True):
        said = to_picture(vote, points, *label.shape)
        new = np.where((said > SURE) & (label != LABEL_HEAD), LABEL_HEAD, label)
        new = np.where((said < 1 - SURE) & (label == LABEL_HEAD), LABEL_BACKGROUND, new)
        out.append(new.astype(np.uint8))
    return out
