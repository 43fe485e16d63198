"""The same global batch gives the same numbers on one device, on eight, and on two processes."""

import socket

import numpy as np
import pytest

from tests.stubs.process import result, results, start

pytestmark = pytest.mark.heavy
OPTIONS = {"system": "ad_nerf", "steps": 9, "frames": 8, "save_every": 4}


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    return result(start(tmp_path_factory.mktemp("one"), **OPTIONS))


def rows(workdir):
    return (workdir / "metrics.jsonl").read_text().splitlines()


def test_eight_devices_equal_one_with_the_same_global_batch(one_device, tmp_path):
    eight = result(start(tmp_path, devices=8, **OPTIONS))
    np.testing.assert_allclose(eight, one_device, rtol=1e-4, atol=1e-4)


def test_two_processes_equal_one_and_continue_together(one_device, tmp_path):
    def both():
        address = {"coordinator_address": f"127.0.0.1:{free_port()}", "num_processes": 2}
        return [start(tmp_path, devices=2, distributed=address | {"process_id": i}, **OPTIONS) for i in range(2)]

    first = results(both())
    np.testing.assert_array_equal(first[0], first[1])
    np.testing.assert_allclose(first[0], one_device, rtol=1e-4, atol=1e-4)
    assert len(rows(tmp_path)) == 6  # only one of the processes writes: 2 stages, steps 3, 6, 9

    # without the last checkpoint both go on from the one before it
    last = tmp_path / "checkpoints" / "torso" / "9"
    last.rename(tmp_path / "gone")
    again = results(both())
    np.testing.assert_array_equal(again[0], first[0])
    assert len(rows(tmp_path)) == 6
