"""A checkpoint file as arrays: read and written by the PyTorch child, looked at here."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from tkjax import child
from tkjax.errors import UserError
from tkjax.originals import layout, weights
from tkjax.originals.layout import Sizes, Tensor

MODULE = "preprocess.checkpoint_file"
TENSORS, FACTS = "tensors.npz", "facts.json"


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
    """What `read` left in a folder."""
    facts = json.loads((folder / FACTS).read_text())
    with np.load(folder / TENSORS, allow_pickle=False) as data:
        model = {key: data[f"model/{key}"] for key in facts["keys"]}
        n = facts["ema"]["length"] if facts["ema"] else 0
        shadow = [data[f"ema/{i}"] for i in range(n)] if facts["ema"] else None
    return Source(path, model, shadow, facts)


def read(path: Path, folder: Path) -> Source:
    """A .pth as arrays, which stay in `folder`; UserError in one sentence where it is none."""
    child.ask(MODULE, ["--read", str(path), "--out", str(folder)])
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
        child.ask(MODULE, ["--write", str(folder), "--out", str(path)])
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
    bound = shapes.get("density_bitfield", (layout.SIDE**3 // 8,))
    if bound != (layout.SIDE**3 // 8,):
        raise UserError(
            f"{path}: density_bitfield has {bound[0]} bytes, a scene of --bound above 1; only the originals' default, "
            f"{layout.SIDE**3 // 8}, can be imported"
        )
    weights.check_shapes(tensors, shapes, str(path))
    weights.check_offsets(tensors, source.model, str(path))
    box = source.model.get("aabb_infer", np.array([-1, -0.5, -1, 1, 0.5, 1]))
    if not (np.all(np.abs(box) <= 1) and np.all(box[:3] < box[3:])):
        raise UserError(f"{path}: aabb_infer is {box.tolist()}, expected a box within -1 … 1 (--bound 1)")
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
