"""What an avatar keeps of its clip: the frames that drive it, their layers and masks, and the whole source frames."""

import contextlib
import dataclasses
import hashlib
import io
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
from jaxtyping import Bool, Int, UInt8

from tkjax import contract
from tkjax.contract import checks
from tkjax.contract.npz import npz_index, read_entry
from tkjax.contract.refusal import disk_errors, refuse
from tkjax.contract.spec import Layout
from tkjax.data.clip import Clip
from tkjax.errors import UserError
from tkjax.host import stored
from tkjax.host.files import hidden, put
from tkjax.interface import Model
from tkjax.media import full_frames, images, paste_back
from tkjax.signals import SOUND, check_finite
from tkjax.types import SubjectInfo

COLUMNS = ("cam_to_world", "eye_closed", "expression", "confidence", "face_box_px", "lips_box_px")
OPTIONAL_COLUMNS = ("eye_area",)
KEPT = ("expression", "eye_closed", "eye_area")  # signals that every avatar keeps; others, where its system uses them
PICTURES = ("torso", "label", "face")  # PNG, one per frame; the last two are left out where the clip has no labels
HEADER_BYTES = 64  # of a picture, which tell its size
CHANNELS = {"torso": 4, "label": 1, "face": 1}


def frame_numbers(clip: Clip) -> Int[np.ndarray, " n"]:
    """The clip's frames in the order of the track: training first, then held out."""
    return np.concatenate([clip.train_frames, clip.heldout_frames])


def member_of(name: str) -> str:
    """The member of a track file that holds a signal."""
    return name if name in KEPT else f"signal_{name}"


def info_of(clip: Clip, model: Model) -> SubjectInfo:
    """What an avatar says of the clip: of its signals those that it keeps, and the sound that its system hears."""
    used = {use.name for use in model.signals()}
    info = clip.info
    kept = tuple(s for s in info.signals if s.name in used or s.name in (*KEPT, SOUND))
    for s in kept:
        if s.name in clip.signals:  # a stand-in describes its sound alone
            check_finite(clip.signals[s.name], "the avatar cannot be saved")
    odd = [s.name for s in kept if s.name != SOUND and not s.per_frame]
    if odd:
        raise UserError(f"an avatar keeps signals with one step a frame only, and {odd[0]} has another rate")
    return dataclasses.replace(info, signals=kept)


def pack(clip: Clip, frames: Int[np.ndarray, " n"], info: SubjectInfo) -> dict[str, np.ndarray]:
    """One track file: columns, and for each kind of picture `<kind>_png` (bytes in a row) with `<kind>_offsets`.
    info: names the signals that are kept."""
    n = clip.n_frames
    column = {"cam_to_world": clip.cam_to_world, "confidence": clip.confidence, "eye_closed": clip.eye_closed}
    column |= {"expression": np.zeros((n, 0), np.float32)} | {name: clip.boxes[name] for name in COLUMNS[4:]}
    for s in info.signals:
        if s.name != SOUND:
            values = clip.signals[s.name].values
            column[member_of(s.name)] = values[:, 0] if s.name in ("eye_closed", "eye_area") else values
    out = {name: np.asarray(values)[frames] for name, values in sorted(column.items(), key=_place)}
    pictures = {"torso": [_torso_png(clip, int(i)) for i in frames]}
    if clip.has_labels:
        labels = [clip.label(int(i)) for i in frames]
        faces = [face(clip, int(i), label) for i, label in zip(frames, labels)]
        pictures["label"] = [images.encode_png(label) for label in labels]
        pictures["face"] = [images.encode_png(np.where(f, np.uint8(255), np.uint8(0))) for f in faces]
    for kind, pngs in pictures.items():
        out[f"{kind}_png"] = np.frombuffer(b"".join(pngs), np.uint8)
        out[f"{kind}_offsets"] = np.cumsum([0, *map(len, pngs)], dtype=np.int64)
    return out


def _place(item: tuple[str, Any]) -> tuple[int, str]:
    """The order of members in a file: columns first."""
    order = (*COLUMNS, *OPTIONAL_COLUMNS)
    return (order.index(item[0]) if item[0] in order else len(order), item[0])


def _torso_png(clip: Clip, i: int) -> bytes:
    """The torso of frame i at training size, straight alpha, colours 0 where alpha is 0 (they compress to nothing)."""
    rgba = clip.torso_rgba(i)
    return images.encode_png(np.where(rgba[..., 3:] > 0, rgba, 0).astype(np.uint8))


