"""The whole frames of an Avatar-ERNeRF folder: input.mp4, alpha.mp4, head_bbox.json, model_data.json.

input.mp4 holds the person over the target background, I = trunc(a I0 + (1 - a) B) (avatar-ernerf.md §2.4 task 2), and
alpha.mp4 a, as a lossy grey video. Where B is one colour the clip is a keyed one for the contract: full.mp4 gets the
person's own colour F = (I - (1 - a) B) / a, continued where a is small, and full_alpha.mp4 a. Else full.mp4 shows what
input.mp4 shows. Both are encoded again: the originals' files have few key frames, and pasting walks back and forth.
"""

import dataclasses
import itertools
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8

from preprocess.importers.folder_layout import Notes
from preprocess.workers import ordered
from tkjax import contract
from tkjax.errors import UserError
from tkjax.formats.transforms import read_json
from tkjax.media import video
from tkjax.media.images import encode_png

# Names of colours (R, G, B) as Avatar-ERNeRF understands them: cyan and yellow are swapped there, and a folder that
# it made has the swapped colour behind the person (dossier §2.4 task 2).
COLOURS = {
    "black": (0, 0, 0), "white": (255, 255, 255), "gray": (128, 128, 128), "red": (255, 0, 0), "green": (0, 255, 0),
    "blue": (0, 0, 255), "cyan": (255, 255, 0), "fuchsia": (255, 0, 255), "yellow": (0, 255, 255),
}  # fmt: skip
ALIKE = 12  # levels between the colour that model_data.json names and the plate, which went through a codec
SNAP = 8  # alpha this near to 0 and 255 is that: the matte went through a codec
DEEPEST = 16  # levels of model_data.json; Avatar-ERNeRF writes 3
FAR_PX = 1e9  # no picture is so large
SURE = 0.25  # alpha from which the person's colour is solved


@dataclasses.dataclass
class Full:
    """facts: for the manifest's source. video, alpha: files, None where they are not used; trt: colour behind."""

    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    box: tuple[int, int, int, int] = (0, 0, 0, 0)
    video: Path | None = None
    alpha: Path | None = None
    trt: tuple[int, int, int] | None = None


def look(root: Path, ids: np.ndarray, size: tuple[int, int], plate: np.ndarray, notes: Notes) -> Full:
    """What there is of the whole frames; what cannot be used goes to the notes."""
    box_file, said, path = root / "head_bbox.json", root / "model_data.json", root / "input.mp4"
    data = read_json(said) if said.is_file() else {}
    out = Full()
    kept = {k: v for k, v in data.items() if k != "data_dir"}  # a path of another machine
    if kept and not _is_plain(kept):
        notes.said.append(f"model_data.json is not kept: it nests more than {DEEPEST} levels or has endless numbers")
    elif data:
        notes.used.add(said)
        notes.took.append("model_data.json -> source.model_data")
        out.facts["model_data"] = kept
    box = read_json(box_file).get("head_bbox") if box_file.is_file() else data.get("head_region")
    numbers = isinstance(box, list) and len(box) == 4 and all(type(x) in (int, float) for x in box)
    if not numbers or not all(abs(x) < FAR_PX for x in box):  # NaN is not below either
        if path.is_file() or box is not None:
            notes.said.append("no usable head_bbox: the head cannot be put back into the whole frame")
        return out
    out.box = tuple(int(x) for x in box)
    notes.used.add(box_file)
    info = _usable(path, int(ids[-1]) + 1, notes)
    if info is None:
        return out
    (x0, y0, x1, y1), w, h = out.box, info.width, info.height
    if not (0 <= x0 < x1 <= w and 0 <= y0 < y1 <= h):
        notes.said.append(f"input.mp4 is not used: head_bbox {list(out.box)} is not inside its {w}x{h} pixels")
        return out
    notes.used.add(path)
    out.video = path
    out.facts |= {"crop_px": list(out.box), "full_size": [w, h], "scale": size[1] / (x1 - x0)}
    notes.took.append(f"input.mp4 -> full.mp4, the frames are its crop {list(out.box)}")
    _look_for_alpha(out, root / "alpha.mp4", data.get("background_trt"), plate, int(ids[-1]) + 1, (w, h), notes)
    return out


def _is_plain(value: Any, depth: int = 0) -> bool:
    """Whether a value of a json may stand in a manifest: not too deep, and all of its numbers finite."""
    if depth > DEEPEST:
        return False
    if isinstance(value, dict | list):
        return all(_is_plain(v, depth + 1) for v in (value.values() if isinstance(value, dict) else value))
    return type(value) not in (int, float) or abs(value) < 2**63


def _usable(path: Path, frames: int, notes: Notes) -> video.VideoInfo | None:
    """Facts of a video that covers the frames 0 … frames - 1 at 25 a second; None (and a word) for others."""
    try:
        if not path.is_file():
            raise UserError("it does not exist, so the head cannot be put back into the whole frame")
        info = video.probe(path)
        if abs(info.fps - contract.FPS) > 0.01:
            raise UserError(f"it has {info.fps:g} frames a second instead of 25")
        if info.n_frames < frames:
            raise UserError(f"it has {info.n_frames} frames, the clip reaches {frames}")
    except UserError as e:
        notes.said.append(f"{path.name} is not used: {e}")
        return None
    return info


