"""RAD-NeRF: pictures, losses, gradients, occupancy and training of a small one."""

import dataclasses
import functools
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import fresh, oracle
from tests import rad_nerf_oracle as literal
from tests import tiny as tiny_subject
from tests.rad_nerf_subject import (
    AMBIENT,
    KEY,
    PATCH,
    RAYS,
    SIZE,
    SPACE,
    batch,
    changed,
    clock,
    grown,
    info,
    tiny,
    total,
)
from tests.stubs.process import ROOT
from tkjax import losses
from tkjax.app import cli, options
from tkjax.cameras import pixel_rays
from tkjax.media import audio
from tkjax.models.hash_head import frame_keys
from tkjax.models.rad_nerf import Model, head_program
from tkjax.ops import field, march
from tkjax.render.image import final_clock, picture, render_image
from tkjax.signals import SOUND
from tkjax.types import Variables


@pytest.fixture(scope="module")
def model():
    return Model(tiny(), info())


@pytest.fixture(scope="module")
def variables(model):
    return grown(fresh.whole_of(model))


@pytest.fixture(scope="module")
def run(model):
    return total(model)


@pytest.fixture(scope="module")
def draw(model):
    """Pictures: (variables, batch, last stage)."""

    def call(v, data, stage=""):
        return drawn(v, data, final_clock(stage=stage))

    drawn = jax.jit(lambda v, data, now: model.render(v, data, None, now, False).replace(aux={}))
    return call


@pytest.mark.heavy
def test_labels_name_a_rate_for_every_parameter(model, variables):
    labels = model.labels(variables.params)
    assert jax.tree.structure(labels) == jax.tree.structure(variables.params)
    head, _, torso = model.stages()
    assert set(jax.tree.leaves(labels)) == set(head.rates) | set(torso.rates)
    for name in ("encoder", "encoder_ambient"):
        assert labels[name]["tables"] == "tables"


@pytest.mark.heavy
def test_every_parameter_of_the_field_is_reached(variables):
    """The audio code too, through the ambient coordinates; half of the hidden units are dead with random kernels."""
    program = head_program(SPACE, AMBIENT, 64, 4)
    rng = np.random.default_rng(0)
    points = jnp.asarray(rng.uniform(-0.9, 0.9, (400, 3)), jnp.float32)
    values = {"audio": 64, "eye": 1, "code": 4}
    rows = {name: (jnp.asarray(rng.normal(size=(1, k)), jnp.float32), None) for name, k in values.items()}
    rows["sh"] = (jnp.asarray(rng.normal(size=(400, 16)), jnp.float32), jnp.arange(400, dtype=jnp.int32))
    weights = jnp.asarray(rng.normal(size=(400, 5)), jnp.float32)

    def loss(params, audio):
        return jnp.sum(field(program, points, rows | {"audio": (audio, None)}, params) * weights)

    params = {name: variables.params[name] for name in program.params}
    grads, audio = jax.grad(loss, (0, 1))(params, rows["audio"][0])
    assert np.isfinite(audio).all() and np.all(audio != 0)
    for name, group in grads.items():
        for leaf, g in group.items():
            assert np.isfinite(g).all(), (name, leaf)
            assert np.mean(np.asarray(g) != 0) > 0.02, (name, leaf)


