"""The trainer's rules: data order, weights, devices, numbers, files."""

import dataclasses
import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.stubs.clip import FakeClip
from tests.stubs.config import stub_config
from tkjax.data.batches import epoch_order, frames_of_step, global_frames, name_number, prefetch
from tkjax.errors import UserError
from tkjax.models import load_system
from tkjax.train import loop
from tkjax.train import loop as trainer


class Wrong(load_system(stub_config("simplest").system)):
    """A constant colour with something broken, by config.model.fault."""

    def loss_terms(self, variables, render, batch, key, clock):
        terms = super().loss_terms(variables, render, batch, key, clock)
        fault = self.config.model.fault
        if fault == "extra term":
            terms["smooth"] = jnp.float32(0)
        if fault == "vector":
            terms["mse"] = terms["mse"][None]
        if fault == "nan":
            terms["mse"] = jnp.where(clock.step == 13, jnp.nan, terms["mse"])
        if fault == "nan gradient":
            # finite loss, gradient of sqrt at 0
            terms["mse"] += jax.lax.cond(clock.step == 9, lambda x: jnp.sqrt(0 * x), lambda x: 0 * x, terms["mse"])
        return terms

    def stages(self):
        (stage,) = super().stages()
        if self.config.model.fault == "extra weight":
            stage = dataclasses.replace(stage, weights={"mse": 1.0, "lpips": 0.1})
        if self.config.model.fault == "sampler":
            stage = dataclasses.replace(stage, samplers=("rayz",))
        return (stage,)


Model = Wrong  # found as tests.train_test by `load`


def wrong_config(fault, steps=20):
    config = stub_config("simplest", steps, fault=fault)
    config.system = "tests.train_test"
    return config


def rows_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


# -- data order


@given(st.integers(1, 40), st.integers(0, 5), st.sampled_from(("head", "torso")), st.integers(1, 9), st.integers(0, 4))
def test_every_epoch_shows_every_frame_once_however_many_frames_a_step_takes(n, seed, stage, n_frames, epoch):
    frames = np.arange(100, 100 + n)
    steps = -(-n * (epoch + 1) // n_frames)
    sequence = np.concatenate([frames_of_step(frames, seed, stage, s, n_frames) for s in range(steps)])
    assert sorted(sequence[n * epoch : n * (epoch + 1)]) == frames.tolist()
    one_by_one = [frames_of_step(frames, seed, stage, s, 1)[0] for s in range(n)]
    assert sequence[:n].tolist() == one_by_one


def test_epochs_stages_and_seeds_have_different_orders():
    orders = [tuple(epoch_order(50, *key)) for key in ((0, "head", 0), (1, "head", 0), (0, "lips", 0), (0, "head", 1))]
    assert len(set(orders)) == 4


@given(st.integers(1, 64), st.integers(1, 16))
def test_the_global_batch_is_a_multiple_of_the_devices_or_an_error_with_both_numbers(frames, devices):
    assert global_frames(0, devices) == devices
    if frames % devices == 0:
        assert global_frames(frames, devices) == frames
    else:
        with pytest.raises(UserError, match=rf"train.frames={frames} .* {devices} devices; use (\d+)") as info:
            global_frames(frames, devices)
        assert int(str(info.value).split()[-1]) % devices == 0


def test_prefetching_keeps_the_order_and_passes_errors_on():
    assert list(prefetch(lambda s: s * s, range(10))) == [s * s for s in range(10)]

    def fail(step):
        if step == 3:
            raise OSError("disk gone")
        return step

    batches = prefetch(fail, range(10))
    assert [next(batches) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="disk gone"):
        next(batches)


# -- loss terms and weights


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("extra term", "'smooth' has no weight"),
        ("extra weight", "weighs term 'lpips', which the model does not return"),
        ("vector", r"'mse' has shape \(1,\)"),
    ],
)
def test_terms_and_weights_that_do_not_match_are_named_before_training(tmp_path, fault, message):
    with pytest.raises(UserError, match=message):
        loop.train(wrong_config(fault), FakeClip(), tmp_path)
    assert not (tmp_path / "checkpoints" / "run.json").exists()


@pytest.mark.parametrize(("fault", "bad_step", "kept"), [("nan", 14, 10), ("nan gradient", 10, None)])
def test_a_non_finite_number_stops_with_its_steps_and_leaves_the_last_good_checkpoint(tmp_path, fault, bad_step, kept):
    config = wrong_config(fault)
    config.train.log_every = 4
    with pytest.raises(UserError, match=r"non-finite between steps (\d+) and (\d+)") as info:
        loop.train(config, FakeClip(), tmp_path)
    words = str(info.value).replace(";", "").split()
    first, last = int(words[words.index("steps") + 1]), int(words[words.index("steps") + 3])
    assert first <= bad_step <= last
    steps = sorted(int(p.name) for p in (tmp_path / "checkpoints" / "all").iterdir())
    assert steps == ([kept] if kept else [])
    assert (f"the checkpoint of step {kept} is kept" if kept else "no checkpoint was written") in str(info.value)
    assert all(np.isfinite(row["loss"]) for row in rows_of(tmp_path))


# -- one run, looked at from all sides


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir, events = tmp_path_factory.mktemp("run"), []
    config = stub_config("staged", steps=20)
    config.train.preview_every = 10
    records = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    logging.getLogger("jax").addHandler(handler)
    with jax.log_compiles(True):
        variables = loop.train(config, FakeClip(), workdir, on_event=lambda name, facts: events.append((name, facts)))
    logging.getLogger("jax").removeHandler(handler)
    return config, workdir, variables, events, records


