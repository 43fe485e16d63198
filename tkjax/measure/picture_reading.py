"""Lip gap and eye opening read from the colours of pictures, where no face tracker is at hand.

The dataset holds the landmarks of its true frames. From those of training frames a linear reading is fitted: colours of
the mouth (or of both eyes) on a grid that stands still on the face -> the gap of the landmarks. Then true and rendered
frames are read alike, at the true frames' places, so what the reading does badly it does badly to both. It counts only
where it predicts the landmarks of held-out true frames, which it has not seen.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int, UInt8

from tkjax.measure import curves

TRUSTED = 0.85  # least correlation with the landmarks of the true frames that it has not seen
RIDGES = tuple(10.0**k for k in range(-1, 5))  # penalties to choose from, on standardised colours
FOLDS = 5
INSIDE = 2  # samples a side that are averaged in each cell of a grid, against aliasing
# kind -> grids of (rows, columns); where they lie: see `places`
GRIDS = {"lips": (12, 16), "eyes": (7, 12)}
MOUTH = (0.95, 0.10, 0.80)  # width, top and bottom below the nose (point 33), in distances of the eyes' outer corners
EYE = (1.6, 0.8)  # width and height around the middle of an eye's corners, in its width


def _grid(origin, x_axis, y_axis, shape: tuple[int, int]) -> Float[np.ndarray, "S 2"]:
    """Points of the cells' samples: origin + u x_axis + v y_axis for u in -½ … ½ and v in 0 … 1."""
    rows, columns = (INSIDE * k for k in shape)
    v, u = np.meshgrid((np.arange(rows) + 0.5) / rows, (np.arange(columns) + 0.5) / columns - 0.5, indexing="ij")
    return origin + u.reshape(-1, 1) * x_axis + v.reshape(-1, 1) * y_axis


def places(kind: str, points68: Float[np.ndarray, "68 2"]) -> list[Float[np.ndarray, "S 2"]]:
    """Where the grids of a kind lie in a picture: they follow the eyes' corners and the nose, never lips or lids."""
    p = np.asarray(points68, np.float64)
    across = p[45] - p[36]
    down = np.array([-across[1], across[0]])
    if kind == "lips":
        width, top, bottom = MOUTH
        return [_grid(p[33] + top * down, width * across, (bottom - top) * down, GRIDS[kind])]
    out = []
    for a, b in (curves.RIGHT_CORNERS, curves.LEFT_CORNERS):
        x = p[b] - p[a]
        y = EYE[1] * np.array([-x[1], x[0]])
        out.append(_grid((p[a] + p[b] - y) / 2, EYE[0] * x, y, GRIDS[kind]))
    return out


def sample(image: UInt8[np.ndarray, "H W 3"], points: Float[np.ndarray, "S 2"]) -> Float[np.ndarray, "S 3"]:
    """Colours at points (x, y) in pixels, bilinear between pixel centres; the border goes on outside."""
    h, w = image.shape[:2]
    x, y = np.clip(points[:, 0] - 0.5, 0, w - 1), np.clip(points[:, 1] - 0.5, 0, h - 1)
    x0, y0 = np.minimum(x.astype(int), max(w - 2, 0)), np.minimum(y.astype(int), max(h - 2, 0))
    x1, y1 = np.minimum(x0 + 1, w - 1), np.minimum(y0 + 1, h - 1)
    fx, fy = (x - x0)[:, None], (y - y0)[:, None]
    top = image[y0, x0] * (1 - fx) + image[y0, x1] * fx
    return top * (1 - fy) + (image[y1, x0] * (1 - fx) + image[y1, x1] * fx) * fy


def colours(kind: str, image: UInt8[np.ndarray, "H W 3"], points68: Float[np.ndarray, "68 2"]) -> np.ndarray:
    """[D] colours of the cells, 0…1."""
    rows, columns = GRIDS[kind]
    cells = []
    for at in places(kind, points68):
        fine = sample(image, at).reshape(rows, INSIDE, columns, INSIDE, 3)
        cells.append(fine.mean((1, 3)).ravel() / 255)
    return np.concatenate(cells)


@dataclasses.dataclass(frozen=True)
class Linear:
    """value = bias + weights · (x - mean)."""

    mean: Float[np.ndarray, " D"]
    weights: Float[np.ndarray, " D"]
    bias: float

    def __call__(self, x: Float[np.ndarray, "n D"]) -> Float[np.ndarray, " n"]:
        return self.bias + (x - self.mean) @ self.weights


def ridge(x: Float[np.ndarray, "n D"], y: Float[np.ndarray, " n"], penalty: float) -> Linear:
    """Least squares with penalty · |weights|² on colours over their common deviation (dual form: n is small)."""
    mean, bias = x.mean(0), y.mean()
    centred = x - mean
    scale = max(float(centred.std()), 1e-6)
    centred = centred / scale
    dual = np.linalg.solve(centred @ centred.T + penalty * np.eye(len(x)), y - bias)
    return Linear(mean, centred.T @ dual / scale, float(bias))


def fit(x: Float[np.ndarray, "n D"], y: Float[np.ndarray, " n"]) -> Linear:
    """The ridge whose penalty predicts left-out runs of frames best."""
    parts = np.array_split(np.arange(len(x)), FOLDS)

    def error(penalty: float) -> float:
        out = 0.0
        for part in parts:
            rest = np.setdiff1d(np.arange(len(x)), part)
            out += float(np.sum((ridge(x[rest], y[rest], penalty)(x[part]) - y[part]) ** 2))
        return out

    return ridge(x, y, min(RIDGES, key=error))


class Reader:
    """Reads one kind of curve from pictures of a clip's frames.

    points68: landmarks of every frame at the pictures' size. train: frames to learn from, ascending; target(i): their
    true pictures. `why` says why there is no reading at all, "" where there is.
    """

    def __init__(
        self,
        kind: str,
        points68: Float[np.ndarray, "N 68 2"],
        train: Int[np.ndarray, " n"],
        target: Callable[[int], np.ndarray],
    ):
        self.kind, self._points, self.why = kind, points68, ""
        truth = curves.CURVES[kind](points68[train]) if len(train) else np.zeros(0)
        if len(train) < curves.MIN_FRAMES or not np.isfinite(truth).all() or np.ptp(truth) < 1e-6:
            self.why = "the landmarks of the training frames do not move, so no reading of pictures can be learnt"
            return
        self._linear = fit(np.stack([colours(kind, target(int(i)), points68[i]) for i in train]), truth)

    def __call__(self, i: int, image: UInt8[np.ndarray, "H W 3"]) -> float:
        """The curve's value in a picture of frame i; NaN where there is no reading."""
        if self.why or not np.isfinite(self._points[i]).all():
            return float("nan")
        return float(self._linear(colours(self.kind, image, self._points[i])[None])[0])

    def doubt(self, frames: Int[np.ndarray, " n"], true: Float[np.ndarray, " n"]) -> str:
        """Why readings `true` of true frames cannot be trusted, "" where they can."""
        if self.why:
            return self.why
        follows = curves.pearson(curves.CURVES[self.kind](self._points[frames]), true)
        if follows >= TRUSTED:
            return ""
        return (
            f"without the face tracker the {self.kind} are read from the pictures' colours, and that follows the true "
            f"landmarks with a correlation of {follows:.2f} only (at least {TRUSTED} is needed)"
        )
