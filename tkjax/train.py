"""The trainer: every stage of any system, on every device of every host, resumable at any moment.

Reads top to bottom: `train` runs the stages, `run_stage` one of them, `make_step` is the computation.

Parallelism: a mesh with the axis `data` over all devices. A global batch has `train.frames` frames, split over
the devices; parameters, optimiser and occupancy are replicated. The step runs inside `shard_map`: each device
goes through its frames one by one (a frame is the unit of every model's loss), gradients are averaged once.
All randomness is a function of (seed, stage, step, slot of the frame in the global batch), so neither the
number of devices nor a restart changes the numbers beyond the order of float sums.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import io
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, Int, UInt32
from PIL import Image
from tqdm import tqdm

from tkjax import checkpoint
from tkjax.checkpoint import Checkpoints, load_variables
from tkjax.errors import UserError
from tkjax.models.base import Model, Stage, load
from tkjax.optim import ema_decay, ema_every, ema_update, optimiser
from tkjax.render.image import picture, render_image
from tkjax.types import Array, Batch, Clock, Leaf, PyTree, Variables

__all__ = ["initialise_distributed", "load_variables", "train"]

AXIS = "data"
PREFETCH = 2  # batches loaded ahead
MSE_FLOOR = 1e-10  # PSNR is reported up to 100 dB
Event = Callable[[str, dict[str, Any]], None]


@flax.struct.dataclass
class TrainState:
    """All that a step changes. Replicated on every device, donated to the next step, saved whole.

    Attributes:
      step: updates done in this stage.
      key: raw data of the stage's PRNG key; the key of a step is fold_in(key, step).
      params, state: the model's variables.
      opt: state of the optax chain.
      ema: moving average of params, or None.
      sums: metric name -> (sum, count) since the last logged row.
    """

    step: Leaf[Int[Array, ""]]
    key: Leaf[UInt32[Array, " K"]]
    params: PyTree
    state: PyTree
    opt: PyTree
    ema: PyTree
    sums: dict[str, Leaf[Float[Array, "2"]]]


@flax.struct.dataclass
class Trained:
    """What a finished stage hands to the next one."""

    params: PyTree
    state: PyTree
    ema: PyTree


@dataclasses.dataclass(frozen=True)
class Run:
    """What stays fixed during a run; `record` is the content of run.json."""

    config: Any
    clip: Any
    workdir: Path
    model: Model
    stages: tuple[Stage, ...]
    mesh: Mesh
    n_frames: int  # in the global batch
    record: Mapping[str, Any]
    on_event: Event

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
    def train_frames(self) -> np.ndarray:
        """Frames of the training split whose face was found."""
        frames = np.arange(*self.clip.train_range)
        return frames[np.asarray(self.clip.confidence)[frames] > 0]

    def say(self, text: str) -> None:
        if self.chief:
            tqdm.write(text)


def initialise_distributed(
    coordinator_address: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Join the processes of a run that spans several; before the first use of JAX.

    With explicit arguments all three are needed. Without, a SLURM step, an MPI launcher or an indexed
    Kubernetes job is recognised by its environment and JAX finds the rest; otherwise nothing happens.

    Raises:
      UserError: only some of the arguments are given.
    """
    given = (coordinator_address, num_processes, process_id)
    if any(x is not None for x in given):
        if any(x is None for x in given):
            raise UserError(
                f"coordinator_address={coordinator_address}, num_processes={num_processes} and process_id={process_id} "
                "belong together; give all three or none"
            )
        jax.distributed.initialize(coordinator_address, num_processes, process_id)
        return
    sizes = [os.environ.get(name, "1") for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")]
    kubernetes = "KUBERNETES_SERVICE_HOST" in os.environ and "JOB_COMPLETION_INDEX" in os.environ
    if kubernetes or any(size.isdigit() and int(size) > 1 for size in sizes):
        jax.distributed.initialize()


def train(config: Any, clip: Any, workdir: str | os.PathLike, *, on_event: Event | None = None) -> Variables:
    """Run every stage of a system that is not finished yet.

    Args:
      config: the whole resolved config.
      clip: `tkjax.data.Clip`, or anything with its info, digest, train_range, confidence, cam_to_world,
        intrinsics, batch and frame_batch.
      workdir: gets checkpoints/, metrics.jsonl, tensorboard/ and previews/. A run that is there is continued.
      on_event: called with (name, facts): `stage`, `compile`, `row`, `checkpoint`, `preview`, `finished`.

    Returns:
      Variables on this process's first device: the moving average of the last stage (raw where it has none).

    Raises:
      UserError: the config does not fit the devices, the model, or what the workdir holds; or the loss is
        not finite.
    """
    use_compilation_cache()
    workdir = Path(workdir)
    mesh = Mesh(np.array(jax.devices()), (AXIS,), axis_types=(AxisType.Auto,))
    n_frames = global_frames(config.train.frames, mesh.size)
    model = load(config.system)(config, clip.info)
    stages = tuple(stage for stage in model.stages() if stage.steps > 0)
    names = [stage.name for stage in stages]
    if len(set(names)) != len(names) or not names:
        raise UserError(f"a system needs stages of different names with at least one step, got {names}")

    # -- is this the run that the workdir belongs to?
    record = run_record(config, clip, n_frames)
    checkpoint.check_run(workdir, record)
    run = Run(config, clip, workdir, model, stages, mesh, n_frames, record, on_event or (lambda name, facts: None))
    if not len(run.train_frames):
        raise UserError(f"none of the training frames {clip.train_range} has a detected face; preprocess another clip")

    connect(mesh)

    # -- how to start, in this order: a stage before one that has a checkpoint is finished, skip it; a stage with
    #    a checkpoint goes on from it; the first stage starts from init and prepare; a later one from what the
    #    stage before left.
    begun = [stands_at(workdir, name) > 0 for name in names]
    trained = None
    for index in range(len(stages)):
        if not any(begun[index + 1 :]):
            trained = run_stage(run, index, trained)
    return local(Variables(trained.params if trained.ema is None else trained.ema, trained.state))


def run_stage(run: Run, index: int, before: Trained | None) -> Trained:
    """Train one stage from where it stands to its end."""
    stage, config, model = run.stages[index], run.config, run.model
    metrics_path = run.workdir / "metrics.jsonl"
    run.on_event("stage", {"stage": stage.name, "steps": stage.steps})

    # -- where it stands
    start = stands_at(run.workdir, stage.name)
    checkpoints = Checkpoints(run.workdir, stage.name, config.train.keep_checkpoints)
    if run.chief:
        checkpoint.truncate_metrics(metrics_path, [s.name for s in run.stages], stage.name, start)

    # -- variables and optimiser, before training
    run_key = jax.random.key(config.seed)
    if before is None:
        variables = jax.jit(model.init)(jax.random.fold_in(run_key, len(run.stages)))
    else:
        variables = start_from(before, model, stage)
    if before is None and start == 0:
        poses = np.asarray(run.clip.cam_to_world)[run.train_frames]
        intrinsics = np.broadcast_to(np.asarray(run.clip.intrinsics, np.float32), (len(poses), 4))
        variables = model.prepare(variables, poses, intrinsics)
    if start >= stage.steps:
        like = replicate({"params": variables.params, "state": variables.state}, run.replicated)
        like |= {"ema": like["params"] if stage.ema else None}
        done = checkpoints.restore(start, like)
        checkpoints.close()
        run.say(f"stage {stage.name}: finished, {start} steps")
        return Trained(**done)
    labels = model.labels(variables.params)
    is_trained = jax.tree.map(lambda group: group in stage.rates, labels)
    tx = optimiser(stage.rates, labels, stage.steps)

    # -- batches; loss terms against weights; the metrics that will be summed
    load_batch = make_loader(run, stage, index)
    first = {sampler: load_batch(stage.samplers.index(sampler)) for sampler in dict.fromkeys(stage.samplers)}
    metrics = check_terms(model, stage, variables, first)
    zeros = {name: jnp.zeros(2) for name in metrics}

    # -- the state on all devices, continued from the newest checkpoint
    state = TrainState(
        step=jnp.int32(0),
        key=jax.random.key_data(jax.random.fold_in(run_key, index)),
        params=variables.params,
        state=variables.state,
        opt=tx.init(variables.params),
        ema=variables.params if stage.ema else None,
        sums=zeros,
    )
    state = replicate(state, run.replicated)
    seconds = 0.0
    if start:
        state, seconds = restore(checkpoints, start, state, run.record["threads"])
        run.say(f"stage {stage.name}: continues after step {start} of {stage.steps}")

    # -- compile: one executable for each sampler
    steps = {}
    for sampler, batch in first.items():
        train_step = make_step(model, stage, tx, is_trained, run.mesh, run.n_frames // run.mesh.size)
        began = time.perf_counter()
        steps[sampler] = train_step.lower(state, shard(batch, run.sharded, run.n_frames)).compile()
        took = time.perf_counter() - began
        run.on_event("compile", {"stage": stage.name, "sampler": sampler, "seconds": took})
        run.say(f"stage {stage.name}: compiled for sampler {sampler} in {took:.1f} s")
    run.say(memory_estimate(stage.name, state, steps))
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
            state = steps[sampler](state, shard(batch, run.sharded, run.n_frames))
            rays += run.n_frames * batch.pixels_px.shape[1]
            bar.update()
            is_last = done == stage.steps
            log_now = is_last or due(done, config.train.log_every)
            save_now = is_last or due(done, config.train.checkpoint_every)
            preview_now = config.train.preview_every > 0 and (is_last or due(done, config.train.preview_every))
            if not (log_now or save_now or preview_now):
                continue

            # -- every look at the numbers is a check; nothing bad is saved
            values = means(state.sums)
            check_finite(values, stage.name, checked + 1, done, checkpoints)
            checked = done
            if log_now:
                elapsed = time.perf_counter() - last_time
                row = {"stage": stage.name, "step": done, **values, "psnr": psnr(values["mse"])}
                row |= {"steps_per_s": (done - last_step) / elapsed, "rays_per_s": rays / elapsed}
                row |= {"seconds": seconds + time.perf_counter() - began}
                state = state.replace(sums=replicate(zeros, run.replicated))
                if run.chief:
                    write_row(rows, board, row)
                bar.set_postfix_str(
                    f"loss {row['loss']:.4g}, PSNR {row['psnr']:.2f} dB, {row['rays_per_s']:.3g} rays/s"
                )
                run.on_event("row", row)
                last_step, last_time, rays = done, time.perf_counter(), 0
            if save_now:
                items = {"params": state.params, "state": state.state, "ema": state.ema, "rest": rest_of(state)}
                meta = checkpoint_meta(run, stage, index, done, seconds + time.perf_counter() - began)
                checkpoints.save(done, items, meta)
                run.on_event("checkpoint", {"stage": stage.name, "step": done})
            if preview_now:
                paused = time.perf_counter()
                if run.chief:
                    path, value = preview(run, stage, local(Variables(state.params, state.state)), done)
                    board.add_scalar("preview_psnr", value, done)
                    run.on_event("preview", {"stage": stage.name, "step": done, "path": str(path), "psnr": value})
                checkpoint.meet("preview")
                last_time += time.perf_counter() - paused  # steps/s is that of training
    finally:
        batches.close()
        bar.close()
        checkpoints.close()
        if run.chief:
            rows.close()
            board.close()
    run.on_event(
        "finished", {"stage": stage.name, "step": stage.steps, "seconds": seconds + time.perf_counter() - began}
    )
    return Trained(state.params, state.state, state.ema)


# -- the computation ----------------------------------------------------------------------------


def make_frame_loss(model: Model, stage: Stage, is_trained: PyTree) -> Callable:
    """loss(params, state, clock, frame, key) -> (total, (terms, metrics)) of one frame.

    total = sum of weight(progress) * term. `frame` is a Batch without its leading axis.
    """

    def frame_loss(params, state, clock, frame, key):
        params = jax.tree.map(lambda p, keep: p if keep else jax.lax.stop_gradient(p), params, is_trained)
        variables = Variables(params, state)
        batch = jax.tree.map(lambda x: x[None], frame)
        render_key, loss_key = jax.random.split(key)
        render = model.render(variables, batch, render_key, clock, True)
        terms = model.loss_terms(variables, render, batch, loss_key, clock)
        total = jnp.float32(0)
        for name, weight in stage.weights.items():
            if name in terms and not (isinstance(weight, (int, float)) and weight == 0):
                total += (weight(clock.progress) if callable(weight) else weight) * terms[name]
        error = picture(render, batch.background) - batch.target
        metrics = {"loss": total, "mse": jnp.mean(error**2)}
        metrics |= {f"loss_{name}": term for name, term in terms.items()}
        metrics |= dict(render.aux.get("metrics", {}))
        return total, (terms, jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), metrics))

    return frame_loss


