"""The package's own build of the kernels: without a compiler, and when sources change."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tkjax.ops import cpu

pytestmark = pytest.mark.heavy
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def checkout(tmp_path):
    """A clean copy of what the build reads."""
    folder = tmp_path / "checkout"
    skip = shutil.ignore_patterns("*.so", "__pycache__", "build")
    shutil.copytree(ROOT / "tkjax", folder / "tkjax", ignore=skip)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, folder / name)
    (folder / "preprocess").mkdir()
    (folder / "configs").mkdir()
    return folder


def run(command, folder, **environment):
    env = {k: v for k, v in os.environ.items() if not k.startswith("TKJAX_")} | environment
    return subprocess.run([sys.executable, *command], cwd=folder, env=env, capture_output=True, text=True)


def backends_of(folder) -> str:
    code = "from tkjax.ops import dispatch; print(dispatch.resolve('grid_encode').__name__, dispatch.table())"
    return run(["-c", code], folder, JAX_PLATFORMS="cpu").stdout


def test_without_a_compiler_the_install_succeeds_on_the_reference_and_says_so(checkout, tmp_path):
    pip = ["-m", "pip", "wheel", "-v", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(tmp_path), "."]
    done = run(pip, checkout, CXX=str(tmp_path / "no-such-compiler"))
    assert done.returncode == 0, done.stderr
    sentence = "the CPU kernels were not built, the reference back end will be used"
    assert (done.stdout + done.stderr).count(sentence) == 1
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "tkjax/ops/cpu/__init__.py" in names and not [n for n in names if n.endswith(".so")]
    text = backends_of(checkout)
    assert text.startswith("tkjax.ops.reference.grid_encode") and "the kernels are not built" in text


@pytest.mark.skipif(cpu.unavailable() is not None, reason=f"CPU kernels: {cpu.unavailable()}")
def test_a_library_older_than_its_sources_is_not_used(checkout):
    shutil.copy(cpu.LIBRARY, checkout / "tkjax/ops/cpu" / cpu.LIBRARY.name)
    assert backends_of(checkout).startswith("tkjax.ops.cpu.grid_encode")
    with (checkout / "tkjax/ops/cpu/src/pool.h").open("a") as f:
        f.write("// changed\n")
    text = backends_of(checkout)
    assert text.startswith("tkjax.ops.reference.grid_encode")
    assert "older than their sources; run `python setup.py build_ext --inplace`" in text


def test_a_source_that_does_not_compile_leaves_no_library_behind(checkout):
    for source in (checkout / "tkjax/ops/cpu/src").glob("*.cc"):  # all: the others would be compiled before it
        source.write_text("#error on purpose\n")
    done = run(["setup.py", "build_ext", "--inplace"], checkout)
    assert done.returncode == 0 and "on purpose" in done.stderr
    assert not list((checkout / "tkjax/ops/cpu").glob("*.so"))
    done = run(["setup.py", "build_ext", "--inplace"], checkout, TKJAX_REQUIRE_KERNELS="1")
    assert done.returncode != 0
