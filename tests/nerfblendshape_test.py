"""NeRFBlendShape: known values of its dossier (§11), its field and pictures against float64, grid, losses, stages."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs import nerfblendshape as config_file
from tests import nerfblendshape_oracle as literal
from tests import oracle
from tests import tiny as tiny_subject
from tkjax import samplers
from tkjax.app import cli, options
from tkjax.cameras import from_adnerf_json, pixel_rays, to_ngp_axes, to_ngp_pose
from tkjax.data.dataset_clip import DatasetClip
from tkjax.interface import initialise
from tkjax.models import load_system
from tkjax.models.nerfblendshape import Model, face_rect, patch_corners
from tkjax.ops import GridSpec, composite, grid_encode, sh_encode
from tkjax.render import occupancy
from tkjax.render.image import final_clock, render_image
from tkjax.signals import SignalInfo
from tkjax.train.optim import learning_rate
from tkjax.types import Batch, ClipFacts, Clock, SubjectInfo, Variables

SIZE, K = 16, 5
SCALE = 0.33 / 4  # marched units per contract unit
FULL = GridSpec(3, 16, 4, 16, 1024, 14, pad=1)
KEY = jax.random.key(7)
LOW = (0.0, 0.05, -0.4, 0.0, 0.0)
HIGH = (0.7, 0.5, 0.1, 0.3, 0.0)


def info(channels=K, size=SIZE, focal=40.0):
    drive = SignalInfo("expression", channels, 25.0, low=LOW[:channels], high=HIGH[:channels])
    return SubjectInfo(40, size, size, (focal, focal, size / 2, size / 2), (drive,))


def tiny(variant="smoke", **changes):
    c = config_file.get_config(variant)
    c.model.update(dict(grid_levels=3, grid_features=2, grid_finest=40, grid_log2_entries=9, hidden=16, layers=2))
    c.model.update(dict(occupancy_side=16, chunk=256) | changes)
    c.train.lips.patch, c.train.lips.perceptual = 4, "structure"
    return c


def pose(t=(0.0, 0.0, 0.35), yaw=0.0):
    """Json pose of a camera on the way out from the head at a yaw, with `t` metres in its turned axes."""
    c, s = np.cos(yaw), np.sin(yaw)
    matrix = np.eye(4)
    matrix[:3, :3] = [[c, 0, s], [0, 1, 0], [-s, 0, c]]
    matrix[:3, 3] = matrix[:3, :3] @ np.array(t)
    return matrix


def batch(values=(0.0,) * K, matrix=None, pixels=None, focal=40.0, size=SIZE, **fields):
    """One frame; values: coefficients."""
    pixels = np.random.default_rng(3).uniform(4, 12, (24, 2)) if pixels is None else np.asarray(pixels, np.float64)
    arrays = dict(
        frame=np.array([3], np.int32),
        cam_to_world=from_adnerf_json(pose() if matrix is None else matrix)[None],
        intrinsics=np.array([[focal, focal, size / 2, size / 2]]),
        pixels_px=pixels[None],
        background=np.ones((1, len(pixels), 3)),
        signals={"expression": np.asarray(values, np.float64)[None, None, None]},
    )  # fmt: skip
    arrays = jax.tree.map(lambda v: jnp.asarray(v, jnp.float32 if v.dtype == np.float64 else v.dtype), arrays)
    return Batch(**arrays | fields)


def facts(frames=2):
    poses = np.stack([from_adnerf_json(pose(yaw=0.1 * k)) for k in range(frames)])
    return ClipFacts(poses, np.tile([40.0, 40.0, 8, 8], (frames, 1)), {s.name: s for s in info().signals})


def made(config, given=None, grow=2e3):
    """(model, variables) whose tables are away from their start, where densities are all the same."""
    model = Model(config, given or info())
    v = initialise(model, jax.random.key(1))
    params = v.params | {"tables": v.params["tables"] * grow}
    return model, model.prepare(v.replace(params=params), facts())


@pytest.fixture(scope="module")
def smoke():
    return made(tiny())


def drawn(model, variables, data):
    return model.render(variables, data, None, final_clock(), False)


# -- sizes and settings (dossier §3.4, §11 items 2 and 15)


@pytest.mark.parametrize("channels, count", [(46, 46_359_584), (52, 52_274_528)])
def test_parameter_counts_are_the_dossiers(channels, count):
    model = Model(config_file.get_config("full"), info(channels))
    params = jax.eval_shape(model.init, jax.random.key(0)).params
    assert params["tables"].shape == (1 + channels, 246_456, 4)
    assert sum(leaf.size for leaf in jax.tree.leaves(model.parts(params))) == count
    nets = {name: sum(leaf.size for leaf in jax.tree.leaves(params[name])) for name in ("sigma", "colour")}
    assert nets == {"sigma": 20_544, "colour": 5_312} and model.program.flops == 2 * 25_856


def test_full_is_the_dossiers_training():
    config = config_file.get_config("full")
    model = Model(config, info())
    head, lips = model.stages()
    assert (head.name, head.steps, head.frames, head.rays) == ("head", 20_000, 2, 1024)
    assert (head.background, head.target, head.ema) == ("plate", "head", None)
    assert lips.samplers == ("mouth_patches", "rays", "face_patches", "rays") and lips.patch == 32
    assert {n: (r.lr, r.b1, r.b2, r.eps, r.decay) for n, r in head.rates.items()} == {
        "tables": (1e-3, 0.9, 0.99, 1e-15, 0.0),
        "net": (1e-3, 0.9, 0.99, 1e-15, 1e-6),
    }
    rate = learning_rate(lips.rates["tables"], lips.steps)  # 20,000 steps lie before this stage
    assert [float(rate(s)) for s in (79_999, 80_000, 230_000)] == pytest.approx([1e-3, 3.3e-4, 1.089e-4])
    mask = head.weights["mask"]
    assert [float(mask(s / 20_000)) for s in (0, 3999, 4000, 19_999)] == [1, 1, 0, 0]
    m = config.model
    assert m.bound * m.dt_min == pytest.approx(1.0149e-4, rel=1e-4)
    assert m.bound * m.dt_max == pytest.approx(9.375e-4) and m.dt_gamma == 1 / 128


@pytest.mark.parametrize("variant", config_file.VARIANTS)
def test_every_variant_makes_a_model(variant):
    model = Model(config_file.get_config(variant), info())
    assert [s.name for s in model.stages()] == ["head", "lips"]
    v = jax.eval_shape(model.init, jax.random.key(0))
    labels = set(jax.tree.leaves(model.labels(v.params)))
    assert all(set(stage.rates) == labels for stage in model.stages())


def test_wrong_settings_are_refused():
    assert load_system("nerfblendshape") is Model
    with pytest.raises(ValueError, match="no variant"):
        config_file.get_config("gpu")
    for changes, said in (
        ({"basis_num": K + 1}, f"expected 0 .all. or 1..{K}"),
        ({"samples": 33}, "not a multiple"),
        ({"bound": 0.0}, "model.bound is 0"),
        ({"occupancy": "sparse"}, "expected bits or vertices"),
    ):
        with pytest.raises(ValueError, match=said):
            Model(tiny(**changes), info())


# -- the tables (§11 items 1 to 5)


def test_levels_are_the_dossiers():
    assert FULL.per_level_scale == pytest.approx(1.3195079107728942, abs=1e-12)
    rows = {0: (15, 16, 4913), 1: (20.112127, 22, 12167), 2: (26.857618, 28, 16384)}
    for k, (scale, resolution, entries) in rows.items():
        level = FULL.table[k]
        assert (level.resolution, level.entries, level.hashed) == (resolution, entries, k == 2)
        assert level.scale == pytest.approx(scale, abs=1e-5)
    finer = {5: (63, 64), 10: (255, 256), 13: (587.13367, 589), 15: (1023, 1024)}
    assert all(FULL.table[k].scale == pytest.approx(scale, rel=1e-6) for k, (scale, _) in finer.items())
    assert [FULL.table[k].resolution for k in finer] == [resolution for _, resolution in finer.values()]
    assert [level.offset for level in FULL.table[:5]] == [0, 4913, 17080, 33464, 49848]
    assert FULL.entries == 246_456 and FULL.entries * 4 * 47 == 46_333_728


@pytest.mark.parametrize(
    "cell, slot",
    [((0, 1, 0), 14769), ((0, 0, 1), 6037), ((1, 2, 3), 13788), ((10, 20, 30), 680), ((511, 512, 513), 8810)],
)
def test_hashes_are_the_dossiers(cell, slot):
    assert oracle.grid_index(cell, 1024, 2**14, "hash") == slot


def test_dense_rows_are_the_dossiers():
    for level, row in ((0, 2111), (1, 3821)):
        at = FULL.table[level]
        assert sum(c * s for c, s in zip((3, 5, 7), at.strides)) % at.entries == row


def test_corners_of_a_point_are_the_dossiers():
    """Item 5: the gradient of a sum of features to a table holds its weights."""
    spec = GridSpec(3, 16, 1, 16, 1024, 14, pad=1)
    u = jnp.array([[[0.3, 0.6, 0.9]]])
    weights = jax.grad(lambda t: jnp.sum(grid_encode(u, t, spec)))(jnp.zeros((1, spec.entries, 1)))[0, :, 0]
    first = np.asarray(weights[:4913])
    assert np.flatnonzero(first > 1e-4).tolist() == [4204, 4221]
    np.testing.assert_allclose(first[[4204, 4221]], 0.5, atol=1e-4)
    third = np.asarray(weights[17080:33464])
    fx, fy, fz = 0.557285, 0.614571, 0.671856
    slots = [12000, 12001, 8497, 8496, 5781, 5780, 6468, 6469]
    for slot, (z, y, x) in zip(slots, itertools.product((0, 1), repeat=3), strict=True):
        want = (fx if x else 1 - fx) * (fy if y else 1 - fy) * (fz if z else 1 - fz)
        assert third[slot] == pytest.approx(want, abs=2e-4)
    assert third.sum() == pytest.approx(1, abs=1e-5)


# -- cameras and rays (items 6 to 8)


def test_a_pose_becomes_the_dossiers():
    matrix = np.eye(4)
    matrix[:3, 3] = 0.1, 0.2, 0.35
    rows = to_ngp_pose(from_adnerf_json(matrix), SCALE)[:3]
    np.testing.assert_allclose(rows, [[0, -1, 0, 0.066], [0, 0, -1, 0.1155], [1, 0, 0, 0.033]], atol=1e-7)
    np.testing.assert_allclose(rows, literal.camera(matrix), atol=1e-7)


def test_rays_of_the_orbit_are_the_dossiers():
    matrix = pose((0, 0, 0.3493212163), np.deg2rad(15))
    np.testing.assert_allclose(matrix[:3, 3], [0.0904110, 0, 0.3374184], atol=1e-6)
    want = [[0, -1, 0, 0], [-0.258819, 0, -0.965926, 0.1113481], [0.965926, 0, -0.258819, 0.0298356]]
    np.testing.assert_allclose(to_ngp_pose(from_adnerf_json(matrix), SCALE)[:3], want, atol=1e-6)
    # the original's rays go through whole numbers: its centre is half a pixel further in the contract
    pixels, intrinsics = np.array([[256.5, 256.5], [0.5, 0.5]]), np.array([600, 600, 256.5, 256.5])
    d = to_ngp_axes(pixel_rays(from_adnerf_json(matrix), jnp.float32(intrinsics), jnp.float32(pixels))[1])
    np.testing.assert_allclose(d, [[0, -0.965926, -0.258819], [0.365315, -0.732482, -0.574470]], atol=2e-6)


def test_a_frontal_ray_takes_the_dossiers_steps():
    config = tiny("full", occupancy_side=8, samples=160, waves=1)
    model, variables = made(config, info(focal=600.0, size=512), grow=1.0)
    data = batch(matrix=pose((0, 0, 0.3493212163)), pixels=[[256, 256]], focal=600.0, size=512)
    render = jax.jit(lambda v: model.render(v, data, None, Clock(jnp.int32(0), jnp.float32(0), "head"), True))
    assert float(render(variables).aux["metrics"]["samples_per_ray"]) == 159
    o, d, dt = np.array([0, 0.115276, 0]), np.array([0, -1.0, 0]), 0.055276 / 128
    bits = np.full(64, 255, np.uint8)
    march = dict(side=8, box=(-0.06,) * 3 + (0.06,) * 3, bound=0.06, dt=1.0149e-4, dt_max=9.375e-4)
    kept, _ = oracle.march(o, d, bits, 0.0, **march, t_min=0.05, samples=400, dt_gamma=1 / 128)
    assert len(kept) == 159 and kept[0][1] == pytest.approx(dt, rel=1e-5) == pytest.approx(4.318e-4, rel=1e-3)
    assert kept[-1][1] == 9.375e-4


# -- coefficients (items 9, 16)


def test_the_clamp_is_the_dossiers():
    model = Model(tiny(), info(2))
    state = {"low": jnp.array([1, 0, 0.05]), "high": jnp.array([1, 0.7, 0.5])}
    weights = model.weights(state, jnp.array([[0.9, -0.2]]))
    np.testing.assert_allclose(weights, [[1, 0.7, 0.05]], rtol=1e-6)
    np.testing.assert_allclose(weights[0], literal.clamped([0.9, -0.2], state["low"], state["high"]), rtol=1e-6)


@pytest.mark.heavy
def test_ranges_are_those_of_the_training_frames(smoke):
    model, variables = smoke
    np.testing.assert_allclose(variables.state["low"], [1, *LOW], rtol=1e-6)
    np.testing.assert_allclose(variables.state["high"], [1, *HIGH], rtol=1e-6)
    beyond = drawn(model, variables, batch((3.0, 0.2, 0.0, 0.1, 0.0)))
    at_end = drawn(model, variables, batch((0.7, 0.2, 0.0, 0.1, 0.4)))
    np.testing.assert_array_equal(beyond.rgb, at_end.rgb)
    inside = drawn(model, variables, batch((0.3, 0.2, 0.0, 0.1, 0.0)))
    assert np.abs(inside.rgb - at_end.rgb).max() > 1e-3


@pytest.mark.heavy
def test_a_picture_of_one_coefficient_is_that_of_its_table(smoke):
    """Item 16: linear in the tables. A weight of 0.3 on one table is the neutral table with 0.3 of the other in it."""
    model, variables = smoke
    tables = variables.params["tables"]
    alone = jnp.zeros_like(tables).at[0].set(tables[0] + 0.05 * tables[2] + 0.3 * tables[1])
    values = (0.3, 0.0, 0.0, 0.0, 0.0)  # the second one is at least 0.05
    one = drawn(model, variables, batch(values))
    other = drawn(model, variables.replace(params=variables.params | {"tables": alone}), batch())
    np.testing.assert_allclose(one.rgb, other.rgb, atol=2e-5)


def test_basis_num_and_add_mean_choose_the_tables():
    model = Model(tiny(basis_num=2), info())
    assert model.init(KEY).params["tables"].shape[0] == 3
    state = {"low": jnp.zeros(3), "high": jnp.ones(3)}
    np.testing.assert_array_equal(model.weights(state, jnp.arange(5.0)[None] / 10), jnp.array([[1.0, 0, 0.1]])[:, :3])
    plain = Model(tiny(add_mean=False), info())
    assert plain.init(KEY).params["tables"].shape[0] == K
    ends = {"low": jnp.zeros(K), "high": jnp.ones(K)}
    values = jnp.arange(5.0)[None] / 10
    np.testing.assert_array_equal(plain.weights(ends, values), values)


def test_normalised_coefficients_fill_their_range_and_small_ones_are_nothing():
    model = Model(tiny(normalise=True, least_range=0.5, smallest=0.1), info(3))
    state = {"low": jnp.array([1, 0, -0.8, 0]), "high": jnp.array([1, 0.7, 0.1, 0.1])}
    weights = model.weights(state, jnp.array([[0.35, -0.4, 0.1], [0.06, -0.07, 0.02]]))
    np.testing.assert_allclose(weights, [[1, 0.5, -0.5, 0.2], [1, 0, 0, 0.04]], rtol=1e-6)


# -- compositing and harmonics (items 10, 11)

SIGMA, DT = [500.0, 1500.0, 800.0], [9e-4, 9e-4, 9.5e-4]
COLOURS = [[0.8, 0.2, 0.1], [0.5, 0.5, 0.5], [0.1, 0.9, 0.3]]


def composited(sigma):
    one, dt = jnp.array([SIGMA]), jnp.array([DT])
    sums = composite(sigma[None], one > 0, one, jnp.array([COLOURS]), jnp.zeros((1, 3, 0)), dt=dt)
    return sums.weighted[0] + (1 - sums.weight_sum[0]), sums.weight_sum[0]


def test_compositing_over_white_is_the_dossiers():
    rgb, alpha = composited(jnp.array(SIGMA))
    np.testing.assert_allclose(rgb, [0.6121663, 0.4651385, 0.3761048], atol=1e-6)
    assert float(alpha) == pytest.approx(0.9226953, abs=1e-6)
    red = jax.grad(lambda s: composited(s)[0][0])(jnp.array(SIGMA))
    np.testing.assert_allclose(red, [1.690504e-4, -3.109240e-6, -6.609555e-5], rtol=1e-4, atol=1e-9)
    alpha = jax.grad(lambda s: 0.5 * composited(s)[1])(jnp.array(SIGMA))
    np.testing.assert_allclose(alpha, [3.478713e-5, 3.478713e-5, 3.671975e-5], rtol=1e-4)


def test_harmonics_along_the_axis_are_the_dossiers():
    want = np.zeros(16)
    want[[0, 2, 6, 12]] = 0.282095, 0.488603, 0.630783, 0.746353
    np.testing.assert_allclose(sh_encode(jnp.array([[0.0, 0, 1]]), 4)[0], want, atol=1e-6)


# -- field and pictures against float64


def wild(model, seed=5):
    """Parameters of the size of a trained field's, for the full networks and small tables."""
    rng = np.random.default_rng(seed)
    like = jax.eval_shape(model.init, jax.random.key(0)).params
    params = jax.tree.map(lambda v: (rng.normal(size=v.shape) * np.sqrt(2 / v.shape[0])).astype(np.float32), like)
    tables = rng.normal(size=like["tables"].shape) * 0.5
    tables[1:] *= 0.3
    params["tables"] = tables.astype(np.float32)
    params["sigma"]["kernel_4"][:, 0] = np.abs(params["sigma"]["kernel_4"][:, 0]) * 60  # densities of the order 200
    return jax.tree.map(jnp.asarray, params)


