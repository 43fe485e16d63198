"""The ER-NeRF head: sizes, forward pass and losses against literal computations, and what must not depend on what."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import er_nerf as er_nerf_config
from tests import fresh, oracle
from tests.infos import subject_info
from tests.networks_oracle import audio_code, mlp
from tkjax import losses
from tkjax.cameras import pixel_rays
from tkjax.models import load_system
from tkjax.models.er_nerf import EXTRAS, Model
from tkjax.ops import GridSpec, field, march, sh_encode
from tkjax.render.image import picture, render_image
from tkjax.signals import SOUND
from tkjax.types import Batch, ClipFacts, Clock, Variables

SIZE, RAYS, FRAMES = 16, 40, 12
A, T, W = 6, 16, 8


def info(channels=A, steps=T, n_frames=FRAMES):
    return subject_info(n_frames, SIZE, SIZE, "logmel", channels, steps, 4, (40.0, 40.0, SIZE / 2, SIZE / 2))


def tiny(**changes):
    c = er_nerf_config.get_config("smoke")
    c.model.update(
        dict(grid_levels=4, grid_log2_entries=8, code_rows=16, occupancy_side=16, chunk=64, samples=8, waves=2)
        | {"picture_precision": "float32"}
    )
    c.model.update(changes)
    return c


def pose(angle):
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, 0, s, 3.3 * s], [0, 1, 0, 0.05], [-s, 0, c, 3.3 * c], [0, 0, 0, 1]], np.float32)


def batch(frames=(3,), seed=0, rays=RAYS):
    parts = []
    for frame in frames:
        rng = np.random.default_rng([seed, frame])
        pixels = rng.uniform(0, SIZE, (rays, 2))
        near = np.hypot(*(pixels - SIZE / 2).T) < SIZE / 4
        parts.append(
            dict(
                frame=np.int32(frame), cam_to_world=pose(0.05 * frame), intrinsics=np.array(info().intrinsics),
                pixels_px=pixels, background=rng.uniform(size=(rays, 3)), masks={"face": near, "lips": near},
                signals={SOUND: rng.normal(size=(W, T, A)), "eye_closed": np.full((1, 1, 1), 0.3)},
                target=np.where(near[:, None], [0.9, 0.6, 0.4], 0.2), label=near.astype(np.uint8),
            )
        )  # fmt: skip
    stacked = jax.tree.map(lambda *values: np.stack(values), *parts)
    return Batch(**jax.tree.map(lambda v: jnp.asarray(v, jnp.float32 if v.dtype == np.float64 else v.dtype), stacked))


def changed(data, name, values):
    return data.replace(signals=data.signals | {name: values})


def total(model):
    """A jitted value and gradient of the whole loss, as a trainer forms it."""
    weights = model.stages()[0].weights

    @jax.jit
    def run(variables, data, key, clock):
        def loss(params):
            v = variables.replace(params=params)
            render = model.render(v, data, key, clock, True)
            terms = model.loss_terms(v, render, data, key, clock)
            values = {k: w(clock.progress) if callable(w) else w for k, w in weights.items()}
            assert set(values) == set(terms)
            return sum(values[k] * terms[k] for k in terms), (terms, render)

        return jax.value_and_grad(loss, has_aux=True)(variables.params)

    return run


@pytest.fixture(scope="module")
def model():
    return Model(tiny(), info())


@pytest.fixture(scope="module")
def run(model):
    return total(model)


@pytest.fixture(scope="module")
def variables(model):
    """Parameters away from their start, where tables are nearly zero and nothing is opaque."""
    v = fresh.whole_of(model)
    params = jax.tree_util.tree_map_with_path(
        lambda path, p: p * (1e4 if path[0].key == "planes" else 5.0 if path[0].key == "density" else 1.0), v.params
    )
    return v.replace(params=params)


@pytest.fixture(scope="module")
def draw(model):
    return jax.jit(lambda v, data: model.render(v, data, None, CLOCK, False).replace(aux={}))


SPEC = GridSpec(2, 4, 1, 64, 512, 8)  # of `tiny`
CLOCK = Clock(jnp.int32(16), jnp.float32(0.5))  # a step with a perturbation term
KEY = jax.random.key(7)


# -- sizes and settings


@pytest.mark.parametrize("channels, steps, count", [(29, 16, 587_989), (44, 16, 589_429), (1024, 2, 683_509)])
def test_parameter_counts_are_those_of_the_released_models(channels, steps, count):
    model = Model(er_nerf_config.get_config("full"), info(channels, steps))
    params = jax.eval_shape(model.init, jax.random.key(0)).params
    sizes = {name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in params.items()}
    by_part = {name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in model.parts(params).items()}
    assert by_part == {"head": count, "torso": 1_199_692}
    assert (sizes["planes"], sizes["codes"]) == (490_752, 40_000)
    mlps = ("audio_channel_attention", "eye_attention", "density", "colour", "uncertainty")
    assert sum(sizes[name] for name in mlps) == 24_368


def test_a_long_clip_gets_a_code_per_frame():
    params = jax.eval_shape(Model(tiny(), info(n_frames=12_345)).init, jax.random.key(0)).params
    assert params["codes"]["embedding"].shape == (12_345, 4)


@pytest.mark.heavy
def test_initial_distributions():
    model = Model(er_nerf_config.get_config("full"), info(80))
    params = fresh.part_of(model, 1, "planes", "codes", "density", "audio_net")
    tables, codes = params["planes"]["tables"], params["codes"]["embedding"]
    assert np.abs(tables).max() <= 1e-4 and np.std(tables) == pytest.approx(1e-4 / 3**0.5, rel=0.01)
    assert np.std(codes) == pytest.approx(0.1, rel=0.02)
    first = params["density"]["kernel_0"]
    assert np.abs(first).max() <= 69**-0.5 and np.std(first) == pytest.approx((3 * 69) ** -0.5, rel=0.05)
    bias = params["audio_net"]["convs_0"]["bias"]
    assert 0 < np.abs(bias).max() <= (3 * 80) ** -0.5


def test_full_is_the_dossiers_training():
    config = er_nerf_config.get_config("full")
    stage = Model(config, info()).stages()[0]
    assert (stage.steps, stage.rays, stage.refresh_every, stage.background) == (100_000, 65_536, 16, "torso")
    assert (stage.ema.decay, stage.ema.every) == (0.95, 1000)
    assert (config.model.occupancy_side, config.model.samples, config.model.waves) == (128, 16, 1)
    assert config.model.dt == pytest.approx(0.0270632939, abs=1e-9)
    rates = {k: (r.lr, r.decay, r.lr * r.final_factor) for k, r in stage.rates.items()}
    assert rates == {
        "tables": (1e-2, 0.01, 0.005),
        "net": (1e-3, 0.0, 5e-4),
        "audio": (1e-3, 0.0, 5e-4),
        "audio_attention": (5e-3, 1e-4, 2.5e-3),
    }
    assert all((r.b1, r.b2, r.eps) == (0.0, 0.99, 1e-8) for r in stage.rates.values())
    at = {k: w(0.5) if callable(w) else w for k, w in stage.weights.items()}
    want = {"mse": 1, "unc_nll": 0.5, "unc_bg": 5e-4, "entropy": 1e-4}
    assert at == pytest.approx(want | {"amb_aud": 5e-5, "amb_eye": 5e-5, "perturb": 5e-6})


@pytest.mark.heavy
def test_labels_name_a_rate_for_every_parameter(model, variables):
    labels = model.labels(variables.params)
    assert set(jax.tree.leaves(labels)) == {name for stage in model.stages() for name in stage.rates}
    assert labels["planes"]["tables"] == "tables"
    assert set(jax.tree.leaves(labels["audio_attention"])) == {"audio_attention"}
    assert jax.tree.structure(labels) == jax.tree.structure(variables.params)


def test_the_system_is_found_by_name_and_unknown_variants_are_refused():
    assert load_system("er_nerf") is Model
    with pytest.raises(ValueError, match="has no variant"):
        er_nerf_config.get_config("gpu")
    with pytest.raises(ValueError, match="not a multiple of"):
        Model(tiny(waves=3), info())


# -- forward pass


@pytest.mark.parametrize("steps", [pytest.param(2, marks=pytest.mark.heavy), 16])
def test_audio_code_equals_the_literal_network(steps):
    model = Model(tiny(), info(steps=steps))
    params = fresh.part_of(model, 2, "audio")
    audio = np.random.default_rng(0).normal(size=(1, W, steps, A)).astype(np.float32)
    got = model.params.apply({"params": params}, jnp.asarray(audio), method="audio_code")[0]
    np.testing.assert_allclose(got, audio_code(params, audio[0]), atol=1e-5)


def literal(spec, params, x, d, audio, eye, code):
    """sigma, rgb, u, |v|, w at one point in the originals' axes, literally."""
    planes = np.array([[(x[[0, 1]] + 1) / 2, (x[[1, 2]] + 1) / 2, (x[[0, 2]] + 1) / 2]])
    f = oracle.grid_encode(
        planes, np.asarray(params["planes"]["tables"], np.float64), levels=spec.levels, base=spec.base,
        finest=spec.finest, log2_entries=spec.log2_entries, kind="hash",
    ).reshape(-1)  # fmt: skip
    v = mlp(params["audio_channel_attention"], f)
    w = 1 / (1 + np.exp(-mlp(params["eye_attention"], f)))
    h = mlp(params["density"], np.concatenate([f, v * audio, eye * w]))
    sh = np.asarray(sh_encode(jnp.asarray(d)), np.float64)
    colour = mlp(params["colour"], np.concatenate([sh, h[1:], code]))
    rgb = 1 / (1 + np.exp(-colour)) * 1.002 - 0.001
    u = np.log1p(np.exp(mlp(params["uncertainty"], f)))
    return np.exp(h[0]), rgb, u[0], np.linalg.norm(v), w[0]


