"""The same global batch gives the same numbers on one device, on eight, and on two processes."""

import socket
import subprocess
import sys

import numpy as np
import pytest

from tests.stubs import process
from tkjax import config

pytestmark = pytest.mark.heavy
OPTIONS = {"system": "staged", "steps": 9, "frames": 8, "save_every": 4}


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    return process.result(process.start(tmp_path_factory.mktemp("one"), **OPTIONS))


def rows(workdir):
    return (workdir / "metrics.jsonl").read_text().splitlines()


def test_eight_devices_equal_one_with_the_same_global_batch(one_device, tmp_path):
    eight = process.result(process.start(tmp_path, devices=8, **OPTIONS))
    np.testing.assert_allclose(eight, one_device, rtol=1e-4, atol=1e-4)


def test_two_processes_equal_one_and_continue_together(one_device, tmp_path):
    def both():
        address = {"coordinator_address": f"127.0.0.1:{free_port()}", "num_processes": 2}
        return [
            process.start(tmp_path, devices=2, distributed=address | {"process_id": i}, **OPTIONS) for i in range(2)
        ]

    first = process.results(both())
    np.testing.assert_array_equal(first[0], first[1])
    np.testing.assert_allclose(first[0], one_device, rtol=1e-4, atol=1e-4)
    assert len(rows(tmp_path)) == 6  # only one of the processes writes: 2 stages, steps 3, 6, 9

    # without the last checkpoint both go on from the one before it
    last = tmp_path / "checkpoints" / "torso" / "9"
    last.rename(tmp_path / "gone")
    again = process.results(both())
    np.testing.assert_array_equal(again[0], first[0])
    assert len(rows(tmp_path)) == 6


FIT = """
import os, sys, jax
from pathlib import Path
from tkjax import contract
from tkjax.app import cli, options, workflow
from tkjax.errors import UserError
from tkjax.host import torch_side
from tkjax.train import loop
workdir, address, index, refusal = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]

def launcher(*flags):  # what SLURM, MPI or Kubernetes say: no flag names the number of processes
    assert flags == (None, None, None)
    jax.distributed.initialize(address, 2, index)

def run(module, arguments):
    with open(workdir / "calls", "a") as calls:
        calls.write(f"{module} {index}\\n")
    if refusal:
        raise UserError(refusal) if refusal != "bug" else KeyError(refusal)
    (workdir / "dataset").mkdir()
    (workdir / "dataset" / contract.MANIFEST).touch()

def score(*_, **__):
    (workdir / f"scored-{index}").touch()

loop.initialise_distributed, torch_side.run, workflow.score = launcher, run, score
workflow.stop_on_failures = lambda dataset, accept: None  # the manifest of this test is an empty file
workflow.train_and_save = lambda resolved, dataset, workdir, consent, stages: (workdir / f"trained-{index}").touch()
opts = options.Options("fit", {"video": __file__ if "__file__" in globals() else sys.executable, "consent": "a test",
                               "workdir": str(workdir), "config": "configs/er_nerf.py:smoke"}, [])
try:
    cli.run(opts)
except (UserError, KeyError, RuntimeError) as error:
    print(type(error).__name__, error, flush=True)
"""


def fit_twice(workdir, refusal=""):
    """The last lines of two processes that a launcher started with the same `--mode=fit --video`."""
    address = f"127.0.0.1:{free_port()}"
    processes = [
        subprocess.Popen([sys.executable, "-c", FIT, str(workdir), address, str(i), refusal], cwd=config.ROOT,
                         stdout=subprocess.PIPE, text=True)
        for i in range(2)
    ]  # fmt: skip
    return [p.communicate(timeout=120)[0].splitlines()[-1:] for p in processes]


def test_a_fit_under_a_launcher_preprocesses_once_and_trains_in_all_processes(tmp_path):
    fit_twice(tmp_path)
    assert (tmp_path / "calls").read_text() == "preprocess 0\n"
    made = sorted(p.name for p in tmp_path.iterdir() if "-" in p.name)
    assert made == ["scored-0", "trained-0", "trained-1"]


def test_a_refused_clip_ends_all_processes_with_its_sentence(tmp_path):
    assert fit_twice(tmp_path, "the clip has no sound") == 2 * [["UserError the clip has no sound"]]
    first, second = fit_twice(tmp_path, "bug")
    assert first == ["KeyError 'bug'"] and second == ["RuntimeError the first process failed: KeyError"]
