"""Refusals: one sentence with file, member and expectation."""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from tkjax.errors import UserError

LONGEST = 200  # characters of what was found, in a message


class ContractError(UserError):
    """A dataset, or data on its way into one, breaks the contract."""


def refuse(where: Any, member: str, found: str, expected: str) -> ContractError:
    found = found if len(found) <= LONGEST else f"{found[:LONGEST]}…"  # a stranger's text may have any length
    return ContractError(f"{where}: member {member[:LONGEST]} {found}, expected {expected}")


def short(error: BaseException) -> str:
    """The gist of somebody else's message, fit for the middle of a sentence."""
    return " ".join(str(error).split())[:80].rstrip(".") or type(error).__name__


def first_bad(good: np.ndarray) -> int:
    return int(np.argmin(good.reshape(good.shape[0], -1).all(1)))


@contextlib.contextmanager
def disk_errors(where: Any, expected: str) -> Iterator[None]:
    """What the system says about a file or folder, as a ContractError."""
    try:
        yield
    except OSError as e:
        raise ContractError(f"{where}: {e.strerror or e}, expected {expected}") from e
