"""The trainer: every stage of any system, on every device of every host, resumable at any moment.

Reads top to bottom: `train` runs the stages, `run_stage` one of them. `plan` says which, the update is
`step.make_step`, its frames come from `batches`, `devices` has the processes and their devices, `progress` what a run
shows of itself.

Parallelism: a mesh with the axis `data` over all devices. A global batch has the stage's `frames` (or `train.frames`),
split over the devices; parameters, optimiser and occupancy are replicated. The step runs inside `shard_map`: each
device draws its frames in one call (a frame is the unit of every model's loss), gradients are averaged once.
All randomness is a function of (seed, name of the stage, step, number or slot of the frame), so neither the
number of devices, a restart, nor which other stages are on changes the numbers beyond the order of float sums.
"""

import dataclasses
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int
from ml_collections import ConfigDict
from tqdm import tqdm

from tkjax import signals
from tkjax.data.batches import global_frames, make_loader, name_number, prefetch, sampler_of, shown_more
from tkjax.data.clip import Clip
from tkjax.errors import UserError
from tkjax.interface import Model, Stage, initialise
from tkjax.models import load_system
from tkjax.ops import dispatch
from tkjax.train import checkpoint, devices, plan, progress
from tkjax.train.checkpoint import Checkpoints, load_variables
from tkjax.train.devices import AXIS, initialise_distributed, use_compilation_cache
from tkjax.train.optim import optimiser
from tkjax.train.progress import check_finite, memory_estimate, open_board, write_row
from tkjax.train.step import TrainState, check_terms, make_step
from tkjax.types import Batch, ClipFacts, PyTree, Variables

__all__ = ["initialise_distributed", "load_variables", "train"]

Event = Callable[[str, dict[str, Any]], None]
Stop = Callable[[str, int, float], bool]
SEED_STRIDE = 1_000_003  # between the data orders of two seeds of one stage


@flax.struct.dataclass
class Trained:
    """What a finished stage hands to the next one."""

    params: PyTree
    state: PyTree
    ema: PyTree


@dataclasses.dataclass(frozen=True)
class Run:
    """What stays fixed during a run; `record` is the content of run.json."""

    config: ConfigDict
    clip: Clip
    workdir: Path
    model: Model
    stages: tuple[Stage, ...]
    mesh: Mesh
    n_frames: Mapping[str, int]  # in the global batch of each stage
    record: Mapping[str, Any]
    on_event: Event
    stop: Stop

    @property
    def chief(self) -> bool:
        return jax.process_index() == 0

    @property
    def replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def sharded(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec(AXIS))

    @property
    def train_frames(self) -> Int[np.ndarray, " n"]:
        """Frames of the training split whose face was found."""
        frames = self.clip.train_frames
        return frames[np.asarray(self.clip.confidence)[frames] > 0]

    def say(self, text: str) -> None:
        if self.chief:
            tqdm.write(text)


