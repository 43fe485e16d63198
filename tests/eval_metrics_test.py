"""--metrics chooses what an evaluation computes; evaluation_report.txt and metrics_plot.png lie beside the report."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import tiny
from tkjax.app import cli, options, workflow
from tkjax.host import model_files
from tkjax.measure import formulas, scores

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    root = tiny.make_dataset(folder / "dataset")
    workdir = folder / "W"
    workflow.train_and_save(tiny.config(), root, workdir, workflow.consent_record(None, False))
    return workdir


@pytest.fixture(autouse=True)
def no_tracker(monkeypatch):
    monkeypatch.setattr(model_files, "find_model", lambda models=None, name="": (None, "the test has no tracker"))


def evaluate(workdir: Path, *words: str) -> tuple[dict, str]:
    cli.run(options.parse(["x", "--mode=eval", f"--workdir={workdir}", *words]))
    return json.loads((workdir / "report.json").read_text()), (workdir / "evaluation_report.txt").read_text()


def test_everything_that_can_be_is_scored_by_default(trained):
    report, text = evaluate(trained)
    frames = report["per_frame"]
    assert frames["frame"] == [30, 31, 32] and report["metrics"]["psnr"] == pytest.approx(np.mean(frames["psnr"]))
    assert report["spread"]["psnr"] == pytest.approx(np.std(frames["psnr"]))
    assert f"PSNR:           {report['metrics']['psnr']:.2f} +- {report['spread']['psnr']:.2f} dB\n" in text
    assert f"SSIM:           {report['metrics']['ssim']:.4f} +- {report['spread']['ssim']:.4f}\n" in text
    assert "frames:         3 held out, 30..32, paired by number" in text
    assert "NIOE (mouth):   not computed: the test has no tracker" in text and "needs pt_inception" in text
    assert report["more_metrics"]["fid"] is None and "pt_inception" in report["reasons"]["fid"]
    with Image.open(trained / "metrics_plot.png") as plot:
        assert plot.size == (1800, 1200) and np.asarray(plot).std() > 5
    assert report["response"]["drive_test"]["sound"]["mean_change"] >= 0


@pytest.mark.parametrize("chosen", ["psnr", "ssim", "psnr,ssim"])
def test_what_is_not_asked_for_is_null_and_says_so(trained, chosen):
    report, text = evaluate(trained, f"--metrics={chosen}", "--paste_back=none")
    values = {**report["metrics"], **report["more_metrics"]}
    asked = {key for name in chosen.split(",") for key in scores.OF_METRIC[name]}
    assert {k for k, v in values.items() if v is not None} <= asked and values[chosen.split(",")[0]] is not None
    for metric, keys in scores.OF_METRIC.items():
        for key in keys if metric not in chosen.split(",") else ():
            assert report["reasons"][key] == f"not asked for (--metrics={chosen})"
    assert report["response"] is None and "Does it speak" not in (trained / "report.html").read_text()
    assert ("PSNR:  " in text) and ("dB" in text) == ("psnr" in chosen)


def test_nioe_and_lmd_of_moved_mouths_are_the_formulas():
    rng = np.random.default_rng(0)
    truth = rng.uniform(0, 100, (4, 68, 2))
    points = {"target": truth, "model": truth + np.array([3.0, 4.0])}
    points["model"][2] = np.nan
    of = {"model": {}}
    scores.add_lips(of, points, np.array([True, True, True, False]))
    apart = [formulas.eye_distance_px(p) for p in truth]
    assert of["model"]["nioe"][:2] == pytest.approx([5 / apart[0], 5 / apart[1]])
    assert np.isnan(of["model"]["nioe"][2:]).all()
    assert of["model"]["lmd_px"][:2] == pytest.approx([0, 0], abs=1e-9)
