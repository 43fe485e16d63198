"""RAD-NeRF: sizes, field, marching, losses and stages against the dossier's formulas and known values."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import rad_nerf as rad_nerf_config
from tests import fresh, oracle
from tests import rad_nerf_oracle as literal
from tests import tiny as tiny_subject
from tests.infos import subject_info
from tests.ops.rays import occupancy as random_occupancy
from tests.stubs.process import ROOT
from tkjax import losses
from tkjax.app import cli, options
from tkjax.cameras import pixel_rays
from tkjax.interface import initialise
from tkjax.media import audio
from tkjax.models import load_system
from tkjax.models.hash_head import frame_keys
from tkjax.models.rad_nerf import Model, head_program
from tkjax.ops import GridSpec, field, grid_encode, march, sh_encode
from tkjax.render.image import final_clock, picture, render_image
from tkjax.signals import SOUND
from tkjax.train.optim import learning_rate
from tkjax.types import Batch, Clock, Variables

SIZE, RAYS, FRAMES, PATCH = 16, 64, 12, 4
A, T, W = 6, 16, 8
SPACE = GridSpec(3, 4, 2, 8, 40, 10, "tiled")  # of `tiny`
AMBIENT = GridSpec(2, 3, 2, 8, 30, 8, "tiled")
KEY = jax.random.key(7)


def clock(stage="head", step=16, progress=0.5):
    return Clock(jnp.int32(step), jnp.float32(progress), stage)


def info(channels=A, steps=T, n_frames=FRAMES):
    return subject_info(n_frames, SIZE, SIZE, "logmel", channels, steps, 4, (40.0, 40.0, SIZE / 2, SIZE / 2))


def tiny(**changes):
    c = rad_nerf_config.get_config("smoke")
    grids = dict(grid_base=8, grid_levels=4, grid_finest=40, grid_log2_entries=10)
    grids |= dict(ambient_levels=3, ambient_finest=30, ambient_log2_entries=8)
    grids |= dict(torso_levels=3, torso_finest=32, torso_log2_entries=8)
    c.model.update(grids | dict(code_rows=16, occupancy_side=16, chunk=64, samples=8, waves=2))
    c.model.update(changes)
    c.train.lips.update(dict(patch=PATCH, perceptual="structure"))
    return c


def pose(angle):
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, 0, s, 3.3 * s], [0, 1, 0, 0.05], [-s, 0, c, 3.3 * c], [0, 0, 0, 1]], np.float32)


def batch(frames=(3,), seed=0, rays=RAYS, sampler="rays"):
    """Random pixels; of `lips` four tiles of PATCH x PATCH in the middle, as `tkjax.data.dataset_clip` gives them."""
    parts = []
    for frame in frames:
        rng = np.random.default_rng([seed, frame])
        pixels = rng.uniform(0, SIZE, (rays, 2))
        if sampler == "lips":
            tile, pixel = np.divmod(np.arange(4 * PATCH**2), PATCH**2)
            y, x = (a * PATCH + b for a, b in zip(np.divmod(tile, 2), np.divmod(pixel, PATCH)))
            pixels = np.stack([x, y], -1) + 4.5
        near = np.hypot(*(pixels - SIZE / 2).T) < SIZE / 4
        parts.append(
            dict(
                frame=np.int32(frame), cam_to_world=pose(0.05 * frame), intrinsics=np.array(info().intrinsics),
                pixels_px=pixels, background=rng.uniform(size=(len(pixels), 3)), label=near.astype(np.uint8),
                signals={SOUND: rng.normal(size=(W, T, A)), "eye_area": np.full((1, 1, 1), 0.2)},
                masks={"lips": near, "lower_face": near & (pixels[:, 1] > SIZE / 2)},
                target=np.where(near[:, None], [0.9, 0.6, 0.4], 0.2),
            )
        )  # fmt: skip
    stacked = jax.tree.map(lambda *values: np.stack(values), *parts)
    arrays = jax.tree.map(lambda v: jnp.asarray(v, jnp.float32 if v.dtype == np.float64 else v.dtype), stacked)
    return Batch(**arrays, patches=sampler if sampler in ("lips", "patch") else None)


def changed(data, name, values):
    return data.replace(signals=data.signals | {name: values})


def total(model):
    """A jitted value and gradient of a stage's whole loss, as a trainer forms it: (variables, batch, key, clock)."""
    stages = {stage.name: stage for stage in model.stages()}

    @jax.jit
    def run(variables, data, key, now):
        weights = stages[now.stage].weights

        def loss(params):
            v = variables.replace(params=params)
            render = model.render(v, data, key, now, True)
            terms = model.loss_terms(v, render, data, key, now)
            values = {k: w(now.progress) if callable(w) else w for k, w in weights.items()}
            assert set(terms) <= set(values)
            return sum(values[k] * terms[k] for k in terms), (terms, render)

        return jax.value_and_grad(loss, has_aux=True)(variables.params)

    return run


