"""AD-NeRF's checkpoints: a head file and, once its torso is trained, a body file beside it (ad-nerf dossier §2.1, §3).

Both are named after the step, `300000_head.tar` and `600000_body.tar`, and hold state dicts of single networks: coarse,
fine, audio net, attention (head alone). The training of the torso writes the head again, under its own step. Here the
state dicts of a file are one, with the name of its own before each key: `network_fn_state_dict.pts_linears.0.weight`.
The body's audio net and both files' feature_linear are never used; they are kept for `--mode=export`.
"""

import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from tkjax.errors import UserError
from tkjax.originals import source, weights
from tkjax.originals.layout import Shape, Tensor
from tkjax.originals.source import Source

PASSES = {"coarse": "network_fn_state_dict", "fine": "network_fine_state_dict"}
AUDIO, ATTENTION = "network_audnet_state_dict", "network_audattnet_state_dict"
VOLUMES = {"head": "head.tar", "torso": "body.tar"}  # the end of a file's name
POINT, VIEW, CODE, POSE = 63, 27, 64, 42  # inputs: position, direction, audio code, the torso's angles and translation
INPUTS = {"head": POINT + CODE, "torso": POINT + CODE + POSE}
ATTENDED = 32  # channels of a code that the attention looks at


@dataclasses.dataclass(frozen=True)
class Size:
    """One network: layers, their width, and how many lie before the skip."""

    depth: int = 8
    width: int = 256
    skip: int = 5


def is_one(shapes: Mapping[str, Shape]) -> bool:
    return any(key.startswith(f"{part}.") for key in shapes for part in PASSES.values())


def volume_of(file: Source) -> str:
    """`head` or `torso`, by the width of what goes into its networks; UserError where it is neither."""
    shape = file.shapes.get(f"{PASSES['coarse']}.pts_linears.0.weight", ())
    for name, inputs in INPUTS.items():
        if len(shape) == 2 and shape[1] == inputs:
            return name
    raise UserError(
        f"{file.path}: the first layer of its coarse network is {list(shape)}, expected {INPUTS['head']} inputs (head) "
        f"or {INPUTS['torso']} (body), which the encodings and code sizes of the released options have"
    )


def size_of(file: Source, part: str, inputs: int) -> Size:
    """The size of a network, read from its shapes; UserError where it is none of this kind."""
    shapes, depth = file.shapes, 0
    while f"{part}.pts_linears.{depth}.weight" in shapes:
        depth += 1
    layers = [shapes[f"{part}.pts_linears.{i}.weight"] for i in range(depth)]
    if not 1 <= depth <= 8 or any(len(s) != 2 for s in layers):
        raise UserError(f"{file.path}: {part} has {depth} layers pts_linears, expected 1 to 8 matrices")
    width = layers[0][0]
    behind = [i for i, s in enumerate(layers) if i and s[1] == width + inputs]
    return Size(depth, width, behind[0] if behind else depth)


def network(part: str, path: str, inputs: int, size: Size) -> Iterator[Tensor]:
    """The tensors of one network, in the file's order."""

    def layer(key: str, where: str, i: int, given: int, out: int) -> Iterator[Tensor]:
        kernel, bias = (f"{path}/{where}/kernel_{i}", f"{path}/{where}/bias_{i}") if where else ("", "")
        yield Tensor(f"{part}.{key}.weight", (out, given), kernel, "linear")
        yield Tensor(f"{part}.{key}.bias", (out,), bias)

    for i in range(size.depth):
        given = inputs if i == 0 else size.width + (inputs if i == size.skip else 0)
        where, k = ("trunk", i) if i < size.skip else ("behind_skip", i - size.skip)
        yield from layer(f"pts_linears.{i}", where, k, given, size.width)
    half, views = size.width // 2, 1 + size.depth // 4
    for i in range(views):
        yield from layer(f"views_linears.{i}", "colour", i, size.width + VIEW if i == 0 else half, half)
    yield from layer("feature_linear", "", 0, size.width, size.width)
    yield from layer("alpha_linear", "density", 0, size.width, 1)
    yield from layer("rgb_linear", "colour", views, half, 3)


