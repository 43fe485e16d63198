"""Picture codecs and resizing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tkjax import images
from tkjax.errors import UserError


def noise(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@given(h=st.integers(1, 20), w=st.integers(1, 20), tail=st.sampled_from([(), (3,), (4,)]), seed=st.integers(0, 999))
def test_png_is_lossless(h, w, tail, seed):
    picture = noise(seed, h, w, *tail)
    np.testing.assert_array_equal(images.decode_png(images.encode_png(picture)), picture)


def test_jpeg_of_quality_95_is_close_and_keeps_fine_colour():
    y, x = np.mgrid[:64, :64]
    picture = np.stack([128 + 100 * np.sin(x / 3), 128 + 100 * np.cos(y / 4), 128 + 0 * x], -1).astype(np.uint8)
    error = np.abs(images.decode_rgb(images.encode_jpeg(picture)).astype(int) - picture)
    assert error.mean() < 1.5 and error.max() < 16


@given(factor=st.integers(1, 5), h=st.integers(1, 6), w=st.integers(1, 6), seed=st.integers(0, 999))
def test_area_resize_by_a_whole_factor_is_the_mean_of_blocks(factor, h, w, seed):
    picture = noise(seed, h * factor, w * factor, 3)
    mean = picture.reshape(h, factor, w, factor, 3).mean((1, 3))
    assert np.abs(images.resize_area(picture, (h, w)) - mean).max() <= 1.0  # Pillow rounds after each axis


@given(h=st.integers(1, 40), w=st.integers(1, 40), nh=st.integers(1, 40), nw=st.integers(1, 40), v=st.integers(0, 255))
def test_every_resize_keeps_a_constant_picture(h, w, nh, nw, v):
    for c in ((), (3,)):
        assert (images.resize_area(np.full((h, w, *c), v, np.uint8), (nh, nw)) == v).all()
    label = np.full((h, w), v % 4, np.uint8)
    assert (images.resize_nearest(label, (nh, nw)) == v % 4).all()
    assert (images.resize_majority(label, (nh, nw)) == v % 4).all()


def test_colours_under_alpha_zero_do_not_bleed_in():
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[..., 0] = 255  # red, invisible
    rgba[:, ::2] = (0, 200, 0, 255)
    small = images.resize_area(rgba, (2, 2))
    np.testing.assert_array_equal(small[..., :3], np.broadcast_to([0, 200, 0], (2, 2, 3)))
    assert (np.abs(small[..., 3].astype(int) - 128) <= 1).all()


@given(factor=st.sampled_from([1, 3, 5]), h=st.integers(1, 5), w=st.integers(1, 5), seed=st.integers(0, 999))
def test_labels_shrink_by_majority_or_to_the_centre(factor, h, w, seed):
    label = np.random.default_rng(seed).integers(0, 4, (h * factor, w * factor), np.uint8)
    blocks = label.reshape(h, factor, w, factor).transpose(0, 2, 1, 3).reshape(h, w, -1)
    counts = (blocks[..., None] == np.arange(4)).sum(2)
    chosen = np.take_along_axis(counts, images.resize_majority(label, (h, w))[..., None].astype(int), 2)[..., 0]
    assert (counts.max(2) - chosen <= 1).all()  # a tie may fall either way after rounding
    np.testing.assert_array_equal(
        images.resize_nearest(label, (h, w)), label[factor // 2 :: factor, factor // 2 :: factor]
    )


@given(data=st.data())
def test_bytes_that_are_no_picture_are_refused_in_a_sentence(data):
    good = data.draw(st.sampled_from([images.encode_png(noise(0, 9, 9, 3)), images.encode_jpeg(noise(0, 9, 9, 3))]))
    bad = bytearray(good[: data.draw(st.integers(0, len(good) - 1))])
    if bad and data.draw(st.booleans()):
        bad[data.draw(st.integers(0, len(bad) - 1))] ^= data.draw(st.integers(1, 255))
    for decode in (images.decode_png, images.decode_rgb):
        try:
            decode(bytes(bad), "file x")
        except UserError as e:
            assert str(e).startswith("file x cannot be decoded") and "\n" not in str(e)


def test_empty_and_foreign_bytes_are_refused(tmp_path):
    for bad in (b"", b"GIF", b"\x89PNG\r\n\x1a\n" + bytes(40)):
        with pytest.raises(UserError, match="cannot be decoded"):
            images.decode_png(bad)
    with pytest.raises(UserError, match="No such file"):
        images.read_rgb(tmp_path / "none.png")


def test_wrong_arrays_are_refused():
    for bad in (np.zeros((4, 4, 2), np.uint8), np.zeros((0, 4), np.uint8)):
        with pytest.raises(ValueError, match="expected uint8"):
            images.encode_png(bad)
    with pytest.raises(ValueError, match=r"expected uint8 \[H, W, 3\]"):
        images._check(np.zeros((4, 4)), (3,))
