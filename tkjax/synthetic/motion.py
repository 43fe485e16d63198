"""Idle motion: head pose, blinks, gaze and brows as smooth functions of time (numpy only)."""

import numpy as np
from jaxtyping import Float

FPS = 25.0
PIVOT = np.array([0.0, -10.0, -4.0])  # cm, head axes: the head turns about the top of the neck
BLINK = np.array([0.3, 0.85, 1.0, 0.9, 0.55, 0.2])  # closing is faster than opening


def rotation(yaw, pitch, roll) -> Float[np.ndarray, "3 3"]:
    """Ry(yaw) Rx(-pitch) Rz(roll), radians; yaw > 0 turns to the subject's left, pitch > 0 looks up."""
    cy, sy, cp, sp, cr, sr = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch), np.cos(roll), np.sin(roll)
    ry = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    rx = np.array([[1, 0, 0], [0, cp, sp], [0, -sp, cp]])
    rz = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    return ry @ rx @ rz


def _wander(rng, t, amplitude, lowest=0.05, highest=0.45, terms=6):
    """A sum of slow sines with RMS `amplitude`."""
    f = rng.uniform(lowest, highest, terms)
    a = 1.0 / (0.15 + f)
    a *= amplitude * np.sqrt(2.0) / np.sqrt((a**2).sum())
    return (a[:, None] * np.sin(2 * np.pi * (f[:, None] * t + rng.random((terms, 1))))).sum(0)


def head_motion(seed: int, n: int, motion: float | int, envelope=None) -> Float[np.ndarray, "n 4 4"]:
    """stage_from_head [n,4,4], centimetres. motion = 1 is about ±12° of yaw, ±7° of pitch, ±4° of roll.

    `envelope` (0…1, [n]) adds the small nods of somebody who speaks.
    """
    rng = np.random.default_rng([int(seed), 202])
    t = np.arange(n) / FPS
    yaw = np.deg2rad(_wander(rng, t, 6.0 * motion))
    pitch = np.deg2rad(_wander(rng, t, 3.2 * motion) - 0.5)
    roll = np.deg2rad(_wander(rng, t, 2.0 * motion))
    shift = np.stack([_wander(rng, t, a * motion) for a in (0.45, 0.25, 0.45)], 1)
    if envelope is not None:
        pad = np.pad(np.asarray(envelope, float), (10, 10), mode="edge")
        kernel = np.hanning(21) / np.hanning(21).sum()
        pitch = pitch - np.deg2rad(1.8 * motion) * np.convolve(pad, kernel, "valid")
    out = np.tile(np.eye(4), (n, 1, 1))
    for i in range(n):
        r = rotation(yaw[i], pitch[i], roll[i])
        out[i, :3, :3] = r
        out[i, :3, 3] = PIVOT - r @ PIVOT + shift[i]
    return out


def eye_motion(seed: int, n: int) -> dict[str, Float[np.ndarray, "..."]]:
    """`blink` [n] in 0…1, `gaze` [n,2] (right, up; radians, relative to the camera), `brow` [n] in 0…1."""
    rng = np.random.default_rng([int(seed), 303])
    blink = np.zeros(n)
    at = rng.uniform(0.7, 1.6)
    while at * FPS < n:
        k = int(at * FPS)
        m = min(len(BLINK), n - k)
        blink[k : k + m] = np.maximum(blink[k : k + m], BLINK[:m])
        at += rng.uniform(0.36, 0.5) if rng.random() < 0.12 else rng.uniform(1.5, 3.8)
    gaze = np.zeros((n, 2))
    k, here = 0, np.zeros(2)
    while k < n:
        here = rng.normal(0, [0.10, 0.05]) if rng.random() < 0.6 else np.zeros(2)
        k2 = min(n, k + int(FPS * rng.uniform(0.6, 2.0)))
        gaze[k:k2] = here
        k = k2
    # a saccade takes about two frames
    gaze[1:] = 0.35 * gaze[:-1] + 0.65 * gaze[1:]
    t = np.arange(n) / FPS
    brow = np.clip(_wander(rng, t, 0.35, 0.1, 0.5) - 0.15, 0, 1)
    return {"blink": blink, "gaze": gaze, "brow": brow}
