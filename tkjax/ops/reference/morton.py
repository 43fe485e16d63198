"""Reference Morton codes by bit spreading."""

import jax.numpy as jnp


def _spread(v):
    """Bits of a 10-bit number moved to every third place."""
    v = v & 0x3FF
    v = (v | (v << 16)) & 0x030000FF
    v = (v | (v << 8)) & 0x0300F00F
    v = (v | (v << 4)) & 0x030C30C3
    return (v | (v << 2)) & 0x09249249


def _gather(v):
    v = v & 0x09249249
    v = (v | (v >> 2)) & 0x030C30C3
    v = (v | (v >> 4)) & 0x0300F00F
    v = (v | (v >> 8)) & 0x030000FF
    return (v | (v >> 16)) & 0x3FF


def encode_xyz(x, y, z):
    """The code of separate coordinate arrays."""
    return _spread(x) | (_spread(y) << 1) | (_spread(z) << 2)


def decode(code):
    code = code.astype(jnp.int32)
    return jnp.stack([_gather(code), _gather(code >> 1), _gather(code >> 2)], -1)
