"""Plain data that crosses module boundaries, and the vocabulary of axis names.

Axes: B frames, R rays (pixels), S samples per ray, N packed samples, L levels, F features per level,
T table entries (tables) or steps of an audio window, H W image, C channels, A audio features,
W neighbouring audio windows, K expression dims, V vertices or landmarks.
"""

import dataclasses
from typing import Annotated, Any

import flax.struct
import jax
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

PyTree = Any
Array = jax.Array | np.ndarray  # for jaxtyping annotations of functions that take either


class Leaf:
    """`Leaf[spec]` documents an array field of a pytree; it is not checked at run time, because tree maps
    also put sharding specs, optimiser masks or None there."""

    def __class_getitem__(cls, spec):
        return Annotated[Any, spec]


@flax.struct.dataclass
class Variables:
    """All that a model owns: `params` receive gradients, `state` (occupancy and the like) does not."""

    params: PyTree
    state: PyTree


@flax.struct.dataclass
class Clock:
    """Where training stands: `step` of the stage (int32, from 0) and `progress` = min(step / steps, 1).

    `stage` is the name of the stage in training; in pictures the last stage to draw: a system with a head and a torso
    draws the torso under the head from the stage `torso` on. Empty means the system's first.
    """

    step: Leaf[Int[Array, ""]]
    progress: Leaf[Float[Array, ""]]
    stage: str = flax.struct.field(pytree_node=False, default="")


@flax.struct.dataclass
class Batch:
    """B frames with R pixels each, in the conventions of `tkjax.contract`.

    `pixels_px` are positions in pixels (the centre of pixel (column i, row j) is (i+0.5, j+0.5)).
    `target` is the plate-replaced frame, `background` what stands behind everything that the model
    draws in this stage (the plate, or the true torso over the plate); both display rgb in 0…1.
    Where the pixels are a whole frame in row-major order, `image_hw` is (H, W), else None. `sampler` names how they
    were drawn in training, where a loss needs it. `eye_area` is 100 (A(36..41) + A(42..47)) / (H W) with the areas of
    the eyes' 68-point polygons (rad-nerf dossier §2.6).
    `audio` holds the W windows around the frame; the one of the frame itself has index W // 2.
    `lip_shape` are the measures of `sampling.lip_shape`, in standard deviations of the training frames.
    Fields that a caller cannot know are None (`target`, `label` and boxes when driving).
    """

    frame: Leaf[Int[Array, " B"]]
    cam_to_world: Leaf[Float[Array, "B 4 4"]]
    intrinsics: Leaf[Float[Array, "B 4"]]  # fx, fy, cx, cy in pixels
    pixels_px: Leaf[Float[Array, "B R 2"]]
    background: Leaf[Float[Array, "B R 3"]]
    audio: Leaf[Float[Array, "B W T A"]]
    expression: Leaf[Float[Array, "B K"]]
    eye_closed: Leaf[Float[Array, " B"]]
    eye_area: Leaf[Float[Array, " B"]] | None = None
    lip_shape: Leaf[Float[Array, "B M"]] | None = None
    target: Leaf[Float[Array, "B R 3"]] | None = None
    label: Leaf[UInt8[Array, "B R"]] | None = None
    in_face: Leaf[Bool[Array, "B R"]] | None = None
    in_lips: Leaf[Bool[Array, "B R"]] | None = None
    in_lower_face: Leaf[Bool[Array, "B R"]] | None = None  # of the face's box the part below the nose
    image_hw: tuple[int, int] | None = flax.struct.field(pytree_node=False, default=None)
    sampler: str | None = flax.struct.field(pytree_node=False, default=None)


@flax.struct.dataclass
class Render:
    """What a model draws, without the given background: picture = rgb + (1 - alpha) * background.

    `rgb` is premultiplied display rgb, `alpha` 0…1, `depth` camera z in contract units (NaN where
    alpha < 0.5) or None. `front` is the alpha of the head alone where a modelled torso was drawn as well, else None.
    `aux` is private between a model's `render` and its `loss_terms`;
    its `metrics` entry, if any, is a dict of scalars that the trainer logs.
    """

    rgb: Leaf[Float[Array, "B R 3"]]
    alpha: Leaf[Float[Array, "B R 1"]]
    depth: Leaf[Float[Array, "B R 1"]] | None = None
    front: Leaf[Float[Array, "B R 1"]] | None = None
    aux: dict[str, Any] = flax.struct.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class SubjectInfo:
    """The facts of a dataset that a model's shapes depend on; stored in the avatar as json."""

    n_frames: int
    height: int
    width: int
    audio_kind: str
    audio_channels: int  # A
    audio_steps: int  # T, steps in one window
    audio_windows: int  # W, neighbouring windows per frame
    n_expression: int  # K
    intrinsics: tuple[float, float, float, float]  # fx, fy, cx, cy in pixels

    def to_json(self) -> dict:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict) -> "SubjectInfo":
        return cls(**{**data, "intrinsics": tuple(data["intrinsics"])})
