"""Landmarks of any video, for measuring lips: `python -m preprocess.lips --frames VIDEO --out X.npz [--models_dir D]`.

Every frame of the file counts, in its order, without resampling. --frames may also be a folder of .npy pictures or of
.png and .jpg pictures (uint8 rgb, sorted by name). X.npz: `landmarks_px` float32 [n,478,2], `confidence` float32 [n]
(1 with a face, 0 without; such rows are 0), `height`, `width`.
"""

import argparse
import io
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from preprocess.landmarker import detect
from preprocess.pipeline import need_model
from preprocess.stages import progress
from preprocess.workers import native, ordered, pool
from tkjax import video
from tkjax.errors import UserError
from tkjax.files import write_atomic
from tkjax.images import decode_rgb

BATCH = 16  # frames that travel to a worker at once


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


def find_landmarks(source: Path, model: Path) -> dict[str, np.ndarray]:
    """The members of X.npz for a video or folder."""
    frames, expected = read_pictures(source)
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
        faces = list(progress(ordered(executor, detect, batches()), expected, "landmarks"))
    return {
        "landmarks_px": np.concatenate([f.landmarks[..., :2] for f in faces]),
        "confidence": np.concatenate([f.found for f in faces]).astype(np.float32),
        "height": np.int64(size[0][0]),
        "width": np.int64(size[0][1]),
    }


def main(argv: list[str] | None = None) -> int:
    """Command line; 0, or 2 with one sentence on standard error."""
    parser = argparse.ArgumentParser("preprocess.lips", description="478 face landmarks of every frame of a video.")
    parser.add_argument("--frames", required=True, help="a video file, or a folder of .npy, .png or .jpg pictures")
    parser.add_argument("--out", required=True, help="the npz file to write")
    parser.add_argument("--models_dir", help="folder with face_landmarker.task; else $TKJAX_MODELS, ~/.cache/tkjax")
    args = parser.parse_args(argv)
    try:
        with native("OpenCV (cv2)"):
            import cv2  # noqa: F401
        arrays = find_landmarks(Path(args.frames), need_model(args.models_dir))
        out = io.BytesIO()
        np.savez(out, **arrays)
        write_atomic(args.out, out.getvalue())
    except UserError as e:
        print(" ".join(str(e).split()), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
