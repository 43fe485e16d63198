"""What a run shows of itself: rows of numbers, their check, memory, preview pictures."""

import io
import json
import math
import sys
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from PIL import Image

from tkjax.errors import UserError
from tkjax.host import files
from tkjax.interface import Model, Stage
from tkjax.render.image import picture, render_image
from tkjax.train import checkpoint
from tkjax.train.checkpoint import Checkpoints
from tkjax.types import Array, Batch, Clock, PyTree, Variables

MSE_FLOOR = 1e-10  # PSNR is reported up to 100 dB


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


class _WithoutTorch:
    """A finder that says to one thread, while it is in `sys.meta_path`, that torch is not installed."""

    def __init__(self):
        self.thread = threading.get_ident()

    def find_spec(self, name: str, path=None, target=None):
        if name.split(".")[0] == "torch" and threading.get_ident() == self.thread:
            raise ModuleNotFoundError(f"{name} stays out of processes with jax", name=name)


def open_board(folder: Path, start: int):
    """A tensorboardX writer; what the folder holds after step `start` is superseded.

    tensorboardX imports torch where that is installed. Here it is told that it is not: jax and torch never
    meet in one process. Other threads import what they like meanwhile.
    """
    finder = _WithoutTorch()
    sys.meta_path.insert(0, finder)
    try:
        from tensorboardX import SummaryWriter
    finally:
        sys.meta_path.remove(finder)
    return SummaryWriter(str(folder), purge_step=start + 1)


def write_row(rows: io.TextIOBase, board, row: Mapping[str, Any]) -> None:
    """One row to metrics.jsonl and TensorBoard."""
    rows.write(json.dumps(row) + "\n")
    rows.flush()
    for name, value in row.items():
        if name not in ("stage", "step"):
            board.add_scalar(name, value, row["step"])


def memory_estimate(name: str, state: Any, steps: Iterable[Any]) -> str:
    """One line: what a stage holds on each device and what its largest step adds.

    state: a TrainState; steps: the compiled steps of the stage's samplers.
    """
    work = 0
    for compiled in steps:
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


def n_bytes(tree: PyTree) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def preview(
    folder: Path, model: Model, variables: Variables, stage: Stage, step: int, batch: Batch, chunk_rays: int
) -> tuple[Path, float]:
    """Draw a whole frame beside its ground truth (left) into `folder`; (path, PSNR in dB)."""
    clock = Clock(jnp.int32(step), jnp.float32(step / stage.steps), stage.name)
    image = render_image(model, variables, batch, batch.image_hw, clock, chunk_rays)
    truth = np.asarray(batch.target).reshape(*batch.image_hw, 3)
    rgb = np.asarray(picture(image, jnp.asarray(batch.background).reshape(truth.shape)))
    both = np.round(255 * np.concatenate([truth, rgb], axis=1)).astype(np.uint8)
    path = folder / f"{stage.name}-{step:07d}.jpg"
    with files.whole(path) as part:
        Image.fromarray(both).save(part, "JPEG", quality=92)
    return path, psnr(float(np.mean((rgb - truth) ** 2)))
