"""A checkpoint file as arrays: read and written by the PyTorch child, looked at here."""

import dataclasses
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from tkjax.contract import ContractError
from tkjax.contract.npz import read_npz
from tkjax.contract.refusal import disk_errors
from tkjax.errors import UserError
from tkjax.host import stored, torch_side
from tkjax.originals import layout, weights
from tkjax.originals.layout import Sizes, Tensor

MODULE = "preprocess.weights.checkpoint_file"
TENSORS, FACTS = "tensors.npz", "facts.json"
DTYPE = re.compile(r"(float|bfloat|int|uint|bool|complex|double|half|long)[0-9]*")
LONGEST = 100_000  # tensors of a moving average


@dataclasses.dataclass
class Source:
    """A file's state dict (in its order), the tensors of its moving average, and the rest as json."""

    path: Path
    model: dict[str, np.ndarray]
    shadow: list[np.ndarray] | None
    facts: dict[str, Any]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {key: value.shape for key, value in self.model.items()}


def load(folder: Path, path: Path) -> Source:
    """What `read` left in a folder, which may have been changed since; UserError names what does not fit."""
    remedy = "import the checkpoint again"
    facts = stored.read_json(folder / FACTS, remedy, finite=False)  # the originals' scores may be NaN
    wrong = _wrong(facts)
    if wrong:
        raise UserError(f"{folder / FACTS} is damaged ({wrong}); {remedy}")
    try:
        with disk_errors(folder / TENSORS, "the tensors of the checkpoint"):
            with stored.open_plain(folder, TENSORS) as file:
                arrays = read_npz(file, folder / TENSORS)
    except ContractError as error:
        raise UserError(f"{error}; {remedy}") from error
    n = facts["ema"]["length"] if facts["ema"] else 0
    named = {f"model/{key}" for key in facts["keys"]} | {f"ema/{i}" for i in range(n)}
    for name in sorted(named ^ set(arrays)):
        where = TENSORS if name in arrays else FACTS
        raise UserError(f"{folder} is damaged ({name[:80]} is in {where} alone); {remedy}")
    model = {key: arrays[f"model/{key}"] for key in facts["keys"]}
    return Source(path, model, [arrays[f"ema/{i}"] for i in range(n)] if facts["ema"] else None, facts)


def _wrong(facts: dict[str, Any]) -> str:
    """What is not as the child writes it, or ''."""
    kinds = {"keys": list, "dtypes": dict, "top": dict, "ema": (dict, type(None)), "left_out": list, "bare": bool}
    for name, kind in kinds.items():
        if name not in facts or not isinstance(facts[name], kind):
            return f"{name} is missing or of another kind"
    keys, ema = facts["keys"], facts["ema"]
    if not all(isinstance(k, str) for k in (*keys, *facts["left_out"])) or len(set(keys)) != len(keys):
        return "keys and left_out must be different names"
    if not all(isinstance(v, str) and DTYPE.fullmatch(v) for v in facts["dtypes"].values()):
        return "dtypes must name types of numbers"
    if ema is not None and not (type(ema.get("length")) is int and 0 <= ema["length"] <= LONGEST):
        return "ema.length must be a number of tensors"
    if ema is not None and not {"decay", "num_updates"} <= set(ema):
        return "ema must have decay and num_updates"
    return ""


def read(path: Path, folder: Path) -> Source:
    """A .pth as arrays, which stay in `folder`; UserError in one sentence where it is none."""
    torch_side.ask(MODULE, ["--read", str(path), "--out", str(folder)])
    return load(folder, path)


