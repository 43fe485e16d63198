"""DynTet: its dossier's counts and schedules, pictures against float64, gradients, topology, budgets, settings."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import dyntet as config_file
from tests.ops import raster_oracle
from tests.stubs.clip import FakeClip
from tests.surface_test import encode64, leaky, material64, mlp64, to64
from tkjax.interface import initialise
from tkjax.mesh import losses, marching
from tkjax.models import load_system
from tkjax.models.dyntet import REGIONS, Model, _compact, box_of
from tkjax.render.image import final_clock, render_image
from tkjax.render.shade import split_sum_table
from tkjax.signals import SignalInfo
from tkjax.train.optim import learning_rate
from tkjax.train.step import make_loss
from tkjax.types import ClipFacts, Clock, SubjectInfo

SIZE = 14
LIGHT = np.array([0.3, 0.6, 0.9])


def info(channels=3, size=SIZE):
    return SubjectInfo(40, size, size, (3.0 * size,) * 2 + (size / 2,) * 2, (SignalInfo("expression", channels, 25.0),))


def tiny(variant="smoke", **changes):
    c = config_file.get_config(variant)
    c.model.update(dict(cells=3, vertices=512, faces=1024, end_points=256) | changes)
    c.train.head.region_size = 8
    return c


def count(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def stirred(variables, seed=0, by=0.3):
    """The same away from the start: codes, displacements and colours differ between frames and places."""
    rng = np.random.default_rng(seed)
    p = variables.params
    grid = {"tables": p["material"]["grid"]["tables"] * 3e3}
    surface = p["surface"] | {"of_condition": jax.tree.map(lambda x: 2 * x, p["surface"]["of_condition"])}
    light = jnp.broadcast_to(jnp.asarray(LIGHT + 0 * rng.random(3), jnp.float32), p["light"].shape)
    return variables.replace(
        params=p | {"material": p["material"] | {"grid": grid}, "surface": surface, "light": light}
    )


@pytest.fixture(scope="module")
def clip():
    return FakeClip(22, SIZE, SIZE)


@pytest.fixture(scope="module")
def made(clip):
    """(model, variables)"""
    model = Model(tiny(), clip.info)
    known = {s.name: s for s in clip.info.signals}
    facts = ClipFacts(clip.cam_to_world, np.tile(clip.intrinsics, (22, 1)), known)
    return model, stirred(model.prepare(initialise(model, jax.random.key(1)), facts))


@pytest.fixture(scope="module")
def draw(made):
    """draw(batch, stage, variables) -> Render, compiled once a stage."""
    model, variables = made
    compiled = jax.jit(lambda v, b, stage: model.render(v, b, None, final_clock(1, stage), False), static_argnums=2)
    return lambda batch, stage="head", v=variables: compiled(v, jax.tree.map(jnp.asarray, batch), stage)


def batch_of(clip, model, frames=(3,), stage=0, sampler="frame"):
    s = model.stages()[stage]
    keys = [np.random.default_rng(0)] * len(frames)
    asked = {"driven_by": model.signals(), "masks": s.masks, "truth": s.truth}
    batch = clip.batch(np.array(frames), keys, sampler, 16, 4, s.background, s.target, **asked)
    return jax.tree.map(jnp.asarray, batch)


# -- sizes, schedules, settings (dossier §3, §5, §11)


def test_parameter_counts_are_the_dossiers_in_its_form():
    """§11, check 12; the light there has 512 texels a side, whose filters do not fit here."""
    config = tiny("full", material_normals=True, material_grid="tiled", material_log2_entries=19)
    model = Model(config, info(70))
    params = jax.eval_shape(model.init, jax.random.key(0)).params
    sizes = {name: count(params[name]) for name in ("encoder", "surface", "material", "light")}
    assert sizes == {"encoder": 716_288, "surface": 108_928, "material": 601_088, "light": 6 * 64**2 * 3}
    assert count(model.parts(params)) == sum(sizes.values())


def test_full_is_the_dossiers_training():
    model = Model(config_file.get_config("full"), info())
    head, fixed = model.stages()
    assert (head.steps + fixed.steps, head.frames, head.samplers) == (40_000, 4, ("frame",))
    assert (head.background, head.target, head.ema) == ("torso", "frame", None)
    assert set(head.rates) - set(fixed.rates) == {"distance"}
    rate = learning_rate(head.rates["movement"], head.steps)
    known = {0: 1e-3, 1000: 6.30957e-4, 5000: 1e-4, 10_000: 1e-5, 35_999: 1e-5}  # §11, check 19
    assert [float(rate(s)) for s in known] == pytest.approx(list(known.values()), rel=1e-4)
    assert float(learning_rate(fixed.rates["light"], fixed.steps)(0)) == pytest.approx(1e-5)
    plain = {name: w for name, w in head.weights.items() if not callable(w)}
    assert plain == {"image": 1.0, "silhouette": 10.0, "region": 0.1, "light": 0.005, "perceptual": 0.1}
    sign, occlusion = head.weights["sign"], head.weights["occlusion"]
    known = {0: 0.2, 2500: 0.1525, 5000: 0.105, 10_000: 0.01, 30_000: 0.01}  # §11, check 19
    assert [float(sign(jnp.float32(s / head.steps))) for s in known] == pytest.approx(list(known.values()), rel=1e-4)
    assert [float(occlusion(jnp.float32(s / head.steps))) for s in (0, 250, 500, 9000)] == pytest.approx(
        [0, 5e-4, 1e-3, 1e-3]
    )
    assert set(fixed.weights) == set(head.weights) - {"sign"}
    m = model.config.model
    assert (m.box, m.features, m.hidden, m.start_steps, m.start_points) == (2.5, 256, 128, 1000, 0)
    assert (m.grid, m.cells, model.material.layers) == ("bcc", 51, 5)


@pytest.mark.parametrize("variant", config_file.VARIANTS)
def test_every_variant_makes_a_model(variant):
    model = Model(config_file.get_config(variant), info())
    params = jax.eval_shape(model.init, jax.random.key(0)).params
    labels = set(jax.tree.leaves(model.labels(params)))
    assert labels == set(model.stages()[0].rates) == {"distance", "movement", "material", "light"}
    assert jax.tree.structure(model.labels(params)) == jax.tree.structure(params)


def test_wrong_settings_are_refused_in_one_sentence():
    assert load_system("dyntet") is Model
    with pytest.raises(ValueError, match="no variant"):
        config_file.get_config("gpu")
    for changes, said in (
        ({"grid": "cubes"}, "model.grid is 'cubes', expected one of kuhn, five, bcc"),
        ({"eye": "left"}, "model.eye is 'left'"),
        ({"material_grid": "dense"}, "expected one of hash, tiled, tiled_2025"),
        ({"cells": 1}, "expected 2..128 cells a side"),
        ({"box": 0.0}, "model.box is 0.0, expected a number above 0"),
        ({"pixels": 1.5}, "expected a share of the picture"),
        ({"faces": 0}, "model.faces is 0"),
        ({"start": ((0.0, 0.0, 0.0, 1.0, 0.0, 1.0),)}, "radii above 0, six numbers each"),
        ({"light_base": 12}, "powers of two"),
    ):
        with pytest.raises(ValueError, match=said) as refused:
            Model(tiny(**changes), info())
        assert "\n" not in str(refused.value)
    config = tiny()
    config.train.head.regions = "halves"
    with pytest.raises(ValueError, match="expected one of boxes, quarters"):
        Model(config, info())


@pytest.mark.heavy
def test_a_set_of_pixels_is_refused(made, clip):
    model, variables = made
    with pytest.raises(ValueError, match="a mesh is drawn whole"):
        model.render(variables, batch_of(clip, model, sampler="rays"), None, final_clock(), False)


# -- pictures


def codes64(model, variables, batch):
    """The window's code, literally."""
    p, e = to64(variables.params["encoder"]), np.asarray(batch.signals["expression"], np.float64)[:, :, 0]
    low, high = (np.asarray(variables.state[k], np.float64) for k in ("low", "high"))
    y = (2 * e - low - high) / np.maximum(high - low, model.config.model.least_range)
    for k, layer in enumerate([p["first"], *(p[f"blocks_{i}"] for i in range(3))]):
        x, dilation = (leaky(y, 0.1), 3) if k else (y, 1)
        taps = len(layer["kernel"])
        length = x.shape[1] - dilation * (taps - 1)
        out = sum(x[:, dilation * t : dilation * t + length] @ layer["kernel"][t] for t in range(taps)) + layer["bias"]
        y = y[:, 3:-3] + out if k else out
    return y.mean(1)


