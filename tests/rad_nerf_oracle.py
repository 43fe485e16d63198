"""The RAD-NeRF field in float64, literally from the rad-nerf dossier (§3), point by point."""

import numpy as np

from tests import oracle
from tests.networks_oracle import audio_code as audio_code
from tests.networks_oracle import f64, mlp


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def sh4(d):
    """Real spherical harmonics of degree 0 to 3 with the signs of §11 item 8, [16]."""
    x, y, z = f64(d)
    return np.array(
        [
            0.28209479177387814, -0.4886025119029199 * y, 0.4886025119029199 * z, -0.4886025119029199 * x,
            1.0925484305920792 * x * y, -1.0925484305920792 * y * z, 0.9461746957575601 * z * z - 0.31539156525251999,
            -1.0925484305920792 * x * z, 0.5462742152960396 * (x * x - y * y),
            0.5900435899266435 * y * (y * y - 3 * x * x), 2.890611442640554 * x * y * z,
            0.4570457994644658 * y * (1 - 5 * z * z), 0.3731763325901154 * z * (5 * z * z - 3),
            0.4570457994644658 * x * (1 - 5 * z * z), 1.445305721320277 * z * (x * x - y * y),
            0.5900435899266435 * x * (3 * y * y - x * x),
        ]
    )  # fmt: skip


def grid(spec, params, x):
    """Features of one point in ±1 (§3.2)."""
    return oracle.grid_encode(
        (f64(x)[None, None] + 1) / 2, f64(params["tables"]), levels=spec.levels, base=spec.base, finest=spec.finest,
        log2_entries=spec.log2_entries, kind=spec.kind,
    )[0, 0]  # fmt: skip


def field(space, ambient, params, x, d, audio, eye, code):
    """(sigma, rgb [3], |ambient|_1) at x along d (§3.3); audio [64], code [4]; eye: a number or None."""
    features = grid(space, params["encoder"], x)
    where = np.tanh(mlp(params["ambient"], np.concatenate([features, audio])))
    parts = [features, grid(ambient, params["encoder_ambient"], where), *([] if eye is None else [[eye]])]
    h = mlp(params["sigma"], np.concatenate(parts))
    rgb = sigmoid(mlp(params["colour"], np.concatenate([sh4(d), h[1:], code])))
    return np.exp(h[0]), rgb, np.abs(where).sum()


def lattice(o, d, occupied, noise, *, side, box, dt, near_min, samples):
    """§4.3 in float64: (t of the first `samples` points near + (k + noise) dt before far whose cell of ±1 is
    occupied, whether rounding to float32 could change them). occupied [side,side,side]."""
    with np.errstate(divide="ignore", invalid="ignore"):
        a, b = (np.array(box[:3]) - o) / d, (np.array(box[3:]) - o) / d
    near, far = max(np.minimum(a, b).max(), near_min), np.maximum(a, b).min()
    if not near < far:
        return np.zeros(0), abs(near - far) < 1e-5
    t = near + dt * noise + dt * np.arange(int(np.ceil((far - near) / dt)) + 1)
    unsure = np.abs(t - far).min() < 1e-5
    t = t[t < far]
    scaled = 0.5 * (o + t[:, None] * d + 1) * side
    cells = np.clip(np.floor(scaled).astype(int), 0, side - 1)
    kept = np.flatnonzero(occupied[tuple(cells.T)])[:samples]
    last = kept[-1] + 1 if len(kept) == samples else len(t)
    inner = (scaled > 0.5) & (scaled < side - 0.5)
    unsure |= np.abs(scaled - np.round(scaled))[:last][inner[:last]].min(initial=1.0) < 1e-4
    return t[kept], unsure