@pytest.mark.heavy
def test_render_equals_the_literal_field_marched_and_composited(model, variables, run, draw):
    m, data = model.config.model, batch(rays=RAYS)
    o, d = (np.asarray(v[0])[:, [1, 2, 0]] for v in pixel_rays(data.cam_to_world, data.intrinsics, data.pixels_px))
    settings = dict(side=m.occupancy_side, box=model.box, dt=m.dt, t_min=m.t_min, samples=m.samples)
    marched = march(jnp.asarray(o), jnp.asarray(d), variables.state["bits"], jnp.zeros(RAYS), **settings)
    code = np.asarray(variables.params["codes"]["embedding"][0], np.float64)  # any evaluation uses row 0
    audio = audio_code(variables.params, np.asarray(data.signals[SOUND][0]))
    got, opaque = draw(variables, data), 0
    for r in range(0, RAYS, 4):
        n = int(marched.count[r])
        rows = [
            literal(SPEC, variables.params, o[r] + float(t) * d[r], d[r], audio, 0.3, code) for t in marched.t[r, :n]
        ]
        sigma = np.array([row[0] for row in rows])
        rgb = np.array([row[1] for row in rows]).reshape(n, 3)
        t = np.asarray(marched.t[r, :n], np.float64)
        sums, _, ws, depth = oracle.composite(sigma, [True] * n, t, rgb, np.zeros((n, 1)), m.dt)
        np.testing.assert_allclose(got.rgb[0, r], sums, atol=2e-4)
        np.testing.assert_allclose(got.alpha[0, r, 0], ws, atol=2e-4)
        z = -np.asarray(data.cam_to_world[0, :3, 2])[[1, 2, 0]] @ d[r]
        if ws > 0.51:
            np.testing.assert_allclose(got.depth[0, r, 0], depth / ws * z, atol=1e-3)
            opaque += 1
        elif ws < 0.49:
            assert np.isnan(got.depth[0, r, 0])
    assert opaque >= 2