def _convs(key: str, path: str, widths: Shape) -> Iterator[Tensor]:
    for i, (a, b) in enumerate(itertools.pairwise(widths)):
        yield Tensor(f"{key}.{2 * i}.weight", (b, a, 3), f"{path}/convs_{i}/kernel" if path else "", "conv")
        yield Tensor(f"{key}.{2 * i}.bias", (b,), f"{path}/convs_{i}/bias" if path else "")


def _denses(key: str, paths: tuple[str, ...], width: int) -> Iterator[Tensor]:
    for i, path in enumerate(paths):
        yield Tensor(f"{key}.{2 * i}.weight", (width, width), path and f"{path}/kernel", "linear")
        yield Tensor(f"{key}.{2 * i}.bias", (width,), path and f"{path}/bias")


def layout(volume: str, sizes: Mapping[str, Size], audio: int, attention: bool = True) -> tuple[Tensor, ...]:
    """All tensors of a file, in its order. sizes: by pass; audio: channels of the sound features. What the pictures do
    not need has no path."""
    out: list[Tensor] = []
    for name, part in PASSES.items():
        out += network(part, f"{volume}/{name}", INPUTS[volume], sizes[name])
    own = "audio_net" if volume == "head" else ""  # the body's is never used
    out += _convs(f"{AUDIO}.encoder_conv", own, (audio, 32, 32, 64, 64))
    out += _denses(f"{AUDIO}.encoder_fc1", ("audio_net/fc1", "audio_net/fc2") if own else ("", ""), CODE)
    if volume == "head" and attention:
        out += _convs(f"{ATTENTION}.attentionConvNet", "audio_attention", (ATTENDED, 16, 8, 4, 2, 1))
        out += _denses(f"{ATTENTION}.attentionNet", ("audio_attention/fc",), 8)
    return tuple(out)


@dataclasses.dataclass
class Checkpoint:
    """One file: `head` or `torso`, its sizes and tensors."""

    file: Source
    volume: str
    sizes: dict[str, Size]
    audio: int
    attention: bool
    tensors: tuple[Tensor, ...]

    @property
    def step(self) -> int | None:
        step = self.file.facts["top"].get("global_step")
        return step if type(step) is int else None

    @property
    def unknown(self) -> list[str]:
        return weights.unknown(self.tensors, self.file.shapes)


def recognise(file: Source) -> Checkpoint:
    """What a file is; UserError where it lacks something that a picture needs, or holds other shapes or numbers."""
    path, shapes, volume = file.path, file.shapes, volume_of(file)
    sizes = {name: size_of(file, part, INPUTS[volume]) for name, part in PASSES.items()}
    first = shapes.get(f"{AUDIO}.encoder_conv.0.weight", ())
    audio = first[1] if len(first) == 3 else 29
    attention = any(key.startswith(f"{ATTENTION}.") for key in shapes)
    tensors = layout(volume, sizes, audio, attention)
    needed = [t.key for t in weights.missing(tensors, shapes) if t.path]
    if needed:
        raise UserError(
            f"{path} lacks {len(needed)} tensors that the {volume} of AD-NeRF cannot do without: {', '.join(needed)}"
        )
    weights.check_kinds(tensors, file.model, str(path))
    weights.check_shapes(tensors, shapes, str(path))
    weights.check_finite(file.model, str(path))
    return Checkpoint(file, volume, sizes, audio, attention, tensors)


def files_of(path: Path) -> tuple[Path, Path | None]:
    """(head file, body file or None) of a folder, the newest of each, or of a file: the head alone, a body with the
    newest head beside it. UserError where there is no head."""
    if path.is_dir():
        heads, bodies = (_newest(path, end) for end in VOLUMES.values())
        if heads is None:
            raise UserError(f"{path} holds no file that ends with head.tar, expected NUMBER_head.tar of AD-NeRF")
        return heads, bodies
    if not path.name.endswith(VOLUMES["torso"]):
        return path, None
    head = _newest(path.parent, VOLUMES["head"])
    if head is None:
        raise UserError(
            f"{path} is a body, which stands on a head, and there is no head.tar beside it; put the head's file there "
            "(its torso's training writes it under the same number)"
        )
    return head, path