def grown(variables):
    """Parameters away from their start, where tables are nearly zero and nothing is opaque."""

    def grow(path, p):
        if path[-1].key == "tables":
            return p * 1e4
        return p * (5.0 if path[0].key == "sigma" else 1.0)

    return variables.replace(params=jax.tree_util.tree_map_with_path(grow, variables.params))


@pytest.fixture(scope="module")
def model():
    return Model(tiny(), info())


@pytest.fixture(scope="module")
def variables(model):
    return grown(initialise(model, jax.random.key(0)))


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


# -- sizes and settings


@pytest.mark.parametrize("channels, count", [(44, 3_024_277), (29, 3_022_837)])
def test_parameter_counts_are_those_of_the_released_models(channels, count):
    model = Model(rad_nerf_config.get_config("full"), info(channels))
    parts = model.parts(jax.eval_shape(model.init, jax.random.key(0)).params)
    assert sum(leaf.size for leaf in jax.tree.leaves(parts["head"])) == count
    sizes = {name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in parts["head"].items()}
    assert (sizes["encoder"], sizes["encoder_ambient"]) == (1_806_960, 1_111_040)
    assert (sizes["ambient"], sizes["sigma"], sizes["colour"], sizes["codes"]) == (10_368, 12_416, 5_568, 40_000)
    assert sizes["audio_net"] == {44: 34_240, 29: 32_800}[channels] and sizes["audio_attention"] == 3_685
    torso = {name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in parts["torso"].items()}
    assert sum(torso.values()) == 1_207_424 and torso["codes"] == 80_000


def test_full_is_the_dossiers_training():
    config = rad_nerf_config.get_config("full")
    head, lips, torso = Model(config, info()).stages()
    assert [s.name for s in (head, lips, torso)] == ["head", "lips", "torso"]
    assert (head.steps, head.rays, head.refresh_every, head.samplers) == (200_000, 65_536, 16, ("rays",))
    assert (lips.steps, lips.refresh_every, lips.samplers) == (50_000, 0, ("lips", "rays"))  # occupancy is frozen
    assert (torso.steps, torso.rays, torso.refresh_every) == (200_000, 65_536, 16)
    assert [(s.background, s.target) for s in (head, lips, torso)] == [("torso", "frame")] * 2 + [("plate", "torso")]
    assert all((s.ema.decay, s.ema.every) == (0.95, 1000) for s in (head, lips, torso))
    m = config.model
    assert (m.occupancy_side, m.samples, m.t_min) == (128, 16, 0.05)
    assert m.dt == pytest.approx(0.02706329, abs=1e-8) and m.samples * m.dt == pytest.approx(0.43301270, abs=1e-8)
    for stage in (head, lips, torso):
        assert all((r.b1, r.b2, r.eps, r.decay) == (0.9, 0.99, 1e-15, 0.0) for r in stage.rates.values())
    starts = {name: r.lr for name, r in head.rates.items()}
    assert starts == {"tables": 5e-3, "net": 5e-4, "audio": 5e-4, "audio_attention": 2.5e-3}
    assert {name: r.lr for name, r in torso.rates.items()} == {"torso_tables": 5e-3, "torso": 5e-4}
    assert lips.rates.keys() == head.rates.keys()


