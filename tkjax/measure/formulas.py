"""Picture and lip measures on 8-bit frames, in numpy. Lips are measured on landmarks that a tracker found.

Pictures are uint8 rgb [H,W,3]; boxes are (x0, y0, x1, y1) in pixels, half open. A measure that is not defined (an
empty region, a picture that is too small) is NaN.
"""

import numpy as np
from jaxtyping import Bool, Float, UInt8

from tkjax.contract import LABEL_HEAD, LABEL_NECK, LABEL_TORSO

MAX_PSNR_DB = 100.0  # of two equal pictures, whose true value is infinite
SSIM_RADIUS, SSIM_SIGMA = 5, 1.5  # the 11x11 Gaussian window of Wang et al. 2004
SSIM_SIDE = 2 * SSIM_RADIUS + 1
SEAM_REACH = 2 / 256  # of the longer side: 2 pixels to each side of the neck's line at 256, 4 at 512; at least 1
LIPS, EYE_RIGHT, EYE_LEFT = slice(48, 68), slice(36, 42), slice(42, 48)  # of the 68 points


def crop(image: UInt8[np.ndarray, "H W C"], box) -> UInt8[np.ndarray, "h w C"] | None:
    """The part of a picture inside a box, or None where the box is empty."""
    x0, y0, x1, y1 = (int(v) for v in box)
    part = image[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)]
    return part if part.size else None


def psnr(a: UInt8[np.ndarray, "H W C"], b: UInt8[np.ndarray, "H W C"]) -> float:
    """10 log10(255² / mean squared difference over pixels and channels), dB; 100 for equal pictures."""
    _same_shape(a, b)
    mse = np.mean((a.astype(np.float32) - b.astype(np.float32)) ** 2, dtype=np.float64)
    return float(min(10 * np.log10(255.0**2 / mse), MAX_PSNR_DB)) if mse > 0 else MAX_PSNR_DB


def _gaussian() -> np.ndarray:
    x = np.arange(-SSIM_RADIUS, SSIM_RADIUS + 1)
    w = np.exp(-0.5 * (x / SSIM_SIGMA) ** 2)
    return (w / w.sum()).astype(np.float32)


def _blur(x: np.ndarray) -> np.ndarray:
    """Separable Gaussian over the first two axes, only where the whole window lies inside."""
    w = _gaussian()
    n = len(w)
    x = sum(w[k] * x[k : x.shape[0] - n + 1 + k] for k in range(n))
    return sum(w[k] * x[:, k : x.shape[1] - n + 1 + k] for k in range(n))


def ssim(a: UInt8[np.ndarray, "H W C"], b: UInt8[np.ndarray, "H W C"]) -> float:
    """Structural similarity, mean over pixels and channels; NaN where a side is shorter than the 11-pixel window.

    ((2 μa μb + c1)(2 σab + c2)) / ((μa² + μb² + c1)(σa² + σb² + c2)) with c1 = (0.01·255)², c2 = (0.03·255)²,
    Gaussian 11x11 window of σ 1.5, population variances, only windows wholly inside the picture.
    """
    _same_shape(a, b)
    if min(a.shape[:2]) < SSIM_SIDE:
        return float("nan")
    a, b = a.astype(np.float32), b.astype(np.float32)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_a, mean_b = _blur(a), _blur(b)
    var_a, var_b = _blur(a * a) - mean_a**2, _blur(b * b) - mean_b**2
    cov = _blur(a * b) - mean_a * mean_b
    value = ((2 * mean_a * mean_b + c1) * (2 * cov + c2)) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    return float(np.mean(value, dtype=np.float64))


def neck_band(label: UInt8[np.ndarray, "H W"]) -> Bool[np.ndarray, "H W"]:
    """Pixels within SEAM_REACH of the line where the head (label 1) touches neck or torso (2, 3), on both sides.

    The line runs between two pixels that share a side; a band of reach r takes r rows and columns from it on each side.
    """
    head, body = label == LABEL_HEAD, (label == LABEL_NECK) | (label == LABEL_TORSO)
    line = np.zeros(label.shape, bool)
    for axis in (0, 1):
        low, high = (_cut(axis, a, b) for a, b in ((0, -1), (1, None)))
        touch = (head[low] & body[high]) | (body[low] & head[high])
        line[low] |= touch
        line[high] |= touch
    return _widened(line, max(1, round(SEAM_REACH * max(label.shape))) - 1)


def seam_error(
    image: UInt8[np.ndarray, "H W 3"], target: UInt8[np.ndarray, "H W 3"], label: UInt8[np.ndarray, "H W"]
) -> float:
    """How visible the neck's seam is: mean over `neck_band`, both directions and the channels, of the absolute
    difference between the two pictures' gradients (steps between neighbouring pixels that both lie in the band), in
    8-bit levels per pixel. 0 for equal pictures, and blind to a difference that is constant across the seam."""
    _same_shape(image, target)
    band = neck_band(label)
    difference = image.astype(np.int16) - target
    total, count = 0.0, 0
    for axis in (0, 1):
        inside = band[_cut(axis, 0, -1)] & band[_cut(axis, 1, None)]
        total += float(np.abs(np.diff(difference, axis=axis))[inside].sum(dtype=np.float64))
        count += 3 * int(inside.sum())
    return total / count if count else float("nan")


