"""The whole source frames beside the dataset, so that a rendered head can go back where it was cut from.

full.mp4: every frame at 25 fps with the dataset's frame numbers (frame k has pts k / 25 s), H.264, crf 12, full
chroma (4:4:4: a keyed edge keeps its colour, odd sizes need no padding), a key frame every 12 and no B-frames, so that
any frame is found by decoding at most 12. full_alpha.mp4: the matte of a keyed clip, FFV1 grey, lossless, every frame
a key frame.
Both are written in parts of 64 frames that survive a kill, and joined at the end without another encoding.
"""

import collections
import functools
import os
from collections.abc import Iterator
from concurrent.futures import Executor
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from jaxtyping import UInt8

from preprocess.chunks import CHUNK_FRAMES
from preprocess.framing.survey import FPS
from preprocess.keying import matting, screen
from preprocess.resumable import progress
from preprocess.workers import ordered
from tkjax.errors import UserError
from tkjax.media import video

# The bytes depend on the number of threads, and with the macroblock tree (measured: one run in ten, sizes that are no
# multiples of 16) on what memory held before; a run that was killed has to give the same ones.
H264 = {"crf": "12", "preset": "fast", "bf": "0", "g": "12", "threads": "2", "mbtree": "0", "rc-lookahead": "0"}
STEP = 1 / Fraction(FPS).limit_denominator(1000)
ALPHA_MOST = 4  # frames in flight to the workers


class Part:
    """A run of frames, written under a hidden name until it is whole; colour [H,W,3] or grey [H,W]."""

    def __init__(self, path: Path, first: np.ndarray):
        self.path, self._hidden = path, path.with_name(f".{path.name}")
        self.grey = first.ndim == 2
        self._out = av.open(str(self._hidden), "w", format="mp4")
        if self.grey:
            stream = self._out.add_stream("ffv1", rate=1 / STEP)
            stream.pix_fmt = "gray"
        else:
            stream = self._out.add_stream("libx264", rate=1 / STEP, options=H264)
            stream.pix_fmt = "yuv444p"
            stream.codec_context.colorspace, stream.codec_context.color_range = Colorspace.ITU709, ColorRange.MPEG
            stream.codec_context.color_primaries = stream.codec_context.color_trc = 1  # BT.709
        stream.height, stream.width = first.shape[:2]
        stream.codec_context.time_base = STEP
        self._stream, self._n = stream, 0

    def write(self, picture: np.ndarray) -> None:
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="gray" if self.grey else "rgb24")
        if not self.grey:
            frame = frame.reformat(
                format="yuv444p",
                src_color_range=ColorRange.JPEG,
                dst_colorspace=Colorspace.ITU709,
                dst_color_range=ColorRange.MPEG,
            )
        frame.pts, frame.time_base = self._n, STEP
        self._n += 1
        self._out.mux(self._stream.encode(frame))

    def close(self) -> None:
        self._out.mux(self._stream.encode(None))
        self._out.close()
        os.replace(self._hidden, self.path)


def join(parts: list[Path], out: Path) -> None:
    """The packets of parts of CHUNK_FRAMES frames one behind the other in `out`."""
    hidden = out.with_name(f".{out.name}")
    with av.open(str(hidden), "w", format="mp4", options={"movflags": "+faststart"}) as target:
        stream = None
        for k, part in enumerate(parts):
            with av.open(str(part)) as source:
                given = source.streams.video[0]
                stream = stream or target.add_stream_from_template(given)
                shift = round(k * CHUNK_FRAMES * STEP / given.time_base)
                for packet in source.demux(given):
                    if packet.dts is not None:
                        packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                        packet.stream = stream
                        target.mux(packet)
    os.replace(hidden, out)


@functools.lru_cache(1)
def _screen(folder: str) -> matting.Screen:
    cv2.setNumThreads(1)
    return screen.load(Path(folder))


def keyed(folder: str, rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Worker: (alpha, colour) of one frame by the screen of a finished stage."""
    return matting.matte(_screen(folder), rgb)


def _part_names(folder: Path, k: int, alpha: bool) -> list[Path]:
    return [folder / f"part-{k:05d}.mp4"] + ([folder / f"part_alpha-{k:05d}.mp4"] if alpha else [])


def _pictures(source: Path, folder: Path, key: Path | None, executor: Executor | None, seen: list[int]) -> Iterator:
    """(frame number, [colour] or [colour, alpha]) of the frames whose parts are not there; `seen` counts all."""
    numbers: collections.deque[int] = collections.deque()

    def todo() -> Iterator[tuple[int, np.ndarray]]:
        missing = True
        own_alpha = key is not None and screen.load(key).own_alpha
        for i, rgb in enumerate(video.read_frames_at_fps(source, FPS, own_alpha)):
            seen[0] = i + 1
            if i % CHUNK_FRAMES == 0:
                missing = not all(p.exists() for p in _part_names(folder, i // CHUNK_FRAMES, key is not None))
            if missing:
                yield i, rgb

    def items() -> Iterator[tuple[str, np.ndarray]]:
        for i, rgb in todo():
            numbers.append(i)
            yield str(key), rgb

    if key is None:
        for i, rgb in todo():
            yield i, [rgb]
    else:
        for alpha, colour in ordered(executor, keyed, items(), ALPHA_MOST):
            yield numbers.popleft(), [colour, alpha]


def full_frames(folder: Path, source: Path, expected: int, key: Path | None, executor: Executor | None) -> None:
    """Stage: full.mp4 of the source's frames; with the folder of a screen stage (`key`) of the person's own colour,
    and full_alpha.mp4."""
    seen, open_parts, last = [0], [], -1
    try:
        for i, pictures in progress(_pictures(source, folder, key, executor, seen), expected, "full"):
            if not open_parts or i // CHUNK_FRAMES != last:
                _close(open_parts)
                last = i // CHUNK_FRAMES
                names = _part_names(folder, last, key is not None)
                open_parts = [Part(name, p) for name, p in zip(names, pictures, strict=True)]
            for part, picture in zip(open_parts, pictures, strict=True):
                part.write(picture)
        _close(open_parts)
        names = [_part_names(folder, k, key is not None) for k in range(-(-seen[0] // CHUNK_FRAMES))]
        for out, parts in zip(("full.mp4", "full_alpha.mp4"), zip(*names, strict=True), strict=False):
            join(list(parts), folder / out)
    except av.FFmpegError as e:
        raise UserError(f"{folder}: the full frames cannot be written ({e.strerror}), expected room on the disk") from e
    for parts in names:
        for part in parts:
            part.unlink()


def _close(parts: list[Part]) -> None:
    """Finish the parts; the matte last, so that a colour part without its matte is made again."""
    for part in parts:
        part.close()
    parts.clear()


def read_alpha(path: Path) -> Iterator[UInt8[np.ndarray, "H W"]]:
    """The frames of full_alpha.mp4."""
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="gray")


def read_keyed(folder: Path) -> Iterator[tuple[UInt8[np.ndarray, "H W 3"], UInt8[np.ndarray, "H W"]]]:
    """(colour, alpha) of every frame of a finished stage of a keyed clip."""
    yield from zip(video.read_frames(folder / "full.mp4"), read_alpha(folder / "full_alpha.mp4"), strict=True)
