"""`--mode=import`: a dataset folder or a checkpoint of AD-NeRF, RAD-NeRF, ER-NeRF, Avatar-ERNeRF or NeRFBlendShape, by
its content.

A folder becomes WORKDIR/dataset in the PyTorch child. A checkpoint becomes WORKDIR/avatar with what the workdir's
dataset knows (cameras, plate, torso pictures, sound), and its stages count as finished in WORKDIR/checkpoints, so that
a torso can be trained under an imported head. Without a dataset it looks straight at the head in front of white, and
nothing can be trained. The optimiser starts afresh (its state is not taken). What the file holds beside the avatar's
part stays in WORKDIR/import, so that `--mode=export` gives it back.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from tkjax import config, contract, interface, trees
from tkjax.app import lock
from tkjax.app.workdir import DATASET, dataset_of, read_facts, update_facts
from tkjax.avatar import bundle
from tkjax.data.clip import Clip
from tkjax.data.dataset_clip import DatasetClip
from tkjax.errors import UserError
from tkjax.host import files, torch_side
from tkjax.host.files import write_atomic
from tkjax.models import load_system
from tkjax.originals import layout, source, stand_in, tables, volumes, weights
from tkjax.originals.layout import NAMES
from tkjax.originals.source import Recognised, Source
from tkjax.train import checkpoint
from tkjax.types import ClipFacts, Variables

KEPT, RECORD = "import", "import.json"  # folder in the workdir, and what it says about the avatar
AVATAR_ERNERF_ROWS = 20000  # frame codes of a long clip (avatar-ernerf dossier §2.3); ER-NeRF has 10000


def run(
    source: str | os.PathLike, workdir: str | os.PathLike, system: str | None = None, weights: str | None = None,
    dataset: str | None = None,
) -> None:  # fmt: skip
    """A folder or a checkpoint file into a workdir. system: what it is, where that does not show. Of a checkpoint:
    weights `ema` or `raw`; dataset: the one that it was trained on, where the workdir has none."""
    path, workdir = Path(source), Path(workdir)
    if not path.exists():
        raise UserError(f"--source: there is neither a file nor a folder {path}")
    if path.is_dir():
        if list(path.glob(f"*{volumes.VOLUMES['head']}")) and not list(path.glob("transforms*.json")):
            _alone(take_volumes, path, workdir, weights, dataset)
            return
        checkpoints = sorted((path / "checkpoints").glob("*.pth")) or sorted(path.glob("*.pth"))
        if checkpoints and not list(path.glob("transforms*.json")):
            raise UserError(f"{path} is a folder of checkpoints; import one of its files, such as {checkpoints[-1]}")
        if weights or dataset:
            raise UserError(f"{path} is a folder, so --{'weights' if weights else 'dataset'} has no use here")
        take_dataset(path, workdir, system)
        return
    if path.suffix == ".tar" and not path.name.endswith(".pth.tar"):
        _alone(take_volumes, path, workdir, weights, dataset)
    else:
        _alone(take_checkpoint, path, workdir, system, weights, dataset)


def _alone(take: Callable[..., None], path: Path, workdir: Path, *how: Any) -> None:
    """`take` a checkpoint into a workdir that holds no training."""
    with lock.alone(workdir):
        if (workdir / "checkpoints" / "run.json").is_file():
            raise UserError(
                f"{workdir} holds a training run, whose avatar would be replaced; import into another workdir"
            )
        take(path, workdir, *how)


def take_dataset(path: Path, workdir: Path, system: str | None) -> None:
    """A folder of the originals -> WORKDIR/dataset."""
    arguments = [f"--source={path}", f"--workdir={workdir}"]
    arguments += [f"--system={system}"] if system else []
    with lock.alone(workdir):
        torch_side.run("preprocess.importers.dataset", arguments)
        update_facts(workdir, dataset=DATASET, imported_dataset=str(path.absolute()))
    warn_of_kind(workdir)
    if (workdir / KEPT / RECORD).is_file():
        print("import the checkpoint again, so that its avatar takes cameras, plate and torso from this dataset")


def warn_of_kind(workdir: Path) -> None:
    """Say so where the avatar that is there hears sound features that the new dataset does not have."""
    if not (workdir / "avatar" / "avatar.json").is_file():
        return
    described = bundle.load(workdir / "avatar").meta["audio"]
    if described is None:
        return
    hears = described["kind"]
    kinds = sorted(contract.Dataset(workdir / DATASET).manifest["audio"])
    if hears not in kinds:
        print(
            f"the avatar in {workdir} hears {hears}, but this dataset has {', '.join(kinds) or 'no sound'}: it cannot "
            "be evaluated or trained further here; import the folder that it was trained on, or use another workdir"
        )


# ---------------------------------------------------------------- a checkpoint


def take_checkpoint(path: Path, workdir: Path, system: str | None, wanted: str | None, dataset: str | None) -> None:
    """A .pth -> WORKDIR/avatar, config.json, run.json, import/, checkpoints/; all of them are replaced at the end, or
    none. The caller holds the workdir's lock."""
    with _made_ready(workdir) as new:
        file = source.read(path, new / KEPT)
        if tables.is_one(file.shapes):
            _take_tables(new, workdir, file, wanted, dataset)
            return
        if volumes.is_one(file.shapes):
            raise UserError(f"{path} is a checkpoint of AD-NeRF; give it its name, NUMBER_head.tar or NUMBER_body.tar")
        found = source.recognise(file, system)
        tensors, chosen, about = source.choose(file, found, wanted)
        name = _name(found, system)
        clip, spec = _clip(dataset, workdir, found.sizes.audio, name == "avatar_ernerf", found.sizes.code_rows)
        resolved = resolve(found, spec["kind"], tensors.get("aabb_infer"))
        model = load_system(resolved.system)(resolved, clip.info)
        variables, occupancy = fill(model, found, tensors)
        raw = fill(model, found, file.model)[0] if chosen == "ema" else variables
        stages = _stages(model, found, file)
        record = {"source": path.name, "system": found.system, "weights": chosen, "names": found.names}
        record |= {"eye": found.sizes.eye, "torso": found.sizes.torso}
        own = _install(new, workdir, path, resolved, model, (raw, variables), stages, (clip, spec), record)
    for line in describe(file, found, name, about, occupancy, spec, clip):
        print(line, flush=True)
    print(f"avatar {own}: {workdir / 'avatar'} (stages {', '.join(stages)})", flush=True)


