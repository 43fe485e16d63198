"""Timing side by side, the ceilings, and what has to be known about the machine to read the numbers."""

import datetime
import importlib.metadata
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

REPETITIONS = 7  # at least, where one takes less than SLOW seconds in all
SLOW_REPETITIONS = 3  # at least
SLOW = 1.5  # seconds of one contender after which SLOW_REPETITIONS are enough
ENOUGH = 0.3  # seconds of one contender after which REPETITIONS are enough
SETTLE = 5e-3  # seconds
SHORTEST = 2e-3  # a shorter call is repeated within a repetition

# jaxlib releases whose GPU scatter-add is a compare-and-swap loop (openxla/xla#46225); the option repairs it.
BAD_SCATTER_JAXLIB = ("0.10.2", "0.11.0")
FTZ_ATOMICS = "nvptx-allow-ftz-atomics"


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def timed(call: Callable[[], None], times: int = 1) -> float:
    start = time.perf_counter()
    for _ in range(times):
        result = call()
    jax.block_until_ready(result)  # what is not a JAX array has synchronised itself
    return (time.perf_counter() - start) / times


def interleave(calls: dict[str, Callable], quick: bool = False, foreign=()) -> dict[str, list[float]]:
    """Seconds of each repetition of each call; in every round each contender runs once, so that what else happens on
    the machine hits all of them. All have been called before (compiled, warm). After a `foreign` one its threads are
    given time to stop spinning."""
    first = {name: timed(call) for name, call in calls.items()}
    inner = {name: min(200, max(1, round(SHORTEST / max(v, 1e-6)))) for name, v in first.items()}
    seconds: dict[str, list[float]] = {name: [v] if v > ENOUGH else [] for name, v in first.items()}

    def wanted(name):
        done, spent = len(seconds[name]), sum(seconds[name]) * inner[name]
        if quick:
            return done < SLOW_REPETITIONS
        return done < SLOW_REPETITIONS or (done < REPETITIONS and spent < SLOW) or (done < 25 and spent < ENOUGH)

    while left := [name for name in calls if wanted(name)]:
        for name in left:
            seconds[name].append(timed(calls[name], inner[name]))
            time.sleep(SETTLE if name in foreign else 0.0)
        calls = dict(reversed(calls.items()))  # nobody is always behind the same one
    return seconds


def summary(seconds: list[float]) -> dict[str, float]:
    """median_ms, spread_ms (the middle half: third quartile - first), repetitions."""
    low, _, high = np.quantile(seconds, [0.25, 0.5, 0.75])
    return {
        "median_ms": statistics.median(seconds) * 1e3,
        "spread_ms": float(high - low) * 1e3,
        "repetitions": len(seconds),
    }


class Ceilings:
    """Rates of a large float32 product and a large copy, measured when asked and kept; the best median counts."""

    def __init__(self, quick: bool):
        on_cpu = jax.default_backend() == "cpu"
        self.matmul_size = 256 if quick else 2048 if on_cpu else 8192
        self.copy_bytes = 2**20 if quick else 2**28 if on_cpu else 2**31
        self.matmul_gflops: list[float] = []
        self.copy_gbytes: list[float] = []
        self._product = jax.jit(lambda a, b: a @ b)
        # In place: a new result each time would measure how fast the system hands out pages.
        self._copy = jax.jit(lambda a: a + 1.0, donate_argnums=0)

    def calls(self) -> dict[str, Callable]:
        n = self.matmul_size
        a = jnp.asarray(np.random.default_rng(0).normal(size=(n, n)).astype(np.float32))
        held = [jnp.zeros(self.copy_bytes // 4, jnp.float32)]

        def copy():
            held[0] = self._copy(held[0])
            return held[0]

        calls = {"matmul": lambda: self._product(a, a), "copy": copy}
        for call in calls.values():
            jax.block_until_ready(call())
        return calls

    def measure(self) -> None:
        seconds = interleave(self.calls())
        self.matmul_gflops.append(2.0 * self.matmul_size**3 / statistics.median(seconds["matmul"]) / 1e9)
        self.copy_gbytes.append(2.0 * self.copy_bytes / statistics.median(seconds["copy"]) / 1e9)

    def beside(self, cost, which: str, seconds_of_it: float, seconds: float) -> float:
        """Share of ceiling `which` as it was in the same rounds: load from elsewhere has hit both."""
        if which == "matmul":
            return cost.flop / seconds / (2.0 * self.matmul_size**3 / seconds_of_it)
        return cost.bytes / seconds / (2.0 * self.copy_bytes / seconds_of_it)

    def share(self, cost, seconds: float) -> tuple[float, str]:
        """(share of the ceiling that is nearer, its name)."""
        compute = cost.flop / seconds / (max(self.matmul_gflops) * 1e9)
        bandwidth = cost.bytes / seconds / (max(self.copy_gbytes) * 1e9)
        return (compute, "matmul") if compute >= bandwidth else (bandwidth, "copy")

    def describe(self) -> dict:
        return {
            "matmul": f"{self.matmul_size}^3 float32, default precision",
            "matmul_gflops": max(self.matmul_gflops),
            "matmul_gflops_each": self.matmul_gflops,
            "copy": f"{self.copy_bytes // 2**20} MiB of float32 read and written in place",
            "copy_gbyte_s": max(self.copy_gbytes),
            "copy_gbyte_s_each": self.copy_gbytes,
        }


def version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def repair_scatter() -> None:
    """Before JAX touches a GPU: the option that gives the bad releases their native float atomics back, so that plain
    XLA is not beaten by its own defect. What the user set stays."""
    plugins = any((d.name or "").lower().startswith("jax-cuda") for d in importlib.metadata.distributions())
    if plugins and version("jaxlib") in BAD_SCATTER_JAXLIB and FTZ_ATOMICS not in os.environ.get("XLA_FLAGS", ""):
        option = f"--xla_backend_extra_options=-{FTZ_ATOMICS}"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {option}".strip()


def scatter_state() -> dict:
    """Whether plain XLA's scatter-add, which the reference's gradients use, is at its best in this process."""
    bad = version("jaxlib") in BAD_SCATTER_JAXLIB
    repaired = FTZ_ATOMICS in os.environ.get("XLA_FLAGS", "")
    if jax.default_backend() == "cpu":
        text = "not a GPU run: the jaxlib scatter-add regression does not apply"
    elif not bad:
        text = f"jaxlib {version('jaxlib')} has no scatter-add regression"
    elif repaired:
        text = f"jaxlib {version('jaxlib')} has the scatter-add regression; {FTZ_ATOMICS} is set, so it is repaired"
    else:
        text = f"jaxlib {version('jaxlib')} has the scatter-add regression and XLA_FLAGS do not repair it"
    return {"jaxlib_affected": bad, "repaired": repaired, "text": text}


def processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.machine()


def commit() -> str | None:
    folder = Path(__file__).resolve().parent
    try:
        done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=folder, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() or None


def header() -> dict:
    """Everything but the ceilings."""
    names = ("jax", "jaxlib", "numpy", "torch", "triton", "jax-triton")
    device = jax.devices()[0]
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in names},
        "platform": jax.default_backend(),
        "device": processor() if device.platform == "cpu" else device.device_kind,
        "cores": cores(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "scatter_add": scatter_state(),
    }
