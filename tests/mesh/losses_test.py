"""Terms and schedules of mesh avatars against float64 formulas and the dossier's numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tkjax.mesh import losses

RNG = np.random.default_rng(0)
# eager calls compile each operation by itself
box_crops = jax.jit(losses.box_crops, static_argnums=2)
quarter_crops = jax.jit(losses.quarter_crops, static_argnums=2)


def f32(*shape):
    return jnp.asarray(RNG.uniform(size=shape), jnp.float32)


def test_schedules_are_the_dossiers():
    """Dossier dyntet §11, check 19, and §5."""
    rates = [float(losses.rate_factor(it)) for it in (0, 1000, 5000, 10_000, 40_000)]
    np.testing.assert_allclose(rates, [1, 0.630957, 0.1, 0.01, 0.01], rtol=1e-5)
    signs = [float(losses.sign_weight(it, 40_000)) for it in (0, 2500, 5000, 10_000, 39_999)]
    np.testing.assert_allclose(signs, [0.2, 0.1525, 0.105, 0.01, 0.01], rtol=1e-5)
    assert [float(losses.guided_weight(jnp.int32(it))) for it in (0, 4999, 5000)] == [100, 100, 0]
    occlusion = [float(losses.occlusion_weight(it)) for it in (0, 250, 500, 9000)]
    np.testing.assert_allclose(occlusion, [0, 0.0005, 0.001, 0.001], rtol=1e-6)


def test_the_sign_term_is_the_dossiers_and_ignores_equal_signs():
    """Check 20."""
    a, b = jnp.array([0.3, 1.0, 0.5]), jnp.array([-0.2, -1.0, 0.4])
    assert float(losses.sign_term(a, b)) == pytest.approx(2.139509, abs=1e-6)
    assert float(losses.sign_term(b, a)) == pytest.approx(2.139509, abs=1e-6)
    by_a = jax.jit(jax.grad(losses.sign_term))(a, b)
    assert by_a[2] == 0 and float(by_a[0]) == pytest.approx(0.5 / (1 + np.exp(-0.3)), rel=1e-5)
    assert float(losses.sign_term(a[2:], b[2:])) == 0


def test_the_near_term_is_the_dossiers():
    """Check 21."""
    got = losses.near_term(jnp.array([0.05, 0.3, -0.2]), jnp.array([0.02, 0.05, -0.5]))
    assert float(got) == pytest.approx(0.00113333, rel=1e-5)
    beyond = jax.jit(jax.grad(losses.near_term))(jnp.array([0.05, 0.3]), jnp.array([0.02, 0.05]))
    assert float(beyond[0]) == pytest.approx(0.03, rel=1e-4) and beyond[1] == 0


def test_near_points_lie_along_the_normals():
    positions, normals = RNG.normal(size=(2, 4000, 3)).astype(np.float32)
    points, d = losses.near_points(jax.random.key(0), positions, normals)
    np.testing.assert_allclose(points - positions, np.asarray(d)[:, None] * normals, atol=1e-6)
    assert float(jnp.std(d)) == pytest.approx(0.05, rel=0.05) and abs(float(jnp.mean(d))) < 0.003


def test_the_mask_grows_by_nine_pixels_each_way():
    mask = np.zeros((1, 40, 50, 1), np.float32)
    mask[0, 20, 30], mask[0, 2, 1] = 0.01, 1.0
    grown = np.asarray(losses.dilate(mask))[0, :, :, 0]
    expected = np.zeros((40, 50))
    expected[11:30, 21:40] = expected[:12, :11] = 1
    np.testing.assert_array_equal(grown, expected)


def test_picture_terms_equal_their_formulas():
    p, t, mask = f32(2, 5, 6, 3), f32(2, 5, 6, 3), jnp.asarray(RNG.random((2, 5, 6, 1)) < 0.4, jnp.float32)
    m, square = np.asarray(mask, np.float64), (np.asarray(p, np.float64) - np.asarray(t)) ** 2
    expected = np.mean((m * square).sum((1, 2, 3)) / m.sum((1, 2, 3)))
    assert float(losses.image_term(p, t, mask)) == pytest.approx(expected, rel=1e-5)
    empty = losses.image_term(p, t, mask.at[1].set(0.0))
    first = (m * square)[0].sum() / m[0].sum() / 2
    assert float(empty) == pytest.approx(first, rel=1e-5)
    alpha, o = f32(2, 5, 6, 1), f32(2, 5, 6, 1)
    assert float(losses.silhouette_term(alpha, mask)) == pytest.approx(np.mean((np.asarray(alpha) - m) ** 2), rel=1e-5)
    assert float(losses.occlusion_term(o, alpha)) == pytest.approx(np.mean(np.asarray(o) * np.asarray(alpha)), rel=1e-5)


def test_the_light_term_is_zero_for_white():
    white = jnp.broadcast_to(f32(6, 4, 4, 1), (6, 4, 4, 3))
    assert float(losses.light_term(white)) == pytest.approx(0, abs=1e-7)
    coloured = white + jnp.array([0.3, 0.0, 0.0])
    assert float(losses.light_term(coloured)) == pytest.approx((0.2 + 0.1 + 0.1) / 3, rel=1e-5)


def test_surface_terms_equal_their_formulas():
    a, b = f32(2, 7, 3), f32(2, 7, 3)
    assert float(losses.moved_term(a, b)) == pytest.approx(np.mean((np.asarray(a) - np.asarray(b)) ** 2), rel=1e-5)
    got = losses.elasticity_term(jnp.array([0.3, 0.1, 0.5]), jnp.array([0.2, 0.2, 0.1]))
    assert float(got) == pytest.approx(0.5 / 3, rel=1e-5)
    scale = losses.vertex_scale(np.array([[[0.3, 0.4, 0], [0, 0, 0]], [[0.1, 0, 0], [0.01, 0, 0]]]))
    np.testing.assert_allclose(scale, [0.5, 0.02])
    z, used = jnp.array([[0.1, 0.9, 5.0], [0.2, 0.3, 7.0]]), jnp.array([1.0, 1.0, 0.0])
    target = jnp.array([[0.4, 0.5], [0.1, 0.6]])
    assert float(losses.depth_term(z, used, target)) == pytest.approx((0.9 - 0.6) / 2, rel=1e-5)
    assert float(losses.depth_term(z, jnp.zeros(3), target)) == 0


# Regions


def test_the_box_of_landmarks_is_the_dossiers():
    """Check 23."""
    points = np.array([[200.4, 170.7], [240.9, 150.2], [220.0, 160.0]])
    np.testing.assert_allclose(losses.landmark_box(points, 448 / 450), [189.156, 139.378, 248.889, 179.2], atol=1e-3)


@pytest.mark.parametrize("n, pad, total", [(10, 11, 32), (33, 16, 65), (40, 12, 64), (65, 32, 129)])
def test_padding_is_the_dossiers(n, pad, total):
    """Check 22."""
    assert losses.padding(n) == pad and n + 2 * pad == total
    assert losses.padded(jnp.ones((1, 1, n, 10, 2))).shape == (1, 1, total, 32, 2)


def test_padded_crops_have_zeros_around():
    crop = f32(1, 1, 10, 10, 1)
    out = np.asarray(losses.padded(crop))
    np.testing.assert_array_equal(out[:, :, 11:21, 11:21], crop)
    assert out.sum() == pytest.approx(float(crop.sum()), rel=1e-6)


def test_a_whole_box_at_its_own_size_is_the_picture():
    pictures = f32(2, 12, 14, 3)
    boxes = jnp.array([[[3.0, 2, 8, 7], [0, 0, 5, 5]], [[1, 1, 6, 6], [9, 7, 14, 12]]])
    got = np.asarray(box_crops(pictures, boxes, 5))
    for b in range(2):
        for k in range(2):
            x, y = (int(v) for v in boxes[b, k, :2])
            np.testing.assert_allclose(got[b, k], pictures[b, y : y + 5, x : x + 5], atol=1e-6)


def test_whole_boxes_are_resampled_linearly_to_their_last_row():
    rows, columns = np.mgrid[:20, :30].astype(np.float32)
    picture = jnp.asarray(np.stack([rows + 0.5, columns + 0.5], -1)[None])
    got = np.asarray(box_crops(picture, jnp.array([[[4.0, 3, 20, 11]]]), 4))[0, 0]
    np.testing.assert_allclose(got[:, 0, 0], [4, 6, 8, 10], atol=1e-5)
    np.testing.assert_allclose(got[0, :, 1], [6, 10, 14, 18], atol=1e-5)
    outside = np.asarray(box_crops(picture, jnp.array([[[-8.0, -8, 8, 8]]]), 2))[0, 0]
    np.testing.assert_allclose(outside[0, 0], [0.5, 0.5], atol=1e-6)


def test_quarter_crops_are_the_originals_pooling():
    """ROI max pooling with its bins written out: rows floor(i (h+1)/h) to ceil((i+1) (h+1)/h) of the quarter."""
    pictures = f32(2, 12, 14, 2)
    boxes = np.array([[[3, 2, 8, 7], [10, 8, 13, 11]], [[0, 0, 6, 5], [20, 3, 24, 6]]], np.int32)
    assert losses.half_sizes(boxes) == (3, 3)
    h, w = 3, 2
    got = np.asarray(quarter_crops(pictures, jnp.asarray(boxes), (h, w)))
    expected = np.zeros((2, 2, h, w, 2))
    for b, k, i, j in np.ndindex(2, 2, h, w):
        x, y = boxes[b, k, :2]
        ys = range(y + i * (h + 1) // h, y - (-(i + 1) * (h + 1) // h))
        xs = range(x + j * (w + 1) // w, x - (-(j + 1) * (w + 1) // w))
        seen = [np.asarray(pictures)[b, r, c] for r in ys for c in xs if r < 12 and c < 14]
        expected[b, k, i, j] = np.max(seen, 0) if seen else 0
    np.testing.assert_array_equal(got, expected.astype(np.float32))
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(quarter_crops(p, boxes, (h, w)))))(pictures)
    assert float(jnp.sum(gradient)) == 2 * h * w * 2 + h * w * 2  # one each, but of the box beside the picture


def test_the_region_term_sums_the_regions_means():
    a, b = f32(2, 3, 4, 5, 3), f32(2, 3, 4, 5, 3)
    square = (np.asarray(a, np.float64) - np.asarray(b)) ** 2
    assert float(losses.region_term(a, b)) == pytest.approx(sum(square[:, k].mean() for k in range(3)), rel=1e-5)