@contextlib.contextmanager
def _made_ready(workdir: Path) -> Iterator[Path]:
    """A new folder beside what it will replace; what is left of it in the end is removed."""
    for left in workdir.glob(f".{KEPT}.*"):  # of an import that was killed
        shutil.rmtree(left, ignore_errors=True)
    new = workdir / f".{KEPT}.{os.getpid()}"
    try:
        yield new
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _install(
    new: Path, workdir: Path, path: Path, resolved: ConfigDict, model: interface.Model,
    variables: tuple[Variables, Variables], stages: list[str], subject: tuple[Any, dict[str, Any] | None],
    record: dict[str, Any],
) -> str:  # fmt: skip
    """Avatar, config, checkpoints and record of what was read from `path`, first in the folder `new` and then all at
    once in the workdir; the avatar's id. variables: those that training goes on from, and those that are drawn."""
    (raw, drawn), (clip, spec) = variables, subject
    consent = {"statement": None, "asked": False, "reason": f"imported from a checkpoint ({path.name})"}
    consent = read_facts(workdir).get("consent") or consent
    _avatar_as_before(workdir / "avatar", new / "avatar")
    steps = model.stages()[-1].steps
    own = bundle.save(new / "avatar", resolved, drawn, steps, clip, spec, consent, stages=stages)
    config.write(resolved, new / "config.json")
    write_atomic(new / KEPT / RECORD, json.dumps({"avatar": own, **record}, indent=1) + "\n")
    imported = {"source": str(path.absolute()), "system": record["system"], "weights": record["weights"]}
    facts: dict[str, Any] = {"imported": imported}
    if isinstance(clip, DatasetClip):
        finish(new, model, stages, raw, drawn, path.name)
        facts |= {"dataset": os.path.relpath(clip.dataset.root, workdir)}
    if (workdir / "run.json").is_file():
        shutil.copy(workdir / "run.json", new / "run.json")
    update_facts(new, consent=consent, **facts)
    files.exchange(new, workdir, ("avatar", KEPT, "checkpoints", "config.json", "run.json"))
    return own