def test_known_learning_rates():
    """Dossier §11 item 16."""
    head, lips, torso = Model(rad_nerf_config.get_config("full"), info()).stages()
    for stage, name in ((head, "tables"), (torso, "torso_tables")):
        assert float(learning_rate(stage.rates[name], 200_000)(100_000)) == pytest.approx(1.5811e-3, rel=1e-4)
    tables = learning_rate(lips.rates["tables"], 50_000)
    assert float(tables(0)) == pytest.approx(4.5514e-4, rel=1e-4)
    assert float(tables(50_000)) == pytest.approx(2.5e-4, rel=1e-4)


def test_weights_are_the_dossiers():
    head, lips, torso = Model(rad_nerf_config.get_config("full"), info()).stages()
    at = [{k: w(0.5) if callable(w) else w for k, w in s.weights.items()} for s in (head, lips, torso)]
    assert at[0] == pytest.approx({"mse": 1, "entropy": 1e-4, "ambient": 0.05})
    assert at[1] == pytest.approx({"mse": 1, "entropy": 1e-4, "ambient": 0.09, "perceptual": 1})
    assert at[2] == pytest.approx({"mse": 1, "entropy": 1e-4})


def test_labels_name_a_rate_for_every_parameter(model, variables):
    labels = model.labels(variables.params)
    assert jax.tree.structure(labels) == jax.tree.structure(variables.params)
    head, _, torso = model.stages()
    assert set(jax.tree.leaves(labels)) == set(head.rates) | set(torso.rates)
    for name in ("encoder", "encoder_ambient"):
        assert labels[name]["tables"] == "tables"


def test_the_system_is_found_by_name_and_wrong_settings_are_refused():
    assert load_system("rad_nerf") is Model
    with pytest.raises(ValueError, match="has no variant"):
        rad_nerf_config.get_config("gpu")
    with pytest.raises(ValueError, match="not a multiple of"):
        Model(tiny(waves=3), info())


@pytest.mark.parametrize("variant", rad_nerf_config.VARIANTS)
def test_every_variant_makes_a_model(variant):
    model = Model(rad_nerf_config.get_config(variant), info())
    listens = ["speech"] if variant in ("cpu", "demo") else []  # the short schedules
    assert [s.name for s in model.stages()] == [*listens, "head", "lips", "torso"]
    jax.eval_shape(model.init, jax.random.key(0))


# -- the grids (dossier §11 items 1 to 5)


def grids():
    program = Model(rad_nerf_config.get_config("full"), info()).program
    return {i.name: i.spec for i in program.instructions if i.op == "grid"}


def test_the_levels_are_the_dossiers():
    resolutions = [16, 23, 31, 43, 59, 81, 112, 154, 213, 295, 407, 562, 777, 1073, 1483, 2048]
    flat = [296, 576, 1024, 1936, 3600, 6728, 12776, 24032, 45800] + [65536] * 7
    rows = {"encoder": [4920, 13824, 32768] + [65536] * 13, "encoder_ambient": flat}
    for name, spec in grids().items():
        assert spec.per_level_scale == pytest.approx(1.381912879967776, abs=1e-12)
        assert [level.resolution for level in spec.table] == resolutions
        assert [level.entries for level in spec.table] == rows[name]
        np.testing.assert_allclose([spec.table[k].scale for k in (0, 1, 9, 15)], [15, 21.1106, 293.0667, 2047], 1e-6)
    assert {name: spec.entries for name, spec in grids().items()} == {"encoder": 903_480, "encoder_ambient": 555_520}


@pytest.mark.parametrize(
    "level, cell, row",
    [(0, (3, 5, 7), 2111), (8, (100, 50, 20), 9216), (9, (300, 200, 100), 59500), (9, (300, 200, 5), 59500)],
)
def test_tiled_rows_are_the_dossiers(level, cell, row):
    info = grids()["encoder"].table[level]
    assert not info.hashed
    assert sum(c * s for c, s in zip(cell, info.strides)) % info.entries == row
    assert oracle.grid_index(cell, info.resolution, info.entries, "tiled") == row


def test_hashes_of_the_dossier():
    for cell, mod16, mod19 in (((1, 2, 3), 62940, 128476), ((100, 200, 300), 45232, None), ((1, 1, 1), 11813, None)):
        assert oracle.grid_index(cell, 2048, 2**16, "hash") == mod16
        assert mod19 is None or oracle.grid_index(cell, 2048, 2**19, "hash") == mod19
    assert oracle.grid_index((10, 20), 2048, 2**16, "hash") == 33246