def write(model: dict[str, np.ndarray], shadow: list[np.ndarray] | None, facts: dict, folder: Path, path: Path) -> None:
    """A .pth with this state dict; `folder` is made for the arrays on their way and removed."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        arrays = {f"model/{key}": value for key, value in model.items()}
        arrays |= {f"ema/{i}": value for i, value in enumerate(shadow or [])}
        np.savez(folder / TENSORS, **arrays)
        dtypes = {name: facts["dtypes"].get(name, str(value.dtype)) for name, value in arrays.items()}
        facts = {**facts, "keys": list(model), "dtypes": dtypes}
        (folder / FACTS).write_text(json.dumps(facts))
        torch_side.ask(MODULE, ["--write", str(folder), "--out", str(path)])
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclasses.dataclass
class Recognised:
    """What a file is. `names`: the parameters that the moving average's tensors belong to, None where it has none that
    fit. `missing` are all dispensable."""

    system: str
    sizes: Sizes
    tensors: tuple[Tensor, ...]
    missing: list[Tensor]
    unknown: list[str]
    names: list[str] | None


def recognise(source: Source, forced: str | None) -> Recognised:
    """Which system's file it is, by its keys or as forced; UserError where it is none or lacks what a picture needs."""
    path, shapes = source.path, source.shapes
    found = layout.recognise(shapes)
    system = {"avatar_ernerf": "er_nerf"}.get(forced, forced) or found
    if system is None:
        names = ", ".join(list(shapes)[:4])
        raise UserError(
            f"{path} is no checkpoint of RAD-NeRF or ER-NeRF: it holds {len(shapes)} tensors such as {names}"
        )
    if system not in layout.SYSTEMS:
        raise UserError(f"--system={forced}: checkpoints of RAD-NeRF and ER-NeRF can be imported, not of {forced}")
    sizes = layout.sizes(system, shapes)
    tensors = layout.layout(system, sizes)
    absent = weights.missing(tensors, shapes)
    needed = [t.key for t in absent if not t.dispensable]
    if needed:
        what = f"{'head and torso' if sizes.torso else 'the head'} of {layout.NAMES[system]}"
        other = f"; its keys are those of {layout.NAMES[found]}" if found not in (system, None) else ""
        strange = weights.unknown(tensors, shapes)
        other += f"; unknown: {', '.join(strange)}" if strange and not other else ""
        raise UserError(f"{path} lacks {len(needed)} tensors that {what} cannot do without: {', '.join(needed)}{other}")
    weights.check_kinds(tensors, source.model, str(path))
    bound = shapes.get("density_bitfield", (layout.SIDE**3 // 8,))
    if bound != (layout.SIDE**3 // 8,):
        raise UserError(
            f"{path}: density_bitfield has {math.prod(bound)} bytes, a scene of --bound above 1; only the originals' "
            f"default, {layout.SIDE**3 // 8}, can be imported"
        )
    weights.check_shapes(tensors, shapes, str(path))
    weights.check_offsets(tensors, source.model, str(path))
    box = source.model.get("aabb_infer", np.array([-1, -0.5, -1, 1, 0.5, 1]))
    if not (np.all(np.abs(box) <= 1) and np.all(box[:3] < box[3:])):
        raise UserError(f"{path}: aabb_infer is {box.tolist()}, expected a box within -1 … 1 (--bound 1)")
    shadow = [] if source.shadow is None else source.shadow
    averaged = {f"tensor {i} of the moving average": value for i, value in enumerate(shadow)}
    strange = [name for name, value in averaged.items() if value.dtype.kind != "f"]
    if strange:
        raise UserError(f"{path}: {strange[0]} holds no real numbers, expected parameters; take another file")
    weights.check_finite({**source.model, **averaged}, str(path))
    names = None
    if source.shadow is not None:
        shadow = [value.shape for value in source.shadow]
        names = weights.shadow_names(tensors, source.facts["keys"], shapes, shadow)
    return Recognised(system, sizes, tensors, absent, weights.unknown(tensors, shapes), names)


def choose(source: Source, found: Recognised, wanted: str | None) -> tuple[dict[str, np.ndarray], str, str]:
    """(tensors with the chosen parameters, `ema` or `raw`, a sentence about it).

    Rolling files (`ngp_ep*.pth`) hold raw parameters and the moving average; `ngp.pth` holds the average in their place
    and no density grid (rad-nerf dossier §5 "EMA"). The originals' --test takes raw parameters where nothing is said;
    here the average is taken (neither: what their validation shows).
    """
    path = source.path
    if source.shadow is not None and wanted != "raw":
        if found.names is not None:
            model = {**source.model, **dict(zip(found.names, source.shadow))}
            frozen = [t for t in found.tensors if t.parameter and t.key in source.model and t.key not in found.names]
            rest = f"; {len(frozen)} frozen tensors as they are" if frozen else ""
            return model, "ema", f"the moving average (ema, {len(source.shadow)} tensors{rest})"
        problem = f"its moving average lists {len(source.shadow)} tensors that do not fit its parameters"
        if wanted == "ema":
            raise UserError(f"{path}: {problem}; leave --weights out to take the raw ones")
        return source.model, "raw", f"the raw parameters, because {problem}"
    if source.shadow is None and not source.facts["bare"] and "density_grid" not in source.model:
        if wanted == "raw":
            raise UserError(
                f"{path} holds the moving average only (it was written after an evaluation); raw parameters are in the "
                "ngp_ep*.pth beside it"
            )
        return source.model, "ema", "the moving average, which this file holds as its parameters"
    if source.shadow is None:
        return source.model, wanted or "raw", "the file's only parameters (it lists no moving average)"
    return source.model, "raw", "the raw parameters (--weights=raw)"