@pytest.mark.heavy
def test_the_picture_is_the_literal_field_marched_and_composited(model, variables, draw):
    m, data = model.config.model, batch()
    o, d = (v[0][:, [1, 2, 0]] for v in pixel_rays(data.cam_to_world, data.intrinsics, data.pixels_px))
    marched = march(o, d, variables.state["bits"], jnp.zeros(RAYS), **model._marching())
    o, d = np.asarray(o), np.asarray(d)
    code = np.float64(variables.params["codes"]["embedding"][0])  # any evaluation uses row 0
    audio = literal.audio_code(variables.params, np.asarray(data.signals[SOUND][0]))
    got, opaque = draw(variables, data), 0
    for r in range(0, RAYS, 4):
        n = int(marched.count[r])
        t = np.float64(marched.t[r, :n])
        rows = [
            literal.field(SPACE, AMBIENT, variables.params, o[r] + x * d[r], d[r], audio, np.float32(0.2), code)
            for x in t
        ]
        sigma, rgb = np.array([v[0] for v in rows]), np.array([v[1] for v in rows]).reshape(n, 3)
        sums, _, ws, depth = oracle.composite(sigma, [True] * n, t, rgb, np.zeros((n, 1)), m.dt, stop=m.picture_stop)
        np.testing.assert_allclose(got.rgb[0, r], sums, atol=3e-4)
        np.testing.assert_allclose(got.alpha[0, r, 0], ws, atol=3e-4)
        if ws > 0.51:
            z = -np.asarray(data.cam_to_world[0, :3, 2])[[1, 2, 0]] @ d[r]
            np.testing.assert_allclose(got.depth[0, r, 0], depth / ws * z, atol=1e-3)
            opaque += 1
        elif ws < 0.49:
            assert np.isnan(got.depth[0, r, 0])
    assert opaque >= 2


@pytest.mark.heavy
def test_the_fused_picture_is_the_unfused_one(model, variables):
    """All but one value in a thousand within a step of 8 bits, none beyond four; the bars of the ER-NeRF head."""
    hw = (48, 48)
    data = batch(rays=hw[0] * hw[1])
    y, x = np.mgrid[: hw[0], : hw[1]]
    pixels = (np.stack([x, y], -1).reshape(1, -1, 2) + 0.5) * SIZE / hw[0]
    data = data.replace(pixels_px=jnp.asarray(pixels, jnp.float32))
    fused = jax.jit(lambda v, b: model.render(v, b, None, final_clock(), False).replace(aux={}))(variables, data)
    unfused = jax.jit(lambda v, b: model._render_head(v, b, None, train=False).replace(aux={}))(variables, data)
    steps = 255 * np.abs(picture(fused, data.background) - picture(unfused, data.background))
    assert np.mean(np.asarray(fused.alpha) > 0.5) > 0.1
    assert np.mean(steps <= 1) >= 0.999 and steps.max() <= 4


@pytest.mark.heavy
def test_waves_change_nothing(variables, run):
    data = batch((3, 5))
    (value, (terms, render)), grads = run(variables, data, KEY, clock())
    (value_1, (terms_1, render_1)), grads_1 = total(Model(tiny(waves=1), info()))(variables, data, KEY, clock())
    np.testing.assert_allclose(value, value_1, rtol=1e-5)
    assert render.aux["metrics"]["samples_per_ray"] < render_1.aux["metrics"]["samples_per_ray"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), terms, terms_1)
    scale = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-2, atol=1e-4 * scale), grads, grads_1)


# -- losses


def numpy_terms(data, render, b, stage):
    """The terms of one frame by hand, but the perceptual one."""
    rgb, alpha = np.float64(render.rgb[b]), np.float64(render.alpha[b])
    predicted = np.clip(rgb + (1 - alpha) * np.float64(data.background[b]), 0, 1)
    square = ((predicted - np.float64(data.target[b])) ** 2).mean(-1)
    p = np.clip(alpha[:, 0], 1e-5, 1 - 1e-5)
    terms = {"entropy": np.mean(-p * np.log2(p) - (1 - p) * np.log2(1 - p)), "mse": square.mean()}
    if stage != "torso":
        terms["ambient"] = np.mean(np.float64(render.aux["ambient"][b]) * ~np.asarray(data.masks["lower_face"][b]))
    if stage == "lips" and data.patches == "lips":
        terms["mse"] = square[np.asarray(data.masks["lips"][b])].mean()
    return terms


# One program of a stage takes seconds to compile: `make check` has those of the head, with two frames a batch.
OTHER_STAGES = [pytest.param(*pair, marks=pytest.mark.heavy) for pair in (("lips", "rays"), ("lips", "lips"))]


