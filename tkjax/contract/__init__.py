"""The data contract, version 1: writer, reader and validator of a dataset folder (numpy and stdlib only).

A dataset is a folder with `manifest.json`, shards `shard-00000-<first 8 hex of its sha256>.npz` of up to
64 frames, `background.png`, and where they exist `audio.wav`, `audio_<kind>.npz` and `qa/*`. The manifest
names every file with its sha256 and carries its own digest: the sha256 of its bytes with the 64 digest
characters left out. It is replaced last, so a killed write leaves the old or the new dataset.

World: head-centred, right-handed, x right in a frontal picture (the subject's left), y up, z towards the
camera, one unit = 25 cm, origin = origin of the canonical face mesh (nose tip at z = +7.6 cm, chin at
y = -9.4 cm). Cameras look along -z (OpenGL); `cam_to_world` maps camera points (x right, y up) to the world.
Pixel (i, j) spans [i, i+1) with its centre at i + 0.5; pictures are uint8 sRGB; boxes are (x0, y0, x1, y1),
half open. `source.crop_px` is the dataset's picture in the source's pixels, `source.full_size` the source's
[width, height]. `full.mp4` (H.264, 25 fps, frame k is frame k here) holds the whole source frames where the crop is
not all of them. A dataset that was keyed says so by `source.background_trt` [r, g, b], the constant plate behind the
person: then `alpha_bytes` and `full_alpha.mp4` (FFV1, grey, lossless) are the coverage of the whole person, and
`full.mp4` holds the person's colour alone (straight, not premultiplied, continued where alpha is 0). Elsewhere
`alpha_bytes` is the coverage of the head. `source.av_offset_ms` is by how much the source's sound was late against its
pictures (negative: early); `audio.wav` and the features are in step.
Every refusal is a `ContractError` of one sentence with file, member and expectation.

Files: `spec` what version 1 fixes, `manifest` the manifest, `checks` what frames must be, `landmarks` points and
boxes, `npz` the container, `audio_features` sound features, `windows` how they are cut, `reader`, `writer`,
`commit` how a write takes effect.
"""

from tkjax.contract.audio_features import (
    AudioFeatures,
    AudioHeader,
    load_audio_features,
    save_audio_features,
    save_audio_rows,
    stream_audio_features,
)
from tkjax.contract.checks import picture_header
from tkjax.contract.landmarks import LANDMARKS_478_TO_68, boxes_from_landmarks68, landmarks68
from tkjax.contract.manifest import dump_manifest, parse_manifest
from tkjax.contract.npz import write_npz
from tkjax.contract.reader import Dataset, validate
from tkjax.contract.refusal import ContractError
from tkjax.contract.spec import (
    AUDIO,
    AUDIO_HZ,
    BACKGROUND,
    BLENDSHAPES,
    BOXES,
    CONVENTIONS,
    EXTRA_DTYPES,
    FPS,
    FULL,
    FULL_ALPHA,
    LABEL_BACKGROUND,
    LABEL_HEAD,
    LABEL_NECK,
    LABEL_TORSO,
    LANDMARK_SCHEMES,
    MANIFEST,
    OPTIONAL_MEMBERS,
    ORIGIN_CANONICAL_CM,
    PICTURES,
    REQUIRED_MEMBERS,
    ROTATION_TOLERANCE,
    SHARD_FRAMES,
    UNIT_CM,
    VERSION,
    default_split,
    offsets_of,
)
from tkjax.contract.writer import DatasetWriter

__all__ = [
    "AUDIO",
    "AUDIO_HZ",
    "BACKGROUND",
    "BLENDSHAPES",
    "BOXES",
    "CONVENTIONS",
    "EXTRA_DTYPES",
    "FPS",
    "FULL",
    "FULL_ALPHA",
    "LABEL_BACKGROUND",
    "LABEL_HEAD",
    "LABEL_NECK",
    "LABEL_TORSO",
    "LANDMARKS_478_TO_68",
    "LANDMARK_SCHEMES",
    "MANIFEST",
    "OPTIONAL_MEMBERS",
    "ORIGIN_CANONICAL_CM",
    "PICTURES",
    "REQUIRED_MEMBERS",
    "ROTATION_TOLERANCE",
    "SHARD_FRAMES",
    "UNIT_CM",
    "VERSION",
    "AudioFeatures",
    "AudioHeader",
    "ContractError",
    "Dataset",
    "DatasetWriter",
    "boxes_from_landmarks68",
    "default_split",
    "dump_manifest",
    "landmarks68",
    "load_audio_features",
    "offsets_of",
    "parse_manifest",
    "picture_header",
    "save_audio_features",
    "save_audio_rows",
    "stream_audio_features",
    "validate",
    "write_npz",
]
