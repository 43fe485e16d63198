"""Pictures of one frame of an old folder as the contract wants them.

- image: the raw frame (`ori_imgs`); its own bytes where they are a baseline JPEG of the right size, so nothing is lost;
- label: from the colour map `parsing`. Files hold head (255,0,0), neck (0,255,0), torso (0,0,255), background white in
  blue-green-red order (er-nerf.md §2 "Parsing"), which a picture library shows as a blue head and a red torso;
- class: `parsing_label`, CelebAMask class ids (avatar-ernerf.md §2.4);
- torso: `torso_imgs`, RGBA; where there is none it is made by the same rule from frame and labels.
`gt_imgs` is what the originals train on: the frame with the plate where the label is background. The contract's loader
makes the same picture from image, label and plate; `difference` says how far the two are apart.
"""

import dataclasses
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from tkjax.contract import LABEL_BACKGROUND, LABEL_HEAD, LABEL_NECK, LABEL_TORSO, picture_header
from tkjax.errors import UserError
from tkjax.media.images import (
    decode_ids,
    decode_png,
    decode_rgb,
    encode_jpeg,
    encode_png,
    is_upright,
    resize_area,
    resize_nearest,
)

QUALITY = 96
# CelebAMask class -> label: 1-13, 17, 18 head; 14, 15 neck; 16 torso; 0 background (rad-nerf.md §2.2)
CLASSES = np.full(256, LABEL_BACKGROUND, np.uint8)
CLASSES[1:14], CLASSES[14:16], CLASSES[16], CLASSES[17:19] = LABEL_HEAD, LABEL_NECK, LABEL_TORSO, LABEL_HEAD
# bits (red, green, blue above half) -> label; colours between the four go to the nearest, black was never labelled
_BITS = np.array(
    [LABEL_BACKGROUND, LABEL_HEAD, LABEL_NECK, LABEL_NECK, LABEL_TORSO, LABEL_TORSO, LABEL_TORSO, LABEL_BACKGROUND],
    np.uint8,
)


@dataclasses.dataclass(frozen=True)
class Files:
    """Where the pictures of one frame lie; None where there is none."""

    image: Path | None
    target: Path | None
    parsing: Path | None
    classes: Path | None
    torso: Path | None


@dataclasses.dataclass(frozen=True)
class Pictures:
    """One frame. problems: what had to be made up or left, in words that are the same for every frame.

    image is None where no picture can be read, label where no labels can; torso follows from both.
    """

    image: bytes | None
    label: bytes | None
    torso: bytes | None
    classes: bytes | None
    difference: float | None  # PSNR in dB of the derived target against the folder's own
    problems: tuple[str, ...]


def labels_of_colours(rgb: UInt8[np.ndarray, "H W 3"], swapped: bool = False) -> UInt8[np.ndarray, "H W"]:
    """Labels of a colour map as a picture library reads it; swapped: files that were written red-green-blue."""
    bits = (rgb > 127).astype(np.uint8)
    red, blue = (2, 0) if swapped else (0, 2)
    return _BITS[4 * bits[..., red] + 2 * bits[..., 1] + bits[..., blue]]


def is_swapped(pairs: list[tuple[np.ndarray, np.ndarray]]) -> bool:
    """Whether colour maps were written in the other order: (map [H,W,3], landmarks [68,2]) of some frames.

    Two things must agree: nearly all points inside the face lie on the torso's colour and next to none on the head's,
    and the torso's colour stands above the head's in the picture.
    """
    hits, rows = {LABEL_HEAD: 0, LABEL_TORSO: 0}, {LABEL_HEAD: [], LABEL_TORSO: []}
    for rgb, points in pairs:
        h, w = rgb.shape[:2]
        x = np.clip(points[17:].astype(int), 0, [w - 1, h - 1])
        label = labels_of_colours(rgb)
        for part in hits:
            hits[part] += int((label[x[:, 1], x[:, 0]] == part).sum())
            rows[part].extend(np.flatnonzero((label == part).any(1)).tolist())
    if not (rows[LABEL_HEAD] and rows[LABEL_TORSO]):
        return False
    above = np.mean(rows[LABEL_TORSO]) < np.mean(rows[LABEL_HEAD])
    total = 51 * len(pairs)
    return bool(above and hits[LABEL_TORSO] > 0.6 * total and hits[LABEL_HEAD] < 0.1 * total)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """dB between two 8-bit pictures, 99 where they are equal."""
    error = float(((a.astype(np.float32) - b.astype(np.float32)) ** 2).mean())
    return 99.0 if error == 0 else min(99.0, 10 * np.log10(255**2 / error))


