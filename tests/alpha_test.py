"""Alpha that is written is read: straight, in ProRes 4444 and VP9, with sound."""

import av
import numpy as np
import pytest

from tkjax.errors import UserError
from tkjax.media import audio, video


def cutout(i: int, h: int, w: int) -> np.ndarray:
    """A disc with a soft edge, its colour continued over the whole picture."""
    y, x = np.mgrid[:h, :w]
    alpha = np.clip((0.3 * h - np.hypot(x - w / 2 - i, y - h / 2)) / 6 + 0.5, 0, 1)
    rgb = np.stack([120 + 40 * x / w, 90 + 60 * y / h, 0 * x + 60.0], -1)
    return np.concatenate([rgb, 255 * alpha[..., None]], -1).astype(np.uint8)


def read_rgba(path) -> list[np.ndarray]:
    """Frames of a file with alpha; VP9's second picture needs libvpx."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        decoder = stream.codec_context
        if decoder.name == "vp9":
            decoder = av.CodecContext.create("libvpx-vp9", "r")
        frames = [f for packet in container.demux(stream) for f in decoder.decode(packet if packet.size else None)]
        assert all("a" in f.format.name for f in frames), frames[0].format.name
        return [np.array(f.to_ndarray(format="rgba")) for f in frames]


@pytest.mark.parametrize("suffix", video.ALPHA_SUFFIXES)
@pytest.mark.parametrize("size", [(64, 96), (49, 63)])
def test_alpha_is_read_as_it_was_written(tmp_path, suffix, size):
    path, sound = tmp_path / f"a{suffix}", 0.1 * np.sin(np.arange(16000) * 0.1).astype(np.float32)
    written = [cutout(i, *size) for i in range(7)]
    with video.VideoWriter(path, *size, audio=sound, alpha=True, crf=8) as out:
        for picture in written:
            out.write(picture)
    frames = [f[: size[0], : size[1]].astype(int) for f in read_rgba(path)]
    assert len(frames) == 7
    for a, b in zip(written, frames):
        assert np.abs(a[..., 3] - b[..., 3]).mean() < 1 and np.abs(a[..., 3] - b[..., 3]).max() <= 24
        solid = a[..., 3] == 255
        assert np.abs(a[..., :3] - b[..., :3])[solid].mean() < 4
    assert (frames[0][0, 0, 3] <= 1) and frames[0][size[0] // 2, size[1] // 2, 3] >= 254
    assert len(audio.read_audio(path)) / audio.RATE == pytest.approx(7 / 25, abs=0.05)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["a.mp4", "a.m4v", "a.mkv"])
def test_files_without_an_alpha_channel_are_refused(tmp_path, name):
    with pytest.raises(UserError, match=r"alpha channel.*\.mov.*\.webm"):
        video.VideoWriter(tmp_path / name, 16, 16, alpha=True)
