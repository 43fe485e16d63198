"""The boxes, areas and measures of a frame that samplers and losses go by; numpy only."""

import numpy as np
from jaxtyping import Bool, Float, Int, Num

from tkjax.errors import UserError

EYES, NOSE = (slice(36, 42), slice(42, 48)), slice(31, 36)  # of the 68 points


def polygon_area(points: Float[np.ndarray, "n K 2"]) -> Float[np.ndarray, " n"]:
    """Area of polygons by the shoelace formula, px²."""
    x, y = np.moveaxis(points - points.mean(1, keepdims=True), -1, 0)
    return 0.5 * np.abs(np.sum(x * np.roll(y, -1, 1) - np.roll(x, -1, 1) * y, 1))


def eye_area(points68: Float[np.ndarray, "n 68 2"], height: int, width: int) -> Float[np.ndarray, " n"]:
    """100 (A(36..41) + A(42..47)) / (H W): both eyes' share of the picture in percent (rad-nerf dossier §2.6)."""
    points = np.asarray(points68, np.float64)
    return (100.0 * sum(polygon_area(points[:, eye]) for eye in EYES) / (height * width)).astype(np.float32)


def lip_shape(points68: Float[np.ndarray, "n 68 2"]) -> Float[np.ndarray, "n 6"]:
    """Six measures of the mouth, each a distance over that of the outer corners of the eyes (36, 45): inner gap (mean
    of 61-67, 62-66, 63-65), outer height 51-57, outer width 48-54, inner width 60-64, upper lip 33-51, jaw 33-8."""
    points = np.asarray(points68, np.float64)

    def distance(a: int, b: int) -> np.ndarray:
        return np.linalg.norm(points[:, a] - points[:, b], axis=-1)

    gap = np.mean([distance(61, 67), distance(62, 66), distance(63, 65)], 0)
    rest = [distance(*pair) for pair in ((51, 57), (48, 54), (60, 64), (33, 51), (33, 8))]
    return np.stack([gap, *rest], 1) / np.maximum(distance(36, 45), 1e-9)[:, None]


def standardised(values: Float[np.ndarray, "n M"], known: Bool[np.ndarray, " n"]) -> Float[np.ndarray, "n M"]:
    """Columns in standard deviations around their mean over the known rows, cut at ±4; 0 where none is known."""
    if not known.any():
        return np.zeros(values.shape, np.float32)
    mean, spread = values[known].mean(0), values[known].std(0)
    scaled = np.clip((values - mean) / np.maximum(spread, 1e-6), -4.0, 4.0)
    return np.nan_to_num(scaled).astype(np.float32)


def widened(boxes: Int[np.ndarray, "n 4"], hw: tuple[int, int]) -> Int[np.ndarray, "n 4"]:
    """Boxes of eyes with what moves around them: a quarter of the width more on every side, inside the picture."""
    margin = np.maximum(1, (boxes[:, 2] - boxes[:, 0] + 2) // 4)[:, None]
    low = np.clip(boxes[:, :2] - margin, 0, np.array(hw[::-1]) - 1)
    return np.concatenate([low, np.clip(boxes[:, 2:] + margin, low + 1, hw[::-1])], 1)


def lower_face_boxes(points68: Float[np.ndarray, "n 68 2"]) -> Float[np.ndarray, "n 4"]:
    """(x0, y0, x1, y1) of all points from the top of the nostrils (31..35) down: RAD-NeRF's face_rect (§2.6)."""
    low, high = points68.min(1), points68.max(1)
    return np.concatenate([low[:, :1], points68[:, NOSE, 1].min(1, keepdims=True), high], 1).astype(np.float32)


def head_boxes(points68: Float[np.ndarray, "n 68 2"], hw: tuple[int, int]) -> Int[np.ndarray, "n 4"]:
    """(x0, y0, x1, y1) around the head, AD-NeRF's face_rect x, y, x + w, y + h (§2.4): 1.5 times the half width of all
    points to both sides of their middle, 1.15 times the height from the root of the nose (27) to the chin (8) up and
    down; within the picture, the last row and column included."""
    x, y, (h, w) = points68[..., 0].astype(np.float64), points68[..., 1].astype(np.float64), hw
    cx = ((x.min(1) + x.max(1)) / 2).astype(int)
    cy = y[:, 27].astype(int)
    half_w = ((x.max(1) - cx) * 1.5).astype(int)
    half_h = ((y[:, 8] - cy) * 1.15).astype(int)
    x0, y0 = np.clip(cx - half_w, 0, w - 1), np.clip(cy - half_h, 0, h - 1)
    wide, high = np.clip(2 * half_w, 0, w - 1 - x0), np.clip(2 * half_h, 0, h - 1 - y0)
    return np.stack([x0, y0, x0 + wide, y0 + high], 1).astype(np.int32)


def training_size(height: int, width: int, size: int) -> tuple[int, int]:
    """(h, w) with the longer side `size`; the picture's own where size is 0 or not smaller."""
    longer = max(height, width)
    if size < 0:
        raise UserError(f"size is {size}, expected 0 (the dataset's own) or a number of pixels")
    if size == 0 or size >= longer:
        return height, width
    return max(1, round(height * size / longer)), max(1, round(width * size / longer))


def scale_boxes(boxes: Int[np.ndarray, "n 4"], old: tuple[int, int], new: tuple[int, int]) -> Int[np.ndarray, "n 4"]:
    """Boxes of a picture of (h, w) = old in one of size new: corner and side rounded, so squares stay square."""
    (h, w), (nh, nw) = old, new
    factor = np.array([nw / w, nh / h])
    side = np.maximum(1, np.rint((boxes[:, 2:] - boxes[:, :2]) * factor)).astype(np.int64)
    low = np.clip(np.rint(boxes[:, :2] * factor).astype(np.int64), 0, np.array([nw, nh]) - 1)
    high = np.minimum(low + side, [nw, nh])
    return np.concatenate([low, high], 1).astype(np.int32)


def inside(
    boxes: Num[np.ndarray, "B 4"], row: Int[np.ndarray, "B R"], column: Int[np.ndarray, "B R"]
) -> Bool[np.ndarray, "B R"]:
    """Whether pixel centres [B, R] lie in the boxes [B, 4] of their frames."""
    x0, y0, x1, y1 = boxes.T[..., None]
    return (column + 0.5 > x0) & (column + 0.5 < x1) & (row + 0.5 > y0) & (row + 0.5 < y1)
