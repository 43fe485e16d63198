"""Which frames train and which are held out, and how the held-out ones may lie (numpy only).

`last`: as the dataset says, the end of the clip. `blocks`: as many, in blocks of about two seconds that are spread over
the clip; one block, in the middle, where there are few. For clips whose end says nothing (a mouth that rests).
"""

import numpy as np
from jaxtyping import Int

from tkjax.errors import UserError

SPLITS = ("last", "blocks")
BLOCK_FRAMES = 50  # two seconds: several words and about half a blink, and a pose that the training frames do not have


def blocks(first: int, n: int, n_heldout: int) -> tuple[Int[np.ndarray, " t"], Int[np.ndarray, " h"]]:
    """(training frames, held-out frames) of the n frames from `first` on, both ascending: n_heldout of them in blocks
    of nearly equal length, each in the middle of its share of the clip."""
    k = max(1, round(n_heldout / BLOCK_FRAMES))
    sizes = np.diff(np.linspace(0, n_heldout, k + 1).round().astype(int))
    starts = [round((j + 0.5) * n / k - size / 2) for j, size in enumerate(sizes)]
    held = first + np.concatenate([a + np.arange(size) for a, size in zip(starts, sizes)])
    return np.setdiff1d(first + np.arange(n), held), held


def frames(
    split: str, train_range: tuple[int, int], heldout_range: tuple[int, int]
) -> tuple[Int[np.ndarray, " t"], Int[np.ndarray, " h"]]:
    """(training frames, held-out frames) of a dataset with these ranges."""
    if split not in SPLITS:
        raise UserError(f"--split is {split!r}, expected one of {', '.join(SPLITS)}")
    train, held = np.arange(*train_range), np.arange(*heldout_range)
    if split == "last" or not len(held):
        return train, held
    return blocks(min(int(train[0]), int(held[0])), len(train) + len(held), len(held))


def runs(frames: Int[np.ndarray, " n"]) -> list[list[int]]:
    """[first, behind the last] of each run of frames that follow one another."""
    if not len(frames):
        return []
    cut = np.flatnonzero(np.diff(frames) != 1) + 1
    return [[int(part[0]), int(part[-1]) + 1] for part in np.split(frames, cut)]
