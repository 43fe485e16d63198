"""One run at a time in a workdir. The lock belongs to the process: it goes with it, however it ends."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import jax

from tkjax.errors import UserError
from tkjax.host import files
from tkjax.host.files import take_lock
from tkjax.train import checkpoint, devices

LOCK = ".lock"


@contextlib.contextmanager
def alone(workdir: str | os.PathLike) -> Iterator[None]:
    """Make the workdir and hold its lock; a folder that was made here and is still empty at the end goes again.

    In a run of several processes the first one takes the lock, and all refuse together.

    Raises:
      UserError: another run holds it, or the folder cannot be made or written.
    """
    path = Path(workdir)
    if not jax.distributed.is_initialized():
        with _held(path):
            yield
        return
    checkpoint.meet("workdir")
    with contextlib.ExitStack() as stack:
        refusal = None
        if jax.process_index() == 0:
            try:
                stack.enter_context(_held(path))
            except UserError as error:
                refusal = error
        devices.end_together(refusal)
        yield


@contextlib.contextmanager
def _held(path: Path) -> Iterator[None]:
    fresh = [p for p in (path, *path.parents) if not p.exists()]
    try:
        with files.writing(path, "a --workdir that can be written"):
            path.mkdir(parents=True, exist_ok=True)
            fd = _locked(path / LOCK)
    except BlockingIOError as error:
        raise UserError(f"{path} is in use by another run; wait for its end or name another --workdir") from error
    try:
        yield
    finally:
        if fresh and os.listdir(path) == [LOCK]:
            (path / LOCK).unlink()
            for folder in fresh:
                with contextlib.suppress(OSError):
                    folder.rmdir()
        os.close(fd)


def _locked(path: Path) -> int:
    """An open, locked file; the one that has this name, not one that was removed meanwhile."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            take_lock(fd, path)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(fd), os.stat(path)):
                    return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