@pytest.mark.heavy
@pytest.mark.parametrize("stage, sampler", [("head", "rays"), *OTHER_STAGES, ("torso", "rays")])
def test_loss_terms_equal_their_formulas(model, variables, run, stage, sampler):
    data = batch((3, 5), sampler=sampler)
    (value, (terms, render)), _ = run(variables, data, KEY, clock(stage))
    want = [numpy_terms(data, render, b, stage) for b in range(2)]
    if sampler == "rays":
        assert set(terms) == set(want[0])
        means = {name: np.mean([w[name] for w in want]) for name in want[0]}
        for name, mean in means.items():
            np.testing.assert_allclose(terms[name], mean, rtol=1e-4, err_msg=name)
        weight = {"head": 0.05, "lips": 0.09}.get(stage, 0)  # lambda(t): half of head, nine tenths of head and lips
        expected = means["mse"] + 1e-4 * means["entropy"] + weight * means.get("ambient", 0.0)
        np.testing.assert_allclose(value, expected, rtol=1e-4)
    else:
        assert set(terms) == {*want[0], "perceptual"}
        for name in ("entropy", "ambient"):
            np.testing.assert_allclose(terms[name], np.mean([w[name] for w in want]), rtol=1e-4, err_msg=name)
        np.testing.assert_allclose(terms["mse"], np.mean([w["mse"] for w in want]), rtol=1e-4)


@pytest.mark.heavy
def test_the_perceptual_term_sees_the_lips_as_one_picture(model, variables, run):
    data = batch((3, 5), sampler="lips")
    (_, (terms, render)), _ = run(variables, data, KEY, clock("lips"))
    row, column = (np.asarray(data.pixels_px[0, :, k] - 4.5).astype(int) for k in (1, 0))
    pictures = np.zeros((2, 2, 2 * PATCH, 2 * PATCH, 3), np.float32)
    pictures[0][:, row, column] = picture(render, data.background)
    pictures[1][:, row, column] = data.target
    distances = np.asarray(model.perceptual(*pictures))
    assert distances.shape == (2,)
    np.testing.assert_allclose(terms["perceptual"], 0.01 * distances.mean(), rtol=1e-4)


@pytest.mark.heavy
def test_frames_of_a_batch_do_not_meet(variables, run):
    """A batch of two frames is two batches of one frame: any split over devices gives the same gradient."""
    for stage, sampler in (("head", "rays"), ("lips", "lips"), ("torso", "rays")):
        now = clock(stage)
        (value, (_, render)), grads = run(variables, batch((3, 5), sampler=sampler), KEY, now)
        parts = [run(variables, batch((frame,), sampler=sampler), KEY, now) for frame in (3, 5)]
        np.testing.assert_allclose(value, np.mean([p[0][0] for p in parts]), rtol=1e-5)
        for i, part in enumerate(parts):
            np.testing.assert_allclose(render.rgb[i], part[0][1][1].rgb[0], atol=1e-5)
        mean = jax.tree.map(lambda a, b: (a + b) / 2, parts[0][1], parts[1][1])
        scale = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(mean))
        jax.tree.map(lambda a, b, s=scale: np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-5 * s), grads, mean)


# -- gradients


@pytest.mark.parametrize("stage", ["head", pytest.param("lips", marks=pytest.mark.heavy), "torso"])
def test_a_stage_reaches_all_groups_that_it_trains(model, variables, run, stage):
    sampler = "lips" if stage == "lips" else "rays"
    _, grads = run(variables, batch((3, 5), sampler=sampler), KEY, clock(stage))
    labels = model.labels(grads)
    rates = next(s.rates for s in model.stages() if s.name == stage)
    for (path, g), group in zip(jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(labels), strict=True):
        assert np.isfinite(g).all(), path
        assert bool(np.any(g)) == (group in rates), path


