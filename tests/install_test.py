"""The wheel in an environment of its own: the command, the configs, and no package that only an extra brings."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = ("torch", "mediapipe", "transformers", "matplotlib", "skimage", "pytest", "beartype")
PARTS = ("tkjax", "preprocess", "configs", "setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in")


def run(command, **kwargs):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, **kwargs)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkout")
    for name in PARTS:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.so", "__pycache__", "build"))
        else:
            shutil.copy(ROOT / name, folder / name)
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", folder]
    run([*pip, "."], cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


@pytest.mark.slow  # compiles the kernels
def test_the_wheel_holds_the_command_and_the_configs(wheel):
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
        (entry,) = [n for n in names if n.endswith("entry_points.txt")]
        assert "tkjax = tkjax.app.command:start" in file.read(entry).decode()
    for path in (ROOT / "configs").glob("*.py"):
        assert f"tkjax/shipped/configs/{path.name}" in names
    assert not [n for n in names if n.split("/")[0] in ("tests", "benchmarks", "configs")]


@pytest.mark.slow  # compiles the kernels, trains and renders in a fresh environment
def test_an_installed_tkjax_trains_renders_and_reports_from_any_folder(wheel, tmp_path):
    """Only the packages that it depends on are there: those of the extras cannot be imported."""
    run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"])
    python = tmp_path / "env" / "bin" / "python"
    run([sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel])
    (site,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    (site / "zz_dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (site / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({EXTRAS!r}))\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("TKJAX_", "PYTHON"))}
    env = {**keep, "TKJAX_OFFLINE": "1", "HOME": str(tmp_path)}
    where = run([python, "-c", "import tkjax; print(tkjax.__file__)"], cwd=elsewhere, env=env)
    assert Path(where.strip()).is_relative_to(site)
    command = [tmp_path / "env" / "bin" / "tkjax", "--mode=demo", "--config=configs/er_nerf.py:smoke"]
    said = run([*command, "--seconds=2", "--size=64", "--workdir=W"], cwd=elsewhere, env=env)
    report = json.loads((elsewhere / "W" / "report.json").read_text())
    assert report["metrics"]["psnr"] > 0 and report["metrics"]["lmd_px"] is None
    assert "tracker" in said and report["tracker"]["reason"] and "lmd_px, lmd_norm" in report["reasons"]
    assert (elsewhere / "W" / "demo.mp4").stat().st_size > 1000
    assert "matplotlib is not installed" in (elsewhere / "W" / "report.html").read_text()
