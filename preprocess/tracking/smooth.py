"""How much of a track is motion and how much is noise: smoothing whose bandwidth the data choose.

A smoother minimises sum_f (x_f - y_f)^2 + strength * (x_f-1 - 2 x_f + x_f+1)^2. It halves the amplitude at a frequency
that falls as the strength rises (`smoothness`), and its bias at a frequency w is strength * (2 sin(w / 2))^4 of the
motion there. No one strength suits a head: 4 Hz is right for a calm reader and takes a quarter of a nod of 3 Hz.

`choose` takes the strength by cross-validation, per direction of the pose and about every moment: of the levels in
`LEVELS` the one whose smoothed track, made without a frame, predicts that frame best, on average over about two
seconds. For white noise that balances what is left of the noise against what is lost of the motion, and where motion
outweighs noise (its prediction fails unless the smoothing is weak) next to nothing is lost. Directions differ: a shift
in the picture is measured ten times better than a turn, so it is followed further.
"""

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.linalg import solveh_banded
from scipy.ndimage import gaussian_filter1d, uniform_filter1d

CUTOFF_HZ = 4.0  # of the strongest smoothing: calm heads hardly move faster
LEVELS = 6  # each a quarter of the one before; the last loses 0.03 % of a motion of 3 Hz
WINDOW_S = 1.0  # standard deviation of the window over which predictions are judged
# A smoother level counts unless it predicts this much worse: a detector's noise is alike in neighbouring frames, so
# prediction alone takes a part of it for motion. A motion of 3 Hz loses at most a hundredth of its amplitude by it.
TIE = 1.8
DRIFT, ACROSS = 1e-3, 1e-6  # information on first differences: bridges frames without data, and (barely) cuts


def smoothness(cutoff_hz: float, fps: float) -> float:
    """Weight of squared second differences, against 1 for the data, that halves the amplitude at `cutoff_hz`."""
    return (2 * np.sin(np.pi * cutoff_hz / fps)) ** -4


def cutoff(strength: np.ndarray, fps: float) -> np.ndarray:
    """The inverse of `smoothness`, at most half the frame rate."""
    return np.arcsin(np.minimum(1, np.asarray(strength) ** -0.25 / 2)) * fps / np.pi


def shots(n: int, cuts: np.ndarray) -> Int[np.ndarray, " n"]:
    """The number of each frame's shot. cuts: numbers of the frames that begin a new one."""
    begins = np.zeros(n, int)
    begins[np.asarray(cuts, int)] = 1
    return np.cumsum(begins)


def choose(
    values: Float[np.ndarray, "n k"], known: Bool[np.ndarray, " n"], shot: Int[np.ndarray, " n"], fps: float
) -> Float[np.ndarray, "m k"]:
    """Strength of the smoothing for each second difference (m = n - 2) and direction; see the module's text.

    values: a track whose directions are measured alike well in all frames `known`; the others are ignored.
    """
    n, k = values.shape
    strengths = smoothness(CUTOFF_HZ, fps) * 0.25 ** np.arange(LEVELS)
    judged = np.zeros(n, bool)  # frames in the middle of five, at the ends the leverage is another
    judged[2:-2] = (known[1:-3] & known[2:-2] & known[3:-1]) & (shot[4:] == shot[:-4])
    if not judged.any():
        return np.full((n - 2, k), strengths[0])
    response = (2 * np.sin(np.linspace(0, np.pi / 2, 2049))) ** 4
    window = {"sigma": WINDOW_S * fps, "mode": "constant", "truncate": 3.0}
    share = gaussian_filter1d(judged.astype(np.float64), **window)
    scores = np.empty((LEVELS, n, k))
    for level, strength in enumerate(strengths):
        leverage = (1 / (1 + strength * response)).mean()
        missed = (values - _smoothed(values, known, shot, strength)) / (1 - leverage)
        scores[level] = gaussian_filter1d(np.where(judged[:, None], missed**2, 0), axis=0, **window)
    scores[:, share < 1e-6 * share.max()] = 1.0  # nothing to judge by: the smoothest
    chosen = np.argmax(scores <= TIE * scores.min(0), axis=0)
    exponent = uniform_filter1d(np.log(strengths)[chosen], max(1, round(fps / 2)), axis=0, mode="nearest")
    return np.exp(exponent[1:-1])


def _information(shot: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of second differences [n-2] (none across a cut) and of first ones [n-1]."""
    return (shot[2:] == shot[:-2]).astype(np.float64), np.where(shot[1:] == shot[:-1], DRIFT, ACROSS)


def _smoothed(values: np.ndarray, known: np.ndarray, shot: np.ndarray, strength: float) -> np.ndarray:
    """[n,k] smoothed with one strength."""
    n = len(values)
    bends, steps = _information(shot)
    band = np.zeros((3, n))  # upper form: band[2 + i - j, j] = A[i, j]
    band[2] = known
    for order, coefficients, weight in (
        (2, (1.0, -2.0, 1.0), strength * bends),
        (1, (-1.0, 1.0), strength * steps),
    ):
        for i, ci in enumerate(coefficients):
            for j, cj in enumerate(coefficients[i:], i):
                band[2 + i - j, j : j + n - order] += ci * cj * weight
    return solveh_banded(band, values * known[:, None])


def solve(
    data: Float[np.ndarray, "n 6 6"],
    gradient: Float[np.ndarray, "n 6"],
    temporal: Float[np.ndarray, "n-2 6 6"],
    shot: Int[np.ndarray, " n"],
    first: Float[np.ndarray, "n-1 6"],
) -> Float[np.ndarray, "n 6"]:
    """The pose steps from data blocks with their gradient and information `temporal` on second differences. first: the
    steps from each frame to the next as they are now."""
    n = len(data)
    bends, steps = _information(shot)
    blocks = np.zeros((3, n, 6, 6))  # block diagonal, first, second above it
    blocks[0] = data
    rhs = -gradient.copy()
    slow = steps[:, None, None] * np.concatenate([temporal[:1], temporal])
    parts = (
        (2, np.diff(first, axis=0), (1.0, -2.0, 1.0), bends[:, None, None] * temporal),
        (1, first, (-1.0, 1.0), slow),
    )
    for order, values, coefficients, info in parts:
        m = n - order
        push = np.einsum("mij,mj->mi", info, values)
        for i, ci in enumerate(coefficients):
            rhs[i : i + m] -= ci * push
            for j, cj in enumerate(coefficients[i:], i):
                blocks[j - i, i : i + m] += ci * cj * info
    band = np.zeros((18, 6 * n))  # upper form: band[17 + i - j, j] = A[i, j]
    for d in range(3):
        for a in range(6):
            for b in range(6):
                offset = 6 * d + b - a
                if offset >= 0:
                    band[17 - offset, 6 * np.arange(n - d) + 6 * d + b] = blocks[d, : n - d, a, b]
    return solveh_banded(band, rhs.reshape(-1)).reshape(n, 6)
