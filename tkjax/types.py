"""Plain data that crosses module boundaries, and the vocabulary of axis names.

Axes: B frames, R rays (pixels), S samples per ray, N packed samples, L levels, F features per level,
T table entries (tables) or steps of an audio window, H W image, C channels, A audio features,
W neighbouring audio windows, K expression dims, V vertices or landmarks.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

import flax.struct
import jax
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from tkjax.errors import UserError
from tkjax.signals import SOUND, SignalInfo

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
    `target` is what the stage compares with, `background` what stands behind everything that the model
    draws in this stage; both display rgb in 0…1.
    Where the pixels are a whole frame in row-major order, `image_hw` is (H, W), else None. Where they are square
    patches, each row by row, `patches` names the sampler that chose them (`lips`, `patch`), else it is None.
    `signals` holds the windows of what the model is driven by (`Model.signals`) and nothing else: W neighbouring
    windows of T steps of C channels. `masks` and `truth` hold what the stage's losses ask for (`Stage.masks`,
    `Stage.truth`): by the name of a box whether each pixel lies in it, by the name of a measure the frame's own.
    Fields that a caller cannot know are None or empty (`target`, `label`, `masks`, `truth` when driving).
    """

    frame: Leaf[Int[Array, " B"]]
    cam_to_world: Leaf[Float[Array, "B 4 4"]]
    intrinsics: Leaf[Float[Array, "B 4"]]  # fx, fy, cx, cy in pixels
    pixels_px: Leaf[Float[Array, "B R 2"]]
    background: Leaf[Float[Array, "B R 3"]]
    signals: dict[str, Leaf[Float[Array, "B W T C"]]] = flax.struct.field(default_factory=dict)
    target: Leaf[Float[Array, "B R 3"]] | None = None
    label: Leaf[UInt8[Array, "B R"]] | None = None
    masks: dict[str, Leaf[Bool[Array, "B R"]]] = flax.struct.field(default_factory=dict)
    truth: dict[str, Leaf[Float[Array, "B M"]]] = flax.struct.field(default_factory=dict)
    image_hw: tuple[int, int] | None = flax.struct.field(pytree_node=False, default=None)
    patches: str | None = flax.struct.field(pytree_node=False, default=None)

    def now(self, name: str) -> Float[Array, "B C"]:
        """The value at each frame of a signal that comes without neighbours, one step a frame."""
        values = self.signals[name]
        if values.shape[1:3] != (1, 1):
            raise ValueError(f"signal {name} has {values.shape[1]} windows of {values.shape[2]} steps, not one value")
        return values[:, 0, 0]


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
    intrinsics: tuple[float, float, float, float]  # fx, fy, cx, cy in pixels
    signals: tuple[SignalInfo, ...] = ()  # those that the dataset has, used or not

    def has(self, name: str) -> bool:
        return any(s.name == name for s in self.signals)

    def signal(self, name: str) -> SignalInfo:
        """UserError lists those that are there."""
        for s in self.signals:
            if s.name == name:
                return s
        known = ", ".join(s.name for s in self.signals) or "none"
        raise UserError(f"the dataset has no signal {name!r}, which this system is driven by; it has {known}")

    def sizes(self) -> dict[str, Any]:
        """What two datasets must agree in, so that a model of one draws the other."""
        cut = {s.name: [s.channels, s.window] for s in self.signals}
        return {**{k: getattr(self, k) for k in ("n_frames", "height", "width")}, "signals": cut,
                "intrinsics": list(self.intrinsics)}  # fmt: skip

    def to_json(self) -> dict:
        out = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {**out, "intrinsics": list(self.intrinsics), "signals": [s.to_json() for s in self.signals]}

    @classmethod
    def from_json(cls, data: dict) -> "SubjectInfo":
        """Also as it was written before signals were described: sound, expression and eyes by their sizes alone."""
        d = dict(data)
        if "signals" not in d:
            frames = {"expression": d.pop("n_expression"), "eye_closed": 1, "eye_area": 1}
            sound = SignalInfo(
                SOUND, d.pop("audio_channels"), 0.0, window=d.pop("audio_steps"), kind=d.pop("audio_kind")
            )
            d.pop("audio_windows")
            plain = {name: c for name, c in frames.items() if c}
            named = {name: (name,) if c == 1 and name != "expression" else () for name, c in plain.items()}
            signals = [sound, *(SignalInfo(name, c, 0.0, named[name]) for name, c in plain.items())]
        else:
            signals = [SignalInfo.from_json(s) for s in d["signals"]]
        return cls(**{**d, "intrinsics": tuple(d["intrinsics"]), "signals": tuple(signals)})


@dataclasses.dataclass(frozen=True)
class ClipFacts:
    """What a model may ask of the training frames before training: their cameras, the signals with their ranges, and
    the dataset's extra members `x_<name>`."""

    cam_to_world: Float[np.ndarray, "t 4 4"]
    intrinsics: Float[np.ndarray, "t 4"]
    signals: Mapping[str, SignalInfo] = dataclasses.field(default_factory=dict)
    members: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)  # [t, …] each