def take_volumes(path: Path, workdir: Path, wanted: str | None, dataset: str | None) -> None:
    """AD-NeRF's head and body file, or a folder of them -> the same as `take_checkpoint` makes. Near, far and the
    torso's camera are those of the dataset, as the original takes them from its json."""
    if wanted == "ema":
        raise UserError(f"{path}: AD-NeRF keeps no moving average of its weights; leave --weights out")
    head_file, body_file = volumes.files_of(path)
    with _made_ready(workdir) as new:
        head, body = volumes.read(head_file, body_file, new / KEPT)
        clip, spec = _clip(dataset, workdir, head.audio, False, None)
        keys = {"data.audio_kind": spec["kind"], **volumes.settings(head)}
        resolved = config.load("configs/ad_nerf.py:full", [(k, str(v)) for k, v in keys.items()])
        model = load_system(resolved.system)(resolved, clip.info)
        template = jax.eval_shape(model.init, jax.random.key(0))
        fresh = volumes.fresh({path: leaf.shape for path, leaf in trees.flatten(template.params).items()})
        flat = {f"params/{k}": v for k, v in volumes.to_params(head, body, fresh).items()}
        # as the original: of all frames, not of the training ones alone
        facts = ClipFacts(np.asarray(clip.cam_to_world), np.tile(clip.intrinsics, (len(clip.cam_to_world), 1)))
        state = model.prepare(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), template), facts).state
        flat |= {f"state/{k}": np.asarray(v) for k, v in state.items()}
        variables = bundle.fitted(template, flat, "the checkpoint")
        stages = [s.name for s in model.stages() if s.name == "head" or body is not None]
        record = {"source": head_file.name, "system": resolved.system, "weights": "raw", "names": None}
        record |= {"eye": False, "torso": body is not None}
        own = _install(new, workdir, head_file, resolved, model, (variables, variables), stages, (clip, spec), record)
    for line in describe_volumes(head, body, spec, clip):
        print(line, flush=True)
    print(f"avatar {own}: {workdir / 'avatar'} (stages {', '.join(stages)})", flush=True)


