"""The data contract, version 1: writer, reader and validator of a dataset folder (numpy and stdlib only).

A dataset is a folder with `manifest.json`, shards `shard-00000-<first 8 hex of its sha256>.npz` of up to
64 frames, `background.png`, and where they exist `audio.wav`, `audio_<kind>.npz` and `qa/*`. The manifest
names every file with its sha256 and carries its own digest: the sha256 of its bytes with the 64 digest
characters left out. It is replaced last, so a killed write leaves the old or the new dataset.

World: head-centred, right-handed, x right in a frontal picture (the subject's left), y up, z towards the
camera, one unit = 25 cm, origin = origin of the canonical face mesh (nose tip at z = +7.6 cm, chin at
y = -9.4 cm). Cameras look along -z (OpenGL); `cam_to_world` maps camera points (x right, y up) to the world.
Pixel (i, j) spans [i, i+1) with its centre at i + 0.5; pictures are uint8 sRGB; boxes are (x0, y0, x1, y1),
half open. Every refusal is a `ContractError` of one sentence with file, member and expectation.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import io
import json
import math
import os
import re
import shutil
import struct
import wave
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tkjax.errors import UserError

VERSION = 1
FPS = 25.0
UNIT_CM = 25.0
ORIGIN_CANONICAL_CM = (0.0, 0.0, 0.0)  # where the world's origin lies in the canonical face mesh
LABEL_BACKGROUND, LABEL_HEAD, LABEL_NECK, LABEL_TORSO = range(4)
SHARD_FRAMES = 64
AUDIO_HZ = 16000
MANIFEST = "manifest.json"
BACKGROUND = "background.png"
AUDIO = "audio.wav"
LANDMARK_SCHEMES = {"mediapipe478": 478, "ibug68": 68}
BOXES = ("face_box_px", "lips_box_px", "eye_left_box_px", "eye_right_box_px")
ROTATION_TOLERANCE = 1e-3  # of any entry of R Rᵀ - 1; float32 rotations reach 1e-6

CONVENTIONS = {
    "world": "x right in a frontal picture (the subject's left), y up, z towards the camera",
    "unit_cm": UNIT_CM,
    "origin_canonical_cm": list(ORIGIN_CANONICAL_CM),
    "camera": "cam_to_world, OpenGL: x right, y up, looks along -z",
    "pixels": "pixel (i, j) spans [i, i+1), centre at i + 0.5; boxes (x0, y0, x1, y1), half open",
    "rgb": "uint8 sRGB",
    "labels": {
        "background": LABEL_BACKGROUND,
        "head": LABEL_HEAD,
        "neck": LABEL_NECK,
        "torso": LABEL_TORSO,
    },
}

# The widely used subset of MediaPipe's face mesh that stands for the 68 iBUG points, in their order.
# fmt: off
LANDMARKS_478_TO_68 = (
    162, 234, 93, 58, 172, 136, 149, 148, 152, 377, 378, 365, 397, 288, 323, 454, 389,  # jaw 0-16
    71, 63, 105, 66, 107, 336, 296, 334, 293, 301,  # brows 17-26
    168, 197, 5, 4, 75, 97, 2, 326, 305,  # nose 27-35
    33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380,  # eyes 36-47 (36-41 the subject's right)
    61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181,  # outer lips 48-59
    78, 82, 13, 312, 308, 317, 14, 87,  # inner lips 60-67
)

BLENDSHAPES = (
    "_neutral", "browDownLeft", "browDownRight", "browInnerUp", "browOuterUpLeft", "browOuterUpRight",
    "cheekPuff", "cheekSquintLeft", "cheekSquintRight", "eyeBlinkLeft", "eyeBlinkRight", "eyeLookDownLeft",
    "eyeLookDownRight", "eyeLookInLeft", "eyeLookInRight", "eyeLookOutLeft", "eyeLookOutRight", "eyeLookUpLeft",
    "eyeLookUpRight", "eyeSquintLeft", "eyeSquintRight", "eyeWideLeft", "eyeWideRight", "jawForward", "jawLeft",
    "jawOpen", "jawRight", "mouthClose", "mouthDimpleLeft", "mouthDimpleRight", "mouthFrownLeft", "mouthFrownRight",
    "mouthFunnel", "mouthLeft", "mouthLowerDownLeft", "mouthLowerDownRight", "mouthPressLeft", "mouthPressRight",
    "mouthPucker", "mouthRight", "mouthRollLower", "mouthRollUpper", "mouthShrugLower", "mouthShrugUpper",
    "mouthSmileLeft", "mouthSmileRight", "mouthStretchLeft", "mouthStretchRight", "mouthUpperUpLeft",
    "mouthUpperUpRight", "noseSneerLeft", "noseSneerRight",
)
# fmt: on

# member -> (dtype, shape); n frames, V landmarks, K expression dims, H W picture, bytes free.
REQUIRED_MEMBERS: dict[str, tuple[str, tuple]] = {
    "image_bytes": ("uint8", ("bytes",)),
    "image_offsets": ("int64", ("n+1",)),
    "torso_bytes": ("uint8", ("bytes",)),
    "torso_offsets": ("int64", ("n+1",)),
    "label_bytes": ("uint8", ("bytes",)),
    "label_offsets": ("int64", ("n+1",)),
    "frame_index": ("int32", ("n",)),
    "cam_to_world": ("float32", ("n", 4, 4)),
    "landmarks_px": ("float32", ("n", "V", 2)),
    **{box: ("int32", ("n", 4)) for box in BOXES},
    "expression": ("float32", ("n", "K")),
    "eye_closed": ("float32", ("n",)),
    "confidence": ("float32", ("n",)),
}
OPTIONAL_MEMBERS: dict[str, tuple[str, tuple]] = {
    "depth": ("float16", ("n", "H", "W")),  # camera z in units, NaN where nothing was hit
    "alpha_bytes": ("uint8", ("bytes",)),
    "alpha_offsets": ("int64", ("n+1",)),
    "eye_area": ("float32", ("n",)),
}
# encoded member -> (format, channels of the png or jpeg)
PICTURES = {
    "image_bytes": ("jpeg", 3),
    "torso_bytes": ("png", 4),
    "label_bytes": ("png", 1),
    "alpha_bytes": ("png", 1),
}
EXTRA_DTYPES = (
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64",
)  # fmt: skip
_MANIFEST_KEYS = {
    "version", "subject", "fps", "n_frames", "height", "width", "camera", "conventions", "split", "landmark_scheme",
    "expression_names", "range_min", "range_max", "source", "audio", "files", "shards", "members", "tools",
    "licences", "digest",
}  # fmt: skip
_SHARD_NAME = re.compile(r"shard-(\d{5,})-([0-9a-f]{8})\.npz")
_FILE_NAME = re.compile(r"background\.png|audio\.wav|audio_[A-Za-z0-9_-]+\.npz|qa(/[A-Za-z0-9_-][A-Za-z0-9._-]*)+")
_FIXED_NAMES = "background.png, audio.wav, audio_<kind>.npz or qa/…"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_STAGING = ".write"  # files of a write that has not been committed
_ASIDE = ".pending"  # fixed-name files of a generation other than the one published under the plain names


class ContractError(UserError):
    """A dataset, or data on its way into one, breaks the contract."""


def _refuse(where: Any, member: str, found: str, expected: str) -> ContractError:
    return ContractError(f"{where}: member {member} {found}, expected {expected}")


def offsets_of(member: str) -> str:
    """`image_bytes` -> `image_offsets`."""
    return member.removesuffix("_bytes") + "_offsets"


def default_split(n_frames: int) -> dict[str, list[int]]:
    """First ⌊N·10/11⌋ frames (at least one) train, the rest is held out."""
    a = max(1, n_frames * 10 // 11)
    return {"train": [0, a], "heldout": [a, n_frames]}


# ---------------------------------------------------------------- landmarks and boxes


def landmarks68(landmarks: np.ndarray, scheme: str) -> np.ndarray:
    """[n, 478 or 68, 2] points of `scheme` -> the [n, 68, 2] iBUG points."""
    if scheme not in LANDMARK_SCHEMES:
        raise ContractError(f"landmark scheme {scheme!r} is unknown; choose one of {', '.join(LANDMARK_SCHEMES)}")
    landmarks = np.asarray(landmarks)
    if landmarks.ndim != 3 or landmarks.shape[1:] != (LANDMARK_SCHEMES[scheme], 2):
        raise ContractError(
            f"landmarks of scheme {scheme} have shape {landmarks.shape}, expected (n, {LANDMARK_SCHEMES[scheme]}, 2)"
        )
    return landmarks[:, list(LANDMARKS_478_TO_68)] if scheme == "mediapipe478" else landmarks


def boxes_from_landmarks68(landmarks: np.ndarray, height: int, width: int) -> dict[str, np.ndarray]:
    """Boxes (x0, y0, x1, y1), half open, int32 [n, 4], from points [n, 68, 2] in pixels.

    Face: bounding box of the integer parts of all points; eyes: of 42-47 (the subject's left) and 36-41;
    lips: square around 48-59 with half side max(side) // 2 around the integer middle. Each is clamped to
    the picture and keeps at least one pixel, so points outside still give a legal box.
    """
    points = np.floor(np.asarray(landmarks, np.float64)).astype(np.int64)
    if points.ndim != 3 or points.shape[1:] != (68, 2):
        raise ContractError(f"landmarks have shape {points.shape}, expected (n, 68, 2)")

    def bounds(part: slice) -> tuple[np.ndarray, np.ndarray]:
        return points[:, part].min(1), points[:, part].max(1)

    def clamp(low: np.ndarray, high: np.ndarray) -> np.ndarray:
        size = np.array([width, height])
        low = np.clip(low, 0, size - 1)
        high = np.clip(high, low + 1, size)
        return np.concatenate([low, high], 1).astype(np.int32)

    low, high = bounds(slice(48, 60))
    middle, half = (low + high) // 2, (high - low).max(1, keepdims=True) // 2
    return {
        "face_box_px": clamp(*bounds(slice(0, 68))),
        "lips_box_px": clamp(middle - half, middle + half),
        "eye_left_box_px": clamp(*bounds(slice(42, 48))),
        "eye_right_box_px": clamp(*bounds(slice(36, 42))),
    }


# ---------------------------------------------------------------- pictures: only their headers


def picture_header(data: bytes) -> tuple[str, int, int, int] | None:
    """(format, width, height, channels) of an 8-bit PNG (1 grey, 3 RGB, 4 RGBA) or JPEG, None if it is neither."""
    if data[:8] == b"\x89PNG\r\n\x1a\n" and data[12:16] == b"IHDR" and len(data) >= 33:
        width, height, depth, colour = struct.unpack(">IIBB", data[16:26])
        channels = {0: 1, 2: 3, 6: 4}.get(colour)
        return ("png", width, height, channels) if depth == 8 and channels else None
    if data[:3] != b"\xff\xd8\xff":
        return None
    at = 2
    while at + 9 < len(data):  # walk the segments to the start-of-frame marker
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width, channels = struct.unpack(">HHB", data[at + 5 : at + 10])
            return "jpeg", width, height, channels
        elif marker == 0xDA:
            return None
        else:
            at += 2 + struct.unpack(">H", data[at + 2 : at + 4])[0]
    return None


def _check_picture(where: Any, member: str, data: bytes, kind: str, channels: int, height: int, width: int) -> None:
    header = picture_header(data)
    expected = f"an 8-bit {kind} of {width}x{height} pixels and {channels} channel{'s' if channels > 1 else ''}"
    if header is None:
        raise _refuse(where, member, "is neither an 8-bit PNG nor a JPEG", expected)
    if header != (kind, width, height, channels):
        raise _refuse(where, member, f"is a {header[0]} of {header[1]}x{header[2]} with {header[3]} channels", expected)


# ---------------------------------------------------------------- what the arrays of some frames must be


@dataclasses.dataclass(frozen=True)
class _Layout:
    """The sizes that fix every member's dtype and shape."""

    height: int
    width: int
    landmark_scheme: str
    n_expression: int
    extra: Mapping[str, tuple[str, tuple[int, ...]]]  # x_<name> -> dtype, shape behind the frame axis

    def spec(self, member: str) -> tuple[str, tuple]:
        """(dtype, shape with 'n', 'n+1' or 'bytes' in front) of a known member."""
        if member in self.extra:
            dtype, shape = self.extra[member]
            return dtype, ("n", *shape)
        dtype, shape = REQUIRED_MEMBERS.get(member) or OPTIONAL_MEMBERS[member]
        sizes = {"V": LANDMARK_SCHEMES[self.landmark_scheme], "K": self.n_expression, "H": self.height, "W": self.width}
        return dtype, tuple(sizes.get(s, s) for s in shape)

    def known(self, member: str) -> bool:
        return member in REQUIRED_MEMBERS or member in OPTIONAL_MEMBERS or member in self.extra


def _check_type(where: Any, member: str, layout: _Layout, n: int, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    want_dtype, template = layout.spec(member)
    if dtype != np.dtype(want_dtype).newbyteorder("<"):
        raise _refuse(where, member, f"has dtype {dtype}", want_dtype)
    want = tuple({"n": n, "n+1": n + 1}.get(s, s) for s in template)
    if len(shape) != len(want) or any(w not in ("bytes", s) for s, w in zip(shape, want, strict=True)):
        raise _refuse(where, member, f"has shape {tuple(shape)}", str(want).replace("'bytes'", "any length"))


def _first_bad(good: np.ndarray) -> int:
    return int(np.argmin(good.reshape(good.shape[0], -1).all(1)))


def _check_values(where: Any, arrays: Mapping[str, np.ndarray], layout: _Layout, first: int) -> None:
    """Ranges of members whose dtype and shape are right; `first` is the number of the first frame."""

    def require(member: str, good: np.ndarray, expected: str) -> None:
        if not good.all():
            i = _first_bad(good)
            shown = f"is {a[i].tolist()}" if a[i].size <= 4 else "is out of range"
            raise _refuse(where, member, f"{shown} at frame {first + i}", expected)

    for member, a in arrays.items():
        if member == "frame_index":
            require(member, a == first + np.arange(len(a)), f"frame numbers that run from {first}")
        elif member == "cam_to_world":
            require(member, np.isfinite(a), "finite numbers")
            r = a[:, :3, :3].astype(np.float64)
            identity = np.abs(r @ r.transpose(0, 2, 1) - np.eye(3)) <= ROTATION_TOLERANCE
            require(member, identity, "an orthonormal rotation in its upper left 3x3")
            require(member, np.linalg.det(r) > 0, "a rotation without reflection (determinant +1)")
            require(member, a[:, 3] == np.array([0, 0, 0, 1], np.float32), "0 0 0 1 as its last row")
        elif member in ("landmarks_px", "expression"):
            require(member, np.isfinite(a), "finite numbers")
        elif member in BOXES:
            x0, y0, x1, y1 = a.T
            good = (0 <= x0) & (x0 < x1) & (x1 <= layout.width) & (0 <= y0) & (y0 < y1) & (y1 <= layout.height)
            expected = f"x0 < x1 and y0 < y1 inside the picture of {layout.width}x{layout.height}"
            require(member, good, expected)
        elif member in ("eye_closed", "confidence"):
            require(member, (a >= 0) & (a <= 1), "a number in 0..1")
        elif member == "eye_area":
            require(member, (a >= 0) & np.isfinite(a), "a finite number of at least 0")
        elif member == "depth":
            require(member, np.isnan(a) | ((a > 0) & np.isfinite(a)), "positive camera z, or NaN where nothing was hit")
        elif member in PICTURES:
            _check_offsets(where, member, arrays, layout, first)


def _check_offsets(where: Any, member: str, arrays: Mapping[str, np.ndarray], layout: _Layout, first: int) -> None:
    name = offsets_of(member)
    offsets, data = arrays[name], arrays[member]
    if offsets[0] != 0 or (np.diff(offsets) <= 0).any():
        raise _refuse(where, name, "does not rise from 0", "strictly increasing offsets that start at 0")
    if offsets[-1] != len(data):
        raise _refuse(where, name, f"ends at {offsets[-1]}", f"to cover the {len(data)} bytes of {member}")
    kind, channels = PICTURES[member]
    for i in range(len(offsets) - 1):
        frame = data[offsets[i] : offsets[i + 1]].tobytes()
        _check_picture(where, f"{member} of frame {first + i}", frame, kind, channels, layout.height, layout.width)


# ---------------------------------------------------------------- npz without surprises


@dataclasses.dataclass(frozen=True)
class _Entry:
    """Where an array lies in an uncompressed npz."""

    offset: int
    dtype: np.dtype
    shape: tuple[int, ...]
    crc: int
    start: int  # of the npy header
    size: int  # of header and data

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write_npz(file: io.BufferedIOBase, arrays: Mapping[str, np.ndarray | np.generic]) -> None:
    """Uncompressed npz with the same bytes for the same arrays: sorted members, fixed dates, C order."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as z:
        for name in sorted(arrays):
            info = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            info.create_system, info.external_attr = 3, 0o644 << 16
            a = np.ascontiguousarray(arrays[name]).reshape(np.shape(arrays[name]))
            a = a.astype(a.dtype.newbyteorder("<"), copy=False)
            with z.open(info, "w", force_zip64=True) as f:
                np.lib.format.write_array(f, a, version=(1, 0), allow_pickle=False)


def _npz_index(file: io.BufferedIOBase, where: Any) -> dict[str, _Entry]:
    """Members of an uncompressed npz, from its directory and the npy headers, without reading the data."""
    total = file.seek(0, io.SEEK_END)
    try:
        with zipfile.ZipFile(file) as z:
            infos = z.infolist()
    except (zipfile.BadZipFile, ValueError, OSError, EOFError, struct.error, NotImplementedError, IndexError) as e:
        raise ContractError(f"{where}: member list is not readable ({_short(e)}), expected an uncompressed npz") from e
    entries = {}
    for info in infos:
        name = info.filename.removesuffix(".npy")
        if name == info.filename or name in entries:
            raise _refuse(where, repr(info.filename)[1:-1], "is not an array or stands twice", "one .npy a member")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.file_size != info.compress_size:
            raise _refuse(where, name, "is compressed or encrypted", "stored bytes")
        file.seek(info.header_offset)
        local = file.read(30)
        if len(local) != 30 or local[:4] != b"PK\x03\x04":
            raise _refuse(where, name, "has no zip header", "an uncompressed npz")
        start = info.header_offset + 30 + sum(struct.unpack("<HH", local[26:30]))
        if start + info.file_size > total:
            raise _refuse(where, name, "runs past the end of the file", "complete data")
        file.seek(start)
        head = io.BytesIO(file.read(min(info.file_size, 65536)))
        try:
            version = np.lib.format.read_magic(head)
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
            shape, fortran, dtype = read(head)
        except (ValueError, KeyError, TypeError, SyntaxError, EOFError, struct.error, OverflowError, MemoryError) as e:
            raise _refuse(where, name, f"has no readable npy header ({_short(e)})", "a plain array") from e
        if dtype.hasobject:
            raise _refuse(where, name, "holds pickled objects", "plain numbers")
        if fortran and len(shape) > 1:
            raise _refuse(where, name, "is stored in Fortran order", "C order")
        entry = _Entry(start + head.tell(), dtype, shape, info.CRC, start, info.file_size)
        if min(shape, default=0) < 0 or entry.nbytes != info.file_size - head.tell():
            raise _refuse(where, name, f"has {info.file_size - head.tell()} bytes", f"those of shape {shape} {dtype}")
        entries[name] = entry
    return entries


def _short(error: BaseException) -> str:
    """The gist of somebody else's message, fit for the middle of a sentence."""
    return " ".join(str(error).split())[:80].rstrip(".") or type(error).__name__


def _read_entry(file: io.BufferedIOBase, entry: _Entry, where: Any, name: str, check: bool = False) -> np.ndarray:
    file.seek(entry.start)
    data = file.read(entry.size)
    if len(data) != entry.size:
        raise _refuse(where, name, f"ends after {len(data)} bytes", f"{entry.size} bytes")
    if check and zlib.crc32(data) != entry.crc:
        raise _refuse(where, name, "fails its CRC-32", "undamaged bytes")
    a = np.ndarray(entry.shape, entry.dtype, buffer=data, offset=entry.offset - entry.start)
    return a.astype(a.dtype.newbyteorder("="), copy=False)


def _damaged_member(data: bytes, where: Any) -> str:
    """Which member of an npz whose hash is wrong the damage sits in, for the message."""
    try:
        file = io.BytesIO(data)
        for name, entry in _npz_index(file, where).items():
            if zlib.crc32(data[entry.start : entry.start + entry.size]) != entry.crc:
                return name
    except ContractError:
        return "list"
    return "list"


# ---------------------------------------------------------------- sound features


@dataclasses.dataclass(frozen=True)
class AudioFeatures:
    """A whole clip's feature sequence and how windows are cut from it.

    features float32 [n, C]; step k is centred at start_s + k / rate_hz seconds. The window of video frame
    f holds steps hop·f - left ... hop·f - left + window - 1, with zeros outside the sequence; ceil(n / hop)
    frames have one. `pad` is how many zero steps the kind's original cutter puts at either end.
    """

    kind: str
    features: np.ndarray
    rate_hz: float
    start_s: float
    extractor: str
    window: int
    hop: int
    left: int
    pad: int

    @property
    def channels(self) -> int:
        return self.features.shape[1]

    @property
    def n_windows(self) -> int:
        """Video frames that the sound lasts: ceil(n / hop)."""
        return -(-len(self.features) // self.hop)

    def window_at(self, frame: int) -> np.ndarray:
        """[window, C] of video frame `frame` (any integer), zeros outside the sequence."""
        first = self.hop * int(frame) - self.left
        out = np.zeros((self.window, self.channels), np.float32)
        a, b = max(first, 0), min(first + self.window, len(self.features))
        if a < b:
            out[a - first : b - first] = self.features[a:b]
        return out

    def describe(self) -> dict[str, Any]:
        """Everything but the features, as the manifest and the avatar hold it."""
        d = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("features", "kind")}
        return {**d, "steps": len(self.features), "channels": self.channels}


_AUDIO_MEMBERS = {
    "version": ("i", ()),
    "kind": ("U", ()),
    "features": ("f", (None, None)),
    "rate_hz": ("f", ()),
    "start_s": ("f", ()),
    "extractor": ("U", ()),
    "window": ("i", ()),
    "hop": ("i", ()),
    "left": ("i", ()),
    "pad": ("i", ()),
}


def _check_audio(where: Any, a: AudioFeatures) -> AudioFeatures:
    def require(member: str, good: bool, expected: str) -> None:
        if not good:
            raise _refuse(where, member, f"is {getattr(a, member)!r}", expected)

    require("kind", bool(re.fullmatch(r"[A-Za-z0-9_-]+", a.kind)), "letters, digits, hyphens and underscores")
    require("rate_hz", math.isfinite(a.rate_hz) and a.rate_hz > 0, "a positive number of steps a second")
    require("start_s", math.isfinite(a.start_s), "a finite time in seconds")
    require("extractor", bool(a.extractor), "the name of the extractor")
    require("window", a.window >= 1, "at least 1 step")
    require("hop", a.hop >= 1, "at least 1 step a frame")
    require("left", 0 <= a.left <= a.window, f"0..{a.window}")
    require("pad", 0 <= a.pad <= a.window, f"0..{a.window}")
    f = a.features
    if f.dtype != np.float32:
        raise _refuse(where, "features", f"has dtype {f.dtype}", "float32")
    if f.ndim != 2 or f.shape[0] < 1 or f.shape[1] < 1:
        raise _refuse(where, "features", f"has shape {f.shape}", "(steps, channels), both at least 1")
    if not np.isfinite(f).all():
        raise _refuse(where, "features", f"is not finite at step {_first_bad(np.isfinite(f))}", "finite numbers")
    return a


def save_audio_features(
    path: str | Path,
    kind: str,
    features: np.ndarray,
    rate_hz: float | int,
    start_s: float | int,
    extractor: str,
    window: int,
    hop: int,
    left: int,
    pad: int,
) -> None:
    """Write `audio_<kind>.npz` (any path), whole or not at all; arguments as in `AudioFeatures`."""
    sizes = {"window": int(window), "hop": int(hop), "left": int(left), "pad": int(pad)}
    a = AudioFeatures(kind, np.asarray(features), float(rate_hz), float(start_s), extractor, **sizes)
    _check_audio(path, a)
    arrays = {"version": np.int64(VERSION), "features": a.features, "kind": np.str_(kind)}
    arrays |= {"rate_hz": np.float64(a.rate_hz), "start_s": np.float64(a.start_s), "extractor": np.str_(extractor)}
    arrays |= {k: np.int64(v) for k, v in sizes.items()}
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as f:
            write_npz(f, arrays)
            _fsync(f)
        os.replace(part, path)
    except OSError as e:
        raise ContractError(f"{path}: {e.strerror or e}, expected a place that can be written") from e
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def load_audio_features(path: str | Path) -> AudioFeatures:
    """Read and check `audio_<kind>.npz`."""
    try:
        data = Path(path).read_bytes()
    except OSError as e:
        raise ContractError(f"{path}: {e.strerror or e}, expected a file of sound features") from e
    return _parse_audio(data, path)


def _parse_audio(data: bytes, where: Any) -> AudioFeatures:
    file = io.BytesIO(data)
    index = _npz_index(file, where)
    values = {}
    for name, (kind, shape) in _AUDIO_MEMBERS.items():
        if name not in index:
            raise _refuse(where, name, "is missing", f"the members {', '.join(_AUDIO_MEMBERS)}")
        e = index[name]
        want = {"i": "int64", "f": "float32" if name == "features" else "float64", "U": "text"}[kind]
        if e.dtype.kind != kind or (kind != "U" and e.dtype != np.dtype(want).newbyteorder("<")):
            raise _refuse(where, name, f"has dtype {e.dtype}", want)
        if len(e.shape) != len(shape):
            raise _refuse(where, name, f"has shape {e.shape}", "(steps, channels)" if shape else "a single value")
        try:
            a = _read_entry(file, e, where, name, check=True)
            values[name] = a if name == "features" else a.item()
        except ValueError as error:  # text that is no text
            if isinstance(error, ContractError):
                raise
            raise _refuse(where, name, "is not readable", want) from error
    for name in index:
        if name not in _AUDIO_MEMBERS:
            raise _refuse(where, name, "is unknown", f"only the members {', '.join(_AUDIO_MEMBERS)}")
    if values.pop("version") != VERSION:
        raise _refuse(where, "version", "is not known to this program", f"{VERSION}")
    return _check_audio(where, AudioFeatures(**values))


def _check_wav(data: bytes | Path, where: Any) -> None:
    try:
        with wave.open(io.BytesIO(data) if isinstance(data, bytes) else str(data)) as w:
            found = (w.getnchannels(), w.getsampwidth(), w.getframerate())
    except (wave.Error, EOFError, OSError) as e:
        raise _refuse(where, "header", f"is not that of a wav file ({_short(e)})", "PCM sound, 16 bit mono") from e
    if found != (1, 2, AUDIO_HZ):
        shown = f"says {found[0]} channels of {8 * found[1]} bit at {found[2]} Hz"
        raise _refuse(where, "header", shown, f"one channel of 16 bit at {AUDIO_HZ} Hz")


# ---------------------------------------------------------------- manifest


def dump_manifest(manifest: Mapping[str, Any]) -> bytes:
    """The manifest's bytes with its digest filled in: sha256 of these bytes with the digest field empty."""
    text = json.dumps({**manifest, "digest": ""}, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"
    digest = hashlib.sha256(text.encode()).hexdigest()
    head, tail = text.split('\n "digest": ""', 1)
    return f'{head}\n "digest": "{digest}"{tail}'.encode()


def parse_manifest(raw: bytes, where: Any) -> dict[str, Any]:
    """Manifest bytes -> checked manifest: json, version, digest, then every field."""

    def no_constant(name: str) -> None:
        raise ValueError(f"the number {name}")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        d = dict(pairs)
        if len(d) != len(pairs):
            raise ValueError("a name that stands twice")
        return d

    try:
        m = json.loads(raw.decode("utf-8"), parse_constant=no_constant, object_pairs_hook=unique)
    except (ValueError, RecursionError) as e:
        raise ContractError(f"{where}: member list is not valid json ({_short(e)}), expected a dataset manifest") from e
    if not isinstance(m, dict):
        raise ContractError(f"{where}: member list is a json {type(m).__name__}, expected an object")
    if "version" not in m:
        raise _refuse(where, "version", "is missing", str(VERSION))
    if type(m["version"]) is not int or m["version"] != VERSION:
        raise _refuse(where, "version", f"is {m['version']!r}", f"{VERSION}, the one that this program reads")
    digest = m.get("digest")
    if not (isinstance(digest, str) and _SHA256.fullmatch(digest)):
        raise _refuse(where, "digest", "is missing or not 64 hexadecimal digits", "the manifest's own sha256")
    if hashlib.sha256(raw.replace(digest.encode(), b"")).hexdigest() != digest:
        raise _refuse(where, "digest", "does not match the content", "an unchanged manifest")
    _check_manifest(m, where)
    return m


def _is_int(x: Any, low: int, high: int = 2**31 - 1) -> bool:
    return type(x) is int and low <= x <= high


def _is_number(x: Any) -> bool:
    return type(x) in (int, float) and math.isfinite(x)


def _check_manifest(m: dict[str, Any], where: Any) -> None:
    def require(member: str, good: bool, expected: str) -> None:
        if not good:
            shown = json.dumps(m[member.split(".")[0]])
            raise _refuse(where, member, f"is {shown}" if len(shown) < 80 else "is wrong", expected)

    for key in sorted(_MANIFEST_KEYS - set(m)):
        raise _refuse(where, key, "is missing", f"all fields of version {VERSION}")
    for key in sorted(set(m) - _MANIFEST_KEYS):
        raise _refuse(where, key, "is unknown", f"only the fields of version {VERSION}")
    require("subject", isinstance(m["subject"], str) and bool(m["subject"]), "a name")
    require("fps", _is_number(m["fps"]) and m["fps"] == FPS, f"{FPS:g} frames a second")
    require("n_frames", _is_int(m["n_frames"], 1), "an integer of at least 1")
    require("height", _is_int(m["height"], 1, 65535), "an integer in 1..65535")
    require("width", _is_int(m["width"], 1, 65535), "an integer in 1..65535")
    c = m["camera"]
    good = isinstance(c, dict) and set(c) == {"fx", "fy", "cx", "cy"} and all(map(_is_number, c.values()))
    require("camera", good and c["fx"] > 0 and c["fy"] > 0, "finite fx, fy, cx, cy in pixels with positive fx, fy")
    require("conventions", m["conventions"] == CONVENTIONS, f"the conventions of version {VERSION}")
    require(
        "landmark_scheme",
        isinstance(m["landmark_scheme"], str) and m["landmark_scheme"] in LANDMARK_SCHEMES,
        f"one of {', '.join(LANDMARK_SCHEMES)}",
    )
    names = m["expression_names"]
    good = isinstance(names, list) and all(isinstance(x, str) for x in names) and len(set(names)) == len(names)
    require("expression_names", good, "a list of different names")
    for key in ("range_min", "range_max"):
        good = isinstance(m[key], list) and len(m[key]) == len(names) and all(map(_is_number, m[key]))
        require(key, good, f"{len(names)} finite numbers")
    for key in ("source", "tools", "licences", "audio"):
        require(key, isinstance(m[key], dict), "a json object")
    files = m["files"]
    require("files", isinstance(files, dict), "a json object from file name to sha256")
    for name, sha in files.items():
        if not (_SHARD_NAME.fullmatch(name) or _FILE_NAME.fullmatch(name)):
            raise _refuse(where, "files", f"names {name!r}", f"only shards, {_FIXED_NAMES}")
        if not (isinstance(sha, str) and _SHA256.fullmatch(sha)):
            raise _refuse(where, "files", f"gives no sha256 for {name}", "64 hexadecimal digits")
    if BACKGROUND not in files:
        raise _refuse(where, "files", f"does not name {BACKGROUND}", "the background plate")
    kinds = {name[6:-4] for name in files if name.startswith("audio_")}
    require("audio", set(m["audio"]) == kinds, f"one entry for each audio_<kind>.npz, {sorted(kinds)}")
    _check_shards(m, where)
    _check_split(m["split"], m["n_frames"], where)
    _check_members(m["members"], where, m)


def _check_split(split: Any, n: int, where: Any) -> None:
    def is_range(r: Any) -> bool:
        return isinstance(r, list) and len(r) == 2 and all(_is_int(x, 0, n) for x in r) and r[0] <= r[1]

    good = isinstance(split, dict) and set(split) == {"train", "heldout"} and all(map(is_range, split.values()))
    if good:
        (a, b), (c, d) = split["train"], split["heldout"]
        good = a < b and (c == d or b <= c or d <= a)
    if not good:
        expected = f"disjoint ranges train and heldout in 0..{n}, train not empty"
        raise _refuse(where, "split", f"is {json.dumps(split)[:80]}", expected)


def _check_shards(m: dict[str, Any], where: Any) -> None:
    shards, files = m["shards"], m["files"]
    if not isinstance(shards, list) or not shards:
        raise _refuse(where, "shards", "is not a list of shards", "at least one shard")
    first = 0
    for i, s in enumerate(shards):
        if not (isinstance(s, dict) and set(s) == {"file", "first", "count"} and isinstance(s["file"], str)):
            raise _refuse(where, "shards", f"has a broken entry {i}", "file, first and count")
        name = _SHARD_NAME.fullmatch(s["file"])
        if not name or int(name[1]) != i or s["file"] not in files or files[s["file"]][:8] != name[2]:
            expected = f"shard-{i:05d}-<first 8 digits of its sha256>.npz, listed in files"
            raise _refuse(where, "shards", f"names {s['file']!r} as number {i}", expected)
        if s["first"] != first or not _is_int(s["count"], 1, SHARD_FRAMES):
            raise _refuse(where, "shards", f"gives {s['file']} first {s['first']} and count {s['count']}",
                          f"first {first} and a count in 1..{SHARD_FRAMES}")  # fmt: skip
        first += s["count"]
    if first != m["n_frames"]:
        raise _refuse(where, "n_frames", f"is {m['n_frames']}", f"the {first} frames of the shards")
    unused = {f for f in files if _SHARD_NAME.fullmatch(f)} - {s["file"] for s in shards}
    if unused:
        raise _refuse(where, "files", f"names {min(unused)}", "only shards that are in the list of shards")


def _check_members(members: Any, where: Any, m: dict[str, Any]) -> None:
    if not isinstance(members, dict):
        raise _refuse(where, "members", "is not a json object", "dtype and shape of every member")
    extra = {}
    for name, spec in members.items():
        if not (isinstance(spec, dict) and set(spec) == {"dtype", "shape"} and isinstance(spec["shape"], list)):
            raise _refuse(where, "members", f"has a broken entry for {name}", "dtype and shape")
        if name.startswith("x_"):
            extra[name] = _check_extra(where, name, spec["dtype"], spec["shape"][1:])
            if spec["shape"][:1] != ["n"]:
                raise _refuse(where, "members", f"gives {name} the shape {spec['shape']}", "n as its first axis")
    layout = _Layout(m["height"], m["width"], m["landmark_scheme"], len(m["expression_names"]), extra)
    for name in REQUIRED_MEMBERS:
        if name not in members:
            raise _refuse(where, "members", f"does not list {name}", f"every required member of version {VERSION}")
    for name, spec in members.items():
        if not layout.known(name):
            raise _refuse(where, "members", f"lists the unknown {name}", "known members, or x_<name>")
        dtype, shape = layout.spec(name)
        if spec != {"dtype": dtype, "shape": list(shape)}:
            raise _refuse(where, "members", f"says {spec} for {name}", f"dtype {dtype} and shape {list(shape)}")
    if ("alpha_bytes" in members) != ("alpha_offsets" in members):
        raise _refuse(where, "members", "lists only one of alpha_bytes and alpha_offsets", "both or neither")


def _check_extra(where: Any, name: str, dtype: Any, shape: Any) -> tuple[str, tuple[int, ...]]:
    if not re.fullmatch(r"x_[A-Za-z0-9_]+", name):
        raise _refuse(where, str(name), "is not a legal name of an extra member", "x_<letters, digits, underscores>")
    try:
        dtype = np.dtype(dtype).name
    except TypeError:
        dtype = str(dtype)
    if dtype not in EXTRA_DTYPES:
        raise _refuse(where, name, f"is declared with dtype {dtype}", f"one of {', '.join(EXTRA_DTYPES)}")
    shape = tuple(shape)
    if not all(_is_int(s, 1) for s in shape):
        raise _refuse(where, name, f"is declared with shape {shape}", "positive integers behind the frame axis")
    return dtype, shape


# ---------------------------------------------------------------- reader


class Dataset:
    """A dataset that is there, checked.

    verify=True reads every file once: hash, members, dtypes, shapes and ranges (pictures: their headers).
    verify=False checks the manifest and that the files exist. Frames are read one at a time; nothing grows.
    A reader keeps seeing the generation that it opened until the write after the next one.
    """

    def __init__(self, root: str | Path, verify: bool = True):
        self.root = Path(root)
        for _ in range(20):
            raw = self._read_manifest()
            try:
                self.manifest = parse_manifest(raw, self.root / MANIFEST)
                self._shards: list[dict[str, _Entry] | None] = [None] * len(self.manifest["shards"])
                self._offsets: dict[tuple[int, str], np.ndarray] = {}
                if verify:
                    self._verify()
                else:
                    self._check_presence()
                return
            except ContractError:
                if self._read_manifest() == raw:  # else it was replaced meanwhile: look again
                    raise
        raise ContractError(f"{self.root}: {MANIFEST} changes while it is read, expected a dataset at rest")

    def _read_manifest(self) -> bytes:
        path = self.root / MANIFEST
        try:
            return path.read_bytes()
        except FileNotFoundError as e:
            raise ContractError(f"{path}: no such file, expected a dataset folder with its {MANIFEST}") from e
        except OSError as e:
            raise ContractError(f"{path}: {e.strerror or e}, expected a readable {MANIFEST}") from e

    def __repr__(self) -> str:
        return f"Dataset({str(self.root)!r}, {self.n_frames} frames of {self.width}x{self.height})"

    n_frames = property(lambda self: self.manifest["n_frames"])
    height = property(lambda self: self.manifest["height"])
    width = property(lambda self: self.manifest["width"])
    fps = property(lambda self: float(self.manifest["fps"]))
    digest = property(lambda self: self.manifest["digest"])
    train_range = property(lambda self: tuple(self.manifest["split"]["train"]))
    heldout_range = property(lambda self: tuple(self.manifest["split"]["heldout"]))

    @property
    def intrinsics(self) -> tuple[float, float, float, float]:
        """fx, fy, cx, cy in pixels."""
        c = self.manifest["camera"]
        return float(c["fx"]), float(c["fy"]), float(c["cx"]), float(c["cy"])

    @property
    def _layout(self) -> _Layout:
        m = self.manifest
        extra = {k: (v["dtype"], tuple(v["shape"][1:])) for k, v in m["members"].items() if k.startswith("x_")}
        return _Layout(m["height"], m["width"], m["landmark_scheme"], len(m["expression_names"]), extra)

    def path(self, name: str) -> Path:
        """Where the file `name` of this generation lies (`background.png`, `audio.wav`, `qa/…`, a shard)."""
        if name not in self.manifest["files"]:
            known = ", ".join(sorted(n for n in self.manifest["files"] if not n.startswith("shard-")))
            raise ContractError(f"{self.root / MANIFEST}: member files does not name {name}, expected one of {known}")
        aside = self.root / _ASIDE / _aside_name(name, self.manifest["files"][name])
        return aside if aside.exists() else self.root / name

    def _open(self, name: str) -> io.BufferedIOBase:
        for last in (False, True):
            path = self.path(name)
            try:
                return open(path, "rb")
            except FileNotFoundError as e:  # a finished write may just have moved it
                if last:
                    message = f"{self.root / name}: no such file, expected it because {MANIFEST} names it"
                    raise ContractError(message) from e
            except OSError as e:
                raise ContractError(f"{path}: {e.strerror or e}, expected a readable file") from e
        raise AssertionError("unreachable")

    def _check_presence(self) -> None:
        for name in self.manifest["files"]:
            self._open(name).close()

    def _verify(self) -> None:
        m = self.manifest
        expression = []
        for name, sha in m["files"].items():
            if not name.startswith("shard-"):
                self._verify_file(name, sha)
        for k, shard in enumerate(m["shards"]):
            expression.append(self._verify_shard(k, shard))
        low, high = _expression_range(np.concatenate(expression), m["split"]["train"])
        for key, value in (("range_min", low), ("range_max", high)):
            if m[key] != value:
                raise _refuse(self.root / MANIFEST, key, "is wrong", "the range of expression over the training frames")

    def _verify_file(self, name: str, sha: str) -> None:
        where = self.root / name
        h = hashlib.sha256()
        data = b""
        with self._open(name) as f:
            keep = name == BACKGROUND or name.startswith("audio_")
            for block in iter(lambda: f.read(1 << 20), b""):
                h.update(block)
                data += block if keep else b""
        if h.hexdigest() != sha:
            member = _damaged_member(data, where) if name.startswith("audio_") else "content"
            raise _refuse(where, member, "is damaged or was changed", f"sha256 {sha[:16]}… as {MANIFEST} says")
        if name == BACKGROUND:
            _check_picture(where, "content", data, "png", 3, self.height, self.width)
        elif name == AUDIO:
            _check_wav(self.path(name), where)
        elif name.startswith("audio_"):
            a = _parse_audio(data, where)
            if a.kind != name[6:-4]:
                raise _refuse(where, "kind", f"is {a.kind}", name[6:-4])
            if self.manifest["audio"][a.kind] != a.describe():
                raise _refuse(self.root / MANIFEST, f"audio.{a.kind}", "differs from the file", f"the facts of {name}")

    def _verify_shard(self, k: int, shard: dict[str, Any]) -> np.ndarray:
        where = self.root / shard["file"]
        with self._open(shard["file"]) as f:
            data = f.read()
        sha = self.manifest["files"][shard["file"]]
        if hashlib.sha256(data).hexdigest() != sha:
            member = _damaged_member(data, where)
            raise _refuse(where, member, "is damaged or was changed", f"sha256 {sha[:16]}… as {MANIFEST} says")
        file = io.BytesIO(data)
        index = self._index(k, file)
        arrays = {name: _read_entry(file, e, where, name, check=True) for name, e in index.items()}
        _check_values(where, arrays, self._layout, shard["first"])
        return arrays["expression"]

    def _index(self, k: int, file: io.BufferedIOBase | None = None) -> dict[str, _Entry]:
        """Members of shard k with dtype and shape checked; kept, a few kB a shard."""
        if self._shards[k] is not None:
            return self._shards[k]
        shard = self.manifest["shards"][k]
        where = self.root / shard["file"]
        if file is None:
            with self._open(shard["file"]) as opened:
                index = _npz_index(opened, where)
        else:
            index = _npz_index(file, where)
        layout, members = self._layout, self.manifest["members"]
        for name in members:
            if name not in index:
                raise _refuse(where, name, "is missing", f"every member that {MANIFEST} lists")
        for name, entry in index.items():
            if name not in members:
                raise _refuse(where, name, "is unknown", f"only members that {MANIFEST} lists")
            _check_type(where, name, layout, shard["count"], entry.dtype, entry.shape)
        self._shards[k] = index
        return index

    def _member(self, member: str) -> None:
        if member not in self.manifest["members"]:
            known = ", ".join(self.manifest["members"])
            raise _refuse(self.root / MANIFEST, member, "is not in this dataset", f"one of {known}")

    def shard_of(self, i: int) -> tuple[int, int]:
        """(number of the shard, row in it) of frame i."""
        if not 0 <= i < self.n_frames:
            raise ContractError(f"{self.root}: frame {i} does not exist, expected 0..{self.n_frames - 1}")
        firsts = [s["first"] for s in self.manifest["shards"]]
        k = int(np.searchsorted(firsts, i, "right")) - 1
        return k, i - firsts[k]

    def where(self, member: str, i: int) -> str:
        """`<shard file>: member <member> of frame <i>`, the start of a message about that picture."""
        return f"{self.root / self.manifest['shards'][self.shard_of(i)[0]]['file']}: member {member} of frame {i}"

    def column(self, member: str) -> np.ndarray:
        """A small member over all frames: [n_frames, …]. Encoded pictures come from `frame_bytes`."""
        self._member(member)
        if member in PICTURES or member.endswith("_offsets"):
            raise ContractError(f"{self.root}: member {member} is encoded, expected frame_bytes() to read it")
        parts = []
        for k, shard in enumerate(self.manifest["shards"]):
            entry = self._index(k)[member]
            with self._open(shard["file"]) as f:
                parts.append(_read_entry(f, entry, self.root / shard["file"], member))
        return np.concatenate(parts)

    def row(self, member: str, i: int) -> np.ndarray:
        """One frame of a member with a frame axis (for the large ones, as depth)."""
        self._member(member)
        k, r = self.shard_of(i)
        e = self._index(k)[member]
        if e.shape[:1] != (self.manifest["shards"][k]["count"],):
            raise ContractError(f"{self.root}: member {member} has no row per frame, expected frame_bytes() to read it")
        size = e.nbytes // e.shape[0]
        data = self._read(k, member, e.offset + r * size, size)
        return np.frombuffer(data, e.dtype).reshape(e.shape[1:])

    def frame_bytes(self, member: str, i: int) -> bytes | None:
        """The encoded picture `image_bytes`, `torso_bytes`, `label_bytes` or `alpha_bytes` of frame i.

        None where the dataset has no such member.
        """
        if member not in PICTURES:
            raise ContractError(f"{self.root}: member {member} is not a picture, expected one of {', '.join(PICTURES)}")
        k, r = self.shard_of(i)
        if member not in self.manifest["members"]:
            return None
        offsets = self._frame_offsets(k, member)
        start, stop = int(offsets[r]), int(offsets[r + 1])
        return self._read(k, member, self._index(k)[member].offset + start, stop - start)

    def _frame_offsets(self, k: int, member: str) -> np.ndarray:
        name = offsets_of(member)
        if (k, name) not in self._offsets:
            shard = self.manifest["shards"][k]["file"]
            index = self._index(k)
            with self._open(shard) as f:
                offsets = _read_entry(f, index[name], self.root / shard, name)
            if offsets[0] != 0 or (np.diff(offsets) <= 0).any() or offsets[-1] != index[member].shape[0]:
                raise _refuse(self.root / shard, name, "is wrong", f"offsets that rise from 0 and cover {member}")
            self._offsets[k, name] = offsets
        return self._offsets[k, name]

    def _read(self, k: int, member: str, offset: int, size: int) -> bytes:
        shard = self.manifest["shards"][k]["file"]
        with self._open(shard) as f:
            f.seek(offset)
            data = f.read(size)
        if len(data) != size:
            raise _refuse(self.root / shard, member, "ends early", f"{size} bytes at {offset}")
        return data

    def landmarks68(self) -> np.ndarray:
        """[n_frames, 68, 2] iBUG points in pixels."""
        return landmarks68(self.column("landmarks_px"), self.manifest["landmark_scheme"])

    def audio_features(self, kind: str) -> AudioFeatures:
        """The sound features of one kind; the error lists those that are there."""
        if kind not in self.manifest["audio"]:
            known = ", ".join(self.manifest["audio"]) or "none"
            raise ContractError(
                f"{self.root / MANIFEST}: member audio has no kind {kind!r}, expected one of those present: {known}"
            )
        return load_audio_features(self.path(f"audio_{kind}.npz"))


def validate(root: str | Path) -> dict[str, Any]:
    """Check a whole dataset; the manifest, or a ContractError."""
    return Dataset(root, verify=True).manifest


def _expression_range(expression: np.ndarray, train: Sequence[int]) -> tuple[list[float], list[float]]:
    part = expression[train[0] : train[1]].astype(np.float64)
    return part.min(0).tolist(), part.max(0).tolist()


# ---------------------------------------------------------------- writer


def _aside_name(name: str, sha: str) -> str:
    return f"{sha[:16]}-{name.replace('/', '%')}"


def _fsync(file: io.BufferedIOBase) -> None:
    file.flush()
    os.fsync(file.fileno())


def _fsync_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _named_files(root: Path) -> dict[str, str] | None:
    """files of the manifest in `root` (unchecked beyond their types), {} without one, None if it is unreadable."""
    try:
        m = json.loads((root / MANIFEST).read_bytes())
        files = {k: v for k, v in m["files"].items() if isinstance(v, str) and _SHA256.fullmatch(v)}
        legal = all(_SHARD_NAME.fullmatch(k) or _FILE_NAME.fullmatch(k) for k in files)
        return files if legal and isinstance(m["shards"], list) else None
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError, OSError):
        return None


class DatasetWriter:
    """Write a dataset, all of it or nothing.

    Context manager: a clean exit finishes, an exception leaves what was there. Everything is staged in
    `root/.write`; `finish` moves the shards in (their names carry their hash), puts the other files aside
    in `root/.pending`, replaces the manifest (from then on the new dataset is the one that is read), and
    last publishes the files under their plain names. Files that the manifest does not name are swept when
    the next write begins, so a reader of the former generation stays consistent until then. The folder is
    locked while it is written. A folder that holds other things than a dataset is refused.

    split: number of training frames, or {"train": [a, b], "heldout": [c, d]}, or None for ⌊N·10/11⌋.
    extra_members: {"x_<name>": (dtype, shape behind the frame axis)}.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        subject: str,
        height: int,
        width: int,
        camera: Mapping[str, Any],
        landmark_scheme: str,
        expression_names: Sequence[str],
        source: Mapping[str, Any],
        tools: Mapping[str, Any],
        licences: Mapping[str, Any] | None = None,
        fps: float | int = FPS,
        split: Any = None,
        extra_members: Mapping[str, tuple[Any, Sequence[int]]] | None = None,
    ):
        self.root = Path(root)
        self._split = split
        if not isinstance(camera, Mapping) or not set(camera) == {"fx", "fy", "cx", "cy"}:
            raise _refuse(self.root, "camera", f"is {camera!r}", "fx, fy, cx, cy in pixels")
        where = self.root / MANIFEST
        extra = {k: _check_extra(where, k, d, s) for k, (d, s) in (extra_members or {}).items()}
        self._head = {
            "version": VERSION,
            "subject": subject,
            "fps": float(fps),
            "height": height,
            "width": width,
            "camera": {k: float(v) for k, v in camera.items()},
            "conventions": CONVENTIONS,
            "landmark_scheme": landmark_scheme,
            "expression_names": list(expression_names),
            "source": dict(source),
            "tools": dict(tools),
            "licences": dict(licences or {}),
        }
        try:
            self._head = json.loads(json.dumps(self._head, allow_nan=False, default=_plain))
        except (TypeError, ValueError) as e:
            raise ContractError(f"{where}: member source, tools or licences is not json ({_short(e)})") from e
        self._probe_head(extra)
        self._layout = _Layout(self._head["height"], self._head["width"], landmark_scheme, len(expression_names), extra)
        self._members: list[str] | None = None
        self._rows: dict[str, list] = {}
        self._expression: list[np.ndarray] = []
        self._shards: list[dict[str, Any]] = []
        self._files: dict[str, str] = {}
        self._audio: dict[str, dict[str, Any]] = {}
        self._n = 0
        self._lock: int | None = None
        self._made_root = False
        self._moved: list[Path] = []
        self.manifest: dict[str, Any] | None = None

    def _probe_head(self, extra: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
        """Check what is known before the first frame, with one made-up frame in place of the rest."""
        h = self._head
        sha = "0" * 64
        k = len(h["expression_names"])
        probe = {**h, "n_frames": 1, "split": default_split(1), "range_min": [0] * k, "range_max": [0] * k, "audio": {}}
        probe |= {"files": {BACKGROUND: sha, f"shard-00000-{sha[:8]}.npz": sha}, "digest": sha, "members": {}}
        probe["shards"] = [{"file": f"shard-00000-{sha[:8]}.npz", "first": 0, "count": 1}]
        if h["landmark_scheme"] in LANDMARK_SCHEMES:
            layout = _Layout(h["height"], h["width"], h["landmark_scheme"], k, extra)
            probe["members"] = _describe_members(layout, [*REQUIRED_MEMBERS, *extra])
        _check_manifest(probe, self.root / MANIFEST)

    # ------------------------------------------------ life cycle

    def __enter__(self) -> "DatasetWriter":
        self._begin()
        return self

    def __exit__(self, kind, value, traceback) -> None:
        if kind is not None:
            self._abandon()
        elif self.manifest is None:
            self.finish()

    def _begin(self) -> None:
        if self.manifest is not None:
            raise ContractError(f"{self.root}: the dataset is finished, expected a new DatasetWriter for more")
        if self._lock is not None:
            return
        self._made_root = not self.root.exists()
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as e:
            raise ContractError(f"{self.root}: {e.strerror or e}, expected a folder that can be written") from e
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._refuse_foreign()
            _recover_and_sweep(self.root)
            (self.root / _STAGING).mkdir()
        except BlockingIOError as e:
            self._unlock()
            raise ContractError(f"{self.root}: another process writes this dataset, expected it to end first") from e
        except OSError as e:
            self._unlock()
            raise ContractError(f"{self.root}: {e.strerror or e}, expected a folder that can be written") from e
        except BaseException:
            self._unlock()
            raise

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as e:
            raise ContractError(f"{self.root}: {e.strerror or e}, expected a folder that can be written") from e

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _refuse_foreign(self) -> None:
        names = sorted(os.listdir(self.root))
        foreign = [n for n in names if not _SHARD_NAME.fullmatch(n) and n not in (_STAGING, _ASIDE)]
        ours = len(foreign) < len(names) if MANIFEST in names else not foreign
        if not ours and not _named_files(self.root):
            raise ContractError(
                f"{self.root}: holds {foreign[0]} and no dataset, expected an empty folder (other files get swept)"
            )

    def _abandon(self) -> None:
        """Take back what is not named by the manifest in place."""
        if self._lock is None:
            f"{self.root}: holds {foreign[0]} and no dataset, expected an empty folder (unnamed files are swept)"
        try:
            named = _named_files(self.root) or {}
            keep = {self.root / n for n in named} | {self.root / _ASIDE / _aside_name(n, s) for n, s in named.items()}
            for path in self._moved:
                if path not in keep:
                    path.unlink(missing_ok=True)
            shutil.rmtree(self.root / _STAGING, ignore_errors=True)
            for folder in (self.root / _ASIDE, self.root) if self._made_root else (self.root / _ASIDE,):
                if folder.is_dir() and not os.listdir(folder):
                    folder.rmdir()
        finally:
            self._unlock()

    # ------------------------------------------------ frames

    def add(self, frames: Mapping[str, Any]) -> None:
        """A run of consecutive frames: {member: [k, …] array, or list of k bytes for encoded pictures}.

        Arrays must have the contract's dtype (python lists are converted); `frame_index` may be left out.
        Every call has the same members.
        """
        self._begin()
        where = f"{self.root} (frames to add from {self._n})"
        arrays, n = self._stack(frames, where)
        for name, a in arrays.items():
            _check_type(where, name, self._layout, n, a.dtype, a.shape)
        _check_values(where, arrays, self._layout, self._n)
        if self._members is None:
            self._members = sorted(arrays)
        elif self._members != sorted(arrays):
            odd = sorted(set(self._members) ^ set(arrays))[0]
            raise _refuse(where, odd, "is not in every call", f"the members of the first: {', '.join(self._members)}")
        self._expression.append(arrays["expression"].copy())
        for name, a in arrays.items():
            if name in PICTURES:
                offsets = arrays[offsets_of(name)]
                rows = [a[offsets[i] : offsets[i + 1]] for i in range(n)]
            elif name.endswith("_offsets") and not name.startswith("x_"):
                continue
            else:
                rows = list(a.copy())
            self._rows.setdefault(name, []).extend(rows)
        self._n += n
        with self._disk_errors():
            while len(self._rows["frame_index"]) >= SHARD_FRAMES:
                self._write_shard(SHARD_FRAMES)

    def _stack(self, frames: Mapping[str, Any], where: str) -> tuple[dict[str, np.ndarray], int]:
        if "cam_to_world" not in frames:
            raise _refuse(where, "cam_to_world", "is missing", "every required member")
        n = len(frames["cam_to_world"])
        if n == 0:
            raise _refuse(where, "cam_to_world", "is empty", "at least one frame")
        frames = {"frame_index": np.arange(self._n, self._n + n, dtype=np.int32), **frames}
        given = {offsets_of(k) for k in frames if k in PICTURES}
        for name in REQUIRED_MEMBERS:
            if name not in frames and name not in given:
                raise _refuse(where, name, "is missing", "every required member")
        for name in self._layout.extra:
            if name not in frames:
                raise _refuse(where, name, "is missing", "every declared extra member")
        arrays = {}
        for name, value in frames.items():
            if not self._layout.known(name) or (name.endswith("_offsets") and not name.startswith("x_")):
                known = [k for k in (*REQUIRED_MEMBERS, *OPTIONAL_MEMBERS) if not k.endswith("_offsets")]
                raise _refuse(where, name, "is unknown", f"one of {', '.join(known)}, or a declared x_<name>")
            if name in PICTURES:
                if len(value) != n or not all(isinstance(v, bytes) for v in value):
                    raise _refuse(where, name, f"is not a list of {n} bytes objects", "one encoded picture a frame")
                arrays[name] = np.frombuffer(b"".join(value), np.uint8)
                arrays[offsets_of(name)] = np.cumsum([0, *map(len, value)], dtype=np.int64)
            elif isinstance(value, np.ndarray):
                arrays[name] = value
            else:
                try:
                    arrays[name] = np.asarray(value, self._layout.spec(name)[0])
                except (ValueError, TypeError, OverflowError) as e:
                    raise _refuse(where, name, f"is no array ({_short(e)})", self._layout.spec(name)[0]) from e
        return arrays, n

    def _write_shard(self, n: int) -> None:
        arrays = {}
        for name, rows in self._rows.items():
            taken, self._rows[name] = rows[:n], rows[n:]
            if name in PICTURES:
                arrays[name] = np.concatenate(taken)
                arrays[offsets_of(name)] = np.cumsum([0, *map(len, taken)], dtype=np.int64)
            else:
                arrays[name] = np.stack(taken)
        staged = self.root / _STAGING / "shard.npz"
        with open(staged, "wb") as f:
            write_npz(f, arrays)
            _fsync(f)
        sha = _sha256_file(staged)
        name = f"shard-{len(self._shards):05d}-{sha[:8]}.npz"
        os.replace(staged, staged.with_name(name))
        first = sum(s["count"] for s in self._shards)
        self._shards.append({"file": name, "first": first, "count": n})
        self._files[name] = sha

    # ------------------------------------------------ other files

    def add_file(self, name: str, data: bytes | str | Path) -> None:
        """`background.png`, `audio.wav`, `audio_<kind>.npz` or `qa/…`, from bytes or from a file (copied)."""
        self._begin()
        where = self.root / name
        if not _FILE_NAME.fullmatch(name):
            raise ContractError(f"{where}: not a file of a dataset, expected {_FIXED_NAMES}")
        staged = self.root / _STAGING / name.replace("/", "%")
        try:
            with open(staged, "wb") as out:
                if isinstance(data, bytes):
                    out.write(data)
                else:
                    with open(data, "rb") as f:
                        shutil.copyfileobj(f, out, 1 << 20)
                _fsync(out)
        except OSError as e:
            staged.unlink(missing_ok=True)
            raise ContractError(f"{e.filename or where}: {e.strerror or e}, expected content for {name}") from e
        try:
            self._check_file(name, staged, where)
        except ContractError:
            staged.unlink()
            self._files.pop(name, None)
            raise
        self._files[name] = _sha256_file(staged)

    def _check_file(self, name: str, staged: Path, where: Path) -> None:
        if name == BACKGROUND:
            with open(staged, "rb") as f:
                _check_picture(where, "content", f.read(64), "png", 3, self._layout.height, self._layout.width)
        elif name == AUDIO:
            _check_wav(staged, where)
        elif name.startswith("audio_"):
            a = _parse_audio(staged.read_bytes(), where)
            if a.kind != name[6:-4]:
                raise _refuse(where, "kind", f"is {a.kind}", name[6:-4])
            self._audio[a.kind] = a.describe()

    # ------------------------------------------------ commit

    def finish(self) -> dict[str, Any]:
        """Write the last shard and put the dataset in place; returns the manifest."""
        self._begin()
        try:
            if self._n == 0:
                raise ContractError(f"{self.root}: no frame was added, expected a dataset of at least one")
            with self._disk_errors():
                if self._rows["frame_index"]:
                    self._write_shard(len(self._rows["frame_index"]))
                manifest = self._manifest()
                self._commit(manifest, dump_manifest(manifest))
        except BaseException:
            self._abandon()
            raise
        try:
            shutil.rmtree(self.root / _STAGING)
        finally:
            self._unlock()
        return self.manifest

    def _manifest(self) -> dict[str, Any]:
        split = self._split
        if split is None:
            split = default_split(self._n)
        elif not isinstance(split, Mapping):
            split = {"train": [0, _plain(split)], "heldout": [_plain(split), self._n]}
        split = {k: [_plain(x) for x in v] for k, v in split.items()}
        _check_split(split, self._n, self.root / MANIFEST)
        low, high = _expression_range(np.concatenate(self._expression), split["train"])
        m = {**self._head, "n_frames": self._n, "split": split, "range_min": low, "range_max": high}
        m |= {"audio": self._audio, "files": dict(sorted(self._files.items())), "shards": self._shards}
        m |= {"members": _describe_members(self._layout, self._members), "digest": ""}
        _check_manifest(m, self.root / MANIFEST)
        return m

    def _commit(self, manifest: dict[str, Any], raw: bytes) -> None:
        root, staging, aside = self.root, self.root / _STAGING, self.root / _ASIDE
        old = _named_files(root) or {}
        aside.mkdir(exist_ok=True)
        for name, sha in manifest["files"].items():
            if name.startswith("shard-"):
                if old.get(name, sha) != sha:
                    raise ContractError(f"{root / name}: two different shards share this name, expected another folder")
                source, target = staging / name, root / name
            else:
                source, target = staging / name.replace("/", "%"), aside / _aside_name(name, sha)
            self._moved.append(target)
            os.replace(source, target)
        staged = staging / MANIFEST
        with open(staged, "wb") as f:
            f.write(raw)
            _fsync(f)
        _fsync_folder(aside)
        _fsync_folder(root)
        os.replace(staged, root / MANIFEST)  # from here on the new dataset is the one that is read
        _fsync_folder(root)
        self.manifest = json.loads(raw)
        _publish(root, manifest["files"], old)


def _plain(x: Any) -> Any:
    """numpy scalars and arrays as json types, paths as text; anything else is refused by json."""
    if isinstance(x, np.generic | np.ndarray):
        return x.tolist()
    if isinstance(x, Path):
        return str(x)
    if isinstance(x, int | float | str | None):
        return x
    raise TypeError(f"{type(x).__name__} is not json")


def _describe_members(layout: _Layout, members: Sequence[str]) -> dict[str, Any]:
    specs = {m: layout.spec(m) for m in members}
    return {m: {"dtype": dtype, "shape": list(shape)} for m, (dtype, shape) in specs.items()}


def _sha256_file(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _publish(root: Path, files: Mapping[str, str], old: Mapping[str, str]) -> None:
    """Move the files that stand aside under their plain names; the former generation's are put aside first."""
    for name, sha in files.items():
        source, target = root / _ASIDE / _aside_name(name, sha), root / name
        if not source.exists():
            continue
        keep = root / _ASIDE / _aside_name(name, old[name]) if old.get(name, sha) != sha else None
        if keep is not None and target.exists() and not keep.exists():
            os.link(target, keep)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(source, target)
    # Files of the former generation that the new one does not have stay in place until the next write.
    if (root / _ASIDE).is_dir() and not os.listdir(root / _ASIDE):
        (root / _ASIDE).rmdir()


def _recover_and_sweep(root: Path) -> None:
    """Complete a publication that was cut short, then remove what the manifest in place does not name."""
    shutil.rmtree(root / _STAGING, ignore_errors=True)
    named = _named_files(root)
    if named is None:  # a manifest that nobody can read: touch nothing that might be mended
        return
    _publish(root, named, {})
    keep = {MANIFEST, *named}
    for folder, folders, files in os.walk(root, topdown=False):
        for f in files:
            path = Path(folder, f)
            if path.relative_to(root).as_posix() not in keep:
                path.unlink()
        for d in folders:
            path = Path(folder, d)
            if path.is_symlink():
                path.unlink()
            elif not os.listdir(path):
                path.rmdir()
