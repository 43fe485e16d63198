"""The numbers of a report: by hand where a picture is known, null where nothing can be known."""

import json

import av
import jax
import numpy as np
import pytest

from tests import tiny
from tkjax import avatar, cli, config, contract, evaluate, metrics, report
from tkjax.data import Clip
from tkjax.errors import UserError
from tkjax.models import base


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    return Clip(tiny.make_dataset(folder / "dataset"), folder / "cache")


def run(clip, folder, background="torso", **kwargs):
    resolved = tiny.config(background)
    model = base.load(resolved.system)(resolved, clip.info)
    variables = model.init(jax.random.key(0))
    return evaluate.evaluate(clip, model, variables, 4, folder, system="tests.tiny", **kwargs)


@pytest.fixture(scope="module")
def result(clip, tmp_path_factory):
    folder = tmp_path_factory.mktemp("result")
    return *run(clip, folder, models=str(folder)), folder


def test_the_report_has_the_promised_keys(result):
    r, _, _ = result
    assert set(r["metrics"]) == set(evaluate.KEYS)
    assert set(r["baselines"]) == {"mean_frame", "nearest_frame"}
    assert all(set(b) == set(evaluate.KEYS) for b in r["baselines"].values())
    assert r["split"]["train_frames"] == 30 and r["split"]["heldout_frames"] == 3
    (row,) = r["rows"]
    for key in ("system", "split", "ground_truth_layers", "metrics", "baselines"):
        assert row[key] == r[key]
    assert r["ground_truth_layers"] == ["torso", "background"]


def test_the_mean_frame_scores_what_a_direct_computation_says(clip, result):
    average = np.rint(np.mean([clip.target(i).astype(float) for i in range(30)], 0)).astype(np.uint8)
    expected = np.mean([metrics.psnr(average, clip.target(i)) for i in (30, 31, 32)])
    assert result[0]["baselines"]["mean_frame"]["psnr"] == pytest.approx(expected)
    boxes = [clip.boxes["lips_box_px"][i] for i in (30, 31, 32)]
    crops = [(metrics.crop(average, b), metrics.crop(clip.target(i), b)) for i, b in zip((30, 31, 32), boxes)]
    assert result[0]["baselines"]["mean_frame"]["psnr_mouth"] == pytest.approx(
        np.mean([metrics.psnr(*c) for c in crops])
    )


def test_nearest_frame_is_the_training_frame_with_the_most_similar_pose(clip, result):
    x = clip.cam_to_world[:, 0, 3]  # the camera moves along x alone
    near = [int(np.argmin(np.abs(x[:30] - x[i]))) for i in (30, 31, 32)]
    expected = np.mean([metrics.psnr(clip.target(n), clip.target(i)) for n, i in zip(near, (30, 31, 32))])
    assert result[0]["baselines"]["nearest_frame"]["psnr"] == pytest.approx(expected)


def test_lip_measures_without_the_tracker_are_null_with_a_reason(result):
    r, _, _ = result
    assert r["metrics"]["lmd_px"] is None and r["baselines"]["mean_frame"]["lmd_norm"] is None
    assert "face_landmarker.task" in r["reasons"]["lmd_px, lmd_norm"]


def test_a_model_that_draws_the_torso_is_given_the_background_alone(clip, tmp_path):
    r, _ = run(clip, tmp_path, background="plate", models=str(tmp_path))
    assert r["ground_truth_layers"] == ["background"]
    target = np.mean([metrics.psnr(clip.plate, clip.target(i)) for i in (30, 31, 32)])
    assert abs(r["metrics"]["psnr"] - target) < 6  # the plate with a disc, not the torso


def test_the_comparison_shows_model_and_truth_with_the_sound_of_the_held_out_frames(clip, result):
    path = result[2] / "comparison.mp4"
    with av.open(str(path)) as container:
        frames = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
        assert len(container.streams.audio) == 1
    assert len(frames) == 3 and frames[0].shape == (24, 64, 3)
    for k, i in enumerate((30, 31, 32)):
        assert metrics.psnr(frames[k][:, 32:], clip.target(i)) > 25


