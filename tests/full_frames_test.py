"""Frames by number: the right one in whatever order they are asked for, few decoded, little kept."""

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tkjax.drive.motion import ping_pong
from tkjax.errors import UserError
from tkjax.host import files
from tkjax.media import full_frames
from tkjax.media.full_frames import FullFrames, write_video

N, HW = 60, (49, 66)


def picture(i: int) -> np.ndarray:
    """Eight bars, black or white, that spell the number."""
    bits = np.array([(i >> b) & 1 for b in range(8)], np.uint8) * 220 + 16
    return np.repeat(np.broadcast_to(np.repeat(bits, 9)[: HW[1]], HW)[..., None], 3, -1)


def number(rgb: np.ndarray) -> int:
    lines = np.asarray(rgb[..., 0] if rgb.ndim == 3 else rgb)[20:30].mean(0)
    return sum(int(lines[9 * b + 3] > 128) << b for b in range(7))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("full") / "full.mp4"
    write_video(path, map(picture, range(N)), HW, 25.0)
    return path


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, N - 1), min_size=1, max_size=12), st.sampled_from([9, 1000]))
def test_any_order_gives_the_frame_that_was_asked_for(path, order, most):
    frames = FullFrames(path, HW, 25.0)
    frames._most = most
    for k in order:
        assert frames[k].shape == (*HW, 3) and number(frames[k]) == k
        assert len(frames._kept) <= most
    frames.close()


def test_forth_and_back_decodes_each_frame_about_once_a_turn(path, monkeypatch):
    decoded, plain = [0], FullFrames._numbered

    def counted(self):
        for pair in plain(self):
            decoded[0] += 1
            yield pair

    monkeypatch.setattr(FullFrames, "_numbered", counted)
    frames = FullFrames(path, HW, 25.0)
    frames._most = 2 * full_frames.GOP
    for i in range(4 * N):
        assert number(frames[ping_pong(i, N)]) == ping_pong(i, N)
    assert decoded[0] <= 1.25 * 4 * N


def test_a_foreign_video_with_one_key_frame_works_too(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"g": "250", "bf": "3"})
        stream.height, stream.width, stream.pix_fmt = 50, 66, "yuv420p"
        for i in range(40):
            rgb = np.pad(picture(i), ((0, 1), (0, 0), (0, 0)), mode="edge")
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, "rgb24")))
        container.mux(stream.encode(None))
    frames = FullFrames(tmp_path / "a.mp4", HW, 25.0)
    frames._most = 10
    for k in [39, 38, 37, 20, 19, 0, 5, 39]:
        assert number(frames[k]) == k


def test_a_grey_lossless_matte_comes_back_exactly(tmp_path):
    mattes = [np.random.default_rng(i).integers(0, 256, HW, np.uint8) for i in range(5)]
    with av.open(str(tmp_path / "m.mp4"), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = *HW, "gray"
        for matte in mattes:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(matte, "gray")))
        container.mux(stream.encode(None))
    frames = FullFrames(tmp_path / "m.mp4", HW, 25.0, grey=True)
    for k in (4, 0, 2, 1):
        np.testing.assert_array_equal(frames[k], mattes[k])


def test_what_is_not_there_is_one_sentence_with_the_path(path, tmp_path):
    with pytest.raises(UserError, match=r"full\.mp4: frame 60 cannot be decoded"):
        FullFrames(path, HW, 25.0)[60]
    files.write_atomic(tmp_path / "bad.mp4", b"no video")
    with pytest.raises(UserError, match=r"bad\.mp4"):
        FullFrames(tmp_path / "bad.mp4", HW, 25.0)[0]
    with pytest.raises(UserError, match="expected 99x99"):
        FullFrames(path, (99, 99), 25.0)[0]
