"""The child process: its refusal is ours, its bug is a bug, and it never outlives us."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tkjax.errors import UserError
from tkjax.host import torch_side

MODULE = "tests.obedient"


def test_a_refusal_becomes_a_user_error_with_its_sentence(capfd):
    with pytest.raises(UserError, match=r"^the file is not there$"):
        torch_side.ask(MODULE, ["refuse"])
    with pytest.raises(UserError, match=r"^the file is not there$"):
        torch_side.run(MODULE, ["refuse"])
    out, err = capfd.readouterr()
    assert "working" in out and err == ""  # who called says it, once
    with pytest.raises(UserError, match="obedient refused; the lines above say why"):
        torch_side.run(MODULE, ["usage"])
    assert "usage" in capfd.readouterr().err


def test_a_bug_stays_a_bug_and_success_is_silent(capfd):
    for call in (torch_side.ask, torch_side.run):
        with pytest.raises(RuntimeError, match=r"obedient.* exit code 1"):
            call(MODULE, ["fail"])
        call(MODULE, ["end"])
    assert "KeyError" in capfd.readouterr().err


def test_what_is_fed_arrives_and_a_refusal_in_the_middle_is_said_at_the_end(tmp_path):
    with torch_side.Feed(MODULE, ["count", str(tmp_path / "n")]) as feed:
        for _ in range(300):
            feed.write(b"x" * 1000, b"y" * 24)
        feed.close()
    assert (tmp_path / "n").read_text() == "307200"
    with torch_side.Feed(MODULE, ["refuse"]) as feed:
        for _ in range(3000):  # far more than a pipe holds: nobody reads
            feed.write(b"x" * 1000)
        with pytest.raises(UserError, match=r"^the file is not there$"):
            feed.close()
    with torch_side.Feed(MODULE, ["count", str(tmp_path / "m")]) as feed:
        feed.write(b"x")
    assert not (tmp_path / "m").exists() and feed._child.returncode  # left early, so it was ended


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="a child is bound to its parent by Linux's prctl")
def test_a_child_dies_with_a_killed_parent(tmp_path):
    code = f"from tkjax.host import torch_side; torch_side.run({MODULE!r}, ['wait', {str(tmp_path / 'pid')!r}])"
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=torch_side.ROOT)
    for _ in range(200):
        if (tmp_path / "pid").is_file() and (tmp_path / "pid").read_text():
            break
        time.sleep(0.1)
    pid = int((tmp_path / "pid").read_text())
    assert alive(pid)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    for _ in range(100):
        if not alive(pid):
            break
        time.sleep(0.05)
    assert not alive(pid)