def surface64(model, variables, topology, codes):
    """Vertices [B+1,M,3] under the codes and that of zeros."""
    p, m = to64(variables.params["surface"]), model.config.model
    grid = np.asarray(model.grid.vertices, np.float64)
    g = encode64((grid - np.array(m.box_centre)) / m.box + 0.5)
    sdf = mlp64(p["to_sdf"], g)[:, 0]
    codes = np.concatenate([codes, np.zeros_like(codes[:1])])
    moved = np.tanh(mlp64(p["to_displacement"], mlp64(p["of_point"], g) + mlp64(p["of_condition"], codes)[:, None]))
    a, b = np.asarray(topology.edges).T
    w = np.where(np.asarray(topology.used), sdf[a] / np.where(sdf[a] == sdf[b], 1, sdf[a] - sdf[b]), 0)[:, None]
    return (grid + moved)[:, a] * (1 - w) + (grid + moved)[:, b] * w


def clip64(batch, points, hw):
    """Clip coordinates of points in decimetres; near 0.1, far 1000."""
    pose, (fx, fy, cx, cy) = np.asarray(batch.cam_to_world[0], np.float64), np.asarray(batch.intrinsics[0], np.float64)
    x, y, z = ((points / 2.5 - pose[:3, 3]) @ pose[:3, :3] * 2.5).T
    h, w = hw
    depth = -(1000.1 / 999.9) * z - 2 * 1000 * 0.1 / 999.9
    return np.stack([2 * fx * x / w - (1 - 2 * cx / w) * z * -1, -2 * fy * y / h + (1 - 2 * cy / h) * z, depth, -z], -1)