def test_gradients_are_finite_for_huge_densities(variables, run):
    params = variables.params | {"sigma": jax.tree.map(lambda p: 50 * p, variables.params["sigma"])}
    (value, _), grads = run(variables.replace(params=params), batch((3, 5)), KEY, clock())
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_only_the_rows_of_the_batchs_frames_get_a_gradient(variables, run):
    for stage, codes in (("head", lambda g: g["codes"]["embedding"]), ("torso", lambda g: g["torso"]["codes"])):
        _, grads = run(variables, batch((3, 5)), KEY, clock(stage))
        assert np.flatnonzero(np.any(np.asarray(codes(grads)), -1)).tolist() == [3, 5]


@pytest.mark.heavy
def test_the_ambient_term_holds_the_coordinates_at_zero_outside_the_lower_face(model, variables):
    """Its gradient reaches what places the look-up, nothing else; where all rays are inside there is none."""

    @jax.jit
    def slope(params, inside):
        data = batch().replace(masks={"lower_face": jnp.full((1, RAYS), inside)})

        def term(params):
            v = variables.replace(params=params)
            return model.loss_terms(v, model.render(v, data, KEY, clock(), True), data, KEY, clock())["ambient"]

        return jax.grad(term)(params)

    grads = slope(variables.params, False)
    reached = {name for name, g in grads.items() if any(np.any(leaf) for leaf in jax.tree.leaves(g))}
    assert reached == {"encoder", "ambient", "audio_net", "audio_attention"}
    assert not any(np.any(g) for g in jax.tree.leaves(slope(variables.params, True)))


@pytest.mark.heavy
def test_cameras_are_trained_where_asked(variables):
    model = Model(tiny(train_camera=True), info())
    v = fresh.adapted(variables, model)
    assert model.stages()[0].rates["cameras"].lr == 1e-5
    _, grads = total(model)(v, batch(), KEY, clock())
    for name in ("camera_rotation", "camera_translation"):
        rows = np.flatnonzero(np.any(np.asarray(grads[name]["embedding"]), -1))
        assert rows.tolist() == [3]


# -- what evaluation sees


def test_evaluation_uses_the_first_frame_code_and_no_boxes(variables, draw):
    codes = variables.params["codes"]["embedding"]

    def moved(row):
        return variables.replace(params=variables.params | {"codes": {"embedding": codes.at[row].add(3.0)}})

    data = batch().replace(target=None, label=None, masks={}, patches=None)
    base = draw(variables, data)
    np.testing.assert_array_equal(draw(moved(3), data).rgb, base.rgb)
    assert np.abs(draw(moved(0), data).rgb - base.rgb).max() > 1e-3


def test_sound_and_eyes_change_the_picture(variables, draw):
    base = draw(variables, batch())
    assert np.abs(draw(variables, changed(batch(), SOUND, batch().signals[SOUND] + 1)).rgb - base.rgb).max() > 1e-5
    assert np.abs(draw(variables, changed(batch(), "eye_area", jnp.zeros((1, 1, 1, 1)))).rgb - base.rgb).max() > 1e-4


@pytest.mark.heavy
def test_without_the_eyes_input_blinks_change_nothing(variables):
    model = Model(tiny(eye=False), info())
    v = fresh.adapted(variables, model)
    assert v.params["sigma"]["kernel_0"].shape[0] == SPACE.channels + AMBIENT.channels
    pictures = [
        model.render(v, changed(batch(), "eye_area", jnp.full((1, 1, 1, 1), 1.0 * a)), None, final_clock(), False)
        for a in (0.0, 1.0)
    ]
    np.testing.assert_array_equal(pictures[0].rgb, pictures[1].rgb)


def test_the_torso_lies_under_the_head(model, variables, draw):
    data = batch()
    head, both = draw(variables, data), draw(variables, data, "torso")
    np.testing.assert_array_equal(both.front, head.alpha)
    drawn = jax.jit(functools.partial(model.torso.draw, train=False))
    rgb, alpha, _ = drawn(
        variables.params["torso"], variables.state["torso"], data.cam_to_world, jnp.zeros(1, jnp.int32), data.pixels_px
    )
    np.testing.assert_allclose(both.rgb, head.rgb + (1 - head.alpha) * rgb, atol=2e-3)
    np.testing.assert_allclose(both.alpha, 1 - (1 - head.alpha) * (1 - alpha), atol=2e-3)


