"""Which frames a step sees, in which order, and how they are loaded ahead."""

import collections
import concurrent.futures
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Int

from tkjax.errors import UserError
from tkjax.models.base import Stage
from tkjax.types import Batch

PREFETCH = 2  # batches loaded ahead


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


def frames_of_step(
    train_frames: Int[np.ndarray, " n"], seed: int, index: int, step: int, n_frames: int
) -> Int[np.ndarray, " n_frames"]:
    """The frames [n_frames] of the global batch of one step.

    Slot k of step s is entry s * n_frames + k of the sequence of epochs, each a permutation of the training
    frames by (seed, stage index, epoch).
    """
    positions = step * n_frames + np.arange(n_frames)
    epochs, places = np.divmod(positions, len(train_frames))
    orders = {epoch: epoch_order(len(train_frames), seed, index, int(epoch)) for epoch in set(epochs.tolist())}
    return train_frames[[orders[e][p] for e, p in zip(epochs.tolist(), places.tolist(), strict=True)]]


@functools.lru_cache(maxsize=8)
def epoch_order(n: int, seed: int, index: int, epoch: int) -> Int[np.ndarray, " n"]:
    return np.random.default_rng([seed, index, epoch, 0]).permutation(n)


def sampler_of(stage: Stage, step: int) -> str:
    return stage.samplers[step % len(stage.samplers)]


def make_loader(
    clip: Any,
    train_frames: Int[np.ndarray, " n"],
    stage: Stage,
    seed: int,
    index: int,
    n_frames: int,
    sharding: NamedSharding,
) -> Callable[[int], Batch]:
    """load(step) -> this process's part of the global batch of n_frames of stage number `index`."""
    owned = sharding.addressable_devices_indices_map((n_frames,)).values()
    slots = sorted(k for (piece,) in owned for k in range(n_frames)[piece])

    def load_batch(step: int) -> Batch:
        frames = frames_of_step(train_frames, seed, index, step, n_frames)[slots]
        keys = [np.random.default_rng([seed, index, step, slot, 1]) for slot in slots]
        sampler = sampler_of(stage, step)
        return clip.batch(frames, keys, sampler, stage.rays, stage.patch, stage.background, stage.target)

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
