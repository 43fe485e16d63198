"""The trained bundle: everything that rendering needs, independent of the dataset it came from.

A folder of hash-named files (`params-<hash>.npz`, `track-00000-<hash>.npz`, `background-<hash>.png`, and where the clip
has pictures `full-<hash>.mp4`, the whole source frames, perhaps with `full_alpha-<hash>.mp4`, their matte; where it
speaks by its expression `voice-<hash>.npz`, the network from sound to that) and `avatar.json`, which names them with
their sha256, carries a digest of its own and is replaced last: a save that is killed leaves the old avatar or the new
one. `consent.json` repeats the consent that avatar.json holds under its digest.
Nothing in it is a pickle, names code to run or a file elsewhere, and what `load` takes is checked as a stranger's.

Format 3 describes every signal that may drive the avatar. Format 2 has held-out frames behind the training frames in
the track, labels, faces, eye areas, whole frames and the names of the finished stages. Formats 1 and 2 are still read;
what they lack is named when it is asked for.
"""

import dataclasses
import functools
import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from ml_collections import ConfigDict
from PIL import Image

from tkjax import __version__, config, contract, interface, trees, voice
from tkjax.avatar import avatar_json, track
from tkjax.avatar.avatar_json import CONSENT, FORMAT, META, REMEDY, TRACK_FRAMES
from tkjax.contract.checks import check_picture
from tkjax.contract.npz import npz_index, read_entry
from tkjax.contract.refusal import refuse
from tkjax.data import split
from tkjax.data.clip import Clip
from tkjax.errors import UserError
from tkjax.host import stored
from tkjax.host.files import put, write_atomic
from tkjax.media import images
from tkjax.media.full_frames import FullFrames
from tkjax.models import load_system
from tkjax.signals import OPEN_EYES, SOUND, Signal, SignalInfo, of_frames
from tkjax.types import PyTree, SubjectInfo, Variables
from tkjax.voice import Voice

_json_digest, _dump = avatar_json.json_digest, avatar_json.dump


def arrays_of(tree: PyTree) -> dict[str, np.ndarray]:
    """{'params/a/b': array} of a pytree; half-precision leaves are stored as float32."""
    arrays = {path: np.asarray(leaf) for path, leaf in trees.flatten(tree).items()}
    floats = {path for path, a in arrays.items() if jax.numpy.issubdtype(a.dtype, jax.numpy.floating)}
    return {path: a.astype(np.float32) if path in floats else a for path, a in arrays.items()}


def check_fit(template: PyTree, arrays: Mapping[str, Any], name: str) -> dict[str, Any]:
    """UserError names the first of the arrays (or of what describes them) that `template` has not, or has of another
    shape or kind of number; else {key: leaf of the template}."""
    wanted = trees.flatten(template)
    for key in sorted(set(wanted) ^ set(arrays)):
        where = "lacks" if key in wanted else "has an unknown"
        raise UserError(f"{name} {where} array {key[:200]!r}: it was not made by this system's version")
    for key, like in wanted.items():
        found = arrays[key]
        if found.shape != like.shape:
            raise UserError(f"{name}: array {key!r} has shape {found.shape}, the model expects {like.shape}")
        floats = [jax.numpy.issubdtype(x.dtype, jax.numpy.floating) for x in (found, like)]
        if floats[0] != floats[1]:
            raise UserError(f"{name}: array {key!r} holds {found.dtype}, the model expects {like.dtype}")
    return wanted


def fitted(template: PyTree, arrays: Mapping[str, np.ndarray], name: str) -> PyTree:
    """The arrays in the structure, shapes and dtypes of `template`; UserError names the first that does not fit."""
    wanted = check_fit(template, arrays, name)
    values = {key: jax.numpy.asarray(arrays[key], like.dtype) for key, like in wanted.items()}
    return trees.unflatten(template, values)


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
    digest = hashlib.sha256(data).hexdigest()
    name = f"{stem}-{digest[:8]}{suffix}"
    write_atomic(folder / name, data)
    return {"name": name, "sha256": digest, "bytes": len(data)}