def face(clip: Clip, i: int, label: UInt8[np.ndarray, "H W"]) -> Bool[np.ndarray, "H W"]:
    """The face of frame i: of its parsing classes where the dataset has them, else of its 68 landmarks."""
    dataset = clip.dataset
    if dataset is not None and "class_bytes" in dataset.manifest["members"]:
        classes = images.decode_png(dataset.frame_bytes("class_bytes", i), dataset.where("class_bytes", i))
        chosen = paste_back.face_of_classes(classes).view(np.uint8)
        return images.resize_majority(chosen, label.shape, 2).view(bool)
    if clip.landmarks68_px is None:
        return np.zeros(label.shape, bool)
    return paste_back.face_of_landmarks(clip.landmarks68_px[i], label)


# ---------------------------------------------------------------- reading


def load_columns(paths: Sequence[Path], n: int, info: SubjectInfo) -> dict[str, np.ndarray]:
    """The columns of the track files, n frames in all, checked; UserError where a file holds something else.

    Pictures are not decoded: their headers must show the picture's size.
    """
    parts: dict[str, list[np.ndarray]] = {}
    members: set[str] = set()
    for i, path in enumerate(paths):
        first = i * contract.SHARD_FRAMES
        arrays = read_file(path, min(contract.SHARD_FRAMES, n - first), info)
        if i and members != set(arrays):
            odd = sorted(members ^ set(arrays))[0]
            raise UserError(f"{path}: member {odd} is not in every track file, expected the members of {paths[0].name}")
        members = set(arrays)
        _check_pictures(path, arrays, first, info)
        columns = {k: v for k, v in arrays.items() if k in (*COLUMNS, *OPTIONAL_COLUMNS) or k.startswith("signal_")}
        size = info.signal("expression").channels if info.has("expression") else 0
        checks.check_values(path, columns, Layout(info.height, info.width, "ibug68", size, {}), first)
        for name, values in columns.items():
            if name.startswith("signal_") and not np.isfinite(values).all():
                raise refuse(path, name, "is not finite", "finite numbers")
        for name, values in columns.items():
            parts.setdefault(name, []).append(values)
    return {name: np.concatenate(values) for name, values in parts.items()}


def read_file(path: Path, n: int, info: SubjectInfo) -> dict[str, np.ndarray]:
    """The members of one track file of n frames: uncompressed, and each of the shape and type that it has to be."""
    floats, whole = ("float32", "float64"), ("int32", "int64")  # of the clip's own columns, which may be either
    sizes = {"expression": 0} | {s.name: s.channels for s in info.signals if s.name != SOUND}
    wanted = {"cam_to_world": (floats, (n, 4, 4)), "expression": (floats, (n, sizes["expression"]))}
    kept = {member_of(name): (("float32",), (n, sizes[name])) for name in sizes if name not in KEPT}
    wanted |= kept
    wanted |= {name: (floats, (n,)) for name in ("eye_closed", "confidence", *OPTIONAL_COLUMNS)}
    wanted |= {name: (whole, (n, 4)) for name in ("face_box_px", "lips_box_px")}
    for kind in PICTURES:
        wanted |= {f"{kind}_png": (("uint8",), (None,)), f"{kind}_offsets": (("int64",), (n + 1,))}
    with plain(path) as file:
        index = npz_index(file, path)
        for name in index.keys() - wanted.keys():
            raise refuse(path, name[:40], "is unknown", f"only {', '.join(wanted)}")
        needed = {*COLUMNS, *kept, "torso_png", "torso_offsets"}
        needed |= {f"{kind}_{part}" for kind in PICTURES for part in ("png", "offsets") if f"{kind}_png" in index}
        for name in sorted(needed - index.keys()):
            raise refuse(path, name, "is missing", f"all of {', '.join(sorted(needed))}")
        for name, entry in index.items():
            dtypes, shape = wanted[name]
            if str(entry.dtype) not in dtypes:
                raise refuse(path, name, f"has dtype {entry.dtype}", " or ".join(dtypes))
            if len(entry.shape) != len(shape) or any(b not in (None, a) for a, b in zip(entry.shape, shape)):
                raise refuse(path, name, f"has shape {entry.shape}", f"{shape}".replace("None", "any length"))
        return {name: read_entry(file, entry, path, name, check=True) for name, entry in index.items()}


