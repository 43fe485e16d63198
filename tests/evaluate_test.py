"""The numbers of a report: by hand where a picture is known, null where nothing can be known."""

import copy
import json

import av
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from tkjax import config, contract, perceptual
from tkjax.app import workflow
from tkjax.avatar import bundle
from tkjax.data.dataset_clip import DatasetClip
from tkjax.errors import UserError
from tkjax.interface import Rate, Stage
from tkjax.measure import evaluate, formulas, layers, report, scores
from tkjax.measure.layers import PasteBack
from tkjax.models import load_system
from tkjax.render.image import final_clock
from tkjax.types import Render, Variables


class Layered(tiny.Model):
    """The disc as a head; from the stage `torso` on, a flat torso below the picture's 18th row is drawn under it."""

    COLOUR = np.array([20, 52, 160], np.float32) / 255

    def init(self, key):
        variables = super().init(key)
        return variables.replace(params={"disc": variables.params, "torso": jnp.asarray(self.COLOUR)})

    def parts(self, params):
        return {"head": params["disc"], "torso": params["torso"]}

    def render(self, variables, batch, key, clock, train):
        head = super().render(Variables(variables.params["disc"], variables.state), batch, key, clock, train)
        if clock.stage != "torso":
            return head
        (x, y), through = jnp.moveaxis(batch.pixels_px, -1, 0), 1 - head.alpha
        torso = ((y > 18) & (x > 8) & (x < 24)).astype(jnp.float32)[..., None]
        rgb = head.rgb + through * torso * variables.params["torso"]
        return Render(rgb=rgb, alpha=head.alpha + through * torso, front=head.alpha)

    def stages(self):
        rates = {"all": Rate(1e-2)}
        plan = (("head", "torso"), ("lips", "torso"), ("torso", "plate"))
        return tuple(Stage(name, 4, 64, rates, {"mse": 1.0}, background=behind) for name, behind in plan)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    return DatasetClip(tiny.make_dataset(folder / "dataset"), folder / "cache")


def run(clip, folder, background="torso", model=None, **kwargs):
    resolved = tiny.config(background)
    model = (model or load_system(resolved.system))(resolved, clip.info)
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
    for row in r["rows"]:  # every number that is missing has its reason
        numbers = {**row["metrics"], **row["more_metrics"], **{k: row[k] for k in scores.SEAM_KEYS}}
        said = ", ".join(row["reasons"]).split(", ")
        assert {k for k, v in numbers.items() if v is None} == set(said) - {"render_fps"}
    assert r["params"] == {"all": 4, "total": 4} and r["comparison"] == ["model over the true torso", "truth"]


def test_the_mean_frame_scores_what_a_direct_computation_says(clip, result):
    average = np.rint(np.mean([clip.target(i).astype(float) for i in range(30)], 0)).astype(np.uint8)
    expected = np.mean([formulas.psnr(average, clip.target(i)) for i in (30, 31, 32)])
    assert result[0]["baselines"]["mean_frame"]["psnr"] == pytest.approx(expected)
    boxes = [clip.boxes["lips_box_px"][i] for i in (30, 31, 32)]
    crops = [(formulas.crop(average, b), formulas.crop(clip.target(i), b)) for i, b in zip((30, 31, 32), boxes)]
    assert result[0]["baselines"]["mean_frame"]["psnr_mouth"] == pytest.approx(
        np.mean([formulas.psnr(*c) for c in crops])
    )


def test_nearest_frame_is_the_training_frame_with_the_most_similar_pose(clip, result):
    x = clip.cam_to_world[:, 0, 3]  # the camera moves along x alone
    near = [int(np.argmin(np.abs(x[:30] - x[i]))) for i in (30, 31, 32)]
    expected = np.mean([formulas.psnr(clip.target(n), clip.target(i)) for n, i in zip(near, (30, 31, 32))])
    assert result[0]["baselines"]["nearest_frame"]["psnr"] == pytest.approx(expected)


def test_lip_measures_without_the_tracker_are_null_with_a_reason(result):
    r, _, _ = result
    assert r["metrics"]["lmd_px"] is None and r["baselines"]["mean_frame"]["lmd_norm"] is None
    assert "face_landmarker.task" in r["reasons"]["lmd_px, lmd_norm"]


def test_a_model_that_draws_the_torso_is_given_the_background_alone(clip, tmp_path):
    r, _ = run(clip, tmp_path, background="plate", models=str(tmp_path))
    assert r["ground_truth_layers"] == ["background"]
    target = np.mean([formulas.psnr(clip.plate, clip.target(i)) for i in (30, 31, 32)])
    assert abs(r["metrics"]["psnr"] - target) < 6  # the plate with a disc, not the torso


