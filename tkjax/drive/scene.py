"""One output frame: which torso stands under the head, what lies behind, and how it gets into the whole frame.

Crop: head (and modelled torso) over the given torso over the plate, or over nothing with an alpha channel. Paste-back:
the same picture over the clip's own plate goes back into the whole source frame (`paste_back`); a new background or an
alpha channel then comes from the matte of the whole person: that of the keyed source outside the pasted mask, that of
the rendered layers inside it. Its colours are un-premultiplied with what really stood behind, so nothing of it shows.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageFilter

from tkjax import contract
from tkjax.avatar.bundle import Avatar
from tkjax.data.frame_cache import in_front, over
from tkjax.drive.motion import Motion, read_background
from tkjax.errors import UserError
from tkjax.media.paste_back import SCHEMES, Paster
from tkjax.render.image import final_clock, picture, render_image
from tkjax.types import Batch, Clock, Variables

TORSO = "torso"  # the stage that models it
TORSOS = ("modelled", "given")
LABEL_FEATHER = 0.004  # standard deviation of the edge of a matte made of labels, shares of the longer side
BLEED = 16  # pixels over which colours go on under an alpha of 0 (codecs mix neighbours)


class Drawn(NamedTuple):
    """What comes from the device for one frame; entries that a scene does not need are None."""

    picture: Any  # uint8 [h,w,3] over what stands behind
    front: Any  # float32 [h,w], alpha of the head alone
    person: Any  # float32 [h,w], alpha of head and torso
    cutout: Any  # uint8 [h,w,4], head and torso, straight


class Scene:
    """How the frames of one rendering are composed.

    torso: `modelled` or `given` (the clip's own), default modelled where the avatar's stage `torso` is finished.
    paste_back: one of paste_back.SCHEMES; default `blend` where the clip was cropped (and has a matte, if one is
    needed), else `none`. alpha: frames are straight RGBA instead of RGB. A contradiction is a UserError here, before
    any work.
    """

    def __init__(
        self,
        subject: Avatar,
        plan: Motion,
        *,
        torso: str | None = None,
        paste_back: str | None = None,
        alpha: bool = False,
    ):
        self.subject, self.plan, self.alpha = subject, plan, alpha
        self.torso = _torso(subject, torso)
        if alpha and plan.background is not None:
            raise UserError("--alpha and --background exclude each other; leave one out")
        needs_matte = alpha or plan.background is not None
        self.scheme = _scheme(subject, paste_back, needs_matte)
        self.model = subject.model()
        self.clock, behind = self._last_stage()
        self.given_torso = self.torso == "given" and behind == "torso"
        self._crop_hw = (subject.info.height, subject.info.width)
        self._matte = needs_matte and self.scheme != "none"
        self.hw = self._crop_hw
        if self.scheme != "none":
            self.hw = subject.full_hw
            self._paster = Paster(self.scheme, subject.box, self.hw, self._crop_hw)
        if self._matte:
            self._matte_parts()

    def _last_stage(self) -> tuple[Clock, str]:
        """The clock of the last stage to draw, and what stands behind the head without a modelled torso."""
        drawn = [
            stage
            for stage in self.model.stages()
            if stage.name in self.subject.stages and (self.torso == "modelled" or stage.name != TORSO)
        ]
        if not drawn:
            return final_clock(self.subject.meta["step"]), "torso"
        last = drawn[-1]
        steps = self.subject.meta["step"] if last.name == self.subject.stages[-1] else last.steps
        whole = [stage.background for stage in drawn if stage.target == "frame"]
        return final_clock(steps, last.name), "plate" if whole and whole[-1] != "torso" else "torso"

    def _matte_parts(self) -> None:
        plate, trt = self.subject.plate, self.subject.meta.get("background_trt")
        if trt is not None:
            plate = np.broadcast_to(np.array(trt, np.uint8), (*self.hw, 3))
        elif plate.shape[:2] != self.hw:
            plate = np.asarray(Image.fromarray(plate).resize(self.hw[::-1], Image.Resampling.BICUBIC))
        self._stood_behind = plate.astype(np.float32)
        if self.plan.background is not None:
            self._background = read_background(self.plan.background, self.hw).astype(np.float32)

    @property
    def channels(self) -> int:
        return 4 if self.alpha else 3

    def behind(self, k: int) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w 4"] | None]:
        """(what stands behind all that the model draws in track frame k; the given torso in it, or None)."""
        own = self.scheme != "none" or self.alpha
        plate = self.subject.plate if own else self.plan.plate
        if not self.given_torso:
            return plate, None
        torso = self.subject.torso(k)
        if not self.model.torso_in_front:
            return over(torso, plate), torso
        return plate, in_front(torso, self.subject.label(k)) if torso[..., 3].any() else torso

    def start(
        self,
        variables: Variables,
        batch: Batch,
        behind: UInt8[np.ndarray, "h w 3"],
        torso: UInt8[np.ndarray, "h w 4"] | None,
    ) -> Drawn:
        """Begin to draw; the result may still be computed. behind, torso: of `behind`."""
        chunk = self.subject.config.eval.chunk_rays
        image = render_image(self.model, variables, batch, self._crop_hw, self.clock, chunk)
        cutout = self.alpha and self.scheme == "none"
        front = self.model.torso_in_front
        layer = jnp.asarray(torso) if torso is not None and (cutout or self._matte or front) else None
        drawn = _compose(image, jnp.asarray(behind), layer, front)
        keep = (not cutout, self.scheme != "none", self._matte, cutout)
        return Drawn(*(v if kept else None for v, kept in zip(drawn, keep)))

    def finish(self, drawn: Drawn, k: int) -> UInt8[np.ndarray, "H W C"]:
        """The frame, RGB or straight RGBA."""
        if self.scheme == "none":
            return np.asarray(drawn.cutout if self.alpha else drawn.picture)
        subject = self.subject
        face = subject.face(k) if self.scheme in ("face", "face_neck") else None
        base, label = subject.full_frame(k), subject.label(k)
        frame, mask = self._paster(base, np.asarray(drawn.picture), np.asarray(drawn.front), label, face)
        if not self._matte:
            return frame
        return self._over_background(frame, self._whole_matte(mask, np.asarray(drawn.person), label, k))

    def _whole_matte(self, mask, person, label, k) -> Float[np.ndarray, "H W"]:
        """Coverage 0…1 of the person in the pasted frame."""
        matte = self.subject.full_matte(k)
        if matte is None:  # not keyed, not cropped
            shown = np.where(label != contract.LABEL_BACKGROUND, np.uint8(255), np.uint8(0))
            shown = Image.fromarray(shown).resize(self.hw[::-1], Image.Resampling.BILINEAR)
            matte = np.asarray(shown.filter(ImageFilter.GaussianBlur(LABEL_FEATHER * max(self.hw))))
        out = matte.astype(np.float32) * np.float32(1 / 255)
        (x0, y0, x1, y1), (h, w) = self.subject.box, self.hw
        y, x = slice(max(y0, 0), min(y1, h)), slice(max(x0, 0), min(x1, w))
        if person.shape != (y1 - y0, x1 - x0):
            resized = Image.fromarray(person, "F").resize((x1 - x0, y1 - y0), Image.Resampling.BILINEAR)
            person = np.asarray(resized)
        person = person[y.start - y0 : y.stop - y0, x.start - x0 : x.stop - x0]
        out[y, x] += mask[y, x] * (np.clip(person, 0, 1) - out[y, x])
        return out

    def _over_background(self, frame, matte) -> UInt8[np.ndarray, "H W C"]:
        """F = fg a + B (1 - a) with B known: fg a = clip(F - B (1 - a), 0, 255 a); that over the new background, or as
        straight colour fg with a."""
        a = matte[..., None]
        premultiplied = np.clip(frame - self._stood_behind * (1 - a), 0, 255 * a)
        if not self.alpha:
            return np.rint(premultiplied + (1 - a) * self._background).astype(np.uint8)
        rgb = premultiplied / np.maximum(a, 1 / 512)
        return np.rint(np.clip(np.concatenate([rgb, 255 * a], -1), 0, 255)).astype(np.uint8)


def _torso(subject: Avatar, torso: str | None) -> str:
    if torso not in (None, *TORSOS):
        raise UserError(f"--torso={torso} is unknown, expected {' or '.join(TORSOS)}")
    finished = TORSO in subject.stages
    if torso == "modelled" and not finished:
        raise UserError(
            "--torso=modelled: the avatar's torso is not trained yet; run --mode=train --stages=torso, or use "
            "--torso=given"
        )
    return torso or ("modelled" if finished else "given")


def _scheme(subject: Avatar, scheme: str | None, needs_matte: bool) -> str:
    """The scheme that was asked for, if it can be had; else the best that can."""
    if scheme not in (None, *SCHEMES):
        raise UserError(f"--paste_back={scheme} is unknown, expected one of {', '.join(SCHEMES)}")
    lacks = needs_matte and subject.cropped and "full_alpha" not in subject.meta["files"]
    if scheme is None:
        return "blend" if subject.cropped and not lacks else "none"
    if scheme == "none":
        return scheme
    subject.full_hw, subject.label(0)  # each says what is missing
    if lacks:
        raise UserError(
            f"--paste_back={scheme} with --background or --alpha needs a matte of the whole frames, and the clip was "
            "not keyed; use --paste_back=none, or preprocess the clip with --background_ref"
        )
    return scheme


@functools.partial(jax.jit, static_argnums=3)
def _compose(
    image, behind: UInt8[jax.Array, "h w 3"], torso: UInt8[jax.Array, "h w 4"] | None, in_front: bool = False
) -> Drawn:
    """Picture over `behind`, and with in_front under the torso; person = 1 - (1 - head)(1 - torso), and its colours
    un-premultiplied."""
    rgb = picture(image, behind.astype(jnp.float32) / 255)
    fg, alpha = image.rgb, image.alpha
    if torso is not None:
        t = torso.astype(jnp.float32) / 255
        under, over_ = ((t[..., 3:] * t[..., :3], t[..., 3:]), (fg, alpha))
        if in_front:
            under, over_ = over_, under
            rgb = jnp.clip(over_[0] + (1 - over_[1]) * rgb, 0, 1)
        fg, alpha = over_[0] + (1 - over_[1]) * under[0], over_[1] + (1 - over_[1]) * under[1]
    straight = jnp.clip(fg / jnp.maximum(alpha, 1e-4), 0, 1)
    cutout = jnp.concatenate([jnp.where(alpha > 0.5 / 255, straight, 0), jnp.clip(alpha, 0, 1)], -1)
    return Drawn(_bytes(rgb), image.front[..., 0], alpha[..., 0], _bytes(cutout))


def _bytes(x):
    return jnp.rint(x * 255).astype(jnp.uint8)


def bleed(rgba: UInt8[np.ndarray, "H W 4"]) -> UInt8[np.ndarray, "H W 4"]:
    """Colours continued a little under an alpha of 0: video codecs mix neighbouring colours, alpha or not."""
    h, w = rgba.shape[:2]
    clear = rgba[..., 3] == 0
    if not clear.any() or clear.all():
        return rgba
    weight = rgba[..., 3].astype(np.float32)
    size = (max(1, w // BLEED), max(1, h // BLEED))
    planes = [*(rgba[..., c] * weight for c in range(3)), weight]
    small = [np.asarray(Image.fromarray(p).resize(size, Image.Resampling.BOX)) for p in planes]
    mean = [p.sum() / weight.sum() for p in planes[:3]]
    out = rgba.copy()
    for c in range(3):
        colour = np.where(small[3] > 0, small[c] / np.maximum(small[3], 1e-6), mean[c]).astype(np.float32)
        wide = np.asarray(Image.fromarray(colour).resize((w, h), Image.Resampling.BILINEAR))
        out[..., c][clear] = np.rint(np.clip(wide[clear], 0, 255)).astype(np.uint8)
    return out
