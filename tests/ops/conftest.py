"""Which tests of the ops `make check` leaves out: those that interpret or compile Triton kernels, time things, or start
processes with other devices and threads, and the instruction sets that the processor has besides its best one."""

from pathlib import Path

import pytest

HEAVY = ("triton_", "bench_test", "grid_encode_cpu_test", "rays_devices_test")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    from tkjax.ops import cpu  # only now: types are checked in what is imported after pytest is configured

    others = cpu.ISAS if cpu.unavailable() else cpu.isas()[:-1]
    variants = {*others, *(f"cpu-{isa}" for isa in others)}
    for item in items:
        if item.path.parent != Path(__file__).parent:
            continue
        given = item.callspec.params.values() if hasattr(item, "callspec") else ()
        if item.path.name.startswith(HEAVY) or any(isinstance(v, str) and v in variants for v in given):
            item.add_marker(pytest.mark.heavy)
