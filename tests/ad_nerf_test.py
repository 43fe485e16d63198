"""AD-NeRF: sizes, signals, both passes, layers, stages and samplers against the dossier's formulas and known values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import ad_nerf as ad_nerf_config
from preprocess.importers.track_columns import tracker_poses
from tests import ad_nerf_oracle as literal
from tests.infos import subject_info
from tkjax import samplers
from tkjax.cameras import from_adnerf_json, pixel_rays
from tkjax.data import sampling
from tkjax.data.split import frames as split_frames
from tkjax.interface import initialise
from tkjax.models import load_system
from tkjax.models.ad_nerf import Model, pose_code
from tkjax.ops import freq_encode
from tkjax.render.image import final_clock
from tkjax.signals import SOUND
from tkjax.train.optim import learning_rate
from tkjax.types import Batch, ClipFacts, Clock

SIZE, RAYS, FRAMES, A, T, W = 16, 24, 12, 6, 16, 8
KEY = jax.random.key(5)
VAL_7272 = np.array(  # of the original's transforms_val.json (dossier §11 item 4)
    [
        [0.9881677, 0.1290179, -0.0829395, -0.0423932],
        [-0.1306266, 0.9913292, -0.0142485, 0.0025647],
        [0.0803820, 0.0249140, 0.9964527, 0.7638523],
        [0, 0, 0, 1],
    ]
)


def info(channels=A, steps=T):
    return subject_info(FRAMES, SIZE, SIZE, "logmel", channels, steps, 0, (40.0, 40.0, SIZE / 2, SIZE / 2))


def tiny(**changes):
    c = ad_nerf_config.get_config("smoke")
    sizes = dict(depth=4, width=16, skip_at=2, coarse_depth=3, coarse_width=8, coarse_skip=1)
    sizes |= dict(
        position_octaves=3,
        view_octaves=2,
        samples=8,
        importance=6,
        density_scale=1.0,
        density_activation="relu",
        density_start=0.0,
        chunk=64,
    )
    c.model.update(sizes | changes)
    return c


def pose(angle):
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, 0, s, 3.3 * s], [0, 1, 0, 0.05], [-s, 0, c, 3.3 * c], [0, 0, 0, 1]], np.float32)


def batch(frames=(3,), rays=RAYS):
    parts = []
    for frame in frames:
        rng = np.random.default_rng(frame)
        pixels = rng.uniform(0, SIZE, (rays, 2))
        parts.append(
            dict(
                frame=np.int32(frame), cam_to_world=pose(0.1 * frame), intrinsics=np.array(info().intrinsics),
                pixels_px=pixels, background=rng.uniform(size=(rays, 3)), target=rng.uniform(size=(rays, 3)),
                signals={SOUND: rng.normal(size=(W, T, A))},
            )
        )  # fmt: skip
    stacked = jax.tree.map(lambda *values: np.stack(values), *parts)
    return Batch(**jax.tree.map(lambda v: jnp.asarray(v, jnp.float32 if v.dtype == np.float64 else v.dtype), stacked))


def facts():
    poses = np.stack([pose(0.1 * k + 0.02) for k in range(4)])
    return ClipFacts(poses, np.tile(info().intrinsics, (4, 1)))


def grown(variables):
    """Densities around 2 1/m, which make things half opaque; they differ from point to point."""

    def grow(path, p):
        if path[-2].key == "density":
            return p * 6.0 if path[-1].key == "kernel_0" else p + 2.0
        return p * 1.5

    return variables.replace(params=jax.tree_util.tree_map_with_path(grow, variables.params))


@pytest.fixture(scope="module")
def model():
    return Model(tiny(), info())


@pytest.fixture(scope="module")
def variables(model):
    return model.prepare(grown(initialise(model, jax.random.key(1))), facts())


def drawer(model, train=False):
    return jax.jit(lambda v, data, key, now: model.render(v, data, key, now, train))


@pytest.fixture(scope="module")
def draw(model):
    """Pictures: (variables, batch, None, clock)."""
    return drawer(model)


def clock(stage="head", step=20, progress=0.5):
    return Clock(jnp.int32(step), jnp.float32(progress), stage)


# -- sizes, settings, known values


def full():
    return Model(ad_nerf_config.get_config("full"), info(29))


def test_parameter_counts_are_the_dossiers():
    """§3 and §11 item 20, without the feature layer that is never used."""
    params = jax.eval_shape(full().init, jax.random.key(0)).params
    count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))  # noqa: E731
    assert {name: count(params["head"][name]) for name in params["head"]} == {"coarse": 595_844, "fine": 595_844}
    assert {name: count(params["torso"][name]) for name in params["torso"]} == {"coarse": 617_348, "fine": 617_348}
    assert (count(params["audio_net"]), count(params["audio_attention"])) == (32_800, 2_149)
    assert 595_844 + 65_792 == 661_636 and 617_348 + 65_792 == 683_140


def test_shapes_are_those_of_the_originals_state_dicts():
    params = jax.eval_shape(full().init, jax.random.key(0)).params
    for volume, given in (("head", 127), ("torso", 169)):
        net = params[volume]["fine"]
        shapes = [net["trunk"][f"kernel_{i}"].shape for i in range(5)]
        shapes += [net["behind_skip"][f"kernel_{i}"].shape for i in range(3)]
        assert shapes == [(given, 256), *[(256, 256)] * 4, (given + 256, 256), *[(256, 256)] * 2]
        colour = [net["colour"][f"kernel_{i}"].shape for i in range(4)]
        assert colour == [(283, 128), (128, 128), (128, 128), (128, 3)]
        assert net["density"]["kernel_0"].shape == (256, 1)


def test_full_is_the_dossiers_training():
    head, torso = full().stages()
    assert (head.name, head.steps, head.rays, head.background, head.target) == ("head", 400_000, 2048, "plate", "head")
    assert (torso.name, torso.steps, torso.rays, torso.background, torso.target) == (
        "torso", 400_000, 1024, "plate", "frame",
    )  # fmt: skip
    assert head.ema is None and torso.ema is None and head.frames == torso.frames == 0
    assert {k: r.lr for k, r in head.rates.items()} == {"head": 5e-4, "audio": 5e-4, "audio_attention": 2.5e-3}
    assert {k: r.lr for k, r in torso.rates.items()} == {"torso": 5e-4}
    assert all((r.b1, r.b2, r.eps, r.decay) == (0.9, 0.999, 1e-8, 0) for r in {**head.rates, **torso.rates}.values())
    assert head.rates["audio_attention"].joins == 200_000
    assert head.weights == torso.weights == {"mse": 1.0, "coarse": 1.0}
    m = full().config.model
    assert (m.samples, m.importance, m.near, m.far, m.prune, m.density_scale) == (64, 128, 0.2, 0.4, 0, 1)


def test_known_learning_rates():
    """§11 item 11; the attention's is five times that (§5)."""
    head, torso = full().stages()
    known = {0: 5e-4, 200_000: 7.924466e-5, 250_000: 5e-5, 300_000: 3.154787e-5, 400_000: 1.255943e-5}
    for rate in (head.rates["head"], head.rates["audio"], torso.rates["torso"]):
        at = learning_rate(rate, 400_000)
        for step, lr in known.items():
            assert float(at(step)) == pytest.approx(lr, rel=2e-6)
    longer = ad_nerf_config.get_config("full")
    longer.train.torso.steps = 700_000
    stage = Model(longer, info()).stages()[1]
    assert float(learning_rate(stage.rates["torso"], stage.steps)(600_000)) == pytest.approx(1.990536e-6, rel=1e-5)
    attention = learning_rate(head.rates["audio_attention"], 400_000)
    assert float(attention(200_000)) == pytest.approx(3.96e-4, rel=1e-3)


