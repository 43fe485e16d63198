"""NeRFBlendShape's checkpoints, `ngp_<step>.pth.tar` (its dossier §3, §5, §10): tables, packed networks, density grid.

A network is one flat vector, layer by layer, each [out, in] row by row, the last layer's rows filled up to a multiple
of 16; the rows beyond its outputs are never used and come back at export as they were. Single or half precision.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from tkjax.contract import BLENDSHAPES
from tkjax.data.clip import Clip
from tkjax.errors import UserError
from tkjax.formats.facewarehouse import FACEWAREHOUSE
from tkjax.ops import GridSpec
from tkjax.originals import stand_in, weights
from tkjax.originals.layout import Shape, Tensor
from tkjax.originals.source import Source
from tkjax.signals import OPEN_EYES, Signal, SignalInfo, of_frames
from tkjax.types import SubjectInfo

SPEC = GridSpec(3, 16, 4, 16, 1024, 14, pad=1)
SIDE = 128  # the grid has a vertex more on each axis
NETWORKS = {"sigma": ("sigma_net.params", (64, 64, 64, 64, 64, 65)), "colour": ("color_net.params", (80, 64, 3))}
PADDED = 16  # rows of a last layer come in multiples of this
MAX_THRESHOLD = 10.0  # a vertex is occupied above min(mean_density, this)
SIGNS = ("encoder.embeddings_mean", "sigma_net.params", "color_net.params")
SIZE, FOCAL, RADIUS = 512, 600.0, 0.3493212  # of the original's pictures, and its camera's metres from the head (§6)
DRIVE, SYSTEM = "expression", "nerfblendshape"


def is_one(shapes: Mapping[str, Shape]) -> bool:
    return any(key in shapes for key in SIGNS)


def padded(rows: int) -> int:
    return -(-rows // PADDED) * PADDED


def layout(coefficients: int) -> tuple[Tensor, ...]:
    """All tensors of a file, in its order."""
    sizes = {name: sum(a * b for a, b in itertools.pairwise((*w[:-1], padded(w[-1])))) for name, (_, w) in
             NETWORKS.items()}  # fmt: skip
    shape = (SPEC.entries, SPEC.features)
    return (
        Tensor("density_grid", ((SIDE + 1) ** 3,)),
        Tensor("step_counter", (16, 2)),
        Tensor("encoder.embeddings", (coefficients, *shape), "tables"),
        Tensor("encoder.embeddings_mean", (1, *shape), "tables"),
        Tensor("encoder.offsets", (SPEC.levels + 1,)),
        Tensor("sigma_net.params", (sizes["sigma"],), "sigma"),
        Tensor("encoder_dir.params", (0,)),
        Tensor("color_net.params", (sizes["colour"],), "colour"),
    )


def offsets() -> list[int]:
    return [level.offset for level in SPEC.table] + [SPEC.entries]


@dataclasses.dataclass(frozen=True)
class Recognised:
    """A file with so many coefficients beside the neutral."""

    coefficients: int
    tensors: tuple[Tensor, ...]
    unknown: list[str]


def recognise(file: Source) -> Recognised:
    """UserError where the file lacks something that a picture needs, or holds other shapes or numbers."""
    shapes, path = file.shapes, file.path
    needed = [t.key for t in layout(1) if t.path and t.key not in shapes]
    if needed:
        raise UserError(f"{path} lacks {', '.join(needed)}, which NeRFBlendShape's pictures cannot do without")
    first = shapes["encoder.embeddings"]
    tensors = layout(first[0] if len(first) == 3 else 46)
    weights.check_kinds(tensors, file.model, str(path))
    grid = shapes.get("density_grid", ())
    if math.prod(grid) == (SIDE + 1) ** 3:
        shapes = {**shapes, "density_grid": ((SIDE + 1) ** 3,)}  # of any shape
    weights.check_shapes([t for t in tensors if t.key not in ("step_counter", "encoder_dir.params")], shapes, str(path))
    found = file.model.get("encoder.offsets")
    if found is not None and found.tolist() != offsets():
        raise UserError(f"{path}: the levels of its tables begin at {found.tolist()}, expected {offsets()}")
    weights.check_finite(file.model, str(path))
    return Recognised(first[0], tensors, weights.unknown(tensors, shapes))


# ---------------------------------------------------------------- parameters


def unpack(vector: Float[np.ndarray, " n"], widths: tuple[int, ...]) -> list[Float[np.ndarray, "_ _"]]:
    """The kernels [in, out] of a packed network."""
    out, at = [], 0
    last = len(widths) - 2
    for i, (a, b) in enumerate(itertools.pairwise(widths)):
        rows = padded(b) if i == last else b
        out.append(np.ascontiguousarray(vector[at : at + rows * a].reshape(rows, a)[:b].T))
        at += rows * a
    return out


def pack(kernels: list[Float[np.ndarray, "_ _"]], old: Float[np.ndarray, " n"] | None) -> Float[np.ndarray, " n"]:
    """The packed network; old: the vector whose unused rows are kept, else they are 0."""
    parts = [np.ascontiguousarray(k.T) for k in kernels]
    a, b = kernels[-1].shape
    rest = np.zeros((padded(b) - b, a), np.float32)
    if old is not None and rest.size:
        rest = np.asarray(old[-rest.size :], np.float32).reshape(rest.shape)
    return np.concatenate([p.reshape(-1) for p in (*parts, rest)]).astype(np.float32)


def to_params(model: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Our parameters {path: array}."""
    parts = [np.asarray(model[f"encoder.embeddings{end}"], np.float32) for end in ("_mean", "")]
    out = {"tables": np.concatenate(parts)}
    for name, (key, widths) in NETWORKS.items():
        kernels = unpack(np.asarray(model[key], np.float32), widths)
        out |= {f"{name}/kernel_{i}": kernel for i, kernel in enumerate(kernels)}
    return out


