"""What version 1 fixes: constants, conventions, names of files, members with their dtypes and shapes."""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

VERSION = 1
MINOR = 1  # 1: `signals` describes what drives a head; readers of a minor version read all before it
FPS = 25.0
UNIT_CM = 25.0
ORIGIN_CANONICAL_CM = (0.0, 0.0, 0.0)  # where the world's origin lies in the canonical face mesh
LABEL_BACKGROUND, LABEL_HEAD, LABEL_NECK, LABEL_TORSO = range(4)
SHARD_FRAMES = 64
AUDIO_HZ = 16000
MANIFEST = "manifest.json"
BACKGROUND = "background.png"
AUDIO = "audio.wav"
LANDMARK_SCHEMES = {"mediapipe478": 478, "ibug68": 68}
BOXES = ("face_box_px", "lips_box_px", "eye_left_box_px", "eye_right_box_px")
ROTATION_TOLERANCE = 1e-3  # of any entry of R Rᵀ - 1; float32 rotations reach 1e-6

CONVENTIONS = {
    "world": "x right in a frontal picture (the subject's left), y up, z towards the camera",
    "unit_cm": UNIT_CM,
    "origin_canonical_cm": list(ORIGIN_CANONICAL_CM),
    "camera": "cam_to_world, OpenGL: x right, y up, looks along -z",
    "pixels": "pixel (i, j) spans [i, i+1), centre at i + 0.5; boxes (x0, y0, x1, y1), half open",
    "rgb": "uint8 sRGB",
    "labels": {
        "background": LABEL_BACKGROUND,
        "head": LABEL_HEAD,
        "neck": LABEL_NECK,
        "torso": LABEL_TORSO,
    },
}

# fmt: off
BLENDSHAPES = (
    "_neutral", "browDownLeft", "browDownRight", "browInnerUp", "browOuterUpLeft", "browOuterUpRight",
    "cheekPuff", "cheekSquintLeft", "cheekSquintRight", "eyeBlinkLeft", "eyeBlinkRight", "eyeLookDownLeft",
    "eyeLookDownRight", "eyeLookInLeft", "eyeLookInRight", "eyeLookOutLeft", "eyeLookOutRight", "eyeLookUpLeft",
    "eyeLookUpRight", "eyeSquintLeft", "eyeSquintRight", "eyeWideLeft", "eyeWideRight", "jawForward", "jawLeft",
    "jawOpen", "jawRight", "mouthClose", "mouthDimpleLeft", "mouthDimpleRight", "mouthFrownLeft", "mouthFrownRight",
    "mouthFunnel", "mouthLeft", "mouthLowerDownLeft", "mouthLowerDownRight", "mouthPressLeft", "mouthPressRight",
    "mouthPucker", "mouthRight", "mouthRollLower", "mouthRollUpper", "mouthShrugLower", "mouthShrugUpper",
    "mouthSmileLeft", "mouthSmileRight", "mouthStretchLeft", "mouthStretchRight", "mouthUpperUpLeft",
    "mouthUpperUpRight", "noseSneerLeft", "noseSneerRight",
)
# fmt: on

