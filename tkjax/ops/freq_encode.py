"""Frequency encoding: the raw values, then per octave k all sin(2**k x), then all cos(2**k x).

For the torso's inputs, and AD-NeRF's positions (10 octaves) and directions (4); within a field it is `Program`'s freq.
"""

from jaxtyping import Array, Float

from tkjax.ops import dispatch


def freq_encode(x: Float[Array, "*N D"], octaves: int, *, backend: str | None = None) -> Float[Array, "*N C"]:
    """D * (1 + 2 * octaves) values per point; no factor of pi. Differentiable."""
    if octaves < 0:
        raise ValueError(f"freq_encode: octaves must be at least 0, got {octaves}")
    return dispatch.resolve("freq_encode", backend).forward(x, octaves)