def test_positions_are_encoded_as_the_dossier_says():
    """§11 item 1."""
    want = [
        0.5, -0.25, 1, 0.4794255, -0.2474040, 0.8414710, 0.8775826, 0.9689124, 0.5403023, 0.8414710, -0.4794255,
        0.9092974, 0.5403023, 0.8775826, -0.4161468, 0.9092974, -0.8414710, -0.7568025, -0.4161468, 0.5403023,
        -0.6536436,
    ]  # fmt: skip
    x = np.array([0.5, -0.25, 1.0])
    np.testing.assert_allclose(freq_encode(jnp.asarray(x[None], jnp.float32), 3)[0], want, atol=1e-6)
    np.testing.assert_allclose(literal.encode(x, 3), want, atol=1e-6)


def test_known_poses_and_their_codes():
    """§11 items 2 to 4: the tracker's numbers, the camera, and the angles that the torso sees."""
    turned = tracker_poses([[0.1, 0.2, 0.3]], [[0.05, -0.1, -7.5]])[0]
    r = [
        [0.9362934, 0.2896295, 0.1986693],
        [-0.2750958, 0.9564251, -0.0978434],
        [-0.2183507, 0.0369570, 0.9751703],
    ]
    np.testing.assert_allclose(turned[:3, :3], np.transpose(r), atol=1e-6)
    np.testing.assert_allclose(turned[:3, 3] / 4, [-0.1711954, 0.0358339, 0.7294060], atol=1e-6)
    shift = 10 * np.array([-0.0191734, -0.0161036, -0.7646222])
    frame = tracker_poses([[-0.0249975, 0.0804689, -0.1314287]], [shift])[0]
    np.testing.assert_allclose(frame, from_adnerf_json(VAL_7272), atol=4e-6)
    poses = jnp.asarray(np.stack([np.eye(4), turned, from_adnerf_json(VAL_7272)]), jnp.float32)
    codes = pose_code(poses)
    angles = [[1.5707963, 0, 1.5707963], [1.5329164, 0.2201240, 1.2850246], [1.5850946, 0.0830349, 1.7006247]]
    np.testing.assert_allclose(codes[:, :3], angles, atol=2e-6)
    np.testing.assert_allclose(codes[2, 21:24], VAL_7272[:3, 3], atol=1e-6)
    for code, camera in zip(codes, poses):
        np.testing.assert_allclose(code, literal.pose_signal(camera), atol=1e-5)