def colours64(material, normals, to_eye):
    """Split sum under a light that is LIGHT from everywhere."""
    unit = lambda v: v / np.linalg.norm(v, axis=-1, keepdims=True)  # noqa: E731
    kd, o, rough, metal = material[:, :3], material[:, 3:4], material[:, 4], material[:, 5:6]
    cosine = np.maximum(np.sum(unit(normals) * unit(to_eye), -1), 1e-4)
    table = split_sum_table().astype(np.float64)
    at = [np.clip(256 * v - 0.5, 0, 255) for v in (rough, cosine)]
    cell = [np.minimum(np.floor(v).astype(int), 254) for v in at]
    v, u = ((x - c)[:, None] for x, c in zip(at, cell))
    r, c = cell
    ab = (table[r, c] * (1 - u) + table[r, c + 1] * u) * (1 - v)
    ab += (table[r + 1, c] * (1 - u) + table[r + 1, c + 1] * u) * v
    spec = 0.04 * (1 - metal) + kd * metal
    return (kd * (1 - metal) + LIGHT * (spec * ab[:, :1] + ab[:, 1:])) * (1 - o)


@pytest.mark.heavy
def test_a_picture_is_the_dossiers_formula(made, clip, draw):
    model, variables = made
    batch = batch_of(clip, model)
    render = draw(batch)
    topology, m = render.aux["topology"], model.config.model
    codes = codes64(model, variables, batch)
    np.testing.assert_allclose(model.codes(variables, batch), codes, atol=1e-5)
    placed = surface64(model, variables, topology, codes)
    faces = np.asarray(topology.faces)
    faces = faces[faces[:, 0] != faces[:, 1]]
    points, used = placed[0], np.asarray(topology.used)
    at = clip64(batch, points, (SIZE, SIZE))
    at[~used] = 0, 0, 2, 1
    face, uv, zw, sure = raster_oracle.rasterize(at, faces, SIZE, SIZE)
    corners = points[faces]
    normals = np.zeros_like(points)
    for k in range(3):
        np.add.at(normals, faces[:, k], np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]))
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-30)
    seen, of = face > 0, face[face > 0] - 1
    bary = np.concatenate([uv[seen], 1 - uv[seen].sum(-1, keepdims=True)], -1)
    position, normal, canonical = (np.einsum("nk,nkc->nc", bary, x[faces[of]]) for x in (points, normals, placed[1]))
    x = (canonical - np.array(m.box_centre)) / m.box + 0.5
    material = material64(model.material, variables.params["material"], x, codes, np.zeros(len(x), int))
    eye = np.asarray(batch.cam_to_world[0, :3, 3], np.float64) * 2.5
    flat = np.zeros((SIZE, SIZE, 4))
    flat[seen] = np.concatenate([colours64(material, normal, eye - position), np.ones((len(x), 1))], -1)
    picture, _, doubt = raster_oracle.antialias(flat, face, zw, at, faces, raster_oracle.opposite(faces))
    assert 30 < seen.sum() < SIZE**2 / 2 and np.ptp(flat[seen][:, :3], 0).min() > 0.02
    settled = sure.copy()
    for axis in (0, 1):  # pairs whose decision hangs on rounding
        for place in np.argwhere(doubt[axis] < 1e-4):
            settled[tuple(place)] = settled[place[0] + axis, place[1] + 1 - axis] = False
    assert settled.mean() > 0.95
    got = np.concatenate([render.rgb[0], render.alpha[0]], -1).reshape(SIZE, SIZE, 4)
    np.testing.assert_allclose(got[settled], picture[settled], atol=1e-3)
    inner = settled & seen & (picture[..., 3] == 1)
    np.testing.assert_allclose(got[inner], picture[inner], atol=2e-4)
    depth = np.asarray(render.depth).reshape(SIZE, SIZE)
    behind = (eye - position) @ np.asarray(batch.cam_to_world[0, :3, 2], np.float64) / 2.5
    want = np.full((SIZE, SIZE), np.nan)
    want[seen] = behind
    np.testing.assert_allclose(depth[inner], want[inner], rtol=1e-4)
    assert np.isnan(depth[~seen & settled & (picture[..., 3] == 0)]).all()