def _newest(folder: Path, end: str) -> Path | None:
    """The file with the largest number in its name, as the original takes it."""

    def number(path: Path) -> tuple[int, str]:
        found = re.findall(r"\d+", path.name)
        return (int(found[-1]) if found else -1, path.name)

    return max((p for p in folder.glob(f"*{end}") if p.is_file()), key=number, default=None)


def read(head: Path, body: Path | None, folder: Path) -> tuple[Checkpoint, Checkpoint | None]:
    """Both files as arrays, which stay in `folder` (the body's in folder/body); UserError where they are not what their
    names say, or do not belong together."""
    first = recognise(source.read(head, folder))
    if first.volume != "head":
        raise UserError(f"{head} holds a body, expected the networks of a head; give NUMBER_head.tar")
    if body is None:
        return first, None
    second = recognise(source.read(body, folder / "body"))
    if second.volume != "torso":
        raise UserError(f"{body} holds a head, expected the networks of a body; give NUMBER_body.tar")
    if second.sizes != first.sizes:
        raise UserError(f"{body} has networks of other sizes than {head}; give the two of one training")
    return first, second


def settings(head: Checkpoint) -> dict[str, object]:
    """Settings of a config that the head's file tells, by their dotted names."""
    coarse, fine = head.sizes["coarse"], head.sizes["fine"]
    keys: dict[str, object] = {"model.depth": fine.depth, "model.width": fine.width, "model.skip_at": fine.skip}
    keys |= {"model.coarse_depth": coarse.depth, "model.coarse_width": coarse.width, "model.coarse_skip": coarse.skip}
    return keys if head.attention else keys | {"train.head.attention_start": NEVER}


NEVER = 2**30  # a step that no training reaches


def to_params(head: Checkpoint, body: Checkpoint | None, fresh: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Our parameters {path: array}; of what a file does not have, those of `fresh`."""
    params = weights.to_params(head.tensors, head.file.model, fresh)
    return params if body is None else weights.to_params(body.tensors, body.file.model, params)


def fresh(shapes: Mapping[str, Shape]) -> dict[str, np.ndarray]:
    """A new model's parameters for what a file does not have: in ±1/√(inputs)."""
    rng = np.random.default_rng(0)
    out = {}
    for path, shape in shapes.items():
        given = int(np.prod(shape[:-1])) if len(shape) > 1 else 64
        out[path] = (rng.uniform(-1, 1, shape) / np.sqrt(given)).astype(np.float32)
    return out


def state_dict(
    volume: str, sizes: Mapping[str, Size], audio: int, attention: bool, params: Mapping[str, np.ndarray],
    kept: Source | None, density_scale: float = 1.0,
) -> dict[str, np.ndarray]:  # fmt: skip
    """The tensors of a file: our parameters, the density's last layer times density_scale (which is what our programs
    multiply its output by), and of what they do not have (feature_linear, the body's audio net) those of the file that
    was imported, else new ones in ±1/√(inputs)."""
    tensors = layout(volume, sizes, audio, attention)
    ours = weights.from_params([t for t in tensors if t.path], params)
    rng = np.random.default_rng(0)
    out = {} if kept is None else dict(kept.model)
    for t in tensors:
        if t.path:
            scale = density_scale if "alpha_linear" in t.key else 1.0
            out[t.key] = ours[t.key] if scale == 1.0 else (ours[t.key] * np.float32(scale)).astype(np.float32)
        elif t.key not in out:
            given = int(np.prod(t.shape[1:])) if len(t.shape) > 1 else 64
            out[t.key] = (rng.uniform(-1, 1, t.shape) / np.sqrt(given)).astype(np.float32)
    return out
