"""Whole source frames by number, out of a video of constant rate with frequent key frames.

Frames are asked for forwards, backwards and around turning points. A decoder only runs forwards, so a step back decodes
from the key frame before it, and all frames on the way are kept for the steps that follow; the oldest go when the
cache is full. Memory does not depend on how many frames are asked for.
"""

import collections
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import av
import numpy as np
from jaxtyping import UInt8

from tkjax.errors import UserError
from tkjax.media.video import VideoWriter, open_media, to_rgb

GOP = 8  # frames between key frames of files made here: a step back decodes at most so many
CRF = 16  # hardly visible loss: these pixels are what the pasted video consists of
KEPT, CACHE_BYTES = 32, 160 << 20  # decoded frames that are kept: so many, fewer where they are large
AHEAD = 24  # frames that are rather decoded through than jumped over


class FullFrames:
    """Frame k of a video, k = 0, 1, …; hw: size of the picture (the file's may be a row and column larger).

    grey: the pictures are [H, W] (a matte). Frames lie at k / fps seconds, as `VideoWriter` writes them.
    """

    def __init__(self, path: str | Path, hw: tuple[int, int], fps: float, grey: bool = False):
        self.path, self.hw, self.grey, self._fps = Path(path), tuple(hw), grey, fps
        self._kept: collections.OrderedDict[int, av.VideoFrame] = collections.OrderedDict()
        self._container, self._stream, self._coming, self._next = None, None, None, 0
        self._most = max(GOP + 1, min(KEPT, CACHE_BYTES // (2 * hw[0] * hw[1])))

    def __getitem__(self, k: int) -> UInt8[np.ndarray, "H W *C"]:
        if k not in self._kept:
            self._decode_to(k)
        frame = self._kept[k]
        if self.grey and frame.format.name.startswith("gray"):
            picture = frame.to_ndarray()
        else:
            picture = to_rgb(frame)[..., 0] if self.grey else to_rgb(frame)
        if picture.shape[0] < self.hw[0] or picture.shape[1] < self.hw[1]:
            found, wanted = (f"{w}x{h}" for h, w in (picture.shape[:2], self.hw))
            raise UserError(f"{self.path}: its pictures have {found} pixels, expected {wanted}; make the avatar again")
        return np.ascontiguousarray(picture[: self.hw[0], : self.hw[1]])

    def _decode_to(self, k: int) -> None:
        """Frame k into the cache, with those that are decoded on the way."""
        if self._coming is None or not self._next <= k < self._next + AHEAD:
            self._seek(k)
        for number, frame in self._coming:
            self._next = number + 1
            self._kept[number] = frame
            self._kept.move_to_end(number)
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
            if number == k:
                return
            if number > k:
                break
        self._coming = None
        raise UserError(f"{self.path}: frame {k} cannot be decoded, expected an undamaged video; make the avatar again")

    def _seek(self, k: int) -> None:
        """The decoder at the last key frame that is not behind k."""
        if self._container is None:
            self._container = self._open()
            self._stream = self._container.streams.video[0]
            self._stream.thread_type = "AUTO"
        earlier = 0
        while True:
            start = max(0, k - earlier)
            self._container.seek(int(start / self._fps / self._stream.time_base), stream=self._stream)
            self._coming = self._numbered()
            first = next(self._coming, None)
            if first is not None and (first[0] <= k or start == 0):
                break
            if first is None and start == 0:
                self._coming = iter(())
                return
            earlier = 2 * earlier + 1
        self._coming = _chain(first, self._coming)

    def _open(self) -> av.container.InputContainer:
        """The file, which may be a stranger's: an MP4 (a playlist would name other files) of about the size it has to
        have (a larger one would not fit into memory)."""
        with self.path.open("rb") as file:
            if file.read(8)[4:] != b"ftyp":
                raise UserError(f"{self.path}: is no MP4 file, expected one; make the avatar again")
        container = open_media(self.path)
        video = container.streams.video[0] if container.streams.video else None
        if video is None:
            container.close()
            raise UserError(f"{self.path}: has no moving picture, expected a video")
        if video.width > self.hw[1] + 1 or video.height > self.hw[0] + 1:
            container.close()
            found, wanted = f"{video.width}x{video.height}", f"{self.hw[1]}x{self.hw[0]}"
            raise UserError(f"{self.path}: its pictures have {found} pixels, expected {wanted}; make the avatar again")
        return container

    def _numbered(self) -> Iterator[tuple[int, av.VideoFrame]]:
        zero = self._stream.start_time or 0
        try:
            for frame in self._container.decode(self._stream):
                if frame.pts is not None:
                    yield round(float((frame.pts - zero) * self._stream.time_base) * self._fps), frame
        except (av.FFmpegError, OSError):
            return

    def close(self) -> None:
        """Give the file and the memory back; the next frame opens it again."""
        self._kept.clear()
        self._coming = None
        if self._container is not None:
            self._container.close()
            self._container = None


def _chain(first, rest):
    yield first
    yield from rest


def write_video(path: Path, frames: Iterable[UInt8[np.ndarray, "H W 3"]], hw: tuple[int, int], fps: float) -> None:
    """A video that `FullFrames` reads well."""
    with VideoWriter(path, *hw, fps=fps, crf=CRF, gop=GOP) as video:
        for frame in frames:
            video.write(frame)


def link_or_copy(source: Path, target: Path) -> None:
    """`target` with the content of `source`: a hard link where the file system has them."""
    try:
        os.link(source, target)
    except OSError:
        try:
            shutil.copyfile(source, target)
        except OSError as e:
            raise UserError(f"{target}: {e.strerror or e}, expected a place that can be written") from e
