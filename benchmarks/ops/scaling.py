"""Cost against the number of samples and against threads: `python -m benchmarks.ops --scaling`.

XLA sizes its pool of CPU threads when it starts, from the cores that the process may use: each number of threads is a
child process that is bound to so many cores before JAX is imported.
"""

import functools
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.ops import cases, inputs, measure
from tkjax.ops import dispatch

SIZES = (10**3, 10**4, 10**5, 10**6, 10**7)
TOO_LONG = 8.0  # seconds that one call is expected to take from which on it is left out
THREADS_SIZE = 10**6
POOL = 2 * 10**6  # distinct samples; larger numbers repeat them


def _samples(n: int):
    some = inputs.samples(min(n, POOL))
    index = np.arange(n) % len(some.points)
    return some, index


def _grid(n: int, backward: bool, backend: str) -> Callable:
    some, index = _samples(n)
    problem = cases.grid_problem(inputs.NGP3D, some.points[index])
    return _call(problem, backward, backend)


def _field(n: int, backward: bool, backend: str) -> Callable:
    some, index = _samples(n)
    problem = cases.field_problem(some._replace(points=some.points[index], ray=some.ray[index]), train=False)
    return _call(problem, backward, backend)


def _composite(n: int, backward: bool, backend: str) -> Callable:
    """n slots of rays of SAMPLES each."""
    rng, rays = np.random.default_rng(0), -(-n // inputs.SAMPLES)
    shape = (rays, inputs.SAMPLES)
    sigma = jnp.asarray(rng.exponential(8.0, shape).astype(np.float32))
    t = jnp.broadcast_to(inputs.DT * jnp.arange(inputs.SAMPLES, dtype=jnp.float32), shape)
    weighted = jnp.asarray(rng.random((*shape, 4), np.float32))
    plain = jnp.asarray(rng.random((*shape, 2), np.float32))
    return _call(cases.composite_problem(sigma, weighted, plain, jnp.ones(shape, bool), t), backward, backend)


def _call(problem, backward: bool, backend: str) -> Callable:
    args = (problem.differentiated, problem.constant)

    def forward(diff, const):
        return problem.fn(backend, *diff, *const)

    if not backward:
        fn = jax.jit(forward)
        return lambda: fn(*args)
    out, vjp = jax.jit(lambda diff, const: jax.vjp(lambda *d: forward(d, const), *diff))(*args)
    fn = jax.jit(lambda vjp, g: vjp(g))
    return lambda: fn(vjp, out)


CASES = {
    ("grid_encode", "ngp3d", "forward"): functools.partial(_grid, backward=False),
    ("grid_encode", "ngp3d", "backward"): functools.partial(_grid, backward=True),
    ("field", "field_er_nerf", "forward"): functools.partial(_field, backward=False),
    ("composite", "dense", "forward"): functools.partial(_composite, backward=False),
}


def sweep(sizes, quick: bool = False) -> list[dict]:
    """Rows of this process, for all back ends that work here; what would take too long is left out with a reason."""
    rows = []
    for (op, case, mode), build in CASES.items():
        for backend in (name for name in dispatch.backends(op) if not dispatch.unavailable(name)):
            per_sample = 0.0
            for n in sizes:
                row = {"op": op, "case": case, "mode": mode, "backend": backend, "size": n, "threads": measure.cores()}
                rows.append(row)
                if per_sample * n > TOO_LONG:
                    row |= {"median_ms": None, "reason": f"would take {per_sample * n:.0f} s"}
                    continue
                call = build(n, backend=backend)
                jax.block_until_ready(call())
                seconds = measure.interleave({"": call}, quick)[""]
                median = statistics.median(seconds)
                per_sample = median / n
                row |= measure.summary(seconds) | {"ns_per_sample": per_sample * 1e9}
                print(f"{op} {case} {mode} {backend} {n}: {median * 1e3:.3f} ms", file=sys.stderr, flush=True)
                del call
    return rows


CHILD = (
    "import json, os, sys\n"
    "cores, size, quick = json.loads(sys.argv[1])\n"
    "os.sched_setaffinity(0, cores)\n"
    "from benchmarks.ops import scaling\n"
    "print(json.dumps(scaling.sweep([size], quick)))\n"
)


def thread_counts(cores: int) -> list[int]:
    """1, 2, 4, … and the number of cores."""
    return sorted({2**k for k in range(cores.bit_length()) if 2**k <= cores} | {cores})


def threads(size: int, quick: bool) -> list[dict]:
    """Rows of one child process for each number of threads."""
    allowed = sorted(os.sched_getaffinity(0))
    rows = []
    for count in thread_counts(len(allowed)):
        print(f"{count} thread(s)", file=sys.stderr, flush=True)
        argument = json.dumps([allowed[:count], size, quick])
        done = subprocess.run([sys.executable, "-c", CHILD, argument], stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise RuntimeError(f"the run with {count} threads ended with exit code {done.returncode}")
        rows += json.loads(done.stdout)
    alone = {_key(row): row["median_ms"] for row in rows if row["threads"] == 1}
    for row in rows:
        known = row["median_ms"] is not None and alone.get(_key(row)) is not None
        row["speedup"] = alone[_key(row)] / row["median_ms"] if known else None
    return rows


def _key(row: dict) -> tuple:
    return tuple(row[name] for name in ("op", "case", "mode", "backend"))


def _print(title: str, rows: list[dict], column: str, cell: Callable[[dict], str]) -> None:
    values = sorted({row[column] for row in rows})
    print(f"\n{title}")
    print(f"{'':<42} " + " ".join(f"{f'{v:,}':>12}" for v in values))
    for key in dict.fromkeys(_key(row) for row in rows):
        cells = {row[column]: cell(row) for row in rows if _key(row) == key}
        print(f"{' '.join(key):<42} " + " ".join(f"{cells.get(v, ''):>12}" for v in values))


def run(quick: bool) -> dict:
    header = measure.header()
    by_size = sweep(SIZES[:2] if quick else SIZES, quick)
    on_cpu = jax.default_backend() == "cpu" and hasattr(os, "sched_setaffinity")
    by_threads = threads(SIZES[0] if quick else THREADS_SIZE, quick) if on_cpu else []
    _print(
        f"ns per sample against number of samples ({header['cores']} cores)", by_size, "size",
        lambda r: f"{r['ns_per_sample']:.1f}" if r["median_ms"] else "too long",
    )  # fmt: skip
    if by_threads:
        _print(
            f"ms for {by_threads[0]['size']:,} samples against threads (times as fast as one)", by_threads, "threads",
            lambda r: f"{r['median_ms']:.1f} ({r['speedup']:.2f})" if r["median_ms"] else "too long",
        )  # fmt: skip
    else:
        print("\nagainst threads: not run, this is for the CPU of a system that can bind a process to cores")
    return {"header": header, "samples": by_size, "threads": by_threads}
