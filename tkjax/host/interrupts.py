"""Ctrl-C, `kill` and a closed terminal end a run in the same way: blocks are left in order, so what is half-made goes,
and one line says how it goes on. Standard library only.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
USUAL = (signal.SIG_DFL, signal.default_int_handler)
# modes that keep what is finished; the others start anew
RESUMING = ("fit", "preprocess", "train", "demo", "track", "compare")


class Interrupted(KeyboardInterrupt):
    """One of SIGNALS; number: which."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextlib.contextmanager
def caught() -> Iterator[None]:
    """Within: the first of SIGNALS raises `Interrupted` in the main thread. Later ones are ignored, so that they do not
    stop the clean-up that this starts; only another Ctrl-C does. A signal that the caller ignores or handles (nohup, a
    launcher) stays as it is."""
    before = {}

    def stop(number: int, frame: FrameType | None) -> None:
        for other in before:
            again = signal.default_int_handler if other == signal.SIGINT else signal.SIG_IGN
            signal.signal(other, again)
        raise Interrupted(number)

    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in SIGNALS if signal.getsignal(number) in USUAL}
        for number in before:
            signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def exit_code(error: KeyboardInterrupt) -> int:
    """128 and the signal's number, as shells have it: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + (error.number if isinstance(error, Interrupted) else signal.SIGINT)


def sentence(error: KeyboardInterrupt, mode: str) -> str:
    """What the user is told. mode: of launch.py."""
    what = "interrupted" if exit_code(error) == 128 + signal.SIGINT else f"terminated ({error})"
    if mode in RESUMING:
        return f"{what}; the same command continues where it stopped"
    return f"{what}; nothing half-made is left, and the same command starts anew"
