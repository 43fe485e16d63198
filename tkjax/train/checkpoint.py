"""What a run leaves on disk so that the same command continues it.

W/checkpoints/run.json            resolved config, facts of the dataset, thread count, versions of the last start
W/checkpoints/<stage>/<step>/     one orbax checkpoint: params, state, ema, rest (step, key, optimiser, sums), meta
W/metrics.jsonl                   one row per log interval; a resume cuts it back to the checkpoint

Every tree is stored as a flat {path: array}, so that a listing explains itself and a mismatch can be named.
Orbax writes into a temporary directory and renames it, so a killed save leaves nothing that counts.
In a run of several processes W lies on a file system that all of them see.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from tkjax import config, trees
from tkjax.errors import UserError
from tkjax.host import stored
from tkjax.host.files import write_atomic
from tkjax.interface import Model
from tkjax.types import PyTree, SubjectInfo, Variables

# Settings that may differ between two starts in one workdir: they do not change what is computed.
EXEMPT = (
    "variant",
    "ops_backend",
    "model.picture_precision",
    "model.picture_stop",
    "data.preload",
    "train.log_every",
    "train.preview_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.voice",
    "eval",
)
MEET_TIMEOUT_S = 3600  # one process may decode a clip or compile while the others wait
ITEMS = ("params", "state", "ema", "rest")


def meet(place: str, timeout_s: int = MEET_TIMEOUT_S) -> None:
    """All processes of the run wait for each other here; nothing in a run of one process.

    Needed where their pace may differ by minutes (decoding, compiling, drawing): the first collective between a
    set of devices gives up after 30 seconds on the CPU.
    """
    ocp.multihost.get_barrier_sync_fn()(key=f"tkjax-{place}", timeout_ms=timeout_s * 1000)


def latest_step(workdir: str | os.PathLike, stage: str) -> int | None:
    """Step of the newest complete checkpoint of a stage, or None. Only looks: no process waits for another."""
    path = Path(workdir).absolute() / "checkpoints" / stage
    return max(ocp.utils.checkpoint_steps(path), default=None) if path.is_dir() else None


class Checkpoints:
    """The checkpoints of one stage. Saving is asynchronous; `close` waits for it.

    In a run of several processes all of them construct, save and restore together.

    Args:
      workdir: the run's folder.
      stage: name of the stage.
      keep: how many of the latest checkpoints stay; None opens for reading only.
    """

    def __init__(self, workdir: str | os.PathLike, stage: str, keep: int | None = None):
        self.path = Path(workdir).absolute() / "checkpoints" / stage
        if keep is not None:
            options = ocp.CheckpointManagerOptions(max_to_keep=max(1, keep), cleanup_tmp_directories=True)
        else:
            options = ocp.CheckpointManagerOptions(create=False)
        handlers = {name: ocp.StandardCheckpointHandler() for name in ITEMS} | {"meta": ocp.JsonCheckpointHandler()}
        self.manager = ocp.CheckpointManager(self.path, options=options, item_handlers=handlers)

    def save(self, step: int, items: Mapping[str, PyTree], meta: Mapping[str, Any]) -> None:
        """Start writing `items` (name -> tree of arrays) and `meta` (json).

        The arrays are copied first: the caller donates them to its next step, and the host view that
        a save reads may share their memory.
        """
        copies = {name: trees.flatten(jax.tree.map(jax.numpy.copy, tree)) for name, tree in items.items()}
        args = {name: ocp.args.StandardSave(flat) for name, flat in copies.items() if flat}
        self.manager.save(step, args=ocp.args.Composite(**args, meta=ocp.args.JsonSave(dict(meta))))

    def restore(self, step: int, like: Mapping[str, PyTree]) -> dict[str, PyTree]:
        """The items named by `like`, whose leaves give shape, dtype and sharding.

        Raises:
          UserError: an array is missing, superfluous or of another shape.
        """
        out = {}
        for name, tree in like.items():
            want = trees.flatten(tree)
            have = self.shapes(step, name)
            for path in sorted(want.keys() | have.keys()):
                a, b = have.get(path), tuple(want[path].shape) if path in want else None
                if a != b:
                    raise UserError(
                        f"{self.path / str(step)}: {name}/{path} has shape {a}, but the model needs {b}; "
                        "evaluate with the config that it was trained with, or train in a new workdir"
                    )
            abstract = {
                path: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None))
                for path, x in want.items()
            }
            if abstract:
                args = ocp.args.Composite(**{name: ocp.args.StandardRestore(abstract)})
                abstract = self.manager.restore(step, args=args)[name]
            out[name] = trees.unflatten(tree, abstract)
        return out

    def shapes(self, step: int, name: str) -> dict[str, tuple[int, ...]]:
        """{path: shape} of one stored item; empty if it is absent."""
        if not (self.path / str(step) / name).is_dir():
            return {}
        return {path: tuple(x.shape) for path, x in self.manager.item_metadata(step)[name].items()}

    def meta(self, step: int) -> dict[str, Any]:
        """The json that was saved with a step."""
        return self.manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]

    def wait(self) -> None:
        """Return when every started save is complete on disk."""
        self.manager.wait_until_finished()

    def close(self) -> None:
        """Finish what is being written and release the threads."""
        self.manager.close()


def load_variables(
    workdir: str | os.PathLike, model: Model, stage: str | None = None, ema: bool = True
) -> tuple[Variables, int]:
    """Trained variables of a workdir, on the default device.

    Args:
      workdir: folder of a run.
      model: the model that was trained, for the structure of its variables.
      stage: which stage; None means the last one that has a checkpoint.
      ema: the moving average where the stage has one, else the raw parameters.

    Returns:
      (variables, step within the stage).

    Raises:
      UserError: nothing is stored there, or it does not fit the model.
    """
    names = [s.name for s in model.stages()]
    if stage is not None and stage not in names:
        raise UserError(f"stage {stage!r} is unknown; this system has {', '.join(names)}")
    like = jax.eval_shape(model.init, jax.random.key(0))
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), like)
    for name in [stage] if stage is not None else reversed(names):
        step = latest_step(workdir, name)
        if step is not None:
            checkpoints = Checkpoints(workdir, name)
            params = "ema" if ema and (checkpoints.path / str(step) / "ema").is_dir() else "params"
            got = checkpoints.restore(step, {params: like.params, "state": like.state})
            checkpoints.close()
            return Variables(got[params], got["state"]), step
    raise UserError(
        f"{Path(workdir) / 'checkpoints'} holds no checkpoint{f' of stage {stage!r}' if stage else ''}; train first"
    )


# -- the run's identity -------------------------------------------------------------------------


def n_threads() -> int:
    """Processors that this process may use; the size of XLA's thread pool on the CPU."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def as_json(value: Any) -> Any:
    """What `value` reads back as from json (tuples become lists, numpy scalars numbers)."""
    return json.loads(json.dumps(value, default=lambda x: x.item() if isinstance(x, np.generic) else str(x)))