def from_params(params: Mapping[str, np.ndarray], old: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The file's tensors of our parameters; old: the file that they came from, for rows that nothing uses."""
    out = {"encoder.embeddings": params["tables"][1:], "encoder.embeddings_mean": params["tables"][:1]}
    for name, (key, widths) in NETWORKS.items():
        kernels = [params[f"{name}/kernel_{i}"] for i in range(len(widths) - 1)]
        out[key] = pack(kernels, old.get(key))
    return out


# ---------------------------------------------------------------- what else a picture needs


def vertex_bits(density: Float[np.ndarray, " vertices"], threshold: float) -> UInt8[np.ndarray, " bytes"]:
    return np.packbits(density > threshold, bitorder="little")


def state(file: Source, ranges: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], str]:
    """({density, bits, low, high} of our state, where the occupancy comes from). The threshold is that of the file's
    own mean_density, which is 0 before the first update."""
    n = (SIDE + 1) ** 3
    ends = {name: np.concatenate([[1.0], ranges[name]]).astype(np.float32) for name in ("low", "high")}
    grid = file.model.get("density_grid")
    if grid is None:
        density = np.full(n, 2 * MAX_THRESHOLD, np.float32)
        about = "nothing: every vertex counts as occupied"
        return {"density": density, "bits": vertex_bits(density, MAX_THRESHOLD), **ends}, about
    density = np.asarray(grid, np.float32).reshape(-1)
    mean = file.facts["top"].get("mean_density")
    known = type(mean) in (int, float) and math.isfinite(mean)
    mean = float(mean) if known else float(density.mean(dtype=np.float64))
    about = f"density grid, above {min(MAX_THRESHOLD, mean):.4g}"
    return {"density": density, "bits": vertex_bits(density, min(MAX_THRESHOLD, mean)), **ends}, about


def ranges(path: Path, coefficients: int) -> tuple[dict[str, np.ndarray], str]:
    """(low and high of the coefficients, where they come from): max_<K>.txt and min_<K>.txt beside the file or in the
    folders around it, else 0…1. The original rounds them to half precision when it reads them, and so is done here."""
    for folder in (path.parent, path.parent.parent, path.parent.parent.parent):
        files = {name: folder / f"{end}_{coefficients}.txt" for name, end in (("low", "min"), ("high", "max"))}
        if not all(p.is_file() for p in files.values()):
            continue
        found = {name: read_range(p, coefficients) for name, p in files.items()}
        if (found["low"] > found["high"]).any():
            raise UserError(
                f"{files['low']}: a coefficient is above its largest in {files['high'].name}; swap the files"
            )
        return found, f"{files['high']} and {files['low'].name}"
    return {"low": np.zeros(coefficients, np.float32), "high": np.ones(coefficients, np.float32)}, "nothing: 0 to 1"


