"""Rays, grids and march settings that the tests of march and composite share, and the back ends that they run on."""

import contextlib

import numpy as np
import pytest

from tkjax.ops import cpu

BOX = (-1.0, -0.5, -1.0, 1.0, 0.5, 1.0)
DT = 2 * 3**0.5 / 128
COMMON = dict(side=16, box=BOX, dt=DT, t_min=0.05, samples=16)
WIDE = (-3.0, -3.0, -2.0, 3.0, 3.0, 3.0)
CASES = {
    "constant": COMMON,
    "few": COMMON | dict(side=32, samples=5),
    "many": COMMON | dict(dt=0.01, samples=200),
    "cone": COMMON | dict(dt=0.01, dt_gamma=1 / 64, dt_max=0.06),
    "wide": COMMON | dict(side=8, bound=3.0, box=WIDE),
    "cascades": COMMON | dict(side=8, bound=3.0, box=WIDE, cascades=3, dt=0.03, dt_gamma=1 / 32, dt_max=0.4),
    "vertex": COMMON | dict(side=12, bound=0.7, box=(-0.7, -0.5, -0.7, 0.7, 0.5, 0.7), cell="vertex"),
}
QUICK = ("constant", "cone", "cascades")  # of `make check`: the reference is compiled for each
EACH_CASE = [pytest.param(case, marks=() if case in QUICK else pytest.mark.heavy) for case in sorted(CASES)]
needs_kernels = pytest.mark.skipif(cpu.unavailable() is not None, reason=f"CPU kernels: {cpu.unavailable()}")
ISAS = [
    pytest.param(isa, marks=needs_kernels if cpu.unavailable() or isa in cpu.isas() else pytest.mark.skip("no " + isa))
    for isa in cpu.ISAS
]
VARIANTS = ["reference", *(pytest.param(f"cpu-{p.values[0]}", marks=p.marks) for p in ISAS)]


@contextlib.contextmanager
def variant(name: str):
    """Yields the back end of `name`: "reference", or "cpu-" and an instruction set, which is active in the block."""
    backend, _, isa = name.partition("-")
    with cpu.isa(isa) if isa else contextlib.nullcontext():
        yield backend


def occupancy(rng, settings: dict, share: float) -> np.ndarray:
    side = settings["side"]
    cells = (side + 1) ** 3 if settings.get("cell") == "vertex" else side**3 * settings.get("cascades", 1)
    return np.packbits(np.pad(rng.random(cells) < share, (0, -cells % 8)), bitorder="little")


def rays(rng, n: int, bound: float = 1.0):
    """Towards the box from outside and from inside, past it, along the axes and parallel to faces."""
    o = rng.normal(size=(n, 3)) * rng.choice([0.3, 2.0, 4.0], (n, 1)) * bound
    d = rng.uniform([-1, -0.5, -1], [1, 0.5, 1], (n, 3)) * bound - o
    d[: n // 8] = rng.normal(size=(n // 8, 3))
    d[n // 8 : n // 4] = np.eye(3)[rng.integers(0, 3, n // 4 - n // 8)] * rng.choice([-1, 1], (n // 4 - n // 8, 1))
    d[n // 4 : n // 4 + 2, 0] = 0.0
    d /= np.linalg.norm(d, axis=-1, keepdims=True)
    return o.astype(np.float32), d.astype(np.float32)


def spoiled(rng, values: np.ndarray, share: float = 0.02) -> np.ndarray:
    """Some of the values replaced by NaN, infinities, zeros, very small and very large numbers."""
    odd = rng.random(values.shape) < share
    out = values.copy()
    out[odd] = rng.choice([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-39, 1e30, -1e38], odd.sum())
    return out