@pytest.mark.heavy
@pytest.mark.parametrize("sign, end", [(1, 1.001), (-1, -0.001)])
def test_colours_end_a_thousandth_outside_their_range(variables, draw, sign, end):
    """The originals' padded sigmoid: what it gives where its input is as large as can be."""
    colour = variables.params["colour"]
    last = max(name for name in colour if name.startswith("kernel"))
    far = colour | {last: jnp.full_like(colour[last], 1e6 * sign)}
    got = draw(variables.replace(params=variables.params | {"colour": far}), batch(rays=RAYS))
    np.testing.assert_allclose(got.rgb, np.broadcast_to(end * got.alpha, got.rgb.shape), atol=2e-6)
    assert np.asarray(got.alpha).max() > 0.5


@pytest.mark.heavy
def test_waves_change_nothing(variables, run):
    """A ray that is opaque after one wave skips the next: same picture, terms and gradients."""
    data = batch((3, 5))
    (value, (terms, render)), grads = run(variables, data, KEY, CLOCK)
    single = Model(tiny(waves=1), info())
    (value_1, (terms_1, render_1)), grads_1 = total(single)(variables, data, KEY, CLOCK)
    np.testing.assert_allclose(value, value_1, rtol=1e-5)
    assert render.aux["metrics"]["samples_per_ray"] < render_1.aux["metrics"]["samples_per_ray"]
    for name in terms:
        if name != "perturb":  # a mean over the samples that were evaluated
            np.testing.assert_allclose(terms[name], terms_1[name], rtol=1e-4)
    scale = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-2, atol=1e-4 * scale), grads, grads_1)


