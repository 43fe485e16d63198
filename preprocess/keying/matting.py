"""Cut a person out of a colour screen or off a known plate: alpha, and the person's own colour without spill.

A picture is I = a F + (1 - a) B with the person's colour F (straight, not premultiplied) and the backdrop B.
- `Screen` (screen.py learns it from the clip) knows B for every pixel; each frame corrects it by its own sure backdrop.
- `evidence` marks what is surely backdrop and surely person: by the excess of the screen's colour where it has one
  (Vlahos' colour difference), else by the distance from the plate. Between them lies a band.
- Video stores colour at half the size of brightness, so around thin hair it is smeared: `sharpen` fits colour to
  brightness in small windows at half size and applies the fit at full size (guided upsampling).
- In the band F is first taken from the nearest sure person, smoothly continued; a is then the projection of I - B on
  F - B in the metric that forgives brightness (hair is lighter and darker than its neighbourhood) more than hue. Where
  F and B look alike the projection says nothing and the guided filter of the masks decides.
- F is then solved from the equation, as its most likely value given that a (ridge, for small a).
- Despill: no colour of F has more of the screen's colour than min(screen's channels) <= max(the others). Done for
  screens whose colour skin and lips do not have (green, blue, cyan); for others (red, magenta, yellow, greys, plates)
  the equation alone removes the backdrop.
Alpha bytes are rounded to nearest: 0.999 becomes 255 (Avatar-ERNeRF truncates to 254, its dossier §2.4). Its frames
keep the original colour in the blend, so spill stays: not followed.
"""

import dataclasses

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from preprocess.keying.backdrop import TARGET, Hue
from tkjax.media.images import resize_area

BAND = 0.012  # of the picture's longer side: farther than this from any backdrop lies the inside of the person
STRETCH = 0.02  # alpha this near to 0 and 1 is exactly that: noise of the recording
RIDGE = 0.03  # (noise / spread of F)^2 in the solution for F
FORGIVE = 0.4  # of brightness differences in the projection: measured best on recorded composites (0.3 to 0.5)
ALIKE = 15.0  # levels of |F - B| at which the projection counts half


@dataclasses.dataclass(frozen=True)
class Screen:
    """The backdrop of a clip: plate [h,w,3] levels (any size; stretched over the picture), `hue` None for a plate
    without one, noise in levels (plates) or as a share of the screen's excess (colours)."""

    plate: np.ndarray
    hue: Hue | None
    noise: float
    own_alpha: bool = False  # pictures are RGBA and say themselves where the person is

    def at(self, height: int, width: int) -> Float[np.ndarray, "H W 3"]:
        """The plate at a picture's size."""
        if self.plate.shape[:2] == (height, width):
            return self.plate.astype(np.float32)
        small = height < self.plate.shape[0]
        if small and self.plate.dtype == np.uint8:
            return resize_area(self.plate, (height, width)).astype(np.float32)
        return cv2.resize(
            self.plate.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA if small else cv2.INTER_LINEAR
        )


# ---------------------------------------------------------------- masks


def _disc(radius: float) -> np.ndarray:
    r = max(1, round(radius))
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * r + 1, 2 * r + 1))


def _shrink(mask: np.ndarray, radius: float) -> np.ndarray:
    return cv2.erode(mask.astype(np.uint8), _disc(radius), borderType=cv2.BORDER_CONSTANT, borderValue=1) > 0


def _distance(mask: np.ndarray) -> np.ndarray:
    """Distance of each pixel from the nearest one of `mask`; far beyond the picture without any."""
    if not mask.any():
        return np.full(mask.shape, float(sum(mask.shape)), np.float32)
    return cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, 3)


