"""What some frames, pictures and sounds must be, whether they are read or about to be written."""

import struct
import wave
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tkjax.contract.refusal import first_bad, refuse, short
from tkjax.contract.spec import AUDIO_HZ, BOXES, PICTURES, ROTATION_TOLERANCE, Layout, offsets_of


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


def check_picture(where: Any, member: str, data: bytes, kind: str, channels: int, height: int, width: int) -> None:
    """An encoded picture of the right format, size and channels, by its header."""
    header = picture_header(data)
    expected = f"an 8-bit {kind} of {width}x{height} pixels and {channels} channel{'s' if channels > 1 else ''}"
    if header is None:
        raise refuse(where, member, "is neither an 8-bit PNG nor a JPEG", expected)
    if header != (kind, width, height, channels):
        raise refuse(where, member, f"is a {header[0]} of {header[1]}x{header[2]} with {header[3]} channels", expected)


def check_type(where: Any, member: str, layout: Layout, n: int, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    """dtype and shape of a known member over n frames."""
    want_dtype, template = layout.spec(member)
    if dtype != np.dtype(want_dtype).newbyteorder("<"):
        raise refuse(where, member, f"has dtype {dtype}", want_dtype)
    want = tuple({"n": n, "n+1": n + 1}.get(s, s) for s in template)
    if len(shape) != len(want) or any(w not in ("bytes", s) for s, w in zip(shape, want, strict=True)):
        raise refuse(where, member, f"has shape {tuple(shape)}", str(want).replace("'bytes'", "any length"))


def check_values(where: Any, arrays: Mapping[str, np.ndarray], layout: Layout, first: int) -> None:
    """Ranges of members whose dtype and shape are right; `first` is the number of the first frame."""

    def require(member: str, good: np.ndarray, expected: str) -> None:
        if not good.all():
            i = first_bad(good)
            shown = f"is {a[i].tolist()}" if a[i].size <= 4 else "is out of range"
            raise refuse(where, member, f"{shown} at frame {first + i}", expected)

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


def _check_offsets(where: Any, member: str, arrays: Mapping[str, np.ndarray], layout: Layout, first: int) -> None:
    """Offsets that cut the bytes into legal pictures."""
    name = offsets_of(member)
    offsets, data = arrays[name], arrays[member]
    if offsets[0] != 0 or (np.diff(offsets) <= 0).any():
        raise refuse(where, name, "does not rise from 0", "strictly increasing offsets that start at 0")
    if offsets[-1] != len(data):
        raise refuse(where, name, f"ends at {offsets[-1]}", f"to cover the {len(data)} bytes of {member}")
    kind, channels = PICTURES[member]
    for i in range(len(offsets) - 1):
        frame = data[offsets[i] : offsets[i + 1]].tobytes()
        check_picture(where, f"{member} of frame {first + i}", frame, kind, channels, layout.height, layout.width)


def check_wav(path: Path, where: Any) -> None:
    """16 bit mono PCM at AUDIO_HZ, by the header of the file."""
    try:
        with wave.open(str(path)) as w:
            found = (w.getnchannels(), w.getsampwidth(), w.getframerate())
    except (wave.Error, EOFError, OSError) as e:
        raise refuse(where, "header", f"is not that of a wav file ({short(e)})", "PCM sound, 16 bit mono") from e
    if found != (1, 2, AUDIO_HZ):
        shown = f"says {found[0]} channels of {8 * found[1]} bit at {found[2]} Hz"
        raise refuse(where, "header", shown, f"one channel of 16 bit at {AUDIO_HZ} Hz")


def expression_range(expression: np.ndarray, train: Sequence[int]) -> tuple[list[float], list[float]]:
    """Lowest and highest value of each dimension of [n, K] over the training frames."""
    part = expression[train[0] : train[1]].astype(np.float64)
    return part.min(0).tolist(), part.max(0).tolist()
