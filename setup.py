"""Builds the CPU kernels: tkjax/ops/cpu/_kernels<suffix>.so, a plain shared library that ctypes loads. Ships configs/.

Kernel sources (<op>.cc) are compiled once per instruction set, handlers (<op>_ffi.cc, isa.cc) once for the baseline.
Headers: jax.ffi.include_dir(). Without a C++ compiler the install goes on, and the reference back end is used.
`python setup.py build_ext --inplace` rebuilds what has changed (objects are kept in build/kernels).
"""

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
SOURCES = Path("tkjax/ops/cpu/src")
WARNINGS = ["-Wall", "-Wextra", "-Wno-unused-function"]  # headers hold what only some sources use
WARNINGS += ["-Wno-uninitialized", "-Wno-maybe-uninitialized"]  # of GCC 12's own intrinsics
FLAGS = ["-std=c++17", "-O3", "-fPIC", "-ffp-contract=off", "-fno-math-errno"]
FLAGS += ["-fno-trapping-math", *WARNINGS]
ISAS = {
    "generic": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c", "-mbmi2"],
    "avx512": ["-mavx2", "-mfma", "-mf16c", "-mbmi2", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"],
}
X86 = ("x86_64", "AMD64")


def compiler() -> list[str]:
    """The C++ compiler: $CXX, else the first of c++, g++, clang++. OSError where there is none."""
    if os.environ.get("CXX"):
        return shlex.split(os.environ["CXX"])
    for name in ("c++", "g++", "clang++"):
        if path := shutil.which(name):
            return [path]
    raise OSError("no C++ compiler was found (c++, g++ or clang++; name one with CXX)")


def sources_digest(root: Path = ROOT) -> str:
    """Of all kernel sources; compiled in, so that a library older than its sources is noticed."""
    digest = hashlib.sha256()
    for path in sorted((root / SOURCES).glob("*.*")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def jobs(include: Path) -> list[tuple[Path, list[str], str]]:
    """(source, flags, tag) of every object."""
    isas = ISAS if platform.machine() in X86 else {"generic": []}
    out = []
    for path in sorted((ROOT / SOURCES).glob("*.cc")):
        if path.stem == "isa" or path.stem.endswith("_ffi"):
            out.append((path, ["-isystem", str(include)], "base"))
        else:
            out += [(path, [*flags, "-fvisibility=hidden", f"-DTKJAX_ISA={isa}"], isa) for isa, flags in isas.items()]
    return out


def compile_one(cxx: list[str], path: Path, flags: list[str], tag: str, digests: dict[str, str]) -> Path:
    """The object of one source; kept while source, headers, flags and compiler are the same."""
    if path.stem == "isa":
        flags = [*flags, f'-DTKJAX_SOURCES="{digests["sources"]}"']
    command = [*cxx, *FLAGS, *flags, "-c", str(path)]
    key = hashlib.sha256("\0".join([*command, digests["headers"], path.read_text()]).encode()).hexdigest()[:16]
    out = ROOT / "build" / "kernels" / f"{path.stem}-{tag}-{key}.o"
    if not out.is_file():
        for old in out.parent.glob(f"{path.stem}-{tag}-*.o"):
            old.unlink(missing_ok=True)
        part = out.with_suffix(f".{os.getpid()}.part")
        subprocess.run([*command, "-o", str(part)], check=True, capture_output=True, text=True)
        part.replace(out)
    return out


def build(target: Path) -> None:
    """Compile and link into `target`. OSError or CalledProcessError where that is not possible."""
    import jax.ffi

    cxx = compiler()
    include = Path(jax.ffi.include_dir())
    version = subprocess.run([*cxx, "--version"], check=True, capture_output=True, text=True).stdout
    headers = hashlib.sha256((version + str(include) + jax.__version__).encode())
    for path in sorted((ROOT / SOURCES).glob("*.h")):
        headers.update(path.read_bytes())
    digests = {"headers": headers.hexdigest(), "sources": sources_digest()}
    (ROOT / "build" / "kernels").mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(lambda job: compile_one(cxx, *job, digests), jobs(include)))
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(f".{os.getpid()}.part")
    undefined = ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-Wl,-z,defs"]
    link = [*cxx, "-shared", "-fPIC", *undefined, "-o", str(part), *map(str, objects)]
    subprocess.run(link, check=True, capture_output=True, text=True)
    part.replace(target)


class ShipConfigs(build_py):
    """The wheel holds configs/ as tkjax/shipped/configs/, where `tkjax.config` looks outside the repository."""

    def run(self):
        super().run()
        if not self.editable_mode:
            for path in sorted((ROOT / "configs").glob("*.py")):
                target = Path(self.build_lib, "tkjax", "shipped", "configs", path.name)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)


class BuildKernels(build_ext):
    def build_extension(self, ext):
        target = Path(self.get_ext_fullpath(ext.name))
        try:
            build(target)
        except (OSError, subprocess.CalledProcessError, ImportError) as error:
            detail = getattr(error, "stderr", None) or str(error)
            if os.environ.get("TKJAX_REQUIRE_KERNELS"):
                raise
            print(
                f"tkjax: the CPU kernels were not built, the reference back end will be used: {detail}", file=sys.stderr
            )
            target.unlink(missing_ok=True)

    def copy_extensions_to_source(self):
        if Path(self.build_lib, "tkjax/ops/cpu", f"_kernels{sysconfig.get_config_var('EXT_SUFFIX')}").is_file():
            super().copy_extensions_to_source()

    def get_outputs(self):
        return [path for path in super().get_outputs() if Path(path).is_file()]


if __name__ == "__main__":
    setup(
        ext_modules=[Extension("tkjax.ops.cpu._kernels", sources=[], optional=True)],
        cmdclass={"build_ext": BuildKernels, "build_py": ShipConfigs},
    )
