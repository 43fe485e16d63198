"""HDR and wide gamuts come out as the ordinary picture that they were made of; alpha channels are read, not dropped."""

from fractions import Fraction

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace

from preprocess import checks
from preprocess.framing import looks, survey
from preprocess.keying import backdrop, matting, screen
from tkjax.errors import UserError
from tkjax.media import hdr, video

H, W = 48, 64
TO_2020 = np.array([[0.627404, 0.329283, 0.043313], [0.069097, 0.919540, 0.011362], [0.016391, 0.088013, 0.895595]])
TO_P3 = np.array([[0.822462, 0.177538, 0.0], [0.033194, 0.966806, 0.0], [0.017083, 0.072397, 0.910520]])


def patches(most=235) -> np.ndarray:
    """Blocks of many colours, none so bright that it counts as a highlight."""
    levels = np.random.default_rng(0).integers(8, most, (H // 8, W // 8, 3))
    levels[0, :3] = [[0, 0, 0], [most] * 3, [224, 172, 150]]
    return np.kron(levels, np.ones((8, 8, 1))).astype(np.uint8)


def light(rgb: np.ndarray) -> np.ndarray:
    v = rgb / 255
    return np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)


def encode(nits: np.ndarray, transfer: int) -> np.ndarray:
    """Code values 0…1 of light in cd/m² (BT.2100)."""
    if transfer == 16:
        y = np.clip(nits / 10000, 0, 1) ** (2610 / 16384)
        return ((3424 / 4096 + 2413 / 128 * y) / (1 + 2392 / 128 * y)) ** (2523 / 32)
    display = nits / 1000
    luma = np.maximum(display @ [0.2627, 0.6780, 0.0593], 1e-9)[..., None]
    scene = np.clip(display * luma ** (1 / 1.2 - 1), 0, 1)
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), a * np.log(np.maximum(12 * scene - b, 1e-9)) + c)


