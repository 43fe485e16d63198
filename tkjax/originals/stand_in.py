"""What an imported avatar has in place of a clip: one frontal camera, a white plate, no torso."""

import math
from typing import Any, ClassVar

import numpy as np
from jaxtyping import UInt8

from tkjax.errors import UserError
from tkjax.formats import feature_arrays
from tkjax.signals import OPEN_EYES, SOUND, SignalInfo, of_frames
from tkjax.types import Batch, SubjectInfo

SIZE, RADIUS, FOVY_DEG = 450, 3.35, 21.24  # the originals' viewer (rad-nerf dossier §6.2, §8)


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
    """A `data.clip.Clip` of one frame that an avatar can be saved from; there is nothing in it to train on."""

    fps = 25.0
    n_frames = 1
    train_range, heldout_range = (0, 1), (0, 0)
    digest, split, dataset, has_labels = "none", "last", None, False
    landmarks68_px = None
    truth: ClassVar[dict[str, np.ndarray]] = {}
    members: ClassVar[dict[str, np.ndarray]] = {}

    def __init__(self, spec: dict[str, Any]):
        focal = 0.5 * SIZE / math.tan(math.radians(0.5 * FOVY_DEG))
        cut = {k: spec[k] for k in ("channels", "rate_hz", "window", "hop", "left", "kind")}
        sound = SignalInfo(SOUND, **cut, source="checkpoint")
        self.eye_closed, self.confidence = np.zeros(1, np.float32), np.zeros(1, np.float32)
        eyes = {"eye_closed": self.eye_closed, "eye_area": np.full(1, OPEN_EYES, np.float32)}
        self.signals = {name: of_frames(name, v, self.fps, source="stand-in") for name, v in eyes.items()}
        self.info = SubjectInfo(
            n_frames=1,
            height=SIZE,
            width=SIZE,
            intrinsics=(focal, focal, SIZE / 2, SIZE / 2),
            signals=(sound, *(signal.info for signal in self.signals.values())),
        )
        self.height = self.width = SIZE
        self.intrinsics = np.array(self.info.intrinsics, np.float32)
        self.cam_to_world = np.eye(4, dtype=np.float32)[None]
        self.cam_to_world[0, 2, 3] = RADIUS
        self.plate = np.full((SIZE, SIZE, 3), 255, np.uint8)
        box = np.array([[0, 0, SIZE, SIZE]], np.int32)
        self.boxes = dict.fromkeys(("face_box_px", "lips_box_px"), box)
        self.eye_regions, self.lower_face = np.stack([box, box], 1), box.astype(np.float32)
        self.picture_missing = np.ones(1, bool)
        self.train_frames, self.heldout_frames = np.arange(1), np.arange(0)

    def torso_rgba(self, i: int) -> UInt8[np.ndarray, "H W 4"]:
        del i
        return np.zeros((SIZE, SIZE, 4), np.uint8)

    def target(self, i: int, kind: str = "frame", background: str = "plate") -> UInt8[np.ndarray, "H W 3"]:
        del i, kind, background
        return self.plate

    def background(self, i: int, kind: str = "torso") -> UInt8[np.ndarray, "H W 3"]:
        del i, kind
        return self.plate

    def label(self, i: int) -> UInt8[np.ndarray, "H W"]:
        del i
        return np.zeros((SIZE, SIZE), np.uint8)

    def batch(self, *_, **__) -> Batch:
        raise UserError("a checkpoint that was imported without its dataset has no frames to learn from or to score")

    frame_batch = batch