def save(
    folder: Path,
    resolved: ConfigDict,
    variables: Variables,
    step: int,
    clip: Clip,
    audio: dict | None,
    consent: dict,
    stages: Sequence[str] | None = None,
    speaks: Voice | None = None,
) -> str:
    """Write the bundle; its id.

    step: of the last finished stage; stages: the names of the finished ones, None for all of the system's; audio: the
    spec of the training sound's features; speaks: the network from sound to expression. What the clip does not have
    (held-out frames, eye areas, labels, landmarks, a dataset) the avatar does not hold: held-out frames, eye areas,
    labels and faces, faces, whole frames.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model = load_system(resolved.system)(resolved, clip.info)
    info = track.info_of(clip, model)
    facts = {"config": config.to_dict(resolved), "info": info.to_json(), "audio": audio, "consent": consent}
    _refuse_unreadable(facts, folder / META)
    stages = [stage.name for stage in model.stages()] if stages is None else list(stages)
    numbers, full = track.frame_numbers(clip), track.full_facts(clip)
    n_train = len(clip.train_frames)
    meta = {
        "format": FORMAT,
        "tool": f"tkjax {__version__}",
        "system": resolved.system,
        "config": facts["config"],
        "info": facts["info"],
        "stages": stages,
        "step": int(step),
        "background": _behind_head(model, stages),
        "background_trt": track.background_trt(clip),
        "fps": float(clip.fps),
        "first_frame": int(numbers[0]),
        "n_train": n_train,
        "n_track": len(numbers),
        "heldout_first": int(numbers[n_train]) if len(numbers) > n_train else None,
        "full": full,
        "audio": audio,
        "consent": consent,
        "files": _store(folder, variables, clip, numbers, full, info, speaks),
        **({} if speaks is None else {"voice": speaks.facts()}),
    }
    meta["id"] = _json_digest(meta)[:16]
    meta["digest"] = _json_digest(meta)
    avatar_json.check(stored.parse(_dump(meta)), folder / META)
    record = _dump(consent)
    waiting = folder / avatar_json.consent_name(record)  # read in its place until it is there
    write_atomic(waiting, record)
    write_atomic(folder / META, _dump(meta))
    put(waiting, folder / CONSENT)
    _remove_stale(folder, meta)
    return meta["id"]


def _refuse_unreadable(facts: dict, path: Path) -> None:
    """What cannot be read back is not written, before anything of an older avatar is replaced."""
    try:
        stored.parse(json.dumps(facts).encode())
    except stored.BadJson as error:
        raise UserError(f"{path} cannot be written ({error}); look at --consent and at the settings") from error


def _store(
    folder: Path, variables: Variables, clip: Clip, numbers: Int[np.ndarray, " n"], full: dict | None,
    info: SubjectInfo, speaks: Voice | None,
) -> dict:  # fmt: skip
    """Write what the bundle consists of; its entries for avatar.json."""
    files: dict[str, Any] = {
        "params": _write(folder, "params", ".npz", _npz(arrays_of(variables))),
        "background": _write(folder, "background", ".png", images.encode_png(np.asarray(clip.plate))),
        "track": [],
    }
    for start in range(0, len(numbers), TRACK_FRAMES):
        data = _npz(track.pack(clip, numbers[start : start + TRACK_FRAMES], info))
        files["track"].append(_write(folder, f"track-{start:05d}", ".npz", data))
    if speaks is not None:
        files["voice"] = _write(folder, "voice", ".npz", _npz(arrays_of(speaks.tree())))
    if full is not None:
        files |= _full_as_before(folder, full) or track.store_full(folder, clip)
    return files


def _remove_stale(folder: Path, meta: dict) -> None:
    """Remove the files of earlier saves, and what killed ones left."""
    keep = {entry["name"] for entry in avatar_json.entries(meta["files"])} | {META, CONSENT}
    for stale in folder.iterdir():
        if stale.name not in keep and stale.is_file():
            stale.unlink()


def _behind_head(model: interface.Model, stages: Sequence[str]) -> str:
    """What stands behind the head where no torso is modelled: that of the last finished stage of whole frames."""
    drawn = [stage.background for stage in model.stages() if stage.name in stages and stage.target == "frame"]
    return drawn[-1] if drawn and drawn[-1] in ("torso", "plate") else "torso"


def _full_as_before(folder: Path, full: dict) -> dict[str, dict] | None:
    """The entries of whole frames that an earlier save made of the same dataset; they take long to encode."""
    try:
        before = avatar_json.read(folder)
    except UserError:
        return None
    entries = {name: before["files"][name] for name in ("full", "full_alpha") if name in before["files"]}
    if before.get("full") != full or not entries:
        return None
    try:
        for entry in entries.values():
            avatar_json.check_file(folder, entry, sized=before["format"] >= 2)
    except UserError:
        return None
    return entries


@dataclasses.dataclass
class Avatar:
    """A loaded bundle. Track arrays and signals have a row per frame, the training frames (`n_train`) before the
    held-out ones; pictures are read when asked for, by their number in the track. Sound it describes, and does not
    keep. has_eye_area: False where `eye_area` was made of `eye_closed`, as an older version kept none. voice: the
    network from sound to expression, where it has one."""

    folder: Path
    meta: dict
    config: ConfigDict
    info: SubjectInfo
    plate: UInt8[np.ndarray, "H W 3"]
    cam_to_world: Float[np.ndarray, "n 4 4"]
    signals: dict[str, Signal]
    confidence: Float[np.ndarray, " n"]
    face_box_px: np.ndarray
    lips_box_px: np.ndarray
    has_eye_area: bool = True
    voice: Voice | None = None
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
            path = self.folder / self.meta["files"]["track"][shard]["name"]
            n = min(TRACK_FRAMES, self.n_track - shard * TRACK_FRAMES)
            cached = self._cached = (shard, track.read_file(path, n, self.info))
        arrays = cached[1]
        if f"{kind}_png" not in arrays:
            raise UserError(
                f"{self.folder} holds no {kind} pictures (it was made by an older version or without its clip); "
                "run --mode=train with the dataset again, which keeps what is trained"
            )
        a, b = arrays[f"{kind}_offsets"][row : row + 2]
        name = f"{self.folder}: the {kind} picture of frame {i}"
        return images.decode_png(arrays[f"{kind}_png"][a:b].tobytes(), name)

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

    def model(self) -> interface.Model:
        return _model(self.config, self.info, self.folder / META)

    def variables(self, model: interface.Model) -> Variables:
        """The trained numbers; UserError where they are not those of this model."""
        path = self.folder / self.meta["files"]["params"]["name"]
        template = _of_settings(lambda: jax.eval_shape(model.init, jax.random.key(0)), self.folder / META)
        with track.plain(path) as file:
            index = npz_index(file, path)
            flat = {name: jax.ShapeDtypeStruct(entry.shape, entry.dtype) for name, entry in index.items()}
            check_fit(template, flat, str(path))  # before anything is read: shapes may claim any size
            return fitted(template, {k: read_entry(file, e, path, k, check=True) for k, e in index.items()}, str(path))


def _model(settings: ConfigDict, info: SubjectInfo, where: Path) -> interface.Model:
    """The model of stored settings. What is wrong with them shows at the latest when it is built."""
    try:
        kind = load_system(settings.system, stored=True)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error
    return _of_settings(lambda: kind(settings, info), where)


def _of_settings(build: Callable[[], Any], where: Path) -> Any:
    """What `build` makes of an avatar's settings, which may have any value of the right type."""
    try:
        return build()
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{where}: its settings make no model ({type(error).__name__}: {reason}); {REMEDY}") from error


