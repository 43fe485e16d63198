"""Where eyes look, from the eyeLook coefficients of MediaPipe and ARKit."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

SIDES = ("Left", "Right")
LOOKS = tuple(f"eyeLook{way}{side}" for way in ("In", "Out", "Up", "Down") for side in SIDES)
GAZE = ("gaze_x", "gaze_y")  # channels of a track


def direction_of(looks: Mapping[str, Float[np.ndarray, " n"]], n: int) -> Float[np.ndarray, "n 2"]:
    """Where both eyes look on average, in units of the coefficients: x to the person's left (out with the left eye, in
    with the right one), y up. Coefficients that are not there count as 0."""

    def get(name: str) -> np.ndarray:
        return np.asarray(looks.get(name, np.zeros(n)), np.float64)

    x = get("eyeLookOutLeft") - get("eyeLookInLeft") + get("eyeLookInRight") - get("eyeLookOutRight")
    y = sum(get(f"eyeLookUp{side}") - get(f"eyeLookDown{side}") for side in SIDES)
    return np.stack([x, y], 1) / 2
