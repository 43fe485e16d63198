"""Measures against independent implementations and closed forms."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from tkjax.measure import formulas


def pictures(seed, shape=(40, 33, 3), noise=20):
    rng = np.random.default_rng(seed)
    a = rng.integers(0, 256, shape).astype(np.float64)
    a = (a + np.roll(a, 1, 0) + np.roll(a, 1, 1)) / 3
    b = np.clip(a + rng.normal(0, noise, shape), 0, 255)
    return a.astype(np.uint8), b.astype(np.uint8)


@given(st.integers(0, 1000), st.floats(1, 80))
def test_psnr_and_ssim_equal_scikit_image(seed, noise):
    a, b = pictures(seed, noise=noise)
    assert formulas.psnr(a, b) == pytest.approx(peak_signal_noise_ratio(a, b, data_range=255), abs=1e-4)
    options = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255, channel_axis=2)
    assert formulas.ssim(a, b) == pytest.approx(structural_similarity(a, b, **options), abs=2e-5)


def test_equal_pictures_score_the_highest_and_psnr_is_symmetric():
    a, b = pictures(0)
    assert formulas.psnr(a, a) == formulas.MAX_PSNR_DB and formulas.ssim(a, a) == pytest.approx(1)
    assert formulas.psnr(a, b) == formulas.psnr(b, a)


def test_a_constant_difference_has_a_closed_form():
    a = np.full((20, 20, 3), 100, np.uint8)
    assert formulas.psnr(a, a + np.uint8(10)) == pytest.approx(20 * np.log10(25.5))


def test_a_picture_smaller_than_the_window_has_no_ssim():
    a = np.zeros((10, 40, 3), np.uint8)
    assert np.isnan(formulas.ssim(a, a))


def test_crop_is_half_open_and_empty_boxes_give_none():
    a = np.arange(5 * 6 * 3, dtype=np.uint8).reshape(5, 6, 3)
    assert np.array_equal(formulas.crop(a, (1, 2, 4, 5)), a[2:5, 1:4])
    assert formulas.crop(a, (3, 3, 3, 5)) is None and formulas.crop(a, (-5, -5, 0, 0)) is None


@given(st.integers(0, 1000), st.floats(-50, 50), st.floats(-50, 50))
def test_lip_distance_ignores_where_the_mouth_is(seed, dx, dy):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(0, 30, (2, 68, 2))
    moved = b + np.array([dx, dy])
    assert formulas.lip_distance_px(a, moved) == pytest.approx(formulas.lip_distance_px(a, b))
    assert formulas.lip_distance_px(a, a + np.array([dx, dy])) == pytest.approx(0, abs=1e-9)


def test_lip_distance_by_hand():
    a = np.zeros((68, 2))
    b = a.copy()
    b[48:58, 0], b[58:68, 0] = 3, -3  # mean 0, every lip point 3 px away
    assert formulas.lip_distance_px(a, b) == pytest.approx(3)
    a[36:42], a[42:48] = (10, 5), (70, 85)
    assert formulas.eye_distance_px(a) == pytest.approx(100)


@given(st.integers(0, 1000), st.floats(0.1, 5), st.floats(-3, 3))
def test_correlation_is_blind_to_scale_and_offset_and_skips_gaps(seed, scale, offset):
    a = np.random.default_rng(seed).normal(size=12)
    b = scale * a + offset
    b[3] = np.nan
    assert formulas.correlation(a, b) == pytest.approx(1)
    assert formulas.correlation(a, -b) == pytest.approx(-1)


def test_a_constant_has_no_correlation():
    assert np.isnan(formulas.correlation(np.ones(5), np.arange(5.0)))


@given(st.integers(0, 1000))
def test_a_constant_rotation_offset_costs_nothing_and_a_known_wobble_is_measured(seed):
    rng = np.random.default_rng(seed)
    a = Rotation.random(20, random_state=seed).as_matrix()
    offset = Rotation.from_rotvec(rng.normal(0, 0.5, 3)).as_matrix()
    assert formulas.rotation_rms_deg(a, a @ offset) == pytest.approx(0, abs=1e-3)
    wobble = Rotation.from_euler("x", np.tile([2.0, -2.0], 10)[:, None], degrees=True).as_matrix()
    assert formulas.rotation_rms_deg(a, a @ wobble) == pytest.approx(2, abs=1e-3)


def test_unequal_shapes_are_refused():
    with pytest.raises((ValueError, TypeError), match=r"shape|H W C"):  # jaxtyping, where it is on, is first
        formulas.psnr(np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5, 3), np.uint8))


# ---------------------------------------------------------------- seams


def neck_label(height=256, width=64, line=100):
    """Head above the line in the middle columns, torso below it, background at the sides."""
    label = np.zeros((height, width), np.uint8)
    label[20:line, 16:48] = 1
    label[line:, 16:48] = 3
    return label


def test_the_band_reaches_two_pixels_to_each_side_at_256_and_scales():
    band = formulas.neck_band(neck_label())
    rows, columns = np.nonzero(band)
    assert (rows.min(), rows.max()) == (98, 101)
    assert (columns.min(), columns.max()) == (15, 48)  # the line's ends grow sideways by reach - 1
    twice = formulas.neck_band(neck_label(512, 128, 200))
    assert (np.nonzero(twice)[0].min(), np.nonzero(twice)[0].max()) == (196, 203)
    tiny = formulas.neck_band(neck_label(40, 64, 30))
    assert (np.nonzero(tiny)[0].min(), np.nonzero(tiny)[0].max()) == (29, 30)


def test_the_neck_counts_like_the_torso_and_touching_the_background_is_no_seam():
    label = neck_label()
    expected = formulas.neck_band(label)
    label[label == 3] = 2
    assert np.array_equal(formulas.neck_band(label), expected)
    label[100:] = 0
    assert not formulas.neck_band(label).any()
    picture = np.zeros((*label.shape, 3), np.uint8)
    assert np.isnan(formulas.seam_error(picture, picture, label))


def test_seam_error_of_a_step_at_the_neck_by_hand():
    """A head 12 levels brighter: the step is in one of the band's three vertical steps, and at no other place."""
    label = neck_label(width=64)
    label[label > 0] = 0
    label[20:100], label[100:] = 1, 3  # the whole width: every horizontal step is 0
    target = np.random.default_rng(0).integers(50, 150, (*label.shape, 3)).astype(np.uint8)
    image = target.copy()
    image[20:100] += 12
    vertical, horizontal = 3 * 64, 4 * 63
    assert formulas.seam_error(image, target, label) == pytest.approx(12 * 64 / (vertical + horizontal))
    assert formulas.seam_error(target, target, label) == 0


