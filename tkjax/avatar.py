"""The trained bundle: everything that rendering needs, independent of the dataset it came from.

A folder of hash-named files (`params-<hash>.npz`, `track-00000-<hash>.npz`, `background-<hash>.png`, and where the clip
has pictures `full-<hash>.mp4`, the whole source frames, perhaps with `full_alpha-<hash>.mp4`, their matte) and
`avatar.json`, which names them with their sha256, carries a digest of its own and is replaced last: a save that is
killed leaves the old avatar or the new one. Nothing in it is a pickle.

Format 2 has held-out frames behind the training frames in the track, labels, faces, eye areas, whole frames and the
names of the finished stages. Format 1 is still read; what it lacks is named when it is asked for.
"""

import dataclasses
import functools
import hashlib
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from ml_collections import ConfigDict
from PIL import Image

from tkjax import __version__, avatar_track, config, contract, images, split
from tkjax.errors import UserError
from tkjax.files import write_atomic
from tkjax.full_frames import FullFrames
from tkjax.models import base
from tkjax.types import PyTree, SubjectInfo, Variables

FORMAT = 2
READABLE = (1, 2)
TRACK_FRAMES = 64  # frames in one track file


def flatten(tree: PyTree) -> dict[str, np.ndarray]:
    """{'params/a/b': array} of a pytree; half-precision leaves are stored as float32."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    out = {}
    for path, leaf in leaves:
        value = np.asarray(leaf)
        if jax.numpy.issubdtype(value.dtype, jax.numpy.floating):
            value = value.astype(np.float32)
        out[jax.tree_util.keystr(path, simple=True, separator="/")] = value
    return out


def unflatten(template: PyTree, arrays: Mapping[str, np.ndarray], name: str) -> PyTree:
    """The arrays in the structure, shapes and dtypes of `template`; UserError names the first that does not fit."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(template)
    keys = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    for key in sorted(set(keys) ^ set(arrays)):
        where = "lacks" if key in keys else "has an unknown"
        raise UserError(f"{name} {where} array {key!r}: it was not made by this system's version")
    values = []
    for key, (_, like) in zip(keys, leaves):
        if arrays[key].shape != like.shape:
            raise UserError(f"{name}: array {key!r} has shape {arrays[key].shape}, the model expects {like.shape}")
        values.append(jax.numpy.asarray(arrays[key], like.dtype))
    return jax.tree.unflatten(structure, values)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _json_digest(meta: dict) -> str:
    return _digest(json.dumps({**meta, "digest": ""}, sort_keys=True).encode())


def _dump(meta: dict) -> bytes:
    return (json.dumps(meta, indent=2) + "\n").encode()