@pytest.fixture(scope="module")
def faithful():
    """The full networks and march with smaller tables, at the original's units, in the lower three quarters."""
    changes = dict(grid_levels=8, grid_features=8, hidden=64, layers=4, occupancy_side=8, samples=320, waves=5)
    model = Model(tiny("full", **changes), info())
    variables = model.prepare(model.init(KEY), facts())
    cells = np.zeros(512, bool)
    for x, y, z in itertools.product(range(6), range(8), range(8)):
        cells[oracle.morton(x, y, z)] = True
    bits = np.packbits(cells, bitorder="little")
    state = variables.state | {"bits": jnp.asarray(bits)}
    return model, Variables(wild(model), state)


def test_the_field_is_the_dossiers_formula(faithful):
    from tkjax.ops import field

    model, variables = faithful
    rng, bound = np.random.default_rng(4), model.config.model.bound
    points = rng.uniform(-bound, bound, (40, 3)).astype(np.float32)
    points[0] = 2 * bound  # outside: as on the face
    d = rng.normal(size=(40, 3)).astype(np.float32)
    d /= np.linalg.norm(d, axis=-1, keepdims=True)
    weights = literal.clamped([0.5, 0.3, -0.2, 0.9, 0.0], [1, *LOW], [1, *HIGH])
    table = literal.blended(variables.params["tables"], weights)
    params = variables.params | {"encoder": {"tables": jnp.asarray(table, jnp.float32)[None]}}
    rows = {"sh": (sh_encode(jnp.asarray(d), 4), jnp.arange(40, dtype=jnp.int32))}
    out = np.asarray(field(model.program, jnp.asarray(points), rows, params))
    want = [literal.field(model.spec, variables.params, table, x, v, bound) for x, v in zip(points, np.float64(d))]
    want = np.array([[sigma, *rgb] for sigma, rgb in want])
    scale = np.abs(want).max(0)
    assert (np.abs(out - want) / scale).max() < 2e-5
    assert want[:, 0].max() > 50  # opaque within a few steps


