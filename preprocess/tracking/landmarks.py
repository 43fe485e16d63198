"""Landmarks and blendshapes of every frame, in two processes, one chunk at a time."""

import dataclasses
from concurrent.futures import Executor
from pathlib import Path

import numpy as np

from preprocess import chunks
from preprocess.faces import landmarker
from preprocess.framing.survey import check_faces, check_second, face_height
from preprocess.resumable import progress
from preprocess.tracking import content
from preprocess.workers import ordered


@dataclasses.dataclass
class Seen(landmarker.Faces):
    """The faces of frames, and `small` uint8 [n,64,64], grey pictures of them."""

    small: np.ndarray


def detect_chunk(model: str, frames: str, index: int) -> Seen:
    """Worker: what one chunk of frames shows."""
    pictures = list(chunks.rgb_frames(Path(frames), index))
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
    found = chunks.column(folder, n_frames, "found")
    check_faces(found, np.arange(n_frames), source_name)
    heights = np.concatenate(
        [face_height(chunks.read_chunk(folder, i, ["landmarks"])["landmarks"]) for i in range(len(spans))]
    )
    second = chunks.column(folder, n_frames, "second")
    check_second(second[found], heights[found], np.flatnonzero(found), source_name)


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
