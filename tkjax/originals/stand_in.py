"""What an imported avatar has in place of a clip: one frontal camera, a white plate, no torso."""

import math
from typing import Any

import numpy as np
from jaxtyping import UInt8

from tkjax.data.clip import AUDIO_WINDOWS
from tkjax.errors import UserError
from tkjax.formats import feature_arrays
from tkjax.types import SubjectInfo

SIZE, RADIUS, FOVY_DEG = 450, 3.35, 21.24  # the originals' viewer (rad-nerf dossier §6.2, §8)
OPEN_EYES = 0.25  # per cent of the picture (rad-nerf dossier §2.1)


def sound(width: int, avatar_ernerf: bool) -> dict[str, Any]:
    """How the sound of a checkpoint is described that hears features of this width, as an avatar stores it.

    29 DeepSpeech, 32 and 44 wav2vec2 logits, 1024 HuBERT in pairs of steps; Avatar-ERNeRF's 768 and 1024 are hidden
    states in windows of 16 (rad-nerf §2.5, er-nerf §2, avatar-ernerf §2.4).
    """
    kinds = {29: "deepspeech", 32: "wav2vec2", 44: "wav2vec2", 768: "hubert", 1024: "hubert"}
    if width not in kinds:
        raise UserError(
            f"the checkpoint hears sound features of width {width}, and which they are cannot be told; import its "
            "dataset folder into this workdir first, or name it with --dataset"
        )
    kind = kinds[width]
    window = 2 if width == 1024 and not avatar_ernerf else 16
    hop, left = feature_arrays.CUTS[window]
    return {
        "kind": kind,
        "rate_hz": feature_arrays.RATE_HZ,
        "extractor": f"{feature_arrays.EXTRACTOR}-{kind}",
        "window": window,
        "hop": hop,
        "left": left,
        "pad": left,
        "channels": width,
    }


class StandIn:
    """The attributes of `data.clip.Clip` that an avatar is saved from."""

    fps = 25.0
    n_frames = 1
    train_range = (0, 1)

    def __init__(self, spec: dict[str, Any]):
        focal = 0.5 * SIZE / math.tan(math.radians(0.5 * FOVY_DEG))
        self.info = SubjectInfo(
            n_frames=1,
            height=SIZE,
            width=SIZE,
            audio_kind=spec["kind"],
            audio_channels=spec["channels"],
            audio_steps=spec["window"],
            audio_windows=AUDIO_WINDOWS,
            n_expression=0,
            intrinsics=(focal, focal, SIZE / 2, SIZE / 2),
        )
        self.height = self.width = SIZE
        self.intrinsics = np.array(self.info.intrinsics, np.float32)
        self.cam_to_world = np.eye(4, dtype=np.float32)[None]
        self.cam_to_world[0, 2, 3] = RADIUS
        self.plate = np.full((SIZE, SIZE, 3), 255, np.uint8)
        self.eye_closed, self.confidence = np.zeros(1, np.float32), np.zeros(1, np.float32)
        self.eye_area = np.full(1, OPEN_EYES, np.float32)
        self.expression = np.zeros((1, 0), np.float32)
        box = np.array([[0, 0, SIZE, SIZE]], np.int32)
        self.boxes = dict.fromkeys(("face_box_px", "lips_box_px"), box)

    def torso_rgba(self, i: int) -> UInt8[np.ndarray, "H W 4"]:
        del i
        return np.zeros((SIZE, SIZE, 4), np.uint8)