def test_the_worst_frames_are_the_worst(result):
    r, worst, _ = result
    values = [float(c.split(": ")[1].removesuffix(" dB")) for c, _ in worst]
    assert values == sorted(values) and len(worst) == 3
    assert np.mean(values) == pytest.approx(r["metrics"]["psnr"], abs=0.01)


def test_frames_without_a_detection_count_for_the_full_frame_only():
    a, b = np.zeros((20, 20, 3), np.uint8), np.full((20, 20, 3), 9, np.uint8)
    s = evaluate.score(a, b, None, (0, 0, 0, 0))
    assert np.isnan([s["psnr_face"], s["psnr_mouth"], s["ssim_mouth"]]).all() and np.isfinite(s["psnr"])
    assert evaluate.mean([float("nan"), 2.0, 4.0]) == 3 and evaluate.mean([float("nan")]) is None


def test_thinning_keeps_the_ends_and_no_held_out_frame_is_an_error(clip):
    assert evaluate.frames_to_score(clip, 2).tolist() == [30, 32]
    empty = type("Clip", (), {"heldout_range": (5, 5)})
    with pytest.raises(UserError, match="held-out"):
        evaluate.frames_to_score(empty, 0)


def test_train_evaluate_and_report_from_one_workdir(clip, tmp_path, monkeypatch):
    """The path of --mode=fit --dataset in this process: files, keys, the same config again, strangers refused."""
    monkeypatch.setenv("TKJAX_MODELS", str(tmp_path))
    resolved = tiny.config()
    workdir = tmp_path / "W"
    fitted = cli.train_and_save(resolved, clip.dataset.root, workdir, cli.consent_record("mine", True))
    cli.score(workdir, fitted, None)
    data = json.loads((workdir / "report.json").read_text())
    for key in ("system", "split", "ground_truth_layers", "metrics", "baselines", "rows", "speed", "versions"):
        assert key in data
    assert set(data["speed"]) == {"train_steps_per_s", "render_fps", "train_seconds", "preprocess_seconds"}
    assert data["speed"]["train_steps_per_s"] > 0 and data["speed"]["preprocess_seconds"] is None
    assert data["consent"]["statement"] == "mine" and "mine" in (workdir / "report.html").read_text()
    assert data["avatar"] == avatar.load(workdir / "avatar").id
    again = config.load(str(workdir / "config.json"))
    assert again.to_dict() == config.load(str(workdir / "config.json")).to_dict() and again.system == "tests.tiny"
    assert config.differing(config.to_dict(again), config.to_dict(resolved)) == []
    other = Clip(tiny.make_dataset(tmp_path / "other", n=44), tmp_path / "cache")
    with pytest.raises(UserError, match="n_frames is 44, not 33"):
        cli.score(workdir, other, None)


@pytest.mark.heavy
def test_lips_of_a_picture_equal_themselves(models_dir, data_dir, tmp_path):
    """The tracker's path end to end: a portrait against itself has no lip distance, a stretched mouth has one."""
    from tkjax.images import read_rgb, resize_area

    portrait = resize_area(read_rgb(data_dir / "images/albert.jpg"), (433, 325))
    lips = evaluate.Lips(tmp_path)
    for source in ("model", "target"):
        lips.add(source, 0, portrait)
    a, b = lips.find("model", str(models_dir)), lips.find("target", str(models_dir))
    assert a.shape == (1, 68, 2) and np.isfinite(a).all()
    assert metrics.lip_distance_px(a[0], b[0]) == 0 and metrics.eye_distance_px(a[0]) > 20


def test_training_speed_sums_the_stages_last_rows():
    rows = [{"stage": "a", "step": 5, "seconds": 1.0}, {"stage": "a", "step": 10, "seconds": 2.0}]
    rows += [{"stage": "b", "step": 20, "seconds": 8.0}]
    assert evaluate.training_speed(rows) == {"train_steps_per_s": 3.0, "train_seconds": 10.0}
    assert evaluate.training_speed([]) == {"train_steps_per_s": None, "train_seconds": None}
    assert report.finite(float("nan")) is None and contract.VERSION == 1