def _dot(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Sum over the colours."""
    return np.einsum("...c,...c->...", x, y)


def _shaded(rgb: np.ndarray, back: np.ndarray, tolerance: float, darkest: float) -> Bool[np.ndarray, "..."]:
    """Whether a pixel is the backdrop in other light: I close to s B with s between `darkest` and 1.25."""
    s = _dot(rgb, back) / np.maximum(_dot(back, back), 1)
    off = rgb - s[..., None] * back
    return (_dot(off, off) < tolerance**2) & (s > darkest) & (s < 1.25)


def _large(mask: np.ndarray, least: int) -> np.ndarray:
    """Components of at least `least` pixels."""
    _, component, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    keep = stats[:, cv2.CC_STAT_AREA] >= least
    keep[0] = False
    return keep[component]


def _coloured(rgb: np.ndarray, back: np.ndarray, screen: Screen, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """(backdrop, person) by the share of the screen's excess that a pixel shows."""
    share = screen.hue.excess(rgb) / np.maximum(screen.hue.excess(back), 10)
    backdrop = share > 1 - float(np.clip(3 * screen.noise, 0.05, 0.2))
    person = share < 0.06
    person &= _large(person, max(4, person.size // 20000))
    apart = ~backdrop & (_distance(person) > 2 * reach)
    backdrop[apart] = _shaded(rgb[apart], back[apart], 14.0, 0.35)
    inside = (_distance(backdrop) > reach) & (share < 0.6)  # spill on clothes is no hole in them
    return _shrink(backdrop, 1), (_shrink(person, 1) | inside) & ~backdrop


def _different(rgb: np.ndarray, back: np.ndarray, screen: Screen, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """(backdrop, person) by the distance from the plate."""
    off = rgb - back
    far = np.sqrt(cv2.GaussianBlur(_dot(off, off), (3, 3), 0.6))
    low, high = max(4 * screen.noise, 10.0), max(9 * screen.noise, 34.0)
    weak = (far > low) & ~(_shaded(rgb, back, low, 0.6) & (far < 60))
    n, component = cv2.connectedComponents(weak.astype(np.uint8), connectivity=8)
    held = np.bincount(component[weak & (far > high)], minlength=n) > max(8, weak.size // 20000)
    held[0] = False
    outside = _outside(~held[component], far, low)
    depth = _distance(outside)
    person = depth > 0.6 * reach
    ring = person & (depth < 2 * reach)
    if ring.any() and (depth >= 2 * reach).any():  # gaps between hairs: colours half way from the person to the plate
        fore = _extend_half(rgb, depth >= 2 * reach)[ring]
        a, _ = _projected(rgb[ring], fore, back[ring])
        off = rgb[ring] - a[:, None] * fore - (1 - a[:, None]) * back[ring]
        person[ring] = (a > 0.6) | (np.abs(off).max(-1) > 25)
    return _shrink(outside, 1), person


def _outside(free: np.ndarray, far: np.ndarray, low: float) -> np.ndarray:
    """`free` without its small parts that are not quite like the plate: those are clothes."""
    n, component, stats, _ = cv2.connectedComponentsWithStats(free.astype(np.uint8), connectivity=4)
    area = stats[:, cv2.CC_STAT_AREA]
    mean = np.bincount(component.ravel(), far.ravel(), n) / np.maximum(area, 1)
    keep = (area >= max(8, free.size // 500)) | ((mean < 0.6 * low) & (area >= 3))
    keep[0] = False
    return keep[component]


# ---------------------------------------------------------------- solving


def sharpen(rgb: UInt8[np.ndarray, "H W 3"], eps: float = 4.0) -> Float[np.ndarray, "H W 3"]:
    """The picture with colour as sharp as its brightness, where brightness explains colour (squared correlation in
    windows of 3x3 at half size); elsewhere as it is. `eps` in levels², below it brightness counts as flat."""
    ycc = cv2.cvtColor(rgb.astype(np.float32), cv2.COLOR_RGB2YCrCb)
    h, w = rgb.shape[:2]
    half = cv2.resize(ycc, ((w + 1) // 2, (h + 1) // 2), interpolation=cv2.INTER_AREA)

    def box(x):
        return cv2.blur(x, (3, 3), borderType=cv2.BORDER_REFLECT)

    y, mean = half[..., 0], box(half)
    spread = np.maximum(box(half * half) - mean * mean, 0)
    shared = box(half * y[..., None]) - mean * mean[..., :1]
    a = shared / (spread[..., :1] + eps)
    b = mean - a * mean[..., :1]
    explained = shared[..., 1:] ** 2 / ((spread[..., :1] + eps) * (spread[..., 1:] + eps))
    a, b, trust = (
        cv2.resize(box(x), (w, h), interpolation=cv2.INTER_LINEAR)
        for x in (a, b, np.minimum(explained[..., 0], explained[..., 1]))
    )
    trust = np.clip((trust - 0.1) / 0.3, 0, 1)[..., None]
    sharp = ycc + trust * (a * ycc[..., :1] + b - ycc)
    sharp[..., 0] = ycc[..., 0]
    return np.clip(cv2.cvtColor(sharp, cv2.COLOR_YCrCb2RGB), 0, 255)


def extend(values: Float[np.ndarray, "H W C"], known: np.ndarray) -> Float[np.ndarray, "H W C"]:
    """The values where `known` (bool or weight [H,W]) holds, continued smoothly everywhere else (pull-push pyramid)."""
    weight = known.astype(np.float32)
    total = values.astype(np.float32) * weight[..., None]
    levels = []
    while max(weight.shape) > 1:
        levels.append((total, weight))
        total, weight = cv2.pyrDown(total), cv2.pyrDown(weight)
        total = total.reshape(*weight.shape, -1)
    out = total / np.maximum(weight, 1e-9)[..., None]
    for total, weight in reversed(levels):
        up = cv2.pyrUp(out, dstsize=weight.shape[::-1]).reshape(*weight.shape, -1)
        trust = np.minimum(2 * weight, 1)[..., None]
        out = up + trust * (total / np.maximum(weight, 1e-9)[..., None] - up)
    return out


def _extend_half(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """`extend` at half the size: what is continued is smooth."""
    h, w = known.shape
    size = ((w + 1) // 2, (h + 1) // 2)
    weight = cv2.resize(known.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    mean = cv2.resize(values * known[..., None].astype(np.float32), size, interpolation=cv2.INTER_AREA)
    out = extend(mean / np.maximum(weight, 1e-6)[..., None], weight)
    return cv2.resize(out, (w, h), interpolation=cv2.INTER_LINEAR)


def _core(mask: np.ndarray) -> np.ndarray:
    """The mask without its outermost pixels, whose colours are mixed, where anything is left of it."""
    core = _shrink(mask, 2)
    return core if core.any() else mask


def _guided(mask: np.ndarray, guide: np.ndarray, radius: int, eps: float = 1e-4) -> np.ndarray:
    """Guided filter (He et al.) of mask by a grey guide in 0..1."""

    def box(x):
        return cv2.blur(x, (2 * radius + 1,) * 2, borderType=cv2.BORDER_REFLECT)

    mean, mean_p = box(guide), box(mask)
    a = (box(mask * guide) - mean * mean_p) / (box(guide * guide) - mean**2 + eps)
    return box(a) * guide + box(mean_p - a * mean)


def matte(
    screen: Screen, rgb: UInt8[np.ndarray, "H W C"]
) -> tuple[UInt8[np.ndarray, "H W"], UInt8[np.ndarray, "H W 3"]]:
    """(alpha, colour) of one picture: coverage of the person, and the person's straight colour without the screen.

    RGB, or RGBA of a clip that has its own alpha. The colour is continued smoothly where alpha is 0. A picture without
    any person has alpha 0 everywhere.
    """
    if screen.own_alpha:
        return _given(rgb)
    h, w = rgb.shape[:2]
    reach, back = max(3.0, BAND * max(h, w)), screen.at(h, w)
    x0, y0, x1, y1 = _window(screen, rgb, back, reach)
    part = np.s_[y0:y1, x0:x1]
    alpha, colour = _matte(screen, np.ascontiguousarray(rgb[part]), back[part], reach)
    edges = (y0, h - y1, x0, w - x1)
    alpha = cv2.copyMakeBorder(alpha, *edges, cv2.BORDER_CONSTANT, value=0)
    return alpha, cv2.copyMakeBorder(colour, *edges, cv2.BORDER_REPLICATE)


def _given(rgba: UInt8[np.ndarray, "H W 4"]) -> tuple[np.ndarray, np.ndarray]:
    """(alpha, colour) of a picture with straight alpha.

    Colours that nobody was meant to see do not count. Video stores colour at half the size of brightness and mixes them
    into their neighbours: at the rim, two pixels into the solid person too, the colour is that of the inside continued,
    and a pixel's own brightness counts as much as it is covered.
    """
    alpha, own = rgba[..., 3], rgba[..., :3].astype(np.float32)
    solid = alpha == 255
    if not solid.any():
        return np.ascontiguousarray(alpha), np.ascontiguousarray(rgba[..., :3])
    inside = _core(solid)
    mine, around = (cv2.cvtColor(x, cv2.COLOR_RGB2YCrCb) for x in (own, _extend_half(own, inside)))
    a = alpha.astype(np.float32) / 255
    around[..., 0] += a * (mine[..., 0] - around[..., 0])
    colour = np.where(inside[..., None], own, cv2.cvtColor(around, cv2.COLOR_YCrCb2RGB))
    return np.ascontiguousarray(alpha), np.rint(np.clip(colour, 0, 255)).astype(np.uint8)


def _window(screen: Screen, rgb: np.ndarray, back: np.ndarray, reach: float) -> tuple[int, int, int, int]:
    """(x0, y0, x1, y1) around all that is not surely a colour screen, by a quarter of the pixels each way."""
    h, w = rgb.shape[:2]
    if screen.hue is None or min(h, w) < 200:
        return 0, 0, w, h
    size = (w // 4, h // 4)
    small = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
    plate = cv2.resize(back, size, interpolation=cv2.INTER_AREA)
    seen = screen.hue.excess(small) < 0.88 * np.maximum(screen.hue.excess(plate), 10)
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    if not len(rows):
        return 0, 0, w, h
    far = 4 * round(0.75 * reach)  # even, as the pixels that share a colour in video
    return (
        max(0, 4 * int(columns[0]) - far),
        max(0, 4 * int(rows[0]) - far),
        min(w, 4 * int(columns[-1]) + 4 + far),
        min(h, 4 * int(rows[-1]) + 4 + far),
    )


def _matte(screen: Screen, rgb: np.ndarray, back: np.ndarray, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """`matte` of a part of the picture with the plate `back` behind it."""
    picture = sharpen(rgb)
    if screen.hue is None:
        back = back * _gain(picture, back)
    backdrop, person = (_coloured if screen.hue else _different)(picture, back, screen, reach)
    if not person.any():
        return np.zeros(rgb.shape[:2], np.uint8), np.full_like(rgb, TARGET)
    own = rgb.astype(np.float32)
    if screen.hue and screen.hue.despills:
        own = np.clip(screen.hue.despill(own), 0, 255)
    if backdrop.any():
        back = np.clip(back + _extend_half(picture - back, _core(backdrop)), 0, 255)
    fore = _extend_half(own, _core(person))
    alpha = person.astype(np.float32)
    band = ~(backdrop | person)
    colour = np.where(person[..., None], own, fore)
    if band.any():
        a, sure = _projected(picture[band], fore[band], back[band])
        if (sure < 0.9).any():
            unsure = np.where(band, np.float32(0.5), alpha)
            grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
            a = sure * a + (1 - sure) * np.clip(_guided(unsure, grey, round(reach)), 0, 1)[band]
        solved = _colours(picture[band], fore[band], back[band], a)
        if screen.hue:
            solved = screen.hue.near(solved, fore[band])
        alpha[band] = a
        colour[band] = screen.hue.despill(solved) if screen.hue and screen.hue.despills else solved
    return np.rint(alpha * 255).astype(np.uint8), np.rint(np.clip(colour, 0, 255)).astype(np.uint8)


def _projected(picture: np.ndarray, fore: np.ndarray, back: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(alpha [n], how sure it is [n]) of pixels [n,3] between `fore` and `back`."""
    x, y = picture - back, fore - back
    grey = np.float32(FORGIVE / 3)  # the part along u = (1, 1, 1) / sqrt(3)
    across = _dot(x, y) - grey * x.sum(-1) * y.sum(-1)
    size = _dot(y, y) - grey * y.sum(-1) ** 2
    a = (across / np.maximum(size, 1) - STRETCH) / (1 - 2 * STRETCH)
    return np.clip(a, 0, 1), size / (size + ALIKE**2)


def _colours(picture: np.ndarray, fore: np.ndarray, back: np.ndarray, a: np.ndarray) -> np.ndarray:
    """F [n,3] from I = a F + (1 - a) B, near `fore` where a is small: F0 + r a / (a^2 + (1 - a) RIDGE)."""
    a = a[:, None]
    residual = picture - a * fore - (1 - a) * back
    return fore + residual * a / (a * a + (1 - a) * RIDGE + 1e-6)


def _gain(picture: np.ndarray, back: np.ndarray) -> np.ndarray:
    """[3] brightness of the frame against the plate: median ratio over the pixels that look alike (exposure drifts)."""
    gain = np.ones(3, np.float32)
    p, b = picture[::4, ::4].reshape(-1, 3), back[::4, ::4].reshape(-1, 3)
    for limit in (70.0, 30.0):
        alike = (np.abs(p - b * gain).max(-1) < limit) & (b.min(-1) > 12)
        if alike.sum() < max(50, len(p) // 50):
            break
        gain = np.clip(np.median(p[alike] / b[alike], 0), 0.7, 1.4).astype(np.float32)
    return gain
