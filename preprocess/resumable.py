"""Stages that resume: content hashes decide what runs again, folders appear whole or not at all.

A stage has a name, settings, inputs (digests of what it reads) and the source files that make its output. Their
hash is its key. It writes into `<root>/<name>.partial-<key>`, where chunks that are complete survive a kill; when
it is done, the folder is renamed to `<root>/<name>` with `stage.json` (key, sha256 of each file, digest, seconds).
A stage whose `stage.json` holds the same key and whose files still have their hashes is not run. Its digest is a
hash of its output only, so a stage downstream reruns only when bytes that it reads changed.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from tkjax.errors import UserError
from tkjax.host.files import take_lock, write_atomic

RECORD = "stage.json"


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file, read in blocks."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def hash_json(value: Any) -> str:
    """Hex sha256 of a value as canonical json."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def say(text: str) -> None:
    """One plain line of progress on standard output."""
    print(text, flush=True)


def progress(
    items: Iterable, total: int, name: str, unit: str = "frames", every_s: float = 2.0, done: int = 0
) -> Iterator:
    """Yield `items` and show how far along `total` they are, with the time left.

    A bar (tqdm, standard error) on a terminal, else a plain line every `every_s` seconds on standard output.
    An item counts 1 unless it has a length (a chunk). `done`: units finished by an earlier run.
    """
    if sys.stderr.isatty():
        import tqdm

        with tqdm.tqdm(total=total, initial=done, desc=name, unit=f" {unit}", leave=False) as bar:
            for item in items:
                yield item
                bar.update(len(item) if hasattr(item, "__len__") else 1)
        return
    start = shown = time.monotonic()
    count = done
    for item in items:
        yield item
        count += len(item) if hasattr(item, "__len__") else 1
        now = time.monotonic()
        if now - shown >= every_s and 0 < count < total:
            shown = now
            left = (now - start) / max(count - done, 1) * (total - count)
            say(f"{name}: {count}/{total} {unit}, {left:.0f} s left")


@dataclasses.dataclass(frozen=True)
class Done:
    """A finished stage: its folder, the digest of its files, and the seconds that it took when it ran."""

    path: Path
    digest: str
    seconds: float
    key: str


class Stages:
    """The stage folders under `root` (W/preprocess). One run at a time: a second one waits for the lock."""

    def __init__(self, root: Path, extra_key: dict[str, Any]):
        """extra_key: what every stage depends on (versions of the libraries and the like)."""
        self.root, self.extra_key = Path(root), extra_key
        self.results: dict[str, Done] = {}
        self._lock = None
        self._fresh: list[Path] = []  # the folders that were made for this run, `root` first

    def __enter__(self) -> "Stages":
        while self._lock is None:
            self._fresh = [p for p in (self.root, *self.root.parents) if not p.exists()]
            try:
                self.root.mkdir(parents=True, exist_ok=True)
                lock = open(self.root / ".lock", "w")
            except FileNotFoundError:  # a refused run took the folder back in between
                continue
            except OSError as e:
                raise UserError(f"{self.root}: {e.strerror or e}; give a --workdir that can be written") from e
            try:
                take_lock(lock.fileno(), self.root)
            except BlockingIOError:
                say(f"waiting for another preprocessing run in {self.root} to end")
                take_lock(lock.fileno(), self.root, wait=True)
            if self._has_name(lock):
                self._lock = lock
            else:
                lock.close()
        return self

    def _has_name(self, lock) -> bool:
        """Whether the locked file is still the one that the next run will find."""
        try:
            return os.path.samestat(os.fstat(lock.fileno()), os.stat(self.root / ".lock"))
        except FileNotFoundError:
            return False

    def __exit__(self, *exc) -> None:
        self._lock.close()
        self._lock = None

    def take_back(self) -> None:
        """Remove what this run has begun, while its lock is held: the folder where it is new, else unfinished stages.

        The folder goes under another name first, so that a run that comes meanwhile makes its own.
        """
        if self._lock is None:
            raise RuntimeError("take_back needs the lock: call it inside the context")
        if self.root not in self._fresh:
            for partial in self.root.glob("*.partial-*"):
                shutil.rmtree(partial, ignore_errors=True)
            return
        gone = self.root.with_name(f".{self.root.name}.{os.getpid()}")
        os.rename(self.root, gone)
        shutil.rmtree(gone, ignore_errors=True)
        for folder in self._fresh[1:]:
            with contextlib.suppress(OSError):  # not empty: another run is there
                folder.rmdir()

    def run(
        self,
        name: str,
        function: Callable[[Path], None],
        settings: dict[str, Any],
        inputs: dict[str, str],
        sources: Sequence[ModuleType],
    ) -> Done:
        """Run `function(folder)` unless an equal run is stored; returns where its output lies.

        inputs: name -> digest of everything that the function reads. sources: the modules whose text makes the
        output; a change of one makes the stage run again.
        """
        code = {m.__name__: sha256_file(Path(m.__file__)) for m in sources}
        key = hash_json([name, settings, inputs, code, self.extra_key])
        final, partial = self.root / name, self.root / f"{name}.partial-{key[:16]}"
        for old in self.root.glob(f"{name}.partial-*"):
            if old != partial:
                shutil.rmtree(old)
        found = self._load(final, key)
        if found:
            say(f"{name}: unchanged")
        else:
            resumed = partial.is_dir()
            say(f"{name}: {'continues' if resumed else 'starts'}")
            partial.mkdir(exist_ok=True)
            for unfinished in partial.glob(".*"):  # what a killed write_atomic left
                unfinished.unlink()
            start = time.monotonic()
            function(partial)
            found = self._finish(partial, final, key, time.monotonic() - start)
            say(f"{name}: done in {found.seconds:.1f} s")
        self.results[name] = found
        return found

    @staticmethod
    def _load(final: Path, key: str) -> Done | None:
        try:
            record = json.loads((final / RECORD).read_text())
        except (OSError, ValueError):
            return None
        if record.get("key") != key:
            return None
        for file, digest in record["files"].items():
            path = final / file
            if not path.is_file() or sha256_file(path) != digest:
                return None
        return Done(final, record["digest"], record["seconds"], key)

    @staticmethod
    def _finish(partial: Path, final: Path, key: str, seconds: float) -> Done:
        names = sorted(str(p.relative_to(partial)) for p in partial.rglob("*") if p.is_file())
        files = {n: sha256_file(partial / n) for n in names if n != RECORD}
        digest = hash_json(files)
        record = {"key": key, "digest": digest, "seconds": round(seconds, 3), "files": files}
        write_atomic(partial / RECORD, json.dumps(record, indent=1).encode())
        if final.exists():
            # Out of the way under a name that the next run sweeps; a kill in between only costs a rerun.
            old = final.with_name(f"{final.name}.partial-old")
            shutil.rmtree(old, ignore_errors=True)
            os.rename(final, old)
            os.rename(partial, final)
            shutil.rmtree(old)
        else:
            os.rename(partial, final)
        return Done(final, digest, seconds, key)
