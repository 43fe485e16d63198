"""Faces in large pictures, and where the person stands in them: what framing a half- or full-body clip needs."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from preprocess.faces import landmarker
from preprocess.faces.landmarker import Faces
from preprocess.framing import head_box
from preprocess.keying import backdrop, matting, screen
from preprocess.regions import labels, segment
from tkjax.media.images import decode_rgb, encode_jpeg

TILES = (1.0, 0.5, 0.25)  # of the shorter side: the detector sees 128 pixels and needs a face of a tenth of them
LEAST_TILE = 200  # pixels; a face in it would be too small to train on
KEPT = 24  # looks whose pictures are kept for the mask
WINDOW = 1.7  # of the box: where the mask is looked for


def tiles(height: int, width: int) -> list[tuple[int, int, int]]:
    """(x0, y0, side) of half overlapping squares, large ones first; among equals the middle and the top first."""
    out = []
    for share in TILES:
        side = round(share * min(height, width))
        if side < LEAST_TILE and out:
            break
        rows, columns = (np.linspace(0, n - side, 1 + -(-2 * (n - side) // side)).round() for n in (height, width))
        level = [(int(x), int(y), side) for y in rows for x in columns]
        out += sorted(level, key=lambda t: (t[1], abs(t[0] + t[2] / 2 - width / 2)))
    return out


def visible(picture: np.ndarray) -> np.ndarray:
    """RGB of a look; one with its own alpha stands before the colour that it will have in the dataset."""
    if picture.shape[2] == 3:
        return picture
    return backdrop.blend(np.ascontiguousarray(picture[..., :3]), np.ascontiguousarray(picture[..., 3]))


def detect(model: str, rgb: np.ndarray) -> Faces:
    """Worker: the face of one picture, looked for in ever smaller parts of it where the whole shows none."""
    faces = landmarker.detect(model, [rgb])
    if faces.found[0]:
        return faces
    h, w = rgb.shape[:2]
    for x, y, side in tiles(h, w):
        part = landmarker.detect(model, [rgb[y : y + side, x : x + side]])
        if part.found[0]:
            part.landmarks[0, :, :2] += [x, y]
            return part
    return faces


class Album:
    """A few evenly spaced looks as JPEG, with their landmarks, from which the mask of the head is made."""

    def __init__(self, total: int):
        self._every, self._held = max(1, total // KEPT), {}

    def offer(self, i: int, rgb: np.ndarray) -> None:
        """Keep look number i if it is one of the chosen."""
        if i % self._every == 0:
            self._held[i] = encode_jpeg(rgb)

    def pictures(self) -> Iterator[tuple[int, np.ndarray]]:
        for i, data in self._held.items():
            yield i, decode_rgb(data)


@dataclasses.dataclass(frozen=True)
class Backdrop:
    """How to tell the person from what is behind: the folder of a screen stage, or the colours of the clip as learnt in
    a window (x0, y0, x1, y1 as shares of the picture)."""

    key: str | None = None
    colours: segment.Colours | None = None
    window: tuple[float, float, float, float] = (0, 0, 1, 1)


def learn(pictures: Sequence[np.ndarray], landmarks: Sequence[np.ndarray]) -> Backdrop:
    """The colours of a clip from looks (one size, landmarks [478,2] in their pixels) in a window around the face."""
    h, w = pictures[0].shape[:2]
    x0, y0, x1, y1 = head_box.default_box(np.stack(landmarks), h, w)
    grown = round((WINDOW - 1) / 2 * (x1 - x0))
    window = max(0, x0 - grown) / w, max(0, y0 - grown) / h, min(w, x1 + grown) / w, min(h, y1 + grown) / h
    parts = [_part(rgb, lm, window) for rgb, lm in zip(pictures, landmarks, strict=True)]
    return Backdrop(None, segment.learn([p for p, _, _ in parts], [lm for _, lm, _ in parts]), window)


def _part(rgb: np.ndarray, landmarks: np.ndarray, window: Sequence[float]) -> tuple[np.ndarray, np.ndarray, tuple]:
    """(small picture of the window, landmarks in it, (x0, y0, x1, y1) of the window in the picture)."""
    h, w = rgb.shape[:2]
    x0, y0, x1, y1 = (round(a * b) for a, b in zip(window, (w, h, w, h), strict=True))
    part = labels.small(np.ascontiguousarray(rgb[y0:y1, x0:x1]))
    scale = np.array([part.shape[1] / (x1 - x0), part.shape[0] / (y1 - y0)])
    return part, (np.asarray(landmarks, np.float64)[:, :2] - [x0, y0]) * scale, (x0, y0, x1, y1)


def _by_colour(backdrop: Backdrop, rgb: np.ndarray, landmarks: np.ndarray) -> tuple[np.ndarray, np.ndarray, tuple]:
    """(person in the small window, landmarks in it, the window) of one picture."""
    part, points, box = _part(rgb, landmarks, backdrop.window)
    posterior = segment.posterior(backdrop.colours, part, points)
    return segment.guided(posterior, labels.grey(part))[segment.BACKGROUND] < 0.5, points, box


def look(model: str, rgb: np.ndarray, key: str | None) -> tuple[Faces, np.ndarray | None]:
    """Worker: the face of one look and, of a keyed clip, `head_box.reaches` [3] by its matte."""
    faces = detect(model, visible(rgb))
    if key is None or not faces.found[0]:
        return faces, None
    alpha = matting.matte(screen.load(Path(key)), rgb)[0]
    return faces, head_box.reaches(alpha > 128, faces.landmarks[0])


def reaches(backdrop: Backdrop, pictures: Sequence[np.ndarray], landmarks: Sequence[np.ndarray]) -> np.ndarray:
    """`head_box.reaches` [n,3] of looks by the colours of the clip."""
    found = (_by_colour(backdrop, rgb, lm) for rgb, lm in zip(pictures, landmarks, strict=True))
    return np.array([head_box.reaches(person, points) for person, points, _ in found])


def person(model: str, rgb: np.ndarray, backdrop: Backdrop) -> np.ndarray:
    """Worker: where the person stands, bool [H,W] at the picture's size; nowhere without a matte or a face."""
    if backdrop.key is not None:
        return matting.matte(screen.load(Path(backdrop.key)), rgb)[0] > 128
    out = np.zeros(rgb.shape[:2], bool)
    faces = detect(model, rgb)
    if faces.found[0]:
        mask, _, (x0, y0, x1, y1) = _by_colour(backdrop, rgb, faces.landmarks[0])
        out[y0:y1, x0:x1] = cv2.resize(mask.astype(np.uint8), (x1 - x0, y1 - y0), interpolation=cv2.INTER_NEAREST) > 0
    return out
