"""Which coefficients the sound moves, and how far they open the lips, by MediaPipe's and ARKit's names. Numpy only."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

MOUTH = ("jaw", "mouth", "cheek", "tongue")  # how the names of channels begin that speech moves
# distance of the lips' inner rims, in that of a jaw that is wholly open
OPENING = {"jawOpen": 1.0, "mouthClose": -1.0, "mouthLowerDownLeft": 0.1, "mouthLowerDownRight": 0.1,
           "mouthUpperUpLeft": 0.1, "mouthUpperUpRight": 0.1}  # fmt: skip


def mouth(names: Sequence[str], channels: int) -> tuple[int, ...]:
    """The columns that speech moves: those whose names begin as the mouth's do; all where no name does."""
    found = tuple(k for k, name in enumerate(names) if name.startswith(MOUTH))
    return found or tuple(range(channels))


def opening(names: Sequence[str], columns: Sequence[int]) -> Float[np.ndarray, " K"]:
    """Weights [K] whose product with the coefficients of these columns is the opening of the lips; 0 for channels
    without a name that says so."""
    return np.array([OPENING.get(names[k], 0.0) if names else 0.0 for k in columns], np.float32)
