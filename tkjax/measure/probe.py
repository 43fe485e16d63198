"""What moves the picture: each driving signal on its own between its low and its high values, all of them held still,
and silence."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from tkjax import contract
from tkjax.data.clip import Clip
from tkjax.interface import Model
from tkjax.measure import layers
from tkjax.measure.layers import Combination
from tkjax.media import audio
from tkjax.render.image import final_clock, to_draw
from tkjax.signals import SOUND, Use, windows
from tkjax.types import Variables

BLINK = "blink"  # what a report calls the signals that close the eyes
EYES = ("eye_closed", "eye_area")
ALWAYS = (SOUND, BLINK)  # a report speaks of them whether or not the system is driven by them
CHANGED = 20  # levels of 255: a smaller change of a pixel is hard to see
STILL = 2  # levels of 255 that rounding and resampling may move under constant drive
PLACES = 3  # training frames in whose poses a signal is tried
PERCENTILES = {BLINK: (1, 99)}  # blinks are short: 95 % of the frames may have open eyes
OTHERS = (5, 95)
STILL_FRAMES = 8
SILENT_FRAMES = 25
REGION_SHARE = 0.5
AT_ONCE = 64  # frames whose windows are in memory together: half a megabyte each for the widest features
NOTES = {
    "drive test": "in the poses of three training frames one signal is set to its low and its high value in training "
    "(percentiles 5 and 95 along the first principal component of its channels; blink: 1 and 99), all else "
    f"equal. changed_px: pixels whose largest channel differs by more than {CHANGED} of 255; mean_change: mean "
    "absolute difference of the whole picture, levels of 255; both are means over the poses. region: the first of "
    "lips, eyes, lower_face, face, head, picture that holds half of the change of those pixels",
    "still_px": f"pixels that differ by more than {STILL} of 255 from the first of {STILL_FRAMES} frames whose pose, "
    "sound and blink are equal, mean; 0 is a still head",
    "silence_motion": "deviation of the lip gap while silence is heard in the poses and with the blinks of held-out "
    "frames, over that of the true lip gap; 0 is a mouth at rest",
}


@dataclasses.dataclass(frozen=True)
class Actor:
    """A model that draws frames of a clip, driven by their own signals or by others."""

    clip: Clip
    model: Model
    variables: Variables
    step: int
    layers: Combination
    chunk_rays: int

    def __call__(
        self, i: int, signals: Mapping[str, Any] | None = None, **fields: Any
    ) -> tuple[UInt8[np.ndarray, "H W 3"], Float[np.ndarray, "H W"]]:
        """(picture of frame i, the head's alpha); signals: windows that replace the frame's own; fields: of Batch."""
        clip, behind = self.clip, self.layers.behind
        batch = clip.frame_batch(i, behind, self.model.signals())
        batch = to_draw(batch, batch.background).replace(**fields)
        batch = batch.replace(signals={**batch.signals, **(signals or {})})
        clock = final_clock(self.step, self.layers.stage)
        hw = (clip.height, clip.width)
        batch = jax.tree.map(jnp.asarray, batch)
        rgb, alpha = layers.draw(
            self.model, self.variables, batch, hw, clip.background(i, behind), clock, self.chunk_rays
        )
        return self.layers.over(clip, i, rgb), alpha


def at_percentiles(values: Float[np.ndarray, " n"], *percentiles: int) -> list[Int[np.ndarray, " k"]]:
    """For each percentile the places of the PLACES values around its rank."""
    order = np.argsort(values, kind="stable")
    out = []
    for p in percentiles:
        rank = round(p / 100 * (len(values) - 1))
        first = int(np.clip(rank - PLACES // 2, 0, max(0, len(values) - PLACES)))
        out.append(order[np.minimum(first + np.arange(PLACES), len(values) - 1)])
    return out


def shown_as(use: Use) -> str:
    """How a report calls a signal."""
    return BLINK if use.name in EYES else use.name


def strength(clip: Clip, use: Use, frames: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Each frame's own window of a signal along what varies most in it: the first principal component of all."""
    if use.name in EYES:
        return np.asarray(clip.eye_closed, np.float64)[frames]
    own_window = Use(use.name)

    def described(part: np.ndarray) -> np.ndarray:
        return windows(clip.signals[use.name], part, own_window)[:, 0].mean(1, dtype=np.float64)

    own = np.concatenate([described(part) for part in np.array_split(frames, max(1, len(frames) // AT_ONCE))])
    centred = own - own.mean(0)
    return centred @ np.linalg.svd(centred, full_matrices=False)[2][0]


Ends = dict[str, tuple[list[dict], list[dict]]]


def ends(clip: Clip, uses: Sequence[Use], train: Int[np.ndarray, " n"]) -> tuple[Ends, dict[str, str]]:
    """Signal -> (windows at its low value, at its high one), one for each place; or signal -> why not."""
    why = {name: f"the system is not driven by {name}" for name in ALWAYS}
    out: Ends = {}
    for use in uses:
        name = shown_as(use)
        why.pop(name, None)
        along = strength(clip, use, train)
        if np.ptp(along) < 1e-6:
            why[name] = f"the training frames' {name} does not vary, so it has no low and high value"
            continue
        sides = []
        for at in at_percentiles(along, *PERCENTILES.get(name, OTHERS)):
            cut = windows(clip.signals[use.name], train[at], use)
            sides.append([{use.name: cut[k : k + 1]} for k in range(len(cut))])
        before = out.get(name)  # eyes may come as two signals, which move together
        out[name] = tuple(sides) if before is None else tuple(
            [a | b for a, b in zip(old, new, strict=True)] for old, new in zip(before, sides, strict=True)
        )  # fmt: skip
    return out, why


def regions(clip: Clip, i: int) -> dict[str, Bool[np.ndarray, "H W"]]:
    """The parts of a frame, the smaller ones first."""

    def inside(*boxes) -> np.ndarray:
        mask = np.zeros((clip.height, clip.width), bool)
        for x0, y0, x1, y1 in (np.asarray(b).round().astype(int) for b in boxes):
            mask[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)] = True
        return mask

    return {
        "lips": inside(clip.boxes["lips_box_px"][i]),
        "eyes": inside(*clip.eye_regions[i]),
        "lower_face": inside(clip.lower_face[i]),
        "face": inside(clip.boxes["face_box_px"][i]),
        "head": np.asarray(clip.label(i)) == contract.LABEL_HEAD,
        "picture": np.ones((clip.height, clip.width), bool),
    }


def difference(a: UInt8[np.ndarray, "H W 3"], b: UInt8[np.ndarray, "H W 3"]) -> np.ndarray:
    """[H,W,3] absolute difference, levels of 255."""
    return np.abs(a.astype(np.int16) - b)


def drive_test(actor: Actor, train: Int[np.ndarray, " n"]) -> tuple[dict[str, dict | None], dict[str, str]]:
    """({signal: changed_px, mean_change, region}, reasons under `signal` or `signal.region` for what is None)."""
    places = train[np.linspace(0, len(train) - 1, PLACES + 2).round().astype(int)[1:-1]]
    pairs, why = ends(actor.clip, actor.model.signals(), train)
    out: dict[str, dict | None] = dict.fromkeys((*ALWAYS, *(shown_as(use) for use in actor.model.signals())))
    for name, (low, high) in pairs.items():
        changed, means, held = [], [], {}
        for i, a, b in zip(places.tolist(), low, high, strict=True):
            moved = difference(actor(i, a)[0], actor(i, b)[0])
            strong = moved.max(-1) > CHANGED
            changed.append(int(strong.sum()))
            means.append(float(moved.mean()))
            for region, mask in regions(actor.clip, i).items():
                held[region] = held.get(region, 0.0) + float(moved[strong & mask].sum())
        region = _region(held)
        out[name] = {"changed_px": float(np.mean(changed)), "mean_change": float(np.mean(means)), "region": region}
        if region is None:
            why[f"{name}.region"] = f"no pixel changes by more than {CHANGED} of 255"
    return out, why


def _region(held: Mapping[str, float]) -> str | None:
    total = held["picture"]
    return next((name for name, v in held.items() if total > 0 and v >= REGION_SHARE * total), None)


def still_px(actor: Actor, train: Int[np.ndarray, " n"]) -> float:
    """Pixels that change while nothing does but the frame's number; see NOTES."""
    first = int(train[len(train) // 2])
    frames = [int(i) for i in train[len(train) // 2 :][:STILL_FRAMES]]
    reference = actor(first)[0]
    moved = [difference(actor(first, frame=np.array([i], np.int32))[0], reference) for i in frames[1:]]
    return float(np.mean([(m.max(-1) > STILL).sum() for m in moved])) if moved else 0.0


def silence(clip: Clip, model: Model) -> tuple[dict[str, Float[np.ndarray, "1 W T C"]] | None, str]:
    """(the windows of silence, "") or (None, why they are not known)."""
    use = next((use for use in model.signals() if use.name == SOUND), None)
    if use is None:
        return None, "the system is not driven by sound"
    info = clip.info.signal(SOUND)
    if info.kind != "logmel":
        return None, f"what silence sounds like in {info.kind} features is not known without their network"
    row = audio.logmel(np.zeros(contract.AUDIO_HZ))[contract.AUDIO_HZ // audio.HOP // 2]
    if len(row) != info.channels:
        return None, f"the features have {info.channels} channels, log-mel has {len(row)}"
    quiet = np.broadcast_to(row, (1, use.neighbours, info.window, len(row))).astype(np.float32)
    return {SOUND: quiet}, ""