def make_step(model: Model, stage: Stage, tx, is_trained: PyTree, mesh: Mesh, n_local: int):
    """The jitted update (TrainState, Batch) -> TrainState; n_local frames on each device.

    In this order: refresh where it is due, loss and gradient frame by frame, one average over the devices,
    AdamW, moving average where it is due, sums of the metrics.
    """
    frame_loss = make_frame_loss(model, stage, is_trained)
    every = ema_every(stage.ema, stage.steps) if stage.ema else 0

    def local_step(s: TrainState, batch: Batch) -> TrainState:
        clock = Clock(step=s.step, progress=jnp.minimum(s.step.astype(jnp.float32) / stage.steps, 1.0))
        frames_key, refresh_key = jax.random.split(jax.random.fold_in(jax.random.wrap_key_data(s.key), s.step))
        state = s.state
        if stage.refresh_every:
            # every device refreshes from the global batch's first frame and the same key, so all stay equal
            def refresh(_):
                return model.refresh(Variables(s.params, state), first_frame(batch), refresh_key, clock).state

            state = jax.lax.cond(s.step % stage.refresh_every == 0, refresh, lambda _: state, None)

        def add_frame(total, slot_and_frame):
            slot, frame = slot_and_frame
            key = jax.random.fold_in(frames_key, slot)
            grads, (_, metrics) = jax.grad(frame_loss, has_aux=True)(s.params, state, clock, frame, key)
            return jax.tree.map(jnp.add, total, (grads, metrics)), None

        slots = jax.lax.axis_index(AXIS) * n_local + jnp.arange(n_local)
        one = jax.tree.map(lambda x: x[0], batch)
        shapes = jax.eval_shape(lambda: frame_loss(s.params, state, clock, one, frames_key)[1][1])
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (s.params, shapes))
        total, _ = jax.lax.scan(add_frame, zeros, (slots, batch))
        grads, metrics = jax.lax.pmean(jax.tree.map(lambda x: x / n_local, total), AXIS)

        metrics["grad_norm"] = optax.tree.norm(grads)
        updates, opt = tx.update(grads, s.opt, s.params)
        params = optax.apply_updates(s.params, updates)
        ema = s.ema
        if every:
            n = (s.step + 1) // every
            due_now = (s.step + 1) % every == 0
            ema = jax.lax.cond(due_now, lambda e: ema_update(e, params, ema_decay(stage.ema, n)), lambda e: e, ema)
        sums = {k: v + jnp.stack([metrics[k], 1.0]) if k in metrics else v for k, v in s.sums.items()}
        return TrainState(s.step + 1, s.key, params, state, opt, ema, sums)

    def train_step(state: TrainState, batch: Batch) -> TrainState:
        # check_vma off: custom kernels inside models carry no varying-axes types
        specs = (PartitionSpec(), PartitionSpec(AXIS))
        mapped = jax.shard_map(local_step, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=False)
        return mapped(state, batch)

    return jax.jit(train_step, donate_argnums=0)


