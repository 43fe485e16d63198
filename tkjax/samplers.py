"""Which pixels of a frame a step looks at: functions of what is known of the frame, registered by name. Numpy only.

A system that looks elsewhere registers its own in its file: `@samplers.register("name")`.
"""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Bool, Int, UInt8

from tkjax.errors import UserError

FOCUS = {"focus": 6, "close": 4}  # one ray in so many is drawn from the lips box by these samplers
FOCUS_EYES = 12  # and one in so many from the surroundings of each eye: blinks are small and rare


@dataclasses.dataclass(frozen=True)
class View:
    """What a sampler may look at in one frame of (h, w) = hw.

    rays, patch: of the stage. boxes: (x0, y0, x1, y1) by name: `face`, `lips`, `eye_left`, `eye_right` (with what moves
    around them), `lower_face`, `head` (its last row and column count). longest(name): the longest side of a box
    over the training frames, so that one size does for the whole clip. label(): [h,w], 0 background, 1 head, 2 neck,
    3 torso.
    """

    hw: tuple[int, int]
    rng: np.random.Generator
    rays: int
    patch: int
    boxes: Mapping[str, Int[np.ndarray, "4"]]
    longest: Callable[[str], int]
    label: Callable[[], UInt8[np.ndarray, "h w"]]


Sampler = Callable[[View], Int[np.ndarray, " R"]]
_SAMPLERS: dict[str, Sampler] = {}
_PATCHES: set[str] = set()


def register(name: str, patches: bool = False) -> Callable[[Sampler], Sampler]:
    """Give a sampler a name. It returns flat pixel numbers (row · width + column), as many for every frame of a clip;
    patches: they are square patches of View.patch, one after another, each row by row."""

    def add(function: Sampler) -> Sampler:
        if name in _SAMPLERS and _SAMPLERS[name].__qualname__ != function.__qualname__:
            raise ValueError(f"a sampler {name!r} is there already")
        _SAMPLERS[name] = function
        if patches:
            _PATCHES.add(name)
        return function

    return add


def find(name: str) -> Sampler:
    """The sampler of this name; UserError lists them."""
    if name not in _SAMPLERS:
        raise UserError(f"sampler {name!r} is unknown, expected one of {', '.join(_SAMPLERS)}")
    return _SAMPLERS[name]


def names() -> tuple[str, ...]:
    return tuple(_SAMPLERS)


def gives_patches(name: str) -> bool:
    return name in _PATCHES


def check_patch(patch: int, hw: tuple[int, int]) -> None:
    """UserError where patches of patch x patch do not fit into a picture of (h, w)."""
    h, w = hw
    if not 1 <= patch <= min(h, w):
        raise UserError(f"patch is {patch} for pictures of {w}x{h}, expected 1 to the shorter side")


def patch_pixels(
    top: Int[np.ndarray, " n"], left: Int[np.ndarray, " n"], patch: int, width: int
) -> Int[np.ndarray, " pixels"]:
    """Flat pixel numbers of patch x patch pixels at each corner, one patch after another, each row by row."""
    row, column = np.divmod(np.arange(patch**2), patch)
    return ((top[:, None] + row) * width + left[:, None] + column).ravel()


def _uniform(view: View) -> Int[np.ndarray, " rays"]:
    if view.rays < 1:
        raise UserError(f"a stage's rays is {view.rays}, expected at least 1 pixel per frame")
    return view.rng.integers(0, view.hw[0] * view.hw[1], view.rays)


@register("rays")
def rays(view: View) -> Int[np.ndarray, " rays"]:
    """Uniform over the picture, with replacement."""
    return _uniform(view)


def _focused(view: View, name: str, flat: Int[np.ndarray, " rays"]) -> Int[np.ndarray, " rays"]:
    """The rays with the first of them put on lips and eyes, as many as the sampler `name` puts there."""
    w = view.hw[1]
    if view.rays < FOCUS[name]:
        return flat
    end = 0
    for box, share in (("lips", FOCUS[name]), ("eye_left", FOCUS_EYES), ("eye_right", FOCUS_EYES)):
        x0, y0, x1, y1 = view.boxes[box].tolist()
        start, end = end, end + view.rays // share
        flat[start:end] = view.rng.integers(y0, y1, end - start) * w + view.rng.integers(x0, x1, end - start)
    return flat


@register("focus")
def focus(view: View) -> Int[np.ndarray, " rays"]:
    """`rays`, but the first rays // 6 over the lips box, which is a few hundredths of the picture, and rays // 12
    behind them over each eye with its lids."""
    return _focused(view, "focus", _uniform(view))


@register("close")
def close(view: View) -> Int[np.ndarray, " rays"]:
    """`focus` with a quarter of the rays in the lips box."""
    return _focused(view, "close", _uniform(view))


