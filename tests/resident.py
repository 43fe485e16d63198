"""Memory of a test process: what compilers and compiled programs leave behind is given back between tests.

A worker's memory grew to over 6 GB. Compiled programs stay in JAX's caches as long as their functions live, and what
the compiler frees stays with the C library. So pages are handed back once a process is larger than TRIM_GB, and above
CLEAR_GB the programs go first; those that are needed again come from the persistent cache.
"""

import ctypes
import gc
import sys

LIMIT_GB = 2.5  # that a process may take; what follows leaves room for the largest single test
TRIM_GB, CLEAR_GB = 1.4, 1.8
GROWTH_GB = 0.3  # since the programs went last: what is still in use then would only be compiled again and again
_kept_gb = 0.0


def resident_gb(key: str = "VmRSS") -> float:
    """Resident memory of this process, or with VmHWM the most that it ever was; 0 where Linux does not say."""
    try:
        with open("/proc/self/status") as f:
            return next(int(line.split()[1]) for line in f if line.startswith(key)) / 2**20
    except (OSError, StopIteration, ValueError):
        return 0.0


def trim() -> None:
    """Hand freed memory back to the system, where the C library can (glibc)."""
    give_back = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if give_back is not None:
        give_back(0)


def bound() -> None:
    """Call after each test."""
    global _kept_gb
    if resident_gb() > TRIM_GB:
        trim()
    if resident_gb() > max(CLEAR_GB, _kept_gb + GROWTH_GB) and "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
        gc.collect()
        trim()
        _kept_gb = resident_gb()
