"""How the command lines of preprocessing end."""

import errno

import pytest

from preprocess.command import exit_code
from tkjax.errors import UserError


def stopped(error):
    def work():
        raise error

    return exit_code(work)


@pytest.mark.parametrize(
    "error, told",
    [
        (UserError("a.mp4 has\nno sound"), "error: a.mp4 has no sound\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "W/x.npz"),
            "error: cannot read or write W/x.npz: No space left on device\n",
        ),
        (PermissionError(errno.EACCES, "Permission denied"), "error: cannot read or write a file: Permission denied\n"),
    ],
)
def test_what_the_user_can_mend_is_one_sentence(error, told, capsys):
    assert stopped(error) == 2
    assert capsys.readouterr().err == told


@pytest.mark.parametrize("error", [FileNotFoundError(errno.ENOENT, "No such file", "x"), ValueError("bug"), EOFError()])
def test_a_bug_keeps_its_traceback(error):
    with pytest.raises(type(error)):
        stopped(error)


def test_work_that_is_done_ends_with_zero(capsys):
    assert exit_code(lambda: "anything") == 0 and capsys.readouterr() == ("", "")