def first_frame(batch: Batch) -> Batch:
    """The global batch's first frame (B = 1), on every device; inside shard_map."""

    def broadcast(x):
        mine = jnp.where(jax.lax.axis_index(AXIS) == 0, x[:1], jnp.zeros_like(x[:1]))
        wide = mine.astype(jnp.int32) if mine.dtype in (jnp.bool_, jnp.uint8) else mine
        return jax.lax.psum(wide, AXIS).astype(x.dtype)

    return jax.tree.map(broadcast, batch)


def check_terms(model: Model, stage: Stage, variables: Variables, first: Mapping[str, Batch]) -> list[str]:
    """Names of the metrics of a stage, after its loss terms were held against its weights.

    Raises:
      UserError: a term without a weight, a weight without a term, or a term that is not a scalar.
    """
    everything = jax.tree.map(lambda _: True, variables.params)
    frame_loss = make_frame_loss(model, stage, everything)
    clock = Clock(jnp.int32(0), jnp.float32(0))
    seen, metrics = {}, {"grad_norm"}
    for batch in first.values():
        frame = jax.tree.map(lambda x: x[0], batch)
        _, (terms, values) = jax.eval_shape(
            frame_loss, variables.params, variables.state, clock, frame, jax.random.key(0)
        )
        seen |= {name: term.shape for name, term in terms.items()}
        metrics |= set(values)
    for name, shape in seen.items():
        if name not in stage.weights:
            raise UserError(
                f"stage {stage.name!r}: loss term {name!r} has no weight; add it to the stage's weights, 0 if unused"
            )
        if shape != ():
            raise UserError(f"stage {stage.name!r}: loss term {name!r} has shape {shape}, a term is a scalar")
    for name in stage.weights:
        if name not in seen:
            raise UserError(
                f"stage {stage.name!r} weighs term {name!r}, which the model does not return; "
                f"it returns {', '.join(sorted(seen))}"
            )
    return sorted(metrics)