@pytest.mark.heavy
def test_frames_of_a_batch_do_not_meet(variables, run):
    """A batch of two frames is two batches of one frame: any split over devices gives the same gradient."""
    (value, (terms, render)), grads = run(variables, batch((3, 5)), KEY, CLOCK)
    parts = [run(variables, batch((frame,)), KEY, CLOCK) for frame in (3, 5)]
    np.testing.assert_allclose(value, np.mean([p[0][0] for p in parts]), rtol=1e-5)
    for name in terms:
        np.testing.assert_allclose(terms[name], np.mean([p[0][1][0][name] for p in parts]), rtol=1e-4)
    for i, part in enumerate(parts):
        np.testing.assert_allclose(render.rgb[i], part[0][1][1].rgb[0], atol=1e-5)
    mean = jax.tree.map(lambda a, b: (a + b) / 2, parts[0][1], parts[1][1])
    scale = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(mean))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-5 * scale), grads, mean)


@pytest.mark.heavy
def test_a_render_repeats_bit_for_bit(variables, run):
    first, second = (run(variables, batch((3, 5)), KEY, CLOCK) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, second)


# -- losses


@pytest.mark.heavy
def test_loss_terms_equal_their_formulas(variables, run):
    data = batch((3, 5))
    for progress, step in ((0.0, 0), (0.5, 16), (1.0, 33)):
        clock = Clock(jnp.int32(step), jnp.float32(progress))
        (_, (terms, render)), _ = run(variables, data, KEY, clock)
        want = {name: [] for name in terms if name != "perturb"}
        for b in range(2):
            rgb, alpha = np.asarray(render.rgb[b], np.float64), np.asarray(render.alpha[b], np.float64)
            predicted = np.clip(rgb + (1 - alpha) * np.asarray(data.background[b]), 0, 1)
            target, face = np.asarray(data.target[b], np.float64), np.asarray(data.masks["face"][b], np.float64)
            u, aud, eye = (
                np.asarray(render.aux[k][b], np.float64) for k in ("uncertainty", "audio_norm", "eye_weight")
            )
            softmax = np.exp(u - u.max()) / np.exp(u - u.max()).sum()
            weight = 0.2 + 0.8 * np.clip((1 - progress) + progress * len(u) * softmax, 0, 10)
            want["mse"].append(np.mean(((predicted - target) ** 2).mean(-1) * weight))
            error, beta = np.linalg.norm(predicted - target, axis=-1), 1 + u
            want["unc_nll"].append(np.mean(face * (error / (2 * beta**2) + np.log(beta) ** 2 / 2)))
            want["unc_bg"].append(np.mean((1 - face) * u))
            p = np.clip(alpha[:, 0], 1e-5, 1 - 1e-5)
            want["entropy"].append(np.mean(-p * np.log2(p) - (1 - p) * np.log2(1 - p)))
            want["amb_aud"].append(np.mean(aud * (1 - face)))
            want["amb_eye"].append(np.mean(eye / 8 * aud * face))
        for name, values in want.items():
            np.testing.assert_allclose(terms[name], np.mean(values), rtol=2e-4, err_msg=name)
        assert (terms["perturb"] > 0) == (step % 16 == 0)