@pytest.mark.heavy
def test_pictures_are_the_dossiers_rays(faithful):
    """Coefficients, tables, field, march and compositing of a frame, and its camera from the json."""
    model, variables = faithful
    matrix, values = pose((0.004, 0.01, 0.36), 0.2), (0.5, 0.3, -0.2, 0.9, 0.0)
    rng = np.random.default_rng(8)
    pixels = rng.integers(3, 13, (16, 2))
    data = batch(values, matrix, pixels + 0.5)
    data = data.replace(intrinsics=jnp.array([[40.0, 40.0, 8.5, 8.5]]))  # (8, 8) of whole numbers
    render = drawn(model, variables, data)
    background = np.array([0.2, 0.5, 0.9])
    table = literal.blended(variables.params["tables"], literal.clamped(values, [1, *LOW], [1, *HIGH]))
    m, compared = model.config.model, 0
    march = dict(
        side=8, box=(-m.bound,) * 3 + (m.bound,) * 3, bound=m.bound, dt=m.dt_min * m.bound, dt_max=m.dt_max * m.bound,
        dt_gamma=m.dt_gamma, t_min=m.t_min, samples=m.samples,
    )  # fmt: skip
    for k, (column, row) in enumerate(pixels):
        o, d = literal.ray(matrix, (40.0, 40.0), (8.0, 8.0), column, row)
        rgb, alpha, close = literal.colour(
            model.spec, variables.params, table, o, d, np.asarray(variables.state["bits"]), background, m.picture_stop,
            **march,
        )  # fmt: skip
        if close:
            continue
        compared += alpha > 0.05
        ours = np.asarray(render.rgb[0, k]) + (1 - float(render.alpha[0, k, 0])) * background
        np.testing.assert_allclose(ours, rgb, atol=4e-5)
        assert float(render.alpha[0, k, 0]) == pytest.approx(alpha, abs=4e-5)
    assert compared > 6


