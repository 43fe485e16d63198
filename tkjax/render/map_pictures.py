"""Optional pictures of what a model knows beside colour: depth, ambient response, uncertainty.

Depth runs from 1 (the nearest 1 % of the head) to 0 (the farthest 1 %, and where nothing is); the others from 0 to
1 = the 99th percentile of what is above 0. Depth is grey, the others use PALETTE. These ends come from all frames of a
rendering up to the one that is shown: they widen with what a frame brings and never narrow. So a frame without a head
or without sound spoils nothing that follows, none depends on what comes later, and brightness does not flicker.
"""

import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from tkjax.errors import UserError
from tkjax.interface import Model
from tkjax.render.image import chunk_of, in_tiles, to_draw
from tkjax.types import Batch, Clock, Variables

MAPS = ("depth", "ambient", "uncertainty")
PALETTE = (
    (0.0, (12, 12, 40)),
    (0.25, (40, 90, 200)),
    (0.5, (30, 180, 140)),
    (0.75, (240, 200, 60)),
    (1.0, (220, 40, 30)),
)
_COLOURS = np.stack(
    [np.interp(np.arange(256) / 255, [p for p, _ in PALETTE], [c[i] for _, c in PALETTE]) for i in range(3)], -1
)
_COLOURS = np.rint(_COLOURS).astype(np.uint8)


def kind(name: str) -> str:
    """The picture that a model's map belongs to: depth, uncertainty, and all others are ambient responses."""
    return name if name in ("depth", "uncertainty") else "ambient"


def render_maps(
    model: Model, variables: Variables, frame: Batch, hw: tuple[int, int], clock: Clock, chunk_rays: int = 8192
) -> dict[str, Float[Array, "H W"]]:
    """All maps of one frame (B = 1), deterministically; compiles once per model object, size and chunk."""
    chunk = chunk_of(model, hw, chunk_rays)
    return _render(model, hw, chunk, variables, to_draw(frame, jnp.zeros((1, hw[0] * hw[1], 3), jnp.float32)), clock)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _render(model: Model, hw: tuple[int, int], chunk: int, variables: Variables, frame: Batch, clock: Clock):
    def part(pixels_px, background, image_hw):
        batch = frame.replace(pixels_px=pixels_px[None], background=background[None], image_hw=image_hw)
        return {name: value[0] for name, value in model.maps(variables, batch, clock).items()}

    parts = in_tiles(part, hw, chunk, frame.background[0])
    return {name: value.reshape(hw) for name, value in parts.items()}


class Maps:
    """The chosen pictures of one rendering, frame after frame.

    names: some of MAPS. A system without one of them is a UserError at the first frame.
    """

    def __init__(self, names: Sequence[str]):
        for name in names:
            if name not in MAPS:
                raise UserError(f"--maps={name} is unknown, expected some of {', '.join(MAPS)}")
        self.names = tuple(dict.fromkeys(names))
        self._range: dict[str, tuple[float, float]] = {}  # (value shown as 0, value shown as 1) so far

    def pictures(self, values: Mapping[str, Float[Array, "H W"]]) -> dict[str, UInt8[np.ndarray, "H wide 3"]]:
        """One picture per name; several maps of a name (ambient: sound, eyes) side by side."""
        out = {}
        for name in self.names:
            parts = [self._picture(k, np.asarray(v)) for k, v in values.items() if kind(k) == name]
            if not parts:
                known = ", ".join(sorted(set(map(kind, values)))) or "none"
                raise UserError(f"--maps={name}: this avatar's system has no such map; it has {known}")
            out[name] = np.concatenate(parts, 1)
        return out

    def _picture(self, key: str, value: Float[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W 3"]:
        finite = np.isfinite(value)
        ends = _range(value[finite], key)
        if ends is not None:
            low, high = self._range.get(key, ends)
            wider = (max, min) if key == "depth" else (min, max)  # depth: the far end is shown as 0
            self._range[key] = (wider[0](low, ends[0]), wider[1](high, ends[1]))
        low, high = self._range.get(key, (0.0, 1.0))
        level = np.clip((np.where(finite, value, low) - low) / (high - low), 0, 1)
        index = np.rint(255 * level).astype(np.uint8)
        if key == "depth":
            return np.repeat(index[..., None], 3, -1)
        return _COLOURS[index]


def _range(values: Float[np.ndarray, " n"], key: str) -> tuple[float, float] | None:
    """(value shown as 0, value shown as 1) of one frame's finite values, never equal; None where it shows nothing."""
    if key == "depth":
        if not values.size:
            return None
        near, far = np.percentile(values, (1, 99))
        return float(far), float(min(near, far - 1e-6))
    above = values[values > 0]
    return (0.0, float(max(np.percentile(above, 99), 1e-6))) if above.size else None
