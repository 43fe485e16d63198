"""The trained bundle: everything that rendering needs, independent of the dataset it came from.

A folder of hash-named files (`params-<hash>.npz`, `track-<hash>-00000.npz`, `background-<hash>.png`) and `avatar.json`,
which names them with their sha256, carries a digest of its own and is replaced last: a save that is
killed leaves the old avatar or the new one. Nothing in it is a pickle.
"""

import dataclasses
import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict

from tkjax import __version__, config, contract, images
from tkjax.errors import UserError
from tkjax.models import base
from tkjax.types import PyTree, SubjectInfo, Variables

FORMAT = 1
TRACK_FRAMES = 64  # frames in one track file
TRACK_MEMBERS = ("cam_to_world", "eye_closed", "expression", "confidence", "face_box_px", "lips_box_px")


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
    images.write_atomic(folder / name, data)
    return {"name": name, "sha256": digest}


def _torso_png(clip: Any, i: int) -> bytes:
    """The torso of frame i at training size, straight alpha, colours 0 where alpha is 0 (they compress to nothing)."""
    rgba = clip.torso_rgba(i)
    return images.encode_png(np.where(rgba[..., 3:] > 0, rgba, 0).astype(np.uint8))


def _track(clip: Any, frames: range) -> dict[str, np.ndarray]:
    """One track file: what drives the head in these frames, and their torso pictures."""
    column = {
        "cam_to_world": clip.cam_to_world,
        "eye_closed": clip.eye_closed,
        "expression": clip.expression,
        "confidence": clip.confidence,
        **{k: clip.boxes[k] for k in ("face_box_px", "lips_box_px")},
    }
    out = {k: np.asarray(column[k])[frames.start : frames.stop] for k in TRACK_MEMBERS}
    pngs = [_torso_png(clip, i) for i in frames]
    out["torso_png"] = np.frombuffer(b"".join(pngs), np.uint8)
    out["torso_offsets"] = np.cumsum([0, *map(len, pngs)], dtype=np.int64)
    return out


def save(
    folder: Path, resolved: ConfigDict, variables: Variables, step: int, clip: Any, audio: dict, consent: dict
) -> str:
    """Write the bundle; its id. `step` is the last stage's; `audio` the spec of the training sound's features."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model = base.load(resolved.system)(resolved, clip.info)
    first, last = clip.train_range
    files = {
        "params": _write(folder, "params", ".npz", _npz(flatten(variables))),
        "background": _write(folder, "background", ".png", images.encode_png(np.asarray(clip.plate))),
        "track": [],
    }
    for start in range(first, last, TRACK_FRAMES):
        data = _npz(_track(clip, range(start, min(start + TRACK_FRAMES, last))))
        files["track"].append(_write(folder, f"track-{start - first:05d}", ".npz", data))
    meta = {
        "format": FORMAT,
        "tool": f"tkjax {__version__}",
        "system": resolved.system,
        "config": config.to_dict(resolved),
        "info": clip.info.to_json(),
        "step": int(step),
        "background": model.stages()[-1].background,
        "fps": float(clip.fps),
        "first_frame": int(first),
        "n_track": int(last - first),
        "audio": audio,
        "consent": consent,
        "files": files,
    }
    meta["id"] = _json_digest(meta)[:16]
    meta["digest"] = _json_digest(meta)
    images.write_atomic(folder / "consent.json", (json.dumps(consent, indent=2) + "\n").encode())
    images.write_atomic(folder / "avatar.json", _dump(meta))
    keep = {f["name"] for f in (files["params"], files["background"], *files["track"])} | {
        "avatar.json",
        "consent.json",
    }
    for stale in folder.iterdir():
        if stale.name not in keep and stale.is_file():
            stale.unlink()
    return meta["id"]


@dataclasses.dataclass
class Avatar:
    """A loaded bundle. Track arrays have one row per training frame; torso pictures are read when asked for."""

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
    _cached: tuple[int, dict] | None = None

    @property
    def id(self) -> str:
        return self.meta["id"]

    @property
    def n_track(self) -> int:
        return len(self.cam_to_world)

    def torso(self, i: int) -> UInt8[np.ndarray, "H W 4"]:
        """Straight-alpha torso picture of track frame i; keeps one track file in memory."""
        shard, row = divmod(i, TRACK_FRAMES)
        if self._cached is None or self._cached[0] != shard:
            self._cached = (shard, _read_npz(self.folder / self.meta["files"]["track"][shard]["name"]))
        offsets = self._cached[1]["torso_offsets"]
        return images.decode_png(self._cached[1]["torso_png"][offsets[row] : offsets[row + 1]].tobytes())

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
    if meta["format"] != FORMAT:
        raise UserError(f"{path} has format {meta['format']}; this version reads {FORMAT}, so train it again")
    return meta


def load(folder: Path) -> Avatar:
    """Read and verify a bundle; one sentence where it is missing, damaged or of another format."""
    folder = Path(folder)
    meta = _read_meta(folder)
    for entry in (meta["files"]["params"], meta["files"]["background"], *meta["files"]["track"]):
        path = folder / entry["name"]
        if not path.is_file():
            raise UserError(f"{path} is missing from the avatar; train or copy it again")
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
                raise UserError(f"{path} is damaged (its sha256 does not match); train or copy the avatar again")
    columns = {name: [] for name in TRACK_MEMBERS}
    for entry in meta["files"]["track"]:
        with np.load(folder / entry["name"], allow_pickle=False) as data:
            for name in TRACK_MEMBERS:
                columns[name].append(data[name])
    return Avatar(
        folder=folder,
        meta=meta,
        config=ConfigDict(config.tuples(meta["config"])),
        info=SubjectInfo.from_json(meta["info"]),
        plate=images.decode_png((folder / meta["files"]["background"]["name"]).read_bytes()),
        **{name: np.concatenate(parts) for name, parts in columns.items()},
    )


def audio_spec(features: contract.AudioFeatures) -> dict:
    """What sound features must agree in with those of the training."""
    spec = {k: getattr(features, k) for k in ("kind", "rate_hz", "extractor", "window", "hop", "left", "pad")}
    return {**spec, "channels": int(features.features.shape[1])}
