"""Background plate: what stands behind the person, from a sample of frames, in constant memory.

Per pixel the colour comes from the sampled frame in which the nearest pixel of the person is farthest away, if that
is more than 5 pixels (at 512; scaled with the size); where no frame is that clear, the colour is taken from the
nearest pixel that is filled, and smoothed more the deeper it lies in what was never seen (the copies would show as
rays around the head). Only the best distance and the colour so far are held.
"""

from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np

from preprocess import chunks
from preprocess.stages import progress
from tkjax.files import write_atomic
from tkjax.images import decode_png, decode_rgb, encode_png

SAMPLES = 60
CLEAR = 5 / 512  # of the longer side


def plate_from(frames: Iterable[tuple[np.ndarray, np.ndarray]], clear_px: float) -> tuple[np.ndarray, np.ndarray]:
    """(plate [H,W,3] uint8, filled [H,W] bool) from pairs of picture and person mask [H,W] bool.

    ValueError when no pixel of any frame is clear of the person.
    """
    plate = best = None
    for rgb, person in frames:
        distance = cv2.distanceTransform((~person).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        if not person.any():
            distance[:] = float(sum(person.shape))
        if plate is None:
            plate, best = rgb.copy(), np.full(person.shape, -1.0, np.float32)
        better = distance > best
        plate[better], best[better] = rgb[better], distance[better]
    if plate is None or not (best > clear_px).any():
        raise ValueError("no pixel of the background is ever clear of the person")
    filled = best > clear_px
    return soften(fill_nearest(plate, filled), filled), filled


def fill_nearest(plate: np.ndarray, filled: np.ndarray) -> np.ndarray:
    """Copy the colour of the nearest filled pixel into those that are not."""
    _, label = cv2.distanceTransformWithLabels(
        (~filled).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    colour = np.zeros((label.max() + 1, 3), np.uint8)
    colour[label[filled]] = plate[filled]
    out = colour[label]
    out[filled] = plate[filled]
    return out


def soften(plate: np.ndarray, filled: np.ndarray) -> np.ndarray:
    """Blur the pixels that no frame showed, by a width that grows with their depth; the others stay."""
    depth = cv2.distanceTransform((~filled).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5)
    result = plate.astype(np.float32)
    for sigma in (2.0, 6.0, 18.0):
        sigma *= max(filled.shape) / 512
        blurred = cv2.GaussianBlur(result, (0, 0), sigma)
        share = np.clip(depth / (2 * sigma), 0, 1)[..., None]
        result = result * (1 - share) + blurred * share
    return np.where(filled[..., None], plate, np.round(result)).astype(np.uint8)


def sample_frames(n_frames: int, samples: int = SAMPLES) -> list[int]:
    """Evenly spaced frame numbers, at most one in 20 and at least 12 where the clip has them."""
    count = min(n_frames, max(12, min(samples, n_frames // 20)))
    return sorted({round(float(x)) for x in np.linspace(0, n_frames - 1, count)})


def constant_plate(folder: Path, height: int, width: int, rgb: tuple[int, int, int]) -> None:
    """Stage of a keyed clip: the constant colour that stands behind its person."""
    write_atomic(folder / "background.png", encode_png(np.full((height, width, 3), rgb, np.uint8)))
    write_atomic(folder / "filled.png", encode_png(np.full((height, width), 255, np.uint8)))


def plate(folder: Path, frames: Path, labels: Path, n_frames: int) -> None:
    """Stage: background.png and filled.png (255 where a frame showed the background)."""
    chosen = sample_frames(n_frames)

    def pairs():
        for i in progress(chosen, len(chosen), "plate"):
            label = decode_png(chunks.picture(labels, i, "label"))
            yield decode_rgb(chunks.picture(frames, i)), label > 0

    first = decode_rgb(chunks.picture(frames, 0))
    picture, filled = plate_from(pairs(), CLEAR * max(first.shape[:2]))
    write_atomic(folder / "background.png", encode_png(picture))
    write_atomic(folder / "filled.png", encode_png(filled.astype(np.uint8) * 255))
