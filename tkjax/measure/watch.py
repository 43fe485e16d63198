"""Every picture that is measured passes here once: the face tracker's points where its model is at hand, else what can
be read from colours. Gives the lip gaps and eye openings of each source of pictures; keeps no picture."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, UInt8

from tkjax.data.clip import Clip
from tkjax.errors import UserError
from tkjax.host import model_files
from tkjax.measure import curves
from tkjax.measure.picture_reading import Reader
from tkjax.measure.scores import Faces

TRACKER, COLOURS = "face tracker's landmarks", "colours of the pictures, by a reading learnt from training frames"
TO_LEARN = 200  # training frames that a reading of colours is learnt from
TRUTH = "target"  # the source of the true held-out frames


def spread(frames: Int[np.ndarray, " n"], most: int) -> Int[np.ndarray, " m"]:
    """At most so many of the frames, evenly."""
    return frames if len(frames) <= most else frames[np.linspace(0, len(frames) - 1, most).round().astype(int)]


class Watch(contextlib.AbstractContextManager):
    """add(source, i, picture) in any order of sources, ascending in i; then `finish`, then the properties.

    train: training frames with a face and a picture of their own. folder: for a small file of the tracker. reads:
    whether curves are asked for; without them only the tracker's `points` are there.
    """

    def __init__(self, clip: Clip, train: Int[np.ndarray, " n"], folder: Path, models: str | None, reads: bool = True):
        self._confidence = np.asarray(clip.confidence)
        self._frames: dict[str, list[int]] = {}
        self._read: dict[str, dict[str, list[float]]] = {}
        learn = spread(train, TO_LEARN)
        kinds = curves.CURVES if reads else ()
        self._readers = [Reader(k, clip.landmarks68_px, learn, clip.target) for k in kinds]
        path, self.why_untracked = model_files.find_model(models)
        self._faces = None if path is None else Faces(folder, models)
        self.points: dict[str, Float[np.ndarray, "n 68 2"]] | None = None

    def __exit__(self, *_) -> None:
        if self._faces is not None:
            self._faces.__exit__()

    def add(self, source: str, i: int, image: UInt8[np.ndarray, "H W 3"]) -> None:
        """A picture of frame i, as this source has it."""
        self._frames.setdefault(source, []).append(i)
        read = self._read.setdefault(source, {k: [] for k in curves.CURVES})
        for reader in self._readers:
            read[reader.kind].append(reader(i, image))
        if self._faces is not None:
            self._faces.add(source, image)

    def finish(self) -> None:
        """Wait for the tracker; `points` stay None, and `why_untracked` says why, where it is missing or refuses."""
        if self._faces is not None:
            try:
                self.points = self._faces.find()
            except UserError as error:
                self.why_untracked = str(error)

    @property
    def measured_by(self) -> str:
        return COLOURS if self.points is None else TRACKER

    def doubt(self, kind: str) -> str:
        """Why the curves of this kind cannot be trusted, "" where they can."""
        if self.points is not None:
            return ""
        (reader,) = (r for r in self._readers if r.kind == kind)
        frames = np.array(self._frames[TRUTH])
        seen = self._confidence[frames] > 0
        return reader.doubt(frames[seen], np.array(self._read[TRUTH][kind])[seen])

    def curve(self, source: str, kind: str) -> Float[np.ndarray, " n"]:
        """The values of the source's pictures, in their order; NaN in frames whose true face was not found."""
        frames = np.array(self._frames[source])
        values = self._read[source][kind] if self.points is None else curves.CURVES[kind](self.points[source])
        return np.where(self._confidence[frames] > 0, values, np.nan)

    def dense(self, source: str, kind: str) -> Float[np.ndarray, " m"]:
        """The same with a place for every frame from the source's first to its last."""
        return curves.dense(np.array(self._frames[source]), self.curve(source, kind))

    def respond(self, source: str, training: str) -> tuple[dict[str, dict[str, float | None]], dict[str, str]]:
        """({kind: response.KEYS}, reasons by `kind.key`) of a source against the true frames; training: the source of
        true training frames."""
        out, reasons = {}, {}
        for kind in curves.CURVES:
            doubt = self.doubt(kind)
            if doubt:
                values, why = dict.fromkeys(curves.KEYS), dict.fromkeys(curves.KEYS, doubt)
            else:
                true, mine = self.dense(TRUTH, kind), self.dense(source, kind)
                values, why = curves.compare(kind, true, mine, self.curve(training, kind))
            out[kind] = values
            reasons |= curves.flat(kind, why)
        return out, reasons

    def closures(self, source: str, training: str) -> dict[str, list[int]]:
        """[true closures, those that the source closes] of each kind that can be trusted."""
        out = {}
        for kind in (k for k in curves.CURVES if not self.doubt(k)):
            true, mine = self.dense(TRUTH, kind), self.dense(source, kind)
            limits = curves.span(np.concatenate([true, self.curve(training, kind)]))
            out[kind] = list(curves.closures(true, mine, limits))
        return out

    def silence(self, source: str, training: str) -> tuple[float | None, str]:
        """(deviation of the lip gap while `source` hears silence, over that of the true gap; "") or (None, why)."""
        doubt = self.doubt("lips")
        true = np.concatenate([self.curve(s, "lips") for s in (TRUTH, training)])
        if doubt or not np.nanstd(true) > 0:
            return None, doubt or "the true lip gap is constant"
        return float(np.nanstd(self.curve(source, "lips")) / np.nanstd(true)), ""

    def shown(self, source: str) -> dict[str, dict[str, Sequence]]:
        """The curves of a source and of the truth, as a report shows them."""
        return {
            kind: {
                "frame": list(self._frames[TRUTH]),
                "true": curves.rounded(self.curve(TRUTH, kind)),
                "rendered": curves.rounded(self.curve(source, kind)),
            }
            for kind in curves.CURVES
            if not self.doubt(kind)
        }
