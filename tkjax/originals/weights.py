"""Tensors of a state dict <-> our params and state, as flat {path: numpy array}.

Everything is a rearrangement: no number is changed, so both directions together give back what went in.
"""

import math
from collections.abc import Iterable, Mapping

import numpy as np
from jaxtyping import Float, UInt8

from tkjax.errors import UserError
from tkjax.fields.torso import ANCHORS
from tkjax.originals import layout
from tkjax.originals.layout import SIDE, Shape, Sizes, Tensor

MAX_THRESHOLD = 10.0  # a cell is occupied above min(mean density, this) (rad-nerf dossier §4.2)
OCCUPIED = 2 * MAX_THRESHOLD  # density of a cell of which only the bit is known
Arrays = dict[str, np.ndarray]


# ---------------------------------------------------------------- what is there


def missing(tensors: Iterable[Tensor], keys) -> list[Tensor]:
    return [t for t in tensors if t.key not in keys]


def unknown(tensors: Iterable[Tensor], keys) -> list[str]:
    known = {t.key for t in tensors}
    return [k for k in keys if k not in known]


def check_shapes(tensors: Iterable[Tensor], shapes: Mapping[str, Shape], name: str) -> None:
    """UserError for the tensors that do not have the system's shape, each with both shapes."""
    wrong = []
    for t in tensors:
        have = shapes.get(t.key, t.shape)
        if have != t.shape and math.prod(have) * (t.key == "density_grid") != math.prod(t.shape):
            wrong.append(f"{t.key} is {list(have)}, not {list(t.shape)}")
    if wrong:
        raise UserError(f"{name} does not have the shapes of its system: {'; '.join(wrong)}")


def check_offsets(tensors: Iterable[Tensor], arrays: Mapping[str, np.ndarray], name: str) -> None:
    """UserError where a grid's levels lie elsewhere in its table than ours do."""
    for t in tensors:
        if t.key.endswith(".offsets") and t.key in arrays and arrays[t.key].tolist() != layout.offsets(t.key):
            raise UserError(
                f"{name}: the levels in {t.key} begin at {arrays[t.key].tolist()}, expected {layout.offsets(t.key)}: "
                "its grid has other resolutions"
            )


def check_kinds(tensors: Iterable[Tensor], arrays: Mapping[str, np.ndarray], name: str) -> None:
    """UserError where a tensor holds other numbers than the original's: rounding or wrapping would make another one."""
    kinds = {"bytes": "B", "whole": "bBhHiIlLqQ", "real": "efd"}
    words = {"bytes": "uint8", "whole": "whole numbers", "real": "real numbers (float16 to float64)"}
    for t in tensors:
        if t.key in arrays and arrays[t.key].dtype.char not in kinds[t.numbers]:
            raise UserError(
                f"{name}: {t.key} holds {arrays[t.key].dtype} numbers, expected {words[t.numbers]} as the original "
                "writes them; take another file"
            )


def check_finite(arrays: Mapping[str, np.ndarray], name: str) -> None:
    """UserError where a number is not finite, or would not be as float32."""
    largest = float(np.finfo(np.float32).max)
    for key, value in arrays.items():
        if value.dtype.kind != "f":
            continue
        if not np.isfinite(value).all():
            raise UserError(f"{name}: {key} holds numbers that are not finite; the training went wrong, take another")
        if value.itemsize > 4 and value.size and np.abs(value).max() > largest:
            raise UserError(f"{name}: {key} holds numbers beyond {largest:.3g}, float32's largest; take another file")


def shadow_names(tensors: Iterable[Tensor], keys: list[str], shapes: Mapping[str, Shape], shadow: list[Shape]):
    """The parameters that the nameless tensors of a moving average belong to, or None where they fit none.

    torch_ema 0.3 lists all parameters; 0.2 leaves out the frozen ones, in a torso file those of the head. Their order
    is that of the file, or, where somebody sorted the file, the one in which the originals make them.
    """
    known = {t.key: t for t in tensors}
    ours = [t.key for t in tensors if t.parameter and t.key in shapes]
    file = [k for k in keys if k not in known or known[k].parameter]
    frozen = [[k for k in names if k in known and known[k].torso] for names in (file, ours)]
    for names in (file, ours, *frozen):
        if names and [shapes[k] for k in names] == shadow:
            return names
    return None


# ---------------------------------------------------------------- one tensor


def _to_ours(tensor: Tensor, value: np.ndarray) -> np.ndarray:
    if tensor.form == "linear":
        return value.T
    return value.transpose(2, 1, 0) if tensor.form == "conv" else value


def _to_theirs(tensor: Tensor, value: np.ndarray) -> np.ndarray:
    if tensor.form.startswith("plane"):
        return value[int(tensor.form.removeprefix("plane"))]
    return _to_ours(tensor, value)  # a transpose is its own inverse