def _check_params(path: Path) -> None:
    """Uncompressed arrays of finite numbers."""
    with track.plain(path) as file:
        for name, entry in npz_index(file, path).items():
            if not name.startswith(("params/", "state/")):
                raise refuse(path, name[:80], "is unknown", "params/… and state/…")
            if str(entry.dtype) != "float32" and entry.dtype.kind not in "biu":
                raise refuse(path, name[:80], f"has dtype {entry.dtype}", "float32 or whole numbers")
            values = read_entry(file, entry, path, name, check=True)
            if entry.dtype.kind == "f" and not np.isfinite(values).all():
                raise refuse(path, name[:80], "is not finite", "finite numbers")


def load(folder: Path) -> Avatar:
    """Read and verify a bundle, which may be a stranger's; one sentence where it is missing, damaged or inconsistent.

    Nothing that it names is imported, run or looked for outside its folder: see `avatar_meta`.
    """
    folder = Path(folder)
    meta = avatar_json.read(folder)
    files, where = meta["files"], folder / META
    for entry in avatar_json.entries(files):
        avatar_json.check_file(folder, entry, sized=meta["format"] >= 2)
    avatar_json.check_consent_file(folder, meta)
    info = SubjectInfo.from_json(meta["info"])
    settings = config.completed(config.from_stored(meta["config"], where), where)
    chunk = settings.get("eval", {}).get("chunk_rays", 0)
    if not (type(chunk) is int and 0 <= chunk < 2**31):
        raise UserError(f"{where}: eval.chunk_rays is {chunk!r}, expected a number of pixels, 0 for all; {REMEDY}")
    model = _model(settings, info, where)
    for use in model.signals():
        if not info.has(use.name):
            raise UserError(f"{where}: info names no signal {use.name}, which {settings.system} is driven by; {REMEDY}")
    finished = [stage.name for stage in _of_settings(model.stages, where)]
    meta.setdefault("stages", finished)  # format 1: saved when every stage was finished
    for name in set(meta["stages"]) - set(finished):
        raise UserError(f"{where}: stage {name[:80]!r} is none of {settings.system}: {', '.join(finished)}; {REMEDY}")
    _check_params(folder / files["params"]["name"])
    plate = folder / files["background"]["name"]
    with track.plain(plate) as file:
        png = file.read()
    check_picture(plate, "content", png, "png", 3, info.height, info.width)
    paths = [folder / entry["name"] for entry in files["track"]]
    columns = track.load_columns(paths, meta["n_track"], info)
    has_eye_area = "eye_area" in columns
    if not has_eye_area:
        columns["eye_area"] = OPEN_EYES * (1.0 - columns["eye_closed"])
    kept = {s.name: _signal(s, columns.pop(track.member_of(s.name)), meta) for s in info.signals if s.name != SOUND}
    columns = {name: values for name, values in columns.items() if name not in track.KEPT}
    info = dataclasses.replace(info, signals=tuple(kept[s.name].info if s.name in kept else s for s in info.signals))
    picture = images.decode_png(png, str(plate))
    speaks = read_voice(folder / files["voice"]["name"], meta["voice"]) if "voice" in files else None
    facts = {"signals": kept, "has_eye_area": has_eye_area, "voice": speaks}
    return Avatar(folder, meta, settings, info, picture, **facts, **columns)