@pytest.mark.heavy
def test_training_draws_what_pictures_show(smoke):
    model, variables = smoke
    frames = jax.tree.map(
        lambda *v: jnp.concatenate(v), batch((0.3, 0.2, 0.0, 0.1, 0.0)), batch((0.0, 0.5, -0.4, 0.3, 0.0))
    )
    clock = Clock(jnp.int32(0), jnp.float32(0), "head")
    trained = jax.jit(lambda v: model.render(v, frames, None, clock, True))(variables)
    shown = drawn(model, variables, frames)
    np.testing.assert_allclose(trained.rgb, shown.rgb, atol=2e-3)
    np.testing.assert_allclose(trained.alpha, shown.alpha, atol=2e-3)
    assert np.abs(shown.rgb[0] - shown.rgb[1]).max() > 1e-3


@pytest.mark.heavy
def test_depth_is_that_of_the_camera(smoke):
    """An opaque cube is seen at its face: 0.35 m in front of the middle, 0.182 m of it the cube's half."""
    model, variables = smoke
    params = jax.tree.map(jnp.zeros_like, variables.params)
    params["sigma"] = {k: jnp.ones_like(v) for k, v in params["sigma"].items()}
    solid = variables.replace(params=params | {"tables": jnp.full_like(variables.params["tables"], 10.0)})
    depth = model.maps(solid, batch(pixels=[[8, 8]]), final_clock())["depth"]
    assert float(depth[0, 0]) == pytest.approx(4 * (0.35 - 0.06 / 0.33), abs=0.03)


