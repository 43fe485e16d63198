"""MediaPipe Face Landmarker in worker processes: pictures in, 478 landmarks and 52 blendshapes out."""

import atexit
import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from preprocess.workers import native

N_LANDMARKS, N_BLENDSHAPES = 478, 52
MAX_SIDE_PX = 1280  # larger pictures are shrunk for detection; the networks look at 128 and 256 pixels


@dataclasses.dataclass
class Faces:
    """Of n pictures: `found` bool [n]; `landmarks` float32 [n,478,3] in pixels (z in pixels too, smaller is nearer);
    `blendshapes` float32 [n,52] in 0..1; `second` float32 [n]: height of a second face in pixels, 0 without one.
    Rows without a face are 0."""

    found: np.ndarray
    landmarks: np.ndarray
    blendshapes: np.ndarray
    second: np.ndarray

    def __len__(self) -> int:
        return len(self.found)


@functools.lru_cache(1)
def _detector(model: str):
    with native("mediapipe"):
        from mediapipe.tasks.python import BaseOptions, vision

        options = vision.FaceLandmarkerOptions(
            base_options=BaseOptions(model_asset_path=model),
            running_mode=vision.RunningMode.IMAGE,  # without memory: frames are independent of order and of chunks
            num_faces=2,
            output_face_blendshapes=True,
        )
        detector = vision.FaceLandmarker.create_from_options(options)
    atexit.register(detector.close)
    return detector


def detect(model: str, pictures: Sequence[np.ndarray]) -> Faces:
    """The faces of rgb uint8 pictures [H,W,3] (sizes may differ). Of two faces the taller one counts."""
    import mediapipe as mp

    detector = _detector(model)
    n = len(pictures)
    faces = Faces(np.zeros(n, bool), np.zeros((n, N_LANDMARKS, 3), np.float32),
                  np.zeros((n, N_BLENDSHAPES), np.float32), np.zeros(n, np.float32))  # fmt: skip
    for i, rgb in enumerate(pictures):
        h, w = rgb.shape[:2]
        shrunk = rgb
        if max(h, w) > MAX_SIDE_PX:
            import cv2

            s = MAX_SIDE_PX / max(h, w)
            shrunk = cv2.resize(rgb, (round(w * s), round(h * s)), interpolation=cv2.INTER_AREA)
        result = detector.detect(mp.Image(image_format=mp.ImageFormat.SRGB, data=np.ascontiguousarray(shrunk)))
        all_points = [
            np.array([(p.x * w, p.y * h, p.z * w) for p in face], np.float32) for face in result.face_landmarks
        ]
        if not all_points:
            continue
        heights = [float(np.ptp(p[:, 1])) for p in all_points]
        best = int(np.argmax(heights))
        faces.found[i] = True
        faces.landmarks[i] = all_points[best]
        faces.blendshapes[i] = [c.score for c in result.face_blendshapes[best]]
        faces.second[i] = max(
            (second_height(all_points[best], p) for j, p in enumerate(all_points) if j != best), default=0
        )
    return faces


def second_height(main: np.ndarray, other: np.ndarray) -> float:
    """Height in pixels of `other`, 0 where it is the same face seen twice (centres closer than half a height)."""
    height = float(np.ptp(other[:, 1]))
    apart = np.linalg.norm(main[:, :2].mean(0) - other[:, :2].mean(0))
    return height if apart > 0.5 * np.ptp(main[:, 1]) else 0.0
