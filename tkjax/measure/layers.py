"""The pictures that are measured: one per combination of true and modelled layers, and one pasted into its frame."""

import dataclasses
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, UInt8

from tkjax.avatar.bundle import Avatar
from tkjax.data.clip import Clip
from tkjax.interface import Model
from tkjax.media import images
from tkjax.media.paste_back import Paster
from tkjax.render.image import picture, render_image
from tkjax.types import Batch, Clock, Variables

GIVEN = {"torso": ("torso", "background"), "plate": ("background",)}  # true layers, by what stands behind the model
CAPTIONS = {"torso": "model over the true torso", "plate": "whole model over the plate"}


@dataclasses.dataclass(frozen=True)
class Combination:
    """behind: `torso` (the true torso over the plate) or `plate`; stage: the last one to draw."""

    behind: str
    stage: str

    @property
    def given(self) -> tuple[str, ...]:
        return GIVEN[self.behind]

    @property
    def caption(self) -> str:
        return CAPTIONS[self.behind]


def combinations(model: Model, finished: Sequence[str] | None = None) -> tuple[Combination, ...]:
    """One per background of the finished stages (None: of all), in their order, drawn as its last stage left it:
    the head over the true torso, then head and modelled torso over the plate."""
    last: dict[str, str] = {}
    for stage in model.stages():
        if finished is None or stage.name in finished:
            last[stage.background] = stage.name
    if not last:
        known = ", ".join(stage.name for stage in model.stages())
        raise ValueError(f"none of the finished stages {list(finished)} is one of the system's ({known})")
    return tuple(Combination(behind, stage) for behind, stage in last.items())


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
