"""The network from sound to coefficients: a causal temporal convolution with a silence gate, and its carry.

Sound comes as log-mel steps s_k, `hop` of them to a video frame. Of frame i nothing later is heard than step
hop·i + hop - 1 of the sequence that it is given, so how far it looks ahead is how far that sequence is shifted.

  x = W_in n(s),  n(s) = (s - mean) / spread                                       [80] -> [C]
  x <- x + W'_j gelu(W_j [h(t-2d), h(t-d), h(t)] + b_j) + b'_j,  h = LN(x)         for each dilation d = DILATIONS[j]
  y = rest + g · scale · (W_out LN(x) + b_out)                                     [C] -> [K], at a frame's last step

The gate g is 1 while speech was heard within the last HOLD_STEPS, falls to 0 over RELEASE_STEPS after that, and is 0 in
silence: there the mouth rests, to the bit. A step is speech where its power between 200 and 4000 Hz lies within 30 dB
of the level of speech, which is at a reference in log-mel steps (`media.level`).

LN takes mean and variance over the channels of one step, so that what is computed depends on nothing but the steps up
to it: the last steps of each layer are all that has to be carried.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tkjax.media import audio, level
from tkjax.types import PyTree

DILATIONS = (1, 2, 4, 8, 16, 1)  # 64 steps of context: 1.3 s
TAPS = 3
HOLD_STEPS, RELEASE_STEPS = 10, 10  # 0.2 s each: stops are silent for up to 0.15 s within a word
MEMORY = HOLD_STEPS + RELEASE_STEPS


class Constants(NamedTuple):
    """What is measured on the clip and not trained. mean, spread [F] of the sound's bands; rest, scale (a deviation),
    low and high (the range) [K] of the coefficients."""

    mean: Float[Array, " F"]
    spread: Float[Array, " F"]
    rest: Float[Array, " K"]
    scale: Float[Array, " K"]
    low: Float[Array, " K"]
    high: Float[Array, " K"]


Past = tuple[Float[Array, "B _ C"], ...]  # what a block leaves to the next: each layer's last 2d normalised steps


def init(key: jax.Array, bands: int, width: int, channels: int) -> PyTree:
    """Fresh parameters: `bands` features in, `width` channels within, `channels` coefficients out. Those of the layers
    are stacked."""
    keys = jax.random.split(key, 3)

    def dense(key: jax.Array, gain: float, *shape: int) -> PyTree:
        w = gain / shape[-2] ** 0.5 * jax.random.normal(key, shape)
        return {"w": w, "b": jnp.zeros((*shape[:-2], shape[-1]))}

    n = len(DILATIONS)
    hear, add = dense(keys[1], 1.4, n, TAPS * width, width), dense(keys[2], 0.3, n, width, width)
    return {"in": dense(keys[0], 1.0, bands, width), "hear": hear, "add": add, "out": {
        "w": jnp.zeros((width, channels)), "b": jnp.zeros(channels)}}  # fmt: skip


def start(width: int, batch: int = 1) -> Past:
    """What is carried before the first step: nothing was heard."""
    return tuple(jnp.zeros((batch, (TAPS - 1) * d, width)) for d in DILATIONS)


def _normalised(x: Float[Array, "B T C"]) -> Float[Array, "B T C"]:
    x = x - x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-5)


def _dense(p: PyTree, x: Float[Array, "... n"]) -> Float[Array, "... m"]:
    return x @ p["w"] + p["b"]


def gate(
    before: Float[np.ndarray, " a"], steps: Float[np.ndarray, "T F"]
) -> tuple[Float[np.ndarray, " a"], Float[np.ndarray, " T"]]:
    """(what is carried, g of each log-mel step) with what was carried, which is MEMORY zeros before the first step:
    1 for each of the last steps that was speech."""
    active = (audio.power_of(steps) > level.WITHIN * level.REFERENCE).astype(np.float32)
    seen = np.concatenate([before, active])
    share = np.clip(np.arange(MEMORY, 0, -1, dtype=np.float32) / RELEASE_STEPS, 0, 1)  # by the age of the speech
    ages = [share[age] * seen[MEMORY - age : MEMORY - age + len(steps)] for age in range(MEMORY)]
    return seen[len(steps) :], np.max(ages, 0)


def apply(
    params: PyTree,
    constants: Constants,
    past: Past,
    steps: Float[Array, "B T F"],
    opened: Float[Array, "B n"],
    hop: int,
    key: jax.Array | None = None,
    dropout: float = 0.0,
) -> tuple[Past, Float[Array, "B n K"]]:
    """(what is carried, coefficients of the n = T / hop frames) of a block of steps that follows those that `past` has
    heard. opened: the gate at the last step of each frame. key: of dropout (of channels, in a whole row of the batch);
    None drops nothing."""
    x = _dense(params["in"], (steps - constants.mean) / constants.spread)
    kept = []
    for j, d in enumerate(DILATIONS):
        hear, add = (jax.tree.map(lambda v, j=j: v[j], params[name]) for name in ("hear", "add"))
        h = jnp.concatenate([past[j], _normalised(x)], 1)
        kept.append(h[:, steps.shape[1] :])
        taps = jnp.concatenate([h[:, d * t : d * t + steps.shape[1]] for t in range(TAPS)], -1)
        h = jax.nn.gelu(_dense(hear, taps))
        if key is not None:
            stays = jax.random.bernoulli(jax.random.fold_in(key, j), 1 - dropout, (len(h), 1, h.shape[2]))
            h = jnp.where(stays, h / (1 - dropout), 0.0)
        x = x + _dense(add, h)
    out = _dense(params["out"], _normalised(x[:, hop - 1 :: hop]))
    return tuple(kept), constants.rest + opened[..., None] * constants.scale * out