def test_a_whole_image_is_its_pixels(model, variables, draw):
    data = batch().replace(pixels_px=jnp.zeros((1, 0, 2)), background=jnp.zeros((1, 0, 3)))
    image = render_image(model, variables, data, (SIZE, SIZE), final_clock(stage="torso"), chunk_rays=100)
    pixels = batch().pixels_px.at[0, :2].set(jnp.array([[2.5, 4.5], [9.5, 7.5]]))
    some = draw(variables, batch().replace(pixels_px=pixels), "torso")
    np.testing.assert_allclose(image.rgb[4, 2], some.rgb[0, 0], atol=1e-5)
    np.testing.assert_allclose(image.alpha[7, 9], some.alpha[0, 1], atol=1e-5)
    np.testing.assert_allclose(image.front[7, 9], some.front[0, 1], atol=1e-5)


def test_maps_are_depth_and_the_ambient_sum(model, variables):
    data = batch()
    maps = jax.jit(model.maps)(variables, data, final_clock())
    assert set(maps) == {"depth", "ambient"} and all(v.shape == (1, RAYS) for v in maps.values())
    assert np.nanmax(maps["depth"]) < 4.3 and np.nanmin(maps["depth"]) > 2.2
    assert 0 <= maps["ambient"].min() and maps["ambient"].max() <= 2 * model.config.model.samples
    # unweighted over the visited samples: a sample at a time by hand
    o, d, _ = model._rays(variables.params, data)
    marched = march(o, d, variables.state["bits"], jnp.zeros(RAYS), **model._marching())
    audio = literal.audio_code(variables.params, np.asarray(data.signals[SOUND][0]))
    code = np.float64(variables.params["codes"]["embedding"][0])
    for r in range(0, RAYS, 9):
        through, want = 1.0, 0.0
        for t in np.float64(marched.t[r, : int(marched.count[r])]):
            sigma, _, ambient = literal.field(
                SPACE, AMBIENT, variables.params, np.float64(o[r]) + t * np.float64(d[r]), d[r], audio,
                np.float32(0.2), code,
            )  # fmt: skip
            want, through = want + ambient, through * np.exp(-sigma * model.config.model.dt)
            if through < 1e-4:
                break
        np.testing.assert_allclose(maps["ambient"][0, r], want, rtol=1e-3, atol=1e-4)


# -- occupancy and training


def test_refresh_follows_the_density_in_the_head_and_the_torsos_alpha_in_the_torso_stage(model, variables):
    refresh, data = jax.jit(model.refresh), batch()
    head = refresh(variables, data, KEY, clock("head"))
    sigma = np.asarray(head.state["density"])
    bits = np.unpackbits(np.asarray(head.state["bits"]), bitorder="little").astype(bool)
    np.testing.assert_array_equal(bits, sigma > min(np.maximum(sigma, 0).mean(), 10.0))
    assert 0 < bits.mean() < 1
    jax.tree.map(np.testing.assert_array_equal, head.state["torso"], variables.state["torso"])
    torso = refresh(variables, data, KEY, clock("torso"))
    for name in ("density", "bits"):
        np.testing.assert_array_equal(torso.state[name], variables.state[name])
    assert np.any(torso.state["torso"]["alpha"] != variables.state["torso"]["alpha"])


def test_noise_is_one_shift_of_the_lattice_per_ray(model, variables):
    data = batch()

    @jax.jit
    def both(v):
        return model.render(v, data, KEY, clock(), True), model._render_head(v, data, None)

    render, still = both(variables)
    shift = np.asarray(render.aux["rays"][2][:, 0] - still.aux["rays"][2][:, 0]) / model.config.model.dt
    noise = jax.random.uniform(frame_keys(KEY, data, 0)[0], (RAYS,))
    first = np.asarray(still.aux["rays"][3]) > 0
    np.testing.assert_allclose(shift[first], noise[first], atol=1e-4)


