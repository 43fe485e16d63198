"""Worker processes: one thread each, silent, gone when their parent is gone; results come back in order."""

import collections
import contextlib
import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from tkjax.errors import UserError

N_WORKERS = 2  # fixed, so that the same clip takes the same path on every machine
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def _start(log: str) -> None:
    """In a fresh worker: one thread, output of the native libraries into `log`, and an end with the parent, which alone
    hears Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def pool(log: Path) -> Iterator[ProcessPoolExecutor]:
    """Two spawned workers; what native libraries print goes to `log`. A worker that dies is one sentence."""
    saved = {k: os.environ.get(k) for k in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(N_WORKERS, context, _start, (str(log),))
    try:
        yield executor
        executor.shutdown()
    except BrokenProcessPool as e:
        tail = log.read_text(errors="replace").strip().splitlines()[-1:] if log.exists() else []
        raise RuntimeError(f"a worker process died ({' '.join(tail) or 'no message'}); was memory short?") from e
    finally:
        executor.shutdown(wait=False, cancel_futures=True)
        for key, value in saved.items():
            os.environ.pop(key) if value is None else os.environ.__setitem__(key, value)


def ordered(
    executor: ProcessPoolExecutor, function: Callable, items: Iterable[tuple], ahead: int = 2 * N_WORKERS
) -> Iterator[Any]:
    """function(*item) for each item, computed in the workers, yielded in order; at most `ahead` are in flight."""
    pending: collections.deque = collections.deque()
    for item in items:
        pending.append(executor.submit(function, *item))
        if len(pending) >= ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


@contextlib.contextmanager
def native(name: str) -> Iterator[None]:
    """Around the import or first use of a package: a system library that it lacks becomes one sentence naming it."""
    packages = {"libGL.so.1": "libgl1", "libEGL.so.1": "libegl1", "libGLESv2.so.2": "libgles2",
                "libgthread-2.0.so.0": "libglib2.0-0"}  # fmt: skip
    try:
        yield
    except ModuleNotFoundError as e:
        raise UserError(f"preprocessing needs the Python package {e.name}; install tkjax[preprocess]") from e
    except (ImportError, OSError) as e:
        library = re.search(r"[\w.+-]+\.so[\w.]*(?=: cannot open shared object)", str(e))
        if not library:
            raise
        package = packages.get(library[0])
        raise UserError(
            f"{name} needs the system library {library[0]}, which is not installed"
            + (f"; on Debian and Ubuntu it is in the package {package}" if package else "")
        ) from e
