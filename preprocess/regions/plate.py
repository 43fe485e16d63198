"""Background plate: what stands behind the person, from a sample of frames, in constant memory.

Per pixel the colour comes from the sampled frame in which the nearest pixel of the person is farthest away, if that
is more than 5 pixels (at 512; scaled with the size); where no frame is that clear, the colour is taken from the
nearest pixel that is filled, and smoothed more the deeper it lies in what was never seen (the copies would show as
rays around the head). Only the best distance and the colour so far are held, and small copies of the frames, by which
the stage notices a background that moves and labels that take the background for the person.
"""

from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, UInt8

from preprocess import checks, chunks
from preprocess.checks import GOOD, Check, judge
from preprocess.resumable import progress
from tkjax.errors import UserError
from tkjax.host.files import write_atomic
from tkjax.media.images import decode_png, decode_rgb, encode_png

SAMPLES = 60
CLEAR = 5 / 512  # of the longer side
SMALL_PX = 96  # longer side of the copies in which movement is looked for; noise is averaged away
MOVED = 20.0  # levels from the usual colour of a place at which the background has moved there
MOVING = 0.04  # share of such pixels from which it counts as moving; a news studio shows 0.02, panned scenery 0.13
SAME = 6.0  # levels within which a pixel of the person shows what stands behind it
INSIDE_WARN, INSIDE_FAIL = 0.12, 0.5  # share of such pixels; good labels before a plain wall give up to 0.04


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


def small(picture: np.ndarray) -> np.ndarray:
    """A picture with its longer side at most SMALL_PX, by area."""
    h, w = picture.shape[:2]
    s = min(1.0, SMALL_PX / max(h, w))
    return cv2.resize(picture, (max(1, round(w * s)), max(1, round(h * s))), interpolation=cv2.INTER_AREA)


def moved_share(pictures: UInt8[np.ndarray, "n h w 3"], background: Bool[np.ndarray, "n h w"]) -> float:
    """Share of the background of small pictures that is more than MOVED levels from what its place usually shows (the
    median over the frames that show it), after the brightness of each picture has been evened out; 0 without any."""
    if not background.any():
        return 0.0
    seen = np.ma.masked_array(pictures.astype(np.float32), np.repeat(~background[..., None], 3, -1))
    off = seen - np.ma.median(seen, 0)
    off -= np.ma.median(off.reshape(len(off), -1, 3), 1)[:, None, None]
    return float((np.abs(off).max(-1).filled(0) > MOVED)[background].mean())


def inside_share(
    pictures: UInt8[np.ndarray, "n h w 3"],
    person: Bool[np.ndarray, "n h w"],
    plate: UInt8[np.ndarray, "h w 3"],
    filled: Bool[np.ndarray, "h w"],
) -> float:
    """Share of the person, where the plate is known, that looks like the plate behind it; NaN where nowhere is."""
    known = person & filled
    if not known.any():
        return float("nan")
    off = np.abs(pictures.astype(np.float32) - plate).max(-1)
    return float((off < SAME)[known].sum() / person.sum())


def _judge(looks: list[tuple[np.ndarray, np.ndarray]], picture: np.ndarray, filled: np.ndarray) -> list[Check]:
    """The checks of the plate: whether the background moves and, where it does not, whether the person shows it."""
    pictures = np.stack([rgb for rgb, _ in looks])
    grown = np.stack([cv2.dilate(p.astype(np.uint8), np.ones((7, 7), np.uint8)) == 0 for _, p in looks])
    moved = moved_share(pictures, grown)
    message = (
        f"{moved:.0%} of the background changes over the clip (the camera moves, or leaves, screens or people do): the "
        "avatar gets one still picture in its place, and outlines may be wrong; film with a fixed "
        "camera before something that stands still"
    )
    out = [judge("background", "share of the background that moves", moved, warn=MOVING, message=message)]
    if out[0].verdict != GOOD:
        return out
    person = np.stack([cv2.erode(p.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0 for _, p in looks])
    inside = inside_share(pictures, person, small(picture), small(filled.astype(np.uint8) * 255) > 254)
    message = (
        f"{inside:.0%} of what is labelled as the person shows the background's colours; if the contact sheet shows "
        "background in the torso or head, film before a wall of another colour or name a screen with --background_ref"
    )
    if not np.isnan(inside):
        words = "share of the person that looks like the background behind"
        out.append(judge("labels", words, inside, warn=INSIDE_WARN, fail=INSIDE_FAIL, message=message))
    return out


def constant_plate(folder: Path, height: int, width: int, rgb: tuple[int, int, int]) -> None:
    """Stage of a keyed clip: the constant colour that stands behind its person."""
    write_atomic(folder / "background.png", encode_png(np.full((height, width, 3), rgb, np.uint8)))
    write_atomic(folder / "filled.png", encode_png(np.full((height, width), 255, np.uint8)))


def plate(folder: Path, frames: Path, labels: Path, n_frames: int) -> None:
    """Stage: background.png, filled.png (255 where a frame showed the background) and their checks. UserError where the
    labels leave no background."""
    chosen, looks = sample_frames(n_frames), []

    def pairs():
        for i in progress(chosen, len(chosen), "plate"):
            rgb, person = decode_rgb(chunks.picture(frames, i)), decode_png(chunks.picture(labels, i, "label")) > 0
            looks.append((small(rgb), small(person.astype(np.uint8) * 255) > 127))
            yield rgb, person

    first = decode_rgb(chunks.picture(frames, 0))
    try:
        picture, filled = plate_from(pairs(), CLEAR * max(first.shape[:2]))
    except ValueError as e:
        raise UserError(f"{e}: the labels take the whole picture for it; give a clip that shows some background") from e
    write_atomic(folder / "background.png", encode_png(picture))
    write_atomic(folder / "filled.png", encode_png(filled.astype(np.uint8) * 255))
    checks.write(folder, _judge(looks, picture, filled))
