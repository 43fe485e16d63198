"""Errors that are the user's to mend: one sentence, no traceback, exit code 2."""

import errno

# Failures of the file system that the user can mend: rights, room, wrong kinds of names, broken or vanished disks.
MENDABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
MENDABLE += (errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP)
MENDABLE += (errno.EIO, errno.ESTALE, errno.EMFILE)


class UserError(ValueError):
    """Bad input; the message is one sentence that names the file or value, the expectation and the way out."""


def of_files(error: OSError) -> str | None:
    """What to tell the user about a failure of the file system; None for one that is a bug and keeps its traceback."""
    if error.errno not in MENDABLE:
        return None
    return f"cannot read or write {error.filename or 'a file'}: {error.strerror}"