def test_known_rays():
    """§11 item 5: the original shoots through whole pixel numbers, which are half a pixel further here."""
    camera = jnp.asarray(from_adnerf_json(VAL_7272))[None]
    pixels = jnp.array([[[225.5, 225.5], [0.5, 0.5], [449.5, 449.5]]])
    o, unit = pixel_rays(camera, jnp.array([[1100, 1100, 225.5, 225.5]]), pixels)
    length = [1.0, 1.0409984, 1.0406419]
    d = [
        [0.0829395, 0.0142485, -0.9964527],
        [-0.0927957, 0.2437395, -1.0077984],
        [0.2578936, -0.2142225, -0.9851574],
    ]
    np.testing.assert_allclose(unit[0] * np.array(length)[:, None], d, atol=2e-6)
    np.testing.assert_allclose(o[0] / 4, np.tile(VAL_7272[:3, 3], (3, 1)), atol=1e-6)
    ours = [literal.ray(camera[0], [1100, 1100, 225.5, 225.5], p)[1] for p in pixels[0]]
    np.testing.assert_allclose(ours, d, atol=2e-6)


def test_known_splits():
    """§11 item 12."""
    for n, train in ((8000, 7272), (7000, 6363), (500, 454)):
        assert int(n * 10 / 11) == train
        parts = split_frames("last", (0, train), (train, n))
        assert [len(part) for part in parts] == [train, n - train]


@pytest.mark.parametrize("variant", ad_nerf_config.VARIANTS)
def test_every_variant_makes_a_model(variant):
    model = Model(ad_nerf_config.get_config(variant), info())
    listens = ["speech"] if variant in ("cpu", "demo") else []
    assert [s.name for s in model.stages()] == [*listens, "head", "torso"]
    assert load_system("ad_nerf") is Model


@pytest.mark.parametrize(
    "change",
    [
        *(dict(depth=9), dict(width=0), dict(skip_at=5), dict(samples=2), dict(importance=0), dict(near=0.0)),
        *(dict(prune=1.0), dict(prune=-0.1), dict(chunk=0), dict(density_scale=0.0), dict(picture_precision="half")),
    ],
)
def test_settings_that_cannot_be_drawn_are_refused_by_name(change):
    with pytest.raises(ValueError, match=f"model.{next(iter(change))} is"):
        Model(tiny(**change), info())
    with pytest.raises(ValueError, match="has no variant"):
        ad_nerf_config.get_config("gpu")


# -- what a frame gives


def codes(model, variables, audio, now):
    return model.audio_code(variables.params, audio, now)


@pytest.mark.heavy
def test_the_audio_code_is_the_formula_before_and_after_the_attention_joins(model, variables):
    data = batch((3, 4))
    start = model.config.train.head.attention_start
    for now, attended in (
        (clock(step=start - 1), False), (clock(step=start), True), (clock("torso", 0, 0.0), True),
        (final_clock(1, "head"), True), (clock("speech", 0, 0.0), True),
    ):  # fmt: skip
        got = codes(model, variables, data.signals[SOUND], now)
        want = [literal.audio_code(variables.params, w, attended) for w in np.asarray(data.signals[SOUND])]
        np.testing.assert_allclose(got, want, atol=2e-5)


