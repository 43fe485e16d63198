"""Files that appear whole or not at all, and locks on folders. Standard library only, for both sides of the program."""

import contextlib
import errno
import fcntl
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from tkjax.errors import MENDABLE, UserError

PLACE = "a place that can be written"
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # of file systems without locks


@contextlib.contextmanager
def writing(path: str | Path, expected: str = PLACE) -> Iterator[None]:
    """Around what writes `path`: a failure of the file system that the user can mend becomes a UserError which names
    it; any other goes on as it is."""
    try:
        yield
    except OSError as error:
        if error.errno not in (*MENDABLE, errno.EEXIST):  # EEXIST: a file where a folder would have to be
            raise
        raise UserError(f"{path}: {error.strerror}, expected {expected}") from error


def hidden(path: str | Path, kind: str, suffix: str = "") -> Path:
    """A name of this process beside `path`, hidden in listings. kind: part, old, …"""
    path = Path(path)
    return path.with_name(f".{path.name}.{os.getpid()}.{kind}{suffix}")


@contextlib.contextmanager
def whole(path: str | Path, suffix: str = "", expected: str = PLACE) -> Iterator[Path]:
    """A name to write to: it becomes `path` when the block ends well, and is gone after anything else, Ctrl-C too.

    The folder is made; the content reaches the disk before the name does (fsync), so a crash leaves the old file or the
    new one. suffix: of the temporary name, for writers that go by it. Failures: as in `writing`.
    """
    path = Path(path)
    part = hidden(path, "part", suffix)
    try:
        with writing(path, expected):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield part
            put(part, path)
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def put(part: Path, path: Path) -> None:
    """Give a finished file or folder its name; the content reaches the disk before the name does (fsync)."""
    sync(part)
    os.replace(part, path)
    with contextlib.suppress(OSError):  # folders cannot be waited for everywhere, nor by everybody
        sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_atomic(path: str | Path, data: bytes | str) -> None:
    """Replace a file by `data` (text as UTF-8), whole or not at all; see `whole`."""
    with whole(path) as part:
        part.write_bytes(data.encode() if isinstance(data, str) else data)


def replace_all(pairs: Sequence[tuple[Path, Path]]) -> None:
    """Give each finished file (first of its pair) its name (second), or none of them: if one cannot be renamed, what
    stood under the others' names is put back and the finished files go."""
    done: list[tuple[Path, Path | None]] = []
    try:
        for part, path in pairs:
            with writing(path):
                if path.is_dir():
                    raise UserError(f"{path} is a folder, expected the name of a file")
                done.append((path, _kept(path)))
                os.replace(part, path)
    except BaseException:
        for path, old in reversed(done):
            if old is not None:
                os.replace(old, path)
            else:
                path.unlink(missing_ok=True)
        for part, _ in pairs:
            part.unlink(missing_ok=True)
        raise
    for _, old in done:
        if old is not None:
            old.unlink(missing_ok=True)


def exchange(new: Path, place: Path, names: Sequence[str]) -> None:
    """Put what `new` holds under these names in `place`, in one go of renames; what it lacks is removed there.

    If one fails, all that was there comes back. The old ones stay in `new`, for the caller to remove.
    """
    old, moved = new / "old", []
    old.mkdir()
    try:
        for name in names:
            if (place / name).exists():
                os.rename(place / name, old / name)
            moved.append(name)
            if (new / name).exists():
                os.rename(new / name, place / name)
    except BaseException:
        for name in moved:
            if not (new / name).exists() and (place / name).exists():
                os.rename(place / name, new / name)
            if (old / name).exists():
                os.rename(old / name, place / name)
        raise


def _kept(path: Path) -> Path | None:
    """A second name of the file `path`, None where there is no such file."""
    old = hidden(path, "old")
    old.unlink(missing_ok=True)
    if not path.exists():
        return None
    try:
        os.link(path, old)
    except OSError:  # no hard links here
        os.replace(path, old)
    return old


def take_lock(fd: int, path: str | Path, wait: bool = False) -> None:
    """Lock an open file or folder for this process alone. BlockingIOError where another holds it, unless `wait`; a
    warning where the file system has no locks (some network ones), since the work can go on."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        warnings.warn(f"{path}: {error.strerror}; nothing keeps a second run out of it", stacklevel=2)
