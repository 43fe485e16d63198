"""How windows are cut from a sequence of features: alike for training, driving and arrays of the originals."""

import numpy as np


def cut_windows(
    rows: np.ndarray, frames: np.ndarray, window: int, hop: int, left: int, first: int = 0, end: int | None = None
) -> np.ndarray:
    """The windows of video frames, float32 [*frames, window, C]: steps hop·f - left … hop·f - left + window - 1.

    rows: [m, C], the steps first … first + m - 1 of the sequence; there are zeros outside them. frames: whole numbers
    of any shape. end: frames before 0, and from this one on, have windows of zeros alone; None: all frames have steps.
    """
    frames = np.asarray(frames, np.int64)
    steps = hop * frames[..., None] - left - first + np.arange(window)
    inside = (steps >= 0) & (steps < len(rows))
    if end is not None:
        inside &= ((frames >= 0) & (frames < end))[..., None]
    out = np.zeros((*steps.shape, rows.shape[1]), np.float32)
    out[inside] = rows[steps[inside]]
    return out