# -- the density grid


def test_the_grid_knows_every_expression(smoke):
    """Bits hold what any coefficient at its extreme fills, beside the neutral; before occupancy_first nothing moves."""
    model, variables = smoke
    data, refresh = batch(), jax.jit(model.refresh)
    early = refresh(variables, data, KEY, Clock(jnp.int32(0), jnp.float32(0), "head"))
    jax.tree.map(np.testing.assert_array_equal, early.state, variables.state)
    late = refresh(variables, data, KEY, Clock(jnp.int32(20), jnp.float32(0), "head"))

    table, bound = variables.params["tables"], model.config.model.bound
    far = np.where(np.abs(LOW) > np.abs(HIGH), LOW, HIGH)
    rest = np.clip(np.zeros(K), LOW, HIGH)
    tried = [rest, *(np.where(np.arange(K) == k, far, rest) for k in range(K))]

    def sigma(xyz, total):
        from tkjax.ops import field

        program, found = model.program.select("sigma"), []
        for e in tried:
            blended = jnp.einsum("k,knf->nf", jnp.array([1.0, *e], jnp.float32), table)
            params = variables.params | {"encoder": {"tables": blended[None]}}
            found.append(field(program, bound * xyz, {}, params, total=total)[:, 0])
        assert np.abs(found[0] - found[1]).max() > 1e-3
        return jnp.max(jnp.stack(found), 0)

    grid = {name: variables.state[name] for name in ("density", "bits")}
    want = occupancy.refresh(grid, sigma, KEY, 0.9)
    np.testing.assert_allclose(late.state["density"], want["density"], rtol=1e-4, atol=1e-5)
    assert np.mean(np.asarray(late.state["bits"]) != np.asarray(want["bits"])) < 0.01
    assert 0 < float(occupancy.occupied_share(late.state["bits"])) < 1


