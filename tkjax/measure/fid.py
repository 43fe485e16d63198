"""Fréchet inception distance (Heusel et al. 2017) with the network and weights that pytorch-fid uses.

    FID = |m_a - m_b|² + Tr(S_a + S_b - 2 (S_a S_b)^½),

m and S mean and covariance (divisor n - 1) of the features of two sets of pictures: what the InceptionV3 of 2015-12-05
(TensorFlow's weights, as `pt_inception-2015-12-05-6726825d.pth`) gives before its classifier, averaged over places:
2048 numbers. Pictures are resized to 299x299 (bilinear, corners not aligned, no filter) and taken to -1…1. Average
pools do not count what lies outside, and the last block takes a maximum, as in TensorFlow's graph. With fewer pictures
than features the covariances have no full rank, so that values are comparable at equal numbers of pictures only.

The numbers of channels are the file's own, so that a test can do with few.
"""

import functools
import math
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from tkjax.contract import ContractError
from tkjax.contract.npz import read_npz
from tkjax.errors import UserError
from tkjax.host import stored, torch_side
from tkjax.host.model_files import find_model

WEIGHTS = "pt_inception-2015-12-05-6726825d.pth"
READER = "preprocess.weights.checkpoint_file"
SIDE = 299
EPS_BATCH_NORM = 1e-3  # of the network's batch normalisation
AT_ONCE = 4  # pictures in one call

Weights = Mapping[str, np.ndarray]


# ---------------------------------------------------------------- the network