@pytest.mark.heavy
def test_the_lips_stage_takes_every_sampler_and_judges_pictures_only(model, variables, run, monkeypatch):
    """`--config.train.lips.samplers=lips,rays`: scattered rays make no picture for the perceptual term."""
    monkeypatch.setattr(Model, "perceptual_term", lambda *_: jnp.float32(2))
    data = batch((3, 5))
    render = run(variables, data, KEY, CLOCK)[0][1][1]
    clock = Clock(jnp.int32(3), jnp.float32(0.5), "lips")
    for sampler, weight in (("lips", 0.01), ("patch", 0.1), ("rays", None), ("close", None), ("focus", None)):
        terms = model.loss_terms(
            variables, render, data.replace(patches=sampler if sampler in ("lips", "patch") else None), KEY, clock
        )
        assert ("perceptual" in terms) == (weight is not None), sampler
        assert weight is None or float(terms["perceptual"]) == pytest.approx(2 * weight)


@pytest.mark.heavy
def test_perturbation_is_the_change_of_the_field_nearby(model, variables, run):
    """Against the field itself, at the samples that were evaluated and the same displacements."""
    data = batch((3, 5))
    (_, (terms, render)), _ = run(variables, data, KEY, CLOCK)
    o, d, t, evaluated = (np.asarray(v) for v in render.aux["rays"])
    means = []
    for b, frame in enumerate((3, 5)):
        key = jax.random.fold_in(jax.random.fold_in(KEY, 2), frame)
        shift = np.asarray(jax.random.uniform(key, (RAYS, 8, 3), minval=-1e-3, maxval=1e-3))
        points = []
        for r in range(RAYS):
            ray = b * RAYS + r
            points += [(o[ray] + t[ray, s] * d[ray], shift[r, s]) for s in range(evaluated[ray])]
        here, offset = (np.array(v, np.float32) for v in zip(*points))
        near, far = (
            np.asarray(field(model.program.select(*EXTRAS), jnp.asarray(x), {}, variables.params))
            for x in (here, here + offset)
        )
        means.append(np.sum((near - far) ** 2, -1).mean())
    np.testing.assert_allclose(terms["perturb"], np.mean(means), rtol=1e-3)


def test_known_loss_values():
    """er-nerf dossier §11."""
    u = jnp.array([[0.2, 0.4, 0.6, 1.2]])
    want = [0.848775, 0.903855, 0.971129, 1.276241]
    np.testing.assert_allclose(losses.uncertainty_weight(u, jnp.float32(0.5))[0], want, atol=1e-6)
    assert float(losses.uncertainty_nll(jnp.float32(0.3), jnp.float32(0.4))) == pytest.approx(0.133137, abs=1e-6)
    assert float(losses.binary_entropy_bits(jnp.float32(0.85))) == pytest.approx(0.609840, abs=1e-6)


def test_norm_and_entropy_have_finite_gradients_at_their_edges():
    assert float(losses.safe_norm(jnp.array([3.0, 4.0]))) == 5.0
    np.testing.assert_array_equal(jax.grad(lambda x: losses.safe_norm(x))(jnp.zeros(3)), 0.0)
    for p in (0.0, 1.0):
        assert np.isfinite(jax.grad(losses.binary_entropy_bits)(jnp.float32(p)))
        assert 0 <= losses.binary_entropy_bits(jnp.float32(p)) < 1e-3


