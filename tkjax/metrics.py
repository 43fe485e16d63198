"""Picture and lip measures on 8-bit frames, in numpy. Lips are measured on landmarks that a tracker found.

Pictures are uint8 rgb [H,W,3]; boxes are (x0, y0, x1, y1) in pixels, half open.
"""

import numpy as np
from jaxtyping import Float, UInt8

MAX_PSNR_DB = 100.0  # of two equal pictures, whose true value is infinite
SSIM_RADIUS, SSIM_SIGMA = 5, 1.5  # the 11x11 Gaussian window of Wang et al. 2004
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
    if min(a.shape[:2]) < 2 * SSIM_RADIUS + 1:
        return float("nan")
    a, b = a.astype(np.float32), b.astype(np.float32)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_a, mean_b = _blur(a), _blur(b)
    var_a, var_b = _blur(a * a) - mean_a**2, _blur(b * b) - mean_b**2
    cov = _blur(a * b) - mean_a * mean_b
    value = ((2 * mean_a * mean_b + c1) * (2 * cov + c2)) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    return float(np.mean(value, dtype=np.float64))


def lip_distance_px(a: Float[np.ndarray, "68 2"], b: Float[np.ndarray, "68 2"]) -> float:
    """Landmark distance of the lips: points 48-67, each set centred on its own mean, mean Euclidean distance."""
    a, b = a[LIPS] - a[LIPS].mean(0), b[LIPS] - b[LIPS].mean(0)
    return float(np.linalg.norm(a - b, axis=-1).mean())


def eye_distance_px(points: Float[np.ndarray, "68 2"]) -> float:
    """Distance between the centres of the two eyes (points 36-41 and 42-47)."""
    return float(np.linalg.norm(points[EYE_RIGHT].mean(0) - points[EYE_LEFT].mean(0)))


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
