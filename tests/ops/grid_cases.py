"""Grids, inputs and back ends that the tests of grid_encode share."""

import contextlib
import functools

import jax
import numpy as np
import pytest

from tests import oracle
from tkjax.ops import GridSpec, cpu, grid_encode

# Small grids of every kind: levels that fit, levels that wrap, every number of features.
SPECS = {
    "planes": GridSpec(2, 5, 1, 4, 40, 8, "hash"),
    "tiled2d": GridSpec(2, 4, 2, 4, 50, 8, "tiled"),
    "tiled3d": GridSpec(3, 4, 2, 3, 40, 9, "tiled"),  # the last level leaves a dimension out
    "hash3d": GridSpec(3, 4, 4, 3, 24, 9, "hash", "smoothstep"),
    "unpadded": GridSpec(3, 3, 1, 4, 16, 10, "hash", pad=1),
    "one_level": GridSpec(2, 1, 2, 8, 8, 5, "hash"),
    "wide": GridSpec(3, 3, 8, 4, 20, 8, "hash"),
    "wide2d": GridSpec(2, 3, 8, 4, 20, 7, "tiled", "smoothstep"),
    "hash3d2": GridSpec(3, 4, 2, 4, 40, 9, "hash"),
    "base_tiled": GridSpec(3, 4, 2, 4, 70, 9, "base_tiled"),  # levels of three dimensions, of two, and of one
    "base_tiled_2025": GridSpec(3, 4, 2, 4, 1700, 9, "base_tiled_2025"),  # the last level is a single entry
    "tiled3d1": GridSpec(3, 3, 1, 4, 30, 9, "tiled", "smoothstep"),
}
QUICK = ("planes", "tiled3d", "hash3d")  # of `make check`: the reference is compiled for each
EACH_SPEC = [pytest.param(name, marks=() if name in QUICK else pytest.mark.heavy) for name in SPECS]
PLANES = {"planes": 3, "tiled2d": 2}
BACKENDS = ("reference", "cpu-generic", "cpu-avx2", "cpu-avx512")
KERNELS = BACKENDS[1:]


@contextlib.contextmanager
def running(name):
    """The back end of `name` for `backend=`; a kernel's instruction set is in force within. Skips what is not here."""
    backend, _, isa = name.partition("-")
    if not isa:
        yield backend
        return
    if reason := cpu.unavailable():
        pytest.skip(f"CPU kernels: {reason}")
    if isa not in cpu.isas():
        pytest.skip(f"this processor has no {isa}")
    with cpu.isa(isa):
        yield backend


@functools.cache
def jitted(name, backend, out_dtype=None):
    return jax.jit(
        lambda points, tables: grid_encode(points, tables, SPECS[name], out_dtype=out_dtype, backend=backend)
    )


@functools.cache
def gradients(name, backend):
    """(points, tables, cotangent) -> (value, gradient to points, gradient to tables)."""

    def call(points, tables, g):
        out, vjp = jax.vjp(jitted(name, backend), points, tables)
        return (out, *vjp(g))

    return jax.jit(call)


def expected(name, points, tables):
    """The float64 loop."""
    s = SPECS[name]
    if not len(points):
        return np.zeros((0, points.shape[1], s.channels))
    return oracle.grid_encode(
        points, tables, levels=s.levels, base=s.base, finest=s.finest, log2_entries=s.log2_entries, kind=s.kind,
        interpolation=s.interpolation, pad=s.pad,
    )  # fmt: skip


def inputs(name, seed, n=24):
    """Points inside, outside and on the border, some many times; tables; a cotangent."""
    spec, planes, rng = SPECS[name], PLANES.get(name, 1), np.random.default_rng(seed)
    points = rng.uniform(-0.1, 1.1, (n, planes, spec.dims)).astype(np.float32)
    points[rng.random(n) < 0.2] = rng.uniform(0, 1, (planes, spec.dims))
    points[:1], points[1:2] = 0.0, 1.0  # corners belong to the grid
    tables = rng.normal(size=(planes, spec.entries, spec.features)).astype(np.float32)
    g = rng.normal(size=(n, planes, spec.channels)).astype(np.float32)
    return points, tables, g
