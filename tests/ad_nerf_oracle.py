"""AD-NeRF in float64, literally from the ad-nerf dossier (§2.7, §3, §4), sample by sample, the last one included."""

import numpy as np

from tests.networks_oracle import conv, dense, f64, leaky

UNITS = 4.0  # of the contract in a metre


def encode(x, octaves):
    """x, then sin and cos of 2^k x."""
    return np.concatenate([x, *(f(2.0**k * x) for k in range(octaves) for f in (np.sin, np.cos))])


def layers(params, x, last):
    """Every layer with its bias, ReLU between them; `last` behind the last one."""
    n = len(params) // 2
    for i in range(n):
        x = x @ f64(params[f"kernel_{i}"]) + f64(params[f"bias_{i}"])
        x = np.maximum(x, 0) if i < n - 1 else last(x)
    return x


def relu(x):
    return np.maximum(x, 0)


def face(params, x, unit, signal, octaves=10, view_octaves=4):
    """(raw sigma, rgb) of one network at x in metres."""
    given = np.concatenate([encode(x, octaves), signal])
    h = layers(params["trunk"], given, relu)
    if "behind_skip" in params:
        h = layers(params["behind_skip"], np.concatenate([given, h]), relu)
    sigma = layers(params["density"], h, lambda v: v)[0]
    rgb = layers(params["colour"], np.concatenate([h, encode(unit, view_octaves)]), lambda v: 1 / (1 + np.exp(-v)))
    return sigma, rgb


def audio_code(params, windows, attended=True):
    """Windows [8,T,A] -> [64]."""
    x = f64(windows)
    for i in range(4):
        x = leaky(conv(params["audio_net"][f"convs_{i}"], x, 2))
    codes = dense(params["audio_net"]["fc2"], leaky(dense(params["audio_net"]["fc1"], x[:, 0])))
    if not attended:
        return codes[4]
    y = codes[None, :, :32]
    for i in range(5):
        y = leaky(conv(params["audio_attention"][f"convs_{i}"], y, 1))
    logits = dense(params["audio_attention"]["fc"], y[0, :, 0])
    weights = np.exp(logits - logits.max())
    return (weights / weights.sum()) @ codes


def pose_signal(pose):
    r, t = f64(pose)[:3, :3], f64(pose)[:3, 3] / UNITS
    e = np.array([np.arctan2(r[2, 2], r[1, 2]), np.arcsin(-r[0, 2]), np.arctan2(r[0, 0], -r[0, 1])])
    return np.concatenate([encode(e, 3), encode(t, 3)])


def ray(pose, intrinsics, pixel):
    """(o, d, unit d) in metres of the pixel position (u, v); d is 1 along the optical axis."""
    fx, fy, cx, cy = f64(intrinsics)
    d = f64(pose)[:3, :3] @ np.array([(pixel[0] - cx) / fx, -(pixel[1] - cy) / fy, -1.0])
    return f64(pose)[:3, 3] / UNITS, d, d / np.linalg.norm(d)


def composite(sigma, rgb, z, length, background):
    """(C, sum of w c without the last sample, weight of the last, sum of w z without it, weights) of one ray."""
    delta = np.append(np.diff(z), 1e10) * length
    alpha = 1 - np.exp(-(np.maximum(sigma, 0) + 1e-6) * delta)
    through = np.cumprod(np.append(1.0, 1 - alpha[:-1] + 1e-10))
    w = through * alpha
    c = np.array([*rgb[:-1], background])
    return w @ c, w[:-1] @ c[:-1], w[-1], w[:-1] @ z[:-1], w


def inverse_cdf(bins, weights, u):
    pdf = (weights + 1e-5) / np.sum(weights + 1e-5)
    cdf = np.append(0.0, np.cumsum(pdf))
    out = []
    for v in u:
        index = np.searchsorted(cdf, v, side="right")
        below, above = max(index - 1, 0), min(index, len(cdf) - 1)
        step = cdf[above] - cdf[below]
        out.append(bins[below] + (v - cdf[below]) / (1.0 if step < 1e-5 else step) * (bins[above] - bins[below]))
    return np.array(out)


def volume(nets, o, d, unit, signal, near, far, samples, importance, background, scale=1.0, **octaves):
    """Both passes of one ray without noise: ((C, fg, w_last, depth) of the first, the same of the second)."""
    length = np.linalg.norm(d)

    def look(params, z):
        values = [face(params, o + t * d, unit, signal, **octaves) for t in z]
        return composite(scale * np.array([v[0] for v in values]), [v[1] for v in values], z, length, background)

    z = np.linspace(near, far, samples)
    *first, w = look(nets["coarse"], z)
    more = inverse_cdf(0.5 * (z[1:] + z[:-1]), w[1:-1], np.linspace(0, 1, importance))
    *second, _ = look(nets["fine"], np.sort(np.concatenate([z, more])))
    return first, second
