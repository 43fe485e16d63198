"""`--mode=export`: an avatar of RAD-NeRF, ER-NeRF or NeRFBlendShape as a `.pth` with the originals' names, shapes and
order, and one of AD-NeRF as `_head.tar` and `_body.tar`.

What was imported goes back as it came: the avatar's numbers take their old places, and WORKDIR/import gives what the
avatar does not hold (raw parameters beside the moving average, step counters, unknown tensors, the epoch). The state
of the original's optimiser is not kept. An avatar that was trained here is written as the original writes a finished
one, the moving average as the parameters, with the density grid.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from tkjax.app.importing import KEPT, RECORD
from tkjax.app.workdir import existing_workdir
from tkjax.avatar import bundle
from tkjax.errors import UserError
from tkjax.host import stored
from tkjax.ops import GridSpec
from tkjax.originals import layout, source, tables, volumes, weights
from tkjax.originals.layout import NAMES, Tensor
from tkjax.originals.source import Source

VOLUMES = "ad_nerf"  # the system of head and body files
GRIDS = {
    "rad_nerf": {"encoder": layout.RAD_SPACE, "encoder_ambient": layout.RAD_PLANE},
    "er_nerf": {"planes": layout.ER_PLANE},
}
REMEDY = "import the checkpoint again, or remove that folder to export the avatar without what it holds"
FULL = "only what was trained with the originals' sizes (a config's variant full) has their shapes"


def run(workdir: str | os.PathLike, out: str | os.PathLike) -> None:
    """The avatar of a workdir -> a .pth file, or the head and body file of AD-NeRF."""
    workdir, out = existing_workdir(workdir), Path(out)
    subject = bundle.load(workdir / "avatar")
    system = subject.config.system
    ends = {VOLUMES: (volumes.VOLUMES["head"],), tables.SYSTEM: (".pth.tar", ".pth")}
    ends |= {known: (".pth", ".pt") for known in layout.SYSTEMS}
    if system not in ends:
        known = "AD-NeRF, RAD-NeRF, ER-NeRF and NeRFBlendShape"
        raise UserError(f"{workdir} holds an avatar of {system}; there are files of {known} only")
    if not out.name.endswith(ends[system]) or out.is_dir():
        raise UserError(f"--out={out} must be a file that ends with {ends[system][0]}")
    if not out.absolute().parent.is_dir():
        raise UserError(f"--out={out}: there is no folder {out.absolute().parent}")
    if system == VOLUMES:
        export_volumes(workdir, subject, out)
        return
    if system == tables.SYSTEM:
        write_tables(workdir, out, subject)
        return
    record, kept = imported(workdir, subject)
    model, shadow, facts = export(subject, record, kept)
    system, present = subject.config.system, facts.pop("tensors")
    source.write(model, shadow, facts, workdir / f".export.{os.getpid()}", out)
    what = f"head {layout.count(present, False):,}"
    what += f" and torso {layout.count(present, True):,}" if any(t.torso for t in present) else ""
    if shadow is not None:
        place = f"model and ema ({len(shadow)} tensors)"
    else:
        place = "model (raw)" if record and record["weights"] == "raw" else "model (moving average)"
    print(f"{out}: {NAMES[system]}, {what} parameters, {len(model)} tensors in {place}", flush=True)


def write_tables(workdir: Path, out: Path, subject: bundle.Avatar) -> None:
    """NeRFBlendShape's file."""
    _, kept = imported(workdir, subject)
    flat = bundle.arrays_of(subject.variables(subject.model()))
    params, state = (
        {path.removeprefix(f"{part}/"): v for path, v in flat.items() if path.startswith(f"{part}/")}
        for part in ("params", "state")
    )
    model, facts = tables.export(params, state, subject.config.model, int(subject.meta["step"]), kept)
    source.write(model, None, facts, workdir / f".export.{os.getpid()}", out)
    count = sum(v.size for v in params.values())
    print(f"{out}: NeRFBlendShape, {count:,} parameters, {len(model)} tensors", flush=True)


def imported(workdir: Path, subject: bundle.Avatar) -> tuple[dict[str, Any], Source | None]:
    """(what the import wrote down, the file's own tensors if the avatar is still the imported one)."""
    return read_kept(workdir / KEPT, subject.id, subject.config.system)