# -- gradients


def test_every_group_has_a_finite_gradient_that_is_not_zero(variables, run):
    _, grads = run(variables, batch((3, 5)), KEY, CLOCK)
    for name, tree in grads.items():
        leaves = jax.tree.leaves(tree)
        if name == "torso":  # another stage's
            assert not any(np.any(g) for g in leaves)
            continue
        assert all(np.isfinite(g).all() for g in leaves), name
        assert any(np.any(g) for g in leaves), name


@pytest.mark.heavy
def test_gradients_are_finite_where_the_field_is_zero(model, run):
    """Zero tables give v = 0 and a density of 1 everywhere."""
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    v = jax.tree.map(lambda like: jnp.zeros(like.shape, like.dtype), shapes)
    v = v.replace(state={"density": v.state["density"], "bits": v.state["bits"] + jnp.uint8(255)})
    (value, _), grads = run(v, batch((3, 5)), KEY, CLOCK)
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_gradients_are_finite_for_huge_densities(variables, run):
    params = variables.params | {"density": jax.tree.map(lambda p: 50 * p, variables.params["density"])}
    (value, _), grads = run(variables.replace(params=params), batch((3, 5)), KEY, CLOCK)
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_only_the_rows_of_the_batchs_frames_get_a_gradient(variables, run):
    _, grads = run(variables, batch((3, 5)), KEY, CLOCK)
    rows = np.flatnonzero(np.any(np.asarray(grads["codes"]["embedding"]), -1))
    assert rows.tolist() == [3, 5]


# -- what evaluation sees


def test_evaluation_uses_the_first_frame_code_and_training_the_frames_own(variables, run, draw):
    codes = variables.params["codes"]["embedding"]

    def moved(row):
        return variables.replace(params=variables.params | {"codes": {"embedding": codes.at[row].add(3.0)}})

    base = draw(variables, batch())
    np.testing.assert_array_equal(draw(moved(3), batch()).rgb, base.rgb)
    assert np.abs(draw(moved(0), batch()).rgb - base.rgb).max() > 1e-3
    trained = [run(v, batch((3, 5)), KEY, CLOCK)[0][1][1].rgb for v in (variables, moved(0), moved(3))]
    np.testing.assert_array_equal(trained[0], trained[1])
    assert np.abs(trained[0] - trained[2]).max() > 1e-3


def test_evaluation_needs_neither_target_nor_boxes_and_is_deterministic(variables, draw):
    data = batch().replace(target=None, label=None, masks={})
    np.testing.assert_array_equal(draw(variables, data).rgb, draw(variables, data).rgb)


def test_a_whole_image_is_its_pixels(model, variables, draw):
    data = batch().replace(pixels_px=jnp.zeros((1, 0, 2)), background=jnp.zeros((1, 0, 3)))
    image = render_image(model, variables, data, (SIZE, SIZE), chunk_rays=100)
    pixels = batch().pixels_px.at[0, :2].set(jnp.array([[2.5, 4.5], [9.5, 7.5]]))
    some = draw(variables, batch().replace(pixels_px=pixels))
    np.testing.assert_allclose(image.rgb[4, 2], some.rgb[0, 0], atol=1e-5)
    np.testing.assert_allclose(image.alpha[7, 9], some.alpha[0, 1], atol=1e-5)


def test_blink_and_sound_change_the_picture(variables, draw):
    base = draw(variables, batch())
    assert np.abs(draw(variables, changed(batch(), "eye_closed", jnp.ones((1, 1, 1, 1)))).rgb - base.rgb).max() > 1e-4
    assert np.abs(draw(variables, changed(batch(), SOUND, batch().signals[SOUND] + 1)).rgb - base.rgb).max() > 1e-5