def test_the_comparison_shows_model_and_truth_with_the_sound_of_the_held_out_frames(clip, result):
    path = result[2] / "comparison.mp4"
    with av.open(str(path)) as container:
        frames = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
        assert len(container.streams.audio) == 1
    assert len(frames) == 3 and frames[0].shape == (24, 64, 3)
    for k, i in enumerate((30, 31, 32)):
        assert formulas.psnr(frames[k][:, 32:], clip.target(i)) > 25


def test_the_worst_frames_are_the_worst(result):
    r, worst, _ = result
    values = [float(c.split(": ")[1].removesuffix(" dB")) for c, _ in worst]
    assert values == sorted(values) and len(worst) == 3
    assert np.mean(values) == pytest.approx(r["metrics"]["psnr"], abs=0.01)


# ---------------------------------------------------------------- rows of layers


@pytest.fixture(scope="module")
def layered(clip, tmp_path_factory):
    folder = tmp_path_factory.mktemp("layered")
    return *run(clip, folder, model=Layered, models=str(folder)), folder


def picture_of(clip, i, torso):
    model = Layered(tiny.config(), clip.info)
    batch = jax.tree.map(jnp.asarray, clip.frame_batch(i, "plate" if torso else "torso", model.signals()))
    clock = final_clock(4, "torso" if torso else "head")
    out = model.render(model.init(jax.random.key(0)), batch, None, clock, False)
    return np.rint(255 * np.asarray(out.rgb + (1 - out.alpha) * batch.background)).reshape(24, 32, 3).astype(np.uint8)


def test_each_combination_of_true_and_modelled_layers_is_a_row(clip, layered):
    r, _, _ = layered
    assert [row["ground_truth_layers"] for row in r["rows"]] == [["torso", "background"], ["background"]]
    for key in ("metrics", "more_metrics", "ground_truth_layers", "baselines", "seam", "params"):
        assert r[key] == r["rows"][0][key]
    for row, torso in zip(r["rows"], (False, True)):
        expected = np.mean([formulas.psnr(picture_of(clip, i, torso), clip.target(i)) for i in (30, 31, 32)])
        assert row["metrics"]["psnr"] == pytest.approx(expected, abs=0.02)
        seams = [formulas.seam_error(picture_of(clip, i, torso), clip.target(i), clip.label(i)) for i in (30, 31, 32)]
        assert row["seam"] == pytest.approx(np.mean(seams), abs=0.02)
        assert row["baselines"] == r["baselines"] and row["params"] == {"head": 4, "torso": 3, "total": 7}
        assert row["box_edge"] is None and "pasted back" in row["reasons"]["box_edge"]
        assert row["psnr_outside_mask"] is None and row["render_fps"] > 0
    assert "no whole source frames" in r["reasons"]["box_edge"]


def test_the_comparison_shows_every_combination_and_the_truth(clip, layered):
    r, worst, folder = layered
    assert r["comparison"] == ["model over the true torso", "whole model over the plate", "truth"]
    with av.open(str(folder / "comparison.mp4")) as container:
        frame = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert frame.shape == (24, 96, 3) and worst[0][1].shape == (24, 96, 3)
    for k, picture in enumerate((picture_of(clip, 30, False), picture_of(clip, 30, True), clip.target(30))):
        assert formulas.psnr(frame[:, 32 * k : 32 * k + 32], picture) > 25


def test_only_finished_stages_are_drawn(clip):
    model = Layered(tiny.config(), clip.info)
    assert [c.stage for c in layers.combinations(model)] == ["lips", "torso"]
    assert [(c.stage, c.given) for c in layers.combinations(model, ["head"])] == [("head", ("torso", "background"))]
    assert [(c.stage, c.given) for c in layers.combinations(model, ["torso"])] == [("torso", ("background",))]
    with pytest.raises(ValueError, match=r"\['mouth'\].*head, lips, torso"):
        layers.combinations(model, ["mouth"])


def whole(clip, i):
    """A frame of 90x60 with noise around the crop, which lies at (20, 10) and twice its size."""
    frame = np.random.default_rng(0).integers(0, 255, (60, 90, 3)).astype(np.uint8)
    frame[10:58, 20:84] = clip.target(i).repeat(2, 0).repeat(2, 1)
    return frame