def read_range(path: Path, coefficients: int) -> Float[np.ndarray, " K"]:
    """One number a line; UserError where there are fewer than coefficients."""
    try:
        lines = path.read_text().split()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({type(error).__name__}), expected a number on each line") from error
    bad = [line for line in lines if not re.fullmatch(r"[-+]?[0-9.]+(e[-+]?[0-9]+)?", line, re.IGNORECASE)]
    values = []
    try:
        values = [] if bad else [float(line) for line in lines]
    except ValueError:
        bad = lines
    if bad or len(values) < coefficients:
        raise UserError(f"{path} holds {len(values)} numbers, expected {coefficients}, one on each line")
    with np.errstate(over="ignore"):
        rounded = np.array(values[:coefficients]).astype(np.float16).astype(np.float32)
    if not np.isfinite(rounded).all():
        raise UserError(f"{path} holds a number beyond 65504, expected ranges of expression coefficients")
    return rounded


def of_dataset(
    clip: Clip, found: Recognised, ranges: dict[str, np.ndarray], told: str
) -> tuple[dict[str, np.ndarray], str]:
    """The same with the dataset's training frames in place of nothing; UserError where its coefficients are fewer."""
    info = clip.info.signal(DRIVE)
    if info.channels < found.coefficients:
        raise UserError(
            f"the checkpoint is driven by {found.coefficients} coefficients, but the dataset has {info.channels}; give "
            "the dataset that it was trained on"
        )
    if not told.startswith("nothing") or not info.low:
        return ranges, told
    own = {name: np.array(getattr(info, name), np.float32)[: found.coefficients] for name in ("low", "high")}
    return own, "the dataset's training frames"


def names(coefficients: int) -> tuple[str, ...]:
    """Of the coefficients, by their number."""
    known = {len(FACEWAREHOUSE): FACEWAREHOUSE, len(BLENDSHAPES): tuple(BLENDSHAPES)}
    return known.get(coefficients, tuple(f"exp{coefficients}_{k:02d}" for k in range(coefficients)))


class StandIn(stand_in.StandIn):
    """What such an avatar has in place of a clip: a frontal camera, a white plate, coefficients of 0."""

    audio = None

    def __init__(self, coefficients: int, ranges: Mapping[str, np.ndarray]):
        super().__init__(stand_in.sound(29, False))
        ends = {name: tuple(float(v) for v in ranges[name]) for name in ("low", "high")}
        drive = SignalInfo(DRIVE, coefficients, self.fps, names(coefficients), source="checkpoint", **ends)
        eyes = {"eye_closed": self.eye_closed, "eye_area": np.full(1, OPEN_EYES, np.float32)}
        self.signals = {name: of_frames(name, v, self.fps, source="stand-in") for name, v in eyes.items()}
        self.signals[DRIVE] = Signal(drive, np.zeros((1, coefficients), np.float32))
        centre = SIZE / 2 + 0.5  # rays of the original go through whole numbers
        infos = tuple(signal.info for signal in self.signals.values())
        self.info = SubjectInfo(1, SIZE, SIZE, (FOCAL, FOCAL, centre, centre), infos)
        self.height = self.width = SIZE
        self.intrinsics = np.array(self.info.intrinsics, np.float32)
        self.cam_to_world[0, 2, 3] = 4 * RADIUS
        self.plate = np.full((SIZE, SIZE, 3), 255, np.uint8)
        box = np.array([[0, 0, SIZE, SIZE]], np.int32)
        self.boxes = dict.fromkeys(("face_box_px", "lips_box_px"), box)
        self.eye_regions, self.lower_face = np.stack([box, box], 1), box.astype(np.float32)

    def torso_rgba(self, i: int) -> UInt8[np.ndarray, "H W 4"]:
        return np.zeros((SIZE, SIZE, 4), np.uint8)

    def label(self, i: int) -> UInt8[np.ndarray, "H W"]:
        return np.zeros((SIZE, SIZE), np.uint8)


# ---------------------------------------------------------------- what is printed, and the way back


