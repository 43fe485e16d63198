"""Frames made elsewhere: paired by number, scored by choice, told in text, json and a picture."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tkjax.app import cli, options
from tkjax.errors import UserError
from tkjax.host import model_files
from tkjax.measure import folders, formulas, scores, text_report
from tkjax.media import video


def picture(k: int, noise: float = 0.0) -> np.ndarray:
    y, x = np.mgrid[:24, :32]
    base = np.stack([x * 5, y * 7, 40 + 5 * k + 0 * x], -1)
    return np.clip(base + noise * np.random.default_rng(k).normal(size=base.shape), 0, 255).astype(np.uint8)


def save(folder, names: dict[str, np.ndarray]):
    folder.mkdir()
    for name, rgb in names.items():
        Image.fromarray(rgb).save(folder / name)
    return folder


@pytest.fixture(autouse=True)
def no_tracker(monkeypatch):
    monkeypatch.setattr(model_files, "find_model", lambda models, name="": (None, "the test has no tracker"))


def evaluate(generated, truth, out, *more):
    cli.run(options.parse(["x", "--mode=eval", f"--generated={generated}", f"--truth={truth}", f"--out={out}", *more]))
    return json.loads((out / "report.json").read_text()), (out / "evaluation_report.txt").read_text()


def test_pairs_are_of_one_number_not_of_one_place(tmp_path):
    """ad-nerf dossier §7.1: sorted by name, 10.png stands before 7.png and meets another frame."""
    made = save(tmp_path / "made", {f"{k}.png": picture(k, 4) for k in (7, 8, 9, 10, 11)})
    true = save(tmp_path / "true", {f"frame_{k:04d}.png": picture(k) for k in range(6, 11)})
    report, text = evaluate(made, true, tmp_path / "out", "--metrics=psnr,ssim")
    assert report["per_frame"]["frame"] == [7, 8, 9, 10]
    expected = [formulas.psnr(picture(k, 4), picture(k)) for k in (7, 8, 9, 10)]
    assert report["per_frame"]["psnr"] == pytest.approx(expected)
    assert report["metrics"]["psnr"] == pytest.approx(np.mean(expected))
    assert report["spread"]["psnr"] == pytest.approx(np.std(expected))
    assert f"PSNR:           {np.mean(expected):.2f} +- {np.std(expected):.2f} dB\n" in text
    ssim = report["per_frame"]["ssim"]
    assert f"SSIM:           {np.mean(ssim):.4f} +- {np.std(ssim):.4f}\n" in text
    assert "4 pairs of one number, 7..10" in text and text.count("=" * 60 + "\n") >= 6
    assert {len(line) for line in text.splitlines() if set(line) == {"="}} == {60}
    assert report["metrics"]["nioe"] is None and "not asked for" in report["reasons"]["nioe"]
    with Image.open(tmp_path / "out" / "metrics_plot.png") as plot:
        assert plot.size == (1800, 1200)


def test_a_video_is_numbered_from_0(tmp_path):
    with video.VideoWriter(tmp_path / "v.mp4", 24, 32, crf=4) as out:
        for k in range(5):
            out.write(picture(k))
    true = save(tmp_path / "true", {f"{k}.png": picture(k) for k in (2, 3, 9)})
    report, text = evaluate(tmp_path / "v.mp4", true, tmp_path / "out", "--metrics=psnr")
    assert report["per_frame"]["frame"] == [2, 3] and min(report["per_frame"]["psnr"]) > 30
    assert "generated only: 3 frames" in text and "true only:      1 frames" in text
    assert all(v is None for k, v in report["metrics"].items() if k != "psnr")


def test_what_needs_a_file_that_is_not_there_says_so(tmp_path):
    made = save(tmp_path / "a", {"1.png": picture(1)})
    report, text = evaluate(made, made, tmp_path / "out")
    assert report["metrics"]["psnr"] == 100 and "pt_inception-2015-12-05" in report["reasons"]["fid"]
    assert "FID:            not computed: needs pt_inception" in text and "no tracker" in report["reasons"]["nioe"]


@pytest.mark.parametrize(
    ("made", "true", "more", "expected"),
    [
        ({"1.png": 1}, {"2.png": 2}, (), "share no frame number"),
        ({"a.png": 1}, {"2.png": 2}, (), "has no number in its name"),
        ({"1.png": 1, "01.png": 1}, {"1.png": 2}, (), "have one number, 1"),
        ({}, {"1.png": 2}, (), "holds no pictures"),
        ({"1.png": 1}, {"1.png": "large"}, (), "frame 1: .*32x24 and 34x24"),
        ({"1.png": 1}, {"1.png": 1}, ("--metrics=response",), "needs an avatar"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, made, true, more, expected):
    large = np.pad(picture(1), ((0, 0), (0, 2), (0, 0)))
    folders_of = [
        save(tmp_path / n, {k: large if v == "large" else picture(v) for k, v in f.items()})
        for n, f in (("a", made), ("b", true))
    ]
    with pytest.raises(UserError, match=expected) as error:
        evaluate(*folders_of, tmp_path / "out", *more)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), "needs --workdir"),
        (("--generated=a", "--out=o"), "needs --truth"),
        (("--generated=a", "--truth=b"), "needs --out"),
        (("--generated=a", "--truth=b", "--out=o", "--workdir=w"), "--workdir concerns an avatar"),
        (("--generated=a", "--truth=b", "--out=o"), "no folder or video a"),
        (("--workdir=w", "--metrics=psnr,sim"), "sim is unknown; did you mean ssim"),
        (("--workdir=w", "--metrics=zebra"), "choose one of fid, lmd, lpips, nioe, psnr, response, ssim"),
    ],
)
def test_a_command_line_that_is_not_whole_is_one_sentence(tmp_path, monkeypatch, arguments, expected):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=expected):
        cli.run(options.parse(["x", "--mode=eval", *arguments]))


def test_the_metrics_are_those_of_the_flag():
    assert options.METRICS == tuple(scores.OF_METRIC) and set(folders.METRICS) < set(options.METRICS)


def test_the_mouths_error_over_the_eyes_distance_is_the_known_value():
    """ad-nerf dossier §11.21: 3 px of error, eyes 60 px apart, 0.05; a constant shift counts."""
    truth = np.zeros((68, 2))
    truth[36:42], truth[42:48] = [20, 30], [80, 30]
    truth[48:] = np.random.default_rng(0).uniform(0, 90, (20, 2))
    moved = truth.copy()
    moved[48:] += [1.8, 2.4]
    moved[:36] += 50
    assert formulas.mouth_error(moved, truth) == pytest.approx(0.05)
    assert formulas.lip_distance_px(moved, truth) == pytest.approx(0)
    assert np.isnan(formulas.mouth_error(moved, np.zeros((68, 2))))


@given(st.lists(st.floats(0.001, 50), min_size=1, max_size=20), st.integers(0, 3))
def test_means_and_deviations_leave_out_frames_without_a_value(values, holes):
    scored = text_report.Scored({}, range(len(values) + holes), {"nioe": values + [float("nan")] * holes}, {}, {})
    mean, std = scored.mean_std("nioe")
    assert mean == pytest.approx(np.mean(values)) and std == pytest.approx(np.std(values), abs=1e-9)
    assert f"NIOE (mouth):   {mean:.4f} +- {std:.4f}\n" in text_report.text(scored)