def test_vertices_are_the_dossiers_grid():
    """§4.1 at a small side, in plain numpy: where it asks, the window's maximum, decay, threshold, bit numbers."""
    side, n = 4, 5
    asked = []

    def sigma(xyz, total):
        asked.append(np.asarray(xyz))
        return jnp.abs(xyz[:, 0]) * 12 + xyz[:, 1] ** 2

    state = occupancy.init_vertices(side)
    assert state["density"].shape == (125,) and np.unpackbits(np.asarray(state["bits"])).sum() == 125
    state = state | {"density": state["density"].at[7].set(900.0)}
    new = occupancy.refresh_vertices(state, sigma, KEY, 0.9)
    axis = np.linspace(-1, 1, n) * (1 - 1 / side)
    points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    assert np.abs(asked[0] - points).max() < 1 / side and np.abs(asked[0] - points).max() > 0.9 / side
    fresh = (np.abs(asked[0][:, 0]) * 12 + asked[0][:, 1] ** 2).reshape(n, n, n)
    pooled = np.zeros_like(fresh)
    for x, y, z in itertools.product(range(n), repeat=3):
        pooled[x, y, z] = fresh[x : x + 2, y : y + 2, z : z + 2].max()
    want = np.maximum(0.9 * np.asarray(state["density"]), pooled.ravel())
    np.testing.assert_allclose(new["density"], want, rtol=1e-6)
    bits = np.unpackbits(np.asarray(new["bits"]), bitorder="little")
    np.testing.assert_array_equal(bits[:125], want > min(want.mean(), 10.0))
    assert not bits[125:].any() and 0 < bits.sum() < 125