def _take_tables(new: Path, workdir: Path, file: Source, wanted: str | None, dataset: str | None) -> None:
    """NeRFBlendShape's file: the same as `take_checkpoint` makes."""
    if wanted == "ema":
        raise UserError(f"{file.path}: NeRFBlendShape keeps no moving average of its weights; leave --weights out")
    found = tables.recognise(file)
    has = dataset or read_facts(workdir).get("dataset") or (workdir / DATASET / contract.MANIFEST).is_file()
    ranges, told = tables.ranges(file.path, found.coefficients)
    if has:
        clip: Any = DatasetClip(dataset_of(workdir, dataset), workdir / "cache")
        ranges, told = tables.of_dataset(clip, found, ranges, told)
    else:
        clip = tables.StandIn(found.coefficients, ranges)
    keys = {"model.basis_num": found.coefficients, "model.occupancy": "vertices"}
    resolved = config.load(f"configs/{tables.SYSTEM}.py:full", [(k, str(v)) for k, v in keys.items()])
    model = load_system(resolved.system)(resolved, clip.info)
    template = jax.eval_shape(model.init, jax.random.key(0))
    flat = {f"params/{k}": v for k, v in tables.to_params(file.model).items()}
    state, occupancy = tables.state(file, ranges)
    flat |= {f"state/{k}": v for k, v in state.items()}
    variables = bundle.fitted(template, flat, "the checkpoint")
    step = file.facts["top"].get("global_step")
    further = isinstance(step, int) and step > model.stages()[0].steps
    stages = [stage.name for stage in model.stages() if stage.name == "head" or further]
    record = {"source": file.path.name, "system": resolved.system, "weights": "raw", "names": None}
    record |= {"eye": False, "torso": False}
    sound = bundle.audio_spec(clip.audio) if has else None
    subject = clip, sound
    own = _install(new, workdir, file.path, resolved, model, (variables, variables), stages, subject, record)
    for line in tables.describe(file, found, told, occupancy):
        print(line, flush=True)
    if has:
        print(f"dataset: {clip.dataset.root}, {clip.n_frames} frames", flush=True)
    else:
        print("no dataset: one frontal camera and a white background; pose and coefficients can be given", flush=True)
    print(f"avatar {own}: {workdir / 'avatar'} (stages {', '.join(stages)})", flush=True)


def _avatar_as_before(old: Path, new: Path) -> None:
    """The old avatar's files under second names, so that `bundle.save` finds whole frames, which take long to encode.
    It writes under new names and removes those that it does not need."""
    if not (old / "avatar.json").is_file():
        return
    new.mkdir(parents=True)
    for path in old.iterdir():
        try:
            os.link(path, new / path.name, follow_symlinks=False)
        except OSError:  # a file system without hard links: they are made again
            return


def resolve(found: Recognised, audio_kind: str, box: np.ndarray | None) -> ConfigDict:
    """configs/<system>.py:full with the checkpoint's sizes, and pictures as exact as the original's."""
    sizes = found.sizes
    keys: dict[str, Any] = {
        "data.audio_kind": audio_kind,
        "model.audio_dim": sizes.audio_dim,
        "model.code_dim": sizes.code_dim,
        "model.code_rows": sizes.code_rows,
        "model.torso_code_dim": sizes.torso_dim,
        "model.train_camera": sizes.cameras,
        "model.occupancy_side": layout.SIDE,
        "model.picture_precision": "float32",
        "model.picture_stop": 1e-4,
    }
    if found.system == "rad_nerf":
        keys["model.eye"] = sizes.eye
    if box is not None:
        keys["model.box"] = tuple(float(v) for v in box)
    return config.load(f"configs/{found.system}.py:full", [(k, str(v)) for k, v in keys.items()])


def fill(model: Any, found: Recognised, tensors: dict[str, np.ndarray]) -> tuple[Variables, str]:
    """(the model's variables with the file's numbers, where its occupancy comes from). What the file does not have is
    as in a new model."""
    template = jax.eval_shape(model.init, jax.random.key(0))
    shapes = {path: leaf.shape for path, leaf in trees.flatten(template.params).items()}
    params = weights.fresh(shapes)
    if not found.sizes.eye and found.system == "er_nerf":
        params = weights.without_eye(weights.to_params(found.tensors, tensors, weights.drop_eye(params)))
    else:
        params = weights.to_params(found.tensors, tensors, params)
    state, about = weights.occupancy(tensors)
    state["torso/alpha"] = np.asarray(tensors.get("density_grid_torso", model.torso.init_state()["alpha"]), np.float32)
    flat = {f"params/{k}": v for k, v in params.items()} | {f"state/{k}": v for k, v in state.items()}
    return bundle.fitted(template, flat, "the checkpoint"), about