@pytest.mark.heavy
def test_attention_that_knows_nothing_is_the_mean(model, variables):
    """§11 item 19."""
    params = jax.tree.map(lambda v: v, variables.params)
    params["audio_attention"] = params["audio_attention"] | {
        "fc": jax.tree.map(jnp.zeros_like, params["audio_attention"]["fc"])
    }
    windows = batch().signals[SOUND]
    got = codes(model, variables.replace(params=params), windows, clock())[0]
    each = [literal.audio_code(params, np.roll(windows[0], 4 - k, 0), False) for k in range(W)]
    np.testing.assert_allclose(got, np.mean(each, 0), atol=1e-5)
    np.testing.assert_allclose(literal.leaky(-1.0), -0.02)


@pytest.mark.heavy
def test_an_attention_that_never_joins_is_never_used(variables):
    config = tiny()
    config.train.head.attention_start = config.train.head.steps
    never = Model(config, info())
    assert "audio_attention" not in never.stages()[0].rates
    audio = batch().signals[SOUND]
    for now in (final_clock(60, "head"), clock("torso")):
        want = literal.audio_code(variables.params, audio[0], attended=False)
        np.testing.assert_allclose(codes(never, variables, audio, now)[0], want, atol=2e-5)


def test_rays_lie_around_the_mean_depth_and_the_torso_is_seen_from_the_first_frame(model, variables):
    poses = facts().cam_to_world
    to_camera = np.linalg.inv(np.float64(poses))
    depth = -to_camera[:, 2, 3].mean() / 4
    m = model.config.model
    assert float(variables.state["near"]) == pytest.approx(depth - m.near, abs=1e-6)
    assert float(variables.state["far"]) == pytest.approx(depth + m.far, abs=1e-6)
    np.testing.assert_array_equal(variables.state["torso_camera"], poses[0])


# -- pictures against the formulas


def whole(render, background):
    return render.rgb + (1 - render.alpha) * background


def literal_picture(model, variables, data, k, torso):
    """(coarse, fine) pictures [R,3], in float64, and (head, torso) of the second pass."""
    m, state = model.config.model, variables.state
    sizes = dict(scale=m.density_scale, octaves=m.position_octaves, view_octaves=m.view_octaves)
    span = float(state["near"]), float(state["far"]), m.samples, m.importance
    code = literal.audio_code(variables.params, data.signals[SOUND][k])
    out = []
    for pixel, background in zip(np.float64(data.pixels_px[k]), np.float64(data.background[k])):
        ray = literal.ray(data.cam_to_world[k], data.intrinsics[k], pixel)
        passes = literal.volume(variables.params["head"], *ray, code, *span, background, **sizes)
        colours, depths = [p[0] for p in passes], (passes[1][3], passes[1][2])
        if torso:
            ray = literal.ray(state["torso_camera"], data.intrinsics[k], pixel)
            signal = np.concatenate([code, literal.pose_signal(data.cam_to_world[k])])
            front = literal.volume(variables.params["torso"], *ray, signal, *span, np.zeros(3), **sizes)
            colours = [f[2] * c + f[1] for f, c in zip(front, colours)]
        out.append((*colours, *depths))
    coarse, fine, depth, behind = zip(*out)
    return np.array(coarse), np.array(fine), np.array(depth), np.array(behind)


@pytest.mark.heavy
@pytest.mark.parametrize("stage", ["head", "torso"])
def test_pictures_are_the_formula(model, variables, draw, stage):
    """Coarse to 1e-5, fine to 2e-5 where the inverse CDF is well conditioned (nearly all rays)."""
    data = batch((3, 5))
    render = draw(variables, data, None, final_clock(60, stage))
    coarse_rgb, coarse_alpha = render.aux["coarse"]
    for k in range(2):
        coarse, fine, depth, behind = literal_picture(model, variables, data, k, stage == "torso")
        got = coarse_rgb[k] + (1 - coarse_alpha[k]) * data.background[k]
        np.testing.assert_allclose(got, coarse, atol=1e-5)
        wrong = np.abs(whole(render, data.background)[k] - fine).max(-1)
        assert np.mean(wrong < 2e-5) > 0.9 and wrong.max() < 1e-3, wrong
        if stage == "head":
            assert 0.1 < np.median(behind) < 0.9  # neither air nor a wall
            seen = 1 - behind > 0.51
            np.testing.assert_allclose(render.depth[k, seen, 0], 4 * (depth / (1 - behind))[seen], rtol=1e-4)
            np.testing.assert_array_equal(np.isnan(render.depth[k, :, 0]), np.asarray(render.alpha[k, :, 0] < 0.5))


