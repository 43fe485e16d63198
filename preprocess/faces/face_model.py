"""The face landmarker's bundle: checked on opening, and the canonical face mesh that lies in it.

`face_landmarker.task` is a zip of TFLite models plus `geometry_pipeline_metadata_landmarks.binarypb`, a protocol
buffer: field 1 = Mesh3d {1 vertex type, 2 primitive type, 3 vertex buffer (floats x y z u v), 4 index buffer},
field 2 (repeated) = {1 landmark id, 2 weight} of the rigid alignment. Unpacked and packed repeats are both read.
"""

import dataclasses
import functools
import struct
import zipfile
from pathlib import Path

import numpy as np

from tkjax.errors import UserError

GEOMETRY = "geometry_pipeline_metadata_landmarks.binarypb"
MODELS = ("face_detector.tflite", "face_landmarks_detector.tflite", "face_blendshapes.tflite")

# Points that move little with expression: forehead, temples, bridge and sides of the nose, eye corners, the side
# of the face in front of the ears. Weight 1 or more for bone near the skin, less where skin slides or the outline is
# soft.
RIGID_WEIGHTS = {
    **dict.fromkeys((168, 6, 197, 195, 5, 4, 1, 122, 351, 188, 412, 193, 417, 8, 9, 151), 1.5),  # bridge, tip, glabella
    **dict.fromkeys((33, 133, 362, 263, 130, 359, 243, 463), 1.0),  # corners of the eyes
    **dict.fromkeys((98, 327, 129, 358, 115, 344, 49, 279), 0.6),  # wings of the nose
    **dict.fromkeys((10, 67, 297, 109, 338, 54, 284, 103, 332, 21, 251, 108, 337, 69, 299, 104, 333, 68, 298), 0.7),
    **dict.fromkeys((127, 356, 162, 389, 234, 454, 143, 372, 34, 264, 227, 447), 0.25),  # temples, before the ears
    **dict.fromkeys((117, 346, 118, 347, 119, 348, 101, 330, 50, 280), 0.5),  # upper cheeks
}
RIGID_IDS = tuple(sorted(RIGID_WEIGHTS))
# Outline of the face, clockwise in the picture from the top of the forehead; [9:28] is the jaw, ear to ear.
FACE_OVAL = (10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377, 152, 148, 176,
             149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class CanonicalFace:
    """vertices_cm [468,3] (x right, y up, z to the viewer), faces [898,3]."""

    vertices_cm: np.ndarray
    faces: np.ndarray


def _fields(data: bytes):
    """(field number, wire type, value) of one protocol buffer message; values are ints, 4- or 8-byte blocks, bytes."""
    pos = 0

    def varint() -> int:
        nonlocal pos
        value = shift = 0
        while True:
            byte = data[pos]
            pos += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7

    while pos < len(data):
        tag = varint()
        wire = tag & 7
        if wire == 0:
            yield tag >> 3, wire, varint()
            continue
        if wire not in (1, 2, 5):
            raise ValueError(f"wire type {wire}")
        size = varint() if wire == 2 else 8 if wire == 1 else 4
        if pos + size > len(data):
            raise ValueError("cut short")
        yield tag >> 3, wire, data[pos : pos + size]
        pos += size


def _varints(data: bytes) -> list[int]:
    out, value, shift = [], 0, 0
    for byte in data:
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            out.append(value)
            value = shift = 0
    return out


def parse_geometry(data: bytes) -> CanonicalFace:
    """The canonical mesh of a geometry metadata file; ValueError where it is not one."""
    mesh = next((value for number, wire, value in _fields(data) if number == 1 and wire == 2), None)
    if mesh is None:
        raise ValueError("no mesh")
    floats, indices = [], []
    for number, wire, value in _fields(mesh):
        if number == 3:
            floats.append(value)
        elif number == 4:
            indices.extend(_varints(value) if wire == 2 else [value])
    vertices = np.frombuffer(b"".join(floats), "<f4").reshape(-1, 5)[:, :3].astype(np.float64)
    faces = np.array(indices, np.int32).reshape(-1, 3)
    if len(vertices) != 468 or not len(faces) or faces.max() >= len(vertices) or not np.isfinite(vertices).all():
        raise ValueError(f"{len(vertices)} vertices and {len(faces)} faces")
    return CanonicalFace(vertices, faces)


@functools.cache
def load_canonical(task: Path) -> CanonicalFace:
    """The canonical face of a bundle. UserError when the file is not a readable face landmarker bundle."""
    try:
        with zipfile.ZipFile(task) as bundle:
            missing = [n for n in (*MODELS, GEOMETRY) if n not in bundle.namelist()]
            if missing:
                raise ValueError(f"it lacks {', '.join(missing)}")
            broken = bundle.testzip()
            if broken:
                raise ValueError(f"its member {broken} is damaged")
            return parse_geometry(bundle.read(GEOMETRY))
    except (OSError, zipfile.BadZipFile, ValueError, IndexError, struct.error, NotImplementedError) as e:
        raise UserError(
            f"{task} is not a readable face landmarker bundle ({e}); fetch MediaPipe's face_landmarker.task again"
        ) from e
