"""State dicts of the originals: which tensors in which order and shape, and where each lies in our parameters.

Names and order: rad-nerf dossier §3.5, er-nerf dossier §3 "State-dict keys"; Avatar-ERNeRF is ER-NeRF with other
widths (avatar-ernerf §3). A module's own parameters come first, then its buffers, then its parts, as PyTorch writes
them. The moving average lists the parameters in this order without names.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping

from tkjax.ops import GridSpec

SIDE, TORSO_SIDE = 128, 128  # of the occupancy grids
GEOMETRY, SH, OCTAVES = 64, 16, 2  # features from density to colour, of a direction; frequency encodings double values
RAD_SPACE = GridSpec(3, 16, 2, 16, 2048, 16, "tiled")
RAD_PLANE = GridSpec(2, 16, 2, 16, 2048, 16, "tiled")  # of the sound and of both systems' torso
ER_PLANE = GridSpec(2, 12, 1, 64, 512, 14, "hash")
Shape = tuple[int, ...]

# Parameters that no picture needs: a file without them is taken, with what a fresh model has in their place.
DISPENSABLE = ("individual_codes", "individual_codes_torso", "camera_dR", "camera_dT", "unc_net.")
BUFFERS = (
    *("aabb_train", "aabb_infer", "density_grid", "density_bitfield", "density_grid_torso", "step_counter"),
    *(f"{name}.offsets" for name in ("encoder", "encoder_ambient", "encoder_xy", "encoder_yz", "encoder_xz")),
    "torso_encoder.offsets",
)


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One entry of a state dict. `path` in our parameters, '' where we have none; `form`: what has to be done to it.

    form: `same`; `linear` [out,in] -> [in,out]; `conv` [out,in,k] -> [k,in,out]; `plane0`… [entries,F], the plane of
    our [P,entries,F].
    """

    key: str
    shape: Shape
    path: str = ""
    form: str = "same"
    torso: bool = False

    @property
    def parameter(self) -> bool:
        return self.key not in BUFFERS

    @property
    def numbers(self) -> str:
        """What kind of numbers it holds: `bytes`, `whole` or `real`."""
        if self.key == "density_bitfield":
            return "bytes"
        return "whole" if self.key.endswith(".offsets") or self.key == "step_counter" else "real"

    @property
    def dispensable(self) -> bool:
        return not self.parameter or self.key.startswith(DISPENSABLE)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What differs between files of one system, read from their shapes."""

    audio: int  # channels of the sound features
    audio_dim: int  # of the audio code: 64 RAD-NeRF, 32 ER-NeRF
    code_rows: int = 10000
    code_dim: int = 4
    torso_dim: int = 8
    torso: bool = False
    cameras: bool = False
    eye: bool = True


def _audio(s: Sizes) -> Iterator[Tensor]:
    widths = (s.audio, 32, 32, 64, 64)
    for i, (a, b) in enumerate(itertools.pairwise(widths)):
        yield Tensor(f"audio_net.encoder_conv.{2 * i}.weight", (b, a, 3), f"audio_net/convs_{i}/kernel", "conv")
        yield Tensor(f"audio_net.encoder_conv.{2 * i}.bias", (b,), f"audio_net/convs_{i}/bias")
    for i, b in enumerate((64, s.audio_dim)):
        yield Tensor(f"audio_net.encoder_fc1.{2 * i}.weight", (b, 64), f"audio_net/fc{i + 1}/kernel", "linear")
        yield Tensor(f"audio_net.encoder_fc1.{2 * i}.bias", (b,), f"audio_net/fc{i + 1}/bias")
    widths = (s.audio_dim, 16, 8, 4, 2, 1)
    for i, (a, b) in enumerate(itertools.pairwise(widths)):
        key, path = f"audio_att_net.attentionConvNet.{2 * i}", f"audio_attention/convs_{i}"
        yield Tensor(f"{key}.weight", (b, a, 3), f"{path}/kernel", "conv")
        yield Tensor(f"{key}.bias", (b,), f"{path}/bias")
    yield Tensor("audio_att_net.attentionNet.0.weight", (8, 8), "audio_attention/fc/kernel", "linear")
    yield Tensor("audio_att_net.attentionNet.0.bias", (8,), "audio_attention/fc/bias")


def _mlp(key: str, path: str, widths: Shape, torso: bool = False) -> Iterator[Tensor]:
    for i, (a, b) in enumerate(itertools.pairwise(widths)):
        yield Tensor(f"{key}.net.{i}.weight", (b, a), f"{path}/kernel_{i}", "linear", torso)


def _grid(key: str, path: str, spec: GridSpec, plane: int = 0, torso: bool = False) -> Iterator[Tensor]:
    yield Tensor(f"{key}.embeddings", (spec.entries, spec.features), f"{path}/tables", f"plane{plane}", torso)
    yield Tensor(f"{key}.offsets", (spec.levels + 1,), torso=torso)


def _own(s: Sizes, anchors: bool) -> Iterator[Tensor]:
    """Parameters and buffers of the network itself."""
    yield Tensor("individual_codes", (s.code_rows, s.code_dim), "codes/embedding")
    if s.torso:
        yield Tensor("individual_codes_torso", (s.code_rows, s.torso_dim), "torso/codes", torso=True)
    if s.cameras:
        yield Tensor("camera_dR", (s.code_rows, 3), "camera_rotation/embedding")
        yield Tensor("camera_dT", (s.code_rows, 3), "camera_translation/embedding")
    if s.torso and anchors:
        yield Tensor("anchor_points", (3, 4), "torso/anchors", torso=True)
    yield Tensor("aabb_train", (6,))
    yield Tensor("aabb_infer", (6,))
    yield Tensor("density_grid", (1, SIDE**3))
    yield Tensor("density_bitfield", (SIDE**3 // 8,))
    if s.torso:
        yield Tensor("density_grid_torso", (TORSO_SIDE**2,), torso=True)
    yield Tensor("step_counter", (16, 2))


def _torso(s: Sizes, pose: int, point: int, hidden: int) -> Iterator[Tensor]:
    """pose, point: encoded widths; hidden: of the deformation."""
    given = pose + point + s.torso_dim
    yield from _mlp("torso_deform_net", "torso/deform", (given, hidden, hidden, 2), torso=True)
    yield from _grid("torso_encoder", "torso/grid", RAD_PLANE, torso=True)
    yield from _mlp("torso_net", "torso/colour", (RAD_PLANE.channels + given, 32, 32, 4), torso=True)


def _rad_nerf(s: Sizes) -> Iterator[Tensor]:
    yield from _own(s, anchors=False)
    yield from _audio(s)
    yield from _grid("encoder", "encoder", RAD_SPACE)
    yield from _grid("encoder_ambient", "encoder_ambient", RAD_PLANE)
    yield from _mlp("ambient_net", "ambient", (32 + s.audio_dim, 64, 64, 2))
    yield from _mlp("sigma_net", "sigma", (64 + s.eye, 64, 64, 1 + GEOMETRY))
    yield from _mlp("color_net", "colour", (SH + GEOMETRY + s.code_dim, 64, 3))
    if s.torso:
        yield from _torso(s, 6 * (1 + 2 * 4), 2 * (1 + 2 * 10), 64)  # pose of 6 numbers, 4 octaves; point, 10 octaves


def _er_nerf(s: Sizes) -> Iterator[Tensor]:
    yield from _own(s, anchors=True)
    yield from _audio(s)
    for i, name in enumerate(("xy", "yz", "xz")):
        yield from _grid(f"encoder_{name}", "planes", ER_PLANE, i)
    features = 3 * ER_PLANE.channels
    if s.eye:
        yield from _mlp("eye_att_net", "eye_attention", (features, 16, 1))
    yield from _mlp("sigma_net", "density", (features + s.audio_dim + s.eye, 64, 64, 1 + GEOMETRY))
    yield from _mlp("color_net", "colour", (SH + GEOMETRY + s.code_dim, 64, 3))
    yield from _mlp("unc_net", "uncertainty", (features, 32, 1))
    yield from _mlp("aud_ch_att_net", "audio_channel_attention", (features, 64, s.audio_dim))
    if s.torso:
        yield from _torso(s, 6 * (1 + 2 * 3), 2 * (1 + 2 * 8), 32)  # three anchors in the picture, 3 octaves; 8 octaves


SYSTEMS = {"rad_nerf": _rad_nerf, "er_nerf": _er_nerf}
NAMES = {"rad_nerf": "RAD-NeRF", "er_nerf": "ER-NeRF", "avatar_ernerf": "Avatar-ERNeRF"}
SIGNS = {  # keys that only one system has
    "rad_nerf": ("encoder_ambient.embeddings", "ambient_net.net.0.weight", "encoder.embeddings"),
    "er_nerf": (
        "encoder_xy.embeddings",
        "encoder_yz.embeddings",
        "encoder_xz.embeddings",
        "aud_ch_att_net.net.0.weight",
    ),
}
TORSO_SIGNS = ("torso_net.net.0.weight", "torso_deform_net.net.0.weight", "torso_encoder.embeddings")


def layout(system: str, sizes: Sizes) -> tuple[Tensor, ...]:
    """All tensors of a file, in its order."""
    return tuple(SYSTEMS[system](sizes))


def recognise(keys) -> str | None:
    """The system whose own keys are the most among these, or None."""
    found = {name: sum(sign in keys for sign in signs) for name, signs in SIGNS.items()}
    best = max(found, key=found.get)
    return best if found[best] else None


def sizes(system: str, shapes: Mapping[str, Shape]) -> Sizes:
    """The sizes that the shapes of a state dict tell; where a tensor is missing, the usual ones."""

    def at(key: str, axis: int, usual: int) -> int:
        shape = shapes.get(key, ())
        return shape[axis] if len(shape) > axis else usual

    rad = system == "rad_nerf"
    audio_dim = at("audio_net.encoder_fc1.2.weight", 0, 64 if rad else 32)
    with_eye = 65 if rad else 3 * ER_PLANE.channels + audio_dim + 1
    return Sizes(
        audio=at("audio_net.encoder_conv.0.weight", 1, 29),
        audio_dim=audio_dim,
        code_rows=at("individual_codes", 0, at("individual_codes_torso", 0, 10000)),
        code_dim=at("individual_codes", 1, 4),
        torso_dim=at("individual_codes_torso", 1, 8),
        torso=any(key in shapes for key in TORSO_SIGNS),
        cameras="camera_dR" in shapes or "camera_dT" in shapes,
        eye=at("sigma_net.net.0.weight", 1, with_eye) != with_eye - 1,
    )


def offsets(key: str) -> list[int]:
    """Where the levels of a grid's table begin, and its end."""
    name = key.removesuffix(".offsets")
    spec = RAD_SPACE if name == "encoder" else RAD_PLANE if name in ("encoder_ambient", "torso_encoder") else ER_PLANE
    return [level.offset for level in spec.table] + [spec.entries]


def count(tensors, torso: bool) -> int:
    """Trained numbers of the head or of the torso."""
    return sum(math.prod(t.shape) for t in tensors if t.parameter and t.torso == torso)