def _look_for_alpha(
    out: Full, path: Path, named: Any, plate: np.ndarray, frames: int, size: tuple[int, int], notes: Notes
) -> None:
    if not path.is_file():
        return
    trt = constant_colour(named, plate)
    if trt is None:
        notes.said.append("alpha.mp4 is not used: what stands behind the person is not one colour")
        return
    info = _usable(path, frames, notes)
    if info is None:
        return
    if (info.width, info.height) != size:
        notes.said.append(
            f"alpha.mp4 is not used: it has {info.width}x{info.height} pixels, input.mp4 {size[0]}x{size[1]}"
        )
        return
    notes.used.add(path)
    notes.took.append(f"alpha.mp4 -> full_alpha.mp4 and alpha; the colour {list(trt)} is taken out of the frames")
    out.alpha, out.trt = path, trt
    out.facts["background_trt"] = list(trt)


def constant_colour(named: Any, plate: UInt8[np.ndarray, "H W 3"]) -> tuple[int, int, int] | None:
    """The one colour behind the person: as model_data.json says, if the plate agrees, else the plate's own."""
    middle = np.median(plate.reshape(-1, 3), 0)
    if np.percentile(np.abs(plate.astype(float) - middle).max(-1), 95) > ALIKE:
        return None
    said = parse_colour(named)
    if said is not None and np.abs(np.array(said) - middle).max() <= ALIKE:
        return said
    return tuple(round(float(v)) for v in middle)


def parse_colour(named: Any) -> tuple[int, int, int] | None:
    """[r, g, b], "(r, g, b)" or a name; None for anything else. Nothing is evaluated."""
    if isinstance(named, str):
        if named.strip().lower() in COLOURS:
            return COLOURS[named.strip().lower()]
        if not re.fullmatch(r"\s*[(\[]?\s*[0-9]{1,3}\s*(,\s*[0-9]{1,3}\s*){2}[)\]]?\s*", named):
            return None
        named = [int(number) for number in re.findall("[0-9]+", named)]
    if isinstance(named, list | tuple) and len(named) == 3 and all(type(v) is int and 0 <= v <= 255 for v in named):
        return tuple(named)
    return None


def own_colour(
    rgb: UInt8[np.ndarray, "H W 3"], alpha: UInt8[np.ndarray, "H W"], trt: tuple[int, int, int]
) -> UInt8[np.ndarray, "H W 3"]:
    """The person's colour F of I = a F + (1 - a) B, continued smoothly where a is below SURE."""
    from preprocess.keying import matting

    a = alpha[..., None].astype(np.float32) / 255
    solved = np.clip((rgb - (1 - a) * np.array(trt, np.float32)) / np.maximum(a, SURE), 0, 255)
    sure = a[..., 0] >= SURE
    if not sure.all():
        solved = np.where(sure[..., None], solved, matting.extend(solved, sure))
    return np.clip(np.rint(solved), 0, 255).astype(np.uint8)


def _matte_of(picture: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H W"]:
    alpha = picture[..., 1]
    return np.where(alpha <= SNAP, 0, np.where(alpha >= 255 - SNAP, 255, alpha)).astype(np.uint8)


def encode(full: Full, ids: np.ndarray, size: tuple[int, int], folder: Path) -> Iterator[bytes | None]:
    """Write full.mp4 (and full_alpha.mp4) of the frames `ids` to `folder`; yields the matte of each crop, or None.

    The files are whole when the iterator is exhausted.
    """
    from preprocess.framing.full_frame import Part

    first, stop = int(ids[0]), int(ids[-1]) + 1
    colours = video.read_frames(full.video, first, stop)
    mattes = itertools.repeat(None) if full.alpha is None else video.read_frames(full.alpha, first, stop)
    parts: list[Part] = []
    written = 0
    with ThreadPoolExecutor(max_workers=2) as pool:
        items = ((full, rgb, grey, size) for rgb, grey in zip(colours, mattes, strict=False))
        for rgb, alpha, crop in ordered(pool, _prepare, items, 4):
            pictures = [rgb] if alpha is None else [rgb, alpha]
            if not parts:
                names = (contract.FULL, contract.FULL_ALPHA)
                parts = [Part(folder / name, p) for name, p in zip(names, pictures, strict=False)]
            for part, picture in zip(parts, pictures, strict=True):
                part.write(picture)
            written += 1
            yield crop
    for part in parts:
        part.close()
    if written < stop - first:
        ends = full.video.name if full.alpha is None else f"{full.video.name} or {full.alpha.name}"
        raise UserError(
            f"{full.video.parent}: {ends} ends after {written} of the {stop - first} frames although its header says "
            "more; mend it, or move it away to import without whole frames"
        )


def _prepare(full: Full, rgb, grey, size) -> tuple[np.ndarray, np.ndarray | None, bytes | None]:
    if grey is None:
        return rgb, None, None
    alpha = _matte_of(grey)
    x0, y0, x1, y1 = full.box
    part, (h, w) = np.ascontiguousarray(alpha[y0:y1, x0:x1]), size
    how = cv2.INTER_AREA if part.shape[0] > h else cv2.INTER_LINEAR
    return own_colour(rgb, alpha, full.trt), alpha, encode_png(cv2.resize(part, (w, h), interpolation=how))