def connect(mesh: Mesh) -> None:
    """Open the connections between all devices while all processes are here: later waits have no short limit."""
    checkpoint.meet("start")
    count = jax.shard_map(lambda: jax.lax.psum(jnp.int32(1), AXIS), mesh=mesh, in_specs=(), out_specs=PartitionSpec())
    jax.block_until_ready(jax.jit(count)())


# -- batches ------------------------------------------------------------------------------------


def global_frames(frames: int, n_devices: int) -> int:
    """Frames in the global batch: `train.frames`, or one per device where that is 0.

    Raises:
      UserError: the devices cannot share them equally.
    """
    frames = frames or n_devices
    if frames < 0 or frames % n_devices:
        near = max(1, round(frames / n_devices)) * n_devices
        raise UserError(f"train.frames={frames} is not a multiple of the {n_devices} devices; use {near}")
    return frames


def frames_of_step(train_frames: np.ndarray, seed: int, index: int, step: int, n_frames: int) -> np.ndarray:
    """The frames [n_frames] of the global batch of one step.

    Slot k of step s is entry s * n_frames + k of the sequence of epochs, each a permutation of the training
    frames by (seed, stage index, epoch).
    """
    positions = step * n_frames + np.arange(n_frames)
    epochs, places = np.divmod(positions, len(train_frames))
    orders = {epoch: epoch_order(len(train_frames), seed, index, int(epoch)) for epoch in set(epochs.tolist())}
    return train_frames[[orders[e][p] for e, p in zip(epochs.tolist(), places.tolist(), strict=True)]]