@pytest.mark.parametrize("scheme", ["box", pytest.param("blend", marks=pytest.mark.heavy), "face"])
def test_the_picture_pasted_back_is_a_row_of_its_own(clip, tmp_path, scheme):
    head = [clip.label(i) == 1 for i in range(33)]
    paste = PasteBack(scheme, (20, 10, 84, 58), lambda i: whole(clip, i), lambda i: head[i])
    r, _ = run(clip, tmp_path, model=Layered, models=str(tmp_path), paste=paste)
    row = r["rows"][-1]
    assert row["ground_truth_layers"] == ["full_frame"] and row["paste_back"] == scheme and len(r["rows"]) == 3
    assert row["psnr_outside_mask"] == formulas.MAX_PSNR_DB == r["psnr_outside_mask"]
    assert r["box_edge"] == row["box_edge"] and np.isfinite(row["box_edge"])
    assert set(row["metrics"]) == set(evaluate.KEYS) and row["params"] == r["params"] and "baselines" not in row
    modelled = r["rows"][1]
    if scheme == "box":  # enlarged and cut out again, what was drawn is there unchanged but for the resampling
        assert row["metrics"]["psnr_mouth"] == pytest.approx(modelled["metrics"]["psnr_mouth"], abs=1.5)
        assert row["box_edge"] > 0
    if scheme == "face":  # nothing but the true frame outside the face
        assert row["box_edge"] == 0 and row["metrics"]["psnr"] > modelled["metrics"]["psnr"]


def test_a_box_that_leaves_the_frame_is_cut_with_its_border():
    frame = np.random.default_rng(1).integers(0, 255, (20, 30, 3)).astype(np.uint8)
    cut = PasteBack("box", (-4, 5, 10, 25), lambda i: frame).cut(frame, (20, 14))
    assert np.array_equal(cut[:15, 4:], frame[5:, :10]) and np.array_equal(cut[:15, 0], frame[5:, 0])
    assert np.array_equal(cut[15:, 4:], np.repeat(frame[-1:, :10], 5, 0))


@pytest.mark.heavy
def test_lpips_is_scored_where_its_weights_lie_and_else_missing_with_a_reason(clip, tmp_path, result):
    assert result[0]["more_metrics"]["lpips"] is None
    assert "needs lpips_alex.npz" in result[0]["reasons"]["lpips"]
    rng = np.random.default_rng(0)
    arrays = {k: 0.05 * rng.random(s, np.float32) - 0.01 for k, s in perceptual.expected_shapes("alex").items()}
    np.savez(tmp_path / "lpips_alex.npz", **{k: v.astype(np.float32) for k, v in arrays.items()})
    r, _ = run(clip, tmp_path, models=str(tmp_path))
    measure = jax.jit(perceptual.choose("lpips_alex", tmp_path).__call__)
    average = evaluate.mean_frame(clip)
    pairs = [np.float32([average, clip.target(i)])[:, None] / 255 for i in (30, 31, 32)]
    expected = np.mean([float(measure(a, b)[0]) for a, b in pairs])
    assert r["more_baselines"]["mean_frame"]["lpips"] == pytest.approx(expected, rel=1e-4)
    assert "lpips" not in r["reasons"] and r["more_metrics"]["lpips"] is not None
    (tmp_path / "lpips_alex.npz").write_bytes(b"no")
    assert "is damaged" in scores.lpips(str(tmp_path))[1]


def test_the_report_names_the_perceptual_term_of_training(tmp_path, monkeypatch):
    monkeypatch.setenv("TKJAX_MODELS", str(tmp_path))
    resolved = tiny.config()
    assert evaluate.perceptual_note(resolved, ["all"]) == {}
    resolved.train.lips = {"perceptual": "auto"}
    [note] = evaluate.perceptual_note(resolved, ["head", "lips"]).values()
    assert "structure, in place of LPIPS" in note
    assert "not trained" in evaluate.perceptual_note(resolved, ["head"])["perceptual term"]
    resolved.train.lips.perceptual = "lpips_vgg"
    assert "lpips_vgg" in evaluate.perceptual_note(resolved, ["lips"])["perceptual term"]


# ---------------------------------------------------------------- one frame, one workdir


def test_frames_without_a_detection_count_for_the_full_frame_only():
    a, b = np.zeros((20, 20, 3), np.uint8), np.full((20, 20, 3), 9, np.uint8)
    s = scores.score(a, b, None, (0, 0, 0, 0))
    assert np.isnan([s["psnr_face"], s["psnr_mouth"], s["ssim_mouth"]]).all() and np.isfinite(s["psnr"])
    assert scores.mean([float("nan"), 2.0, 4.0]) == 3 and scores.mean([float("nan")]) is None


