"""A day with a GPU, in eight minutes and without a network: what has to be seen on one, in one command.

python -m benchmarks.gpu_day [--out=benchmarks/gpu] [--workdir=runs/gpu]

Each piece is a command of its own, so that one that fails or takes too long costs no other: facts of the machine, the
tests marked `gpu`, every op on Triton and on the reference, a 512 x 512 subject, a training of its head and torso with
the sizes of `full`, frames and steps a second of that head, a 512 x 512 frame with its torso, and a rendering with
sound. Writes OUT/<device>.json (after every piece) and OUT/<device>.md, the table.

Without a GPU it says so (exit code 2). `--device=cpu --tiny` runs the same pieces at toy sizes: does the day work?
"""

import argparse
import contextlib
import datetime
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
BUDGET_S = 480.0
SHOWN = 15  # last lines of a piece that failed
FACTS = """
import importlib.metadata, json, platform, jax
def version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
from tkjax.ops import dispatch
device = jax.devices()[0]
names = ("jax", "jaxlib", "flax", "numpy", "jax-cuda13-plugin", "jax-cuda12-plugin", "jax-triton", "triton")
print("FACTS " + json.dumps({
    "platform": jax.default_backend(), "device": device.device_kind, "devices": len(jax.devices()),
    "runtime": device.client.platform_version.splitlines()[0], "python": platform.python_version(),
    "versions": {name: version(name) for name in names}, "back_ends": dispatch.table(),
    "preferred": dispatch.preferred().split()[0],
}))
"""


class Piece(NamedTuple):
    """A command (after the interpreter), its longest time, and what is read from where it ran."""

    name: str
    command: list[str]
    limit_s: float
    figures: Callable[[str], dict]  # of its output


def pieces(work: Path, preferred: str, tiny: bool) -> list[Piece]:
    """What is run, in order; later ones read what earlier ones leave in `work`. preferred: the best back end there."""
    size, seconds = (64, 2) if tiny else (512, 12)
    subject, backends = work / "subject", preferred if tiny else ",".join(dict.fromkeys([preferred, "reference"]))
    steps = {"head": 4, "torso": 2} if tiny else {"head": 3000, "torso": 500}
    quick = ["--quick", "--cases=er_planes,dense_65536,render_fused"] if tiny else []
    train = [f"--config=configs/er_nerf.py:{'smoke' if tiny else 'full'}", "--stages=head,torso"]
    train += [f"--config.train.{stage}.steps={n}" for stage, n in steps.items()]
    train += [f"--config.train.{name}_every={max(steps.values())}" for name in ("preview", "checkpoint")]
    train += [f"--config.train.log_every={1 if tiny else 100}"]
    spent = f"--seconds={0.1 if tiny else 8}"
    workers = [] if tiny else ["-n", "4", "--dist", "load"]
    tests = ["-m", "pytest", *workers, "-m", "gpu", "tests/ops", f"--junitxml={work / 'tests.xml'}"]
    return [
        Piece("gpu tests", tests, 120, lambda _: of_tests(work / "tests.xml")),
        Piece(
            "ops", ["-m", "benchmarks.ops", f"--backends={backends}", f"--json={work / 'ops.json'}", "--peers=none",
                    *quick], 130,
            lambda _: of_json(work / "ops.json"),
        ),
        Piece(
            "subject", ["launch.py", "--mode=synthetic", f"--out={subject}", f"--seconds={seconds}", f"--size={size}"],
            90, lambda _: {"frames": 25 * seconds, "size": size},
        ),
        Piece(
            "training",
            ["launch.py", "--mode=train", f"--workdir={work}", f"--dataset={subject / 'dataset'}", *train], 160,
            lambda _: {"steps": steps, "last": of_training(work / "metrics.jsonl")},
        ),
        Piece(
            "head", ["benchmarks/head.py", f"--workdir={work}", f"--backends={backends}", spent,
                     f"--json={work / 'head.json'}"], 70, lambda _: of_json(work / "head.json"),
        ),
        Piece(
            "frame", ["benchmarks/frame.py", f"--workdir={work}", f"--size={size}", spent,
                      f"--json={work / 'frame.json'}"], 40, lambda _: of_json(work / "frame.json"),
        ),
        Piece(
            "rendering", ["launch.py", "--mode=render", f"--workdir={work}", f"--out={work / 'out.mp4'}",
                          f"--audio={subject / 'dataset' / 'audio.wav'}"], 60, of_rendering,
        ),
    ]  # fmt: skip


# -- what pieces leave


def of_json(path: Path) -> dict:
    return json.loads(path.read_text()) if path.is_file() else {}


def of_tests(path: Path) -> dict:
    """passed, failed and skipped tests, and the names of those that failed."""
    if not path.is_file():
        return {}
    cases = list(ElementTree.parse(path).getroot().iter("testcase"))
    failed = [c.get("name") for c in cases if c.find("failure") is not None or c.find("error") is not None]
    skipped = sum(c.find("skipped") is not None for c in cases)
    return {"passed": len(cases) - len(failed) - skipped, "skipped": skipped, "failed": failed}


