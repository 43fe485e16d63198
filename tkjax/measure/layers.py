"""The pictures that are measured: one per combination of true and modelled layers, and one pasted into its frame."""

import dataclasses
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, UInt8

from tkjax.avatar.bundle import Avatar
from tkjax.data.clip import Clip
from tkjax.data.frame_cache import in_front, over
from tkjax.interface import Model, Stage
from tkjax.media import images
from tkjax.media.paste_back import Paster
from tkjax.render.image import picture, render_image
from tkjax.types import Batch, Clock, Variables

CAPTIONS = {"torso": "model over the true torso", "front": "true torso over the model", "head": "head alone"}
WHOLE = "whole model over the plate"


@dataclasses.dataclass(frozen=True)
class Combination:
    """behind: what stands behind the model, as in `interface.Stage`; stage: the last one to draw; target: what the
    picture is compared with, the whole `frame` or the `head` over `behind`. front: the true torso lies over the model.
    """

    behind: str
    stage: str
    target: str = "frame"
    front: bool = False

    @property
    def name(self) -> str:
        return "front" if self.front else "head" if self.target == "head" else self.behind

    @property
    def given(self) -> tuple[str, ...]:
        """The true layers of the picture."""
        return ("torso", "background") if self.front or self.behind == "torso" else ("background",)

    @property
    def caption(self) -> str:
        return CAPTIONS.get(self.name, WHOLE)

    @property
    def compared(self) -> tuple[str, str]:
        """Arguments of `Clip.target`."""
        return self.target, self.behind

    def over(self, clip: Clip, i: int, rgb: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H W 3"]:
        """The picture of frame i with the true layers that lie over the model."""
        return over(in_front(clip.torso_rgba(i), clip.label(i)), rgb) if self.front else rgb


def combinations(model: Model, finished: Sequence[str] | None = None) -> tuple[Combination, ...]:
    """One per kind of picture that the finished stages (None: all) draw, in their order, drawn as its last stage left
    it: the head over the true torso (or under it, where it lies in front), then head and modelled torso over the plate;
    the head alone of a system that draws nothing else."""
    last: dict[str, Combination] = {}
    for stage in model.stages():
        if finished is None or stage.name in finished:
            made = _combination(model, stage)
            last[made.name] = made
    if not last:
        known = ", ".join(stage.name for stage in model.stages())
        raise ValueError(f"none of the finished stages {list(finished)} is one of the system's ({known})")
    return tuple(last.values())


def _combination(model: Model, stage: Stage) -> Combination:
    if stage.target == "head" and model.torso_in_front:
        return Combination("plate", stage.name, front=True)
    target = "head" if stage.target == "head" else "frame"
    return Combination(stage.background, stage.name, target)


def draw(
    model: Model, variables: Variables, batch: Batch, hw: tuple[int, int], behind: UInt8[np.ndarray, "H W 3"],
    clock: Clock, chunk_rays: int,
) -> tuple[UInt8[np.ndarray, "H W 3"], Float[np.ndarray, "H W"]]:  # fmt: skip
    """(one 8-bit frame over `behind`, rounded to nearest; the alpha of the head alone)."""
    image = render_image(model, variables, batch, hw, clock, chunk_rays)
    rgb = picture(image, jnp.asarray(behind, jnp.float32) / 255)
    return np.asarray(jnp.rint(rgb * 255).astype(jnp.uint8)), np.asarray(image.front[..., 0])


@dataclasses.dataclass(eq=False)
class PasteBack:
    """Whole source frames of a clip, and how its pictures go back into them.

    scheme: one of paste_back.SCHEMES but `none`. box: the crop in the frame. frame(i): the frame of clip frame i.
    face(i): what the schemes `face` and `face_neck` take, at the pictures' size, or None.
    """

    scheme: str
    box: tuple[int, int, int, int]
    frame: Callable[[int], UInt8[np.ndarray, "FH FW 3"]]
    face: Callable[[int], Bool[np.ndarray, "h w"] | None] = lambda i: None
    _paster: Paster | None = None

    def paste(
        self, i: int, rgb: UInt8[np.ndarray, "h w 3"], alpha: Float[np.ndarray, "h w"], label: UInt8[np.ndarray, "h w"]
    ) -> tuple[UInt8[np.ndarray, "FH FW 3"], UInt8[np.ndarray, "FH FW 3"], Float[np.ndarray, "FH FW"]]:
        """(the frame with the picture in it, the source frame, the mask)."""
        base = self.frame(i)
        self._paster = self._paster or Paster(self.scheme, self.box, base.shape[:2], rgb.shape[:2])
        frame, mask = self._paster(base, rgb, alpha, label, self.face(i))
        return frame, base, mask

    def cut(self, frame: UInt8[np.ndarray, "FH FW 3"], hw: tuple[int, int]) -> UInt8[np.ndarray, "h w 3"]:
        """The crop of a whole frame at the size (h, w); where the box leaves the frame, its border goes on."""
        x0, y0, x1, y1 = self.box
        rows, columns = (np.clip(np.arange(a, b), 0, n - 1) for a, b, n in zip((y0, x0), (y1, x1), frame.shape))
        return images.resize_area(frame[rows[:, None], columns], hw)


def paste_back_of(subject: Avatar, clip: Clip, scheme: str | None) -> PasteBack | str:
    """The avatar's whole frames for a clip's pictures, or why there is no such row. scheme None: blend."""
    if scheme == "none":
        return "not computed: --paste_back=none"
    if not subject.has_full:
        return "not computed: the avatar has no whole source frames"
    if clip.dataset is None or subject.meta["full"]["source"] != clip.dataset.digest:
        return "not computed: the avatar's whole frames are of another dataset"
    row = {subject.frame_number(k): k for k in range(subject.n_track)}
    scheme = scheme or "blend"
    masked = scheme.startswith("face")
    return PasteBack(
        scheme, subject.box, lambda i: subject.full_frame(row[i]), lambda i: subject.face(row[i]) if masked else None
    )
