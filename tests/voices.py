"""A speech network of random numbers, for tests of what comes after its training."""

from functools import cache

import jax
import numpy as np

from tkjax import voice
from tkjax.media import audio
from tkjax.voice import network
from tkjax.voice.network import Constants

COLUMNS, WIDTH = (0, 1, 2), 8


@cache
def untrained(seed: int = 0, columns: tuple[int, ...] = COLUMNS) -> voice.Voice:
    """A small network whose every part matters."""
    rng = np.random.default_rng(seed)
    params = network.init(jax.random.key(seed), audio.BANDS, WIDTH, len(columns))
    params = jax.tree.map(lambda v: np.asarray(v + 0.1 * rng.normal(size=v.shape), np.float32), params)
    bands, k = np.ones(audio.BANDS, np.float32), np.ones(len(columns), np.float32)
    return voice.Voice(params, Constants(bands, bands, 0.2 * k, 0.3 * k, -5 * k, 5 * k), columns, WIDTH)
