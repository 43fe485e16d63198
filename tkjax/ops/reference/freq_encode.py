"""Reference frequency encoding."""

import jax.numpy as jnp


def forward(x, octaves: int):
    parts = [x]
    for k in range(octaves):
        parts += [jnp.sin(x * 2.0**k), jnp.cos(x * 2.0**k)]
    return jnp.concatenate(parts, -1)