@pytest.mark.heavy
def test_the_originals_grid_and_jitter_are_an_option():
    model, variables = made(tiny(occupancy="vertices", jitter="step", occupancy_side=8))
    assert variables.state["density"].shape == (729,)
    data = batch((0.3, 0.2, 0.0, 0.1, 0.0))
    clock = Clock(jnp.int32(20), jnp.float32(0), "head")
    variables = jax.jit(model.refresh)(variables, data, KEY, clock)
    assert 0 < float(occupancy.occupied_share(variables.state["bits"])) < 1
    draw = jax.jit(lambda v, key: model.render(v, data, key, clock, True).rgb)
    still, one, two = draw(variables, None), draw(variables, KEY), draw(variables, jax.random.key(8))
    assert np.abs(one - two).max() > 1e-4
    np.testing.assert_allclose(still, drawn(model, variables, data).rgb, atol=2e-3)


# -- where patches lie (items 13, 14)


def test_the_face_rectangle_is_the_dossiers():
    assert face_rect(np.array([180, 150, 330, 350]), (512, 512)).tolist() == [105, 70, 405, 370]


def test_patches_lie_where_the_rectangle_is():
    """Item 14: the released code takes row 100.37, column 230.5 to pixel 51619, column 419. Ours: (100, 230)."""
    rect, random = np.array([230, 100, 302, 172]), np.array([[0.37 / 39, 0.5 / 39]])
    corner = patch_corners(rect, 32, (512, 512), random)
    assert corner.tolist() == [[100, 230]] and int((100.37 * 512) + 230.5) % 512 == 419
    far = patch_corners(rect, 32, (512, 512), np.array([[1 - 1e-9] * 2]))
    assert far.tolist() == [[138, 268]]
    assert patch_corners(np.array([500, -9, 530, 4]), 32, (512, 512), random).tolist() == [[0, 480]]


@pytest.mark.parametrize("name, within", [("mouth_patches", (20, 30, 60, 50)), ("face_patches", (0, 0, 64, 64))])
def test_the_samplers_give_square_patches_in_their_rectangle(name, within):
    boxes = {"lips": np.array([20, 30, 60, 50]), "face": np.array([10, 10, 50, 60])}
    view = samplers.View((64, 64), np.random.default_rng(0), 2 * 64, 8, boxes, lambda _: 0, lambda: None)
    assert samplers.gives_patches(name)
    for patch in samplers.find(name)(view).reshape(2, 64):
        rows, columns = np.divmod(patch.reshape(8, 8), 64)
        assert np.all(np.diff(rows, axis=0) == 1) and np.all(np.diff(columns, axis=1) == 1)
        x0, y0, x1, y1 = within
        assert x0 <= columns[0, 0] < x1 and y0 <= rows[0, 0] < y1


# -- losses


def with_truth(data, patches=None):
    r = data.pixels_px.shape[1]
    label = jnp.asarray(np.arange(r)[None] % 2, jnp.uint8)
    return data.replace(target=jnp.full((1, r, 3), 0.4), label=label, patches=patches)


@pytest.mark.heavy
def test_losses_are_the_dossiers(smoke):
    model, variables = smoke
    clock = Clock(jnp.int32(0), jnp.float32(0), "head")
    pixels = np.random.default_rng(0).uniform(4, 12, (32, 2))
    data = with_truth(batch((0.3, 0.2, 0.0, 0.1, 0.0), pixels=pixels))
    render = model.render(variables, data, None, clock, True)
    terms = model.loss_terms(variables, render, data, KEY, clock)
    picture = np.clip(np.asarray(render.rgb + (1 - render.alpha) * data.background), 0, 1)
    assert float(terms["l1"]) == pytest.approx(np.abs(picture - 0.4).mean(), rel=1e-5)
    head = np.arange(32) % 2
    assert float(terms["mask"]) == pytest.approx(np.abs(np.asarray(render.alpha)[0, :, 0] - head).mean(), rel=1e-5)
    bases = np.abs(np.asarray(variables.params["tables"])[1:])
    assert float(terms["bases"]) == pytest.approx(bases.mean(), rel=1e-5)
    slope = jax.grad(lambda p: model.loss_terms(variables.replace(params=p), render, data, KEY, clock)["bases"])
    table = np.asarray(slope(variables.params)["tables"])
    assert not table[0].any()
    np.testing.assert_allclose(np.abs(table[1:]), 1 / bases.size, rtol=1e-5)  # item 16: 1/45,347,904 at full size
    lips = Clock(jnp.int32(0), jnp.float32(0), "lips")
    patched = model.loss_terms(variables, render, with_truth(data, "mouth_patches"), KEY, lips)
    assert set(patched) == {"l1", "bases", "perceptual"} and float(patched["perceptual"]) > 0
    assert float(patched["l1"]) == pytest.approx(0.1 * float(terms["l1"]), rel=1e-5)
    assert set(model.loss_terms(variables, render, data, KEY, lips)) == {"l1", "bases"}


