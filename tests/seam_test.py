"""Every system passes the same path: trainer, renderer and evaluator know only the Model interface.

The systems are those of tkjax/models, found by listing it, with their `smoke` config, and the stubs of tests/stubs,
which could hardly differ more. Each stub is one file and one config that nobody else names.
"""

import ast
import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.stubs.clip import FakeClip
from tests.stubs.config import NAMES as STUBS
from tests.stubs.config import smoke_config, stub_config
from tkjax.host import model_files
from tkjax.interface import initialise
from tkjax.measure import evaluate as evaluator
from tkjax.measure import layers
from tkjax.models import load_system, systems
from tkjax.render.image import final_clock, picture, render_image
from tkjax.train import loop
from tkjax.train.loop import load_variables
from tkjax.train.optim import optimiser
from tkjax.train.step import make_loss
from tkjax.types import ClipFacts, Clock, Variables

pytestmark = pytest.mark.heavy
ROOT = Path(__file__).resolve().parents[1]
PROJECT = systems()


class Stop(Exception):
    """A run that is interrupted."""


def make(system):
    if system in PROJECT:
        return smoke_config(system), FakeClip(22, 32, 32)
    config = stub_config(system.removeprefix("stub "), steps=50)
    config.train.checkpoint_every = 25  # one within a stage, one at its end
    return config, FakeClip()


def facts_of(clip, poses):
    return ClipFacts(poses, np.tile(clip.intrinsics, (len(poses), 1)), {s.name: s for s in clip.info.signals})


@pytest.fixture(scope="module", params=[*(f"stub {s}" for s in STUBS), *PROJECT])
def system(request):
    """(config, clip, model, stages, fresh variables)"""
    config, clip = make(request.param)
    model = load_system(config.system)(config, clip.info)
    variables = initialise(model, jax.random.key(0))
    frames = np.arange(*clip.train_range)
    poses = clip.cam_to_world[frames]
    variables = model.prepare(variables, facts_of(clip, poses))
    return config, clip, model, model.stages(), variables


@pytest.fixture(scope="module")
def undisturbed(system, tmp_path_factory):
    """(workdir, result, events)"""
    config, clip, *_ = system
    workdir, events = tmp_path_factory.mktemp("undisturbed"), []
    variables = loop.train(config, clip, workdir, on_event=lambda name, facts: events.append((name, facts)))
    return workdir, variables, events


def draw(model, variables, clip, i, steps=1):
    """(the first row of the evaluation: what the model draws over all layers that can be given; the truth), 8 bits."""
    whole = layers.combinations(model)[0]
    batch, clock = clip.frame_batch(i, whole.behind, model.signals()), final_clock(steps, whole.stage)
    frame = jax.tree.map(jnp.asarray, batch)
    image = render_image(model, variables, frame, batch.image_hw, clock, 256)
    rgb = np.asarray(picture(image, frame.background.reshape(image.rgb.shape)))
    return whole.over(clip, i, np.rint(rgb * 255).astype(np.uint8)), clip.target(i, *whole.compared)


def squares(model, variables, clip, i, steps=1):
    drawn, truth = draw(model, variables, clip, i, steps)
    return np.mean((drawn.astype(np.float64) - truth) ** 2)


def equal(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: np.array_equal(x, y), a, b))


def test_init_is_a_function_of_the_key_with_the_shapes_that_eval_shape_tells(system):
    _, clip, model, _, _ = system
    abstract = jax.eval_shape(model.init, jax.random.key(0))
    one, same, other = (initialise(model, jax.random.key(k)) for k in (0, 0, 1))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), one) == jax.tree.map(lambda x: (x.shape, x.dtype), abstract)
    assert equal(one, same) and not equal(one.params, other.params)
    prepared = model.prepare(one, facts_of(clip, clip.cam_to_world))
    assert jax.tree.structure(prepared) == jax.tree.structure(one)


def test_every_trained_group_gets_finite_gradients(system):
    _, clip, model, stages, variables = system
    labels = jax.tree.leaves(model.labels(variables.params))
    for stage in stages:
        # in the middle of the stage every term and every attention is at work
        clock = Clock(jnp.int32(16), jnp.float32(0.5), stage.name)
        total = None
        for sampler in stage.samplers:
            keys = [np.random.default_rng(0)]
            pixels = (sampler, stage.rays, stage.patch, stage.background, stage.target)
            asked = {"driven_by": model.signals(), "masks": stage.masks, "truth": stage.truth}
            batch = clip.batch(np.array([3]), keys, *pixels, **asked)
            batch = jax.tree.map(jnp.asarray, batch)
            trained = jax.tree.map(lambda group, s=stage: group in s.rates, model.labels(variables.params))
            loss = jax.jit(jax.grad(make_loss(model, stage, trained), has_aux=True))
            grads, _ = loss(variables.params, variables.state, clock, batch, jax.random.key(1))
            size = [float(jnp.sum(jnp.abs(g))) for g in jax.tree.leaves(grads)]
            total = size if total is None else np.add(total, size)
        assert np.all(np.isfinite(total))
        for group in set(labels):
            reached = sum(s for s, name in zip(total, labels, strict=True) if name == group)
            assert (reached > 0) == (group in stage.rates), (stage.name, group)


