"""Which frames a step sees, in which order, and how they are loaded ahead."""

import collections
import concurrent.futures
import functools
import zlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Bool, Int

from tkjax.data.clip import Clip
from tkjax.errors import UserError
from tkjax.interface import Stage
from tkjax.signals import Use
from tkjax.types import Batch

PREFETCH = 2  # batches loaded ahead
MOST_REPEATS = 8  # of one frame in an epoch: a single blink must not be learnt by heart


def global_frames(frames: int, n_devices: int) -> int:
    """Frames in the global batch: `frames`, or one per device where that is 0.

    Raises:
      UserError: the devices cannot share them equally.
    """
    frames = frames or n_devices
    if frames < 0 or frames % n_devices:
        near = max(1, round(frames / n_devices)) * n_devices
        raise UserError(f"train.frames={frames} is not a multiple of the {n_devices} devices; use {near}")
    return frames


def name_number(name: str) -> int:
    """A number for a name (CRC-32), the same everywhere: what random numbers of a stage hang on, never its place."""
    return zlib.crc32(name.encode())


def frames_of_step(
    train_frames: Int[np.ndarray, " n"], seed: int, stage: str, step: int, n_frames: int
) -> Int[np.ndarray, " n_frames"]:
    """The frames [n_frames] of the global batch of one step.

    Slot k of step s is entry s * n_frames + k of the sequence of epochs, each a permutation of the training
    frames by (seed, name of the stage, epoch).
    """
    positions = step * n_frames + np.arange(n_frames)
    epochs, places = np.divmod(positions, len(train_frames))
    orders = {epoch: epoch_order(len(train_frames), seed, stage, int(epoch)) for epoch in set(epochs.tolist())}
    return train_frames[[orders[e][p] for e, p in zip(epochs.tolist(), places.tolist(), strict=True)]]


def repeated(frames: Int[np.ndarray, " n"], is_rare: Bool[np.ndarray, " N"], share: float) -> Int[np.ndarray, " m"]:
    """The frames, which may repeat already, with those that are rare repeated until they are `share` of all, at most
    MOST_REPEATS times."""
    picked = np.asarray(is_rare)[frames]
    n, rare = len(frames), int(picked.sum())
    if not rare or share <= rare / n:
        return frames
    times = min(MOST_REPEATS, round(share * (n - rare) / ((1.0 - share) * rare)))
    return np.sort(np.concatenate([frames, np.repeat(frames[picked], max(times - 1, 0))]))


def shown_more(frames: Int[np.ndarray, " n"], clip: Clip, share: float) -> Int[np.ndarray, " m"]:
    """The frames with blinks (0.2 s of 4 s) and wide open mouths repeated, so that each kind is at least `share`.

    Closed is from half closed on; wide an inner gap of the lips 1.5 standard deviations above the mean.
    """
    if not share:
        return frames
    for rare in (np.asarray(clip.eye_closed) >= 0.5, np.asarray(clip.truth["lip_shape"])[:, 0] >= 1.5):
        frames = repeated(frames, rare, share)
    return frames


@functools.lru_cache(maxsize=8)
def epoch_order(n: int, seed: int, stage: str, epoch: int) -> Int[np.ndarray, " n"]:
    return np.random.default_rng([seed, name_number(stage), epoch, 0]).permutation(n)


def sampler_of(stage: Stage, step: int) -> str:
    return stage.samplers[step % len(stage.samplers)]


def make_loader(
    clip: Clip,
    train_frames: Int[np.ndarray, " n"],
    stage: Stage,
    seed: int,
    n_frames: int,
    sharding: NamedSharding,
    driven_by: Sequence[Use] = (),
) -> Callable[[int], Batch]:
    """load(step) -> this process's part of the stage's global batch of n_frames. driven_by: `Model.signals`."""
    owned = sharding.addressable_devices_indices_map((n_frames,)).values()
    slots = sorted(k for (piece,) in owned for k in range(n_frames)[piece])

    def load_batch(step: int) -> Batch:
        frames = frames_of_step(train_frames, seed, stage.name, step, n_frames)[slots]
        keys = [np.random.default_rng([seed, name_number(stage.name), step, slot, 1]) for slot in slots]
        sampler = sampler_of(stage, step)
        pixels = (sampler, stage.rays, stage.patch)
        asked = {"driven_by": driven_by, "masks": stage.masks, "truth": stage.truth}
        return clip.batch(frames, keys, *pixels, stage.background, stage.target, **asked)

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