def test_a_whole_picture_is_its_pixels(smoke):
    model, variables = smoke
    values = (0.3, 0.2, 0.0, 0.1, 0.0)
    data = batch(values, pixels=np.zeros((0, 2)))
    image = render_image(model, variables, data, (SIZE, SIZE), final_clock(), chunk_rays=0)
    tiles = render_image(model, variables, data, (SIZE, SIZE), final_clock(), chunk_rays=100)
    some = drawn(model, variables, batch(values, pixels=[[2.5, 4.5], [9.5, 7.5]]))
    np.testing.assert_allclose(image.rgb, tiles.rgb, atol=1e-6)
    np.testing.assert_allclose(image.rgb[[4, 7], [2, 9]], some.rgb[0], atol=1e-5)


# -- driven by others, seen from elsewhere


@pytest.mark.slow  # trains and renders
def test_an_avatar_takes_over_anothers_coefficients_and_new_poses(tmp_path):
    """One command trains both stages; --drive=OTHER, a csv and --set are clamped to the own range; --pose turns it."""
    own = tiny_subject.make_dataset(tmp_path / "own", names=("jawOpen", "eyeBlinkLeft", "mouthPucker"))
    values = np.float32([[0.1, 0.5, 0.9], [0.9, 0.2, 0.3], [7.0, 0.2, 0.3], [1.0, 0.2, 0.3]])
    other = tiny_subject.make_dataset(tmp_path / "other", n=4, names=("mouthPucker", "jawOpen", "eyeBlinkLeft"))
    lines = ["jawOpen,eyeBlinkLeft,mouthPucker", *(",".join(f"{v:g}" for v in row) for row in values)]
    (tmp_path / "track.csv").write_text("\n".join(lines) + "\n")
    command = ["launch.py", "--mode=fit", "--config=configs/nerfblendshape.py:smoke", f"--dataset={own}"]
    command += [f"--workdir={tmp_path / 'W'}", "--consent=a test", "--config.data.size=0"]
    command += ["--config.train.head.steps=24", "--config.train.lips.steps=4", "--config.train.preview_every=0"]
    cli.run(options.parse(command))
    report = json.loads((tmp_path / "W" / "report.json").read_text())
    assert report["system"] == "nerfblendshape" and report["ground_truth_layers"] == ["background"]
    assert report["rows"][0]["more_metrics"]["psnr_head"] > 0 and report["comparison"] == ["head alone", "truth"]

    def frames(name, *flags):
        out = tmp_path / "out" / name
        cli.run(options.parse(["launch.py", "--mode=render", f"--workdir={tmp_path / 'W'}", f"--out={out}", *flags]))
        return np.stack([np.asarray(Image.open(p).convert("RGB"), np.int16) for p in sorted(out.glob("*.png"))])

    (tmp_path / "out").mkdir()
    still = f"--pose={tmp_path / 'still.npy'}"
    np.save(tmp_path / "still.npy", np.tile(DatasetClip(own, tmp_path / "c").cam_to_world[:1], (4, 1, 1)))
    track = frames("track", f"--drive={tmp_path / 'track.csv'}", still)
    assert len(track) == 4 and np.abs(track[0] - track[1]).max() > 0
    np.testing.assert_array_equal(track[2], track[3])  # 7 is clamped to the largest of training
    one = frames("set", "--drive=own", "--set=jawOpen=0.9,eyeBlinkLeft=0.2,mouthPucker=0.3", still)
    np.testing.assert_array_equal(one[0], track[1])
    taken = frames("other", f"--drive={other}", still)
    same = "\n".join(["jawOpen,eyeBlinkLeft,mouthPucker", *(f"{v:g},{v:g},{v:g}" for v in np.linspace(0, 1, 4))])
    (tmp_path / "same.csv").write_text(same + "\n")
    np.testing.assert_array_equal(taken, frames("same", f"--drive={tmp_path / 'same.csv'}", still))
    turned = np.tile(from_adnerf_json(pose((0, 0, 0.8), 0.3)), (4, 1, 1))
    np.save(tmp_path / "turned.npy", turned)
    moved = frames("turned", f"--drive={tmp_path / 'track.csv'}", f"--pose={tmp_path / 'turned.npy'}")
    assert np.abs(moved - track).max() > 0
