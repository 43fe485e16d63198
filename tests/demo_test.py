"""The demo: its comparisons are exact on equals, and the whole of it runs without a model file."""

import json

import numpy as np
import pytest

from tests import tiny
from tkjax import contract
from tkjax.app import cli, demo, options

NAMES = ("jawOpen", "eyeBlinkLeft", "eyeBlinkRight")


def test_truth_compared_with_itself_has_no_error(tmp_path):
    truth = contract.Dataset(tiny.make_dataset(tmp_path / "d", names=NAMES))
    figures = demo.compare(truth, truth)
    assert figures["frames"] == 33 and figures["detected_fraction"] == 1
    assert figures["rotation_rms_deg"] == pytest.approx(0, abs=1e-3)
    assert figures["jaw_correlation"] == pytest.approx(1) and figures["blink_correlation"] == pytest.approx(1)
    assert set(figures) == set(demo.TRACKER_FIGURES)


def test_expressions_that_a_dataset_lacks_give_no_figure(tmp_path):
    truth = contract.Dataset(tiny.make_dataset(tmp_path / "d"))
    assert np.isnan(demo.compare(truth, truth)["jaw_correlation"])


def test_without_a_model_every_tracker_figure_is_null_with_a_reason(tmp_path):
    truth = contract.Dataset(tiny.make_dataset(tmp_path / "d", names=NAMES))
    figures = demo.track(tmp_path / "clip.mp4", tmp_path / "W", truth, str(tmp_path))
    assert all(figures[k] is None for k in demo.TRACKER_FIGURES) and "face_landmarker.task" in figures["reason"]


def test_new_speech_is_measured_against_the_subjects_own():
    true = 0.1 + 0.05 * np.sin(np.arange(150) / 3)
    same = demo.new_speech(true, true)
    assert all(same[k] == pytest.approx(1) for k in ("opening_ratio", "sd_ratio", "correlation", "concordance"))
    half = demo.new_speech(0.5 * true, true)
    assert half["opening_ratio"] == pytest.approx(0.5) and half["sd_ratio"] == pytest.approx(0.5)
    assert half["correlation"] == pytest.approx(1) and half["delay_frames"] == pytest.approx(0, abs=1e-6)
    assert demo.new_speech(true, np.zeros(150)) == dict.fromkeys(same)


@pytest.mark.slow  # renders, trains and renders again
def test_the_demo_runs_and_continues(tmp_path):
    command = ["launch.py", "--mode=demo", f"--workdir={tmp_path / 'W'}", "--seconds=2", "--size=64"]
    command += ["--config=configs/er_nerf.py:smoke", f"--models_dir={tmp_path}"]
    reports = []
    for _ in range(2):
        cli.run(options.parse(command))
        report = json.loads((tmp_path / "W" / "report.json").read_text())
        assert np.isfinite([report["demo"]["mouth_correlation"], *report["new_speech"].values()]).all()
        assert report["tracker"]["jaw_correlation"] is None  # --models_dir holds no tracker
        reports.append([report["demo"]["mouth_correlation"], report["new_speech"], report["metrics"]])
        assert (tmp_path / "W" / "demo.mp4").stat().st_size > 1000 and (tmp_path / "W" / "report.html").is_file()
    assert reports[0] == reports[1]
