"""How open a mouth looks: measures for true frames, rendered frames and any other picture (numpy only).

`mouth_opening` counts the pixels that look like the inside of a mouth. It is exact on sharp pictures, but half a pixel
of blur already takes 8 % of it, because thin gaps lose their darkness. `LinearOpening` is the same area by a linear
function of the picture, which blur cannot move: it compares pictures of different sharpness.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, UInt8

# Cavity: darker than anything on a lit face. Teeth: paler than skin and lips. Display values 0…255, and
# saturation (max - min) / max. The steps are soft, so that a pixel on an edge counts in part.
CAVITY_MAX, CAVITY_SOFT = 88.0, 9.0
TEETH_SATURATION, TEETH_SOFT = 0.20, 0.022


def inside_weight(rgb: UInt8[np.ndarray, "*B 3"]) -> Float[np.ndarray, "*B"]:
    """How much each pixel looks like the inside of a mouth, 0…1: dark (cavity) or pale and not red (teeth)."""
    rgb = np.asarray(rgb, np.float32)
    high, low = rgb.max(-1), rgb.min(-1)
    dark = 1.0 / (1.0 + np.exp(np.clip((high - CAVITY_MAX) / CAVITY_SOFT, -40, 40)))
    saturation = (high - low) / np.maximum(high, 1.0)
    pale = 1.0 / (1.0 + np.exp(np.clip((saturation - TEETH_SATURATION) / TEETH_SOFT, -40, 40)))
    return np.maximum(dark, pale)


def _crop(rgb: UInt8[np.ndarray, "H W 3"], box) -> UInt8[np.ndarray, "h w 3"]:
    x0, y0, x1, y1 = (int(v) for v in box)
    crop = np.asarray(rgb)[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)]
    if crop.size == 0:
        raise ValueError(f"lips_box {(x0, y0, x1, y1)} covers no pixel of a picture of {np.asarray(rgb).shape[:2]}.")
    return crop


def mouth_opening(rgb: UInt8[np.ndarray, "H W 3"], lips_box) -> float:
    """Area fraction of cavity and teeth colours inside lips_box = (x0, y0, x1, y1), half open, pixels; 0…1."""
    return float(inside_weight(_crop(rgb, lips_box)).mean())


def widened(lips_box) -> tuple[int, int, int, int]:
    """The box with the ring around it: a sixth of its sides on every side, at least a pixel."""
    x0, y0, x1, y1 = (int(v) for v in lips_box)
    u, v = max((x1 - x0) // 6, 1), max((y1 - y0) // 6, 1)
    return x0 - u, y0 - v, x1 + u, y1 + v


def _contrast(rgb: UInt8[np.ndarray, "H W 3"], lips_box) -> Float[np.ndarray, "3"]:
    """Mean colour of the box minus that of the ring around it."""
    inner, outer = _crop(rgb, lips_box), _crop(rgb, widened(lips_box))
    sums = [crop.sum((0, 1), dtype=np.float64) for crop in (inner, outer)]
    counts = [crop.shape[0] * crop.shape[1] for crop in (inner, outer)]
    return sums[0] / counts[0] - (sums[1] - sums[0]) / max(counts[1] - counts[0], 1)


@dataclasses.dataclass(frozen=True)
class LinearOpening:
    """opening(I) = w · (mean colour of the lips box - mean colour of the ring around it) + b, an area fraction.

    It is linear in the picture I: blur that is small beside the box leaves it alone, and so does a colour cast that
    skin and mouth share. w and b are the least-squares fit to `mouth_opening` of true frames; they belong to
    that subject and its light. On other frames of it, with half the opening, it follows within a tenth.
    """

    weights: Float[np.ndarray, "3"]
    bias: float

    def __call__(self, rgb: UInt8[np.ndarray, "H W 3"], lips_box) -> float:
        return float(_contrast(rgb, lips_box) @ self.weights + self.bias)


def fit_opening(pictures: Sequence[UInt8[np.ndarray, "_ _ 3"]], lips_boxes: Int[np.ndarray, "n 4"]) -> LinearOpening:
    """The linear measure of one subject from its true pictures and the lips' boxes in them."""
    rows = np.stack([_contrast(picture, box) for picture, box in zip(pictures, lips_boxes, strict=True)])
    true = np.array([mouth_opening(picture, box) for picture, box in zip(pictures, lips_boxes)])
    weights = np.linalg.lstsq(rows - rows.mean(0), true - true.mean(), rcond=None)[0]
    return LinearOpening(weights, float(true.mean() - rows.mean(0) @ weights))
