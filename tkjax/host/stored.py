"""Files that others may have written, read as if a stranger had: json within limits, and plain files only.

Nothing read here is run, imported or followed: a link, a pipe or a folder in the place of a file is refused, json is
UTF-8 of bounded size and depth without doubled names, numbers beyond 64 bit, infinities or broken characters.
"""

import errno
import io
import json
import math
import os
import re
import stat
from pathlib import Path
from typing import Any

from tkjax.errors import UserError

LARGEST_BYTES = 64 << 20  # a manifest of ten hours has 3 MB
DEEPEST = 64  # containers in each other; our own files have at most 8
_SURROGATE = re.compile("[\ud800-\udfff]")


class BadJson(ValueError):
    """Why bytes are no json of ours, in a few words for the middle of a sentence."""


def parse(raw: bytes, finite: bool = True) -> Any:
    """The value of json bytes; BadJson where they are none. finite False lets NaN and infinities through, which the
    originals' checkpoints have among their scores."""
    if len(raw) > LARGEST_BYTES:
        raise BadJson(f"it has {len(raw)} bytes, more than {LARGEST_BYTES}")
    try:
        text = raw.decode("utf-8")
        value = json.loads(text, parse_constant=None if not finite else _no_constant, object_pairs_hook=_unique)
    except RecursionError as error:
        raise BadJson(f"it nests deeper than {DEEPEST} levels") from error
    except UnicodeDecodeError as error:
        raise BadJson(f"byte {error.start} is no UTF-8") from error
    except ValueError as error:
        raise BadJson(" ".join(str(error).split())[:80] or "it is no json") from error
    _walk(value, finite)
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"it holds the number {name}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    d = dict(pairs)
    if len(d) != len(pairs):
        raise ValueError("a name stands in it twice")
    return d


def _walk(value: Any, finite: bool) -> None:
    """Depth, numbers and characters, without recursion."""
    layer = [value]
    for _ in range(DEEPEST + 1):
        below: list[Any] = []
        for x in layer:
            if isinstance(x, dict):
                below.extend(x)
                below.extend(x.values())
            elif isinstance(x, list):
                below.extend(x)
            elif isinstance(x, str):
                if _SURROGATE.search(x):
                    raise BadJson("it holds a lone surrogate, which is no character")
            elif isinstance(x, float):
                if finite and not math.isfinite(x):
                    raise BadJson("it holds a number that is too large")
            elif type(x) is int and not -(2**63) <= x < 2**63:
                raise BadJson("it holds a whole number of more than 64 bit")
        if not below:
            return
        layer = below
    raise BadJson(f"it nests deeper than {DEEPEST} levels")


def read_json(path: str | Path, remedy: str, finite: bool = True) -> dict[str, Any]:
    """The json object in a plain file; UserError names the file, what is wrong and the remedy."""
    return json_object(read_bytes(path, remedy), path, remedy, finite)


def read_bytes(path: str | Path, remedy: str) -> bytes:
    """The bytes of a small plain file; of one that is too large those that show it."""
    path = Path(path)
    try:
        with open_plain(path.parent, path.name) as file:
            return file.read(LARGEST_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); {remedy}") from error


def json_object(raw: bytes, path: str | Path, remedy: str, finite: bool = True) -> dict[str, Any]:
    """The json object in the bytes of a file."""
    try:
        value = parse(raw, finite)
    except BadJson as error:
        raise UserError(f"{path} is not readable as json ({error}); {remedy}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is not readable as a json object (it is a {type(value).__name__}); {remedy}")
    return value


def open_plain(root: str | Path, name: str) -> io.BufferedReader:
    """The file `name` (perhaps `folder/name`) below `root`, for reading; root itself may be a link.

    OSError where it or a folder on the way is a symbolic link, or where it is a pipe, a device or a folder.
    """
    path = Path(root) / name
    for parent in list(path.parents)[: len(Path(name).parts) - 1]:
        if parent.is_symlink():
            raise OSError(errno.ELOOP, "it lies behind a symbolic link", str(parent))
    try:  # a pipe without a writer would be waited for
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "it is a symbolic link, no plain file", str(path)) from error
        raise
    except ValueError as error:  # a NUL in the name
        raise OSError(errno.EINVAL, "its name is none of a file", str(path)) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is a folder, pipe or device, no plain file", str(path))
    return os.fdopen(descriptor, "rb")