def test_the_torso_lies_in_front(model, variables, draw):
    """Opaque in front: only its colour; without density: the head's picture. `front` is the head alone."""
    data = batch((3,))
    head = draw(variables, data, None, final_clock(60, "head"))
    for bias, wanted in ((-1e6, whole(head, data.background)), (1e6, None)):
        params = jax.tree.map(lambda v: v, variables.params)
        params["torso"] = {
            name: net | {"density": net["density"] | {"bias_0": jnp.float32([bias])}}
            for name, net in params["torso"].items()
        }
        both = draw(variables.replace(params=params), data, None, final_clock(60, "torso"))
        np.testing.assert_allclose(both.front, head.alpha, atol=1e-6)
        if wanted is not None:
            np.testing.assert_allclose(whole(both, data.background), wanted, atol=3e-6)
        else:
            np.testing.assert_allclose(both.alpha, 1, atol=1e-6)
            other = data.replace(background=1 - data.background)
            again = draw(variables.replace(params=params), other, None, final_clock(60, "torso"))
            np.testing.assert_allclose(whole(both, data.background), whole(again, other.background), atol=1e-6)


def test_air_is_the_background(variables):
    """§11 item 9: densities at or below 0 leave 6.0e-7 of foreground on the dossier's grid."""
    model = Model(tiny(samples=64), info())
    params = jax.tree.map(lambda v: v, variables.params)
    for net in params["head"].values():
        net["density"] = net["density"] | {"bias_0": jnp.float32([-1e6])}
    state = variables.state | {"near": jnp.float32(0.5679027), "far": jnp.float32(1.1679027)}
    data = batch()
    data = data.replace(pixels_px=jnp.full_like(data.pixels_px, SIZE / 2))  # |d| = 1
    render = drawer(model)(variables.replace(params=params, state=state), data, None, final_clock(60, "head"))
    for alpha in (render.alpha, render.aux["coarse"][1]):
        np.testing.assert_allclose(alpha, 6.0e-7, rtol=0.02)
    np.testing.assert_allclose(whole(render, data.background), data.background, atol=2e-6)


def test_what_the_first_pass_did_not_find_may_be_left_out(model, variables, draw):
    """With a threshold below every weight nothing is; with one of some weights what is left out lets light through."""
    data = batch((3, 5))
    want = draw(variables, data, None, final_clock(60, "head"))
    same = drawer(Model(tiny(prune=1e-30), info()))(variables, data, None, final_clock(60, "head"))
    np.testing.assert_allclose(same.rgb, want.rgb, atol=1e-6)
    np.testing.assert_allclose(same.alpha, want.alpha, atol=1e-6)
    less = drawer(Model(tiny(prune=0.1), info()))(variables, data, None, final_clock(60, "head"))
    assert np.all(less.alpha <= want.alpha + 1e-6) and np.any(less.alpha < want.alpha - 0.01)
    np.testing.assert_allclose(less.aux["coarse"][1], want.aux["coarse"][1], atol=1e-6)  # which is whole itself


# -- training


def total(model, stage):
    """A jitted value and gradient of a stage's loss as a trainer forms it."""
    weights = {s.name: s for s in model.stages()}[stage].weights

    @jax.jit
    def run(variables, data, key, now):
        def loss(params):
            v = variables.replace(params=params)
            render = model.render(v, data, key, now, True)
            terms = model.loss_terms(v, render, data, key, now)
            assert set(terms) == set(weights)
            return sum(weights[k] * terms[k] for k in terms), (terms, render)

        return jax.value_and_grad(loss, has_aux=True)(variables.params)

    return run


@pytest.fixture(scope="module")
def runs(model):
    return {stage: total(model, stage) for stage in ("head", "torso")}


def size(tree):
    return sum(float(jnp.sum(jnp.abs(g))) for g in jax.tree.leaves(tree))


