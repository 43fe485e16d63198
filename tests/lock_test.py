"""One run at a time in a workdir, and no lock that outlives its run."""

import signal
import subprocess
import sys

import pytest

from tests.distributed_test import free_port
from tkjax import config
from tkjax.app import lock
from tkjax.errors import UserError

HOLD = """
import sys
from tkjax.app import lock
from tkjax.train import loop
loop.initialise_distributed(*([sys.argv[2], 2, int(sys.argv[3])] if len(sys.argv) > 2 else []))
try:
    with lock.alone(sys.argv[1]):
        print("held", flush=True)
        sys.stdin.readline()
except lock.UserError as error:
    print(error, flush=True)
"""


def hold(*arguments):
    """A process that holds the lock until a line comes in."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", HOLD, *map(str, arguments)]
    return subprocess.Popen(command, cwd=config.ROOT, stdin=pipe, stdout=pipe, text=True)


def test_a_second_run_is_refused_with_the_workdir_and_a_third_is_not(tmp_path):
    with lock.alone(tmp_path):
        with pytest.raises(UserError, match=f"{tmp_path} is in use by another run"), lock.alone(tmp_path):
            pass
    with lock.alone(tmp_path):
        pass


def test_a_new_workdir_in_which_nothing_came_to_be_goes_again(tmp_path):
    with pytest.raises(KeyError), lock.alone(tmp_path / "a" / "b"):
        raise KeyError
    assert not list(tmp_path.iterdir())
    with lock.alone(tmp_path / "a"):
        (tmp_path / "a" / "result").touch()
    assert (tmp_path / "a" / "result").is_file()


def test_a_workdir_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "w"):
        with pytest.raises(UserError, match="expected a --workdir that can be written"), lock.alone(path):
            pass


@pytest.mark.heavy
def test_a_killed_run_holds_nothing(tmp_path):
    process = hold(tmp_path)
    assert process.stdout.readline() == "held\n"
    with pytest.raises(UserError, match="in use"), lock.alone(tmp_path):
        pass
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with lock.alone(tmp_path):
        pass


@pytest.mark.heavy
def test_processes_of_one_run_share_the_lock_and_are_refused_together(tmp_path):
    def both():
        address = f"127.0.0.1:{free_port()}"
        processes = [hold(tmp_path, address, i) for i in range(2)]
        said = [next(line for line in p.stdout if not line.startswith("[Gloo]")) for p in processes]
        for p in processes:  # both before waiting: they end together
            p.stdin.write("\n")
            p.stdin.close()
        for p in processes:
            p.wait(60)
        return said

    assert both() == ["held\n", "held\n"]
    with lock.alone(tmp_path):
        first, second = both()
    assert "in use by another run" in first and first == second
    assert both() == ["held\n", "held\n"]