@functools.lru_cache(maxsize=8)
def epoch_order(n: int, seed: int, index: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, index, epoch, 0]).permutation(n)


def sampler_of(stage: Stage, step: int) -> str:
    return stage.samplers[step % len(stage.samplers)]


def make_loader(run: Run, stage: Stage, index: int) -> Callable[[int], Batch]:
    """load(step) -> this process's part of the global batch."""
    seed, train_frames = run.config.seed, run.train_frames
    owned = run.sharded.addressable_devices_indices_map((run.n_frames,)).values()
    slots = sorted(k for (piece,) in owned for k in range(run.n_frames)[piece])

    def load_batch(step: int) -> Batch:
        frames = frames_of_step(train_frames, seed, index, step, run.n_frames)[slots]
        keys = [np.random.default_rng([seed, index, step, slot, 1]) for slot in slots]
        return run.clip.batch(frames, keys, sampler_of(stage, step), stage.rays, stage.patch, stage.background)

    return load_batch


def prefetch(make: Callable[[int], Batch], steps: Sequence[int]) -> Iterator[Batch]:
    """make(step) for each step in order, up to PREFETCH of them ahead in one background thread."""
    with concurrent.futures.ThreadPoolExecutor(1, "batches") as pool:
        pending = collections.deque()
        for step in steps:
            pending.append(pool.submit(make, step))
            if len(pending) > PREFETCH:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def shard(batch: Batch, sharding: NamedSharding, n_frames: int) -> Batch:
    """Local frames of every process -> one global array on the devices. What a lone process already holds on a
    device does not pass through the host."""

    def place(x):
        if isinstance(x, jax.Array) and jax.process_count() == 1:
            return jax.device_put(x, sharding)
        return jax.make_array_from_process_local_data(sharding, np.asarray(x), (n_frames, *x.shape[1:]))

    return jax.tree.map(place, batch)