def _npz(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Uncompressed npz with constant time stamps: equal arrays give equal bytes."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, value in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, np.asarray(value, order="C"), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), member.getvalue())
    return out.getvalue()


def _write(folder: Path, stem: str, suffix: str, data: bytes) -> dict:
    """Write one hash-named file; its entry for avatar.json."""
    digest = _digest(data)
    name = f"{stem}-{digest[:8]}{suffix}"
    write_atomic(folder / name, data)
    return {"name": name, "sha256": digest}


def save(
    folder: Path,
    resolved: ConfigDict,
    variables: Variables,
    step: int,
    clip: Any,
    audio: dict,
    consent: dict,
    stages: Sequence[str] | None = None,
) -> str:
    """Write the bundle; its id.

    step: of the last finished stage; stages: the names of the finished ones, None for all of the system's; audio: the
    spec of the training sound's features. clip: a `data.Clip`, or anything with `info`, `fps`, `plate`, `train_range`,
    the arrays `cam_to_world`, `eye_closed`, `expression`, `confidence` over its frames, `boxes` (face_box_px,
    lips_box_px) and `torso_rgba(i)`. Without `heldout_range`, `eye_area`, `label(i)`, `landmarks68_px` or `dataset` the
    avatar holds no held-out frames, eye areas, labels and faces, faces, or whole frames.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model = base.load(resolved.system)(resolved, clip.info)
    stages = [stage.name for stage in model.stages()] if stages is None else list(stages)
    numbers, full = avatar_track.frame_numbers(clip), avatar_track.full_facts(clip)
    n_train = len(split.train_frames(clip))
    meta = {
        "format": FORMAT,
        "tool": f"tkjax {__version__}",
        "system": resolved.system,
        "config": config.to_dict(resolved),
        "info": clip.info.to_json(),
        "stages": stages,
        "step": int(step),
        "background": _behind_head(model, stages),
        "background_trt": avatar_track.background_trt(clip),
        "fps": float(clip.fps),
        "first_frame": int(numbers[0]),
        "n_train": n_train,
        "n_track": len(numbers),
        "heldout_first": int(numbers[n_train]) if len(numbers) > n_train else None,
        "full": full,
        "audio": audio,
        "consent": consent,
        "files": _store(folder, variables, clip, numbers, full),
    }
    meta["id"] = _json_digest(meta)[:16]
    meta["digest"] = _json_digest(meta)
    write_atomic(folder / "consent.json", (json.dumps(consent, indent=2) + "\n").encode())
    write_atomic(folder / "avatar.json", _dump(meta))
    _remove_stale(folder, meta)
    return meta["id"]


def _store(folder: Path, variables: Variables, clip: Any, numbers: Int[np.ndarray, " n"], full: dict | None) -> dict:
    """Write what the bundle consists of; its entries for avatar.json."""
    files: dict[str, Any] = {
        "params": _write(folder, "params", ".npz", _npz(flatten(variables))),
        "background": _write(folder, "background", ".png", images.encode_png(np.asarray(clip.plate))),
        "track": [],
    }
    for start in range(0, len(numbers), TRACK_FRAMES):
        data = _npz(avatar_track.pack(clip, numbers[start : start + TRACK_FRAMES]))
        files["track"].append(_write(folder, f"track-{start:05d}", ".npz", data))
    if full is not None:
        files |= _full_as_before(folder, full) or avatar_track.store_full(folder, clip)
    return files


def _remove_stale(folder: Path, meta: dict) -> None:
    """Remove the files of earlier saves, and what killed ones left."""
    keep = {entry["name"] for entry in _entries(meta)} | {"avatar.json", "consent.json"}
    for stale in folder.iterdir():
        if stale.name not in keep and stale.is_file():
            stale.unlink()


def _behind_head(model: base.Model, stages: Sequence[str]) -> str:
    """What stands behind the head where no torso is modelled: that of the last finished stage of whole frames."""
    drawn = [stage.background for stage in model.stages() if stage.name in stages and stage.target == "frame"]
    return drawn[-1] if drawn else "torso"


def _entries(meta: dict) -> list[dict]:
    files = meta["files"]
    videos = [files[name] for name in ("full", "full_alpha") if name in files]
    return [files["params"], files["background"], *files["track"], *videos]


def _full_as_before(folder: Path, full: dict) -> dict[str, dict] | None:
    """The entries of whole frames that an earlier save made of the same dataset; they take long to encode."""
    try:
        before = _read_meta(folder)
    except UserError:
        return None
    entries = {name: before["files"][name] for name in ("full", "full_alpha") if name in before["files"]}
    if before.get("full") != full or not entries:
        return None
    whole = all(
        (folder / e["name"]).is_file() and avatar_track.sha256(folder / e["name"]) == e["sha256"]
        for e in entries.values()
    )
    return entries if whole else None


@dataclasses.dataclass
class Avatar:
    """A loaded bundle. Track arrays have a row per frame, the training frames (`n_train`) before the held-out ones;
    pictures are read when asked for, by their number in the track."""

    folder: Path
    meta: dict
    config: ConfigDict
    info: SubjectInfo
    plate: UInt8[np.ndarray, "H W 3"]
    cam_to_world: Float[np.ndarray, "n 4 4"]
    eye_closed: Float[np.ndarray, " n"]
    expression: Float[np.ndarray, "n K"]
    confidence: Float[np.ndarray, " n"]
    face_box_px: np.ndarray
    lips_box_px: np.ndarray
    eye_area: Float[np.ndarray, " n"] | None = None
    _cached: tuple[int, dict] | None = None
    _videos: dict[str, FullFrames] = dataclasses.field(default_factory=dict)

    @property
    def id(self) -> str:
        return self.meta["id"]

    @property
    def n_track(self) -> int:
        return len(self.cam_to_world)

    @property
    def n_train(self) -> int:
        return self.meta.get("n_train", self.n_track)

    @property
    def stages(self) -> tuple[str, ...]:
        """The finished stages, in order."""
        return tuple(self.meta["stages"])

    def frame_number(self, i: int) -> int:
        """The number in the dataset of track frame i."""
        return int(self.numbers[i])

    @property
    def in_blocks(self) -> bool:
        """Whether the held-out frames lie in blocks among the training frames."""
        return self.config.get("data", {}).get("split", "last") == "blocks" and self.n_track > self.n_train

    @functools.cached_property
    def numbers(self) -> Int[np.ndarray, " n"]:
        """The numbers in the dataset of the track's frames."""
        first, n, n_train = self.meta["first_frame"], self.n_track, self.n_train
        if self.in_blocks:
            return np.concatenate(split.blocks(first, n, n - n_train))
        heldout = np.arange(n - n_train) + (self.meta["heldout_first"] if n > n_train else 0)
        return np.concatenate([first + np.arange(n_train), heldout])

    # ------------------------------------------------ pictures of the crop

    def _picture(self, kind: str, i: int) -> np.ndarray:
        """One PNG of the track; keeps one track file in memory."""
        shard, row = divmod(i, TRACK_FRAMES)
        cached = self._cached  # another thread may read another frame
        if cached is None or cached[0] != shard:
            cached = self._cached = (shard, _read_npz(self.folder / self.meta["files"]["track"][shard]["name"]))
        arrays = cached[1]
        if f"{kind}_png" not in arrays:
            raise UserError(
                f"{self.folder} holds no {kind} pictures (it was made by an older version or without its clip); "
                "run --mode=train with the dataset again, which keeps what is trained"
            )
        a, b = arrays[f"{kind}_offsets"][row : row + 2]
        return images.decode_png(arrays[f"{kind}_png"][a:b].tobytes())

    def torso(self, i: int) -> UInt8[np.ndarray, "H W 4"]:
        """Straight-alpha torso picture."""
        return self._picture("torso", i)

    def label(self, i: int) -> UInt8[np.ndarray, "H W"]:
        """0 background, 1 head, 2 neck, 3 torso in the original frame."""
        return self._picture("label", i)

    def face(self, i: int) -> Bool[np.ndarray, "H W"]:
        """The face in the original frame, without ears, hair and neck."""
        return self._picture("face", i) > 127

    # ------------------------------------------------ whole frames

    @property
    def has_full(self) -> bool:
        return bool(self.meta.get("full"))

    @property
    def full_hw(self) -> tuple[int, int]:
        """(height, width) of the whole frames."""
        return tuple(self._full_facts()["size"][::-1])

    @property
    def box(self) -> tuple[int, int, int, int]:
        """(x0, y0, x1, y1) of the crop in the whole frames."""
        return tuple(self._full_facts()["box"])

    @property
    def cropped(self) -> bool:
        """Whether the whole frames show more than the crop."""
        if not self.has_full:
            return False
        (x0, y0, x1, y1), (h, w) = self.box, self.full_hw
        return x0 > 0 or y0 > 0 or x1 < w or y1 < h

    def _full_facts(self) -> dict:
        if not self.has_full:
            raise UserError(
                f"{self.folder} holds no whole frames (it was made by an older version or without its clip); use "
                "--paste_back=none, or run --mode=train with the dataset again, which keeps what is trained"
            )
        return self.meta["full"]

    def _video(self, name: str) -> FullFrames:
        if name not in self._videos:
            path, grey = self.folder / self.meta["files"][name]["name"], name == "full_alpha"
            self._videos[name] = FullFrames(path, self.full_hw, self.meta["fps"], grey=grey)
        return self._videos[name]

    def full_frame(self, i: int) -> UInt8[np.ndarray, "FH FW 3"]:
        """The whole source frame; of a keyed clip the person over the constant colour that replaced the background."""
        straight = self._full_facts()["straight"]
        rgb = self._video("full")[self.frame_number(i)]
        if not straight:
            return rgb
        plate = Image.new("RGB", rgb.shape[1::-1], tuple(self.meta["background_trt"]))
        return np.array(Image.composite(Image.fromarray(rgb), plate, Image.fromarray(self.full_matte(i))))

    def full_matte(self, i: int) -> UInt8[np.ndarray, "FH FW"] | None:
        """The coverage of the person in the whole frame; None where the clip was not keyed."""
        self._full_facts()
        if "full_alpha" not in self.meta["files"]:
            return None
        return self._video("full_alpha")[self.frame_number(i)]

    def close(self) -> None:
        """Give the videos' files and memory back."""
        while self._videos:
            self._videos.popitem()[1].close()

    # ------------------------------------------------ the model

    def model(self) -> base.Model:
        return base.load(self.config.system)(self.config, self.info)

    def variables(self, model: base.Model) -> Variables:
        template = jax.eval_shape(model.init, jax.random.key(0))
        path = self.folder / self.meta["files"]["params"]["name"]
        return unflatten(template, _read_npz(path), str(path))


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as data:
            return {name: data[name] for name in data.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}); train or copy the avatar again") from error


