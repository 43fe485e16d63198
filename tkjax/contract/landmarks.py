"""The 68 iBUG points of any landmark scheme, and the boxes of face, lips and eyes around them."""

import numpy as np

from tkjax.contract.refusal import ContractError
from tkjax.contract.spec import LANDMARK_SCHEMES

# The widely used subset of MediaPipe's face mesh that stands for the 68 iBUG points, in their order.
# fmt: off
LANDMARKS_478_TO_68 = (
    162, 234, 93, 58, 172, 136, 149, 148, 152, 377, 378, 365, 397, 288, 323, 454, 389,  # jaw 0-16
    71, 63, 105, 66, 107, 336, 296, 334, 293, 301,  # brows 17-26
    168, 197, 5, 4, 75, 97, 2, 326, 305,  # nose 27-35
    33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380,  # eyes 36-47 (36-41 the subject's right)
    61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181,  # outer lips 48-59
    78, 82, 13, 312, 308, 317, 14, 87,  # inner lips 60-67
)


def landmarks68(landmarks: np.ndarray, scheme: str) -> np.ndarray:
    """[n, 478 or 68, 2] points of `scheme` -> the [n, 68, 2] iBUG points."""
    if scheme not in LANDMARK_SCHEMES:
        raise ContractError(f"landmark scheme {scheme!r} is unknown; choose one of {', '.join(LANDMARK_SCHEMES)}")
    landmarks = np.asarray(landmarks)
    if landmarks.ndim != 3 or landmarks.shape[1:] != (LANDMARK_SCHEMES[scheme], 2):
        raise ContractError(
            f"landmarks of scheme {scheme} have shape {landmarks.shape}, expected (n, {LANDMARK_SCHEMES[scheme]}, 2)"
        )
    return landmarks[:, list(LANDMARKS_478_TO_68)] if scheme == "mediapipe478" else landmarks


def boxes_from_landmarks68(landmarks: np.ndarray, height: int, width: int) -> dict[str, np.ndarray]:
    """Boxes (x0, y0, x1, y1), half open, int32 [n, 4], from points [n, 68, 2] in pixels.

    Face: bounding box of the integer parts of all points; eyes: of 42-47 (the subject's left) and 36-41;
    lips: square around 48-59 with half side max(side) // 2 around the integer middle. Each is clamped to
    the picture and keeps at least one pixel, so points outside still give a legal box.
    """
    points = np.floor(np.asarray(landmarks, np.float64)).astype(np.int64)
    if points.ndim != 3 or points.shape[1:] != (68, 2):
        raise ContractError(f"landmarks have shape {points.shape}, expected (n, 68, 2)")

    def bounds(part: slice) -> tuple[np.ndarray, np.ndarray]:
        return points[:, part].min(1), points[:, part].max(1)

    def clamp(low: np.ndarray, high: np.ndarray) -> np.ndarray:
        size = np.array([width, height])
        low = np.clip(low, 0, size - 1)
        high = np.clip(high, low + 1, size)
        return np.concatenate([low, high], 1).astype(np.int32)

    low, high = bounds(slice(48, 60))
    middle, half = (low + high) // 2, (high - low).max(1, keepdims=True) // 2
    return {
        "face_box_px": clamp(*bounds(slice(0, 68))),
        "lips_box_px": clamp(middle - half, middle + half),
        "eye_left_box_px": clamp(*bounds(slice(42, 48))),
        "eye_right_box_px": clamp(*bounds(slice(36, 42))),
    }