def test_a_group_without_a_rate_does_not_move(system):
    _, _, model, stages, variables = system
    params = variables.params
    labels = model.labels(params)
    for stage in stages:
        frozen, *others = stage.rates
        if not others:
            continue
        rates = {name: dataclasses.replace(stage.rates[name], decay=0.1, joins=0) for name in others}
        tx = optimiser(rates, labels, stage.steps)

        @jax.jit
        def after(params, tx=tx):
            updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
            return optax.apply_updates(params, updates)

        moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), params, after(params))
        for has_moved, group in zip(jax.tree.leaves(moved), jax.tree.leaves(labels), strict=True):
            assert has_moved == (group in others), (group, frozen)


def test_the_loss_falls_in_every_stage(system, undisturbed):
    _, _, _, stages, _ = system
    _, _, events = undisturbed
    trained = set()
    for stage in stages:
        if set(stage.rates) & trained:
            continue  # finetuning, here of a few steps: its error goes with the frames and samplers
        trained |= set(stage.rates)
        errors = [facts["mse"] for name, facts in events if name == "row" and facts["stage"] == stage.name]
        assert np.mean(errors[-2:]) < np.mean(errors[:2]), errors


def test_a_held_out_picture_improves(system, undisturbed):
    _, clip, model, _, fresh = system
    _, trained, _ = undisturbed
    i = clip.heldout_range[0]
    before, after = (squares(model, v, clip, i) for v in (fresh, trained))
    assert after < before


def test_each_sampler_of_each_stage_compiles_once(system, undisturbed):
    _, _, _, stages, _ = system
    compiled = [(f["stage"], f["sampler"]) for name, f in undisturbed[2] if name == "compile"]
    assert compiled == [(s.name, sampler) for s in stages for sampler in dict.fromkeys(s.samplers)]


def test_an_interrupted_run_ends_with_the_same_bits(system, undisturbed, tmp_path):
    config, clip, *_ = system
    workdir, expected, _ = undisturbed

    def stop(name, facts):
        if name == "checkpoint":
            raise Stop

    with pytest.raises(Stop):
        loop.train(config, clip, tmp_path, on_event=stop)
    assert equal(loop.train(config, clip, tmp_path), expected)
    rows = [[json.loads(r) for r in (d / "metrics.jsonl").read_text().splitlines()] for d in (workdir, tmp_path)]
    steps, resumed = ([(r["stage"], r["step"], r["loss"]) for r in part] for part in rows)
    assert resumed == steps


def test_the_trained_variables_load_again(system, undisturbed):
    config, clip, _, stages, _ = system
    workdir, expected, _ = undisturbed
    again = load_system(config.system)(config, clip.info)
    variables, step = load_variables(workdir, again)
    assert isinstance(variables, Variables) and step == stages[-1].steps
    assert equal(variables, expected)


def test_the_evaluator_scores_it(system, undisturbed, tmp_path, monkeypatch):
    monkeypatch.setattr(model_files, "find_model", lambda models: (None, "the test has no tracker"))
    config, clip, model, stages, _ = system
    report, worst = evaluator.evaluate(
        clip, model, undisturbed[1], stages[-1].steps, tmp_path, system=config.system, chunk_rays=256
    )
    assert report["system"] == config.system and report["split"]["heldout_frames"] == len(worst) > 0
    mse = squares(model, undisturbed[1], clip, clip.heldout_range[0], stages[-1].steps)
    if len(worst) == 1:
        assert report["metrics"]["psnr"] == pytest.approx(10 * np.log10(255**2 / mse), abs=0.01)
    assert all(np.isfinite(report["metrics"][key]) for key in ("psnr", "psnr_face", "ssim"))


# Where the originals' files come in and go out, and the flag that says which project made one.
IMPORTERS = ("originals/", "app/importing.py", "app/exporting.py", "app/options.py")


def test_no_module_outside_a_system_and_its_importer_names_it():
    for path in sorted((ROOT / "tkjax").rglob("*.py")):
        name = path.relative_to(ROOT / "tkjax").as_posix()
        if name.startswith(IMPORTERS) or (path.parent.name == "models" and path.stem in PROJECT):
            continue
        tree = ast.walk(ast.parse(path.read_text()))
        said = {node.value for node in tree if isinstance(node, ast.Constant) and isinstance(node.value, str)}
        for system in PROJECT:
            assert system not in said and not any(f"models.{system}" in text for text in said), name


@pytest.mark.parametrize("stub", STUBS)
def test_a_stub_is_one_file_and_one_config_that_nobody_else_names(stub):
    own = {ROOT / f"tests/stubs/{stub}.py", ROOT / f"tests/stubs/configs/{stub}.py"}
    folders = ("tkjax", "preprocess", "configs", "benchmarks", "tests")
    others = [p for folder in folders for p in (ROOT / folder).rglob("*.py") if p not in own]
    assert all(p.is_file() for p in own) and len(others) > 100
    assert not [p for p in (*others, ROOT / "launch.py") if stub in p.read_text()]
