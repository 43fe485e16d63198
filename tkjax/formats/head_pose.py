"""Where a head is and how it is turned, as six channels of a track, and back.

Camera axes here: x to the right of the picture, y up, z towards the viewer. A point X of the head (contract axes: x to
its left, which is the picture's right, y up, z out of the face) lies at R X + t with

  R = Ry(yaw) Rx(pitch) Rz(roll):

yaw > 0 turns the face to the picture's right, pitch > 0 down, roll > 0 tilts it counterclockwise in the picture.
"""

import numpy as np
from jaxtyping import Float

from tkjax.contract import UNIT_CM

TURNS = ("head_yaw_rad", "head_pitch_rad", "head_roll_rad")
PLACES = ("head_x_cm", "head_y_cm", "head_z_cm")  # of the head's origin before the camera
CHANNELS = (*TURNS, *PLACES)


def turn(axis: int, angle: Float[np.ndarray, " n"]) -> Float[np.ndarray, "n 3 3"]:
    """Rotation matrices by `angle` in radians about x (0), y (1) or z (2), right-handed."""
    out = np.tile(np.eye(3), (len(angle), 1, 1))
    j, k = (axis + 1) % 3, (axis + 2) % 3
    out[:, j, j] = out[:, k, k] = np.cos(angle)
    out[:, k, j] = np.sin(angle)
    out[:, j, k] = -out[:, k, j]
    return out


def matrix(turns: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3 3"]:
    """R of the three angles in the order of `TURNS`."""
    yaw, pitch, roll = np.asarray(turns, np.float64).T
    return turn(1, yaw) @ turn(0, pitch) @ turn(2, roll)


def angles(rotation: Float[np.ndarray, "n 3 3"]) -> Float[np.ndarray, "n 3"]:
    """The inverse of `matrix`, for pitch within ±pi/2."""
    yaw = np.arctan2(rotation[:, 0, 2], rotation[:, 2, 2])
    pitch = np.arcsin(np.clip(-rotation[:, 1, 2], -1, 1))
    return np.stack([yaw, pitch, np.arctan2(rotation[:, 1, 0], rotation[:, 1, 1])], 1)


def of_cameras(cam_to_world: Float[np.ndarray, "n 4 4"]) -> Float[np.ndarray, "n 6"]:
    """The channels of camera-to-world poses of the contract."""
    c = np.asarray(cam_to_world, np.float64)
    rotation = c[:, :3, :3].transpose(0, 2, 1)
    return np.concatenate([angles(rotation), -UNIT_CM * np.einsum("nij,nj->ni", rotation, c[:, :3, 3])], 1)


def cameras(rotation: Float[np.ndarray, "n 3 3"], place_cm: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 4 4"]:
    """The camera-to-world poses in which the head lies at R X + t."""
    out = np.tile(np.eye(4), (len(rotation), 1, 1))
    out[:, :3, :3] = rotation.transpose(0, 2, 1)
    out[:, :3, 3] = -np.einsum("nji,nj->ni", rotation, place_cm) / UNIT_CM
    return out.astype(np.float32)


def mean_rotation(rotation: Float[np.ndarray, "n 3 3"]) -> Float[np.ndarray, "3 3"]:
    """The rotation nearest to the mean matrix (chordal mean)."""
    u, _, vt = np.linalg.svd(np.asarray(rotation, np.float64).mean(0))
    return u @ np.diag([1, 1, np.linalg.det(u @ vt)]) @ vt


def moved(
    own: Float[np.ndarray, "m 4 4"], turns: Float[np.ndarray, "n 3"], place_cm: Float[np.ndarray, "n 3"] | None
) -> Float[np.ndarray, "n 4 4"]:
    """Somebody's motion on the usual pose of the cameras `own`: with mean rotations R_o and R_m and median places,

      R_i = R(turns_i) R_m^T R_o,   t_i = t_o + place_i - median(place),

    so that cameras and distances of two recordings need not agree. place_cm None: the head turns in its place."""
    before = of_cameras(own)
    rotation = matrix(turns)
    usual = mean_rotation(matrix(before[:, :3]))
    place = np.tile(np.median(before[:, 3:], 0), (len(rotation), 1))
    if place_cm is not None:
        place = place + place_cm - np.median(place_cm, 0)
    return cameras(rotation @ mean_rotation(rotation).T @ usual, place)