def read_voice(path: Path, facts: Mapping[str, Any]) -> Voice:
    """A speech network of these facts (`Voice.facts`); UserError where the file holds anything else."""
    columns, template = tuple(facts["columns"]), voice.shapes(len(facts["columns"]), facts["width"])
    with track.plain(path) as file:
        index = npz_index(file, path)
        flat = {name: jax.ShapeDtypeStruct(entry.shape, entry.dtype) for name, entry in index.items()}
        check_fit(template, flat, str(path))
        arrays = {name: read_entry(file, entry, path, name, check=True) for name, entry in index.items()}
    for name, values in arrays.items():
        if not np.isfinite(values).all():
            raise refuse(path, name, "is not finite", "finite numbers")
    return Voice.of_tree(fitted(template, arrays, str(path)), columns, facts["width"])


def _signal(info: SignalInfo, values: np.ndarray, meta: Mapping[str, Any]) -> Signal:
    """A signal of the track; what an older version did not say of it is measured."""
    plain = of_frames(info.name, values, meta["fps"], info.names, info.source)
    if info.low:
        return Signal(dataclasses.replace(info, rate_hz=info.rate_hz or meta["fps"]), plain.values)
    named = dataclasses.replace(plain.info, names=info.names, low=(), high=())
    return Signal(named, plain.values).with_range(np.arange(meta.get("n_train", len(values))))


def audio_spec(features: contract.AudioFeatures | contract.AudioHeader | None) -> dict | None:
    """What sound features must agree in with those of the training; None for a clip without sound."""
    if features is None:
        return None
    names = ("kind", "rate_hz", "extractor", "window", "hop", "left", "pad", "channels")
    return {k: getattr(features, k) for k in names}