def train(
    config: ConfigDict,
    clip: Clip,
    workdir: str | os.PathLike,
    *,
    stages: Sequence[str] | None = None,
    on_event: Event | None = None,
    stop: Stop | None = None,
) -> Variables:
    """Run every stage of a system that is not finished yet, or those of them that are named.

    Args:
      config: the whole resolved config.
      clip: `tkjax.data.dataset_clip.Clip`, or anything with its info, digest, train_range, confidence, cam_to_world,
        intrinsics, batch and frame_batch.
      workdir: gets checkpoints/, metrics.jsonl, tensorboard/ and previews/. A run that is there is continued.
      stages: names of the stages to train; None for all. A stage starts from the one before it that was trained.
      stop: asked before a stage begins and after every step with (stage, its step, its seconds of training so far);
        true ends the stage there for good, as if it had no more steps, and a stage that has not begun is left out. For
        runs of one process.
      on_event: called with (name, facts): `stage`, `compile`, `row`, `checkpoint`, `preview`, `finished`.

    Returns:
      Variables on this process's first device: the moving average of the last finished stage (raw where it has none).

    Raises:
      UserError: the config does not fit the devices, the model, or what the workdir holds; or the loss is
        not finite.
    """
    use_compilation_cache()
    workdir = Path(workdir)
    mesh = Mesh(np.array(jax.devices()), (AXIS,), axis_types=(AxisType.Auto,))
    model = load_system(config.system)(config, clip.info)
    all_stages = plan.stages_of(config, model, workdir)
    names = [stage.name for stage in all_stages]
    n_frames = {}
    for stage in all_stages:
        own = -(-stage.frames // mesh.size) * mesh.size  # a stage's own number goes up to a multiple of the devices
        n_frames[stage.name] = global_frames(own or config.train.frames, mesh.size)
    stands = [plan.stands_at(workdir, name) for name in names]
    wanted = plan.chosen(all_stages, stands, stages, workdir)

    # -- is this the run that the workdir belongs to? Settings of stages that have not begun may change
    record = run_record(config, clip, n_frames)
    open_keys = [f"train.{name}" for name, stand in zip(names, stands) if stand == 0]
    checkpoint.check_run(workdir, record, open_keys)
    on_event, stop = on_event or (lambda name, facts: None), stop or (lambda stage, step, seconds: False)
    run = Run(config, clip, workdir, model, all_stages, mesh, n_frames, record, on_event, stop)
    if not len(run.train_frames):
        raise UserError(f"none of the training frames {clip.train_range} has a detected face; preprocess another clip")

    for use in model.signals():
        clip.info.signal(use.name)  # a sentence where the dataset has none
        signals.check_finite(clip.signals[use.name], "training cannot start")

    devices.connect(mesh)

    # -- how to start, in this order: what lies before a stage that has a checkpoint is skipped; a stage with a
    #    checkpoint goes on from it; the first stage starts from init and prepare; a later one from what the stage
    #    before left. A stage that is not wanted is restored where it is finished, else left out.
    run.say(plan.in_words(all_stages, stands, wanted))
    trained = None
    begun = (i for i, stand in enumerate(stands) if stand > 0 and plan.counts(all_stages[i], stand, wanted))
    newest = max(begun, default=0)
    for index, stage in enumerate(all_stages):
        if index >= newest and plan.counts(stage, stands[index], wanted):
            if trained is not None and stands[index] == 0 and run.stop(stage.name, 0, 0.0):
                run.say(f"stage {stage.name}: left out, the time is over")
                continue
            trained = run_stage(run, index, trained)
    return devices.local(Variables(trained.params if trained.ema is None else trained.ema, trained.state))


def run_stage(run: Run, index: int, before: Trained | None) -> Trained:
    """Train one stage from where it stands to its end."""
    stage, config, model = run.stages[index], run.config, run.model
    n_frames = run.n_frames[stage.name]
    metrics_path = run.workdir / "metrics.jsonl"

    # -- where it stands
    start = plan.stands_at(run.workdir, stage.name)
    checkpoints = Checkpoints(run.workdir, stage.name, config.train.keep_checkpoints)
    if run.chief:
        checkpoint.truncate_metrics(metrics_path, [s.name for s in run.stages], stage.name, start)

    # -- variables and optimiser, before training
    run_key = jax.random.key(config.seed)
    variables = first_variables(run, run_key, start) if before is None else start_from(before, model, stage)
    if start >= stage.steps:
        run.on_event("stage", {"stage": stage.name, "steps": stage.steps})
        like = devices.replicate({"params": variables.params, "state": variables.state}, run.replicated)
        like |= {"ema": like["params"] if stage.ema else None}
        done = checkpoints.restore(start, like)
        checkpoints.close()
        run.say(f"stage {stage.name}: finished, {start} steps")
        return Trained(**done)
    labels = model.labels(variables.params)
    is_trained = jax.tree.map(lambda group: group in stage.rates, labels)
    tx = optimiser(stage.rates, labels, stage.steps)

    # -- batches; loss terms against weights; the metrics that will be summed
    seed = config.seed + SEED_STRIDE * stage.seed
    frames = shown_more(run.train_frames, run.clip, stage.rare)
    load_batch = make_loader(run.clip, frames, stage, seed, n_frames, run.sharded, model.signals())
    first = {sampler: load_batch(stage.samplers.index(sampler)) for sampler in dict.fromkeys(stage.samplers)}
    metrics = check_terms(model, stage, variables, first)
    run.on_event("stage", {"stage": stage.name, "steps": stage.steps})  # only now: the settings have proved usable
    zeros = {name: jnp.zeros(2) for name in metrics}

    # -- the state on all devices, continued from the newest checkpoint
    state = TrainState(
        step=jnp.int32(0),
        key=jax.random.key_data(stage_key(run_key, stage)),
        params=variables.params,
        state=variables.state,
        opt=tx.init(variables.params),
        ema=variables.params if stage.ema else None,
        sums=zeros,
    )
    state = devices.replicate(state, run.replicated)
    seconds = 0.0
    if start:
        state, seconds = restore(checkpoints, start, state, run.record)
        run.say(f"stage {stage.name}: continues after step {start} of {stage.steps}")

    # -- compile: one executable for each sampler
    steps = {}
    for sampler, batch in first.items():
        train_step = make_step(model, stage, tx, is_trained, run.mesh)
        steps[sampler] = compiled(run, stage, train_step, state, sampler, batch)
    run.say(memory_estimate(stage.name, state, steps.values()))
    checkpoint.meet("compiled")  # some processes may have found the programs in their cache

    # -- where the numbers go
    board = rows = None
    if run.chief:
        checkpoint.write_run(run.workdir, run.record)
        board = open_board(run.workdir / "tensorboard" / stage.name, start)
        rows = open(metrics_path, "a")
    pause = 0.5 if sys.stderr.isatty() else 10.0  # seconds between two looks of the bar; a log file needs few
    bar = tqdm(desc=stage.name, total=stage.steps, initial=start, disable=not run.chief, unit="step", mininterval=pause)

    # -- loop
    batches = prefetch(load_batch, range(start, stage.steps))
    began = last_time = time.perf_counter()
    checked, last_step, rays = start, start, 0
    try:
        for done, batch in zip(range(start + 1, stage.steps + 1), batches, strict=True):
            sampler = sampler_of(stage, done - 1)
            state = steps[sampler](state, devices.shard(batch, run.sharded, n_frames))
            rays += n_frames * batch.pixels_px.shape[1]
            bar.update()
            over = done < stage.steps and run.stop(stage.name, done, seconds + time.perf_counter() - began)
            is_last = over or done == stage.steps
            log_now = is_last or progress.due(done, config.train.log_every)
            save_now = is_last or progress.due(done, config.train.checkpoint_every)
            preview_now = config.train.preview_every > 0 and (is_last or progress.due(done, config.train.preview_every))
            if not (log_now or save_now or preview_now):
                continue

            # -- every look at the numbers is a check; nothing bad is saved
            values = progress.means(state.sums)
            check_finite(values, stage.name, checked + 1, done, checkpoints)
            checked = done
            if log_now:
                elapsed = time.perf_counter() - last_time
                row = {"stage": stage.name, "step": done, **values, "psnr": progress.psnr(values["mse"])}
                row |= {"steps_per_s": (done - last_step) / elapsed, "rays_per_s": rays / elapsed}
                row |= {"seconds": seconds + time.perf_counter() - began}
                state = state.replace(sums=devices.replicate(zeros, run.replicated))
                if run.chief:
                    write_row(rows, board, row)
                bar.set_postfix_str(
                    f"loss {row['loss']:.4g}, PSNR {row['psnr']:.2f} dB, {row['rays_per_s']:.3g} rays/s"
                )
                run.on_event("row", row)
                last_step, last_time, rays = done, time.perf_counter(), 0
            if save_now:
                items = {"params": state.params, "state": state.state, "ema": state.ema, "rest": rest_of(state)}
                meta = checkpoint_meta(run, stage, done, seconds + time.perf_counter() - began)
                checkpoints.save(done, items, meta)
                run.on_event("checkpoint", {"stage": stage.name, "step": done})
            if preview_now:
                paused = time.perf_counter()
                if run.chief:
                    show(run, stage, state, done, board)
                checkpoint.meet("preview")
                last_time += time.perf_counter() - paused  # steps/s is that of training
            if over:
                checkpoints.wait()
                plan.end(run.workdir, stage.name, done)
                run.say(f"stage {stage.name}: ends at step {done} of {stage.steps}, the time is over")
                break
    finally:
        batches.close()
        bar.close()
        checkpoints.close()
        if run.chief:
            rows.close()
            board.close()
    run.on_event("finished", {"stage": stage.name, "step": done, "seconds": seconds + time.perf_counter() - began})
    return Trained(state.params, state.state, state.ema)


def compiled(run: Run, stage: Stage, train_step: Any, state: TrainState, sampler: str, batch: Batch) -> Any:
    """The executable of a step for batches like `batch`."""
    began = time.perf_counter()
    executable = train_step.lower(state, devices.shard(batch, run.sharded, run.n_frames[stage.name])).compile()
    took = time.perf_counter() - began
    run.on_event("compile", {"stage": stage.name, "sampler": sampler, "seconds": took})
    run.say(f"stage {stage.name}: compiled for sampler {sampler} in {took:.1f} s")
    return executable


def show(run: Run, stage: Stage, state: TrainState, done: int, board: Any) -> None:
    """A preview of the middle training frame after `done` steps."""
    variables = devices.local(Variables(state.params, state.state))
    middle = int(run.train_frames[len(run.train_frames) // 2])
    frame = run.clip.frame_batch(middle, stage.background, run.model.signals())
    folder, chunk = run.workdir / "previews", run.config.eval.chunk_rays
    path, value = progress.preview(folder, run.model, variables, stage, done, frame, chunk)
    board.add_scalar("preview_psnr", value, done)
    run.on_event("preview", {"stage": stage.name, "step": done, "path": str(path), "psnr": value})


# -- start, save, resume ------------------------------------------------------------------------


def first_variables(run: Run, run_key: jax.Array, start: int) -> Variables:
    """Variables of a stage with none before it: from init, and from prepare where its training begins at step 0."""
    variables = initialise(run.model, jax.random.fold_in(run_key, name_number("init")))
    if start > 0:
        return variables
    poses = np.asarray(run.clip.cam_to_world)[run.train_frames]
    intrinsics = np.broadcast_to(np.asarray(run.clip.intrinsics, np.float32), (len(poses), 4))
    of_signals = {s.name: s for s in run.clip.info.signals}
    members = RowsOf(run.clip.members, run.train_frames)
    return run.model.prepare(variables, ClipFacts(poses, intrinsics, of_signals, members))


class RowsOf(Mapping):
    """Some rows of each of several arrays, read when they are asked for."""

    def __init__(self, arrays: Mapping[str, np.ndarray], rows: np.ndarray):
        self._arrays, self._rows = arrays, rows

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name][self._rows]

    def __iter__(self):
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)


def stage_key(run_key: jax.Array, stage: Stage) -> jax.Array:
    """The key of a stage, from its name and its seed."""
    key = jax.random.fold_in(run_key, name_number(stage.name))
    return jax.random.fold_in(key, stage.seed) if stage.seed else key


def run_record(config: ConfigDict, clip: Clip, n_frames: Mapping[str, int]) -> dict[str, Any]:
    """What run.json says: the config and data that a restart must match, and facts about this start."""
    resolved = checkpoint.as_json(config.to_dict())
    resolved["train"]["frames"] = dict(n_frames)
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {
        "config": resolved,
        "data": checkpoint.as_json(
            {"digest": clip.digest, "info": clip.info.sizes(), "train_range": list(map(int, clip.train_range))}
        ),
        "threads": checkpoint.n_threads(),
        "kernels": dispatch.preferred(),
        "devices": [d.device_kind for d in jax.devices()],
        "versions": {name: version(name) for name in packages} | {"python": platform.python_version()},
    }


def start_from(before: Trained, model: Model, stage: Stage) -> Variables:
    """Variables at the start of a stage: trained groups go on from the raw parameters of the stage before,
    frozen ones stay at what that stage produced, its moving average."""
    ema = before.params if before.ema is None else before.ema
    labels = model.labels(before.params)
    params = jax.tree.map(lambda raw, avg, group: raw if group in stage.rates else avg, before.params, ema, labels)
    return devices.local(Variables(params, before.state))


def rest_of(state: TrainState) -> dict[str, PyTree]:
    return {"step": state.step, "key": state.key, "opt": state.opt, "sums": state.sums}


def restore(checkpoints: Checkpoints, step: int, like: TrainState, record: Mapping) -> tuple[TrainState, float]:
    """The state of a checkpoint, and the seconds of training that led to it."""
    meta = checkpoints.meta(step)
    items = {"params": like.params, "state": like.state, "ema": like.ema, "rest": rest_of(like)}
    got = jax.tree.map(jnp.copy, checkpoints.restore(step, items))
    for what in ("threads", "kernels"):
        before = meta.get(what, "other")
        if before != record[what]:
            logging.warning(
                "%s was written with %s %s and goes on with %s; the last bits of the results may differ",
                checkpoints.path / str(step), before, what, record[what],
            )  # fmt: skip
    state = TrainState(params=got["params"], state=got["state"], ema=got["ema"], **got["rest"])
    return state, meta["seconds"]


def checkpoint_meta(run: Run, stage: Stage, step: int, seconds: float) -> dict[str, Any]:
    """Facts beside the arrays of a checkpoint."""
    epoch, place = divmod(step * run.n_frames[stage.name], len(run.train_frames))
    data_position = {"seed": run.config.seed, "stage": stage.name, "epoch": epoch, "place": place}
    return {"stage": stage.name, "step": step, "seconds": seconds, "data_position": data_position} | dict(run.record)
