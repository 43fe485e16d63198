"""Ctrl-C and SIGTERM leave nothing half-made, say how it goes on, and give the shell's exit codes."""

import os
import signal
import subprocess
import sys
import time

import jax
import pytest

from tests import tiny
from tkjax import config
from tkjax.avatar import bundle
from tkjax.data.dataset_clip import DatasetClip
from tkjax.host import interrupts
from tkjax.media import audio
from tkjax.models import load_system

STOPS = [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated (SIGTERM)")]


def listen() -> None:
    """The usual handlers: a shell's background jobs and nohup ignore SIGINT and SIGHUP."""
    for number in interrupts.SIGNALS:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


@pytest.fixture
def usual_handlers():
    before = {number: signal.getsignal(number) for number in interrupts.SIGNALS}
    listen()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", interrupts.SIGNALS)
def test_the_first_signal_is_raised_and_later_ones_do_not_stop_the_clean_up(number, usual_handlers):
    before = [signal.getsignal(n) for n in interrupts.SIGNALS]
    cleaned = False
    with interrupts.caught():
        try:
            os.kill(os.getpid(), number)
            time.sleep(5)
        except interrupts.Interrupted as error:
            for other in (signal.SIGTERM, signal.SIGHUP):
                os.kill(os.getpid(), other)
            cleaned = True
            assert interrupts.exit_code(error) == 128 + number
    assert cleaned and [signal.getsignal(n) for n in interrupts.SIGNALS] == before


def test_a_signal_that_the_caller_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interrupts.caught():
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_only_what_continues_is_said_to_continue():
    stop = interrupts.Interrupted(signal.SIGTERM)
    assert "continues where it stopped" in interrupts.sentence(stop, "train")
    assert "starts anew" in interrupts.sentence(stop, "render") and "starts anew" in interrupts.sentence(stop, "eval")
    assert interrupts.exit_code(KeyboardInterrupt()) == 130


RENDER = """
import sys, time, types
import launch
from tests import tiny  # its system counts as known once it is imported
from tkjax.avatar import bundle
from tkjax.app import cli
from tkjax.drive import driver, stream
def look(i, picture):
    time.sleep(0.1)
    if i == 2:
        print("go", flush=True)
def run(opts):
    subject = bundle.load(sys.argv[1])
    stream.render(subject, driver.plan(subject, audio=sys.argv[2]), sys.argv[3], on_frame=look)
cli.run = run
launch.main(types.SimpleNamespace(mode="render"))
"""


CHILD = """
import sys, time
from pathlib import Path
from preprocess.command import exit_code
from tkjax.host.files import whole
def work():
    with whole(Path(sys.argv[1]) / "half") as part:
        part.write_bytes(b"half")
        print("go", flush=True)
        time.sleep(60)
sys.exit(exit_code(work, "preprocess"))
"""


LISTEN = """
import signal
for number in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
"""


def stop(code, arguments, number, **environment):
    """(exit code, error stream) of a process that gets a signal once it has said a line."""
    env = {**os.environ, **environment}
    how = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process = subprocess.Popen(
        [sys.executable, "-c", LISTEN + code, *map(str, arguments)], cwd=config.ROOT, env=env, **how
    )
    while "go" not in (line := process.stdout.readline()):
        assert line, process.stderr.read()
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    return process.returncode, said


@pytest.mark.heavy
@pytest.mark.parametrize(("number", "code", "word"), STOPS)
def test_preprocessing_that_is_stopped_leaves_no_half_file_and_says_that_it_continues(tmp_path, number, code, word):
    found, said = stop(CHILD, [tmp_path], number)
    assert found == code and f"{word}; the same command continues" in said and "Traceback" not in said
    assert not list(tmp_path.iterdir())
    found, said = stop(CHILD, [tmp_path], number, TKJAX_PARENT=str(os.getpid()))
    assert found == code and not said, "its parent says it"


@pytest.mark.heavy
@pytest.mark.parametrize(("out", "stopped"), [("o.mp4", STOPS[0]), ("frames", STOPS[1])])
def test_rendering_that_is_stopped_leaves_what_was_there_and_nothing_else(tmp_path, out, stopped):
    number, code, word = stopped
    clip = DatasetClip(tiny.make_dataset(tmp_path / "dataset"), tmp_path / "cache")
    resolved = tiny.config()
    model = load_system(resolved.system)(resolved, clip.info)
    spec, variables = bundle.audio_spec(clip.audio), model.init(jax.random.key(0))
    bundle.save(tmp_path / "avatar", resolved, variables, 4, clip, spec, {"statement": None})
    audio.write_wav(tmp_path / "s.wav", tiny.sound(8.0))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "o.mp4").write_bytes(b"old")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    arguments = [tmp_path / "avatar", tmp_path / "s.wav", tmp_path / "out" / out]
    found, said = stop(RENDER, arguments, number, TMPDIR=str(temporary))
    assert found == code and f"{word}; nothing half-made is left" in said and "Traceback" not in said, said
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["o.mp4"] and not list(temporary.iterdir())
    assert (tmp_path / "out" / "o.mp4").read_bytes() == b"old"