def read_image(path: Path, size: tuple[int, int]) -> tuple[bytes, np.ndarray] | None:
    """(jpeg, decoded rgb) of a frame; None where it cannot be read or has another size."""
    try:
        data = path.read_bytes()
        rgb = decode_rgb(data)
    except (OSError, UserError):
        return None
    if rgb.shape[:2] != size:
        return None
    if picture_header(data) == ("jpeg", size[1], size[0], 3) and _baseline(data) and is_upright(data):
        return data, rgb
    data = encode_jpeg(rgb, QUALITY)
    return data, decode_rgb(data)


def _baseline(data: bytes) -> bool:
    """Whether a JPEG is sequential (start-of-frame marker 0 or 1)."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return marker in (0xC0, 0xC1)
        at += 1 if marker == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return False


def read_label(path: Path, size: tuple[int, int], swapped: bool) -> np.ndarray | None:
    """Labels of a colour map at `size`; None where it cannot be read."""
    try:
        label = labels_of_colours(decode_rgb(path.read_bytes()), swapped)
    except (OSError, UserError):
        return None
    return label if label.shape == size else resize_nearest(label, size)


def read_classes(path: Path, size: tuple[int, int]) -> np.ndarray | None:
    """Class ids 0..18 at `size`; None where the file holds anything else."""
    try:
        ids = decode_ids(path.read_bytes())
    except (OSError, UserError):
        return None
    if ids is None or ids.min() < 0 or ids.max() > 18:
        return None
    ids = ids.astype(np.uint8)
    return ids if ids.shape == size else resize_nearest(ids, size)


def read_torso(path: Path, size: tuple[int, int]) -> bytes | None:
    """The RGBA png of a torso; None where it cannot be used."""
    try:
        data = path.read_bytes()
        rgba = decode_png(data)
    except (OSError, UserError):
        return None
    if rgba.ndim != 3 or rgba.shape[2] != 4:
        return None
    if picture_header(data) == ("png", size[1], size[0], 4) and is_upright(data):
        return data
    return encode_png(rgba if rgba.shape[:2] == size else resize_area(np.ascontiguousarray(rgba), size))


def convert(files: Files, size: tuple[int, int], plate: np.ndarray, swapped: bool, want_torso: bool) -> Pictures:
    """All pictures of a frame. want_torso: whether the folder has torso pictures, so that a missing one is a hole."""
    problems = []

    def problem(text: str) -> None:
        problems.append(text)

    image = read_image(files.image, size) if files.image else None
    target = read_image(files.target, size) if files.target else None
    if files.image and image is None:
        problem("the picture cannot be read or has another size")
    if files.target and target is None:
        problem("the target picture (gt_imgs or com_imgs) cannot be read; not needed")
    if image is None and target is not None:
        problem("no raw frame: the target picture stands in for it")
        image = target
    classes = read_classes(files.classes, size) if files.classes else None
    if files.classes and classes is None:
        problem("parsing_label holds no class ids 0..18")
    label = read_label(files.parsing, size, swapped) if files.parsing else None
    if files.parsing and label is None:
        problem("the parsing picture cannot be read")
    if label is None and classes is not None:
        problem("no parsing picture: labels from parsing_label")
        label = CLASSES[classes]
    torso = read_torso(files.torso, size) if files.torso else None
    difference = None
    if image is not None and label is not None:
        derived = np.where((label != LABEL_BACKGROUND)[..., None], image[1], plate)
        difference = psnr(derived, target[1]) if target is not None and target is not image else None
        if torso is None:
            if want_torso:
                problem("no usable torso picture: made from the frame and its labels")
            torso = _make_torso(derived, label)
    return Pictures(
        image[0] if image else None,
        None if label is None else encode_png(label),
        torso,
        None if classes is None else encode_png(classes),
        difference,
        tuple(problems),
    )


def _make_torso(target: np.ndarray, label: np.ndarray) -> bytes:
    from preprocess.regions.torso import torso_picture

    return encode_png(torso_picture(target, label))