def _conv(w: Weights, name: str, x: Array, stride: int = 1, pad: bool = True) -> Array:
    """Convolution, batch normalisation (running statistics), ReLU. pad: output as large as the input, at stride 1."""
    kernel = w[f"{name}.conv.weight"]
    sides = [((k - 1) // 2, (k - 1) // 2) if pad else (0, 0) for k in kernel.shape[2:]]
    x = jax.lax.conv_general_dilated(
        x, kernel.transpose(2, 3, 1, 0), (stride, stride), sides, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    scale = w[f"{name}.bn.weight"] / np.sqrt(w[f"{name}.bn.running_var"] + EPS_BATCH_NORM)
    return jax.nn.relu(x * scale + (w[f"{name}.bn.bias"] - w[f"{name}.bn.running_mean"] * scale))


def _largest(x: Array, stride: int, pad: int = 0) -> Array:
    sides = ((0, 0), (pad, pad), (pad, pad), (0, 0))
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, stride, stride, 1), sides)


def _mean(x: Array) -> Array:
    """3x3 at stride 1, of the places inside."""

    def total(v):
        return jax.lax.reduce_window(v, 0.0, jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")

    return total(x) / total(jnp.ones_like(x[:1, :, :, :1]))


def _chain(w: Weights, block: str, x: Array, *names: str, last_stride: int = 1) -> Array:
    """Convolutions one after the other; the last one of a strided chain has no padding."""
    for k, name in enumerate(names):
        strided = last_stride > 1 and k == len(names) - 1
        x = _conv(w, f"{block}.{name}", x, last_stride if strided else 1, not strided)
    return x


def _block_a(w: Weights, b: str, x: Array) -> Array:
    parts = ("branch1x1",), ("branch5x5_1", "branch5x5_2"), tuple(f"branch3x3dbl_{k}" for k in (1, 2, 3))
    pooled = _chain(w, b, _mean(x), "branch_pool")
    return jnp.concatenate([*(_chain(w, b, x, *names) for names in parts), pooled], -1)


def _block_b(w: Weights, b: str, x: Array) -> Array:
    double = _chain(w, b, x, *(f"branch3x3dbl_{k}" for k in (1, 2, 3)), last_stride=2)
    return jnp.concatenate([_chain(w, b, x, "branch3x3", last_stride=2), double, _largest(x, 2)], -1)


def _block_c(w: Weights, b: str, x: Array) -> Array:
    parts = ("branch1x1",), tuple(f"branch7x7_{k}" for k in (1, 2, 3)), tuple(f"branch7x7dbl_{k}" for k in range(1, 6))
    pooled = _chain(w, b, _mean(x), "branch_pool")
    return jnp.concatenate([*(_chain(w, b, x, *names) for names in parts), pooled], -1)


def _block_d(w: Weights, b: str, x: Array) -> Array:
    three = _chain(w, b, x, "branch3x3_1", "branch3x3_2", last_stride=2)
    seven = _chain(w, b, x, *(f"branch7x7x3_{k}" for k in (1, 2, 3, 4)), last_stride=2)
    return jnp.concatenate([three, seven, _largest(x, 2)], -1)


def _block_e(w: Weights, b: str, x: Array, pool: Callable[[Array], Array]) -> Array:
    three = _chain(w, b, x, "branch3x3_1")
    double = _chain(w, b, x, "branch3x3dbl_1", "branch3x3dbl_2")
    split = [_conv(w, f"{b}.branch3x3_2{s}", three) for s in "ab"]
    split += [_conv(w, f"{b}.branch3x3dbl_3{s}", double) for s in "ab"]
    pooled = _chain(w, b, pool(x), "branch_pool")
    return jnp.concatenate([_chain(w, b, x, "branch1x1"), *split, pooled], -1)


def _resized(x: Float[Array, "N h w 3"]) -> Float[Array, "N s s 3"]:
    rows, columns = (_bilinear(n) for n in x.shape[1:3])
    return jnp.einsum("ih,nhwc,jw->nijc", rows, x, columns, precision=jax.lax.Precision.HIGHEST)


def _bilinear(n: int) -> np.ndarray:
    """[SIDE, n] weights of a bilinear resize whose corners are not aligned: place (i + ½) n / SIDE - ½, kept inside."""
    at = np.clip((np.arange(SIDE) + 0.5) * n / SIDE - 0.5, 0, n - 1)
    low = np.minimum(at.astype(int), n - 1)
    out = np.zeros((SIDE, n), np.float32)
    out[np.arange(SIDE), low] = 1 - (at - low)
    out[np.arange(SIDE), np.minimum(low + 1, n - 1)] += at - low
    return out


def features(w: Weights, pictures: Float[Array, "N h w 3"]) -> Float[Array, "N F"]:
    """What the network gives for pictures in 0…1."""
    x = 2 * _resized(pictures) - 1
    x = _conv(w, "Conv2d_1a_3x3", x, 2, pad=False)
    x = _conv(w, "Conv2d_2b_3x3", _conv(w, "Conv2d_2a_3x3", x, pad=False))
    x = _conv(w, "Conv2d_3b_1x1", _largest(x, 2))
    x = _largest(_conv(w, "Conv2d_4a_3x3", x, pad=False), 2)
    for name in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
        x = _block_a(w, name, x)
    x = _block_b(w, "Mixed_6a", x)
    for name in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
        x = _block_c(w, name, x)
    x = _block_d(w, "Mixed_7a", x)
    x = _block_e(w, "Mixed_7b", x, _mean)
    x = _block_e(w, "Mixed_7c", x, lambda v: _largest(v, 1, 1))
    return x.mean((1, 2))


# ---------------------------------------------------------------- its weights


def _convolutions() -> dict[str, tuple[int, int]]:
    """Name of each convolution -> height and width of its kernel."""
    out = {"Conv2d_1a_3x3": (3, 3), "Conv2d_2a_3x3": (3, 3), "Conv2d_2b_3x3": (3, 3)}
    out |= {"Conv2d_3b_1x1": (1, 1), "Conv2d_4a_3x3": (3, 3)}
    one, three, five, wide, tall = (1, 1), (3, 3), (5, 5), (1, 7), (7, 1)
    double = {"branch3x3dbl_1": one, "branch3x3dbl_2": three, "branch3x3dbl_3": three}
    a = {"branch1x1": one, "branch5x5_1": one, "branch5x5_2": five, **double, "branch_pool": one}
    seven = {"branch7x7_1": one, "branch7x7_2": wide, "branch7x7_3": tall, "branch7x7dbl_1": one}
    c = {"branch1x1": one, **seven, "branch_pool": one}
    c |= {f"branch7x7dbl_{k}": tall if k % 2 == 0 else wide for k in (2, 3, 4, 5)}
    d = {"branch3x3_1": one, "branch3x3_2": three}
    d |= {"branch7x7x3_1": one, "branch7x7x3_2": wide, "branch7x7x3_3": tall, "branch7x7x3_4": three}
    e = {"branch1x1": one, "branch3x3_1": one, "branch3x3_2a": (1, 3), "branch3x3_2b": (3, 1), "branch_pool": one}
    e |= {"branch3x3dbl_1": one, "branch3x3dbl_2": three, "branch3x3dbl_3a": (1, 3), "branch3x3dbl_3b": (3, 1)}
    blocks = {f"Mixed_5{s}": a for s in "bcd"} | {"Mixed_6a": {"branch3x3": three, **double}}
    blocks |= {f"Mixed_6{s}": c for s in "bcde"} | {"Mixed_7a": d, "Mixed_7b": e, "Mixed_7c": e}
    return out | {f"{block}.{name}": side for block, parts in blocks.items() for name, side in parts.items()}


CONVOLUTIONS = _convolutions()
OF_NORM = ("weight", "bias", "running_mean", "running_var")


def read_weights(path: Path) -> dict[str, np.ndarray]:
    """The network's arrays out of the published file, which the PyTorch child opens; UserError where they are not
    those of this network."""
    remedy = f"give the {WEIGHTS} that pytorch-fid publishes"
    with tempfile.TemporaryDirectory(prefix="tkjax-fid-") as folder:
        torch_side.ask(READER, ["--read", str(path), "--out", folder])
        try:
            with stored.open_plain(folder, "tensors.npz") as file:
                arrays = read_npz(file, Path(folder) / "tensors.npz")
        except (ContractError, OSError) as error:
            raise UserError(f"{path} cannot be read as weights ({error}); {remedy}") from error
    out = {}
    for name, sides in CONVOLUTIONS.items():
        for key in (f"{name}.conv.weight", *(f"{name}.bn.{part}" for part in OF_NORM)):
            value = arrays.get(f"model/{key}")
            if value is None:
                raise UserError(f"{path} lacks {key!r}; {remedy}")
            value = np.asarray(value, np.float32)
            fits = value.shape[2:] == sides and value.ndim == 4 if key.endswith("conv.weight") else value.ndim == 1
            if not fits or not np.isfinite(value).all():
                raise UserError(f"{path}: {key!r} has shape {value.shape} or holds no numbers; {remedy}")
            out[key] = value
    return out


# ---------------------------------------------------------------- the distance


def distance(a: Float[np.ndarray, "n F"], b: Float[np.ndarray, "m F"]) -> float:
    """FID of two sets of features; NaN with fewer than two in one of them."""
    if min(len(a), len(b)) < 2:
        return math.nan
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    (sa, sb), apart = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b)), a.mean(0) - b.mean(0)
    values, vectors = np.linalg.eigh(sa)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    # the eigenvalues of S_a S_b are those of the symmetric S_a^½ S_b S_a^½
    both = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ sb @ root), 0)).sum()
    return float(max(apart @ apart + np.trace(sa) + np.trace(sb) - 2 * both, 0.0))


