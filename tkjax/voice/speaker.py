"""Sound in, coefficients out: whole clips and streams, with the same numbers however the sound is cut into blocks.

The network hears log-mel features at the reference level (`media.audio`), shifted by AHEAD samples: for frame i, at
i / 25 s, it hears nothing that sounds later than i / 25 + 0.04 s. A frame is computed as soon as that is there, one
at a time by one compiled program, so that blocks change no bit.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tkjax.media import audio
from tkjax.types import PyTree
from tkjax.voice import network
from tkjax.voice.network import Constants

HOP = audio.LOGMEL["hop"]  # steps a frame
AHEAD = 40  # samples of silence before the sound: step hop·i + hop - 1 then ends at 640 (i + 1), 40 ms after the frame


@dataclasses.dataclass(frozen=True, eq=False)
class Voice:
    """A trained network. columns: which of the signal's channels it gives, in order; width: its channels within."""

    params: PyTree
    constants: Constants
    columns: tuple[int, ...]
    width: int

    @functools.cached_property
    def on_device(self) -> tuple[PyTree, Constants]:
        return jax.device_put((self.params, self.constants))

    def tree(self) -> PyTree:
        """Its numbers, for files."""
        return {"params": self.params, "constants": self.constants._asdict()}

    def facts(self) -> dict[str, Any]:
        """What must be known beside the numbers."""
        return {"columns": list(self.columns), "width": self.width, "extractor": audio.LEVELLED}

    @classmethod
    def of_tree(cls, tree: Mapping[str, Any], columns: tuple[int, ...], width: int) -> "Voice":
        numbers = jax.tree.map(np.asarray, dict(tree))
        return cls(numbers["params"], Constants(**numbers["constants"]), columns, width)


def shapes(channels: int, width: int) -> PyTree:
    """What `Voice.tree` looks like for so many coefficients: shapes alone."""

    def tree() -> PyTree:
        params = network.init(jax.random.key(0), audio.BANDS, width, channels)
        sizes = [audio.BANDS] * 2 + [channels] * 4
        return {"params": params, "constants": Constants(*map(jnp.zeros, sizes))._asdict()}

    return jax.eval_shape(tree)


# ---------------------------------------------------------------- streams


class Carry(NamedTuple):
    """State between blocks. past: of the network; gate [a]: which of the last steps were speech; rows [m, F]: steps
    that do not make a frame yet, m < hop."""

    past: network.Past
    gate: Float[np.ndarray, " a"]
    rows: Float[np.ndarray, "m F"]


def start(voice: Voice) -> Carry:
    nothing = np.zeros((0, audio.BANDS), np.float32)
    return Carry(network.start(voice.width), np.zeros(network.MEMORY, np.float32), nothing)


@jax.jit
def _frame(params: PyTree, constants: Constants, past: network.Past, steps: Float[Array, "h F"], opened: Array):
    past, y = network.apply(params, constants, past, steps[None], opened[None, None], HOP)
    return past, jnp.clip(y[0, 0], constants.low, constants.high)


def advance(voice: Voice, carry: Carry, rows: Float[np.ndarray, "k F"]) -> tuple[Carry, Float[np.ndarray, "n K"]]:
    """Take any number of log-mel steps; the coefficients of the frames that they complete, and what is left over."""
    gate, opened = network.gate(carry.gate, rows)
    opened = np.concatenate([np.zeros(len(carry.rows), np.float32), opened])  # a frame's own is that of its last step
    rows = np.concatenate([carry.rows, rows.astype(np.float32)])
    n, past, out = len(rows) // HOP, carry.past, []
    params, constants = voice.on_device
    for i in range(HOP, HOP * n + 1, HOP):
        past, y = _frame(params, constants, past, rows[i - HOP : i], opened[i - 1])
        out.append(y)
    out = np.stack(jax.device_get(out)) if out else np.zeros((0, len(voice.columns)), np.float32)
    return Carry(past, gate, rows[HOP * n :].copy()), out


class Stream:
    """Sound as it comes: what `push` gives, joined, does not depend on how the sound was cut. What is still held back
    at its end comes with silence: push zeros."""

    def __init__(self, voice: Voice):
        self._voice, self._mel, self._carry = voice, audio.LogMel(), start(voice)
        self._mel.push(np.zeros(AHEAD))

    def push(self, pcm: Float[np.ndarray, " s"]) -> Float[np.ndarray, "n K"]:
        """Take samples (any number) at 16 kHz; the coefficients of the frames that can now be told."""
        self._carry, out = advance(self._voice, self._carry, self._mel.push(pcm))
        return out


# ---------------------------------------------------------------- whole clips


def sound_steps(pcm: Float[np.ndarray, " S"], n_frames: int) -> Float[np.ndarray, "s F"]:
    """The log-mel steps that so many frames hear, hop for each; silence follows the sound's end."""
    mel = audio.LogMel()
    rows = np.concatenate([mel.push(np.zeros(AHEAD)), mel.push(pcm), mel.flush()])[: HOP * n_frames]
    return np.concatenate([rows, np.zeros((HOP * n_frames - len(rows), audio.BANDS), np.float32)])


def spoken(voice: Voice, blocks: Iterable[Float[np.ndarray, " s"]], n_frames: int) -> Float[np.ndarray, "n K"]:
    """The coefficients [n_frames, K] of `voice.columns` for blocks of sound at 16 kHz, silence behind its end."""
    stream, parts, have = Stream(voice), [], 0
    for block in itertools.chain(blocks, itertools.repeat(np.zeros(audio.RATE, np.float32))):
        if have >= n_frames:
            break
        parts.append(stream.push(block))
        have += len(parts[-1])
    return np.concatenate([np.zeros((0, len(voice.columns)), np.float32), *parts])[:n_frames]