@contextlib.contextmanager
def plain(path: Path) -> Iterator[io.BufferedReader]:
    """A plain file of the avatar, open for reading."""
    with disk_errors(path, "a readable file of the avatar"), stored.open_plain(path.parent, path.name) as file:
        yield file


def _check_pictures(path: Path, arrays: dict[str, np.ndarray], first: int, info: SubjectInfo) -> None:
    for kind in PICTURES:
        if f"{kind}_png" not in arrays:
            continue
        offsets, data = arrays[f"{kind}_offsets"], arrays[f"{kind}_png"]
        if offsets[0] != 0 or (np.diff(offsets) <= 0).any() or offsets[-1] != len(data):
            raise refuse(path, f"{kind}_offsets", "is wrong", f"offsets that rise from 0 and cover {kind}_png")
        for i, (a, b) in enumerate(itertools.pairwise(offsets)):
            member = f"{kind}_png of frame {first + i}"
            picture = data[a : min(b, a + HEADER_BYTES)].tobytes()
            checks.check_picture(path, member, picture, "png", CHANNELS[kind], info.height, info.width)


# ---------------------------------------------------------------- whole frames


def full_facts(clip: Clip) -> dict[str, Any] | None:
    """Where the crop lies in the whole frames; None for a clip without pictures.

    size: (width, height) of the frames, box: (x0, y0, x1, y1) of the crop in them. straight: their colours are the
    person's alone and want the matte. source: what they were made of.
    """
    dataset = clip.dataset
    if dataset is None:
        return None
    source, size = dataset.manifest.get("source") or {}, [dataset.width, dataset.height]
    if contract.FULL not in dataset.manifest["files"]:
        return {"size": size, "box": [0, 0, *size], "straight": False, "source": dataset.digest}
    size, box = source.get("full_size"), source.get("crop_px")
    if not (size and box):
        raise UserError(
            f"{dataset.root}: holds {contract.FULL}, but its manifest names no source.full_size and crop_px"
        )
    straight = source.get("background_trt") is not None
    return {"size": list(size), "box": list(box), "straight": straight, "source": dataset.digest}


def background_trt(clip: Clip) -> list[int] | None:
    """The constant colour behind a keyed person."""
    dataset = clip.dataset
    return None if dataset is None else (dataset.manifest.get("source") or {}).get("background_trt")


def store_full(folder: Path, clip: Clip) -> dict[str, dict]:
    """The whole frames (and their matte) as hash-named files in `folder`: linked from the dataset, or made of its own
    frames. Entries for avatar.json."""
    dataset = clip.dataset
    files = dataset.manifest["files"]
    out = {}
    if contract.FULL in files:
        out["full"] = _adopt(folder, "full", lambda part: full_frames.link_or_copy(dataset.path(contract.FULL), part))
    else:
        hw = (dataset.height, dataset.width)
        raw = (images.decode_rgb(dataset.frame_bytes("image_bytes", i)) for i in range(dataset.n_frames))
        out["full"] = _adopt(folder, "full", lambda part: full_frames.write_video(part, raw, hw, dataset.fps))
    if contract.FULL_ALPHA in files:
        source = dataset.path(contract.FULL_ALPHA)
        out["full_alpha"] = _adopt(folder, "full_alpha", lambda part: full_frames.link_or_copy(source, part))
    elif background_trt(clip) is not None and "alpha_bytes" in dataset.manifest["members"]:
        mattes = (images.decode_png(dataset.frame_bytes("alpha_bytes", i)) for i in range(dataset.n_frames))
        out["full_alpha"] = _adopt(folder, "full_alpha", lambda part: write_matte(part, mattes, dataset.fps))
    return out


def _adopt(folder: Path, stem: str, make) -> dict:
    """Let `make` write a file, and give it the name of its content."""
    part = hidden(folder / stem, "part", ".mp4")
    part.unlink(missing_ok=True)
    try:
        make(part)
        digest = sha256(part)
        name = f"{stem}-{digest[:8]}.mp4"
        put(part, folder / name)
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
    return {"name": name, "sha256": digest, "bytes": (folder / name).stat().st_size}


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_matte(path: Path, mattes: Iterator[UInt8[np.ndarray, "H W"]], fps: float) -> None:
    """Grey and lossless (FFV1), as in the contract."""
    with av.open(str(path), "w") as container:
        stream = None
        for matte in mattes:
            if stream is None:
                stream = container.add_stream("ffv1", rate=round(fps))
                stream.height, stream.width = matte.shape
                stream.pix_fmt = "gray"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(matte), "gray")))
        container.mux(stream.encode(None))