@pytest.mark.heavy
def test_training_learns_a_disc_and_continues_in_the_lips_stage(model, run):
    import optax

    v = fresh.whole_of(model)
    refresh, errors = jax.jit(model.refresh), []
    for stage, steps in zip(model.stages(), (50, 8, 0)):
        rates = {name: dataclasses.replace(r, lr=4 * r.lr) for name, r in stage.rates.items()}
        chains = {k: optax.adam(r.lr, r.b1, r.b2, r.eps) for k, r in rates.items()} | {"": optax.set_to_zero()}
        labels = jax.tree.map(lambda group, rates=rates: group if group in rates else "", model.labels(v.params))
        tx = optax.partition(chains, labels)
        opt, update = tx.init(v.params), jax.jit(tx.update)
        for step in range(steps):
            now = clock(stage.name, step, step / steps)
            data = batch((step % 3,), seed=step, sampler=stage.samplers[step % len(stage.samplers)])
            key = jax.random.fold_in(KEY, step)
            if stage.refresh_every and step % stage.refresh_every == 0:
                v = refresh(v, data, key, now)
            (_, (_, render)), grads = run(v, data, key, now)
            if data.patches is None:
                errors.append(float(jnp.mean(losses.mse(picture(render, data.background), data.target))))
            updates, opt = update(grads, opt, v.params)
            v = Variables(optax.apply_updates(v.params, updates), v.state)
    assert np.mean(errors[-6:]) < 0.5 * np.mean(errors[:5])


# -- the whole way


TRAIN = """
import sys
import jax
import numpy as np
from tests.stubs.clip import FakeClip
from tests.stubs.config import smoke_config
from tkjax.train.loop import train

jax.config.update("jax_num_cpu_devices", int(sys.argv[2]))
config = smoke_config("rad_nerf")
config.train.head.steps, config.train.frames = 20, 2
variables = train(config, FakeClip(), sys.argv[1], stages=("head",))
np.save(sys.argv[1] + ".npy", np.concatenate([np.float32(x).ravel() for x in jax.tree.leaves(variables)]))
"""


@pytest.mark.slow  # 19 s, two compilations; distributed_test holds eight devices to one
def test_two_devices_train_what_one_does(tmp_path):
    """Two frames a step: the same numbers but for the order of sums."""
    trained = []
    for n in ("1", "2"):
        command = [sys.executable, "-c", TRAIN, str(tmp_path / n), n]
        subprocess.run(command, check=True, cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True)
        trained.append(np.load(tmp_path / f"{n}.npy"))
    apart = np.abs(trained[0] - trained[1]) / (1e-2 + np.abs(trained[0]))
    assert np.mean(apart < 1e-3) > 0.999


@pytest.mark.slow  # trains and renders
def test_one_command_trains_all_stages_and_the_avatar_speaks(tmp_path):
    dataset = tiny_subject.make_dataset(tmp_path / "d", names=("jawOpen", "eyeBlinkLeft", "eyeBlinkRight"))
    command = ["launch.py", "--mode=fit", "--config=configs/rad_nerf.py:smoke", f"--dataset={dataset}"]
    command += [f"--workdir={tmp_path / 'W'}", "--consent=a test", "--config.data.size=0"]
    cli.run(options.parse(command))
    report = json.loads((tmp_path / "W" / "report.json").read_text())
    assert report["system"] == "rad_nerf" and report["params"]["head"] > 0 and report["params"]["torso"] > 0
    assert json.loads((tmp_path / "W" / "avatar" / "avatar.json").read_text())["stages"] == ["head", "lips", "torso"]
    sound = tmp_path / "new.wav"
    audio.write_wav(sound, tiny_subject.sound(0.4, 1))
    command = ["launch.py", "--mode=render", f"--workdir={tmp_path / 'W'}", f"--audio={sound}"]
    cli.run(options.parse([*command, f"--out={tmp_path / 'out.mp4'}"]))
    assert (tmp_path / "out.mp4").stat().st_size > 1000
