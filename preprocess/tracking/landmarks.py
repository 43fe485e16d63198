"""Landmarks and blendshapes of every frame, in two processes, one chunk at a time."""

import collections
import dataclasses
import json
from collections.abc import Iterator
from concurrent.futures import Executor
from pathlib import Path

import numpy as np

from preprocess import chunks
from preprocess.faces import landmarker
from preprocess.framing.survey import FPS, check_faces, check_second, check_size, face_height
from preprocess.resumable import progress
from preprocess.tracking import content
from preprocess.workers import ordered
from tkjax.errors import UserError
from tkjax.host.files import write_atomic
from tkjax.media import video
from tkjax.media.images import resize_area

BATCH = 16  # frames that travel to a worker at once where they come from a video
VIDEO = "video.json"  # of `landmarks_of_video`: frames, height, width, scale


@dataclasses.dataclass
class Seen(landmarker.Faces):
    """The faces of frames, and `small` uint8 [n,64,64], grey pictures of them."""

    small: np.ndarray


def detect_chunk(model: str, frames: str, index: int) -> Seen:
    """Worker: what one chunk of frames shows."""
    return detect_pictures(model, list(chunks.rgb_frames(Path(frames), index)))


def detect_pictures(model: str, pictures: list[np.ndarray]) -> Seen:
    """Worker: what some frames show."""
    return Seen(**vars(landmarker.detect(model, pictures)), small=content.small_pictures(pictures))


def landmarks(folder: Path, frames: Path, n_frames: int, model: Path, source_name: str, executor: Executor) -> None:
    """Stage: chunks with `found` [n], `landmarks` [n,478,3] px, `blendshapes` [n,52], whose rows without a face are 0,
    and `small` [n,64,64] grey pictures.

    UserError when more than 20 % of the frames have no face, or when two people are in view.
    """
    spans = chunks.spans(n_frames)
    todo = [i for i in range(len(spans)) if not chunks.has_chunk(folder, i)]
    results = ordered(executor, detect_chunk, ((str(model), str(frames), i) for i in todo))
    ready = sum(b - a for i, (a, b) in enumerate(spans) if i not in set(todo))
    for i, seen in zip(todo, progress(results, n_frames, "landmarks", done=ready), strict=True):
        chunks.write_chunk(folder, i, vars(seen))
    _check(folder, n_frames, source_name)


def _check(folder: Path, n_frames: int, source_name: str, min_face: int = 0, scale: float = 1.0) -> None:
    """UserError where the landmarks of a clip are not those of one face. min_face: its least height in pixels of the
    source, of which a pixel here is 1 / scale."""
    found = chunks.column(folder, n_frames, "found")
    check_faces(found, np.arange(n_frames), source_name)
    heights = np.concatenate(
        [
            face_height(chunks.read_chunk(folder, i, ["landmarks"])["landmarks"])
            for i in range(len(chunks.spans(n_frames)))
        ]
    )
    second = chunks.column(folder, n_frames, "second")
    check_second(second[found], heights[found], np.flatnonzero(found), source_name)
    check_size(heights[found] / scale, source_name, min_face)


def landmarks_of_video(
    folder: Path, source: Path, expected: int, model: Path, min_face: int, executor: Executor
) -> None:
    """Stage: the chunks of `landmarks` of a video's whole frames at 25 a second, without a stage of pictures before it;
    video.json with how many there are and their size, at most that at which faces are looked for (pixels of the source
    times `scale`). Of frames whose chunk is there nothing is looked for again.

    UserError as in `landmarks`, and where the face is less than min_face pixels high in the source."""
    facts: dict[str, float] = {}
    batches: collections.deque[int] = collections.deque()  # the number of the chunk of each batch under way

    def pictures() -> Iterator[tuple]:
        held: list[np.ndarray] = []
        for i, rgb in enumerate(video.read_frames_at_fps(source, FPS)):
            scale = min(1.0, landmarker.MAX_SIDE_PX / max(rgb.shape[:2]))
            hw = (rgb.shape[0], rgb.shape[1]) if scale == 1 else tuple(round(v * scale) for v in rgb.shape[:2])
            facts.update(frames=i + 1, height=hw[0], width=hw[1], scale=scale)
            index = i // chunks.CHUNK_FRAMES
            if chunks.has_chunk(folder, index):
                continue
            held.append(rgb if scale == 1 else resize_area(rgb, hw))
            if len(held) == BATCH:  # a divisor of a chunk
                batches.append(index)
                yield str(model), held
                held = []
        if held:
            batches.append((facts["frames"] - 1) // chunks.CHUNK_FRAMES)
            yield str(model), held

    ready = chunks.CHUNK_FRAMES * sum(chunks.has_chunk(folder, i) for i in range(len(chunks.spans(expected))))
    results = ordered(executor, detect_pictures, pictures())
    parts: list[Seen] = []

    def write(index: int) -> None:
        chunks.write_chunk(folder, index, {k: np.concatenate([vars(p)[k] for p in parts]) for k in vars(parts[0])})
        parts.clear()

    for seen in progress(results, expected, "faces", done=min(ready, expected)):
        parts.append(seen)
        index = batches.popleft()
        if sum(map(len, parts)) == chunks.CHUNK_FRAMES:
            write(index)
    if parts:
        write(index)
    if not facts:
        raise UserError(f"{source} holds no picture, expected a video")
    write_atomic(folder / VIDEO, json.dumps(facts).encode())
    _check(folder, int(facts["frames"]), source.name, min_face, facts["scale"])


def neighbours(found: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each frame the nearest frame with a face before and after it (itself where it has one) and the share of
    the latter in a linear interpolation; beyond the ends the nearest one counts alone."""
    index = np.flatnonzero(found)
    n = np.arange(len(found))
    after = index[np.searchsorted(index, n).clip(0, len(index) - 1)]
    before = index[(np.searchsorted(index, n, side="right") - 1).clip(0, len(index) - 1)]
    gap = np.maximum(after - before, 1)
    share = np.where(after > before, (n - before) / gap, 0.0)
    return before, after, share


class Filled:
    """Rows of a landmark stage with gaps interpolated; reads a chunk at a time."""

    def __init__(self, folder: Path, n_frames: int):
        self.folder, self.n_frames = folder, n_frames
        self.found = chunks.column(folder, n_frames, "found")
        self._plan = neighbours(self.found)
        self._held: dict[int, dict[str, np.ndarray]] = {}

    def _chunk(self, index: int) -> dict[str, np.ndarray]:
        if index not in self._held:
            if len(self._held) > 2:
                self._held.pop(next(iter(self._held)))
            self._held[index] = chunks.read_chunk(self.folder, index, ["landmarks", "blendshapes"])
        return self._held[index]

    def _row(self, name: str, frame: int) -> np.ndarray:
        return self._chunk(frame // chunks.CHUNK_FRAMES)[name][frame % chunks.CHUNK_FRAMES]

    def rows(self, index: int) -> dict[str, np.ndarray]:
        """`landmarks` [n,478,3] and `blendshapes` [n,52] of chunk `index`, without gaps."""
        a, b = chunks.spans(self.n_frames)[index]
        out = {k: v.copy() for k, v in self._chunk(index).items()}
        before, after, share = self._plan
        for i in np.flatnonzero(~self.found[a:b]) + a:
            for name in out:
                out[name][i - a] = (1 - share[i]) * self._row(name, before[i]) + share[i] * self._row(name, after[i])
        return out