def test_frames_share_their_topology_and_their_picture_is_that_of_one(made, clip, draw):
    model, _ = made
    both = draw(batch_of(clip, model, (3, 9)))
    singles = [draw(batch_of(clip, model, (i,))) for i in (3, 9)]
    for k, one in enumerate(singles):
        np.testing.assert_allclose(both.rgb[k], one.rgb[0], atol=1e-5)
        np.testing.assert_array_equal(both.aux["topology"].faces, one.aux["topology"].faces)
    assert float(jnp.abs(both.rgb[0] - both.rgb[1]).max()) > 0.01


def test_coefficients_change_the_picture(made, clip, draw):
    batch = batch_of(clip, made[0])
    other = batch.replace(signals={"expression": batch.signals["expression"].at[..., 0].set(1.0)})
    assert float(jnp.abs(draw(batch).rgb - draw(other).rgb).max()) > 0.02


def test_the_kept_topology_draws_the_same(made, clip, draw):
    """`prepare` and `refresh` keep what the parameters give; the stage `fixed` does not look at them again."""
    model, variables = made
    batch = batch_of(clip, model)
    fresh = model.refresh(variables, batch, jax.random.key(0), final_clock())
    assert jax.tree.structure(fresh) == jax.tree.structure(variables)
    np.testing.assert_array_equal(fresh.state["faces"], variables.state["faces"])
    np.testing.assert_allclose(draw(batch, "head").rgb, draw(batch, "fixed").rgb, atol=1e-6)
    nowhere = jax.tree.map(jnp.zeros_like, variables.params["surface"]["to_sdf"])
    surface = variables.params["surface"] | {"to_sdf": nowhere}
    emptied = variables.replace(params=variables.params | {"surface": surface})
    assert not np.any(draw(batch, "head", emptied).alpha)
    np.testing.assert_allclose(draw(batch, "fixed", emptied).rgb, draw(batch, "fixed").rgb, atol=1e-6)


@pytest.mark.heavy
def test_a_whole_picture_comes_through_the_renderer(made, clip, draw):
    model, variables = made
    frame = jax.tree.map(jnp.asarray, clip.frame_batch(3, "torso", model.signals()))
    image = render_image(model, variables, frame, (SIZE, SIZE), final_clock(1, "fixed"), 8)
    np.testing.assert_allclose(image.rgb.reshape(1, -1, 3), draw(batch_of(clip, model), "fixed").rgb, atol=1e-5)
    assert set(model.maps(variables, batch_of(clip, model), final_clock())) == {"depth"}


# -- budgets