class Fid:
    """Features of pictures as they come, and the distance of each source to what it is compared with."""

    def __init__(self, path: Path):
        weights = read_weights(path)
        self._run = jax.jit(functools.partial(features, weights))
        self._waiting: list[np.ndarray] = []
        self._done: list[np.ndarray] = []
        self._pairs: dict[str, list[tuple[int, int]]] = {}
        self._last: dict[int, tuple[np.ndarray, int]] = {}  # the frame's pictures and their places

    def add(self, source: str, image: UInt8[np.ndarray, "H W 3"], target: UInt8[np.ndarray, "H W 3"]) -> None:
        """The next picture of a source and its truth; one picture for several sources is looked at once."""
        self._pairs.setdefault(source, []).append((self._place(image), self._place(target)))

    def _place(self, image: np.ndarray) -> int:
        known = self._last.get(id(image))
        if known is not None and known[0] is image:
            return known[1]
        if self._waiting and self._waiting[-1].shape != image.shape:
            self._look()
        place = sum(map(len, self._done)) + len(self._waiting)
        self._waiting.append(np.array(image))
        if len(self._last) >= 8:
            self._last.pop(next(iter(self._last)))
        self._last[id(image)] = image, place
        if len(self._waiting) == AT_ONCE:
            self._look()
        return place

    def features(self, pictures: UInt8[np.ndarray, "N H W 3"]) -> Float[np.ndarray, "N F"]:
        """Of at most AT_ONCE pictures of one size."""
        n = len(pictures)
        full = np.concatenate([pictures, np.repeat(pictures[-1:], AT_ONCE - n, 0)]).astype(np.float32) / 255
        return np.asarray(self._run(full))[:n]

    def _look(self) -> None:
        if self._waiting:
            self._done.append(self.features(np.stack(self._waiting)))
            self._waiting = []

    def values(self) -> dict[str, float]:
        """{source: FID}."""
        self._look()
        found = np.concatenate(self._done) if self._done else np.zeros((0, 1))
        return {s: distance(found[[a for a, _ in p]], found[[b for _, b in p]]) for s, p in self._pairs.items()}


def open_fid(models: str | os.PathLike | None) -> tuple[Fid | None, str]:
    """(Fid, "") or (None, why it is not computed)."""
    path, reason = find_model(models, WEIGHTS)
    if path is None:
        where = reason.partition(";")[0]
        return None, f"not computed: needs {WEIGHTS}: {where}; pytorch-fid publishes it, put it there"
    try:
        return Fid(path), ""
    except UserError as error:
        return None, f"not computed: {error}"
