"""A run that is killed at any moment and started again ends with the bits of an undisturbed one."""

import json
import random
import signal
import time

import numpy as np
import pytest

from tests.stubs.process import result, start

pytestmark = pytest.mark.heavy
OPTIONS = {"system": "staged", "steps": 40, "save_every": 8, "delay_s": 0.01}


def rows(workdir):
    """Rows of metrics.jsonl without the entries that measure time."""
    timed = ("steps_per_s", "rays_per_s", "seconds")
    found = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in timed} for row in found]


def kill_after(process, events, delay_s):
    """SIGKILL `delay_s` after the process printed its `events`-th line. Returns whether it was still running."""
    for _ in range(events):
        if not process.stdout.readline():
            break
    time.sleep(delay_s)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


def check_kills(tmp_path, options, kills, seed):
    print(f"random kills with seed {seed}")
    undisturbed = result(start(tmp_path / "undisturbed", **options))
    chance = random.Random(seed)
    survived = 0
    for _ in range(kills):
        # a short wait after a random number of events: in a save, in a row, in the last compilation, ...
        survived += kill_after(start(tmp_path / "killed", **options), chance.randint(1, 12), chance.uniform(0, 0.15))
    assert survived, "no process was killed while it ran"
    final = result(start(tmp_path / "killed", **options))
    np.testing.assert_array_equal(final, undisturbed)
    assert rows(tmp_path / "killed") == rows(tmp_path / "undisturbed")
    for stage in (tmp_path / "killed" / "checkpoints").iterdir():
        if stage.is_dir():
            assert sorted(p.name for p in stage.iterdir()) == sorted(
                p.name for p in (tmp_path / "undisturbed" / "checkpoints" / stage.name).iterdir()
            )


def test_three_random_kills_change_no_bit(tmp_path):
    check_kills(tmp_path, OPTIONS, kills=3, seed=random.randrange(10**6))


@pytest.mark.slow  # compiles and trains the real head seven times
def test_five_random_kills_of_the_real_head_change_no_bit(tmp_path):
    check_kills(tmp_path, {"system": "er_nerf", "save_every": 8, "delay_s": 0.02}, 5, seed=random.randrange(10**6))