@pytest.mark.heavy
def test_blink_noise_is_uniform_within_a_twentieth_and_per_frame():
    frames = jnp.arange(400, dtype=jnp.int32)
    data = batch((3,)).replace(
        frame=frames,
        signals={SOUND: jnp.zeros((400, W, T, A)), "eye_closed": jnp.full((400, 1, 1, 1), 0.3)},
        cam_to_world=jnp.zeros((400, 4, 4)),
    )
    many = Model(tiny(), info(n_frames=400))
    values = jax.jit(lambda data, key: many._frame_values(many.init(KEY).params, data, key, key is not None)["eye"])
    eyes = values(data, KEY)[:, 0] - 0.3
    assert -0.05 <= eyes.min() < -0.045 and 0.045 < eyes.max() <= 0.05
    assert np.std(eyes) == pytest.approx(0.05 / 3**0.5, rel=0.1)
    np.testing.assert_allclose(values(data, None), 0.3)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_rays_that_are_not_finite_draw_nothing(variables, draw, bad):
    data = batch()
    data = data.replace(pixels_px=data.pixels_px.at[0, 5].set(bad))
    got, clean = draw(variables, data), draw(variables, batch())
    assert not got.alpha[0, 5].any() and not got.rgb[0, 5].any()
    keep = np.arange(RAYS) != 5
    np.testing.assert_allclose(got.rgb[0, keep], clean.rgb[0, keep], atol=1e-6)


# -- occupancy


def test_refresh_empties_cells_without_density_and_keeps_the_picture(model, variables):
    dense_cells = variables.replace(params=variables.params)
    clock, data = CLOCK, batch()
    refresh = jax.jit(model.refresh)
    fresh = refresh(dense_cells, data, KEY, clock)
    np.testing.assert_array_equal(fresh.params["planes"]["tables"], dense_cells.params["planes"]["tables"])
    sigma = np.asarray(fresh.state["density"])
    bits = np.unpackbits(np.asarray(fresh.state["bits"]), bitorder="little").astype(bool)
    np.testing.assert_array_equal(bits, sigma > min(np.maximum(sigma, 0).mean(), 10.0))
    assert 0 < bits.mean() < 1
    again = refresh(dense_cells, data.replace(frame=jnp.array([9], jnp.int32)), KEY, clock)
    np.testing.assert_array_equal(again.state["density"], sigma)  # the frame's code and number play no part


def test_prepare_removes_what_no_training_camera_sees(model, variables):
    poses = np.stack([pose(a) for a in (-0.1, 0.1)])
    intrinsics = np.tile(np.array(info().intrinsics, np.float32), (2, 1))
    narrow = np.tile(np.array([400.0, 400.0, 8, 8], np.float32), (2, 1))
    shares = [
        float((model.prepare(variables, ClipFacts(poses, k)).state["density"] == 0).mean())
        for k in (intrinsics, narrow)
    ]
    assert 0 < shares[1] < shares[0] <= 0.75  # the box is half of the cube, and a layer of cells around it


@pytest.mark.heavy
def test_training_learns_a_disc(model, run):
    """Fifty steps of the smoke model on one colour disc."""
    import optax

    stage = model.stages()[0]
    v = fresh.whole_of(model)
    rates = {k: optax.adam(r.lr, b1=r.b1, b2=r.b2) for k, r in stage.rates.items()}
    frozen = {k: optax.set_to_zero() for k in ("torso", "torso_tables")}
    tx = optax.partition(rates | frozen, model.labels)
    opt, refresh = tx.init(v.params), jax.jit(model.refresh)
    update = jax.jit(tx.update)
    history = []
    for step in range(50):
        clock, data = Clock(jnp.int32(step), jnp.float32(step / 50)), batch((step % 3,), seed=step)
        key = jax.random.fold_in(KEY, step)
        if step % stage.refresh_every == 0:
            v = refresh(v, data, key, clock)
        (_, (_, render)), grads = run(v, data, key, clock)
        history.append(float(jnp.mean(losses.mse(picture(render, data.background), data.target))))
        updates, opt = update(grads, opt, v.params)
        v = Variables(optax.apply_updates(v.params, updates), v.state)
    assert np.mean(history[-5:]) < 0.5 * np.mean(history[:5])
