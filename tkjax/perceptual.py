"""The perceptual term of the lips stages: LPIPS where its weights are found, else a stated substitute (`structure`).

    choose(name) -> Perceptual; perceptual(prediction [N,h,w,3], target [N,h,w,3]) -> [N], pictures in 0…1.

Both are differentiable with respect to both pictures, finite everywhere, 0 for equal pictures and symmetric. A side of
n < 32 pixels gets (33 - n) // 2 pixels of middle grey at both ends (er-nerf.md §5, §11: 20 -> 32, 31 -> 33): zeros
after the mapping to -1…1, as the released code pads.

LPIPS (Zhang et al. 2018, version 0.1 of its weights): x' = (2x - 1 - shift) / scale; features y_l after the ReLUs of a
classifier's trunk, divided by their norm over channels; Σ_l mean over pixels of Σ_c w_lc (y_lc - z_lc)². Trap of the
dossiers: ER-NeRF maps 0…1 to -1…1 before LPIPS, RAD-NeRF's training forgot to. We map for every system: it is what the
weights were fitted on.

structure: mean over three scales (2x2 means) of (1 - c_s)/2 + |∂x a - ∂x b| + |∂y a - ∂y b|, means over pixels and
channels. c_s is SSIM's contrast-structure factor (2 σ_ab + c2) / (σ_a² + σ_b² + c2) in a Gaussian window of 7 pixels
(σ 1.5), at the coarsest scale times its luminance factor, as in multi-scale SSIM. A constant shift of the colours
changes the luminance factor alone, blur every other term: the squared error beside it in the loss sees the shift.
A face blurred by 1, 2 and 4 pixels is 0.05, 0.11 and 0.18 away (a shift of the same squared error 0.001, 0.003,
0.005). That is the order of LPIPS, so the dossiers' weights are kept; against the real weights it was not measured.
"""

import dataclasses
import hashlib
import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from tkjax.errors import UserError
from tkjax.host.model_files import find_model
from tkjax.losses import safe_norm
from tkjax.types import Array

NAMES = ("auto", "lpips_alex", "lpips_vgg", "structure")
MIN_SIDE = 32  # er-nerf.md §5: AlexNet's trunk needs 31
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # LPIPS' scaling layer, of pictures in -1…1
EPS_UNIT = 1e-10  # beside the norm of a feature vector, as in LPIPS

SCALES = 3
WINDOW, SIGMA = 7, 1.5  # 32 px are 8 at the third scale, where 7 still fit
C1, C2 = 0.01**2, 0.03**2  # SSIM's constants for pictures in 0…1


@dataclasses.dataclass(frozen=True)
class Conv:
    """A convolution with ReLU; its output is compared where `compared`."""

    n_in: int
    n_out: int
    side: int = 3
    stride: int = 1
    pad: int = 1
    compared: bool = False


@dataclasses.dataclass(frozen=True)
class Pool:
    """Maximum over side x side at every second pixel, inside the picture only."""

    side: int