def read_kept(folder: Path, name: str, system: str) -> tuple[dict[str, Any], Source | None]:
    """The same from the folder itself, for the avatar with the id `name` of a system; UserError where the folder does
    not hold what an import leaves."""
    path = folder / RECORD
    if not path.is_file():
        return {}, None
    try:
        record = stored.read_json(path, REMEDY)
        if wrong := _wrong(record):
            raise UserError(f"{path}: {wrong}")
        if record["avatar"] != name:
            return {}, None
        if record["system"] != system:
            raise UserError(f"{path}: system is {record['system']}, the avatar's {system}")
        kept, names = source.load(folder, Path(record["source"])), record["names"]
        if names and (kept.shadow is None or len(names) != len(kept.shadow) or not set(names) <= set(kept.model)):
            raise UserError(f"{path}: names are not those of the moving average")
        return record, kept
    except UserError as error:
        raise UserError(f"{folder} is damaged (changed); {REMEDY}: {error}") from error


def _are_texts(x: Any) -> bool:
    return isinstance(x, list) and all(isinstance(n, str) for n in x)


def _wrong(record: dict[str, Any]) -> str:
    """What of import.json is not as the import writes it, or ''."""
    names = record.get("names")
    good = {
        "avatar": isinstance(record.get("avatar"), str),
        "source": isinstance(record.get("source"), str) and Path(record["source"]).name == record["source"] != "",
        "system": record.get("system") in [*layout.SYSTEMS, tables.SYSTEM, VOLUMES],
        "weights": record.get("weights") in ("ema", "raw"),
        "names": "names" in record and (names is None or _are_texts(names)),
        "eye": type(record.get("eye")) is bool,
        "torso": type(record.get("torso")) is bool,
    }
    return next((f"{name} is missing or wrong" for name, ok in good.items() if not ok), "")


def export(subject: bundle.Avatar, record: dict, kept: Source | None) -> tuple[dict, list | None, dict]:
    """(state dict, the moving average's tensors or None, facts for the file); facts["tensors"] are those written."""
    model = subject.model()
    flat = bundle.arrays_of(subject.variables(model))
    params = {path.removeprefix("params/"): v for path, v in flat.items() if path.startswith("params/")}
    system, eye = subject.config.system, record.get("eye", True)
    torso = record["torso"] if record else "torso" in subject.meta.get("stages", ())
    if torso and (problem := _torso_problem(model)):
        print(f"the torso is left out: {problem}", flush=True)
        torso = False
    check_grids(system, model)
    sizes = weights.sizes_of(system, params, torso=torso, eye=eye)
    tensors = layout.layout(system, sizes)
    if not eye and system == "er_nerf":
        params = weights.drop_eye(params)
    theirs = weights.from_params(tensors, params)
    side = subject.config.model.occupancy_side
    state = {k: v for path, v in flat.items() if path.startswith("state/") for k in (path.removeprefix("state/"),)}
    density, bits = resample(state["density"], state["bits"], side)
    if kept is not None:
        return give_back(kept, record, tensors, theirs, density, bits)
    buffers = _buffers(subject.config.model.box, density, bits, state["torso/alpha"] if torso else None)
    out = {t.key: theirs.get(t.key, buffers.get(t.key, _offsets(t))) for t in tensors}
    top = {
        "epoch": 0,
        "global_step": int(subject.meta["step"]),
        "stats": {"loss": [], "valid_loss": [], "results": [], "checkpoints": [], "best_result": None},
        "mean_count": 0,
        "mean_density": float(np.maximum(density, 0).mean(dtype=np.float64)),
        "mean_density_torso": float(state["torso/alpha"].mean(dtype=np.float64)) if torso else 0.0,
    }
    return out, None, {"top": top, "ema": None, "bare": False, "dtypes": {}, "tensors": tensors}


def give_back(
    kept: Source,
    record: dict,
    tensors: tuple[Tensor, ...],
    theirs: dict[str, np.ndarray],
    density: Float[np.ndarray, " cells"],
    bits: UInt8[np.ndarray, " bytes"],
) -> tuple[dict, list | None, dict]:
    """The imported file with the avatar's numbers in the places that they were taken from."""
    out, shadow = dict(kept.model), None if kept.shadow is None else list(kept.shadow)
    averaged = (record["names"] or []) if record["weights"] == "ema" and shadow is not None else []
    place = {key: i for i, key in enumerate(averaged)}
    for key, value in {**theirs, "density_bitfield": bits, "density_grid": density}.items():
        old = shadow[place[key]] if key in place else out.get(key)
        if old is None or (key == "density_grid" and not np.any(old)):
            continue
        if key == "density_grid" and old.size == value.size:
            value = value.reshape(old.shape)
        if old.shape != value.shape:
            shapes = f"{key} has shape {list(old.shape)} there and {list(value.shape)} in the avatar"
            raise UserError(f"the folder {KEPT} does not belong to the avatar ({shapes}); {REMEDY}")
        if key in place:
            shadow[place[key]] = value
        else:
            out[key] = value
    present = tuple(t for t in tensors if t.key in out)
    return out, shadow, {**kept.facts, "tensors": present}


