"""The writer."""

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tkjax import contract
from tkjax.contract import described
from tkjax.contract.audio_features import parse_audio
from tkjax.contract.checks import check_picture, check_type, check_values, check_wav, expression_range
from tkjax.contract.commit import (
    ASIDE,
    STAGING,
    named_files,
    publish,
    put_in_place,
    recover_and_sweep,
    sha256_file,
    staged_name,
    take_back,
)
from tkjax.contract.manifest import check_extra, check_manifest, check_split, dump_manifest
from tkjax.contract.refusal import ContractError, disk_errors, refuse, short
from tkjax.contract.spec import (
    AUDIO,
    BACKGROUND,
    CONVENTIONS,
    FILE_NAME,
    FIXED_NAMES,
    FPS,
    LANDMARK_SCHEMES,
    MANIFEST,
    MINOR,
    OPTIONAL_MEMBERS,
    PICTURES,
    REQUIRED_MEMBERS,
    SHARD_FRAMES,
    SHARD_NAME,
    VERSION,
    Layout,
    audio_kind,
    default_split,
    is_offsets,
    offsets_of,
)
from tkjax.host import files
from tkjax.signals import Signal

_WRITABLE = "a folder that can be written"


class DatasetWriter:
    """Write a dataset, all of it or nothing.

    Context manager: a clean exit finishes, an exception leaves what was there. Everything is staged in
    `root/.write`; `finish` moves the shards in (their names carry their hash), puts the other files aside
    in `root/.pending`, replaces the manifest (from then on the new dataset is the one that is read), and
    last publishes the files under their plain names. Files that the manifest does not name are swept when
    the next write begins, so a reader of the former generation stays consistent until then. The folder is
    locked while it is written. A folder that holds other things than a dataset is refused.

    split: number of training frames, or {"train": [a, b], "heldout": [c, d]}, or None for ⌊N·10/11⌋.
    extra_members: {"x_<name>": (dtype, shape behind the frame axis)}.
    channels: {"x_<name>": names of its channels}, where they have names.
    checks: rows for the manifest's `checks`; None leaves the field out.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        subject: str,
        height: int,
        width: int,
        camera: Mapping[str, Any],
        landmark_scheme: str,
        expression_names: Sequence[str],
        source: Mapping[str, Any],
        tools: Mapping[str, Any],
        licences: Mapping[str, Any] | None = None,
        fps: float | int = FPS,
        split: Any = None,
        extra_members: Mapping[str, tuple[Any, Sequence[int]]] | None = None,
        channels: Mapping[str, Sequence[str]] | None = None,
        checks: Sequence[Mapping[str, Any]] | None = None,
    ):
        self.root = Path(root)
        self._split = split
        if not isinstance(camera, Mapping) or not set(camera) == {"fx", "fy", "cx", "cy"}:
            raise refuse(self.root, "camera", f"is {camera!r}", "fx, fy, cx, cy in pixels")
        where = self.root / MANIFEST
        extra = {k: check_extra(where, k, d, s) for k, (d, s) in (extra_members or {}).items()}
        self._head = {
            "version": VERSION,
            "minor": MINOR,
            "signals": {},
            "subject": subject,
            "fps": float(fps),
            "height": height,
            "width": width,
            "camera": {k: float(v) for k, v in camera.items()},
            "conventions": CONVENTIONS,
            "landmark_scheme": landmark_scheme,
            "expression_names": list(expression_names),
            "source": dict(source),
            "tools": dict(tools),
            "licences": dict(licences or {}),
        }
        if checks is not None:
            self._head["checks"] = [dict(row) for row in checks]
        try:
            self._head = json.loads(json.dumps(self._head, allow_nan=False, default=_plain))
        except (TypeError, ValueError) as e:
            raise ContractError(f"{where}: member source, tools, licences or checks is not json ({short(e)})") from e
        for member, names in (channels or {}).items():
            if member not in extra or len({*names}) != len(names) or not all(map(described.is_name, names)):
                raise refuse(where, f"channels of {member}", "is wrong", "different names of a declared x_<name>")
        self._probe_head(extra)
        self._layout = Layout(self._head["height"], self._head["width"], landmark_scheme, len(expression_names), extra)
        self._members: list[str] | None = None
        self._rows: dict[str, list] = {}
        self._expression: list[np.ndarray] = []
        self._channels = {"expression": self._head["expression_names"], **(channels or {})}
        self._driving: dict[str, list[np.ndarray]] = {}  # values of the members that are signals
        self._sound: dict[str, Signal] = {}
        self._shards: list[dict[str, Any]] = []
        self._files: dict[str, str] = {}
        self._audio: dict[str, dict[str, Any]] = {}
        self._n = 0
        self._lock: int | None = None
        self._made_root = False
        self._moved: list[Path] = []
        self.manifest: dict[str, Any] | None = None

    def _probe_head(self, extra: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
        """Check what is known before the first frame, with one made-up frame in place of the rest."""
        h = self._head
        sha = "0" * 64
        k = len(h["expression_names"])
        probe = {**h, "n_frames": 1, "split": default_split(1), "range_min": [0] * k, "range_max": [0] * k, "audio": {}}
        probe |= {"files": {BACKGROUND: sha, f"shard-00000-{sha[:8]}.npz": sha}, "digest": sha, "members": {}}
        probe["shards"] = [{"file": f"shard-00000-{sha[:8]}.npz", "first": 0, "count": 1}]
        if h["landmark_scheme"] in LANDMARK_SCHEMES:
            layout = Layout(h["height"], h["width"], h["landmark_scheme"], k, extra)
            probe["members"] = layout.describe([*REQUIRED_MEMBERS, *extra])
        check_manifest(probe, self.root / MANIFEST)

    # ------------------------------------------------ life cycle

    def __enter__(self) -> "DatasetWriter":
        self._begin()
        return self

    def __exit__(self, kind, value, traceback) -> None:
        if kind is not None:
            self._abandon()
        elif self.manifest is None:
            self.finish()

    def _begin(self) -> None:
        if self.manifest is not None:
            raise ContractError(f"{self.root}: the dataset is finished, expected a new DatasetWriter for more")
        if self._lock is not None:
            return
        self._made_root = not self.root.exists()
        try:
            with disk_errors(self.root, _WRITABLE):
                self.root.mkdir(parents=True, exist_ok=True)
                self._lock = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
                self._take_lock()
                self._refuse_foreign()
                recover_and_sweep(self.root)
                (self.root / STAGING).mkdir()
        except BaseException:
            self._unlock()
            raise

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise ContractError(f"{self.root}: another process writes this dataset, expected it to end first") from e
        except OSError as e:
            if e.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):  # of network file systems without locks
                raise

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _refuse_foreign(self) -> None:
        names = sorted(os.listdir(self.root))
        foreign = [n for n in names if not SHARD_NAME.fullmatch(n) and n not in (STAGING, ASIDE)]
        ours = len(foreign) < len(names) if MANIFEST in names else not foreign
        if not ours and not named_files(self.root):
            raise ContractError(
                f"{self.root}: holds {foreign[0]} and no dataset, expected an empty folder (other files get swept)"
            )

    def _abandon(self) -> None:
        """Take back what is not named by the manifest in place."""
        if self._lock is None:  # nothing begun, or already taken back
            return
        try:
            take_back(self.root, self._moved, remove_root=self._made_root)
        finally:
            self._unlock()

    # ------------------------------------------------ frames

    def add(self, frames: Mapping[str, Any]) -> None:
        """A run of consecutive frames: {member: [k, …] array, or list of k bytes for encoded pictures}.

        Arrays must have the contract's dtype (python lists are converted); `frame_index` may be left out.
        Every call has the same members.
        """
        self._begin()
        where = f"{self.root} (frames to add from {self._n})"
        arrays, n = self._stack(frames, where)
        for name, a in arrays.items():
            check_type(where, name, self._layout, n, a.dtype, a.shape)
        check_values(where, arrays, self._layout, self._n)
        if self._members is None:
            self._members = sorted(arrays)
        elif self._members != sorted(arrays):
            odd = sorted(set(self._members) ^ set(arrays))[0]
            raise refuse(where, odd, "is not in every call", f"the members of the first: {', '.join(self._members)}")
        self._expression.append(arrays["expression"].copy())
        for name in described.members(self._layout, self._members):
            self._driving.setdefault(name, []).append(arrays[name].copy())
        for name, a in arrays.items():
            if name in PICTURES:
                offsets = arrays[offsets_of(name)]
                rows = [a[offsets[i] : offsets[i + 1]] for i in range(n)]
            elif is_offsets(name):
                continue
            else:
                rows = list(a.copy())
            self._rows.setdefault(name, []).extend(rows)
        self._n += n
        with disk_errors(self.root, _WRITABLE):
            while len(self._rows["frame_index"]) >= SHARD_FRAMES:
                self._write_shard(SHARD_FRAMES)

    def _stack(self, frames: Mapping[str, Any], where: str) -> tuple[dict[str, np.ndarray], int]:
        if "cam_to_world" not in frames:
            raise refuse(where, "cam_to_world", "is missing", "every required member")
        n = len(frames["cam_to_world"])
        if n == 0:
            raise refuse(where, "cam_to_world", "is empty", "at least one frame")
        frames = {"frame_index": np.arange(self._n, self._n + n, dtype=np.int32), **frames}
        given = {offsets_of(k) for k in frames if k in PICTURES}
        for name in REQUIRED_MEMBERS:
            if name not in frames and name not in given:
                raise refuse(where, name, "is missing", "every required member")
        for name in self._layout.extra:
            if name not in frames:
                raise refuse(where, name, "is missing", "every declared extra member")
        arrays = {}
        for name, value in frames.items():
            if not self._layout.known(name) or is_offsets(name):
                known = [k for k in (*REQUIRED_MEMBERS, *OPTIONAL_MEMBERS) if not is_offsets(k)]
                raise refuse(where, name, "is unknown", f"one of {', '.join(known)}, or a declared x_<name>")
            if name in PICTURES:
                if len(value) != n or not all(isinstance(v, bytes) for v in value):
                    raise refuse(where, name, f"is not a list of {n} bytes objects", "one encoded picture a frame")
                arrays[name] = np.frombuffer(b"".join(value), np.uint8)
                arrays[offsets_of(name)] = np.cumsum([0, *map(len, value)], dtype=np.int64)
            elif isinstance(value, np.ndarray):
                arrays[name] = value
            else:
                try:
                    arrays[name] = np.asarray(value, self._layout.spec(name)[0])
                except (ValueError, TypeError, OverflowError) as e:
                    raise refuse(where, name, f"is no array ({short(e)})", self._layout.spec(name)[0]) from e
        return arrays, n

    def _write_shard(self, n: int) -> None:
        arrays = {}
        for name, rows in self._rows.items():
            taken, self._rows[name] = rows[:n], rows[n:]
            if name in PICTURES:
                arrays[name] = np.concatenate(taken)
                arrays[offsets_of(name)] = np.cumsum([0, *map(len, taken)], dtype=np.int64)
            else:
                arrays[name] = np.stack(taken)
        staged = self.root / STAGING / "shard.npz"
        with open(staged, "wb") as f:
            contract.write_npz(f, arrays)  # the package's: whoever replaces it there replaces it here
        files.sync(staged)
        sha = sha256_file(staged)
        name = f"shard-{len(self._shards):05d}-{sha[:8]}.npz"
        os.replace(staged, staged.with_name(name))
        first = sum(s["count"] for s in self._shards)
        self._shards.append({"file": name, "first": first, "count": n})
        self._files[name] = sha

    # ------------------------------------------------ other files

    def add_file(self, name: str, data: bytes | str | Path) -> None:
        """`background.png`, `audio.wav`, `audio_<kind>.npz` or `qa/…`, from bytes or from a file (copied)."""
        self._begin()
        where = self.root / name
        if not FILE_NAME.fullmatch(name):
            raise ContractError(f"{where}: not a file of a dataset, expected {FIXED_NAMES}")
        staged = self.root / STAGING / staged_name(name)
        try:
            with open(staged, "wb") as out:
                if isinstance(data, bytes):
                    out.write(data)
                else:
                    with open(data, "rb") as f:
                        shutil.copyfileobj(f, out, 1 << 20)
            files.sync(staged)
        except OSError as e:
            staged.unlink(missing_ok=True)
            raise ContractError(f"{e.filename or where}: {e.strerror or e}, expected content for {name}") from e
        try:
            self._check_file(name, staged, where)
        except ContractError:
            staged.unlink()
            self._files.pop(name, None)
            raise
        self._files[name] = sha256_file(staged)

    def _check_file(self, name: str, staged: Path, where: Path) -> None:
        if name == BACKGROUND:
            with open(staged, "rb") as f:
                check_picture(where, "content", f.read(64), "png", 3, self._layout.height, self._layout.width)
        elif name == AUDIO:
            check_wav(staged, where)
        elif kind := audio_kind(name):
            features = parse_audio(staged.read_bytes(), where, kind)
            self._audio[kind], self._sound[kind] = features.describe(), described.of_sound(features)

    # ------------------------------------------------ commit

    def finish(self) -> dict[str, Any]:
        """Write the last shard and put the dataset in place; returns the manifest."""
        self._begin()
        try:
            if self._n == 0:
                raise ContractError(f"{self.root}: no frame was added, expected a dataset of at least one")
            with disk_errors(self.root, _WRITABLE):
                if self._rows["frame_index"]:
                    self._write_shard(len(self._rows["frame_index"]))
                manifest = self._manifest()
                raw = dump_manifest(manifest)
                old = put_in_place(self.root, manifest, raw, self._moved)
                self.manifest = json.loads(raw)
                publish(self.root, manifest["files"], old)
        except BaseException:
            self._abandon()
            raise
        try:
            shutil.rmtree(self.root / STAGING)
        finally:
            self._unlock()
        return self.manifest

    def _manifest(self) -> dict[str, Any]:
        split = self._split
        if split is None:
            split = default_split(self._n)
        elif not isinstance(split, Mapping):
            split = {"train": [0, _plain(split)], "heldout": [_plain(split), self._n]}
        split = {k: [_plain(x) for x in v] for k, v in split.items()}
        check_split(split, self._n, self.root / MANIFEST)
        low, high = expression_range(np.concatenate(self._expression), split["train"])
        m = {**self._head, "n_frames": self._n, "split": split, "range_min": low, "range_max": high}
        m |= {"audio": self._audio, "files": dict(sorted(self._files.items())), "shards": self._shards}
        m |= {"members": self._layout.describe(self._members), "digest": ""}
        m |= {"signals": self._described(split["train"])}
        check_manifest(m, self.root / MANIFEST)
        return m

    def _described(self, train: Sequence[int]) -> dict[str, Any]:
        """The manifest's `signals`."""
        fps, found = self._head["fps"], list(self._sound.values())
        for member, parts in self._driving.items():
            names = tuple(self._channels.get(member, ()))
            values = np.concatenate(parts)
            if names and len(names) != values[0].size:
                raise refuse(self.root, member, f"has {values[0].size} channels", f"the {len(names)} that are named")
            found.append(described.of_member(member, values, fps, names))
        return {described.entry_name(s.info): described.describe(s, train) for s in found}


def _plain(x: Any) -> Any:
    """numpy scalars and arrays as json types, paths as text; anything else is refused by json."""
    if isinstance(x, np.generic | np.ndarray):
        return x.tolist()
    if isinstance(x, Path):
        return str(x)
    if isinstance(x, int | float | str | None):
        return x
    raise TypeError(f"{type(x).__name__} is not json")
