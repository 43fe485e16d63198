"""An imported dataset trains to what the native one trains to."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import er_layout
from tkjax import synthetic

ROOT = Path(__file__).resolve().parent.parent
TOLERANCE_DB = 0.3
SETTINGS = (
    "--config=configs/er_nerf.py:cpu", "--config.data.size=128", "--config.train.head.steps=1200",
    "--config.train.head.rays=2048", "--config.train.lips.steps=0", "--config.train.torso.steps=600",
    "--config.train.torso.rays=2048", "--config.train.preview_every=0", "--config.train.checkpoint_every=600",
    "--paste_back=none",
)  # fmt: skip


def launch(*arguments) -> None:
    done = subprocess.run([sys.executable, "launch.py", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.mark.slow  # two trainings, two minutes each on two cores: shorter ones differ more than the tolerance
def test_an_er_nerf_folder_trains_to_the_same_psnr_as_the_native_dataset(tmp_path):
    native = synthetic.make(tmp_path / "subject", seconds=6.0, size=128, progress=False)
    source = er_layout.export(native, tmp_path / "original")
    launch("--mode=import", f"--source={source}", f"--workdir={tmp_path / 'imported'}")
    launch("--mode=fit", f"--workdir={tmp_path / 'imported'}", *SETTINGS)
    launch("--mode=fit", f"--workdir={tmp_path / 'native'}", f"--dataset={native}", *SETTINGS)
    rows = [json.loads((tmp_path / name / "report.json").read_text())["rows"] for name in ("native", "imported")]
    for here, there in zip(*rows):
        assert here["ground_truth_layers"] == there["ground_truth_layers"]
        for key in ("psnr", "psnr_face"):
            a, b = here["metrics"][key], there["metrics"][key]
            print(f"{here['ground_truth_layers']} {key}: native {a:.2f} dB, imported {b:.2f} dB")
            assert abs(a - b) <= TOLERANCE_DB
        assert here["metrics"]["psnr"] > 24
