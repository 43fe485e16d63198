"""Measures against independent implementations and closed forms."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from tkjax import metrics


def pictures(seed, shape=(40, 33, 3), noise=20):
    rng = np.random.default_rng(seed)
    a = rng.integers(0, 256, shape).astype(np.float64)
    a = (a + np.roll(a, 1, 0) + np.roll(a, 1, 1)) / 3
    b = np.clip(a + rng.normal(0, noise, shape), 0, 255)
    return a.astype(np.uint8), b.astype(np.uint8)


@given(st.integers(0, 1000), st.floats(1, 80))
def test_psnr_and_ssim_equal_scikit_image(seed, noise):
    a, b = pictures(seed, noise=noise)
    assert metrics.psnr(a, b) == pytest.approx(peak_signal_noise_ratio(a, b, data_range=255), abs=1e-4)
    options = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255, channel_axis=2)
    assert metrics.ssim(a, b) == pytest.approx(structural_similarity(a, b, **options), abs=2e-5)


def test_equal_pictures_score_the_highest_and_psnr_is_symmetric():
    a, b = pictures(0)
    assert metrics.psnr(a, a) == metrics.MAX_PSNR_DB and metrics.ssim(a, a) == pytest.approx(1)
    assert metrics.psnr(a, b) == metrics.psnr(b, a)


def test_a_constant_difference_has_a_closed_form():
    a = np.full((20, 20, 3), 100, np.uint8)
    assert metrics.psnr(a, a + np.uint8(10)) == pytest.approx(20 * np.log10(25.5))


def test_a_picture_smaller_than_the_window_has_no_ssim():
    a = np.zeros((10, 40, 3), np.uint8)
    assert np.isnan(metrics.ssim(a, a))


def test_crop_is_half_open_and_empty_boxes_give_none():
    a = np.arange(5 * 6 * 3, dtype=np.uint8).reshape(5, 6, 3)
    assert np.array_equal(metrics.crop(a, (1, 2, 4, 5)), a[2:5, 1:4])
    assert metrics.crop(a, (3, 3, 3, 5)) is None and metrics.crop(a, (-5, -5, 0, 0)) is None


@given(st.integers(0, 1000), st.floats(-50, 50), st.floats(-50, 50))
def test_lip_distance_ignores_where_the_mouth_is(seed, dx, dy):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(0, 30, (2, 68, 2))
    moved = b + np.array([dx, dy])
    assert metrics.lip_distance_px(a, moved) == pytest.approx(metrics.lip_distance_px(a, b))
    assert metrics.lip_distance_px(a, a + np.array([dx, dy])) == pytest.approx(0, abs=1e-9)


def test_lip_distance_by_hand():
    a = np.zeros((68, 2))
    b = a.copy()
    b[48:58, 0], b[58:68, 0] = 3, -3  # mean 0, every lip point 3 px away
    assert metrics.lip_distance_px(a, b) == pytest.approx(3)
    a[36:42], a[42:48] = (10, 5), (70, 85)
    assert metrics.eye_distance_px(a) == pytest.approx(100)


@given(st.integers(0, 1000), st.floats(0.1, 5), st.floats(-3, 3))
def test_correlation_is_blind_to_scale_and_offset_and_skips_gaps(seed, scale, offset):
    a = np.random.default_rng(seed).normal(size=12)
    b = scale * a + offset
    b[3] = np.nan
    assert metrics.correlation(a, b) == pytest.approx(1)
    assert metrics.correlation(a, -b) == pytest.approx(-1)


def test_a_constant_has_no_correlation():
    assert np.isnan(metrics.correlation(np.ones(5), np.arange(5.0)))


@given(st.integers(0, 1000))
def test_a_constant_rotation_offset_costs_nothing_and_a_known_wobble_is_measured(seed):
    rng = np.random.default_rng(seed)
    a = Rotation.random(20, random_state=seed).as_matrix()
    offset = Rotation.from_rotvec(rng.normal(0, 0.5, 3)).as_matrix()
    assert metrics.rotation_rms_deg(a, a @ offset) == pytest.approx(0, abs=1e-3)
    wobble = Rotation.from_euler("x", np.tile([2.0, -2.0], 10)[:, None], degrees=True).as_matrix()
    assert metrics.rotation_rms_deg(a, a @ wobble) == pytest.approx(2, abs=1e-3)


def test_unequal_shapes_are_refused():
    with pytest.raises((ValueError, TypeError), match=r"shape|H W C"):  # jaxtyping, where it is on, is first
        metrics.psnr(np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5, 3), np.uint8))