def finish(
    workdir: Path, model: interface.Model, stages: list[str], raw: Variables, drawn: Variables, name: str
) -> None:
    """Checkpoints of the stages that the file went through, so that training goes on with the next one."""
    for stage in model.stages():
        if stage.name not in stages or not stage.steps:
            continue
        saved = checkpoint.Checkpoints(workdir, stage.name, keep=1)
        items = {"params": raw.params, "state": drawn.state, "ema": drawn.params if stage.ema else None}
        meta = {"stage": stage.name, "step": stage.steps, "seconds": 0.0, "imported": name}
        saved.save(stage.steps, items, meta)
        saved.close()


def _name(found: Recognised, forced: str | None) -> str:
    """rad_nerf, er_nerf or avatar_ernerf: the latter is ER-NeRF with more frame codes or other sound."""
    if found.system == "er_nerf" and forced != "er_nerf":
        if forced == "avatar_ernerf" or found.sizes.code_rows == AVATAR_ERNERF_ROWS or found.sizes.audio == 768:
            return "avatar_ernerf"
    return found.system


def _stages(model: interface.Model, found: Recognised, file: Source) -> list[str]:
    """Names of the stages that the file went through: the torso stands on a finished head; a head beyond the steps of
    its first stage had its lips finetuned."""
    names = [stage.name for stage in model.stages()]
    if found.sizes.torso:
        return names
    step = file.facts["top"].get("global_step")
    lips = isinstance(step, int) and step > model.stages()[0].steps
    return [name for name in names if name == "head" or (lips and name == "lips")]


def _clip(
    given: str | None, workdir: Path, audio: int, avatar_ernerf: bool, rows: int | None
) -> tuple[Any, dict[str, Any]]:
    """(the workdir's dataset as a clip, or a stand-in; the description of the sound), checked against the file: the
    width of its sound features, and for how many frames it has codes."""
    has = given or read_facts(workdir).get("dataset") or (workdir / DATASET / contract.MANIFEST).is_file()
    if not has:
        spec = stand_in.sound(audio, avatar_ernerf)
        return stand_in.StandIn(spec), spec
    root = dataset_of(workdir, given)
    dataset = contract.Dataset(root)
    kind = _kind(dataset, audio)
    if rows is not None and dataset.n_frames > rows:
        raise UserError(
            f"{root} has {dataset.n_frames} frames, but the checkpoint codes for {rows}; "
            "give the dataset that it was trained on"
        )
    clip = DatasetClip(root, workdir / "cache", audio_kind=kind)
    return clip, bundle.audio_spec(clip.audio)


def _kind(dataset: contract.Dataset, width: int) -> str:
    """The dataset's sound features of this width, the usual kind first; UserError where it has none."""
    kinds = {kind: facts["channels"] for kind, facts in dataset.manifest["audio"].items()}
    fitting = sorted((k for k, channels in kinds.items() if channels == width), key=lambda k: ("_" in k, k))
    if not fitting:
        wanted = {29: "deepspeech (29)", 32: "wav2vec2 (32)", 44: "wav2vec2 (44)", 1024: "hubert (1024)"}
        have = ", ".join(f"{k} ({n})" for k, n in kinds.items()) or "none"
        raise UserError(
            f"the checkpoint hears {wanted.get(width, f'sound of width {width}')}, but {dataset.root} has {have}; "
            "import the dataset with the features that the checkpoint was trained on"
        )
    return fitting[0]


# ---------------------------------------------------------------- what is printed


