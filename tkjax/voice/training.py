"""Training of the speech network on one clip: crops of it, disturbed, and the terms of its loss.

With the true coefficients y and those of the network p, both over `Constants.scale`, o the opening of the lips (see
`channels.opening`) over its deviation, and means over the frames that are compared:

  loss = huber(p - y) + VELOCITY · |Δp - Δy|² + OPENING · |o(p) - o(y)|² + CLOSURE · max(o(p) - o(y), 0)² where the true
         lips are shut + FOLLOW · (1 - ccc(o)) + FOLLOW · (1 - ccc(p, y)),  Δ the difference of neighbouring frames

ccc is Lin's concordance over all frames of a batch. A squared error alone is least for the mean of what the sound
leaves open, which mumbles; the concordance is highest where the deviation is that of the truth.

Everything is a function of the clip, the settings and the seed.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float

from tkjax.media import audio, level
from tkjax.types import PyTree
from tkjax.voice import channels, network
from tkjax.voice.network import Constants
from tkjax.voice.speaker import HOP, Voice, sound_steps

VELOCITY, OPENING, CLOSURE, FOLLOW = 1.0, 1.0, 4.0, 1.0
SHUT = 0.15  # share of the opening's range (1st to 99th percentile) below which the lips are shut
CROP, WARM, BATCH = 64, 24, 8  # frames of a crop that are compared; before them, heard alone; crops in a step
DECAY, DROPOUT, WARM_UP = 0.02, 0.1, 20  # of the weights; share of a layer's channels; steps of a rising rate
CLIP_NORM = 1.0  # of the gradient
QUIET_SCALE = 0.1  # least deviation that a channel is measured in, of the largest one: what never moves stays still
LEAST_FRAMES = 75  # learned from: 3 s
NOISE_DB = -70.0, -25.0  # added noise, over the level of speech
EMPTY, LOUDER_DB = 0.1, 20.0  # share of the crops that are noise alone, with the mouth at rest; how much louder that is
COLOUR, EQUALISER = 1.0, 0.5  # deviation of four cosines over the bands: spectrum of the noise, of the sound; nepers
SHIFT = 2.0  # bands by which a spectrum moves at most: other voices
COSINES = 4

Progress = Callable[[int, float], None]  # (steps done, loss)


class Clip(NamedTuple):
    """A clip with silence before it, or crops of it. steps [n·hop, F] of sound, opened [n]: the gate, target [n, K],
    weight [n]: 1 where a frame is learned from, else 0."""

    steps: Float[Array, "s F"]
    opened: Float[Array, " n"]
    target: Float[Array, "n K"]
    weight: Float[Array, " n"]


class Lips(NamedTuple):
    """What the opening of the lips is: weights [K] of the channels, its deviation, and where it counts as shut."""

    weights: Float[Array, " K"]
    spread: Float[Array, ""]
    shut: Float[Array, ""]


def measured(
    steps: Float[np.ndarray, "s F"], opened: Float[np.ndarray, " n"], target: Float[np.ndarray, "n K"],
    learned: Bool[np.ndarray, " n"],
) -> Constants:  # fmt: skip
    """The constants of a clip: bands of its sound; rest (the median of the frames in silence, of all where there are
    less than ten), deviation and range of its coefficients."""
    sound, shown, still = steps[np.repeat(learned, HOP)], target[learned], target[learned & (opened == 0)]
    rest, spread = np.median(still if len(still) >= 10 else shown, 0), shown.std(0)
    floor = max(QUIET_SCALE * float(spread.max()), 1e-6)
    parts = (sound.mean(0), np.maximum(sound.std(0), 0.1), rest, np.maximum(spread, floor), shown.min(0), shown.max(0))
    return Constants(*(np.asarray(v, np.float32) for v in parts))


def disturbed(key: jax.Array, steps: Float[Array, "B T F"], empty: Bool[Array, " B"]) -> Float[Array, "B T F"]:
    """The same sound by another voice, through another microphone and with a steady noise: per row the spectrum moves
    by up to SHIFT bands, an equaliser of four cosines multiplies it, and noise of a random level and colour is added.
    Where `empty` there is the noise alone."""
    moves, equalises, colours, loud, noise = jax.random.split(key, 5)
    b, _, n = steps.shape
    at = jnp.arange(n) + jax.random.uniform(moves, (b, 1), minval=-SHIFT, maxval=SHIFT)
    low = jnp.clip(jnp.floor(at), 0, n - 2).astype(jnp.int32)
    share = jnp.clip(at - low, 0, 1)[:, None]
    below, above = (jnp.take_along_axis(steps, k[:, None], 2) for k in (low, low + 1))
    cosines = jnp.cos(jnp.pi * jnp.arange(COSINES)[:, None] * (jnp.arange(n) + 0.5) / n)
    power = audio.FLOOR * jnp.expm1(((1 - share) * below + share * above) / audio.SCALE)
    power *= jnp.exp(EQUALISER * jax.random.normal(equalises, (b, COSINES)) @ cosines)[:, None]
    colour = jnp.exp(COLOUR * jax.random.normal(colours, (b, COSINES)) @ cosines)[:, None] / n
    db = jax.random.uniform(loud, (b, 1, 1), minval=NOISE_DB[0], maxval=NOISE_DB[1])
    db = jnp.where(empty[:, None, None], db + LOUDER_DB, db)
    power = jnp.where(empty[:, None, None], 0, power)
    power += level.REFERENCE * 10 ** (db / 10) * colour * jax.random.exponential(noise, steps.shape)
    return audio.SCALE * jnp.log1p(power / audio.FLOOR)


def concordance(
    p: Float[Array, "B n K"], t: Float[Array, "B n K"], weight: Float[Array, "B n 1"]
) -> Float[Array, " K"]:
    """Lin's coefficient of each channel over all frames with a weight; 1e-3 is added to the denominator, so that
    channels that never move say nothing."""

    def mean(x: Array) -> Array:
        return (weight * x).sum((0, 1)) / jnp.maximum(weight.sum(), 1.0)

    mp, mt = mean(p), mean(t)
    cov = mean((p - mp) * (t - mt))
    return (2 * cov + 1e-3) / (mean((p - mp) ** 2) + mean((t - mt) ** 2) + (mp - mt) ** 2 + 1e-3)


def loss(
    p: Float[Array, "B n K"], t: Float[Array, "B n K"], weight: Float[Array, "B n"], scale: Float[Array, " K"],
    lips: Lips,
) -> Float[Array, ""]:  # fmt: skip
    """What training lowers, see above. p, t: coefficients in their own units; frames of weight 0 say nothing."""
    w = weight[..., None]
    pairs = w[:, 1:] * w[:, :-1]
    e, (op, ot) = (p - t) / scale, ((x @ lips.weights)[..., None] / lips.spread for x in (p, t))

    def mean(x: Array, of: Array = w) -> Array:
        return (of * x).sum() / jnp.maximum((of * jnp.ones_like(x)).sum(), 1.0)

    shut = (t @ lips.weights < lips.shut)[..., None]
    total = mean(optax.huber_loss(e)) + VELOCITY * mean(jnp.diff(e, axis=1) ** 2, pairs)
    total += OPENING * mean((op - ot) ** 2) + CLOSURE * mean(shut * jnp.maximum(op - ot, 0) ** 2)
    follow = 2 - concordance(op, ot, w).mean() - concordance(p / scale, t / scale, w).mean()
    return total + FOLLOW * follow


def _crops(key: jax.Array, clip: Clip) -> Clip:
    """BATCH crops of WARM + CROP frames from anywhere in the clip."""
    length = WARM + CROP
    at = jax.random.randint(key, (BATCH,), 0, len(clip.target) - length + 1)

    def cut(values: Array, hop: int) -> Array:
        return jax.vmap(lambda i: jax.lax.dynamic_slice_in_dim(values, hop * i, hop * length))(at)

    return Clip(cut(clip.steps, HOP), *(cut(values, 1) for values in clip[1:]))


@functools.partial(jax.jit, static_argnames=("tx", "width"), donate_argnames=("params", "opt"))
def _step(params, opt, key, clip: Clip, constants: Constants, lips: Lips, tx, width: int):
    where, chooses, disturbs, drops = jax.random.split(key, 4)
    crops = _crops(where, clip)
    empty = jax.random.bernoulli(chooses, EMPTY, (BATCH,))
    steps = disturbed(disturbs, crops.steps, empty)
    opened = jnp.where(empty[:, None], 1.0, crops.opened)
    target = jnp.where(empty[:, None, None], constants.rest, crops.target)
    compared = empty[:, None] | (jnp.arange(WARM + CROP) >= WARM)  # noise alone may set in as the sound begins
    weight = jnp.where(empty[:, None], 1.0, crops.weight) * compared

    def of(params: PyTree) -> Array:
        past = network.start(width, BATCH)
        _, p = network.apply(params, constants, past, steps, opened, HOP, drops, DROPOUT)
        return loss(p, target, weight, constants.scale, lips)

    value, gradient = jax.value_and_grad(of)(params)
    updates, opt = tx.update(gradient, opt, params)
    return optax.apply_updates(params, updates), opt, value


def train(
    pcm: Float[np.ndarray, " S"],
    expression: Float[np.ndarray, "n K"],
    names: tuple[str, ...] = (),
    learned: Bool[np.ndarray, " n"] | None = None,
    *,
    seed: int = 0,
    steps: int = 200,
    width: int = 128,
    rate: float = 2e-3,
    on_step: Progress | None = None,
) -> Voice:
    """The speech network of a clip.

    pcm: its sound at 16 kHz, in step with its frames (frame i at i / 25 s). expression: its coefficients, names: of
    their channels, of which the mouth's are learned (`channels.mouth`; all where none has a name). learned: frames to
    learn from (default: all). rate: of AdamW at its highest. on_step(steps done, loss), if given, is called after each.

    Raises:
      ValueError: less than LEAST_FRAMES frames to learn from, or numbers that are not finite.
    """
    columns = channels.mouth(names, expression.shape[1])
    target = np.asarray(expression, np.float32)[:, columns]
    learned = np.ones(len(target), bool) if learned is None else np.asarray(learned, bool)
    if learned.sum() < LEAST_FRAMES or not np.isfinite(target[learned]).all():
        raise ValueError(f"{learned.sum()} frames to learn from, expected {LEAST_FRAMES} or more of finite numbers")
    target = np.where(learned[:, None], target, 0)
    heard = sound_steps(pcm, len(target))
    opened = network.gate(np.zeros(network.MEMORY, np.float32), heard)[1][HOP - 1 :: HOP]
    constants = measured(heard, opened, target, learned)
    weights = channels.opening(names, columns)
    opening = (target @ weights)[learned]
    low, high = np.percentile(opening, (1, 99))
    lips = Lips(weights, np.float32(max(opening.std(), 1e-6)), np.float32(low + SHUT * (high - low)))

    before = max(WARM, WARM + CROP - len(target))  # a short clip is one crop
    clip = Clip(
        np.concatenate([np.zeros((before * HOP, heard.shape[1]), np.float32), heard]),
        np.concatenate([np.zeros(before, np.float32), opened]),
        np.concatenate([np.tile(constants.rest, (before, 1)), target]),
        np.concatenate([np.zeros(before), learned]).astype(np.float32),
    )
    clip, constants, lips = jax.device_put((clip, constants, lips))
    tx = _optimiser(rate, steps)
    first, key = jax.random.split(jax.random.key(seed))
    params = network.init(first, heard.shape[1], width, len(columns))
    opt = tx.init(params)
    for done in range(steps):
        params, opt, value = _step(params, opt, jax.random.fold_in(key, done), clip, constants, lips, tx, width)
        if on_step is not None:
            on_step(done + 1, float(value))
    return Voice(jax.tree.map(np.asarray, params), Constants(*map(np.asarray, constants)), tuple(columns), width)


@functools.cache
def _optimiser(rate: float, steps: int) -> optax.GradientTransformation:
    """AdamW, its rate rising over WARM_UP steps and falling as a cosine to 0."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, min(WARM_UP, steps), max(steps, WARM_UP + 1))
    return optax.chain(optax.clip_by_global_norm(CLIP_NORM), optax.adamw(schedule, weight_decay=DECAY))