def replicate(tree: PyTree, sharding: NamedSharding) -> PyTree:
    """Host values, equal in all processes, on every device; in buffers of their own, since they get donated."""
    return jax.tree.map(lambda x: jnp.copy(jax.make_array_from_process_local_data(sharding, np.asarray(x))), tree)


def local(tree: PyTree) -> PyTree:
    """This process's first copy of replicated arrays."""
    return jax.tree.map(lambda x: x.addressable_data(0), tree)


# -- start, save, resume ------------------------------------------------------------------------


def run_record(config: Any, clip: Any, n_frames: int) -> dict[str, Any]:
    """What run.json says: the config and data that a restart must match, and facts about this start."""
    resolved = checkpoint.as_json(config.to_dict())
    resolved["train"]["frames"] = n_frames
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {
        "config": resolved,
        "data": checkpoint.as_json(
            {"digest": clip.digest, "info": clip.info.to_json(), "train_range": list(map(int, clip.train_range))}
        ),
        "threads": checkpoint.n_threads(),
        "devices": [d.device_kind for d in jax.devices()],
        "versions": {name: version(name) for name in packages} | {"python": platform.python_version()},
    }


def stands_at(workdir: Path, stage: str) -> int:
    """Step of the stage's newest checkpoint, 0 without one; what the first process sees counts for all."""
    return int(multihost_utils.broadcast_one_to_all(np.int32(checkpoint.latest_step(workdir, stage) or 0)))


def start_from(before: Trained, model: Model, stage: Stage) -> Variables:
    """Variables at the start of a stage: trained groups go on from the raw parameters of the stage before,
    frozen ones stay at what that stage produced, its moving average."""
    ema = before.params if before.ema is None else before.ema
    labels = model.labels(before.params)
    params = jax.tree.map(lambda raw, avg, group: raw if group in stage.rates else avg, before.params, ema, labels)
    return local(Variables(params, before.state))


def rest_of(state: TrainState) -> dict[str, PyTree]:
    return {"step": state.step, "key": state.key, "opt": state.opt, "sums": state.sums}


def restore(checkpoints: Checkpoints, step: int, like: TrainState, threads: int) -> tuple[TrainState, float]:
    """The state of a checkpoint, and the seconds of training that led to it."""
    meta = checkpoints.meta(step)
    items = {"params": like.params, "state": like.state, "ema": like.ema, "rest": rest_of(like)}
    got = jax.tree.map(jnp.copy, checkpoints.restore(step, items))
    if meta["threads"] != threads:
        logging.warning(
            "%s was written with %d threads and goes on with %d; the last bits of the results may differ",
            checkpoints.path / str(step), meta["threads"], threads,
        )  # fmt: skip
    state = TrainState(params=got["params"], state=got["state"], ema=got["ema"], **got["rest"])
    return state, meta["seconds"]


def checkpoint_meta(run: Run, stage: Stage, index: int, step: int, seconds: float) -> dict[str, Any]:
    """Facts beside the arrays of a checkpoint."""
    epoch, place = divmod(step * run.n_frames, len(run.train_frames))
    data_position = {"seed": run.config.seed, "stage_index": index, "epoch": epoch, "place": place}
    return {"stage": stage.name, "step": step, "seconds": seconds, "data_position": data_position} | dict(run.record)


