"""Stages: which are trained, in which order, from what; lips, torso and cameras of the hash-grid systems."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import fresh
from tests.er_nerf_test import KEY, batch, info, tiny
from tests.stubs.clip import FakeClip
from tests.stubs.config import stub_config
from tkjax.errors import UserError
from tkjax.interface import Stage
from tkjax.models.er_nerf import Model
from tkjax.render.image import picture
from tkjax.train import loop, plan
from tkjax.types import Clock

STAGES = tuple(Stage(name, steps, 64, {}, {}) for name, steps in (("head", 10), ("lips", 5), ("torso", 5)))


# -- choice and order


@pytest.mark.parametrize(
    "stands, wanted, expected",
    [
        ((0, 0, 0), None, {"head", "lips", "torso"}),
        ((10, 0, 0), None, {"head", "lips", "torso"}),
        ((10, 0, 2), None, {"head", "torso"}),  # torso went on without lips
        ((0, 0, 0), ("head",), {"head"}),
        ((10, 0, 0), ("torso",), {"torso"}),
        ((10, 3, 0), ("lips",), {"lips"}),
        ((10, 5, 5), ("lips",), {"lips"}),  # all finished: nothing to refuse
        ((0, 0, 0), ("torso", "head"), {"head", "torso"}),
    ],
)
def test_chosen_stages(stands, wanted, expected, tmp_path):
    assert plan.chosen(STAGES, stands, wanted, tmp_path) == expected


@pytest.mark.parametrize(
    "stands, wanted, message",
    [
        ((0, 0, 0), ("lips",), "needs stage head first, which stands at step 0 of 10.*--stages=head,lips"),
        ((4, 0, 0), ("torso",), "needs stage head first, which stands at step 4 of 10"),
        ((10, 2, 0), ("torso",), "needs stage lips first, which stands at step 2 of 5"),
        ((10, 0, 5), ("lips",), "stage lips cannot be trained any more.*torso, which follows it"),
        ((0, 0, 0), ("eyes",), "--stages names 'eyes', but the stages with steps to train are head, lips, torso"),
    ],
)
def test_impossible_choices_are_refused(stands, wanted, message, tmp_path):
    with pytest.raises(UserError, match=message):
        plan.chosen(STAGES, stands, wanted, tmp_path)


def test_the_plan_says_what_is_done_and_what_comes():
    assert plan.in_words(STAGES, (10, 2, 0), {"lips", "torso"}) == (
        "stages: head finished (10 steps), lips next (from step 2 of 5), torso then (5 steps)"
    )
    assert plan.in_words(STAGES, (0, 0, 0), {"head"}).endswith("lips not now (5 steps), torso not now (5 steps)")


def leaves(variables):
    return [np.asarray(x) for x in jax.tree.leaves(variables)]


@pytest.mark.heavy
def test_one_stage_at_a_time_gives_what_all_at_once_give(tmp_path, capsys):
    config, clip = stub_config("staged", 10), FakeClip()
    together = loop.train(config, clip, tmp_path / "a")
    head = loop.train(config, clip, tmp_path / "b", stages=("head",))
    assert plan.finished(config, clip.info, tmp_path / "b") == ["head"]
    with pytest.raises(UserError, match="needs stage head first"):
        loop.train(config, clip, tmp_path / "c", stages=("torso",))
    capsys.readouterr()
    both = loop.train(config, clip, tmp_path / "b", stages=("torso",))
    assert "head finished (10 steps), torso next (10 steps)" in capsys.readouterr().out
    assert plan.finished(config, clip.info, tmp_path / "b") == ["head", "torso"]
    assert all(np.array_equal(x, y) for x, y in zip(leaves(together), leaves(both)))
    assert not all(np.array_equal(x, y) for x, y in zip(leaves(head), leaves(both)))


# -- the stages of the hash-grid systems


@pytest.fixture(scope="module")
def model():
    config = tiny()
    config.train.lips.patch = 8
    config.model.train_camera = True
    return Model(config, info())


@pytest.fixture(scope="module")
def variables(model):
    """Parameters with something to see in head and torso."""

    def grow(path, p):
        size = {"tables": 1e4, "kernel_1": 3.0}.get(path[-1].key, 1.0)
        return p * size

    v = fresh.whole_of(model)
    return v.replace(params=jax.tree_util.tree_map_with_path(grow, v.params))


@pytest.fixture(scope="module")
def render(model):
    return jax.jit(model.render, static_argnums=4)


def clock(stage, progress=0.5):
    return Clock(jnp.int32(8), jnp.float32(progress), stage)


def patches(n=2, p=8, sampler="patch", frames=(3,)):
    """n x n (lips) or n (patch) squares of p x p pixels."""
    count = n * n if sampler == "lips" else n
    data = batch(frames, rays=count * p * p)
    return data.replace(patches=sampler if sampler in ("lips", "patch") else None)


def test_stages_follow_the_dossier(model):
    head, lips, torso = model.stages()
    assert [s.name for s in (head, lips, torso)] == ["head", "lips", "torso"]
    for name, rate in head.rates.items():
        start = lips.rates[name].lr / rate.lr
        assert start == pytest.approx(0.05**0.8) and start * lips.rates[name].final_factor == pytest.approx(0.05)
    assert set(torso.rates) == {"torso", "torso_tables"}
    assert (torso.target, torso.background, lips.samplers) == ("torso", "plate", ("lips", "patch"))
    at = [lips.weights["amb_aud"](s) for s in (0.0, 1.0)]
    assert at == pytest.approx([0.8e-4, 1e-4])  # the schedule of the head goes on


@pytest.mark.heavy
@pytest.mark.parametrize("sampler, weight", [("lips", 0.01), ("patch", 0.1)])
def test_lips_terms_equal_their_formulas(model, render, variables, sampler, weight):
    data = patches(sampler=sampler)
    drawn = render(variables, data, KEY, clock("lips"), True)
    terms = jax.jit(model.loss_terms)(variables, drawn, data, KEY, clock("lips"))
    assert set(terms) == set(model.stages()[1].weights)
    shown = np.asarray(picture(drawn, data.background), np.float64)[0]
    target = np.asarray(data.target, np.float64)[0]
    square = ((shown - target) ** 2).mean(-1)
    inside = np.asarray(data.masks["lips"])[0]
    assert 0 < inside.mean() < 1
    expected = square[inside].mean() if sampler == "lips" else square.mean()
    np.testing.assert_allclose(terms["mse"], expected, rtol=1e-4)
    if sampler == "lips":  # 2 x 2 tiles of 8 x 8, row by row, are one picture of 16 x 16

        def whole(x):
            tiles = x.reshape(2, 2, 8, 8, 3)
            return np.concatenate([np.concatenate(list(row), 1) for row in tiles], 0)[None]
    else:

        def whole(x):
            return x.reshape(-1, 8, 8, 3)

    pair = (jnp.asarray(whole(x), jnp.float32) for x in (shown, target))
    np.testing.assert_allclose(terms["perceptual"], weight * float(model.perceptual(*pair).mean()), rtol=1e-3)


@pytest.mark.heavy
def test_each_stage_moves_only_its_own_parameters(model, variables):
    data = patches()
    for stage in model.stages():
        at = clock(stage.name)

        def loss(params, at=at):
            v = variables.replace(params=params)
            render = model.render(v, data, KEY, at, True)
            return sum(model.loss_terms(v, render, data, KEY, at).values())

        grads = jax.jit(jax.grad(loss))(variables.params)
        moved = jax.tree.map(lambda g: bool(np.any(g)), grads)
        assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
        torso, head = moved.pop("torso"), moved
        assert any(jax.tree.leaves(torso)) == (stage.name == "torso")
        assert any(jax.tree.leaves(head)) == (stage.name != "torso")
        if stage.name != "torso":
            assert any(jax.tree.leaves(head["camera_rotation"])) and any(jax.tree.leaves(head["camera_translation"]))


@pytest.mark.heavy
def test_the_picture_of_the_torso_stage_is_head_over_torso_over_plate(render, variables):
    data = batch((3, 5), rays=200)
    head = render(variables, data, None, clock("head"), False)
    torso = render(variables, data.replace(frame=jnp.zeros_like(data.frame)), None, clock("torso"), True)
    both = render(variables, data, None, clock("torso"), False)
    plate = np.asarray(data.background, np.float64)
    under = np.asarray(torso.rgb) + (1 - np.asarray(torso.alpha)) * plate
    want = np.asarray(head.rgb) + (1 - np.asarray(head.alpha)) * under
    got = np.asarray(both.rgb) + (1 - np.asarray(both.alpha)) * plate
    np.testing.assert_allclose(got, want, atol=2e-3)  # behind an opaque head no torso is evaluated
    np.testing.assert_array_equal(both.front, head.alpha)
    assert 0.05 < np.mean(head.alpha) < 0.95 and 0.05 < np.mean(torso.alpha)


@pytest.mark.heavy
def test_torso_terms(model, render, variables):
    data = batch()
    drawn = render(variables, data, KEY, clock("torso"), True)
    terms = model.loss_terms(variables, drawn, data, KEY, clock("torso"))
    shown = np.asarray(picture(drawn, data.background))
    np.testing.assert_allclose(terms["mse"], np.mean((shown - np.asarray(data.target)) ** 2), rtol=1e-5)
    anchors = variables.params["torso"]["anchors"] * jnp.array([1, 1, 1, 1.5])
    moved = variables.replace(params=variables.params | {"torso": variables.params["torso"] | {"anchors": anchors}})
    assert model.loss_terms(moved, drawn, data, KEY, clock("torso"))["anchors"] == pytest.approx(0.25)


def test_a_camera_correction_moves_the_training_rays_alone(model, variables):
    data = batch((3,), rays=50)
    o, d, _ = model._rays(variables.params, data, True)
    degrees = np.array([1.0, -2.0, 3.0])
    params = dict(variables.params)
    params["camera_rotation"] = {"embedding": params["camera_rotation"]["embedding"].at[3].set(degrees)}
    params["camera_translation"] = {"embedding": params["camera_translation"]["embedding"].at[3].set(0.1)}
    moved_o, moved_d, _ = model._rays(params, data, True)
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    rx = np.array([[1, 0, 0], [0, c[0], -s[0]], [0, s[0], c[0]]])
    ry = np.array([[c[1], 0, s[1]], [0, 1, 0], [-s[1], 0, c[1]]])
    rz = np.array([[c[2], -s[2], 0], [s[2], c[2], 0], [0, 0, 1]])
    np.testing.assert_allclose(moved_d, np.asarray(d) @ (rx @ ry @ rz), atol=1e-5)
    np.testing.assert_allclose(moved_o, np.asarray(o) + 0.1, atol=1e-6)
    still = model._rays(params, data, False)
    np.testing.assert_array_equal(still[0], o)
    np.testing.assert_array_equal(still[1], d)
    other = model._rays(params, data.replace(frame=data.frame + 1), True)
    np.testing.assert_array_equal(other[1], d)


def test_maps_show_depth_ambient_and_uncertainty(model, render, variables):
    data = batch((3,), rays=64)
    maps = jax.jit(lambda v, b: model.maps(v, b, clock("torso")))(variables, data)
    assert set(maps) == {"depth", "uncertainty", "audio_norm", "eye_weight"}
    assert all(value.shape == (1, 64) for value in maps.values())
    assert np.all(np.asarray(maps["uncertainty"]) >= 0) and np.ptp(np.asarray(maps["audio_norm"])) > 0
    seen = np.isfinite(maps["depth"])
    alpha = np.asarray(render(variables, data, None, clock("head"), False).alpha)[..., 0]
    assert np.array_equal(seen, alpha >= 0.5) or np.mean(seen == (alpha >= 0.5)) > 0.95  # bfloat16 pictures


def test_a_stages_seed_repeats_it_with_other_numbers_from_the_same_stage_before():
    key, stage = jax.random.key(0), STAGES[1]
    keys = [jax.random.key_data(loop.stage_key(key, s)) for s in (stage, dataclasses.replace(stage, seed=1), stage)]
    assert np.array_equal(keys[0], keys[2]) and not np.array_equal(keys[0], keys[1])