def _distinct(view: View, among: Int[np.ndarray, " n"], count: int) -> Int[np.ndarray, " count"]:
    """`count` different ones of some pixels; where there are fewer, with repeats."""
    return view.rng.choice(among, count, replace=count > len(among))


def _strata(view: View, inside: Bool[np.ndarray, "h w"], share: float) -> Int[np.ndarray, " rays"]:
    """int(rays · share) different pixels of a part of the picture, the other rays different pixels of the rest. A part
    that is empty leaves its rays to the other."""
    if view.rays < 1:
        raise UserError(f"a stage's rays is {view.rays}, expected at least 1 pixel per frame")
    flat = inside.ravel()
    part, rest = np.flatnonzero(flat), np.flatnonzero(~flat)
    first = view.rays if not len(rest) else 0 if not len(part) else int(view.rays * share)
    picked = [_distinct(view, p, n) for p, n in ((part, first), (rest, view.rays - first)) if n]
    return np.concatenate(picked)


def _rectangle(view: View, transposed: bool) -> Bool[np.ndarray, "h w"]:
    """Whether each pixel lies in the rectangle around the head, its last row and column included."""
    x0, y0, x1, y1 = view.boxes["head"].tolist()
    row, column = np.ogrid[: view.hw[0], : view.hw[1]]
    across, down = (row, column) if transposed else (column, row)
    return (across >= x0) & (across <= x1) & (down >= y0) & (down <= y1)


def head(share: float, transposed: bool = False, near: str = "") -> str:
    """The name of a sampler that draws a share of the rays (ad-nerf dossier §5: 0.95) in the rectangle around the head
    and the others outside of it, all different; uniform over the picture where share is 0 or less.

    transposed: rows are held against the rectangle's columns and the other way round, as the released code does: its
    rectangle misses the chin. For parity only. near: `focus` or `close`, the first rays lie on lips and eyes as there.
    """
    if share <= 0:
        return near or "rays"
    if share > 1 or (near and near not in FOCUS):
        raise ValueError(f"a sampler with {share:g} of the rays around the head, {near!r} on lips and eyes: expected a "
                         f"share of at most 1, and one of {', '.join(FOCUS)} or nothing")  # fmt: skip

    def draw(view: View) -> Int[np.ndarray, " rays"]:
        flat = _strata(view, _rectangle(view, transposed), share)
        return _focused(view, near, flat) if near else flat

    name = " ".join(word for word in ("transposed" * transposed, f"head {share:g}", near) if word)
    return name if name in _SAMPLERS else register(name)(draw) and name


@register("lower_half")
def lower_half(view: View) -> Int[np.ndarray, " rays"]:
    """Half of the rays below the middle of the picture, half above it, all different."""
    h, w = view.hw
    return _strata(view, np.broadcast_to(np.arange(h)[:, None] >= h // 2, (h, w)), 0.5)


@register("right_half")
def right_half(view: View) -> Int[np.ndarray, " rays"]:
    """What `lower_half` is in AD-NeRF's released code, with rows and columns exchanged: half of the rays right of the
    middle, half left of it. For parity only."""
    h, w = view.hw
    return _strata(view, np.broadcast_to(np.arange(w) >= w // 2, (h, w)), 0.5)


@register("patch", patches=True)
def patch(view: View) -> Int[np.ndarray, " R"]:
    """rays // patch² patches of patch x patch at uniform places."""
    (h, w), side = view.hw, view.patch
    check_patch(side, view.hw)
    count = view.rays // side**2
    if count < 1:
        raise UserError(f"rays is {view.rays}, expected at least patch² = {side**2} for the sampler patch")
    return patch_pixels(view.rng.integers(0, h - side + 1, count), view.rng.integers(0, w - side + 1, count), side, w)


@register("lips", patches=True)
def lips(view: View) -> Int[np.ndarray, " R"]:
    """The k x k tiles of patch x patch around the middle of the lips box that cover it in every training frame, moved
    into the picture."""
    (h, w), side = view.hw, view.patch
    check_patch(side, view.hw)
    k = max(1, min(-(-view.longest("lips") // side), min(h, w) // side))
    x0, y0, x1, y1 = view.boxes["lips"].tolist()
    corner_y = min(max((y0 + y1 - k * side) // 2, 0), h - k * side)
    corner_x = min(max((x0 + x1 - k * side) // 2, 0), w - k * side)
    row, column = np.divmod(np.arange(k * k), k)
    return patch_pixels(corner_y + row * side, corner_x + column * side, side, w)


@register("frame")
def frame(view: View) -> Int[np.ndarray, " R"]:
    """Every pixel, row by row."""
    return np.arange(view.hw[0] * view.hw[1])
