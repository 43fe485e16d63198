"""How open a mouth looks: one measure for true frames, rendered frames and any other picture (numpy only)."""

import numpy as np
from jaxtyping import Float, UInt8

# Cavity: darker than anything on a lit face. Teeth: paler than skin and lips. Display values 0…255, and
# saturation (max - min) / max. The steps are soft, so that a blurred picture measures what it shows.
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


def mouth_opening(rgb: UInt8[np.ndarray, "H W 3"], lips_box) -> float:
    """Area fraction of cavity and teeth colours inside lips_box = (x0, y0, x1, y1), half open, pixels; 0…1."""
    x0, y0, x1, y1 = (int(v) for v in lips_box)
    crop = np.asarray(rgb)[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)]
    if crop.size == 0:
        raise ValueError(f"lips_box {(x0, y0, x1, y1)} covers no pixel of a picture of {np.asarray(rgb).shape[:2]}.")
    return float(inside_weight(crop).mean())