def resample(
    density: Float[np.ndarray, " cells"], bits: UInt8[np.ndarray, " bytes"], side: int
) -> tuple[Float[np.ndarray, " their_cells"], UInt8[np.ndarray, " their_bytes"]]:
    """Density and bits of a cube of side^3 cells in the originals' 128^3: in Morton order the cells that a larger cell
    consists of follow each other, so that each gets its number; smaller cells give their largest."""
    n = layout.SIDE**3
    if side == layout.SIDE:
        return density, bits
    flags = np.unpackbits(bits, bitorder="little")
    if side < layout.SIDE:
        density, flags = (np.repeat(v, n // side**3) for v in (density, flags))
    else:
        density, flags = (v.reshape(n, -1).max(1) for v in (density, flags))
    return density, np.packbits(flags, bitorder="little")


def check_grids(system: str, model: Any) -> None:
    """UserError where a grid of the head has other levels than the originals'; tables alone may not show it."""
    for i in model.program.instructions:
        if i.op == "grid" and i.spec != GRIDS[system][i.name]:
            theirs = in_words(GRIDS[system][i.name])
            raise UserError(f"the avatar's grid {i.name} has {in_words(i.spec)}, the original's {theirs}; {FULL}")


def in_words(spec: GridSpec) -> str:
    """The sizes of a grid, for a sentence."""
    size = f"{spec.levels} levels from {spec.base} to {spec.finest} cells"
    return f"{size}, 2^{spec.log2_entries} entries a level, {spec.kind}"


def _torso_problem(model: Any) -> str:
    """Why the avatar's torso is none of the originals', or ''."""
    spec, shrink = model.torso.spec, model.torso.shrink
    if spec != layout.RAD_PLANE:
        return f"its grid has {in_words(spec)}, the original's {in_words(layout.RAD_PLANE)}; {FULL}"
    return "" if shrink == 0.8 else f"it shrinks the picture to {shrink}, the original to 0.8"


def _buffers(box, density: np.ndarray, bits: np.ndarray, torso: np.ndarray | None) -> dict[str, np.ndarray]:
    out = {name: np.asarray(box, np.float32) for name in ("aabb_train", "aabb_infer")}
    out |= {"density_grid": density[None], "density_bitfield": bits, "step_counter": np.zeros((16, 2), np.int32)}
    return out if torso is None else out | {"density_grid_torso": torso}


def _offsets(tensor: Tensor) -> np.ndarray | None:
    return np.array(layout.offsets(tensor.key), np.int32) if tensor.key.endswith(".offsets") else None


def export_volumes(workdir: Path, subject: bundle.Avatar, out: Path) -> None:
    """The head file `out` and, where the avatar has a torso, the body file beside it. Tensors that no picture needs
    come from the import, else they are new; optimisers are fresh ones, which the original wants to find."""
    model = subject.model()
    m, flat = model.config.model, bundle.arrays_of(subject.variables(model))
    params = {path.removeprefix("params/"): v for path, v in flat.items() if path.startswith("params/")}
    if (m.position_octaves, m.view_octaves, m.density_activation) != (10, 4, "relu"):
        raise UserError(
            f"{workdir}: the avatar's networks see {m.position_octaves} and {m.view_octaves} octaves and end in "
            f"{m.density_activation}, the original's 10 and 4 and relu; {FULL}"
        )
    sizes = {
        "fine": volumes.Size(m.depth, m.width, m.skip_at),
        "coarse": volumes.Size(m.coarse_depth, m.coarse_width, m.coarse_skip),
    }
    record, kept = imported(workdir, subject)
    with_torso = record["torso"] if record else "torso" in subject.meta.get("stages", ())
    audio = params["audio_net/convs_0/kernel"].shape[1]
    for volume in ("head", "torso") if with_torso else ("head",):
        own = kept if kept is None or volume == "head" else source.load(workdir / KEPT / "body", Path(out.name))
        theirs = volumes.state_dict(volume, sizes, audio, model.attends, params, own, m.density_scale)
        path = out if volume == "head" else out.with_name(out.name.removesuffix("head.tar") + "body.tar")
        top = own.facts["top"] if own is not None else {"global_step": int(subject.meta["step"])}
        dtypes = {} if own is None else own.facts["dtypes"]
        facts = {"top": top, "ema": None, "bare": False, "dtypes": dtypes, "left_out": []}
        source.write(theirs, None, facts, workdir / f".export.{os.getpid()}", path)
        print(f"{path}: AD-NeRF, {volume}, {sum(v.size for v in theirs.values()):,} parameters", flush=True)