@pytest.mark.heavy
def test_nothing_overflows_and_what_would_is_counted(made, clip, draw):
    model, variables = made
    metrics = draw(batch_of(clip, model)).aux["metrics"]
    names = [name for name in metrics if name.startswith("overflow")]
    assert len(names) == 4 and not any(int(metrics[name]) for name in names)
    assert float(metrics["covered"]) > 0.1 and int(metrics["faces"]) > 50
    small = Model(tiny(vertices=64, faces=64, end_points=32, pixels=0.05), clip.info)
    state = small.init(jax.random.key(0)).state
    kept = {name: variables.state[name] for name in ("low", "high")}
    v = variables.replace(state=state | small._found(variables.params) | kept)
    render = jax.jit(lambda v, b: small.render(v, b, None, final_clock(1, "head"), True))(v, batch_of(clip, small))
    metrics = render.aux["metrics"]
    assert all(int(metrics[f"overflow_{name}"]) > 0 for name in ("vertices", "faces", "end_points"))
    assert np.isfinite(render.rgb).all()
    whole = jax.jit(lambda v, b: model.render(v, b, None, final_clock(1, "head"), True))
    assert int(whole(variables, batch_of(clip, model)).aux["metrics"]["overflow_pixels"]) == 0


@pytest.mark.parametrize("variant", [pytest.param("full", marks=pytest.mark.heavy), "cpu", "smoke"])
def test_budgets_have_room_for_a_head_that_grows(variant):
    """The surface of a trained head with its hair has up to 1.25 times the faces of its start."""
    model = Model(config_file.get_config(variant), info())
    sdf = model.start(jnp.asarray(model.grid.vertices))
    grown = jax.jit(marching.extract, static_argnums=2)(sdf - 0.25, model.grid, model.budget)
    assert int(grown.counts["faces"]) > 100 and not any(int(n) for n in grown.overflow.values())


def test_pixels_beyond_the_budget_stay_empty():
    covered = jnp.array([[[True, False, True], [True, True, False]]])
    pixels = _compact(covered, 3)
    assert pixels.index.tolist() == pixels.target.tolist() == [0, 2, 3] and int(pixels.count) == 4
    assert pixels.shaded.ravel().tolist() == [True, False, True, True, False, False]
    pixels = _compact(covered, 6)
    assert pixels.target.tolist() == [0, 2, 3, 4, 10, 11] and len(set(pixels.target.tolist())) == 6
    np.testing.assert_array_equal(pixels.shaded, covered)


# -- losses


def test_the_box_of_a_mask():
    mask = np.zeros((2, 6, 8), bool)
    mask[0, 2:4, 3:7] = True
    assert box_of(jnp.asarray(mask)).tolist() == [[3, 2, 7, 4], [0, 0, 8, 6]]


def test_losses_are_the_dossiers(made, clip, draw):
    model, variables = made
    batch = batch_of(clip, model, (3, 9))
    render = draw(batch)
    clock = Clock(jnp.int32(0), jnp.float32(0), "head")
    terms = jax.jit(lambda v, r, b: model.loss_terms(v, r, b, jax.random.key(0), clock))(variables, render, batch)
    assert set(terms) == {"image", "silhouette", "region", "occlusion", "light", "sign"}
    rgb, alpha, background, target = (np.asarray(x, np.float64) for x in (
        render.rgb, render.alpha, batch.background, batch.target))  # fmt: skip
    drawn, head = rgb + (1 - alpha) * background, np.asarray(batch.label)[..., None] == 1
    m = np.asarray(losses.dilate(jnp.asarray(head, jnp.float32).reshape(2, SIZE, SIZE, 1), 2)).reshape(2, -1, 1)
    squares = np.sum((drawn - target) ** 2 * m, (1, 2)) / np.sum(m, (1, 2))
    assert float(terms["image"]) == pytest.approx(squares.mean(), rel=1e-4)
    assert float(terms["silhouette"]) == pytest.approx(np.mean((alpha - head) ** 2), rel=1e-4)
    assert float(terms["light"]) == pytest.approx(np.mean(np.abs(LIGHT - LIGHT.mean())), rel=1e-4)
    occlusion = np.asarray(render.aux["occlusion"]).reshape(2, -1, 1)
    assert float(terms["occlusion"]) == pytest.approx(np.mean(occlusion * alpha), rel=1e-4)
    sdf, topology = np.asarray(render.aux["sdf"], np.float64), render.aux["topology"]
    a, b = sdf[np.asarray(topology.ends)[np.asarray(topology.used)]].T
    assert (np.sign(a) != np.sign(b)).all()
    entropy = np.log1p(np.exp(a)) - a * (b > 0) + np.log1p(np.exp(b)) - b * (a > 0)
    assert float(terms["sign"]) == pytest.approx(entropy.mean(), rel=1e-4)
    fixed = Clock(jnp.int32(0), jnp.float32(0), "fixed")
    other = jax.eval_shape(lambda: model.loss_terms(variables, render, batch, jax.random.key(0), fixed))
    assert set(other) == set(terms) - {"sign"} and set(batch.masks) == set(REGIONS)


