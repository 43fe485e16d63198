"""Torso pictures: neck and clothes as RGBA, continued behind the head so that nothing opens when the head moves.

The rule of the AD-NeRF line (its sizes are for 512 pixels; here they scale with the height of the picture):
- clothes: in each column whose topmost torso pixel has head directly above, its colour goes up 9 rows, darkened by
  0.98 a row;
- neck: its mask grows 3 pixels up and down; in each column whose topmost neck pixel has head directly above, the
  colour min(count - 1, 4) pixels below it goes up 53 rows, darkened by 0.98 a row; only this part is blurred
  (5x5 Gaussian, sigma 4).
- alpha is 255 on clothes, grown neck and both in-paints, else 0 (colour 0 too).
Stricter than the original: in-painting stays where the frame shows head, so no neck appears beside it.
"""

from concurrent.futures import Executor
from pathlib import Path

import cv2
import numpy as np

from preprocess import chunks
from preprocess.keying.backdrop import TARGET
from preprocess.resumable import progress
from preprocess.workers import ordered
from tkjax.contract import LABEL_HEAD, LABEL_NECK, LABEL_TORSO
from tkjax.media.images import decode_png, decode_rgb, encode_png

DARKEN = 0.98
REFERENCE_PX = 512
TORSO_ROWS, NECK_ROWS, PUSH_DOWN, GROW = 9, 53, 4, 3


def _columns_up(rgb, part, head, rows: int, push: int, canvas: np.ndarray) -> np.ndarray:
    """Continue `part` upwards under the head into canvas; returns the mask of what was painted."""
    height = part.shape[0]
    columns = np.flatnonzero(part.any(0))
    painted = np.zeros_like(part)
    if not len(columns):
        return painted
    top = part[:, columns].argmax(0)
    ok = top > 0
    ok[ok] = head[top[ok] - 1, columns[ok]]
    columns, top = columns[ok], top[ok]
    top = top + np.minimum(part[:, columns].sum(0) - 1, push)
    top = np.minimum(top, height - 1)
    colours = rgb[top, columns].astype(np.float32)
    step = np.arange(rows)
    y = top[None] - step[:, None]
    inside = y >= 0
    y = np.maximum(y, 0)
    x = np.broadcast_to(columns, y.shape)
    may = inside & (head | part)[y, x]
    shades = (colours[None] * (DARKEN**step)[:, None, None]).astype(np.uint8)
    canvas[y[may], x[may]] = shades[may]
    painted[y[may], x[may]] = True
    return painted


def torso_picture(rgb: np.ndarray, label: np.ndarray) -> np.ndarray:
    """RGBA uint8 [H,W,4] of neck and clothes with the in-painted area, from a frame and its labels [H,W]."""
    height = rgb.shape[0]
    scale = height / REFERENCE_PX

    def scaled(n: int) -> int:
        return max(1, round(n * scale))

    head, torso = label == LABEL_HEAD, label == LABEL_TORSO
    canvas = rgb.copy()
    torso_up = _columns_up(rgb, torso, head, scaled(TORSO_ROWS), 0, canvas)
    grow = np.ones((2 * scaled(GROW) + 1, 1), np.uint8)
    neck = cv2.dilate((label == LABEL_NECK).astype(np.uint8), grow) > 0
    neck_up = _columns_up(rgb, neck, head, scaled(NECK_ROWS), scaled(PUSH_DOWN), canvas)
    mask = neck | torso | torso_up | neck_up
    blurred = cv2.GaussianBlur(np.where(mask[..., None], canvas, rgb), (5, 5), 4)
    canvas[neck_up] = blurred[neck_up]
    return np.concatenate([np.where(mask[..., None], canvas, 0), mask[..., None].astype(np.uint8) * 255], -1).astype(
        np.uint8
    )


def soft_edges(rgba: np.ndarray, rgb: np.ndarray, label: np.ndarray, alpha: np.ndarray, behind) -> np.ndarray:
    """The torso picture of a keyed frame with the matte as its alpha along the outline, and there the straight colour
    of rgb = a F + (1 - a) `behind`: over the plate it then equals the frame."""
    body = (label == LABEL_NECK) | (label == LABEL_TORSO)
    person = label > 0
    _, nearest = cv2.distanceTransformWithLabels(
        (~person).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    of_body = np.zeros(nearest.max() + 1, bool)
    of_body[nearest[person]] = body[person]
    soft = of_body[nearest] & (alpha > 0) & (alpha < 255) & (label != LABEL_HEAD)
    a = alpha[soft][:, None] / np.float32(255)
    out = rgba.copy()
    out[soft, :3] = np.rint(np.clip((rgb[soft] - (1 - a) * np.asarray(behind, np.float32)) / a, 0, 255))
    out[soft, 3] = alpha[soft]
    out[(label == 0) & (alpha == 0)] = 0  # the neck grows up and down, but not beyond the matte
    return out


def torso_chunk(frames: str, labels: str, index: int) -> list[bytes]:
    """Worker: RGBA PNGs of one chunk."""
    cv2.setNumThreads(1)
    masks = chunks.unpack(chunks.read_chunk(Path(labels), index), "label")
    pictures = chunks.read_chunk(Path(frames), index)
    mattes = chunks.unpack(pictures, "alpha") if "alpha_bytes" in pictures else [None] * len(masks)
    out = []
    for image, mask, matte in zip(chunks.unpack(pictures, "image"), masks, mattes, strict=True):
        rgb, label = decode_rgb(image), decode_png(mask)
        picture = torso_picture(rgb, label)
        out.append(encode_png(picture if matte is None else soft_edges(picture, rgb, label, decode_png(matte), TARGET)))
    return out


def torso(folder: Path, frames: Path, labels: Path, n_frames: int, executor: Executor) -> None:
    """Stage: chunks of RGBA PNGs (`torso`)."""
    todo = [i for i in range(len(chunks.spans(n_frames))) if not chunks.has_chunk(folder, i)]
    results = ordered(executor, torso_chunk, ((str(frames), str(labels), i) for i in todo))
    done = sum(b - a for i, (a, b) in enumerate(chunks.spans(n_frames)) if i not in set(todo))
    for i, blobs in zip(todo, progress(results, n_frames, "torso", done=done), strict=True):
        chunks.write_chunk(folder, i, chunks.pack("torso", blobs))