# member -> (dtype, shape); n frames, V landmarks, K expression dims, H W picture, bytes free.
REQUIRED_MEMBERS: dict[str, tuple[str, tuple]] = {
    "image_bytes": ("uint8", ("bytes",)),
    "image_offsets": ("int64", ("n+1",)),
    "torso_bytes": ("uint8", ("bytes",)),
    "torso_offsets": ("int64", ("n+1",)),
    "label_bytes": ("uint8", ("bytes",)),
    "label_offsets": ("int64", ("n+1",)),
    "frame_index": ("int32", ("n",)),
    "cam_to_world": ("float32", ("n", 4, 4)),
    "landmarks_px": ("float32", ("n", "V", 2)),
    **{box: ("int32", ("n", 4)) for box in BOXES},
    "expression": ("float32", ("n", "K")),
    "eye_closed": ("float32", ("n",)),
    "confidence": ("float32", ("n",)),
}
OPTIONAL_MEMBERS: dict[str, tuple[str, tuple]] = {
    "depth": ("float16", ("n", "H", "W")),  # camera z in units, NaN where nothing was hit
    "alpha_bytes": ("uint8", ("bytes",)),  # coverage of the person where source names background_trt, else of the head
    "alpha_offsets": ("int64", ("n+1",)),
    "eye_area": ("float32", ("n",)),
    "class_bytes": ("uint8", ("bytes",)),  # CelebAMask class ids 0..18, where a face parser's own classes are known
    "class_offsets": ("int64", ("n+1",)),
}
# encoded member -> (format, channels of the png or jpeg)
PICTURES = {
    "image_bytes": ("jpeg", 3),
    "torso_bytes": ("png", 4),
    "label_bytes": ("png", 1),
    "alpha_bytes": ("png", 1),
    "class_bytes": ("png", 1),
}
SLACK_BYTES = 1 << 20  # headers, colour profiles and the like, in the bound of a file's size
EXTRA_DTYPES = (
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64",
)  # fmt: skip
SHARD_NAME = re.compile(r"shard-(\d{5,})-([0-9a-f]{8})\.npz")
FULL, FULL_ALPHA = "full.mp4", "full_alpha.mp4"  # the whole source frames the crop was cut from, and their matte
FILE_NAME = re.compile(
    r"background\.png|audio\.wav|audio_[A-Za-z0-9_-]+\.npz|full(_alpha)?\.mp4|qa(/[A-Za-z0-9_-][A-Za-z0-9._-]*)+"
)
FIXED_NAMES = "background.png, audio.wav, audio_<kind>.npz, full.mp4, full_alpha.mp4 or qa/…"
SHA256 = re.compile(r"[0-9a-f]{64}")


def offsets_of(member: str) -> str:
    """`image_bytes` -> `image_offsets`."""
    return member.removesuffix("_bytes") + "_offsets"


def is_offsets(member: str) -> bool:
    """Whether a member says where the pictures of an encoded one lie; extra members have any names."""
    return member.endswith("_offsets") and not member.startswith("x_")


def audio_kind(name: str) -> str | None:
    """`audio_<kind>.npz` -> `<kind>`; None for any other file."""
    return name[6:-4] if name.startswith("audio_") else None


def default_split(n_frames: int) -> dict[str, list[int]]:
    """First ⌊N·10/11⌋ frames (at least one) train, the rest is held out."""
    a = max(1, n_frames * 10 // 11)
    return {"train": [0, a], "heldout": [a, n_frames]}


@dataclasses.dataclass(frozen=True)
class Layout:
    """The sizes that fix every member's dtype and shape."""

    height: int
    width: int
    landmark_scheme: str
    n_expression: int
    extra: Mapping[str, tuple[str, tuple[int, ...]]]  # x_<name> -> dtype, shape behind the frame axis

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> "Layout":
        m = manifest
        extra = {k: (v["dtype"], tuple(v["shape"][1:])) for k, v in m["members"].items() if k.startswith("x_")}
        return cls(m["height"], m["width"], m["landmark_scheme"], len(m["expression_names"]), extra)

    def spec(self, member: str) -> tuple[str, tuple]:
        """(dtype, shape with 'n', 'n+1' or 'bytes' in front) of a known member."""
        if member in self.extra:
            dtype, shape = self.extra[member]
            return dtype, ("n", *shape)
        dtype, shape = REQUIRED_MEMBERS.get(member) or OPTIONAL_MEMBERS[member]
        sizes = {"V": LANDMARK_SCHEMES[self.landmark_scheme], "K": self.n_expression, "H": self.height, "W": self.width}
        return dtype, tuple(sizes.get(s, s) for s in shape)

    def describe(self, members: Iterable[str]) -> dict[str, Any]:
        """Those members as the manifest lists them."""
        specs = {m: self.spec(m) for m in members}
        return {m: {"dtype": dtype, "shape": list(shape)} for m, (dtype, shape) in specs.items()}

    def most_bytes(self, members: Iterable[str], n: int) -> int:
        """More than a shard of n frames with these members can have: pictures at twice their raw size and 1 MB each."""
        total = 0
        for member in members:
            dtype, shape = self.spec(member)
            if member in PICTURES:
                size = n * (2 * self.height * self.width * PICTURES[member][1] + SLACK_BYTES)
            else:
                counts = {"n": n, "n+1": n + 1}
                size = math.prod(counts.get(s, s) for s in shape) * np.dtype(dtype).itemsize
            total += size + SLACK_BYTES
        return total

    def known(self, member: str) -> bool:
        return member in REQUIRED_MEMBERS or member in OPTIONAL_MEMBERS or member in self.extra