# ---------------------------------------------------------------- parameters


def fresh(shapes: Mapping[str, Shape]) -> Arrays:
    """A new model's parameters, for what a file does not have: tables in ±1e-4, layers in ±1/√(inputs), codes 0."""
    rng = np.random.default_rng(0)
    out = {}
    for path, shape in shapes.items():
        name = path.split("/")[-1]
        limit = 1e-4 if name == "tables" else 1 / math.sqrt(shape[0]) if name.startswith("kernel_") else 0.0
        out[path] = (limit * rng.uniform(-1, 1, shape) if limit else np.zeros(shape)).astype(np.float32)
    if "torso/anchors" in shapes:
        out["torso/anchors"] = np.array(ANCHORS, np.float32)
    return out


def to_params(tensors: Iterable[Tensor], arrays: Mapping[str, np.ndarray], fresh: Mapping[str, np.ndarray]) -> Arrays:
    """Our parameters {path: array}: those of the state dict where it has them, else those of `fresh`."""
    out = {path: np.array(value) for path, value in fresh.items()}
    for t in tensors:
        if not t.path or t.key not in arrays:
            continue
        value = _to_ours(t, np.asarray(arrays[t.key], np.float32))
        if t.form.startswith("plane"):
            out[t.path][int(t.form.removeprefix("plane"))] = value
        else:
            out[t.path] = np.ascontiguousarray(value)
    return out


def from_params(tensors: Iterable[Tensor], params: Mapping[str, np.ndarray]) -> Arrays:
    """{key: tensor} of all parameters; UserError names one that has not the originals' shape."""
    out = {}
    for t in tensors:
        if not t.path:
            continue
        value = np.ascontiguousarray(_to_theirs(t, np.asarray(params[t.path])))
        if value.shape != t.shape:
            raise UserError(
                f"the avatar's {t.path} would be {t.key} {list(value.shape)}, but the original has {list(t.shape)}; "
                "only what was trained with the variant full of a config has the originals' shapes"
            )
        out[t.key] = value
    return out


def without_eye(params: Arrays) -> Arrays:
    """ER-NeRF without its blink (no --exp_eye): density takes one input less, and there is no eye attention. As
    parameters of the network with it: whatever the blink is, it is multiplied by 0."""
    kernel = params["density/kernel_0"]
    zeros = {k: np.zeros_like(v) for k, v in params.items() if k.startswith("eye_attention/")}
    return {**params, **zeros, "density/kernel_0": np.pad(kernel, ((0, 1), (0, 0)))}


def drop_eye(params: Arrays) -> Arrays:
    """The inverse of `without_eye`."""
    return {**params, "density/kernel_0": params["density/kernel_0"][:-1]}


# ---------------------------------------------------------------- occupancy


def occupancy(arrays: Mapping[str, np.ndarray]) -> tuple[Arrays, str]:
    """({density [128^3], bits} of the head in Morton order, where they come from).

    The bits are the field's: `ngp.pth` has no density, and a torso file built on one holds zeros there. Densities of
    cells that only have a bit are OCCUPIED or 0.
    """
    grid, bits = arrays.get("density_grid"), arrays.get("density_bitfield")
    known = grid is not None and bool(np.any(grid))
    density = np.asarray(grid, np.float32).reshape(-1) if known else None
    if bits is not None:
        source = "bit field and density grid" if known else "bit field"
    elif known:
        bits, source = pack(density), "density grid"
    else:
        bits, source = np.full(SIDE**3 // 8, 255, np.uint8), "nothing: every cell counts as occupied"
    if not known:
        density = np.unpackbits(bits, bitorder="little").astype(np.float32) * OCCUPIED
    return {"density": density, "bits": np.asarray(bits, np.uint8)}, source


def pack(density: Float[np.ndarray, " cells"]) -> UInt8[np.ndarray, " bytes"]:
    """Bits of a density grid: bit i of byte n is set where density[8 n + i] > min(mean of max(density, 0), 10)."""
    threshold = min(float(np.maximum(density, 0).mean(dtype=np.float64)), MAX_THRESHOLD)
    return np.packbits(density > threshold, bitorder="little")


# ---------------------------------------------------------------- what an avatar's shapes say


def sizes_of(system: str, params: Mapping[str, np.ndarray], *, torso: bool, eye: bool = True) -> Sizes:
    """The sizes of our parameters."""
    rows, dim = params["codes/embedding"].shape
    return Sizes(
        audio=params["audio_net/convs_0/kernel"].shape[1],
        audio_dim=params["audio_net/fc2/kernel"].shape[1],
        code_rows=rows,
        code_dim=dim,
        torso_dim=params["torso/codes"].shape[1],
        torso=torso,
        cameras="camera_rotation/embedding" in params,
        eye=eye if system == "er_nerf" else params["sigma/kernel_0"].shape[0] == 65,
    )
