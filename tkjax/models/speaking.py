"""What systems that hear share: which sound is a frame's, and audio networks that are taught the shape of lips."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from tkjax.interface import Ema, Rate, Stage, frame_keys
from tkjax.signals import SOUND, Use
from tkjax.types import Batch, Render

HEARS = Use(SOUND, before=4, after=3)  # the sound of a frame and its neighbours (er-nerf dossier §2, ad-nerf §5)
LIP_SHAPE = "lip_shape"  # what the audio networks are taught by
SPEECH = "speech"  # the stage that trains the audio networks alone


def speech_term(
    code_of: Callable[[Float[Array, "B W T A"]], Float[Array, "B C"]],
    batch: Batch,
    key: jax.Array | None,
    size: float,
) -> Float[Array, ""]:
    """How far the first numbers of the audio code are from the shape of the lips, mean squared, in variances.

    The code has no other teacher than the picture, of which the lips are a few hundredths: it learns loudness long
    before sounds. Here its first M of C numbers are the M measures of the lips' shape; the rest is free. With a
    key the features get Gaussian noise of `size`, so that a short clip is not learnt by heart.
    """
    audio = batch.signals[SOUND]
    if key is not None and size:
        noise = jax.vmap(lambda k: jax.random.normal(k, audio.shape[1:]))(frame_keys(key, batch, 3))
        audio = audio + size * noise
    shape = batch.truth[LIP_SHAPE]
    return jnp.mean(jnp.square(code_of(audio)[:, : shape.shape[1]] - shape))


def speech_stage(s: ConfigDict, ema_decay: float) -> Stage:
    """The stage of `speech_term` alone, from config.train.speech."""
    listen = Rate(s.lr, s.final_factor, s.decay)
    return Stage(
        SPEECH, s.steps, 1, {"audio": listen, "audio_attention": listen}, {"speech": 1.0},
        frames=s.frames, seed=s.seed, ema=Ema(ema_decay, s.ema_every), optional=True, truth=(LIP_SHAPE,),
    )  # fmt: skip


def listening(batch: Batch) -> Render:
    """The picture of that stage: it listens, it does not draw."""
    b, r = batch.pixels_px.shape[:2]
    return Render(rgb=jnp.zeros((b, r, 3)), alpha=jnp.zeros((b, r, 1)))