@pytest.mark.heavy
def test_each_sampler_of_each_stage_compiles_once(finished):
    config, _, _, events, records = finished
    stages = load_system(config.system)(config, FakeClip().info).stages()
    wanted = [(s.name, sampler) for s in stages for sampler in s.samplers]
    assert [(f["stage"], f["sampler"]) for n, f in events if n == "compile"] == wanted and len(wanted) == 4
    assert sum("Compiling" in text and "train_step" in text for text in records) == 4


@pytest.mark.heavy
def test_metrics_have_a_row_per_interval_with_the_speed_and_all_terms(finished):
    _, workdir, _, events, _ = finished
    rows = rows_of(workdir)
    assert [(r["stage"], r["step"]) for r in rows] == [(s, n) for s in ("head", "torso") for n in (5, 10, 15, 20)]
    assert rows == [facts for name, facts in events if name == "row"]
    for row in rows:
        assert {"loss", "mse", "psnr", "loss_mse", "loss_alpha", "grad_norm", "head_alpha"} <= row.keys()
        assert row["psnr"] == pytest.approx(-10 * np.log10(row["mse"]))
        assert row["steps_per_s"] > 0 and row["rays_per_s"] == pytest.approx(row["steps_per_s"] * 64, rel=1e-6)
    assert list((workdir / "tensorboard" / "head").glob("events*"))


@pytest.mark.heavy
def test_previews_show_truth_and_picture_side_by_side(finished):
    _, workdir, *_ = finished
    names = sorted(p.name for p in (workdir / "previews").iterdir())
    assert names == [f"{stage}-00000{n}.jpg" for stage in ("head", "torso") for n in (10, 20)]
    picture = np.asarray(Image.open(workdir / "previews" / names[0]))
    assert picture.shape == (24, 48, 3)
    clip = FakeClip()
    truth = np.asarray(clip.frame_batch(5).target).reshape(24, 24, 3)
    assert np.abs(picture[:, :24] / 255 - truth).mean() < 0.02


def test_refresh_runs_on_its_schedule_and_prepare_once(finished):
    _, _, variables, _, _ = finished
    assert int(variables.state["refreshes"]) == 5  # steps 0, 4, 8, 12, 16 of the head; the torso stage has none
    assert float(variables.state["seen"]) == 10
    assert np.all(np.asarray(variables.state["occupancy"]) > 0)


def test_a_frozen_group_stays_at_the_average_of_the_stage_before_to_the_last_bit(finished):
    config, workdir, variables, _, _ = finished
    model = load_system(config.system)(config, FakeClip().info)
    head, _ = trainer.load_variables(workdir, model, stage="head")
    for name in ("audio", "attention", "head"):
        for a, b in zip(jax.tree.leaves(head.params[name]), jax.tree.leaves(variables.params[name]), strict=True):
            np.testing.assert_array_equal(a, b)
    raw, _ = trainer.load_variables(workdir, model, stage="head", ema=False)
    assert not np.array_equal(raw.params["head"][0]["w"], head.params["head"][0]["w"])
    assert not np.array_equal(head.params["torso"][0]["w"], variables.params["torso"][0]["w"])


@pytest.mark.heavy
def test_the_average_of_a_run_is_the_recursion_over_its_parameters(tmp_path):
    config = stub_config("simplest", steps=6)
    config.train.checkpoint_every = 1
    config.train.keep_checkpoints = 10
    average = np.asarray(loop.train(config, FakeClip(), tmp_path).params["logit"])
    model = load_system(config.system)(config, FakeClip().info)
    key = jax.random.fold_in(jax.random.key(config.seed), name_number("init"))
    expected = np.asarray(model.init(key).params["logit"], np.float64)
    for n in range(1, 7):
        checkpoints = trainer.Checkpoints(tmp_path, "all")
        raw = checkpoints.restore(n, {"params": jax.eval_shape(model.init, key).params})["params"]["logit"]
        checkpoints.close()
        decay = min(0.95, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * np.asarray(raw)
    np.testing.assert_allclose(average, expected, rtol=1e-6)


def test_partial_addresses_of_a_distributed_run_are_refused():
    with pytest.raises(UserError, match="belong together"):
        trainer.initialise_distributed("127.0.0.1:1234", num_processes=2)


def test_without_a_launcher_the_run_is_a_single_process(monkeypatch):
    for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **k: pytest.fail("no launcher is there"))
    trainer.initialise_distributed()


@pytest.mark.parametrize("variable", ["SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"])
def test_launchers_with_several_tasks_are_joined(monkeypatch, variable):
    joined = []
    monkeypatch.setenv(variable, "4")
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **k: joined.append(a))
    trainer.initialise_distributed()
    assert joined == [()]


# -- settings that cannot work


def test_a_setting_that_cannot_work_is_refused_before_the_run_is_announced(tmp_path):
    events = []
    with pytest.raises(ValueError, match="'rayz' is unknown"):
        loop.train(wrong_config("sampler"), FakeClip(), tmp_path, on_event=lambda name, facts: events.append(name))
    assert events == []


def test_a_run_without_a_step_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no stage of .* has a step to train"):
        loop.train(stub_config("simplest", 0), FakeClip(), tmp_path)
    assert not list(tmp_path.iterdir())
