"""What makes an avatar speak: many frames in one call, a stage that only listens, rare frames, named randomness."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import er_nerf, rad_nerf
from tests.er_nerf_test import RAYS, SIZE, A, batch, changed, info, tiny
from tests.stubs.clip import FakeClip
from tkjax.data import batches, sampling
from tkjax.data.batches import MOST_REPEATS, frames_of_step, name_number, shown_more
from tkjax.fields.audio import Conv
from tkjax.models import er_nerf as system
from tkjax.models.hash_head import SPEECH
from tkjax.train import plan
from tkjax.train.step import make_loss
from tkjax.types import Clock

KEY = jax.random.key(3)


def talking(**head):
    c = tiny()
    c.train.speech.steps, c.train.speech.frames = 5, 4
    c.train.head.update(dict(lambda_speech=1e-2) | head)
    return c


def with_lips(data, seed=0):
    shape = np.random.default_rng(seed).normal(size=(data.frame.shape[0], 6)).astype(np.float32)
    return data.replace(truth={"lip_shape": jnp.asarray(shape)})


@pytest.fixture(scope="module")
def model():
    return system.Model(talking(), info())


@pytest.fixture(scope="module")
def variables(model):
    return model.init(jax.random.key(0))


def gradients(model, stage, variables, data, step=16):
    trained = jax.tree.map(lambda group: group in stage.rates, model.labels(variables.params))
    clock = Clock(jnp.int32(step), jnp.float32(0.5), stage.name)
    run = jax.jit(jax.grad(make_loss(model, stage, trained), has_aux=True))
    return run(variables.params, variables.state, clock, data, KEY)


@pytest.mark.heavy
def test_many_frames_in_one_call_give_the_mean_of_each_frame_alone(model, variables):
    head = next(s for s in model.stages() if s.name == "head")
    together, (_, metrics) = gradients(model, head, variables, with_lips(batch((3, 5, 8))))
    parts = [
        gradients(model, head, variables, jax.tree.map(lambda v, i=i: v[i : i + 1], with_lips(batch((3, 5, 8)))))
        for i in range(3)
    ]
    mean = jax.tree.map(lambda *g: sum(g) / 3, *[g for g, _ in parts])
    for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(mean), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6 + 1e-4 * float(np.abs(b).max()))
    assert float(metrics["mse"]) == pytest.approx(np.mean([float(m["mse"]) for _, (_, m) in parts]), rel=1e-5)


@pytest.mark.heavy
def test_the_speech_stage_moves_the_audio_networks_and_draws_nothing(model, variables):
    first = model.stages()[0]
    assert (first.name, first.optional, first.frames) == (SPEECH, True, 4)
    grads, (terms, _) = gradients(model, first, variables, with_lips(batch((3, 5), rays=1)))
    moved = {k for k, g in grads.items() if any(float(jnp.abs(x).max()) > 0 for x in jax.tree.leaves(g))}
    assert moved == {"audio_net", "audio_attention"} and set(terms) == {"speech"}
    picture = model.render(variables, batch((3,)), KEY, Clock(jnp.int32(0), jnp.float32(0), SPEECH), True)
    assert float(jnp.abs(picture.rgb).max()) == float(jnp.abs(picture.alpha).max()) == 0


@pytest.mark.heavy
def test_the_speech_term_is_the_mean_square_of_the_codes_first_numbers_against_the_lips(model, variables):
    data = with_lips(batch((3, 5)))
    code = np.asarray(model._apply(variables.params, "audio_code", data.signals["sound"]))
    want = np.mean((code[:, :6] - np.asarray(data.truth["lip_shape"])) ** 2)
    assert float(model.speech_term(variables, data, None)) == pytest.approx(want, rel=1e-5)
    noisy = [float(model.speech_term(variables, data, jax.random.key(k))) for k in (0, 0, 1)]
    assert noisy[0] == noisy[1] != noisy[2]


@pytest.mark.heavy
def test_rays_off_the_lower_face_hear_the_next_frame_of_the_batch(model, variables):
    data, clock = batch((3, 5)), Clock(jnp.int32(1), jnp.float32(0.5), "head")
    lower = data.pixels_px[..., 1] > SIZE / 2
    data = data.replace(masks=data.masks | {"lower_face": lower})
    data = changed(data, "sound", 100 * data.signals["sound"])
    mixed = system.Model(talking(mix_sound=True), info())
    louder = {"planes": 1e4, "audio_channel_attention": 5.0, "density": 5.0}  # at their start nothing is heard
    params = {k: jax.tree.map(lambda p, k=k: louder.get(k, 1.0) * p, v) for k, v in variables.params.items()}
    variables = variables.replace(params=params)

    def colours(m, data):
        return np.asarray(jax.jit(lambda v, d: m.render(v, d, KEY, clock, True).rgb)(variables, data))

    own, others = colours(model, data), colours(model, changed(data, "sound", data.signals["sound"][::-1]))
    assert np.abs(own - others).max() > 1e-3
    np.testing.assert_allclose(colours(mixed, data), np.where(lower[..., None], own, others), atol=1e-5)


@pytest.mark.heavy
def test_a_frame_alone_in_its_batch_hears_itself(model, variables):
    data, clock = batch((3,)), Clock(jnp.int32(1), jnp.float32(0.5), "head")
    data = data.replace(masks=data.masks | {"lower_face": jnp.zeros((1, RAYS), bool)})
    mixed = system.Model(talking(mix_sound=True), info())
    alone = (m.render(variables, data, KEY, clock, True).rgb for m in (model, mixed))
    np.testing.assert_array_equal(*alone)


@pytest.mark.parametrize("configs", [er_nerf, rad_nerf])
def test_full_has_neither_a_speech_stage_nor_its_term(configs):
    c = configs.get_config("full")
    assert c.train.speech.steps == 0 and c.train.head.lambda_speech == 0 and c.train.head.frames == 0


def test_the_head_can_be_trained_without_the_stage_that_listens(model, tmp_path):
    stages = model.stages()
    assert plan.chosen(stages, [0] * len(stages), ["head"], tmp_path) == {"head"}
    assert plan.chosen(stages, [0] * len(stages), None, tmp_path) == {s.name for s in stages}


def test_what_a_stage_draws_at_random_hangs_on_its_name_alone():
    frames = np.arange(40)
    assert np.array_equal(frames_of_step(frames, 0, "head", 3, 8), frames_of_step(frames, 0, "head", 3, 8))
    assert not np.array_equal(frames_of_step(frames, 0, "head", 3, 8), frames_of_step(frames, 0, "lips", 3, 8))
    assert len({name_number(n) for n in ("init", "speech", "head", "lips", "torso")}) == 5


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 60), st.integers(0, 60), st.floats(0.0, 0.9))
def test_rare_frames_are_repeated_until_they_are_the_share_asked_for_and_no_frame_is_lost(n, closed, share):
    closed = min(n, closed)
    rare = np.zeros(n + 5, bool)
    rare[5 : 5 + closed] = True
    out = batches.repeated(np.arange(5, n + 5), rare, share)
    count = np.bincount(out, minlength=n + 5)[5:]
    assert set(out) == set(range(5, n + 5)) and np.all(count[closed:] == 1)
    assert closed == 0 or count[:closed].min() == count[:closed].max() <= MOST_REPEATS
    if 0 < closed < n and share <= 0.3 and count[0] < MOST_REPEATS:
        assert count[:closed].sum() / len(out) > share - 0.1 - closed / n


def test_blinks_and_wide_mouths_are_both_shown_more_and_nothing_where_no_share_is_asked_for():
    clip = FakeClip(n_frames=100, height=8, width=8)
    clip.eye_closed, clip.truth = np.zeros(100), {"lip_shape": np.zeros((100, 6))}
    clip.eye_closed[3], clip.truth["lip_shape"][7, 0] = 1.0, 2.0
    count = np.bincount(shown_more(np.arange(100), clip, 0.05), minlength=100)
    assert count[3] > 3 and count[7] > 3 and count.sum() - count[3] - count[7] == 98
    assert np.array_equal(shown_more(np.arange(100), clip, 0.0), np.arange(100))


@given(st.floats(0.2, 5.0), st.floats(-50, 50), st.floats(-3.1, 3.1))
def test_the_shape_of_the_lips_does_not_depend_on_size_place_or_roll(scale, shift, angle):
    points = np.random.default_rng(0).uniform(0, 100, (3, 68, 2))
    c, s = np.cos(angle), np.sin(angle)
    moved = scale * points @ np.array([[c, s], [-s, c]]) + shift
    np.testing.assert_allclose(sampling.lip_shape(moved), sampling.lip_shape(points), rtol=1e-9)


def test_an_opening_mouth_raises_the_inner_gap_and_nothing_above_the_lips():
    points = np.random.default_rng(0).uniform(0, 100, (1, 68, 2))
    points[:, 61:64], points[:, 65:68] = [[40, 60], [50, 60], [60, 60]], [[60, 61], [50, 61], [40, 61]]
    wide = points.copy()
    wide[:, 65:68, 1] += 10
    before, after = sampling.lip_shape(points)[0], sampling.lip_shape(wide)[0]
    assert after[0] == pytest.approx(11 * before[0]) and np.array_equal(after[1:], before[1:])


def test_standardised_columns_have_unit_variance_over_the_known_rows_and_are_finite_everywhere():
    rng = np.random.default_rng(0)
    values, known = rng.normal(3, 2, (200, 6)), np.arange(200) < 150
    values[150:] = np.nan
    out = sampling.standardised(values, known)
    np.testing.assert_allclose(out[known].std(0), 1, atol=0.05)
    assert np.all(np.isfinite(out)) and np.all(sampling.standardised(values, np.zeros(200, bool)) == 0)


@pytest.mark.heavy
@settings(deadline=None, max_examples=20)
@given(st.integers(1, 16), st.sampled_from([1, 2]), st.integers(1, 4))
def test_the_convolution_is_that_of_the_library(length, stride, features):
    x = jax.random.normal(jax.random.key(length), (3, length, A))
    ours, theirs = Conv(features, A, stride), nn.Conv(features, (3,), (stride,), padding=((1, 1),))
    params = ours.init(jax.random.key(0), x)
    np.testing.assert_allclose(ours.apply(params, x), theirs.apply(params, x), atol=1e-5)
