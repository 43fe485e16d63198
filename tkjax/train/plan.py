"""Which stages a run trains: what the config asks for against what the workdir's checkpoints hold."""

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from tkjax.errors import UserError
from tkjax.host import stored
from tkjax.host.files import write_atomic
from tkjax.interface import Model, Stage
from tkjax.models import load_system
from tkjax.train import checkpoint
from tkjax.types import SubjectInfo

ENDED = "ended.json"  # beside run.json: stage -> the step at which it was ended before its time


def ended(workdir: str | os.PathLike) -> dict[str, int]:
    """The stages of a workdir that were ended before their last step, and where."""
    path = Path(workdir) / "checkpoints" / ENDED
    found = stored.read_json(path, f"remove {path.parent} to train from the start") if path.is_file() else {}
    return {name: step for name, step in found.items() if type(step) is int and step > 0}


def end(workdir: Path, stage: str, step: int) -> None:
    """A stage has no steps beyond this one, whose checkpoint is on the disk."""
    write_atomic(workdir / "checkpoints" / ENDED, json.dumps({**ended(workdir), stage: step}))


def stages_of(config: ConfigDict, model: Model, workdir: str | os.PathLike | None = None) -> tuple[Stage, ...]:
    """The stages that have steps to train; those that a workdir's run ended early with the steps that they had."""
    cut = ended(workdir) if workdir is not None else {}
    stages = tuple(stage for stage in model.stages() if stage.steps > 0)
    stages = tuple(dataclasses.replace(s, steps=min(s.steps, cut.get(s.name, s.steps))) for s in stages)
    names = [stage.name for stage in stages]
    if not names:
        given = ", ".join(f"{stage.name}: {stage.steps}" for stage in model.stages())
        raise UserError(f"no stage of {config.system} has a step to train (steps: {given}); expected at least 1")
    if len(set(names)) != len(names):
        raise UserError(f"a system needs stages of different names, got {names}")
    return stages


def stands_at(workdir: Path, stage: str) -> int:
    """Step of the stage's newest checkpoint, 0 without one; what the first process sees counts for all."""
    return int(multihost_utils.broadcast_one_to_all(np.int32(checkpoint.latest_step(workdir, stage) or 0)))


def chosen(stages: Sequence[Stage], stands: Sequence[int], wanted: Sequence[str] | None, workdir: Path) -> set[str]:
    """Names of the stages to train, checked: each is known and stands on what is or will be trained before it."""
    names = [stage.name for stage in stages]
    last = max((i for i, stand in enumerate(stands) if stand > 0), default=-1)
    if wanted is None:
        return {name for i, name in enumerate(names) if i >= last or stands[i] > 0}
    for name in wanted:
        if name not in names:
            raise UserError(f"--stages names {name!r}, but the stages with steps to train are {', '.join(names)}")
    first = min(names.index(name) for name in wanted)
    start = min(i for i, stage in enumerate(stages) if not stage.optional)  # where a run may begin
    for index, (stage, stand) in enumerate(zip(stages, stands)):
        if stage.name in wanted and stand == 0 and index < last:
            raise UserError(
                f"stage {stage.name} cannot be trained any more: {workdir} holds {names[last]}, which follows it; "
                "train it in another workdir"
            )
        if index < first and stage.name not in wanted and (0 < stand < stage.steps or (index == start and stand == 0)):
            raise UserError(
                f"--stages={','.join(wanted)} needs stage {stage.name} first, which stands at step {stand} of "
                f"{stage.steps} in {workdir}; add it: --stages={','.join([stage.name, *wanted])}"
            )
    return set(wanted)


def counts(stage: Stage, stand: int, wanted: set[str]) -> bool:
    """Whether a stage is trained in this run or gives what a later one starts from."""
    return stage.name in wanted or stand >= stage.steps


def in_words(stages: Sequence[Stage], stands: Sequence[int], wanted: set[str]) -> str:
    """One line: what is finished, what comes next, what stays."""
    parts, coming = [], "next"
    for stage, stand in zip(stages, stands):
        if stand >= stage.steps:
            parts.append(f"{stage.name} finished ({stage.steps} steps)")
        elif stage.name in wanted:
            at = f"from step {stand} of {stage.steps}" if stand else f"{stage.steps} steps"
            parts.append(f"{stage.name} {coming} ({at})")
            coming = "then"
        else:
            parts.append(f"{stage.name} not now ({stage.steps - stand} steps)")
    return "stages: " + ", ".join(parts)


def finished(config: ConfigDict, info: SubjectInfo, workdir: str | os.PathLike) -> list[str]:
    """Names of the stages that the workdir's checkpoints have finished, in order."""
    stages = stages_of(config, load_system(config.system)(config, info), workdir)
    return [stage.name for stage in stages if stands_at(Path(workdir), stage.name) >= stage.steps]