@given(st.integers(0, 1000), st.integers(-40, 40))
def test_seam_error_is_blind_to_a_constant_and_symmetric(seed, shift):
    rng = np.random.default_rng(seed)
    label = neck_label()
    a, b = rng.integers(50, 200, (2, *label.shape, 3)).astype(np.uint8)
    value = formulas.seam_error(a, b, label)
    assert formulas.seam_error((a + np.int16(shift)).astype(np.uint8), b, label) == pytest.approx(value)
    assert formulas.seam_error(b, a, label) == pytest.approx(value)
    far = a.copy()
    far[:90] = rng.integers(0, 255, far[:90].shape)  # away from the neck nothing counts
    assert formulas.seam_error(far, b, label) == pytest.approx(value)


def test_a_soft_transition_has_less_seam_than_a_hard_one():
    label = neck_label()
    target = np.full((*label.shape, 3), 100, np.uint8)
    hard, soft = target.copy(), target.copy()
    hard[:100] = 130
    soft[:80] = 130
    soft[80:120] = np.rint(np.linspace(130, 100, 40))[:, None, None]
    assert 0 < formulas.seam_error(soft, target, label) < 0.2 * formulas.seam_error(hard, target, label)


def test_box_edge_error_by_hand():
    base = np.random.default_rng(1).integers(0, 200, (60, 80, 3)).astype(np.uint8)
    frame = base.copy()
    frame[10:40, 20:50] += 7
    assert formulas.box_edge_error(frame, base, (20, 10, 50, 40)) == pytest.approx(7)
    assert formulas.box_edge_error(base, base, (20, 10, 50, 40)) == 0
    assert formulas.box_edge_error(frame, base, (22, 12, 48, 38)) == 0  # its own edges lie inside the changed part
    frame = base.copy()
    frame[10:40, 20:50, 0] += 6  # one channel, and along the right edge faded away
    frame[10:40, 49, 0] -= 6
    assert formulas.box_edge_error(frame, base, (20, 10, 50, 40)) == pytest.approx((30 * 2 + 29 * 2 * 2) / 120)


def test_edges_on_the_frames_border_do_not_count():
    base = np.zeros((60, 80, 3), np.uint8)
    frame = base.copy()
    frame[:, :50] = 9
    assert formulas.box_edge_error(frame, base, (0, 0, 50, 60)) == 9  # the right edge alone
    assert formulas.box_edge_error(frame, base, (-10, -5, 50, 70)) == 9  # a box that leaves the frame
    assert np.isnan(formulas.box_edge_error(frame, base, (0, 0, 80, 60)))


def test_psnr_outside_the_mask_sees_those_pixels_alone():
    base = np.random.default_rng(2).integers(0, 200, (30, 40, 3)).astype(np.uint8)
    mask = np.zeros((30, 40), np.float32)
    mask[5:20, 5:20] = 0.01
    frame = base.copy()
    frame[5:20, 5:20] = 255
    assert formulas.psnr_outside(frame, base, mask) == formulas.MAX_PSNR_DB
    frame[mask == 0] += 10
    assert formulas.psnr_outside(frame, base, mask) == pytest.approx(20 * np.log10(25.5))
    assert np.isnan(formulas.psnr_outside(frame, base, np.ones_like(mask)))
