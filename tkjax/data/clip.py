"""What training, the avatar and the evaluator ask of a clip, wherever its pictures come from."""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int, UInt8

from tkjax.contract import Dataset
from tkjax.signals import Signal, Use
from tkjax.types import Batch, SubjectInfo


@runtime_checkable
class Clip(Protocol):
    """Pictures of H x W with what is known of each of n frames; `dataset_clip.DatasetClip` reads them from a dataset.

    info: the sizes that a model's shapes depend on. digest: of the content. split: how the held-out frames lie.
    train_range, heldout_range: from the first to the last of train_frames and heldout_frames, which may have holes.
    Arrays of n frames: cam_to_world [n,4,4], eye_closed, confidence (0: no face found),
    picture_missing (filled from neighbours), eye_regions [n,2,4] and lower_face [n,4]; boxes: face_box_px and
    lips_box_px [n,4]. intrinsics [4]: fx, fy, cx, cy in pixels. plate: uint8 [H,W,3], what stands behind the person.
    signals: what may drive a model, by name, with ranges over the training frames. truth: measures of the frame that a
    loss may compare with, [n,M] by name. members: further ones of the dataset, `x_<name>` -> [n, …]. landmarks68_px
    [n,68,2], None where nobody knows. dataset: what it is read from, None for a clip without files. has_labels: `label`
    tells head and torso apart.
    """

    n_frames: int
    height: int
    width: int
    fps: float
    digest: str
    split: str
    dataset: Dataset | None
    has_labels: bool
    train_range: tuple[int, int]
    heldout_range: tuple[int, int]
    train_frames: Int[np.ndarray, " t"]
    heldout_frames: Int[np.ndarray, " h"]
    intrinsics: Float[np.ndarray, " 4"]
    plate: UInt8[np.ndarray, "H W 3"]
    cam_to_world: Float[np.ndarray, "n 4 4"]
    eye_closed: Float[np.ndarray, " n"]
    confidence: Float[np.ndarray, " n"]
    picture_missing: np.ndarray
    boxes: Mapping[str, np.ndarray]
    eye_regions: np.ndarray
    lower_face: np.ndarray
    signals: Mapping[str, Signal]
    truth: Mapping[str, np.ndarray]
    members: Mapping[str, np.ndarray]
    landmarks68_px: Float[np.ndarray, "n 68 2"] | None

    @property
    def info(self) -> SubjectInfo: ...

    def target(self, i: int, kind: str = "frame", background: str = "plate") -> UInt8[np.ndarray, "H W 3"]:
        """The plate-replaced frame; or the `torso` over the plate, or the `head` alone over a background."""
        ...

    def background(self, i: int, kind: str = "torso") -> UInt8[np.ndarray, "H W 3"]:
        """What stands behind the head: `torso` (the true torso over the plate), the `plate`, `white` or `black`."""
        ...

    def label(self, i: int) -> UInt8[np.ndarray, "H W"]:
        """Labels 0 background, 1 head, 2 neck, 3 torso."""
        ...

    def torso_rgba(self, i: int) -> UInt8[np.ndarray, "H W 4"]:
        """The torso of frame i, straight alpha."""
        ...

    def batch(
        self, frames: Int[np.ndarray, " B"], keys: Sequence[np.random.Generator], sampler: str = "rays",
        rays: int = 4096, patch: int = 32, background: str = "torso", target: str = "frame",
        driven_by: Sequence[Use] = (), masks: Sequence[str] = (), truth: Sequence[str] = (),
    ) -> Batch:  # fmt: skip
        """B frames with the pixels that a sampler draws; one generator per frame."""
        ...

    def frame_batch(self, i: int, background: str = "torso", driven_by: Sequence[Use] = ()) -> Batch:
        """One whole frame."""
        ...