def test_the_originals_quarters_are_an_option(clip):
    config = tiny()
    config.train.head.regions, config.train.head.quarter_size = "quarters", (2, 3)
    config.train.head.region_perceptual = 0.0
    model = Model(config, clip.info)
    batch = batch_of(clip, model)
    black = jnp.zeros((1, SIZE, SIZE, 3))
    x0, y0 = (int(v) for v in box_of(batch.masks["lips"].reshape(1, SIZE, SIZE))[0, :2])
    spot = black.at[0, y0 + 1, x0 + 1].set(1.0)  # of 2x3 maxima over 2x2 pixels four see it
    others = sum(
        bool(batch.masks[name].reshape(1, SIZE, SIZE)[0, y0 + 1, x0 + 1]) for name in ("eye_left", "eye_right")
    )
    assert not others and float(model._region(spot, black, batch)) == pytest.approx(4 / 6)
    beyond = black.at[0, y0 + 4, x0 + 5].set(1.0)
    assert float(model._region(beyond, black, batch)) == 0


@pytest.mark.parametrize("k", [0, pytest.param(1, marks=pytest.mark.heavy)], ids=["head", "fixed"])
def test_every_group_gets_the_gradient_of_its_stage(made, clip, k):
    model, variables = made
    stage = model.stages()[k]
    labels = model.labels(variables.params)
    trained = jax.tree.map(lambda group: group in stage.rates, labels)
    clock = Clock(jnp.int32(1), jnp.float32(0.5), stage.name)
    grads, _ = jax.jit(jax.grad(make_loss(model, stage, trained), has_aux=True))(
        variables.params, variables.state, clock, batch_of(clip, model, stage=k), jax.random.key(0)
    )
    sizes: dict[str, float] = {}
    for group, g in zip(jax.tree.leaves(labels), jax.tree.leaves(grads), strict=True):
        assert np.isfinite(g).all()
        sizes[group] = sizes.get(group, 0.0) + float(jnp.sum(jnp.abs(g)))
    assert {group for group, size in sizes.items() if size > 0} == set(stage.rates)


def test_light_is_put_back_to_what_shines():
    model = Model(tiny(), info())
    params = {"light": jnp.array([-0.5, 0.5])}
    assert model.project(params, final_clock())["light"].tolist() == [0, 0.5]


# -- the start


@pytest.mark.slow  # 12 s: the thousand steps of the start
def test_the_surface_starts_as_a_head_of_ellipsoids():
    """Dossier §10.7 (a): mean squared error below 1e-4 in 1000 steps, Euler characteristic 2."""
    config = tiny("full", cells=10, hidden=128, vertices=8192, faces=16_384, end_points=4096)
    model = Model(config, info())
    v = initialise(model, jax.random.key(0))
    known = {"expression": SignalInfo("expression", 3, 25.0)}
    v = model.prepare(v, ClipFacts(np.zeros((1, 4, 4)), np.zeros((1, 4)), known))
    grid = np.asarray(model.grid.vertices)
    sdf, _ = model._distance(v.params["surface"], model._unit(jnp.asarray(grid)))
    want = np.min([np.linalg.norm((grid - s[:3]) / s[3:], axis=1) - 1 for s in np.array(config.model.start)], 0)
    assert np.mean((np.asarray(sdf) - want) ** 2) < 1e-4
    faces = np.asarray(v.state["faces"])
    faces = faces[faces[:, 0] != faces[:, 1]]
    edges = {tuple(sorted((f[i], f[(i + 1) % 3]))) for f in faces for i in range(3)}
    assert len({*faces.ravel()}) - len(edges) + len(faces) == 2
    assert not any(int(n) for n in v.state["overflow"].values())
