"""A day with a GPU, without one: what it says, what becomes of its pieces, and what is packed for it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu_day
from benchmarks.gpu_table import table

ROOT = Path(__file__).resolve().parents[1]


def command(*args, **environment):
    env = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.run([sys.executable, *args], cwd=ROOT, env=env, capture_output=True, text=True)


@pytest.mark.heavy
def test_without_a_gpu_it_says_so_in_one_sentence(tmp_path):
    if gpu_day.facts("gpu").get("platform") == "gpu":
        pytest.skip("there is one")
    done = command("-m", "benchmarks.gpu_day", f"--out={tmp_path}", f"--workdir={tmp_path / 'work'}")
    assert done.returncode == 2 and not list(tmp_path.iterdir())
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("gpu_day: ")]
    assert "no GPU" in line and "BUILD.md" in line


def piece(code: str, limit_s: float = 60.0) -> gpu_day.Piece:
    return gpu_day.Piece("test", ["-c", code], limit_s, gpu_day.of_rendering)


def test_a_piece_that_runs_gives_its_figures_and_the_kernels_that_ran():
    code = "print('kernels: field -> cpu (avx2)\\nout.mp4: 50 frames, marked as synthetic (avatar 1)')"
    done = gpu_day.run(piece(code), "cpu", 100.0)
    assert done["state"] == "done" and done["figures"] == {"frames": 50} and done["kernels"] == ["field -> cpu (avx2)"]


@pytest.mark.heavy
@pytest.mark.parametrize(
    "code, left_s, state",
    [
        ("import sys; print('what went wrong'); sys.exit(3)", 100.0, "failed"),
        ("import os, time; print('what went wrong', flush=True); os.fork(); time.sleep(60)", 5.0, "over its time"),
        ("", 1.0, "left out"),
    ],
)
def test_a_piece_that_fails_takes_too_long_or_finds_no_time_left_stops_nothing(code, left_s, state):
    done = gpu_day.run(piece(code), "cpu", left_s)
    assert done["state"] == state and done["figures"] == {}
    assert done.get("last_lines", ["what went wrong"]) == ["what went wrong"]


def test_the_budget_holds_the_pieces_of_a_day():
    """Those that a day cannot do without come first; the limits are for one that hangs, the budget for all."""
    names = [p.name for p in gpu_day.pieces(Path("work"), "triton", False)]
    assert names == ["gpu tests", "ops", "subject", "training", "head", "frame", "rendering"]
    assert gpu_day.BUDGET_S <= 8 * 60
    commands = [" ".join(p.command) for p in gpu_day.pieces(Path("work"), "triton", False)]
    assert "--backends=triton,reference" in commands[1] and "er_nerf.py:full" in commands[3]


def test_junit_of_the_tests_is_read(tmp_path):
    (tmp_path / "t.xml").write_text(
        "<testsuites><testsuite><testcase name='a'/><testcase name='b'><failure/></testcase>"
        "<testcase name='c'><skipped/></testcase></testsuite></testsuites>"
    )
    assert gpu_day.of_tests(tmp_path / "t.xml") == {"passed": 1, "skipped": 1, "failed": ["b"]}
    assert gpu_day.of_tests(tmp_path / "none.xml") == {}


@pytest.mark.slow  # trains and draws: a minute and a half
def test_the_whole_day_runs_on_a_cpu_at_toy_sizes_and_is_written(tmp_path):
    done = command(
        "-m", "benchmarks.gpu_day", "--device=cpu", "--tiny", f"--out={tmp_path}", f"--workdir={tmp_path / 'work'}"
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    written = json.loads((tmp_path / "cpu.json").read_text())
    assert written["device"] == "cpu" and written["versions"]["jax"] and written["tiny"]
    states = {p["piece"]: p["state"] for p in written["pieces"]}
    assert set(states.values()) == {"done"} and len(states) == 7
    figures = {p["piece"]: p["figures"] for p in written["pieces"]}
    assert figures["gpu tests"]["failed"] == [] and figures["gpu tests"]["skipped"] > 0
    assert figures["rendering"]["frames"] > 0 and set(figures["training"]["last"]) == {"head", "torso"}
    assert {r["what"] for r in figures["head"]["rows"]} == {"frame", "step"} and figures["ops"]["rows"]
    kernels = {p["piece"]: " ".join(p.get("kernels", [])) for p in written["pieces"]}
    assert "field -> " in kernels["training"] and "render_fused -> " in kernels["rendering"]
    page = (tmp_path / "cpu.md").read_text()
    assert page == table(written) and "toy sizes" in page and "head + torso" in page


PIP = """
import pathlib, sys
arguments = sys.argv[1:]
folder = pathlib.Path(arguments[arguments.index("--dest") + 1])
for name in ("flax-1-py3", "jax-1-py3", "jaxlib-1-cp311", "jax_triton-1-py3", "numpy-2-cp311", "jax_cuda13-1-cp3"):
    (folder / f"{name}-none-any.whl").write_bytes(b"wheel")
"""


def test_the_pack_holds_what_an_image_with_jax_lacks(tmp_path):
    (tmp_path / "pip.py").write_text(PIP)
    folder = tmp_path / "wheels"
    env = os.environ | {"PYTHON": sys.executable, "PIP": f"{sys.executable} {tmp_path / 'pip.py'}"}
    done = subprocess.run(["tools/pack_wheels.sh", folder], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "2 wheels" in done.stdout
    assert {p.name.split("-")[0] for p in folder.glob("*.whl")} == {"flax", "jax_triton"}
    names = {line.split(">")[0].split("[")[0] for line in (folder / "requirements.txt").read_text().splitlines()}
    assert {"flax", "optax", "jax-triton", "pytest", "hypothesis", "av"} <= names
    assert not names & {"jax", "jaxlib", "numpy", "ruff"}
