"""RAD-NeRF: sizes, settings, grids, field and marching against the dossier's formulas and known values."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import rad_nerf as rad_nerf_config
from tests import fresh, oracle
from tests import rad_nerf_oracle as literal
from tests.ops.rays import occupancy as random_occupancy
from tests.rad_nerf_subject import AMBIENT, SPACE, A, W, batch, info, tiny
from tkjax import losses
from tkjax.models import load_system
from tkjax.models.rad_nerf import Model, head_program
from tkjax.ops import field, grid_encode, march, sh_encode
from tkjax.train.optim import learning_rate

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


@pytest.mark.parametrize("eye", [True, pytest.param(False, marks=pytest.mark.heavy)])
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


@pytest.mark.parametrize("steps", [pytest.param(2, marks=pytest.mark.heavy), 16])
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