def test_thinning_keeps_the_ends_and_no_held_out_frame_is_an_error(clip):
    assert evaluate.frames_to_score(clip, 2).tolist() == [30, 32]
    empty = copy.copy(clip)
    empty.heldout_frames = np.arange(0)
    with pytest.raises(UserError, match="held-out"):
        evaluate.frames_to_score(empty, 0)


def test_frames_whose_picture_is_made_up_are_not_scored(clip):
    missing = np.zeros(clip.n_frames, bool)
    missing[30] = True
    holes = copy.copy(clip)
    holes.picture_missing = missing
    assert evaluate.frames_to_score(holes, 0).tolist() == [i for i in range(*clip.heldout_range) if i != 30]
    holes.picture_missing = np.ones(clip.n_frames, bool)
    with pytest.raises(UserError, match=r"none of the held-out frames 30..\d+ has a picture of its own"):
        evaluate.frames_to_score(holes, 0)


@pytest.mark.heavy
def test_train_evaluate_and_report_from_one_workdir(clip, tmp_path, monkeypatch):
    """The path of --mode=fit --dataset in this process: files, keys, the same config again, strangers refused."""
    monkeypatch.setenv("TKJAX_MODELS", str(tmp_path))
    resolved = tiny.config()
    workdir = tmp_path / "W"
    fitted = workflow.train_and_save(resolved, clip.dataset.root, workdir, workflow.consent_record("mine", True))
    workflow.score(workdir, fitted, None)
    data = json.loads((workdir / "report.json").read_text())
    for key in ("system", "split", "ground_truth_layers", "metrics", "baselines", "rows", "speed", "versions"):
        assert key in data
    assert set(data["speed"]) == {"train_steps_per_s", "render_fps", "train_seconds", "preprocess_seconds"}
    assert data["speed"]["train_steps_per_s"] > 0 and data["speed"]["preprocess_seconds"] is None
    assert data["consent"]["statement"] == "mine" and "mine" in (workdir / "report.html").read_text()
    assert data["avatar"] == bundle.load(workdir / "avatar").id
    first, pasted = data["rows"]
    assert pasted["ground_truth_layers"] == ["full_frame"] and pasted["paste_back"] == "blend"
    assert data["psnr_outside_mask"] > 50 and data["box_edge"] is None and data["reasons"]["box_edge"]
    assert data["stages"] == ["all"] and first["speed"]["render_fps"] != pasted["speed"]["render_fps"]
    assert data["seam"] == first["seam"] > 0 and "PSNR outside mask" in (workdir / "report.html").read_text()
    assert len(workflow.score(workdir, fitted, None, paste_back="none").rows) == 1
    again = config.load(str(workdir / "config.json"))
    assert again.to_dict() == config.load(str(workdir / "config.json")).to_dict() and again.system == "tests.tiny"
    assert config.differing(config.to_dict(again), config.to_dict(resolved)) == []
    other = DatasetClip(tiny.make_dataset(tmp_path / "other", n=44), tmp_path / "cache")
    with pytest.raises(UserError, match="n_frames is 44, not 33"):
        workflow.score(workdir, other, None)


@pytest.mark.heavy
def test_lips_of_a_picture_equal_themselves(models_dir, data_dir, tmp_path):
    """The tracker's path end to end: a portrait against itself has no lip distance, and none is kept on the disk."""
    from tkjax.media.images import read_rgb, resize_area

    portrait = resize_area(read_rgb(data_dir / "images/albert.jpg"), (433, 325))
    with scores.Faces(tmp_path, str(models_dir)) as faces:
        for source in ("model", "target", "target"):
            faces.add(source, portrait)
        faces.add("model", np.zeros_like(portrait))
        assert not list(tmp_path.iterdir())
        points = faces.find()
    assert np.array_equal(*points["target"]) and np.isnan(points["model"][1]).all()
    a, b = points["model"][:1], points["target"][:1]
    assert a.shape == (1, 68, 2) and np.isfinite(a).all()
    assert formulas.lip_distance_px(a[0], b[0]) == 0 and formulas.eye_distance_px(a[0]) > 20


def test_training_speed_sums_the_stages_last_rows():
    rows = [{"stage": "a", "step": 5, "seconds": 1.0}, {"stage": "a", "step": 10, "seconds": 2.0}]
    rows += [{"stage": "b", "step": 20, "seconds": 8.0}]
    assert evaluate.training_speed(rows) == {"train_steps_per_s": 3.0, "train_seconds": 10.0}
    assert evaluate.training_speed([]) == {"train_steps_per_s": None, "train_seconds": None}
    assert report.finite(float("nan")) is None and contract.VERSION == 1
