"""Errors that are the user's to mend: one sentence, no traceback, exit code 2."""

import errno
import os
import sys

# Failures of the file system that the user can mend: rights, room, wrong kinds of names, broken or vanished disks.
MENDABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
MENDABLE += (errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP)
MENDABLE += (errno.EIO, errno.ESTALE, errno.EMFILE)
LONGEST_SENTENCE = 4096  # bytes through a pipe: what Linux writes at once, whether or not somebody reads


class UserError(ValueError):
    """Bad input; the message is one sentence that names the file or value, the expectation and the way out."""


def of_files(error: OSError) -> str | None:
    """What to tell the user about a failure of the file system; None for one that is a bug and keeps its traceback."""
    if error.errno not in MENDABLE:
        return None
    return f"cannot read or write {error.filename or 'a file'}: {error.strerror}"


_routed: int | None = None  # a pipe to the process that started this one, where it asked for the sentence


def route(pipe: int | None) -> None:
    """From now on `refuse` writes into this pipe, which somebody else reads and shows; None: to the error stream."""
    global _routed
    _routed = pipe


def refuse(message: object) -> None:
    """Say in one line why the work was refused, on the error stream or to who asked for it (`route`)."""
    sentence = " ".join(str(message).split())
    if _routed is None:
        print(f"error: {sentence}", file=sys.stderr, flush=True)
    else:
        os.write(_routed, sentence.encode(errors="replace")[:LONGEST_SENTENCE])
