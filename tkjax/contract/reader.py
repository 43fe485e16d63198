"""The reader and the validator."""

import contextlib
import hashlib
import io
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from tkjax.contract import described
from tkjax.contract.audio_features import AudioFeatures, load_audio_features, parse_audio
from tkjax.contract.checks import check_picture, check_type, check_values, check_wav, expression_range
from tkjax.contract.commit import ASIDE, aside_name
from tkjax.contract.landmarks import landmarks68
from tkjax.contract.manifest import parse_manifest
from tkjax.contract.npz import Entry, damaged_member, npz_index, read_entry
from tkjax.contract.refusal import ContractError, disk_errors, refuse
from tkjax.contract.spec import (
    AUDIO,
    BACKGROUND,
    MANIFEST,
    PICTURES,
    SHARD_NAME,
    SLACK_BYTES,
    Layout,
    audio_kind,
    is_offsets,
    offsets_of,
)
from tkjax.host import stored
from tkjax.signals import Signal


class Dataset:
    """A dataset that is there, checked.

    verify=True reads every file once: hash, members, dtypes, shapes and ranges (pictures: their headers).
    verify=False checks the manifest and that the files exist. Frames are read one at a time; nothing grows.
    A reader keeps seeing the generation that it opened until the write after the next one.
    """

    def __init__(self, root: str | Path, verify: bool = True):
        self.root = Path(root)
        for _ in range(20):
            raw = self._read_manifest()
            try:
                self.manifest = parse_manifest(raw, self.root / MANIFEST)
                self._layout = Layout.of(self.manifest)
                self._shards: list[dict[str, Entry] | None] = [None] * len(self.manifest["shards"])
                self._offsets: dict[tuple[int, str], np.ndarray] = {}
                if verify:
                    self._verify()
                else:
                    self._check_presence()
                return
            except ContractError:
                if self._read_manifest() == raw:  # else it was replaced meanwhile: look again
                    raise
        raise ContractError(f"{self.root}: {MANIFEST} changes while it is read, expected a dataset at rest")

    def _read_manifest(self) -> bytes:
        path = self.root / MANIFEST
        with disk_errors(path, f"a readable {MANIFEST}"):
            try:
                with stored.open_plain(self.root, MANIFEST) as f:
                    return f.read(stored.LARGEST_BYTES + 1)
            except FileNotFoundError as e:
                raise ContractError(f"{path}: no such file, expected a dataset folder with its {MANIFEST}") from e

    def __repr__(self) -> str:
        return f"Dataset({str(self.root)!r}, {self.n_frames} frames of {self.width}x{self.height})"

    n_frames = property(lambda self: self.manifest["n_frames"])
    height = property(lambda self: self.manifest["height"])
    width = property(lambda self: self.manifest["width"])
    fps = property(lambda self: float(self.manifest["fps"]))
    digest = property(lambda self: self.manifest["digest"])
    train_range = property(lambda self: tuple(self.manifest["split"]["train"]))
    heldout_range = property(lambda self: tuple(self.manifest["split"]["heldout"]))

    @property
    def intrinsics(self) -> tuple[float, float, float, float]:
        """fx, fy, cx, cy in pixels."""
        c = self.manifest["camera"]
        return float(c["fx"]), float(c["fy"]), float(c["cx"]), float(c["cy"])

    def path(self, name: str) -> Path:
        """Where the file `name` of this generation lies (`background.png`, `audio.wav`, `qa/…`, a shard)."""
        if name not in self.manifest["files"]:
            known = ", ".join(sorted(n for n in self.manifest["files"] if not n.startswith("shard-")))
            raise ContractError(f"{self.root / MANIFEST}: member files does not name {name}, expected one of {known}")
        aside = self.root / ASIDE / aside_name(name, self.manifest["files"][name])
        return aside if aside.exists() else self.root / name

    def _open(self, name: str) -> io.BufferedIOBase:
        """A file of the dataset; links, pipes and files larger than the manifest lets them be are refused."""
        f = self._open_plain(name)
        size, most = os.fstat(f.fileno()).st_size, self._most_bytes(name)
        if size > most:
            f.close()
            raise refuse(self.root / name, "content", f"has {size} bytes", f"at most {most}, after {MANIFEST}")
        return f

    def _open_plain(self, name: str) -> io.BufferedIOBase:
        path = self.path(name)
        with disk_errors(path, "a readable file"), contextlib.suppress(FileNotFoundError):
            return stored.open_plain(self.root, path.relative_to(self.root).as_posix())
        path = self.path(name)  # a finished write may just have moved it
        with disk_errors(path, "a readable file"):
            try:
                return stored.open_plain(self.root, path.relative_to(self.root).as_posix())
            except FileNotFoundError as e:
                message = f"{self.root / name}: no such file, expected it because {MANIFEST} names it"
                raise ContractError(message) from e

    def _most_bytes(self, name: str) -> int | float:
        """What a file that is read into memory can have at most, by the sizes in the manifest."""
        m = self.manifest
        if kind := audio_kind(name):
            return 4 * m["audio"][kind]["steps"] * m["audio"][kind]["channels"] + SLACK_BYTES
        if name == BACKGROUND:
            return 2 * self.height * self.width * 3 + SLACK_BYTES
        shard = SHARD_NAME.fullmatch(name)
        if shard and int(shard[1]) < len(m["shards"]):
            return self._layout.most_bytes(m["members"], m["shards"][int(shard[1])]["count"])
        return math.inf

    def _check_presence(self) -> None:
        for name in self.manifest["files"]:
            self._open(name).close()

    def _verify(self) -> None:
        m = self.manifest
        for name, sha in m["files"].items():
            if not name.startswith("shard-"):
                self._verify_file(name, sha)
        expression = [self._verify_shard(k, shard) for k, shard in enumerate(m["shards"])]
        low, high = expression_range(np.concatenate(expression), m["split"]["train"])
        for key, value in (("range_min", low), ("range_max", high)):
            if m[key] != value:
                raise refuse(self.root / MANIFEST, key, "is wrong", "the range of expression over the training frames")
        self._verify_signals()

    def _verify_signals(self) -> None:
        """What the manifest says of its signals follows from the data, to the last digit."""
        m = self.manifest
        if not m.get("minor", 0):
            return
        found = [*(described.of_sound(self.audio_features(kind)) for kind in m["audio"]), *self._of_frames()]
        wanted = {described.entry_name(s.info): described.describe(s, m["split"]["train"]) for s in found}
        for name in wanted.keys() | m["signals"].keys():
            if m["signals"].get(name) != wanted.get(name):
                raise refuse(self.root / MANIFEST, f"signals.{name[:40]}", "is wrong", "what follows from the data")

    def _of_frames(self) -> list[Signal]:
        """The signals with one step a frame."""
        found = []
        for member in described.members(self._layout, list(self.manifest["members"])):
            entry = self.manifest.get("signals", {}).get(described.name_of(member), {})
            names = self.manifest["expression_names"] if member == "expression" else entry.get("names", ())
            found.append(described.of_member(member, self.column(member), self.fps, names))
        return found

    def signals(self) -> dict[str, Signal]:
        """What may drive a model beside sound (`audio_features`), by name, one step a frame; without ranges."""
        return {signal.info.name: signal for signal in self._of_frames()}

    def _verify_file(self, name: str, sha: str) -> None:
        where, kind = self.root / name, audio_kind(name)
        with self._open(name) as f:
            found = hashlib.file_digest(f, "sha256").hexdigest()
            f.seek(0)
            data = f.read() if kind or name == BACKGROUND else b""
        if found != sha:
            member = damaged_member(data, where) if kind else "content"
            raise refuse(where, member, "is damaged or was changed", f"sha256 {sha[:16]}… as {MANIFEST} says")
        if name == BACKGROUND:
            check_picture(where, "content", data, "png", 3, self.height, self.width)
        elif name == AUDIO:
            check_wav(self.path(name), where)
        elif kind and self.manifest["audio"][kind] != parse_audio(data, where, kind).describe():
            raise refuse(self.root / MANIFEST, f"audio.{kind}", "differs from the file", f"the facts of {name}")

    def _verify_shard(self, k: int, shard: dict[str, Any]) -> np.ndarray:
        where = self.root / shard["file"]
        with self._open(shard["file"]) as f:
            data = f.read()
        sha = self.manifest["files"][shard["file"]]
        if hashlib.sha256(data).hexdigest() != sha:
            member = damaged_member(data, where)
            raise refuse(where, member, "is damaged or was changed", f"sha256 {sha[:16]}… as {MANIFEST} says")
        file = io.BytesIO(data)
        index = self._index(k, file)
        arrays = {name: read_entry(file, e, where, name, check=True) for name, e in index.items()}
        check_values(where, arrays, self._layout, shard["first"])
        return arrays["expression"]

    def _index(self, k: int, file: io.BufferedIOBase | None = None) -> dict[str, Entry]:
        """Members of shard k with dtype and shape checked; kept, a few kB a shard."""
        if self._shards[k] is not None:
            return self._shards[k]
        shard = self.manifest["shards"][k]
        where = self.root / shard["file"]
        if file is None:
            with self._open(shard["file"]) as opened:
                index = npz_index(opened, where)
        else:
            index = npz_index(file, where)
        layout, members = self._layout, self.manifest["members"]
        for name in members:
            if name not in index:
                raise refuse(where, name, "is missing", f"every member that {MANIFEST} lists")
        for name, entry in index.items():
            if name not in members:
                raise refuse(where, name, "is unknown", f"only members that {MANIFEST} lists")
            check_type(where, name, layout, shard["count"], entry.dtype, entry.shape)
        self._shards[k] = index
        return index

    def _member(self, member: str) -> None:
        if member not in self.manifest["members"]:
            known = ", ".join(self.manifest["members"])
            raise refuse(self.root / MANIFEST, member, "is not in this dataset", f"one of {known}")

    def shard_of(self, i: int) -> tuple[int, int]:
        """(number of the shard, row in it) of frame i."""
        if not 0 <= i < self.n_frames:
            raise ContractError(f"{self.root}: frame {i} does not exist, expected 0..{self.n_frames - 1}")
        firsts = [s["first"] for s in self.manifest["shards"]]
        k = int(np.searchsorted(firsts, i, "right")) - 1
        return k, i - firsts[k]

    def where(self, member: str, i: int) -> str:
        """`<shard file>: member <member> of frame <i>`, the start of a message about that picture."""
        return f"{self.root / self.manifest['shards'][self.shard_of(i)[0]]['file']}: member {member} of frame {i}"

    def column(self, member: str) -> np.ndarray:
        """A small member over all frames: [n_frames, …]. Encoded pictures come from `frame_bytes`."""
        self._member(member)
        if member in PICTURES or is_offsets(member):
            raise ContractError(f"{self.root}: member {member} is encoded, expected frame_bytes() to read it")
        parts = []
        for k, shard in enumerate(self.manifest["shards"]):
            entry = self._index(k)[member]
            with self._open(shard["file"]) as f:
                parts.append(read_entry(f, entry, self.root / shard["file"], member))
        return np.concatenate(parts)

    def row(self, member: str, i: int) -> np.ndarray:
        """One frame of a member with a frame axis (for the large ones, as depth)."""
        self._member(member)
        k, r = self.shard_of(i)
        e = self._index(k)[member]
        if e.shape[:1] != (self.manifest["shards"][k]["count"],):
            raise ContractError(f"{self.root}: member {member} has no row per frame, expected frame_bytes() to read it")
        size = e.nbytes // e.shape[0]
        data = self._read(k, member, e.offset + r * size, size)
        return np.frombuffer(data, e.dtype).reshape(e.shape[1:])

    def frame_bytes(self, member: str, i: int) -> bytes | None:
        """The encoded picture `image_bytes`, `torso_bytes`, `label_bytes`, `alpha_bytes` or `class_bytes` of frame i.

        None where the dataset has no such member.
        """
        if member not in PICTURES:
            raise ContractError(f"{self.root}: member {member} is not a picture, expected one of {', '.join(PICTURES)}")
        k, r = self.shard_of(i)
        if member not in self.manifest["members"]:
            return None
        offsets = self._frame_offsets(k, member)
        start, stop = int(offsets[r]), int(offsets[r + 1])
        return self._read(k, member, self._index(k)[member].offset + start, stop - start)

    def _frame_offsets(self, k: int, member: str) -> np.ndarray:
        name = offsets_of(member)
        if (k, name) not in self._offsets:
            shard = self.manifest["shards"][k]["file"]
            index = self._index(k)
            with self._open(shard) as f:
                offsets = read_entry(f, index[name], self.root / shard, name)
            if offsets[0] != 0 or (np.diff(offsets) <= 0).any() or offsets[-1] != index[member].shape[0]:
                raise refuse(self.root / shard, name, "is wrong", f"offsets that rise from 0 and cover {member}")
            self._offsets[k, name] = offsets
        return self._offsets[k, name]

    def _read(self, k: int, member: str, offset: int, size: int) -> bytes:
        shard = self.manifest["shards"][k]["file"]
        with self._open(shard) as f:
            f.seek(offset)
            data = f.read(size)
        if len(data) != size:
            raise refuse(self.root / shard, member, "ends early", f"{size} bytes at {offset}")
        return data

    def landmarks68(self) -> np.ndarray:
        """[n_frames, 68, 2] iBUG points in pixels."""
        return landmarks68(self.column("landmarks_px"), self.manifest["landmark_scheme"])

    def audio_features(self, kind: str) -> AudioFeatures:
        """The sound features of one kind; the error lists those that are there."""
        if kind not in self.manifest["audio"]:
            known = ", ".join(self.manifest["audio"]) or "none"
            raise ContractError(
                f"{self.root / MANIFEST}: member audio has no kind {kind!r}, expected one of those present: {known}"
            )
        return load_audio_features(self.path(f"audio_{kind}.npz"))


def validate(root: str | Path) -> dict[str, Any]:
    """Check a whole dataset; the manifest, or a ContractError."""
    return Dataset(root, verify=True).manifest
