"""Landmarks of any video, for measuring lips: `python -m preprocess.lips --frames VIDEO --out X.npz [--models_dir D]`.

Every frame of the file counts, in its order, without resampling. --frames may also be a folder of .npy pictures or of
.png and .jpg pictures (uint8 rgb, sorted by name), or `-`: raw frames on standard input, each behind its height and
width (two little-endian uint32), so that a program can measure what it draws without a file. X.npz: `landmarks_px`
float32 [n,478,2], `confidence` float32 [n] (1 with a face, 0 without; such rows are 0), `height`, `width`.
"""

import argparse
import io
import struct
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from preprocess.faces import landmarker
from preprocess.pipeline import need_model
from preprocess.resumable import progress
from preprocess.workers import native, ordered, pool
from tkjax.errors import UserError
from tkjax.host.files import write_atomic
from tkjax.media import video
from tkjax.media.images import decode_rgb

BATCH = 16  # frames that travel to a worker at once
HEAD = struct.Struct("<II")  # height and width before a raw frame
MAX_RAW_SIDE = 1 << 14  # pixels; a stream that is none is noticed before its memory is asked for


def read_pictures(source: Path) -> tuple[Iterator[np.ndarray], int]:
    """(rgb frames, how many are expected) of a video file or a folder of pictures."""
    if not source.is_dir():
        info = video.probe(source)
        return video.read_frames(source), info.n_frames
    files = sorted(p for p in source.iterdir() if p.suffix.lower() in (".npy", ".png", ".jpg", ".jpeg"))
    if not files:
        raise UserError(f"{source} holds no .npy, .png or .jpg pictures; give a video or a folder of frames")

    def read() -> Iterator[np.ndarray]:
        for path in files:
            if path.suffix.lower() != ".npy":
                yield decode_rgb(path.read_bytes(), str(path))
                continue
            try:
                rgb = np.load(path, allow_pickle=False)
            except (OSError, ValueError) as e:
                raise UserError(f"{path} is not a readable array; expected a uint8 picture [H,W,3]") from e
            if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3:
                raise UserError(f"{path} has dtype {rgb.dtype} and shape {rgb.shape}; expected a uint8 picture [H,W,3]")
            yield rgb

    return read(), len(files)


def read_raw(stream: BinaryIO) -> Iterator[np.ndarray]:
    """The frames of a raw stream; UserError where it ends within one."""
    while head := stream.read(HEAD.size):
        h, w = HEAD.unpack(head) if len(head) == HEAD.size else (0, 0)
        if not (0 < h <= MAX_RAW_SIDE and 0 < w <= MAX_RAW_SIDE):
            raise UserError(f"standard input: expected frames of 1 to {MAX_RAW_SIDE} pixels a side, found {h}x{w}")
        data = stream.read(3 * h * w)
        if len(data) < 3 * h * w:
            raise UserError(f"standard input ends within a frame of {h}x{w}; expected {3 * h * w} bytes of it")
        yield np.frombuffer(data, np.uint8).reshape(h, w, 3)


def find_landmarks(frames: Iterator[np.ndarray], expected: int, model: Path) -> dict[str, np.ndarray]:
    """The members of X.npz for these frames, about `expected` of them; they are taken as they are worked on."""
    size: list[tuple[int, int]] = []

    def batches():
        held = []
        for rgb in frames:
            size.append(rgb.shape[:2])
            del size[1:]
            held.append(rgb)
            if len(held) == BATCH:
                yield str(model), held
                held = []
        if held:
            yield str(model), held

    with tempfile.TemporaryDirectory() as folder, pool(Path(folder) / "workers.log") as executor:
        faces = list(progress(ordered(executor, landmarker.detect, batches()), expected, "landmarks"))
    if not faces:
        raise UserError("there are no frames to find landmarks in")
    return {
        "landmarks_px": np.concatenate([f.landmarks[..., :2] for f in faces]),
        "confidence": np.concatenate([f.found for f in faces]).astype(np.float32),
        "height": np.int64(size[0][0]),
        "width": np.int64(size[0][1]),
    }


def main(argv: list[str] | None = None) -> int:
    """Command line; 0, or 2 with one sentence on standard error."""
    parser = argparse.ArgumentParser("preprocess.lips", description="478 face landmarks of every frame of a video.")
    parser.add_argument("--frames", required=True, help="a video, a folder of .npy, .png or .jpg files, or - (stdin)")
    parser.add_argument("--out", required=True, help="the npz file to write")
    parser.add_argument("--models_dir", help="folder with face_landmarker.task; else $TKJAX_MODELS, ~/.cache/tkjax")
    args = parser.parse_args(argv)
    try:
        with native("OpenCV (cv2)"):
            import cv2  # noqa: F401
        model = need_model(args.models_dir)
        raw = args.frames == "-"
        frames, expected = (read_raw(sys.stdin.buffer), 0) if raw else read_pictures(Path(args.frames))
        arrays = find_landmarks(frames, expected, model)
        out = io.BytesIO()
        np.savez(out, **arrays)
        write_atomic(args.out, out.getvalue())
    except UserError as e:
        print(" ".join(str(e).split()), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
