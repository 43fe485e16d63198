"""Which tests of the ops `make check` leaves out: those that interpret or compile Triton kernels, time things, or start
processes with other devices and threads."""

from pathlib import Path

import pytest

HEAVY = ("triton_", "bench_test", "grid_encode_cpu_test", "rays_devices_test")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent == Path(__file__).parent and item.path.name.startswith(HEAVY):
            item.add_marker(pytest.mark.heavy)