def _read_meta(folder: Path) -> dict:
    path = folder / "avatar.json"
    if not path.is_file():
        raise UserError(f"{folder} holds no avatar (avatar.json is missing); train one with --mode=fit or --mode=train")
    raw = path.read_bytes()
    try:
        meta = json.loads(raw)
    except ValueError as error:
        raise UserError(f"{path} is damaged (not json); train or copy the avatar again") from error
    if not isinstance(meta, dict) or meta.get("digest") != _json_digest(meta) or raw != _dump(meta):
        raise UserError(f"{path} is damaged (its digest does not match); train or copy the avatar again")
    if meta["format"] not in READABLE:
        raise UserError(f"{path} has format {meta['format']}; this version reads up to {FORMAT}, so train it again")
    return meta


def load(folder: Path) -> Avatar:
    """Read and verify a bundle; one sentence where it is missing, damaged or of another format."""
    folder = Path(folder)
    meta = _read_meta(folder)
    for entry in _entries(meta):
        path = folder / entry["name"]
        if not path.is_file():
            raise UserError(f"{path} is missing from the avatar; train or copy it again")
        if avatar_track.sha256(path) != entry["sha256"]:
            raise UserError(f"{path} is damaged (its sha256 does not match); train or copy the avatar again")
    columns: dict[str, list] = {name: [] for name in avatar_track.COLUMNS}
    for entry in meta["files"]["track"]:
        with np.load(folder / entry["name"], allow_pickle=False) as data:
            for name in (*avatar_track.COLUMNS, *(set(avatar_track.OPTIONAL_COLUMNS) & set(data.files))):
                columns.setdefault(name, []).append(data[name])
    settings, info = config.completed(ConfigDict(config.tuples(meta["config"]))), SubjectInfo.from_json(meta["info"])
    if "stages" not in meta:  # format 1: saved when every stage was finished
        meta["stages"] = [stage.name for stage in base.load(settings.system)(settings, info).stages()]
    return Avatar(
        folder=folder,
        meta=meta,
        config=settings,
        info=info,
        plate=images.decode_png((folder / meta["files"]["background"]["name"]).read_bytes()),
        **{name: np.concatenate(parts) for name, parts in columns.items()},
    )


def audio_spec(features: contract.AudioFeatures | contract.AudioHeader) -> dict:
    """What sound features must agree in with those of the training."""
    names = ("kind", "rate_hz", "extractor", "window", "hop", "left", "pad", "channels")
    return {k: getattr(features, k) for k in names}
