"""The PyTorch side runs as a child process: jax and torch never meet in one.

`python -m tkjax.child MODULE args…` runs a module so that it dies with its parent: a killed run leaves no
second writer behind.
"""

import ctypes
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

from tkjax import errors
from tkjax.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
PR_SET_PDEATHSIG = 1  # linux/prctl.h
REFUSAL = "TKJAX_REFUSAL"  # the number of the pipe that takes the child's sentence


def _command(module: str, arguments: list[str]) -> list[str]:
    return [sys.executable, "-m", "tkjax.child", module, *arguments]


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
            child.terminate()
            child.wait()
            raise
        said = (sentence.read(errors.LONGEST_SENTENCE) or b"").decode(errors="replace")
    if code == 2:
        raise UserError(said or f"{module} refused; the lines above say why")
    if code:
        raise RuntimeError(f"python -m {module} {' '.join(arguments)} failed with exit code {code}")


def ask(module: str, arguments: list[str], show: bool = False) -> None:
    """Run a module whose refusal becomes a UserError with its sentence; `show` lets its standard output through."""
    sys.stdout.flush()
    out = None if show else subprocess.DEVNULL
    command = _command(module, arguments)
    done = subprocess.run(command, env=_environment(), stdout=out, stderr=subprocess.PIPE, text=True)
    lines = [line.strip() for line in done.stderr.replace("\r", "\n").splitlines() if line.strip()]
    if done.returncode == 2:
        raise UserError(lines[-1].removeprefix("error: ") if lines else f"{module} refused without a reason")
    if done.returncode:
        sys.stderr.write(done.stderr)
        raise RuntimeError(f"python -m {module} {' '.join(arguments)} failed with exit code {done.returncode}")


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
    runpy.run_module(module, run_name="__main__", alter_sys=True)