@pytest.mark.parametrize(
    "u, weights",
    [
        ((0.5, 0.5, 0.5), {2456: 1.0}),
        ((0.25, 0.5, 0.75), {3319: 0.1875, 3320: 0.0625, 3608: 0.5625, 3609: 0.1875}),
    ],
)
def test_corner_weights_are_the_dossiers(u, weights):
    spec = dataclasses.replace(grids()["encoder"], levels=2, finest=23)  # level 0 is the same
    out, gradient = jax.value_and_grad(
        lambda tables: grid_encode(jnp.array([[u]], jnp.float32), tables, spec)[0, 0, 0]
    )(jnp.ones((1, spec.entries, 2)))
    rows = np.asarray(gradient[0, :4920, 0])
    assert float(out) == pytest.approx(1, abs=1e-6)
    assert set(np.flatnonzero(rows > 1e-6)) == set(weights)
    np.testing.assert_allclose([rows[k] for k in weights], list(weights.values()), atol=1e-5)


@pytest.mark.parametrize(
    "d, want",
    [
        ((0, -1, 0), [0.282095, 0.488603, 0, 0, 0, 0, -0.315392, 0, -0.546274, -0.590044, 0, -0.457046, 0, 0, 0, 0]),
        (
            (0.6, 0, 0.8),
            [0.282095, 0, 0.390882, -0.293162, 0, 0, 0.290160, -0.524423, 0.196659, 0, 0, 0, 0.059708, -0.603300,
             0.416248, -0.127449],
        ),
        (
            (1 / 3, 2 / 3, 2 / 3),
            [0.282095, -0.325735, 0.325735, -0.162868, 0.242789, -0.485577, 0.105131, -0.242789, -0.182091, 0.043707,
             0.428239, -0.372408, -0.193499, -0.186204, -0.321179, 0.240388],
        ),
    ],
)  # fmt: skip
def test_spherical_harmonics_are_the_dossiers(d, want):
    np.testing.assert_allclose(sh_encode(jnp.array([d], jnp.float32), 4)[0], want, atol=2e-6)
    np.testing.assert_allclose(literal.sh4(d), want, atol=2e-6)


# -- field