def box_edge_error(frame: UInt8[np.ndarray, "H W 3"], base: UInt8[np.ndarray, "H W 3"], box) -> float:
    """How visible a pasted box is: mean over its edges and the channels of the absolute difference between the steps
    across the edge in `frame` and in the original `base`, 8-bit levels. Edges on or beyond the frame's border do not
    count."""
    _same_shape(frame, base)
    (x0, y0, x1, y1), (h, w) = (int(v) for v in box), frame.shape[:2]
    difference = frame.astype(np.int16) - base
    rows, columns = slice(max(y0, 0), max(y1, 0)), slice(max(x0, 0), max(x1, 0))
    steps = [difference[rows, x] - difference[rows, x - 1] for x in (x0, x1) if 0 < x < w]
    steps += [difference[y, columns] - difference[y - 1, columns] for y in (y0, y1) if 0 < y < h]
    edges = np.concatenate(steps) if steps else np.zeros((0, 3))
    return float(np.abs(edges).mean(dtype=np.float64)) if edges.size else float("nan")


def psnr_outside(
    frame: UInt8[np.ndarray, "H W 3"], base: UInt8[np.ndarray, "H W 3"], mask: Float[np.ndarray, "H W"]
) -> float:
    """PSNR over the pixels whose mask is 0 (what a paste-back must leave alone), dB; 100 where they are equal."""
    _same_shape(frame, base)
    outside = mask == 0
    return psnr(frame[outside][None], base[outside][None]) if outside.any() else float("nan")


def _cut(axis: int, start: int, stop: int | None) -> tuple[slice, ...]:
    return (slice(None),) * axis + (slice(start, stop),)


def _widened(mask: Bool[np.ndarray, "H W"], reach: int) -> Bool[np.ndarray, "H W"]:
    """Every pixel within `reach` rows and columns of the mask."""
    out = mask.copy()
    for axis in (0, 1):
        before = out.copy()
        for k in range(1, reach + 1):
            out[_cut(axis, k, None)] |= before[_cut(axis, 0, -k)]
            out[_cut(axis, 0, -k)] |= before[_cut(axis, k, None)]
    return out


def lip_distance_px(a: Float[np.ndarray, "68 2"], b: Float[np.ndarray, "68 2"]) -> float:
    """Landmark distance of the lips: points 48-67, each set centred on its own mean, mean Euclidean distance."""
    a, b = a[LIPS] - a[LIPS].mean(0), b[LIPS] - b[LIPS].mean(0)
    return float(np.linalg.norm(a - b, axis=-1).mean())


def eye_distance_px(points: Float[np.ndarray, "68 2"]) -> float:
    """Distance between the centres of the two eyes (points 36-41 and 42-47)."""
    return float(np.linalg.norm(points[EYE_RIGHT].mean(0) - points[EYE_LEFT].mean(0)))


def mouth_error(a: Float[np.ndarray, "68 2"], truth: Float[np.ndarray, "68 2"]) -> float:
    """Normalised inter-ocular error of the mouth: mean Euclidean distance of points 48-67, where they lie in the
    picture, over the distance between the truth's eye centres (ad-nerf dossier §7)."""
    error = np.linalg.norm(a[LIPS] - truth[LIPS], axis=-1).mean()
    apart = eye_distance_px(truth)
    return float(error / apart) if apart > 0 else float("nan")


def correlation(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"]) -> float:
    """Pearson's r over the entries where both are finite; NaN where one is constant or fewer than 3 are left."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    ok = np.isfinite(a) & np.isfinite(b)
    a, b = a[ok], b[ok]
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


def rotation_rms_deg(a: Float[np.ndarray, "n 3 3"], b: Float[np.ndarray, "n 3 3"]) -> float:
    """RMS angle between two sequences of rotations after one constant offset (the chordal mean of aᵢᵀbᵢ), degrees."""
    relative = np.swapaxes(a, -1, -2) @ b
    u, _, vt = np.linalg.svd(relative.mean(0))
    offset = u @ np.diag([1, 1, np.linalg.det(u @ vt)]) @ vt
    rest = np.swapaxes(relative, -1, -2) @ offset
    angle = np.degrees(np.arccos(np.clip((np.trace(rest, axis1=-2, axis2=-1) - 1) / 2, -1, 1)))
    return float(np.sqrt(np.mean(angle**2)))


def _same_shape(a: np.ndarray, b: np.ndarray) -> None:
    if a.shape != b.shape:
        raise ValueError(f"pictures of shapes {a.shape} and {b.shape} cannot be compared; both must have one shape")