def describe(
    file: Source, found: Recognised, name: str, about: str, occupancy: str, spec: dict, clip: Clip
) -> list[str]:
    """What was recognised, what was taken, what could not be used: one fact a line."""
    sizes, top = found.sizes, file.facts["top"]
    numbers = [k for k in ("epoch", "global_step") if isinstance(top.get(k), int | float)]
    told = ", ".join(f"{k} {top[k]}" for k in numbers) or ("a bare state dict" if file.facts["bare"] else "no epoch")
    lines = [f"recognised: {NAMES[name]}, {'head and torso' if sizes.torso else 'head'} ({told})"]
    present = [t for t in found.tensors if t.key in file.model]
    lines += [f"taken: head {layout.count(present, False):,} parameters"]
    lines[-1] += f", torso {layout.count(present, True):,} parameters" if sizes.torso else ""
    lines += [f"taken: weights are {about}", f"taken: occupancy of {layout.SIDE}^3 cells from {occupancy}"]
    lines += [f"sound: {spec['kind']}, {spec['channels']} channels, windows of {spec['window']} steps"]
    if found.missing:
        lines.append(f"missing: {', '.join(t.key for t in found.missing)} (taken as in a new model)")
    if found.unknown:
        lines.append(f"unknown, not used: {', '.join(f'{k} {list(file.shapes[k])}' for k in found.unknown)}")
    unused = [k for k in ("aabb_train", "step_counter") if k in file.model] + file.facts["left_out"]
    if unused:
        lines.append(f"not used: {', '.join(unused)} (they serve the original's training only)")
    if not sizes.torso:
        lines.append("no torso in this file: pictures show the head over the clip's own torso pictures")
    if not sizes.eye:
        lines.append("eyes: the checkpoint was trained without --exp_eye, so --fix_eye and --eye change nothing")
    if isinstance(clip, DatasetClip):
        lines.append(f"dataset: {clip.dataset.root}, {clip.n_frames} frames")
        if not sizes.torso:
            lines.append("next: --mode=train --stages=torso trains a torso under this head")
    else:
        lines.append(
            f"no dataset: one frontal camera, {stand_in.SIZE} x {stand_in.SIZE}, white background, no torso pictures; "
            "import the dataset folder into this workdir (or give --dataset), then import the checkpoint again"
        )
        if name != "avatar_ernerf" and spec["channels"] == 1024:
            lines.append(
                "sound: taken for ER-NeRF's HuBERT (pairs of steps); --system=avatar_ernerf means windows of 16"
            )
    return lines


def describe_volumes(head: volumes.Checkpoint, body: volumes.Checkpoint | None, spec: dict, clip: Clip) -> list[str]:
    """The same of AD-NeRF's files."""
    both = [head] if body is None else [head, body]
    told = " and ".join(f"{c.file.path.name} (step {'unknown' if c.step is None else c.step})" for c in both)
    lines = [f"recognised: AD-NeRF, {told}"]
    count = [f"{c.volume} {layout.count([t for t in c.tensors if t.path], False):,} parameters" for c in both]
    lines += [f"taken: {', '.join(count)}", "taken: weights are the files' own (AD-NeRF has no moving average)"]
    lines += [f"sound: {spec['kind']}, {spec['channels']} channels, windows of {spec['window']} steps"]
    if not head.attention:
        lines.append("missing: the attention over neighbouring windows; each frame hears its own window alone")
    for c in both:
        unused = sorted({t.key.split(".")[0] if t.key.startswith(volumes.AUDIO) else "feature_linear"
                         for t in c.tensors if not t.path and t.key in c.file.model})  # fmt: skip
        unused += c.file.facts["left_out"]
        lines.append(f"not used of {c.file.path.name}: {', '.join(unused)}")
        if c.unknown:
            lines.append(f"unknown in {c.file.path.name}, not used: {', '.join(c.unknown)}")
    if body is None:
        lines.append("no body: pictures show the head under the clip's own torso pictures")
    if isinstance(clip, DatasetClip):
        lines.append(f"dataset: {clip.dataset.root}, {clip.n_frames} frames")
        if body is None:
            lines.append("next: --mode=train --stages=torso trains a torso in front of this head")
    else:
        lines.append(
            f"no dataset: one frontal camera, {stand_in.SIZE} x {stand_in.SIZE}, white background, no torso pictures; "
            "import the dataset folder into this workdir (or give --dataset), then import the checkpoint again"
        )
    return lines
