"""Speech to coefficients: is the mouth of new sound that of the truth? Held-out figures of `tkjax.voice`, seed by seed.

python -m benchmarks.voice [--dataset=D | --seconds=60] [--seeds=0,1,2] [--steps=200] [--width=128] [--json=OUT]

Without --dataset: trained on `seconds` of synthetic speech, scored on 30 s of other speech (another pitch, other
words), whose coefficients and closed lips are known exactly. With it: trained on the dataset's training frames, scored
on the held-out ones (`--split=blocks` spreads those over the clip).

jaw r, jaw ccc: Pearson's correlation and Lin's concordance of jawOpen. lips sd: deviation of the lips' opening
(`voice.opening`) over that of the truth; 1 is right, small is a mumble. lips r: its correlation. closed: how far the
lips shut where the true ones do (below 15 % of the range): 1 - (mean opening there, told - true) / range; 1 is right.
silence: the larger of the jaw's movements in 5 s of digital silence and in 5 s of noise at -60 dB, in per cent of its
range. LVE: mean over frames of the largest distance of a lip point from where the true coefficients put it; MOD: mean
absolute error of the distance between the inner lips' middles (points 62 and 66 of 68); both in mm, over some 250
frames. Points of the synthetic subject are exact, in three dimensions. Those of a dataset come from a linear map
(ridge) of the coefficients to the tracked points, which is fitted on the training frames: in the picture, after the
similarity that takes eyes and nose to their mean, at 88.9 mm between the outer corners of the eyes, as on MediaPipe's
canonical mesh.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tkjax import contract, voice
from tkjax.data import split as splitting
from tkjax.measure import curves
from tkjax.media import audio
from tkjax.synthetic import perform, speech

LIPS, INNER = slice(48, 68), (62 - 48, 66 - 48)
STILL = (*range(27, 36), 36, 39, 42, 45)  # points that no mouth moves
EYES_MM = 88.9  # between vertices 33 and 263 of the canonical mesh
RIDGE = 1e-3
SHUT = 0.15
HELD_OUT_S, OTHER_SEED = 30.0, 1000

Points = Callable[[np.ndarray], np.ndarray]  # coefficients [n, 52] -> lip points [n, 20, 2 or 3] in mm


def synthetic(seconds: float, seed: int):
    """(pcm, coefficients, names, learned, its held-out pcm and coefficients, Points)."""

    def one(seed: int, seconds: float):
        pcm, tracks = speech(seed, seconds)
        none = np.zeros(round(seconds * contract.FPS), np.float32)
        return pcm, np.stack([tracks.get(name, none) for name in contract.BLENDSHAPES], 1)

    def points(values: np.ndarray) -> np.ndarray:
        tracks = dict(zip(contract.BLENDSHAPES, np.clip(values, 0, 1).T))
        shown = perform(tracks, seed=seed, motion_range=0.0, size=64)
        return shown.landmarks_world()[:, LIPS] * 10 * contract.UNIT_CM

    pcm, values = one(seed, seconds)
    return pcm, values, contract.BLENDSHAPES, np.ones(len(values), bool), *one(seed + OTHER_SEED, HELD_OUT_S), points


def aligned(points: np.ndarray) -> np.ndarray:
    """Points [n, 68, 2] of the picture as the lips [n, 20, 2] of a still head, in mm."""
    z = points[..., 0] + 1j * points[..., 1]
    still = z[:, STILL]
    mean = still.mean(1, keepdims=True)
    like = np.median(still - mean, 0)  # a first guess, whose size and turn the fits take from all frames
    turn = ((still - mean) @ like.conj()) / np.sum(np.abs(like) ** 2)
    z = (z - mean) / turn[:, None]
    z *= EYES_MM / np.abs(z[:, 36] - z[:, 45]).mean()
    return np.stack([z.real, z.imag], -1)[:, LIPS]


def linear(values: np.ndarray, points: np.ndarray) -> Points:
    """The ridge map of coefficients to points, fitted to these."""
    mean, at = values.mean(0), points.reshape(len(points), -1).mean(0)
    x, y = values - mean, points.reshape(len(points), -1) - at
    w = np.linalg.solve(x.T @ x + RIDGE * len(x) * np.eye(x.shape[1]), x.T @ y)
    return lambda v: ((v - mean) @ w + at).reshape(len(v), *points.shape[1:])


def scores(net: voice.Voice, pcm, true, names, frames, points: Points, columns: list[int]) -> dict[str, float]:
    """The figures of a network on frames of a sound with these true coefficients."""
    told = np.array(true)
    told[:, columns] = voice.spoken(net, [pcm], len(true))
    jaw, weights = names.index("jawOpen"), voice.opening(names, range(len(names)))
    p, t = told[frames], true[frames]
    op, ot = p @ weights, t @ weights
    low, high = np.percentile(ot, (1, 99))
    shut = ot < low + SHUT * (high - low)
    jaw_range = np.ptp(np.percentile(t[:, jaw], (1, 99)))
    rng, quiet = np.random.default_rng(0), 5 * audio.RATE
    hush = [
        voice.spoken(net, [s], 125)[:, columns.index(jaw)] for s in (np.zeros(quiet), 1e-3 * rng.normal(size=quiet))
    ]
    some = slice(None, None, max(1, len(p) // 250))
    a, b = points(p[some]), points(t[some])
    gap = [np.linalg.norm(v[:, INNER[0]] - v[:, INNER[1]], axis=-1) for v in (a, b)]
    return {
        "jaw r": curves.pearson(t[:, jaw], p[:, jaw]),
        "jaw ccc": curves.concordance(t[:, jaw], p[:, jaw]),
        "lips sd": curves.sd_ratio(ot, op),
        "lips r": curves.pearson(ot, op),
        "closed": float(1 - (op - ot)[shut].mean() / (high - low)) if shut.any() else float("nan"),
        "silence %": float(100 * max(np.ptp(h) for h in hush) / jaw_range),
        "LVE mm": float(np.linalg.norm(a - b, axis=-1).max(1).mean()),
        "MOD mm": float(np.abs(gap[0] - gap[1]).mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path)
    parser.add_argument("--split", default="last", choices=splitting.SPLITS)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = {}
    for seed in map(int, options.seeds.split(",")):
        if options.dataset is None:
            pcm, values, names, learned, new, true, points = synthetic(options.seconds, seed)
            frames = np.arange(len(true))
        else:
            d = contract.Dataset(options.dataset)
            names = d.manifest["expression_names"]
            pcm, true = audio.read_audio(d.path(contract.AUDIO)), d.column("expression")
            new, values, found = pcm, true, d.column("confidence") > 0
            train, frames = splitting.frames(options.split, d.train_range, d.heldout_range)
            learned = np.zeros(len(values), bool)
            learned[train] = found[train]
            frames = frames[found[frames]]
            points = linear(values[learned], aligned(d.landmarks68())[learned])
        began, used = time.perf_counter(), time.process_time()
        net = voice.train(pcm, values, names, learned, seed=seed, steps=options.steps, width=options.width)
        took, cpu = time.perf_counter() - began, time.process_time() - used
        row = scores(net, new, true, tuple(names), frames, points, list(net.columns))
        rows[seed] = row | {"frames": int(learned.sum()), "held out": len(frames), "s": took, "processor s": cpu}
        if len(rows) == 1:
            print("seed  " + "".join(f"{k:>13}" for k in rows[seed]))
        cells = (f"{v:>13.3f}" if isinstance(v, float) else f"{v:>13}" for v in rows[seed].values())
        print(f"{seed:<6}" + "".join(cells), flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
