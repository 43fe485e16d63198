"""The PyTorch side runs as a child process: jax and torch never meet in one.

`python -m tkjax.host.torch_side MODULE args…` runs a module so that it dies with its parent: a killed run leaves no
second writer behind.
"""

import contextlib
import ctypes
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from tkjax import errors
from tkjax.errors import UserError
from tkjax.host import interrupts

ROOT = Path(__file__).resolve().parents[2]
CLEAN_UP_S = 20.0  # that a child gets between SIGTERM and SIGKILL: a chunk of frames takes a few seconds
PR_SET_PDEATHSIG = 1  # linux/prctl.h
REFUSAL = "TKJAX_REFUSAL"  # the number of the pipe that takes the child's sentence


def _command(module: str, arguments: list[str]) -> list[str]:
    return [sys.executable, "-m", "tkjax.host.torch_side", module, *arguments]


def _environment() -> dict[str, str]:
    path = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH")) if p)
    return {**os.environ, "PYTHONPATH": path, "TKJAX_PARENT": str(os.getpid())}


def run(module: str, arguments: list[str]) -> None:
    """Run a module with its output shown, and its progress bar where there is a terminal.

    Raises:
      UserError: the module refused (exit code 2), with the sentence that it gave to `errors.refuse`.
      RuntimeError: it failed in another way.
    """
    sys.stdout.flush()
    ours, theirs = os.pipe()
    with open(ours, "rb", buffering=0) as sentence:
        os.set_blocking(ours, False)  # a grandchild may hold the other end for longer than the child lives
        with open(theirs, "wb"):
            environment = {**_environment(), REFUSAL: str(theirs)}
            child = subprocess.Popen(_command(module, arguments), env=environment, pass_fds=(theirs,))
        try:
            code = child.wait()
        except BaseException:
            _end(child)
            raise
        said = (sentence.read(errors.LONGEST_SENTENCE) or b"").decode(errors="replace")
    if code == 2:
        raise UserError(said or f"{module} refused; the lines above say why")
    if code:
        raise RuntimeError(f"python -m {module} {' '.join(arguments)} failed with exit code {code}")


def _end(child: subprocess.Popen) -> None:
    """Let a child clean up and go. Ctrl-C on a terminal has reached it already; it ignores what comes second."""
    child.terminate()
    try:
        child.wait(CLEAN_UP_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def ask(module: str, arguments: list[str], show: bool = False) -> None:
    """Run a module whose refusal becomes a UserError with its sentence; `show` lets its standard output through."""
    sys.stdout.flush()
    out = None if show else subprocess.DEVNULL
    command = _command(module, arguments)
    done = subprocess.run(command, env=_environment(), stdout=out, stderr=subprocess.PIPE, text=True)
    _judge(module, arguments, done.returncode, done.stderr)


def _judge(module: str, arguments: list[str], code: int, said: str) -> None:
    """Nothing where a module succeeded; its refusal as a UserError, its bug as a RuntimeError."""
    lines = [line.strip() for line in said.replace("\r", "\n").splitlines() if line.strip()]
    if code == 2:
        raise UserError(lines[-1].removeprefix("error: ") if lines else f"{module} refused without a reason")
    if code:
        sys.stderr.write(said)
        raise RuntimeError(f"python -m {module} {' '.join(arguments)} failed with exit code {code}")


class Feed:
    """A module that reads its standard input while we write it: what is under way is bounded by the pipe.

    A module that has ended takes no more; `close` says why as `ask` does. Leaving the context by an error ends it.
    """

    def __init__(self, module: str, arguments: list[str]):
        self._module, self._arguments = module, arguments
        self._said = tempfile.TemporaryFile()  # a file, because a pipe that nobody reads would stop the module
        self._child = subprocess.Popen(
            _command(module, arguments),
            env=_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._said,
        )

    def write(self, *parts: bytes) -> None:
        try:
            for part in parts:
                self._child.stdin.write(part)
        except BrokenPipeError:
            pass  # `close` knows its exit code and its sentence

    def close(self) -> None:
        """Wait for the module to finish what it was given."""
        try:
            self._child.stdin.close()
        except BrokenPipeError:
            pass
        code = self._child.wait()
        self._said.seek(0)
        _judge(self._module, self._arguments, code, self._said.read().decode(errors="replace"))

    def __enter__(self) -> "Feed":
        return self

    def __exit__(self, *_) -> None:
        if self._child.poll() is None:
            self._child.kill()
            self._child.wait()
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.close()
        self._said.close()


def _die_with_parent() -> None:
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = os.environ.get("TKJAX_PARENT")
    if parent is not None and os.getppid() != int(parent):  # it died before the line above
        sys.exit(1)


if __name__ == "__main__":
    _die_with_parent()
    if REFUSAL in os.environ:
        errors.route(int(os.environ.pop(REFUSAL)))  # popped: children of this one have no such pipe
    module = sys.argv[1]
    sys.argv = sys.argv[1:]
    with interrupts.caught():
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except KeyboardInterrupt as error:  # the parent says so
            sys.exit(interrupts.exit_code(error))
