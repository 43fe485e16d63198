"""Starting `tests.stubs.run` in processes of their own, and reading what they print."""

import concurrent.futures
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]


def start(workdir, **options) -> subprocess.Popen:
    """A process that trains; its output is a pipe of json lines."""
    command = [sys.executable, "-m", "tests.stubs.run", str(workdir), json.dumps(options)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "2"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def results(processes: list[subprocess.Popen]) -> list[np.ndarray]:
    """`result` of several that wait for each other: their pipes are read at the same time."""
    with concurrent.futures.ThreadPoolExecutor(len(processes)) as pool:
        return list(pool.map(result, processes))


def result(process: subprocess.Popen, timeout_s: float = 240) -> np.ndarray:
    """Wait for the end; the trained numbers [n] float64 (every float32 is exact in them)."""
    try:
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
    assert process.returncode == 0, err[-4000:]
    name, numbers = json.loads(out.splitlines()[-1])
    assert name == "result"
    return np.array(numbers)