@pytest.mark.parametrize("eye", [True, False])
def test_the_field_is_the_dossiers_formula(eye):
    """Full size, on random parameters of a trained field's size: sigma, rgb and ambient to 1e-4."""
    full = rad_nerf_config.get_config("full")
    full.model.eye = eye
    model = Model(full, info(44))
    rng = np.random.default_rng(4)
    params = jax.tree.map(  # somewhat larger than `init` makes them, which would be compiled at full size
        lambda like: (rng.uniform(-1.5, 1.5, like.shape) / np.sqrt(like.shape[0])).astype(like.dtype),
        jax.eval_shape(model.init, jax.random.key(3)).params,
    )
    for name, spec in grids().items():
        tables = params[name]["tables"]
        for level in spec.table:  # finer levels hold less, as trained ones do
            part = tables[:, level.offset : level.offset + level.entries]
            part[:] = rng.normal(size=part.shape) * min(1.0, 24 / level.resolution)
    n = 40
    points = rng.uniform([-1, -0.5, -1], [1, 0.5, 1], (n, 3)).astype(np.float32)
    points[:2] = [[1.0, 0.5, -1.0], [1.5, 0.0, 0.0]]  # a corner of the cube, and outside: features are 0
    d = rng.normal(size=(n, 3)).astype(np.float32)
    d /= np.linalg.norm(d, axis=-1, keepdims=True)
    audio, code, area = rng.normal(size=(1, 64)), rng.normal(size=(1, 4)), np.full((1, 1), 0.2)
    rows = {"audio": (audio, None), "code": (code, None), "eye": (area, None)}
    rows = {k: (jnp.asarray(v, jnp.float32), i) for k, (v, i) in rows.items()}
    rows["sh"] = (sh_encode(jnp.asarray(d), 4), jnp.arange(n, dtype=jnp.int32))
    got = np.asarray(field(model.program, jnp.asarray(points), rows, params))
    specs, single = grids(), [np.float32(v[0]) for v in (audio, code)]
    for i in range(n):
        sigma, rgb, ambient = literal.field(
            specs["encoder"], specs["encoder_ambient"], params, points[i], d[i], single[0],
            np.float32(0.2) if eye else None, single[1],
        )  # fmt: skip
        np.testing.assert_allclose(got[i, 0], sigma, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(got[i, 1:4], rgb, atol=1e-4)
        np.testing.assert_allclose(got[i, 4], ambient, atol=1e-4)
    assert np.std(got[:, 4]) > 0.02 and np.std(got[:, 1:4]) > 0.01


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


@pytest.mark.parametrize("h", [-50.0, 14.0, 16.0, 39.0, 60.0])
def test_density_is_exp_with_a_bounded_derivative(h):
    program = head_program(SPACE, AMBIENT, 64, 4).select("sigma")
    (index,) = (i for i in program.instructions if i.op == "act" and i.output == "trunc_exp")
    clip = program.instructions[index.inputs[0]]
    assert clip.op == "clip" and clip.numbers == (-np.inf, 40.0)
    from tkjax.ops.reference.field_mlp import activate

    value, slope = jax.value_and_grad(lambda x: activate("trunc_exp", jnp.minimum(x, 40.0)))(jnp.float32(h))
    assert float(value) == pytest.approx(np.exp(min(h, 40.0)), rel=1e-5)
    assert h > 40 or float(slope) == pytest.approx(np.exp(np.clip(h, -15, 15)), rel=1e-5)


@pytest.mark.parametrize("steps", [2, 16])
def test_audio_code_equals_the_literal_network(steps):
    model = Model(tiny(), info(steps=steps))
    params = fresh.part_of(model, 2, "audio")
    audio = np.random.default_rng(0).normal(size=(1, W, steps, A)).astype(np.float32)
    got = model._apply(params, "audio_code", jnp.asarray(audio))[0]
    assert got.shape == (64,)
    np.testing.assert_allclose(got, literal.audio_code(params, audio[0]), atol=1e-5)


# -- marching and compositing


@pytest.mark.parametrize("share", [0.2, *(pytest.param(s, marks=pytest.mark.heavy) for s in (0.02, 0.9))])
def test_marching_is_the_originals_lattice(share):
    """Dossier §4.3: start + k dt, the first 16 points in occupied cells; also as the original's loop, which leaps."""
    model = Model(rad_nerf_config.get_config("full"), info())
    how, n = model._marching(), 500
    rng = np.random.default_rng(int(100 * share))
    bits = random_occupancy(rng, how, share)
    occupied = np.zeros((128,) * 3, bool)
    cells = np.stack(np.meshgrid(*[np.arange(128)] * 3, indexing="ij"), -1).reshape(-1, 3)
    codes = sum(((cells[:, a] >> b) & 1) << (3 * b + a) for a in range(3) for b in range(7))
    occupied[tuple(cells.T)] = (bits[codes // 8] >> (codes % 8)) & 1
    assert codes[np.ravel_multi_index((1, 2, 3), (128,) * 3)] == 53  # known value 6
    o = rng.normal(size=(n, 3)) * [0.3, 0.1, 0.3] + [0, 3.2, 0]
    d = rng.uniform([-1.1, -0.5, -1.1], [1.1, 0.5, 1.1], (n, 3)) - o
    o, d = (v.astype(np.float32) for v in (o, d / np.linalg.norm(d, axis=-1, keepdims=True)))
    noise = rng.random(n).astype(np.float32)  # without it the first point lies on a face of cells: rounding decides
    marched = jax.jit(lambda *a: march(*a, **how))(o, d, bits, noise)
    sure = kept = 0
    for r in range(n):
        t, unsure = literal.lattice(
            np.float64(o[r]), np.float64(d[r]), occupied, noise[r], side=128, box=how["box"], dt=how["dt"],
            near_min=how["t_min"], samples=how["samples"],
        )  # fmt: skip
        if unsure:  # a point so close to a face of a cell or of the box that float32 decides
            continue
        sure, kept = sure + 1, kept + len(t)
        assert int(marched.count[r]) == len(t)
        np.testing.assert_allclose(marched.t[r, : len(t)], t, atol=2e-6)
        if r % 5 == 0:
            loop, _ = oracle.march(np.float64(o[r]), np.float64(d[r]), bits, noise[r], leap=True, **how)
            np.testing.assert_allclose(t, [v[0] for v in loop], atol=1e-9)
    assert sure > 0.8 * n and kept > n / 2


def test_known_rays():
    """Dossier §11 items 7 and 12: the step, and near and far of two rays of a frontal camera 3.2 units away."""
    model = Model(rad_nerf_config.get_config("full"), info())
    how = model._marching()
    camera = np.eye(4, dtype=np.float32)
    camera[2, 3] = 3.2
    pixels = np.array([[[300.5, 100.5], [225, 225]]], np.float32)
    data = batch().replace(
        cam_to_world=jnp.asarray(camera)[None],
        intrinsics=jnp.array([[1200.0, 1200.0, 225.0, 225.0]]),
        pixels_px=jnp.asarray(pixels),
    )
    o, d, _ = model._rays({}, data)
    np.testing.assert_allclose(o, [[0, 3.2, 0]] * 2, atol=1e-6)
    np.testing.assert_allclose(d, [[0.102995, -0.992719, 0.062459], [0, -1, 0]], atol=1e-6)
    marched = march(o, d, jnp.full(128**3 // 8, 255, jnp.uint8), jnp.zeros(2), **how)
    np.testing.assert_allclose(marched.near, [2.719803, 2.7], atol=1e-5)
    np.testing.assert_allclose(marched.far, [3.727137, 3.7], atol=1e-5)
    np.testing.assert_allclose(np.diff(marched.t, axis=1), 0.02706329, atol=1e-6)
    assert marched.count.tolist() == [16, 16]
    np.testing.assert_allclose(marched.t[:, -1] - marched.t[:, 0] + how["dt"], 0.43301270, atol=1e-6)


def test_the_known_ray_composites():
    """Dossier §11 item 10."""
    from tkjax.ops import composite

    sigma, tau = jnp.array([[1.0, 2.0, 4.0]]), jnp.array([[1.1, 1.2, 1.3]])
    rgb = jnp.array([[[1, 0.5, 0], [0, 1, 0.5], [0.2, 0.2, 1]]])

    def sums(sigma):
        return composite(sigma, jnp.ones((1, 3), bool), tau, rgb, jnp.ones((1, 3, 1)), dt=0.1)

    out = sums(sigma)
    np.testing.assert_allclose(out.weighted[0], [0.144009, 0.260447, 0.326243], atol=1e-6)
    np.testing.assert_allclose([out.weight_sum[0], out.depth[0], out.plain[0, 0]], [0.503415, 0.619005, 3], atol=1e-6)
    slope = jax.grad(lambda s: jnp.sum(sums(s).weighted * jnp.array([1.0, 2, 3])) + 0.5 * sums(s).weight_sum[0])(sigma)
    np.testing.assert_allclose(slope[0], [0.0604662, 0.1961918, 0.2036000], atol=1e-6)
    with_losses = [float(losses.binary_entropy_bits(jnp.float32(w))) for w in (0.5, 0.1)]
    np.testing.assert_allclose(with_losses, [1, 0.468996], atol=1e-6)


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
    rgb, alpha, _ = model.torso.draw(
        variables.params["torso"], variables.state["torso"], data.cam_to_world, jnp.zeros(1, jnp.int32),
        data.pixels_px, train=False,
    )  # fmt: skip
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
    render = model.render(variables, data, KEY, clock(), True)
    still = model._render_head(variables, data, None)
    shift = np.asarray(render.aux["rays"][2][:, 0] - still.aux["rays"][2][:, 0]) / model.config.model.dt
    noise = jax.random.uniform(frame_keys(KEY, data, 0)[0], (RAYS,))
    first = np.asarray(still.aux["rays"][3]) > 0
    np.testing.assert_allclose(shift[first], noise[first], atol=1e-4)


@pytest.mark.heavy
def test_training_learns_a_disc_and_continues_in_the_lips_stage(model, run):
    import optax

    v = initialise(model, jax.random.key(0))
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


@pytest.mark.heavy
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