def use_compilation_cache() -> None:
    """Keep compiled programs between runs, unless the user set a place (JAX_COMPILATION_CACHE_DIR) or none."""
    if jax.config.jax_compilation_cache_dir is None and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tkjax" / "jax"
        jax.config.update("jax_compilation_cache_dir", str(cache))


# -- numbers and pictures -----------------------------------------------------------------------


def due(done: int, every: int) -> bool:
    return every > 0 and done % every == 0


def means(sums: Mapping[str, Float[Array, "2"]]) -> dict[str, float]:
    """Mean of each metric that occurred; waits for the device."""
    host = jax.device_get(dict(sums))
    return {name: float(total / count) for name, (total, count) in sorted(host.items()) if count}


def psnr(mse: float) -> float:
    return -10 * math.log10(max(mse, MSE_FLOOR))


def check_finite(values: Mapping[str, float], stage: str, first: int, last: int, checkpoints: Checkpoints) -> None:
    """Stop before anything that is not finite reaches a checkpoint.

    Raises:
      UserError: names the terms, the interval of steps and the last good checkpoint.
    """
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    if bad:
        checkpoints.wait()
        good = checkpoint.latest_step(checkpoints.path.parents[1], stage)
        kept = f"the checkpoint of step {good} is kept" if good else "no checkpoint was written before"
        raise UserError(
            f"stage {stage!r}: {', '.join(bad)} became non-finite between steps {first} and {last}; "
            f"{kept}; lower the learning rates or look at the data of these steps, in a new workdir"
        )


def open_board(folder: Path, start: int):
    """A tensorboardX writer; what the folder holds after step `start` is superseded.

    tensorboardX imports torch where that is installed. Here it is told that it is not: jax and torch never
    meet in one process.
    """
    hide = "torch" not in sys.modules
    if hide:
        sys.modules["torch"] = None
    try:
        from tensorboardX import SummaryWriter
    finally:
        if hide:
            del sys.modules["torch"]
    return SummaryWriter(str(folder), purge_step=start + 1)


def write_row(rows: io.TextIOBase, board, row: Mapping[str, Any]) -> None:
    """One row to metrics.jsonl and TensorBoard."""
    rows.write(json.dumps(row) + "\n")
    rows.flush()
    for name, value in row.items():
        if name not in ("stage", "step"):
            board.add_scalar(name, value, row["step"])


def n_bytes(tree: PyTree) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def memory_estimate(name: str, state: TrainState, steps: Mapping[str, Any]) -> str:
    """One line: what a stage holds on each device and what its largest step adds."""
    work = 0
    for compiled in steps.values():
        analysis = compiled.memory_analysis()
        if analysis is not None:
            outputs = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
            batch = analysis.argument_size_in_bytes - n_bytes(state)
            work = max(work, analysis.temp_size_in_bytes + max(0, outputs) + max(0, batch))
    kept = n_bytes((state.params, state.state))
    rest = n_bytes((state.opt, state.ema))
    total = kept + rest + work
    parts = f"variables {kept / 1e6:.1f}, optimiser and average {rest / 1e6:.1f}, step {work / 1e6:.1f}"
    return f"stage {name}: about {total / 1e6:.0f} MB on each device ({parts})"


def preview(run: Run, stage: Stage, variables: Variables, step: int) -> tuple[Path, float]:
    """Draw the middle training frame beside its ground truth (left) into W/previews; (path, PSNR in dB)."""
    frame = int(run.train_frames[len(run.train_frames) // 2])
    batch = run.clip.frame_batch(frame, stage.background)
    clock = Clock(jnp.int32(step), jnp.float32(step / stage.steps))
    image = render_image(run.model, variables, batch, batch.image_hw, clock, run.config.eval.chunk_rays)
    truth = np.asarray(batch.target).reshape(*batch.image_hw, 3)
    rgb = np.asarray(picture(image, jnp.asarray(batch.background).reshape(truth.shape)))
    both = np.round(255 * np.concatenate([truth, rgb], axis=1)).astype(np.uint8)
    path = run.workdir / "previews" / f"{stage.name}-{step:07d}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    Image.fromarray(both).save(temporary, "JPEG", quality=92)
    os.replace(temporary, path)
    return path, psnr(float(np.mean((rgb - truth) ** 2)))