def write(path, code: np.ndarray, transfer: int, primaries: int, space=Colorspace.BT2020, told=9, n=3):
    """A 10-bit lossless clip of one picture of code values 0…1."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = *code.shape[:2], "yuv444p10le"
        c = stream.codec_context
        c.color_trc, c.color_primaries, c.colorspace, c.color_range = transfer, primaries, told, ColorRange.MPEG
        for i in range(n):
            frame = av.VideoFrame.from_ndarray(np.rint(code * 65535).astype(np.uint16), "rgb48le")
            frame = frame.reformat(format="yuv444p10le", src_color_range=ColorRange.JPEG, dst_colorspace=space,
                                   dst_color_range=ColorRange.MPEG)  # fmt: skip
            frame.pts, frame.time_base = i, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(("transfer", "name"), [(16, "PQ"), (18, "HLG")])
def test_hdr_is_the_picture_that_it_was_made_of(tmp_path, transfer, name):
    true = patches()
    path = write(tmp_path / "a.mkv", encode(203 * light(true) @ TO_2020.T, transfer), transfer, 9)
    shown = next(video.read_frames_at_fps(path)).astype(int)
    assert np.abs(shown - true).max() <= 6 and np.abs(shown - true).mean() < 1.5
    assert video.probe(path).colours == name


@pytest.mark.parametrize(("primaries", "matrix", "name"), [(9, TO_2020, "BT.2020"), (12, TO_P3, "P3")])
def test_wide_gamuts_of_ordinary_range_are_narrowed(tmp_path, primaries, matrix, name):
    true = patches()
    linear = light(true) @ matrix.T
    code = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    space, told = (Colorspace.BT2020, 9) if primaries == 9 else (Colorspace.ITU709, 1)
    path = write(tmp_path / "a.mkv", code, 1, primaries, space, told)
    assert np.abs(next(video.read_frames(path)).astype(int) - true).max() <= 6
    assert video.probe(path).colours == name


def test_highlights_bend_towards_white_and_keep_their_order_and_hue():
    nits = np.geomspace(50, 10000, 64)[None, :, None] * np.array([1.0, 0.8, 0.6])
    code = np.rint(encode(nits, 16) * 65535).astype(np.uint16)
    shown = hdr.to_sdr(code, 16, 1)[0].astype(int)
    assert (np.diff(shown, axis=0) >= 0).all() and shown[-1, 0] == 255
    assert light(shown[-1])[1:] / light(shown[-1])[0] == pytest.approx([0.8, 0.6], abs=0.02)


def test_ordinary_video_is_not_touched(tmp_path):
    true = patches(255)
    path = write(tmp_path / "a.mkv", true / 255, 1, 1, Colorspace.ITU709, 1)
    assert np.abs(next(video.read_frames(path)).astype(int) - true).max() <= 1
    assert video.probe(path).colours == ""


def test_colours_that_nothing_can_undo_are_one_sentence(tmp_path):
    path = write(tmp_path / "a.mkv", patches() / 255, 16, 9, told=14)
    with pytest.raises(UserError, match=r"a\.mkv.*ICtCp.*export"):
        next(video.read_frames(path))


# ---------------------------------------------------------------- alpha


def cutout(i=0) -> np.ndarray:
    """A soft disc of skin; magenta that nobody was meant to see around it."""
    y, x = np.mgrid[:H, :W]
    alpha = np.clip((15 - np.hypot(x - W / 2 - i, y - H / 2)) / 4 + 0.5, 0, 1)
    rgb = np.where((alpha > 0)[..., None], [200, 150, 120], [255, 0, 255])
    return np.concatenate([rgb, np.rint(255 * alpha[..., None])], -1).astype(np.uint8)


def write_alpha(path, pictures):
    if path.suffix != ".png":
        with video.VideoWriter(path, H, W, alpha=True, crf=8) as out:
            for p in pictures:
                out.write(p)
        return path
    path = path.with_suffix(".mov")  # PNG in QuickTime, as compositors write it
    with av.open(str(path), "w") as container:
        stream = container.add_stream("png", rate=25)
        stream.height, stream.width, stream.pix_fmt = H, W, "rgba"
        for i, p in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(p, "rgba")
            frame.pts, frame.time_base = i, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("name", ["a.webm", "a.mov", "a.png"])
def test_the_alpha_channel_of_a_clip_is_read(tmp_path, name):
    path = write_alpha(tmp_path / name, [cutout(i) for i in range(5)])
    assert video.probe(path).alpha
    frames = list(video.read_frames_at_fps(path, 25, alpha=True))
    assert len(frames) == 5
    for i, rgba in enumerate(frames):
        true = cutout(i)
        assert np.abs(rgba[..., 3].astype(int) - true[..., 3]).mean() < 1.5
        inside = true[..., 3] == 255
        assert np.abs(rgba[..., :3].astype(int) - true[..., :3])[inside].mean() < 12
    assert next(video.read_frames_at_fps(path, 25)).shape == (H, W, 3)


def test_an_alpha_channel_that_is_opaque_is_none(tmp_path):
    pictures = [np.concatenate([cutout(i)[..., :3], np.full((H, W, 1), 255, np.uint8)], -1) for i in range(3)]
    assert not video.probe(write_alpha(tmp_path / "a.mov", pictures)).alpha
    assert not video.probe(write_alpha(tmp_path / "a.webm", pictures)).alpha


def test_the_clips_own_alpha_is_the_matte_and_hidden_colours_never_show(tmp_path):
    path = write_alpha(tmp_path / "a.webm", [cutout()] * 3)
    screen.screen(tmp_path, path, 3, 25.0, backdrop.OWN_ALPHA)
    own = screen.load(tmp_path)
    assert own.own_alpha
    for rgba in (cutout(), next(video.read_frames_at_fps(path, 25, alpha=True))):
        alpha, colour = matting.matte(own, rgba)
        np.testing.assert_array_equal(alpha, rgba[..., 3])
        over = backdrop.blend(colour, alpha).astype(int)
        a = alpha[..., None] / 255
        expected = a * [200, 150, 120] + (1 - a) * backdrop.TARGET
        assert np.abs(over - expected).max() < 25 and (over[alpha == 0] == backdrop.TARGET).all()
        assert np.abs(colour - [200, 150, 120]).mean() < 8  # continued everywhere
    nobody = np.zeros((H, W, 4), np.uint8)
    assert not matting.matte(own, nobody)[0].any()
    assert (looks.visible(nobody) == backdrop.TARGET).all()


def test_what_is_done_to_a_clip_is_a_check():
    info = video.VideoInfo(1080, 1080, 25.0, 100, 4.0, 0, True, "PQ", True)
    framing = survey.Framing((0, 0, 1080, 1080), 512, 512)
    found = {c.measure: c for c in survey.clip_checks(info, framing, "alpha")}
    assert found["colours"].value == "PQ mapped to BT.709" and found["alpha channel"].verdict == checks.GOOD
    assert found["picture size"].value == "1080x1080 reduced to 512x512"
    assert {c.measure: c for c in survey.clip_checks(info, framing, "0,255,0")}["alpha channel"].verdict == checks.WARN
    plain = video.VideoInfo(512, 512, 25.0, 100, 4.0, 0, True)
    assert survey.clip_checks(plain, survey.Framing((0, 0, 512, 512), 512, 512), "") == []
