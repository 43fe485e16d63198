"""Layers over each other, in premultiplied display rgb."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Array, Float

AnyArray = Array | np.ndarray


def over(layers: Sequence[tuple[Float[AnyArray, "*N 3"], Float[AnyArray, "*N 1"]]]):
    """Composite (premultiplied rgb, alpha) layers, back to front: C = c + (1 - a) C_behind, likewise alpha.

    A background is a layer with alpha 1. Returns (rgb, alpha).
    """
    if not layers:
        raise ValueError("over needs at least one layer")
    rgb, alpha = layers[0]
    for front_rgb, front_alpha in layers[1:]:
        rgb = front_rgb + (1.0 - front_alpha) * rgb
        alpha = front_alpha + (1.0 - front_alpha) * alpha
    return rgb, alpha
