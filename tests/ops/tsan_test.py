"""CPU kernels under ThreadSanitizer: each tests/ops/cpp/*_stress.cc drives its kernels from several threads.

To add one, drop in `<op>_stress.cc` with a main() that returns 0 if all is well, and these comment lines:
  // kernels: <op>.cc other.cc    sources in tkjax/ops/cpu/src, compiled with it for one instruction set (AVX2, generic)
  // link: <op>_args_ffi.cc       (optional) further sources; XLA's headers are there, handlers cannot be linked
It includes "std_pool.h" for a Pool of std::threads, and calls the kernels as TKJAX_CALL(name, …).
"""

import functools
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import jax.ffi
import pytest

pytestmark = pytest.mark.heavy
HERE = Path(__file__).resolve().parent / "cpp"
SOURCES = HERE.parents[2] / "tkjax/ops/cpu/src"
FLAGS = ["-std=c++17", "-O1", "-g", "-fsanitize=thread", "-ffp-contract=off", "-fno-math-errno", "-pthread", "-w"]
AVX2 = ["-mavx2", "-mfma", "-mf16c", "-mbmi2", "-DTKJAX_ISA=avx2"]


@functools.cache
def compiler() -> str:
    """The C++ compiler. Skips where there is none, or none with ThreadSanitizer."""
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and shutil.which(name):
            break
    else:
        pytest.skip("no C++ compiler")
    probe = subprocess.run(
        [name, "-fsanitize=thread", "-x", "c++", "-", "-o", os.devnull], input="int main() {}", text=True,
        capture_output=True,
    )  # fmt: skip
    if probe.returncode:
        pytest.skip(f"{name} has no ThreadSanitizer: {probe.stderr.strip().splitlines()[-1]}")
    return name


def flags() -> list[str]:
    """AVX2 where the processor has it: wider vectors than the baseline, and other code."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return ["-DTKJAX_ISA=generic"]
    from tkjax.ops import cpu

    return AVX2 if cpu.unavailable() is None and "avx2" in cpu.isas() else ["-DTKJAX_ISA=generic"]


def build(stress: Path, out: Path) -> None:
    text = stress.read_text()
    sources = [stress]
    for what in ("kernels", "link"):
        for names in re.findall(rf"^// {what}: (.*)$", text, re.MULTILINE):
            sources += [SOURCES / name for name in names.split()]
    assert len(sources) > 1, f"{stress.name} names no kernels in a line `// kernels: …`"
    includes = [f"-I{SOURCES}", f"-I{HERE}", "-isystem", jax.ffi.include_dir(), "-include", "one_isa.h"]
    command = [compiler(), *FLAGS, *flags(), *includes, *map(str, sources), "-o", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def run(program: Path) -> subprocess.CompletedProcess:
    """Older ThreadSanitizers do not know the address layout of newer kernels: `setarch -R` switches that off."""
    env = os.environ | {"TSAN_OPTIONS": "halt_on_error=1:exitcode=66"}
    plain = setarch = [shutil.which("setarch"), platform.machine(), "-R"]
    for prefix in ([], setarch if plain[0] else []):
        done = subprocess.run([*prefix, str(program)], capture_output=True, text=True, env=env, timeout=300)
        if "unexpected memory mapping" not in done.stderr:
            break
    return done


@pytest.mark.parametrize("stress", sorted(HERE.glob("*_stress.cc")), ids=lambda path: path.stem)
def test_kernels_have_no_data_race(stress, tmp_path):
    build(stress, tmp_path / "stress")
    done = run(tmp_path / "stress")
    if "unexpected memory mapping" in done.stderr:
        pytest.skip(f"ThreadSanitizer does not run here: {done.stderr.strip().splitlines()[0]}")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_data_race_is_found(tmp_path):
    """The check itself: two threads that write the same number."""
    source = tmp_path / "race.cc"
    source.write_text(
        """
#include "std_pool.h"
// kernels: isa.cc
int main() {
  static int number;
  static std::atomic<int> here{0};
  tkjax::StdPool pool(2);
  tkjax::parallel_for(pool, 2, [&](int64_t task) {
    here.fetch_add(1, std::memory_order_relaxed);
    while (here.load(std::memory_order_relaxed) < 2) std::this_thread::yield();
    number = static_cast<int>(task);
  });
  return number > 1;
}
"""
    )
    build(source, tmp_path / "race")
    done = run(tmp_path / "race")
    if "unexpected memory mapping" in done.stderr:
        pytest.skip(f"ThreadSanitizer does not run here: {done.stderr.strip().splitlines()[0]}")
    assert done.returncode == 66 and "data race" in done.stderr, done.stdout + done.stderr