def test_the_loss_is_that_of_both_pictures(runs, variables):
    data = batch((3, 5))
    (_, (terms, render)), _ = runs["head"](variables, data, KEY, clock())
    coarse = render.aux["coarse"]
    assert float(terms["mse"]) == pytest.approx(float(jnp.mean((whole(render, data.background) - data.target) ** 2)))
    got = coarse[0] + (1 - coarse[1]) * data.background
    assert float(terms["coarse"]) == pytest.approx(float(jnp.mean((got - data.target) ** 2)))


@pytest.mark.heavy
def test_each_stage_trains_its_own(runs, variables):
    data = batch((3,))
    start = 10  # of the attention, in `smoke`
    _, grads = runs["head"](variables, data, KEY, clock(step=start))
    assert all(size(grads[name]) > 0 for name in ("audio_net", "audio_attention"))
    assert all(size(grads["head"][name]) > 0 for name in ("coarse", "fine")) and size(grads["torso"]) == 0
    _, grads = runs["head"](variables, data, KEY, clock(step=start - 1))
    assert size(grads["audio_net"]) > 0 and size(grads["audio_attention"]) == 0
    _, grads = runs["torso"](variables, data, KEY, clock("torso"))
    assert all(size(grads["torso"][name]) > 0 for name in ("coarse", "fine"))
    assert size({k: g for k, g in grads.items() if k != "torso"}) == 0


def test_a_frames_rays_do_not_depend_on_the_others(model, variables):
    """Jitter goes with the number of the frame, so any split over devices draws the same."""
    run = drawer(model, train=True)
    together = run(variables, batch((3, 5)), KEY, clock())
    for k, frame in enumerate((3, 5)):
        alone = run(variables, batch((frame,)), KEY, clock())
        np.testing.assert_allclose(together.rgb[k], alone.rgb[0], atol=1e-5)
    assert not np.allclose(run(variables, batch((3,)), jax.random.key(6), clock()).rgb, alone.rgb, atol=1e-5)


@pytest.mark.heavy
def test_a_step_down_the_gradient_lowers_the_loss(runs, variables):
    data = batch((3, 5))
    for stage in ("head", "torso"):
        (before, _), grads = runs[stage](variables, data, KEY, clock(stage))
        norm = np.sqrt(sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(grads)))
        params = jax.tree.map(lambda p, g, n=norm: p - 1e-3 / n * g, variables.params, grads)
        (after, _), _ = runs[stage](variables.replace(params=params), data, KEY, clock(stage))
        assert float(before) - float(after) == pytest.approx(1e-3 * norm, rel=0.3)


@pytest.mark.heavy
def test_the_speech_stage_teaches_the_first_numbers_of_the_code(variables):
    config = tiny()
    config.train.speech.update(dict(steps=5, noise=0.0))
    listening = Model(config, info())
    stage = listening.stages()[0]
    assert (stage.name, stage.optional, set(stage.rates)) == ("speech", True, {"audio", "audio_attention"})
    data = batch((3, 5)).replace(truth={"lip_shape": jnp.linspace(-1.0, 1.0, 12).reshape(2, 6)})
    now = clock("speech", 0, 0.0)
    terms = listening.loss_terms(variables, listening.render(variables, data, KEY, now, True), data, KEY, now)
    code = [literal.audio_code(variables.params, w) for w in np.asarray(data.signals[SOUND])]
    want = np.mean((np.array(code)[:, :6] - np.asarray(data.truth["lip_shape"])) ** 2)
    assert set(terms) == {"speech"} and float(terms["speech"]) == pytest.approx(want, rel=1e-4)


def test_new_parameters_are_pytorchs():
    """§3 "Init": U(±1/sqrt(inputs)) for kernels and biases; densities start where the config says."""
    params = initialise(Model(tiny(density_start=-2.0, torso_density_start=-3.0), info()), jax.random.key(2)).params
    fine = params["torso"]["fine"]
    starts = {v: float(params[v]["fine"]["density"]["bias_0"][0]) for v in ("head", "torso")}
    assert starts == {"head": -2.0, "torso": -3.0}
    seen = []
    for group in (fine["trunk"], fine["behind_skip"], fine["colour"], params["audio_net"]["convs_2"]):
        for name, value in group.items():
            inputs = np.prod(group[name.replace("bias", "kernel")].shape[:-1])
            scaled = np.ravel(value) * np.sqrt(inputs)
            assert np.abs(scaled).max() <= 1 and (value.size < 200 or np.abs(scaled).max() > 0.95)
            seen.append(scaled)
    everything = np.concatenate(seen)
    assert abs(everything.mean()) < 0.05 and everything.std() == pytest.approx(1 / np.sqrt(3), rel=0.05)


