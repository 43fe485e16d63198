"""The 2-D torso against literal float64 computations, the dossiers' numbers, and what must not depend on what."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.torso_oracle import (
    FRAMES,
    POSES,
    ROWS,
    SIDE,
    SYSTEMS,
    H,
    W,
    bilinear,
    contract_pose,
    draw_literally,
    float64,
    frame_constant,
    network,
    pixel_at,
    pose_code,
    random_params,
    random_pixels,
    random_state,
    refresh_literally,
    small,
    waves,
)
from tkjax import cameras
from tkjax.fields import torso as module
from tkjax.fields.torso import GRID, Torso, anchor_code, euler_code, loader_pose, lookup
from tkjax.ops import dispatch, field, freq_encode


@pytest.fixture(params=SYSTEMS)
def torso(request):
    return small(request.param)


# Sizes and names


@pytest.mark.parametrize(
    "pose, deform, colour, total", [("euler", 10_880, 5_504, 1_207_424), ("anchors", 3_776, 4_864, 1_199_692)]
)
def test_parameter_counts_are_the_dossiers(pose, deform, colour, total):
    full = Torso(**SYSTEMS[pose], height=512, width=512, code_rows=10000)
    shapes = jax.eval_shape(full.init, jax.random.key(0))
    count = lambda tree: sum(math.prod(v.shape) for v in jax.tree.leaves(tree))  # noqa: E731
    assert (count(shapes["deform"]), count(shapes["colour"]), count(shapes)) == (deform, colour, total)
    assert shapes["grid"]["tables"].shape == (1, 555_520, 2) and shapes["codes"].shape == (10000, 8)
    assert full.init_state()["alpha"].shape == (16384,)
    pose_width, xy_width = {"euler": (54, 42), "anchors": (42, 34)}[pose]
    assert full.program.rows == {"pose": pose_width, "code": 8}
    context = pose_width + xy_width + 8
    assert shapes["deform"]["kernel_0"].shape == (context, full.deform_hidden)
    assert shapes["colour"]["kernel_0"].shape == (32 + context, 32)
    assert list(full.program.slices) == ["alpha", "rgb"]


def test_initial_values_are_pytorchs_and_the_originals():
    params = Torso(**SYSTEMS["anchors"], height=4, width=4, code_rows=500).init(jax.random.key(1))
    tables, codes = params["grid"]["tables"], params["codes"]
    assert 0.99e-4 < float(jnp.max(jnp.abs(tables))) <= 1e-4 and abs(float(jnp.mean(tables))) < 1e-6
    assert abs(float(jnp.std(codes)) - 0.1) < 0.01
    for name, layer in [("deform", 84), ("colour", 116)]:
        limit = float(jnp.max(jnp.abs(params[name]["kernel_0"])))
        assert 0.98 < limit * math.sqrt(layer) <= 1.00001
    assert np.allclose(params["anchors"], [(0.01, 0.01, 0.1, 1), (-0.1, -0.1, 0.1, 1), (0.1, -0.1, 0.1, 1)])


def test_grid_has_the_dossiers_entries_and_tiled_indices():
    assert [level.entries for level in GRID.table] == [296, 576, 1024, 1936, 3600, 6728, 12776, 24032, 45800] + [
        65536
    ] * 7
    assert GRID.entries == 555_520 and GRID.table[9].resolution == 295 and GRID.table[15].resolution == 2048
    for level, cell, index in [(9, (10, 250), 8474), (15, (5, 40), 16429), (0, (3, 5), 88)]:
        entry = GRID.table[level]
        assert not entry.hashed and np.dot(cell, entry.strides) % entry.entries == index


def test_unknown_pose_is_refused():
    with pytest.raises(ValueError, match="euler or anchors"):
        small("euler", pose="quaternion")


# Codes of a pose


def test_loader_pose_is_that_of_cameras():
    np.testing.assert_array_equal(loader_pose(jnp.asarray(POSES)), cameras.to_ngp_pose(POSES)[:, :3])


@pytest.mark.parametrize(
    "euler, trans, expected",
    [
        ((0, 0, 0), (0, 0, -8), (math.pi / 2, 0, math.pi / 2, 0, 3.2, 0)),
        ((0.1, 0.2, 0.3), (0.5, -0.3, -8), (1.350519, -0.036965, 1.276750, 0.175108, 3.069070, -0.918992)),
    ],
)
def test_euler_code_has_the_dossiers_values(euler, trans, expected):
    pose = jnp.asarray(contract_pose(euler, trans)[None])
    np.testing.assert_allclose(small("euler").pose_code({}, pose)[0], expected, atol=3e-6)
    np.testing.assert_allclose(euler_code(loader_pose(pose))[0], expected, atol=3e-6)


def test_euler_code_survives_a_rotation_that_rounding_made_too_long():
    pose = jnp.array([[[0.0, 0.0, 1.0000001, 0], [0, 1, 0, 0], [-1, 0, 0, 0]]])
    np.testing.assert_allclose(euler_code(pose)[0, 1], math.pi / 2, atol=1e-3)


def test_anchor_codes_have_the_dossiers_values():
    anchors = jnp.array(module.ANCHORS)
    pose = jnp.asarray(contract_pose((0.1, 0.2, 0.3), (0.5, -0.2, -7))[None])
    code = small("anchors").pose_code({"anchors": anchors}, pose)
    np.testing.assert_allclose(code[0], (0.106167, 0.035183, 0.083748, 0.066153, 0.103828, 0.000714), atol=2e-6)
    level = jnp.concatenate([jnp.eye(3), jnp.array([[0.0], [0], [-3.35]])], 1)[None]
    expected = (0.00289855, 0.00289855, -0.02898551, -0.02898551, 0.02898551, -0.02898551)
    np.testing.assert_allclose(anchor_code(level, anchors)[0], expected, atol=1e-8)


def test_anchors_that_left_w_equal_1_are_divided_as_the_originals_do():
    torso = small("anchors")
    anchors = np.random.default_rng(3).normal(size=(3, 4)) * 0.2 + [0, 0, 0, 1.2]
    code = torso.pose_code({"anchors": jnp.asarray(anchors, jnp.float32)}, jnp.asarray(POSES))
    expected = [pose_code("anchors", pose, np.float64(np.float32(anchors))) for pose in POSES]
    np.testing.assert_allclose(code, expected, rtol=2e-5)


def test_frequency_layout_is_all_sines_then_all_cosines_per_octave():
    np.testing.assert_allclose(
        freq_encode(jnp.array([[0.5]]), 2)[0], (0.5, 0.479426, 0.877583, 0.841471, 0.540302), atol=1e-6
    )
    torso = small("euler")
    params = random_params(torso)
    rows = torso.rows(params, jnp.asarray(POSES), jnp.asarray(FRAMES))
    expected = [waves(pose_code("euler", pose, None), 4) for pose in POSES]
    np.testing.assert_allclose(rows["pose"], expected, atol=1e-5)
    np.testing.assert_array_equal(rows["code"], params["codes"][FRAMES])


# Pixels


def test_coordinates_are_row_then_column_with_centres_of_the_edge_at_one():
    torso = small("euler")
    pixels = jnp.array([[0.5, 0.5], [W - 0.5, 0.5], [0.5, H - 0.5], [3.5, 6.5]])
    expected = [(-1, -1), (-1, 1), (1, -1), (0, 2 * 3 / (W - 1) - 1)]
    np.testing.assert_allclose(torso.coordinates(pixels), expected, atol=1e-6)
    one = small("euler", height=1, width=1)
    assert np.isfinite(one.coordinates(pixels)).all()


def test_lookup_is_bilinear_with_zeros_outside():
    rng = np.random.default_rng(0)
    grid = rng.uniform(size=(SIDE, SIDE)).astype(np.float32)
    at = np.concatenate([rng.uniform(-1.4, 1.4, (200, 2)), rng.choice([-1.0, 1.0, 0.0, 50.0], (20, 2))])
    expected = [bilinear(grid.reshape(-1), SIDE, p) for p in np.float64(np.float32(at))]
    np.testing.assert_allclose(lookup(jnp.asarray(grid), jnp.asarray(at, jnp.float32)), expected, atol=2e-6)


# Each program takes a second or more to compile: `make check` has those of the preferred back end.
BACKENDS = [pytest.param("reference", marks=pytest.mark.heavy), None]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("train", [True, False])
def test_draw_is_the_literal_computation(torso, backend, train):
    params, state = random_params(torso), random_state(torso)
    rays = 53
    pixels = random_pixels(rays)
    wanted = np.random.default_rng(2).uniform(size=(2, rays)) < 0.8
    with dispatch.use(backend):
        draw = jax.jit(lambda *a: torso.draw(*a[:-1], train=train, wanted=a[-1]))
        rgb, alpha, aux = draw(params, state, POSES, FRAMES, pixels, wanted)
    rows = FRAMES if train else [0, 0]
    expected, close = draw_literally(torso, float64(params), float64(state)["alpha"], POSES, rows, pixels, wanted)
    keep = ~close
    drawn = expected[..., 3] != 0
    assert 20 < drawn.sum() < 2 * rays and keep.sum() > 1.9 * rays
    np.testing.assert_array_equal(np.asarray(aux["evaluated"])[keep], drawn[keep])
    np.testing.assert_allclose(np.asarray(rgb)[keep], expected[keep][:, :3], atol=1e-4)
    np.testing.assert_allclose(np.asarray(alpha)[keep], expected[keep][:, 3:], atol=1e-4)
    np.testing.assert_array_equal(np.asarray(alpha)[keep & ~drawn], 0)
    assert np.ptp(expected[drawn][:, 3]) > 0.1 and np.ptp(expected[drawn][:, :3], 0).min() > 0.1


@pytest.mark.heavy
@pytest.mark.parametrize("backend", BACKENDS)
def test_full_size_grid_and_picture_agree_with_the_literal_computation(backend):
    """The originals' table, at the sizes of a picture; 16 levels up to 2048."""
    torso = Torso(**SYSTEMS["euler"], height=H, width=W, code_rows=3)
    params, state = random_params(torso), torso.init_state()
    pixels = random_pixels(20)[:1]
    with dispatch.use(backend):
        rgb, alpha, _ = torso.draw(params, state, POSES[:1], FRAMES[:1], pixels, train=False)
    everything = np.ones(pixels.shape[:2], bool)
    expected, _ = draw_literally(torso, float64(params), float64(state)["alpha"], POSES, [0], pixels, everything)
    np.testing.assert_allclose(rgb[0, :-5], expected[0, :-5, :3], atol=1e-3)  # 0.5 of table times 2047 of scale
    np.testing.assert_allclose(alpha[0, :-5], expected[0, :-5, 3:], atol=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_are_the_finite_differences_of_the_literal_computation(torso, backend):
    params, state = random_params(torso, seed=1), random_state(torso)
    params["deform"]["kernel_2"] = 4 * params["deform"]["kernel_2"]  # some points leave the square
    pixels, rng = random_pixels(31, seed=1), np.random.default_rng(5)
    everything = np.ones(pixels.shape[:2], bool)
    weight = rng.normal(size=(2, 31, 4))

    def loss(params):
        rgb, alpha, aux = torso.draw(params, state, POSES, FRAMES, pixels, train=True)
        return jnp.sum(weight * jnp.concatenate([rgb, alpha], -1)), aux["evaluated"]

    with dispatch.use(backend):
        grads, evaluated = jax.jit(jax.grad(loss, has_aux=True))(params)
    exact, alpha = float64(params), float64(state)["alpha"]

    def literal(params):
        out, close = draw_literally(torso, params, alpha, POSES, FRAMES, pixels, everything)
        assert not close.any()
        return np.sum(weight * out)

    clipped = 0
    for i, pose in enumerate(POSES):
        constant = frame_constant(torso, exact, pose, FRAMES[i])
        for p in pixels[i]:
            x = np.array(pixel_at(p)) * 0.8
            y = x + network(exact["deform"], waves(x, torso.xy_octaves) + constant)
            clipped += np.any(np.abs(y) > 1)
    assert 2 < clipped < 55 and np.asarray(evaluated).sum() > 20

    leaves, tree = jax.tree.flatten(exact)
    for k, leaf in enumerate(leaves):
        direction = rng.normal(size=leaf.shape)
        moved = [
            tree.unflatten([v + sign * 1e-6 * direction if n == k else v for n, v in enumerate(leaves)])
            for sign in (1, -1)
        ]
        expected = (literal(moved[0]) - literal(moved[1])) / 2e-6
        got = np.sum(np.float64(jax.tree.leaves(grads)[k]) * direction)
        scale = np.linalg.norm(jax.tree.leaves(grads)[k])
        assert scale > 0, jax.tree_util.tree_flatten_with_path(grads)[0][k][0]
        assert abs(got - expected) < 2e-3 * scale, (jax.tree_util.tree_flatten_with_path(grads)[0][k][0], got, expected)
    unused = np.setdiff1d(np.arange(ROWS), FRAMES)
    assert not np.asarray(grads["codes"])[unused].any() and np.asarray(grads["codes"])[FRAMES].any(1).all()


@pytest.mark.heavy
def test_a_point_at_the_clip_moves_no_grid_gradient():
    """With the deformation far outside, only the context, not the deform network, moves the picture."""
    torso = small("euler")
    params = random_params(torso)
    params["deform"] = {k: 100 * v for k, v in params["deform"].items()}
    pixels = random_pixels(31)

    def loss(params):
        return jnp.sum(torso.draw(params, torso.init_state(), POSES, FRAMES, pixels, train=True)[1])

    grads = jax.jit(jax.grad(loss))(params)
    assert not any(np.asarray(v).any() for v in grads["deform"].values())
    assert np.asarray(grads["grid"]["tables"]).any()


@pytest.mark.parametrize("rays", [1, pytest.param(130, marks=pytest.mark.heavy)])
def test_packing_equals_evaluating_everything(torso, rays):
    params, state = random_params(torso), torso.init_state()
    pixels = jnp.asarray(random_pixels(max(rays, 9))[:, :rays])
    at = torso.coordinates(pixels)
    draw = jax.jit(lambda wanted: torso.draw(params, state, POSES, FRAMES, pixels, train=True, wanted=wanted))
    rows = torso.rows(params, jnp.asarray(POSES), FRAMES)
    rows = [{k: (v[i : i + 1], None) for k, v in rows.items()} for i in range(2)]
    dense = np.stack([field(torso.program, torso.shrink * at[i], rows[i], params) for i in range(2)])
    for share in (0.0, 0.3, 1.0):
        wanted = np.random.default_rng(0).uniform(size=(2, rays)) < share
        rgb, alpha, aux = draw(jnp.asarray(wanted))
        mask = np.asarray(torso.occupied(state, at)) & wanted
        np.testing.assert_array_equal(aux["evaluated"], mask)
        expected = dense * mask[..., None]
        np.testing.assert_allclose(alpha, expected[..., :1], atol=1e-6)
        np.testing.assert_allclose(rgb, expected[..., :1] * expected[..., 1:], atol=1e-6)


@pytest.mark.heavy
def test_only_training_sees_the_frames_own_code(torso):
    params, state, pixels = random_params(torso), torso.init_state(), random_pixels(17)
    trained = [torso.draw(params, state, POSES, f, pixels, train=True)[0] for f in (FRAMES, FRAMES * 0)]
    drawn = [torso.draw(params, state, POSES, f, pixels, train=False)[0] for f in (FRAMES, FRAMES * 0)]
    assert np.abs(trained[0] - trained[1]).max() > 1e-3
    np.testing.assert_array_equal(drawn[0], drawn[1])
    np.testing.assert_allclose(drawn[0], trained[1], atol=1e-6)


def test_gradients_reach_the_poses(torso):
    """For the systems that refine cameras."""
    params, state, pixels = random_params(torso), torso.init_state(), random_pixels(17)

    def loss(poses):
        return jnp.sum(torso.draw(params, state, poses, FRAMES, pixels, train=True)[0])

    assert np.asarray(jax.jit(jax.grad(loss))(jnp.asarray(POSES))).any((1, 2)).all()


def test_a_picture_holds_no_constant_and_no_context_per_pixel(torso):
    """What is constant over a frame is a row, and the encoding of a pixel stays in the kernel's tile."""
    rays = 4099
    pixels = jnp.ones((1, rays, 2))
    args = random_params(torso), torso.init_state(), POSES[:1], FRAMES[:1], pixels
    jaxpr = jax.make_jaxpr(lambda *a: torso.draw(*a, train=False))(*args)
    assert all(np.size(c) < 1000 for c in jaxpr.consts)
    text = str(jaxpr)
    if "field" in dispatch.ran() and dispatch.preferred().startswith("cpu"):
        assert f"[{rays},4]" in text
        for width in (2 * (1 + 2 * torso.xy_octaves), 42, 54, 84, 104, 8):
            assert f"[{rays},{width}]" not in text, width


# Which pixels are worth evaluating


@pytest.mark.parametrize("backend", BACKENDS)
def test_refresh_is_the_literal_computation(torso, backend):
    params, key = random_params(torso), jax.random.key(4)
    state = {"alpha": random_state(torso)["alpha"] ** 0.25}  # many cells keep what they had
    with dispatch.use(backend):
        new = jax.jit(torso.refresh)(params, state, POSES[:1], FRAMES[:1], key)
    noise = np.float64(jax.random.uniform(key, (SIDE**2, 2), minval=-1.0, maxval=1.0))
    old = float64(state)["alpha"]
    expected = refresh_literally(torso, float64(params), old, POSES[0], FRAMES[0], noise)
    np.testing.assert_allclose(new["alpha"], expected, atol=1e-4)
    assert 5 < np.isclose(expected, 0.95 * old).sum() < SIDE**2 - 5


def silent(torso):
    """Parameters of a torso that is transparent everywhere: alpha's last layer reads a constant and is negative."""
    params = random_params(torso)
    params["colour"]["kernel_2"] = params["colour"]["kernel_2"].at[:, 0].set(-1000.0)
    return params


def test_everything_is_evaluated_before_the_first_refresh_whatever_the_threshold():
    for threshold in (1e-6, 0.01, 0.5, 1.0):
        torso = small("euler", threshold=threshold)
        assert torso.occupied(torso.init_state(), torso.coordinates(jnp.asarray(random_pixels(60)[:, :-5]))).all()


@pytest.mark.heavy
def test_a_transparent_torso_is_forgotten_and_comes_back(torso):
    state, pixels = torso.init_state(), jnp.asarray(random_pixels(40)[:, :-5])
    at = torso.coordinates(pixels)
    refresh = jax.jit(torso.refresh)
    for step in range(40):
        state = refresh(silent(torso), state, POSES[:1], FRAMES[:1], jax.random.key(step))
        if step == 0:
            assert torso.occupied(state, at).all()  # one transparent pose forgets nothing
    assert float(jnp.max(state["alpha"])) < torso.threshold
    state = refresh(random_params(torso), state, POSES[:1], FRAMES[:1], jax.random.key(99))
    assert float(torso.occupied(state, at).mean()) > 0.9


@pytest.mark.heavy
def test_a_torso_in_a_corner_costs_the_pixels_of_that_corner(torso):
    alpha = np.zeros((SIDE, SIDE), np.float32)
    alpha[6:, 7:] = 0.2  # [col, row]: the lower right corner; below the threshold, far above the mean
    x, y = np.meshgrid(np.arange(W) + 0.5, np.arange(H) + 0.5)
    pixels = jnp.asarray(np.stack([x, y], -1).reshape(1, -1, 2), jnp.float32)
    state = {"alpha": jnp.asarray(alpha.reshape(-1))}
    _, drawn, aux = torso.draw(random_params(torso), state, POSES[:1], FRAMES[:1], pixels, train=False)
    seen = np.asarray(aux["evaluated"]).reshape(H, W)
    assert seen[-1, -1] and seen.sum() < 0.2 * H * W
    assert not seen[: H // 2].any() and not seen[:, : W // 2].any()
    np.testing.assert_array_equal(np.asarray(drawn).reshape(H, W) != 0, seen)