def read_run(workdir: str | os.PathLike) -> dict[str, Any] | None:
    """The record of the workdir's run, or None where nothing was trained."""
    path = Path(workdir) / "checkpoints" / "run.json"
    if not path.is_file():
        return None
    remedy = f"remove {path.parent} to train from the start"
    run = stored.read_json(path, remedy, finite=False)
    for part in ("config", "data"):
        if not isinstance(run.get(part, {}), dict):
            raise UserError(f"{path} is damaged ({part} is no json object); {remedy}")
    return run


def check_run(workdir: str | os.PathLike, run: Mapping[str, Any], free: Sequence[str] = ()) -> None:
    """Refuse to continue a run that was started with something else.

    Args:
      run: {"config": nested dict, "data": nested dict} of this start, as json.
      free: parts of the config that may change, such as the settings of a stage that has not begun.

    Raises:
      UserError: names every differing key with both values.
    """
    before = read_run(workdir)
    if before is None:
        return
    differ = []
    data = before.get("data", {})
    if "audio_kind" in data.get("info", {}):  # written before signals were described
        info = SubjectInfo.from_json(data["info"]).sizes()
        signals = {k: v for k, v in run["data"]["info"]["signals"].items() if k not in info["signals"]}
        before["data"] = as_json(data | {"info": info | {"signals": info["signals"] | signals}})
    for part in ("config", "data"):
        old, new = config.leaves(before.get(part, {})), config.leaves(run[part])
        for key in sorted(old.keys() | new.keys()):
            name = key if part == "config" else f"dataset {key}"
            exempt = part == "config" and any(key == e or key.startswith(e + ".") for e in (*EXEMPT, *free))
            if not exempt and old.get(key, "absent") != new.get(key, "absent"):
                differ.append(f"{name} ({old.get(key, 'absent')!r} there, {new.get(key, 'absent')!r} now)")
    if differ:
        raise UserError(
            f"{workdir} was started with another setting of {', '.join(differ)}; "
            "use the same settings to continue it, or another workdir to start anew"
        )


def write_run(workdir: str | os.PathLike, run: Mapping[str, Any]) -> None:
    """Replace run.json atomically."""
    write_atomic(Path(workdir) / "checkpoints" / "run.json", json.dumps(run, indent=1))


def truncate_metrics(path: Path, stages: list[str], stage: str, step: int) -> None:
    """Drop the rows of metrics.jsonl that lie after `step` of `stage`, and a row that a kill cut in two."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            row = json.loads(line)
            position = (stages.index(row["stage"]), row["step"])
        except (ValueError, KeyError, TypeError):
            continue  # only the last row can be incomplete, and it lies after the checkpoint
        if position <= (stages.index(stage), step):
            kept.append(line + "\n")
    write_atomic(path, "".join(kept))