def describe(file: Source, found: Recognised, ranges: str, occupancy: str) -> list[str]:
    """What was recognised and taken: one fact a line."""
    top = file.facts["top"]
    numbers = [k for k in ("epoch", "global_step") if isinstance(top.get(k), int | float)]
    told = ", ".join(f"{k} {top[k]}" for k in numbers) or ("a bare state dict" if file.facts["bare"] else "no epoch")
    count = sum(math.prod(v.shape) for v in to_params(file.model).values())
    lines = [f"recognised: NeRFBlendShape, head ({told})"]
    lines.append(f"taken: {count:,} parameters, a neutral and {found.coefficients} coefficients")
    lines.append(f"taken: occupancy of {SIDE + 1}^3 vertices from {occupancy}")
    lines.append(f"taken: ranges of the coefficients from {ranges}")
    if found.unknown:
        lines.append(f"unknown, not used: {', '.join(found.unknown)}")
    unused = [k for k in ("step_counter",) if k in file.model] + file.facts["left_out"]
    if unused:
        lines.append(f"not used: {', '.join(unused)} (they serve the original's training only)")
    return lines


def vertices_of(density: Float[np.ndarray, " cells"], side: int) -> Float[np.ndarray, " vertices"]:
    """The densest of the cells around each of the (SIDE + 1)^3 vertices, of a cube of side^3 in Morton order."""
    n = SIDE // side
    x, y, z = (v.reshape(-1) for v in np.indices((side,) * 3))
    code = sum(((v >> bit) & 1) << (3 * bit + axis) for bit in range(10) for axis, v in enumerate((x, y, z)))
    cube = np.asarray(density)[code].reshape((side,) * 3)
    for axis in range(3):
        cube = np.repeat(cube, n, axis)
        ends = [(1, 1) if k == axis else (0, 0) for k in range(3)]
        wide = np.pad(cube, ends, mode="edge")
        low, high = (np.take(wide, range(a, a + SIDE + 1), axis) for a in (0, 1))
        cube = np.maximum(low, high)
    return np.maximum(cube, 0.0).reshape(-1)


def export(
    params: Mapping[str, np.ndarray], state: Mapping[str, np.ndarray], settings: Any, step: int, kept: Source | None
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(state dict, facts for the file) of an avatar's numbers; kept: the file that it was imported from. UserError
    where its tables or networks have not the original's sizes."""
    check_sizes(params, settings)
    own = from_params(params, {} if kept is None else kept.model)
    if settings.occupancy == "vertices" and settings.occupancy_side == SIDE:
        density = state["density"]
    elif settings.occupancy == "bits" and SIDE % settings.occupancy_side == 0:
        density = vertices_of(state["density"], settings.occupancy_side)
    else:
        raise UserError(f"the avatar's grid has {settings.occupancy_side} cells a side, expected a part of {SIDE}")
    if kept is not None:
        out = dict(kept.model)
        for key, value in own.items():
            out[key] = value
        if "density_grid" in out:
            out["density_grid"] = density.reshape(out["density_grid"].shape)
        return out, dict(kept.facts)
    own |= {
        "density_grid": density,
        "step_counter": np.zeros((16, 2), np.int32),
        "encoder.offsets": np.array(offsets(), np.int32),
        "encoder_dir.params": np.zeros(0, np.float32),
    }
    top = {"epoch": 0, "global_step": step, "mean_count": 0, "mean_density": float(density.mean(dtype=np.float64))}
    model = {t.key: own[t.key] for t in layout(len(params["tables"]) - 1)}
    return model, {"top": top, "ema": None, "bare": False, "dtypes": {}, "left_out": []}


def check_sizes(params: Mapping[str, np.ndarray], settings: Any) -> None:
    """UserError where an avatar is none that the original could draw."""
    wrong = []
    grid = (settings.grid_levels, settings.grid_features, settings.grid_base, settings.grid_finest)
    if grid != (SPEC.levels, SPEC.features, SPEC.base, SPEC.finest) or params["tables"].shape[1] != SPEC.entries:
        wrong.append("tables")
    for name, (_, widths) in NETWORKS.items():
        shapes = [params.get(f"{name}/kernel_{i}", np.zeros(0)).shape for i in range(len(widths) - 1)]
        if shapes != list(itertools.pairwise(widths)):
            wrong.append(f"network {name}")
    if (settings.bound, settings.scale) != (0.06, 0.33) or settings.normalise or not settings.add_mean:
        wrong.append("cube, scale or coefficients")
    if wrong:
        raise UserError(
            f"the avatar's {', '.join(wrong)} differ from the original's; only what was trained with the variant full "
            "has its sizes"
        )
