"""What stands behind the person of a keyed clip, learnt from sampled frames: see `learn`."""

from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np

from preprocess.keying import matting
from preprocess.keying.backdrop import OWN_ALPHA, TARGET, Hue, Reference
from preprocess.keying.matting import Screen
from preprocess.resumable import progress
from tkjax.errors import UserError
from tkjax.media import video
from tkjax.media.images import read_rgb, resize_area

SAMPLES = 24
SMALL_PX = 480  # longer side of the pictures that the screen is learnt from; a lit screen is smooth
LEAST = 0.04  # share of the pictures that must show the screen


def small(rgb: np.ndarray) -> np.ndarray:
    s = min(1.0, SMALL_PX / max(rgb.shape[:2]))
    return rgb if s == 1 else resize_area(rgb, (max(1, round(rgb.shape[0] * s)), max(1, round(rgb.shape[1] * s))))


def learn(pictures: Iterable[np.ndarray], reference: Reference, name: str) -> Screen:
    """The screen from rgb uint8 pictures [H,W,3] of one size; only small copies are held.

    A colour: pixels of its hue (grey ones: of about its value) show what it really looks like in this light; their
    mean over the clip is the plate, continued behind the person. A plate: the picture as it is; the noise is that of
    the pixels that look like it. UserError when the clip does not show it.
    """
    looks = [small(p) for p in pictures]
    if reference.plate is not None:
        return _of_plate(looks, reference.plate, name)
    stack = np.stack(looks).astype(np.float32)
    shows = _shows(stack, np.array(reference.colour, np.float32))
    if shows.mean() < LEAST:
        raise UserError(
            f"{name} shows the background colour {reference.identity} in {shows.mean():.1%} of its pictures; "
            "name the colour that stands behind the person with --background_ref, or give a picture of the empty scene"
        )
    key = np.median(stack[shows], 0)
    hue = Hue.of(key)
    if hue is not None:
        share = hue.excess(stack) / float(hue.excess(key))
        shows &= (share > 0.7) & (share < 1.4)
    count = shows.sum(0)
    mean = (stack * shows[..., None]).sum(0) / np.maximum(count, 1)[..., None]
    sure = count >= max(1, len(looks) // 12)
    sure = sure if sure.any() else count > 0
    plate = cv2.GaussianBlur(matting.extend(mean, sure), (0, 0), 2.0)
    if hue is None:
        return Screen(plate, None, _spread(np.sqrt(((stack - plate) ** 2).mean(-1))[shows]))
    return Screen(plate, hue, _spread(np.abs(1 - hue.excess(stack) / np.maximum(hue.excess(plate), 10))[shows]))


def _shows(stack: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """Where pictures [n,h,w,3] show the colour: its hue at some saturation, or without a hue about its value."""
    grey = stack.mean(-1, keepdims=True)
    towards = colour - colour.mean()
    if np.linalg.norm(towards) < 40:
        off = np.abs(stack - colour).max(-1)
        near = off < 60
        level = np.median(stack[near], 0) if near.any() else colour
        return np.abs(stack - level).max(-1) < 25
    chroma = stack - grey
    size = np.linalg.norm(chroma, axis=-1)
    return (chroma @ (towards / np.linalg.norm(towards)) > 0.85 * size) & (size > 25)


def _spread(x: np.ndarray) -> float:
    """Standard deviation from the median of absolute deviations; at small size noise is averaged, so doubled."""
    return 2 * 1.4826 * float(np.median(x)) if x.size else 0.0


def _of_plate(looks: list[np.ndarray], path: Path, name: str) -> Screen:
    plate = read_rgb(path)
    h, w = looks[0].shape[:2]
    if abs(plate.shape[0] * w - plate.shape[1] * h) > 0.02 * plate.shape[0] * w:
        raise UserError(
            f"{path} has {plate.shape[1]}x{plate.shape[0]} pixels, another shape than the pictures of {name}; give a "
            "clean plate taken by the same camera"
        )
    off = np.stack(looks).astype(np.float32) - resize_area(plate, (h, w)).astype(np.float32)
    off -= np.clip(np.median(off.reshape(len(off), -1, 3), 1), -40, 40)[:, None, None]  # exposure
    far = np.sqrt((off**2).sum(-1))
    like = far < 25
    if like.mean() < LEAST:
        raise UserError(f"{path} is not the background of {name}: {like.mean():.1%} of the pictures look like it")
    return Screen(plate, None, _spread(far[like] / np.sqrt(3)))


def sampled(source: Path, n_frames: int, fps: float) -> Iterable[np.ndarray]:
    """Evenly spaced frames of a clip, small."""
    step = max(1, n_frames // SAMPLES)
    frames = video.read_frames_at_fps(source, fps)
    for i, rgb in enumerate(progress(frames, n_frames, "screen")):
        if i % step == 0:
            yield small(rgb)


def screen(folder: Path, source: Path, n_frames: int, fps: float, reference: Reference) -> None:
    """Stage: screen.npz with plate, hue's high channels (empty: none) and noise."""
    if reference == OWN_ALPHA:
        found = Screen(np.full((1, 1, 3), TARGET, np.uint8), None, 0.0, own_alpha=True)
    else:
        found = learn(sampled(source, n_frames, fps), reference, source.name)
    high = np.array(found.hue.high if found.hue else (), np.int64)
    np.savez(
        folder / "screen.npz",
        plate=found.plate,
        high=high,
        noise=np.float64(found.noise),
        own_alpha=np.bool_(found.own_alpha),
    )


def load(folder: Path) -> Screen:
    """The screen of a finished stage."""
    with np.load(folder / "screen.npz", allow_pickle=False) as z:
        high = tuple(z["high"].tolist())
        hue = Hue(high, tuple(c for c in range(3) if c not in high)) if high else None
        return Screen(z["plate"], hue, float(z["noise"]), bool(z["own_alpha"]))