# -- rays of a step


def view(hw=(450, 450), rays=2048, box=(44, 2, 334, 404), seed=0):
    boxes = {"head": np.array(box), "lips": np.array([150, 200, 200, 240])}
    boxes |= {f"eye_{s}": np.array([100 + 80 * k, 100, 140 + 80 * k, 120]) for k, s in enumerate(("left", "right"))}
    return samplers.View(hw, np.random.default_rng(seed), rays, 8, boxes, lambda _: 0, lambda: None)


def drawn(name, **options):
    seen = view(**options)
    flat = samplers.find(name)(seen)
    assert flat.shape == (seen.rays,) and flat.min() >= 0 and flat.max() < np.prod(seen.hw)
    return np.divmod(flat, seen.hw[1])


def test_known_rectangles_around_the_head():
    """§11 item 14."""
    points = np.full((2, 68, 2), 100.0)
    for k, (low, high, root, chin) in enumerate(((120.4, 310.2, 190.7, 345.9), (20, 200, 60, 260))):
        points[k, :, 0], points[k, :, 1] = (low + high) / 2, root
        points[k, :2, 0], points[k, 8, 1] = (low, high), chin
    boxes = sampling.head_boxes(points, (450, 450))
    rects = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)
    assert rects.tolist() == [[73, 11, 284, 358], [0, 0, 270, 449]]


@pytest.mark.parametrize("transposed", [False, True])
def test_most_rays_lie_in_the_rectangle_all_of_them_different(transposed):
    """§11 item 15: of the rectangle [44, 2, 290, 402] on 450 x 450; 1945 + 103 rays."""
    row, column = drawn(samplers.head(0.95, transposed))
    across, down = (row, column) if transposed else (column, row)
    inside = (across >= 44) & (across <= 334) & (down >= 2) & (down <= 404)
    assert inside.sum() == 1945 and len(set(zip(row, column))) == 2048
    reach = {"across": (across[inside].min(), across[inside].max()), "down": (down[inside].min(), down[inside].max())}
    assert reach["across"][0] < 48 and reach["across"][1] > 330 and reach["down"][0] < 6 and reach["down"][1] > 400
    everything, _ = drawn(samplers.head(0.95, transposed), rays=140_000)
    assert len(everything) == 140_000  # more than the 117,273 of the rectangle: then some repeat


def test_a_rectangle_over_the_whole_picture_takes_all_rays():
    row, column = drawn(samplers.head(0.95), hw=(20, 30), rays=100, box=(0, 0, 29, 19))
    assert len(set(zip(row, column))) == 100
    assert samplers.head(0.0) == samplers.head(-1.0) == "rays" and samplers.head(0.0, near="close") == "close"
    with pytest.raises(ValueError, match="at most 1"):
        samplers.head(1.5)
    with pytest.raises(ValueError, match="'far'"):
        samplers.head(0.5, near="far")


def test_rays_near_lips_and_eyes_come_first():
    row, column = drawn(samplers.head(0.95, near="close"), rays=240)
    lips = slice(0, 60)
    assert np.all((column[lips] >= 150) & (column[lips] < 200) & (row[lips] >= 200) & (row[lips] < 240))
    assert np.all((row[60:100] >= 100) & (row[60:100] < 120))


def test_halves():
    """The torso's rays: the corrected lower half, and the right half of the released code (§5 trap 2)."""
    row, column = drawn("lower_half", hw=(40, 60), rays=100)
    assert (row >= 20).sum() == 50 and len(set(zip(row, column))) == 100
    row, column = drawn("right_half", hw=(40, 60), rays=100)
    assert (column >= 30).sum() == 50 and len(set(zip(row, column))) == 100


def test_stages_draw_with_them():
    config = tiny()
    assert [s.samplers for s in Model(config, info()).stages()] == [("head 0.95",), ("lower_half",)]
    config.train.head.transposed, config.train.torso.sampler = True, "right_half"
    assert [s.samplers for s in Model(config, info()).stages()] == [("transposed head 0.95",), ("right_half",)]
    assert all(callable(samplers.find(s.samplers[0])) for s in Model(config, info()).stages())