# The trunks of torchvision's AlexNet and VGG16 up to the last compared layer.
TRUNKS: dict[str, tuple[Conv | Pool, ...]] = {
    "alex": (
        Conv(3, 64, 11, 4, 2, True), Pool(3), Conv(64, 192, 5, 1, 2, True), Pool(3),
        Conv(192, 384, compared=True), Conv(384, 256, compared=True), Conv(256, 256, compared=True),
    ),
    "vgg": (
        Conv(3, 64), Conv(64, 64, compared=True), Pool(2), Conv(64, 128), Conv(128, 128, compared=True), Pool(2),
        Conv(128, 256), Conv(256, 256), Conv(256, 256, compared=True), Pool(2),
        Conv(256, 512), Conv(512, 512), Conv(512, 512, compared=True), Pool(2),
        Conv(512, 512), Conv(512, 512), Conv(512, 512, compared=True),
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class Perceptual:
    """A distance between pictures. `describe` is one sentence for reports; weights live in `distance`'s closure."""

    name: str
    describe: str
    distance: Callable[[jax.Array, jax.Array], jax.Array]

    def __call__(self, prediction: Float[Array, "N h w 3"], target: Float[Array, "N h w 3"]) -> Float[Array, " N"]:
        return self.distance(_padded(jnp.asarray(prediction)), _padded(jnp.asarray(target)))


def of_patches(
    distance: Perceptual, prediction: Float[Array, "B R 3"], target: Float[Array, "B R 3"], patch: int
) -> Float[Array, ""]:
    """Mean distance of the patches of patch x patch that the R pixels of each frame are, one after another."""
    shape = (prediction.shape[0] * (prediction.shape[1] // patch**2), patch, patch, 3)
    return jnp.mean(distance(prediction.reshape(shape), target.reshape(shape)))


def choose(name: str = "auto", models_dir: str | os.PathLike | None = None) -> Perceptual:
    """The distance of that name; `auto`: lpips_alex where its file is found, else structure.

    lpips_alex.npz and lpips_vgg.npz are looked for as every model file is: models_dir, $TKJAX_MODELS, the cache.
    """
    if name not in NAMES:
        raise UserError(f"perceptual term {name!r} is unknown; choose one of {', '.join(NAMES)}")
    if name != "structure":
        path, reason = find(name if name != "auto" else "lpips_alex", models_dir)
        if path is not None:
            return lpips(path, "vgg" if name == "lpips_vgg" else "alex")
        if name != "auto":
            raise UserError(f"perceptual term {name}: {reason}")
    return Perceptual(
        "structure",
        "structure, in place of LPIPS, whose weights are not shipped: mean over three scales of (1 - SSIM's "
        "contrast-structure)/2 and of the absolute difference of the pictures' gradients",
        structure,
    )


def find(name: str, models_dir: str | os.PathLike | None = None) -> tuple[Path | None, str]:
    """(path of NAME.npz, "") or (None, where it was looked for and how to make it)."""
    path, reason = find_model(models_dir, f"{name}.npz")
    where = reason.partition(";")[0]
    return path, "" if path else (
        f"{where}; make it with python -m preprocess.weights.convert_lpips from the LPIPS linear weights and "
        "torchvision's trunk, and put it there"
    )


def _padded(x: jax.Array) -> jax.Array:
    """Middle grey around sides shorter than MIN_SIDE, ceil of half of what is missing on both ends."""
    each = [max(0, (MIN_SIDE - n + 1) // 2) for n in x.shape[1:3]]
    return jnp.pad(x, ((0, 0), *((p, p) for p in each), (0, 0)), constant_values=0.5)


# ---------------------------------------------------------------- LPIPS


def lpips(path: Path, trunk: str) -> Perceptual:
    """LPIPS with the weights of a file that `convert_lpips` wrote; UserError where it is another's."""
    data = Path(path).read_bytes()
    arrays = _read(data, Path(path), trunk)
    n_convs = sum(isinstance(layer, Conv) for layer in TRUNKS[trunk])
    convs = [(arrays[f"conv{k}_weight"].transpose(2, 3, 1, 0), arrays[f"conv{k}_bias"]) for k in range(n_convs)]
    linear = [arrays[f"linear{k}"] for k in range(5)]

    def distance(a: jax.Array, b: jax.Array) -> jax.Array:
        features = zip(_features(a, trunk, convs), _features(b, trunk, convs), linear, strict=True)
        return sum(jnp.mean(jnp.square(y - z) @ w, (1, 2)) for y, z, w in features)

    digest = hashlib.sha256(data).hexdigest()[:8]
    network = {"alex": "AlexNet", "vgg": "VGG16"}[trunk]
    return Perceptual(f"lpips_{trunk}", f"LPIPS ({network}, weights {Path(path).name}, sha256 {digest}…)", distance)


def expected_shapes(trunk: str) -> dict[str, tuple[int, ...]]:
    """Members of lpips_<trunk>.npz: convolutions [out, in, side, side] and biases in order, and the linear weights."""
    convs = [layer for layer in TRUNKS[trunk] if isinstance(layer, Conv)]
    out: dict[str, tuple[int, ...]] = {}
    for k, c in enumerate(convs):
        out |= {f"conv{k}_weight": (c.n_out, c.n_in, c.side, c.side), f"conv{k}_bias": (c.n_out,)}
    return out | {f"linear{k}": (c.n_out,) for k, c in enumerate(c for c in convs if c.compared)}


def _read(data: bytes, path: Path, trunk: str) -> dict[str, np.ndarray]:
    again = f"make it again with python -m preprocess.weights.convert_lpips --out=lpips_{trunk}.npz"
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, KeyError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}); {again}") from error
    for name, shape in expected_shapes(trunk).items():
        if name not in arrays:
            raise UserError(f"{path} lacks {name!r}; {again}")
        found = arrays[name]
        if found.shape != shape or found.dtype != np.float32:
            raise UserError(f"{path}: {name!r} is {found.dtype} {found.shape}, expected float32 {shape}; {again}")
        if not np.isfinite(found).all():
            raise UserError(f"{path}: {name!r} holds NaN or infinity; {again}")
    return arrays


def _features(x: jax.Array, trunk: str, convs: list[tuple[np.ndarray, np.ndarray]]) -> list[jax.Array]:
    """The compared features of pictures in 0…1, each [N, h, w, C] with norm 1 over C (0 where all are 0)."""
    x = (2 * x - 1 - jnp.asarray(SHIFT, x.dtype)) / jnp.asarray(SCALE, x.dtype)
    out, weights = [], iter(convs)
    for layer in TRUNKS[trunk]:
        if isinstance(layer, Pool):
            window = (1, layer.side, layer.side, 1)
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, (1, 2, 2, 1), "VALID")
            continue
        kernel, bias = next(weights)
        strides, pads = (layer.stride,) * 2, ((layer.pad, layer.pad),) * 2
        x = jax.lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))
        x = jax.nn.relu(x + bias)
        if layer.compared:
            out.append(x / (safe_norm(x)[..., None] + EPS_UNIT))
    return out


# ---------------------------------------------------------------- structure


def structure(a: Float[Array, "N h w 3"], b: Float[Array, "N h w 3"]) -> Float[Array, " N"]:
    """The substitute of the module's docstring; sides of at least 32 pixels."""
    total = jnp.zeros(a.shape[0], a.dtype)
    for scale in range(SCALES):
        if scale:
            a, b = _halved(a), _halved(b)
        similarity = _similarity(a, b, luminance=scale == SCALES - 1)
        edges = sum(jnp.mean(jnp.abs(jnp.diff(a - b, axis=axis)), (1, 2, 3)) for axis in (1, 2))
        total += (1 - similarity) / 2 + edges
    return total / SCALES


def _halved(x: jax.Array) -> jax.Array:
    """Means of 2x2 pixels; an odd last row or column is left out."""
    n, h, w, c = x.shape
    return x[:, : h // 2 * 2, : w // 2 * 2].reshape(n, h // 2, 2, w // 2, 2, c).mean((2, 4))


def _band(n: int) -> np.ndarray:
    """[n - WINDOW + 1, n]: the Gaussian window at every place where all of it lies inside."""
    x = np.arange(WINDOW) - WINDOW // 2
    gauss = np.exp(-0.5 * (x / SIGMA) ** 2)
    rows = [np.pad(gauss / gauss.sum(), (k, n - WINDOW - k)) for k in range(n - WINDOW + 1)]
    return np.stack(rows).astype(np.float32)


def _similarity(a: jax.Array, b: jax.Array, luminance: bool) -> jax.Array:
    """[N]: mean of SSIM's contrast-structure factor, times the luminance factor if asked for."""
    rows, columns = _band(a.shape[1]), _band(a.shape[2])

    def window(x: jax.Array) -> jax.Array:
        return jnp.einsum("ih,nhwc,jw->nijc", rows, x, columns, precision=jax.lax.Precision.HIGHEST)

    middle = (jnp.mean(a, (1, 2), keepdims=True) + jnp.mean(b, (1, 2), keepdims=True)) / 2
    u, v = a - middle, b - middle  # variances do not depend on it; small numbers lose fewer digits
    mean_u, mean_v = window(u), window(v)
    variances = window(u * u + v * v) - mean_u**2 - mean_v**2
    value = (2 * (window(u * v) - mean_u * mean_v) + C2) / (variances + C2)
    if luminance:
        mean_a, mean_b = mean_u + middle, mean_v + middle
        value *= (2 * mean_a * mean_b + C1) / (mean_a**2 + mean_b**2 + C1)
    return jnp.mean(value, (1, 2, 3))
