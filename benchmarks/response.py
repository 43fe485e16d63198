"""Ablations of a training schedule, judged by how the avatar responds: a table of changes x seeds.

python benchmarks/response.py --dataset=W/dataset --out=runs/ablation --config=configs/er_nerf.py:demo --seeds=0,1,2 \\
    --change="as it is" --change="one frame: train.head.frames=1 train.head.rays=4096"

Each change is a name, a colon and settings of the config; `stages=head` among them is the flag --stages. Every run is
`launch.py --mode=train`, then `--mode=eval`, in a workdir of its own, so a table that was broken off continues.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = {
    "full dB": ("metrics", "psnr"),
    "face dB": ("metrics", "psnr_face"),
    "mouth dB": ("metrics", "psnr_mouth"),
    "LMD px": ("metrics", "lmd_px"),
    "lips sd": ("response", "lips", "sd_ratio"),
    "lips r": ("response", "lips", "correlation"),
    "lips closed": ("response", "lips", "closures_closed"),
    "eyes sd": ("response", "eyes", "sd_ratio"),
    "eyes r": ("response", "eyes", "correlation"),
    "eyes closed": ("response", "eyes", "closures_closed"),
}


def launch(*arguments: str) -> None:
    """launch.py with these flags; the end of its output where it fails."""
    done = subprocess.run([sys.executable, str(ROOT / "launch.py"), *arguments], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"launch.py {' '.join(arguments)} ended with {done.returncode}:\n{done.stderr[-2000:]}")


def one(options: argparse.Namespace, name: str, settings: list[str], seed: int) -> tuple[dict, float]:
    """(report, seconds of training) of one change with one seed, trained and scored unless that was done."""
    folder = Path(options.out) / f"{re.sub('[^a-z0-9]+', '-', name.lower())}-{seed}"
    common = [f"--dataset={options.dataset}", f"--workdir={folder}"]
    if not (folder / "report.json").is_file():
        flags = [f"--{s}" if s.startswith("stages=") else f"--config.{s}" for s in settings]
        launch("--mode=train", f"--config={options.config}", f"--config.seed={seed}", *common, *flags)
        models = [f"--models_dir={options.models_dir}"] if options.models_dir else []
        launch("--mode=eval", *common, *models)
    report = json.loads((folder / "report.json").read_text())
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return report, sum({row["stage"]: row["seconds"] for row in rows if "seconds" in row}.values())


def value(report: dict, path: tuple[str, ...]) -> float:
    for key in path:
        report = (report or {}).get(key)
    return float("nan") if report is None else float(report)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--config", default="configs/er_nerf.py:demo")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--models_dir", default="", help="folder with the face tracker's model, for LMD")
    parser.add_argument("--change", action="append", default=[], help='"name: key=value key=value", may be repeated')
    options = parser.parse_args()
    seeds = [int(s) for s in options.seeds.split(",")]
    print(f"| change | {' | '.join(COLUMNS)} | training s |\n" + "|---" * (len(COLUMNS) + 2) + "|", flush=True)
    for change in options.change or ["as it is"]:
        name, _, settings = change.partition(":")
        runs = [one(options, name.strip(), settings.split(), seed) for seed in seeds]
        cells = [" / ".join(f"{value(report, path):.2f}" for report, _ in runs) for path in COLUMNS.values()]
        print(f"| {name.strip()} | {' | '.join(cells)} | {np.mean([s for _, s in runs]):.0f} |", flush=True)
    print(f"\nseeds {options.seeds}, {options.config}, {time.strftime('%Y-%m-%d')}")


if __name__ == "__main__":
    main()
