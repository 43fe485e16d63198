"""Picture codecs and resizing."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tkjax.errors import UserError
from tkjax.media import images


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


# ---------------------------------------------------------------- what Pillow opens


def stored(picture: Image.Image, kind: str = "PNG", **more) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **more)
    return out.getvalue()


TURNS = {1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: a.swapaxes(0, 1),
         6: np.rot90, 7: lambda a: np.rot90(a, 2).swapaxes(0, 1), 8: lambda a: np.rot90(a, -1)}  # fmt: skip


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("turn", TURNS)
def test_a_turned_picture_comes_upright(turn, kind):
    upright = noise(turn, 5, 8, 3)
    exif = Image.Exif()
    exif[0x0112] = turn  # "the first row of the file is the … of the scene" (EXIF 2.3, tag Orientation)
    lay = Image.fromarray(np.ascontiguousarray(TURNS[turn](upright)))
    data = stored(lay, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    np.testing.assert_array_equal(images.decode_rgb(data), upright)
    assert images.size_of(data) == (5, 8) and images.is_upright(data) == (turn == 1 or kind == "TIFF")


def ramp(dtype, scale):
    return Image.fromarray((np.arange(256)[None].repeat(3, 0) * scale).astype(dtype))


@pytest.mark.parametrize(
    ("picture", "kind"),
    [
        (ramp(np.uint16, 257), "PNG"),
        (ramp(np.uint16, 257), "TIFF"),
        (ramp(np.uint16, 257), "PPM"),
        (ramp(np.int32, 257), "TIFF"),
        (ramp(np.int32, 1), "TIFF"),
        (ramp(np.float32, 1 / 255), "TIFF"),
        (ramp(np.float32, 1), "TIFF"),
        (ramp(np.uint8, 1), "PNG"),
    ],
)
def test_grey_of_every_depth_is_the_same_ramp(picture, kind):
    for read in (images.decode_png, lambda d: images.decode_rgb(d)[..., 1]):
        np.testing.assert_array_equal(read(stored(picture, kind)), np.arange(256)[None].repeat(3, 0))


@pytest.mark.parametrize("values", [[0.0, 3.0], [-5.0, 100.0], [0.0, 1e9], [np.nan, 0.5], [0.0, np.inf]])
def test_floats_of_another_range_are_refused(values):
    with pytest.raises(UserError, match=r"file x holds floats.*expected brightness"):
        images.decode_rgb(stored(Image.fromarray(np.array([values], np.float32)), "TIFF"), "file x")
    with pytest.raises(UserError, match=r"file x holds whole numbers.*16 bits"):
        images.decode_rgb(stored(Image.fromarray(np.array([[0, 70000]], np.int32)), "TIFF"), "file x")


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("CMYK", "JPEG"), ("CMYK", "TIFF"), ("YCbCr", "TIFF"), ("P", "PNG"), ("P", "GIF"), ("RGBX", "TIFF")],
)
def test_other_kinds_of_colour_are_the_colour(mode, kind):
    data = stored(Image.new("RGB", (16, 16), (204, 0, 51)).convert(mode), kind)
    assert np.abs(images.decode_png(data)[..., :3].astype(int) - [204, 0, 51]).max() <= 3
    assert images.decode_rgb(data).shape == (16, 16, 3)


def half_clear(mode: str) -> bytes:
    """Left half blue and opaque, right half magenta that nobody sees."""
    rgba = np.zeros((4, 8, 4), np.uint8)
    rgba[:, :4], rgba[:, 4:] = (0, 0, 255, 255), (255, 0, 255, 0)
    picture = Image.fromarray(rgba)
    if mode == "palette":
        flat = Image.fromarray(rgba[..., :3]).quantize(2)
        return stored(flat, "PNG", transparency=int(np.asarray(flat)[0, 7]))
    if mode == "colour key":
        return stored(Image.fromarray(rgba[..., :3]), "PNG", transparency=(255, 0, 255))
    return stored(picture, mode, **({"lossless": True} if mode == "WEBP" else {}))


@pytest.mark.parametrize("mode", ["PNG", "TIFF", "WEBP", "palette", "colour key"])
def test_colours_that_nobody_sees_never_come_out(mode, tmp_path):
    rgb = images.decode_rgb(half_clear(mode))
    np.testing.assert_array_equal(rgb[:, :4], np.broadcast_to([0, 0, 255], (4, 4, 3)))
    np.testing.assert_array_equal(rgb[:, 4:], np.full((4, 4, 3), 255))
    assert images.is_transparent(images.decode_png(half_clear(mode)))
    (tmp_path / "a.png").write_bytes(half_clear(mode))
    with pytest.raises(UserError, match=r"a\.png is transparent in parts"):
        images.read_rgb(tmp_path / "a.png")


def test_grey_with_alpha_and_16_bit_keys_are_composited():
    la = np.zeros((2, 2, 2), np.uint8)
    la[..., 0], la[0, :, 1] = 40, 255
    assert images.decode_rgb(stored(Image.fromarray(la, "LA")))[:, 0, 0].tolist() == [40, 255]
    deep = Image.fromarray(np.array([[0, 25700]], np.uint16))
    assert images.decode_rgb(stored(deep, "PNG", transparency=0))[0, :, 0].tolist() == [255, 100]


def test_label_numbers_are_never_scaled():
    ids = np.array([[0, 1, 14, 18]])
    palette = Image.fromarray(ids.astype(np.uint8), "P")
    palette.putpalette([c for i in range(256) for c in (i, 255 - i, 3 * i % 256)])
    for picture in (ids.astype(np.uint8), ids.astype(np.uint16), np.repeat(ids.astype(np.uint8)[..., None], 3, -1)):
        np.testing.assert_array_equal(images.decode_ids(images_png(picture)), ids)
    np.testing.assert_array_equal(images.decode_ids(stored(palette)), ids)
    greys = Image.fromarray(np.array([[0, 1, 2, 3]], np.uint8), "P")  # as an optimiser stores four greys
    greys.putpalette([c for i in (0, 1, 14, 18) for c in (i, i, i)])
    np.testing.assert_array_equal(images.decode_ids(stored(greys)), ids)
    assert images.decode_ids(images_png(noise(0, 2, 2, 3))) is None


def images_png(picture: np.ndarray) -> bytes:
    return stored(Image.fromarray(picture))


def test_postscript_is_not_run():
    with pytest.raises(UserError, match="PostScript"):
        images.decode_rgb(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")


def test_wrong_arrays_are_refused():
    for bad in (np.zeros((4, 4, 2), np.uint8), np.zeros((0, 4), np.uint8)):
        with pytest.raises(ValueError, match="expected uint8"):
            images.encode_png(bad)
    with pytest.raises(ValueError, match=r"expected uint8 \[H, W, 3\]"):
        images.encode_jpeg(np.zeros((0, 4, 3), np.uint8))