def of_training(path: Path) -> dict:
    """The last line of each stage."""
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    return {row["stage"]: row for row in rows if "stage" in row}


def of_rendering(output: str) -> dict:
    found = re.search(r": (\d+) frames, marked as synthetic", output)
    return {"frames": int(found[1])} if found else {}


# -- running


def environment(device: str) -> dict[str, str]:
    known = {k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS"}
    platform = {"JAX_PLATFORMS": "cpu"} if device == "cpu" else {"JAX_PLATFORMS": "cuda,cpu"}
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    own = {"TKJAX_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    return known | platform | own | {"PYTHONPATH": paths}


def private(text: str) -> str:
    """Without the machine's own paths."""
    for path in (ROOT, sys.prefix, Path.home(), tempfile.gettempdir()):
        text = text.replace(f"{path}{os.sep}", "")
    return text


def run(piece: Piece, device: str, left_s: float) -> dict:
    """One piece as a dict: state (done, failed, over its time, left out), seconds, figures, kernels, last lines."""
    shown = private("python " + " ".join(piece.command))
    result = {"piece": piece.name, "command": shown, "limit_s": min(piece.limit_s, left_s)}
    if left_s < 5:
        return result | {"state": "left out", "seconds": 0.0, "figures": {}}
    began = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, *piece.command], cwd=ROOT, env=environment(device), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = child.communicate(timeout=result["limit_s"])
        state = "done" if child.returncode == 0 else "failed"
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)  # with the processes that it has started
        output, state = child.communicate()[0], "over its time"
    result |= {"state": state, "seconds": time.perf_counter() - began, "figures": {}}
    with contextlib.suppress(ValueError, KeyError, OSError):  # a file that was being written
        result["figures"] = piece.figures(output)
    kernels = sorted({line.partition(": ")[2] for line in output.splitlines() if line.startswith("kernels: ")})
    if kernels:
        result["kernels"] = kernels
    if state != "done":
        result["last_lines"] = [private(line) for line in output.splitlines()[-SHOWN:]]
    return result


def facts(device: str) -> dict:
    """What JAX sees; `error` in place of it where it sees nothing."""
    done = subprocess.run(
        [sys.executable, "-c", FACTS], cwd=ROOT, env=environment(device), capture_output=True, text=True
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("FACTS ")]
    if not lines:
        return {"error": (done.stderr.strip().splitlines() or ["no reason given"])[-1]}
    return json.loads(lines[0].removeprefix("FACTS "))


def day(device: str, tiny: bool, work: Path, out: Path) -> dict:
    """The whole day; written after every piece."""
    from benchmarks.gpu_table import table

    seen = facts(device)
    if device == "gpu" and seen.get("platform") != "gpu":
        why = seen.get("error") or f"it runs on {seen['device']}"
        raise SystemExit(
            refuse(f"no GPU: {why}; the day needs an NVIDIA GPU that JAX sees (BUILD.md, A day with a GPU)")
        )
    work = work / f"{datetime.datetime.now():%Y-%m-%d-%H%M%S}"  # afresh: what is trained already would be skipped
    work.mkdir(parents=True)
    out.mkdir(parents=True, exist_ok=True)
    stem = out / re.sub(r"[^a-z0-9]+", "-", seen["device"].lower()).strip("-")
    began, result = time.perf_counter(), {"date": datetime.date.today().isoformat(), "tiny": tiny, **seen, "pieces": []}
    todo = pieces(work, seen["preferred"], tiny)
    for number, piece in enumerate(todo, 1):
        left = BUDGET_S - (time.perf_counter() - began)
        print(f"[{number}/{len(todo)}] {piece.name} …", end=" ", flush=True)
        one = run(piece, device, left)
        result["pieces"].append(one)
        result["seconds"] = time.perf_counter() - began
        print(f"{one['state']}, {one['seconds']:.0f} s", *one.get("last_lines", []), sep="\n  ", flush=True)
        stem.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
        stem.with_suffix(".md").write_text(table(result))
    print(stem.with_suffix(".md").read_text())
    return result


def refuse(sentence: str) -> int:
    print(f"gpu_day: {sentence}", file=sys.stderr)
    return 2


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu")
    parser.add_argument("--tiny", action="store_true", help="toy sizes, to see that the pieces run")
    parser.add_argument("--workdir", type=Path, default=ROOT / "runs" / "gpu")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "gpu")
    args = parser.parse_args(argv)
    if args.device == "cpu" and not args.tiny:
        return refuse("--device=cpu is for trying the day at toy sizes; give --tiny as well")
    result = day(args.device, args.tiny, args.workdir.resolve(), args.out.resolve())
    return 0 if all(piece["state"] == "done" for piece in result["pieces"]) else 1


if __name__ == "__main__":
    sys.exit(main())
