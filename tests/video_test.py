"""Video: frames by their timestamps and as they are meant to be seen; files with sound in step."""

import itertools
from fractions import Fraction

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import peak
from tests.audio_test import CLICKS_S, click_times, clicks, encode
from tkjax.errors import UserError
from tkjax.media import audio, video


def picture(i: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Smooth, without symmetry; its mean brightness tells the number."""
    y, x = np.mgrid[:height, :width]
    base = 40 + 6 * (i % 30)
    return np.stack([base + x * 0.3, base + y * 0.4, base + 0 * x], -1).astype(np.uint8)


def number(rgb: np.ndarray) -> int:
    return round((float(rgb[2:-2, 2:-2, 2].mean()) - 40) / 6)


def write_times(path, times_ms, height=48, width=64, matrix=None):
    """A video whose frame i shows picture(i) from times_ms[i] on."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=1000, options={"crf": "8"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        if matrix is not None:
            stream.set_display_matrix(matrix)
        for i, t in enumerate(times_ms):
            frame = av.VideoFrame.from_ndarray(picture(i, height, width), "rgb24")
            frame.pts, frame.time_base = t, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@settings(max_examples=12)
@given(
    gaps=st.lists(st.integers(3, 130), min_size=1, max_size=24),
    start=st.sampled_from([0, 40, 333]),
    fps=st.sampled_from([25, 24, Fraction(30000, 1001)]),
    suffix=st.sampled_from(["mkv", "mp4"]),
)
def test_each_frame_is_the_one_on_show_at_its_time(tmp_path_factory, gaps, start, fps, suffix):
    times = np.cumsum([start, *gaps])
    path = write_times(tmp_path_factory.mktemp("v") / f"a.{suffix}", times.tolist())
    shown = [number(f) for f in video.read_frames_at_fps(path, fps)]
    for k, found in enumerate(shown):
        t = float(k / fps) * 1000 + times[0]
        assert found in {int(np.searchsorted(times, t + e, "right")) - 1 for e in (-0.51, 0.51)}, (k, shown, times)
    assert [number(f) for f in video.read_frames(path)] == list(range(len(times)))
    assert len(shown) >= np.floor((times[-1] - times[0]) / 1000 * float(fps)) + 1


@pytest.mark.parametrize("rate", [25, 30, Fraction(30000, 1001), 50, 12])
def test_a_constant_rate_keeps_its_length(tmp_path, rate):
    n = round(2 * rate)
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.height, stream.width = 48, 64
        for i in range(n):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(i), "rgb24")))
        container.mux(stream.encode(None))
    info = video.probe(tmp_path / "a.mp4")
    assert (info.width, info.height, info.n_frames, info.rotation, info.has_audio) == (64, 48, n, 0, False)
    assert info.fps == pytest.approx(float(rate)) and info.duration_s == pytest.approx(n / float(rate), abs=0.01)
    frames = [number(f) for f in video.read_frames_at_fps(tmp_path / "a.mp4")]
    assert abs(len(frames) - n / float(rate) * 25) < 1
    if rate == 25:
        assert frames == [i % 30 for i in range(50)]


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("flip_x", [False, True])
@pytest.mark.parametrize("flip_y", [False, True])
def test_the_display_matrix_is_obeyed(tmp_path, swap, flip_x, flip_y):
    one, h, w = 1 << 16, 48, 64
    # (x, y) of the coded picture goes to (a x + c y, b x + d y)
    sx, sy = (-1 if flip_x else 1), (-1 if flip_y else 1)
    a, b, c, d = (0, sy, sx, 0) if swap else (sx, 0, 0, sy)
    path = write_times(
        tmp_path / "a.mp4", [0, 40, 80], matrix=[a * one, b * one, 0, c * one, d * one, 0, 0, 0, one << 14]
    )
    y, x = np.mgrid[:h, :w]
    seen_x, seen_y = a * x + c * y, b * x + d * y
    seen = np.zeros((w, h, 3) if swap else (h, w, 3), np.uint8)
    seen[seen_y - seen_y.min(), seen_x - seen_x.min()] = picture(0)
    frame = next(video.read_frames(path))
    assert frame.shape == seen.shape and np.abs(frame.astype(int) - seen).mean() < 3
    info = video.probe(path)
    assert (info.height, info.width) == seen.shape[:2]
    turn = {(False, False, False): 0, (True, True, False): 90, (False, True, True): 180, (True, False, True): 270}
    if (swap, flip_x, flip_y) in turn:
        assert info.rotation == turn[swap, flip_x, flip_y]


@settings(max_examples=10)
@given(h=st.integers(16, 50), w=st.integers(16, 50), n=st.integers(1, 30), fps=st.sampled_from([25, 25.0, 30, 24]))
def test_what_is_written_is_read_padded_to_even(tmp_path_factory, h, w, n, fps):
    path = tmp_path_factory.mktemp("v") / "a.mp4"
    with video.VideoWriter(path, h, w, fps, crf=8) as out:
        for i in range(n):
            out.write(picture(i, h, w))
    frames = list(video.read_frames_at_fps(path, fps))
    assert len(frames) == n == video.probe(path).n_frames
    for i, frame in enumerate(frames):
        assert frame.shape == (h + h % 2, w + w % 2, 3)
        assert np.abs(frame[:h, :w].astype(int) - picture(i, h, w)).mean() < 3
    assert list(path.parent.iterdir()) == [path]


def test_saturated_colours_survive(tmp_path):
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0], [200, 120, 90]], np.uint8)
    rgb = np.repeat(np.repeat(colours[None], 32, 1), 64, 0)
    with video.VideoWriter(tmp_path / "a.mp4", *rgb.shape[:2], crf=4) as out:
        for _ in range(3):
            out.write(rgb)
    frame = next(video.read_frames(tmp_path / "a.mp4"))
    for k in range(len(colours)):
        inside = frame[8:-8, 32 * k + 8 : 32 * k + 24].reshape(-1, 3)
        assert np.abs(inside.mean(0) - colours[k]).max() < 5


# ---------------------------------------------------------------- sound


def sounds(tmp_path):
    pcm = clicks(16000)
    stereo = np.tile(clicks(44100), (2, 1))
    return {
        "array": pcm,
        "blocks": (pcm[i : i + 777] for i in range(0, len(pcm), 777)),
        "wav": encode(tmp_path / "s.wav", pcm, "pcm_s16le", 16000),
        "stereo m4a": encode(tmp_path / "s.m4a", stereo, "aac", 44100, channels=2),
        "mp3 text path": str(encode(tmp_path / "s.mp3", clicks(44100), "libmp3lame", 44100)),
    }


@pytest.mark.heavy
@pytest.mark.parametrize("kind", ["array", "blocks", "wav", "stereo m4a", "mp3 text path"])
@pytest.mark.parametrize("n", [50, 80])
def test_sound_is_in_step_and_as_long_as_the_pictures(tmp_path, kind, n):
    path = tmp_path / "a.mp4"
    with video.VideoWriter(path, 48, 64, audio=sounds(tmp_path)[kind]) as out:
        for i in range(n):
            out.write(picture(i))
    pcm = audio.read_audio(path)
    assert abs(len(pcm) / audio.RATE - n / 25) <= 0.04
    np.testing.assert_allclose(click_times(pcm), CLICKS_S, atol=0.005)
    with av.open(str(path)) as container:
        lengths = {s.type: float(s.duration * s.time_base) for s in container.streams}
        assert container.streams.audio[0].codec_context.name == "aac"
    assert lengths["video"] == pytest.approx(n / 25) and abs(lengths["audio"] - n / 25) <= 0.04
    assert len(list(video.read_frames_at_fps(path))) == n


def test_sound_is_pulled_in_step_with_the_pictures(tmp_path):
    taken = [0]

    def blocks():
        for _ in range(1000):
            taken[0] += 160
            yield np.zeros(160, np.float32)

    with video.VideoWriter(tmp_path / "a.mp4", 48, 64, audio=blocks()) as out:
        for i in range(40):
            out.write(picture(i))
            assert taken[0] <= (i + 1) * 640 + 1600, "runs ahead of the pictures"


def test_metadata_survives_and_the_index_stands_in_front(tmp_path):
    wanted = {"title": "A title", "comment": "synthetic; id 7", "avatar_id": "0123abcd"}
    with video.VideoWriter(tmp_path / "a.mp4", 48, 64, metadata=wanted) as out:
        out.write(picture(0))
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert wanted.items() <= container.metadata.items()
    data = (tmp_path / "a.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"old")

    def broken():
        yield np.zeros(16000, np.float32)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), video.VideoWriter(path, 48, 64, audio=broken()) as out:
        for i in range(40):
            out.write(picture(i))
    with pytest.raises(UserError, match="no frame was written"), video.VideoWriter(path, 48, 64):
        pass
    with pytest.raises(ValueError, match="expected uint8"), video.VideoWriter(path, 48, 64) as out:
        out.write(picture(0, 46, 64))
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_bad_input_is_refused_in_a_sentence(tmp_path):
    (tmp_path / "text.mp4").write_text("no video " * 30)
    encode(tmp_path / "sound.m4a", clicks(16000), "aac", 16000)
    for name, words in (
        ("none.mp4", "no such file"),
        ("text.mp4", "not a media file"),
        ("sound.m4a", "no moving picture"),
    ):
        for call in (video.probe, lambda p: next(video.read_frames(p)), lambda p: next(video.read_frames_at_fps(p))):
            with pytest.raises(UserError, match=words) as error:
                call(tmp_path / name)
            assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(UserError, match="no such file"):
        video.VideoWriter(tmp_path / "out.mp4", 48, 64, audio=tmp_path / "none.wav")
    with pytest.raises(UserError, match="cannot be written as video"):
        video.VideoWriter(tmp_path / "out.strange", 48, 64)
    assert {p.name for p in tmp_path.iterdir()} == {"text.mp4", "sound.m4a"}


def test_a_truncated_video_gives_its_frames_or_a_sentence(tmp_path):
    write_times(tmp_path / "a.mkv", range(0, 1200, 40))
    data = (tmp_path / "a.mkv").read_bytes()
    for share in (0.2, 0.6, 0.9):
        (tmp_path / "b.mkv").write_bytes(data[: int(len(data) * share)])
        try:
            found = [number(f) for f in video.read_frames(tmp_path / "b.mkv")]
            assert found == sorted(found)
        except UserError as e:
            assert "\n" not in str(e)


def test_start_and_stop_choose_frames_by_number(tmp_path):
    path = write_times(tmp_path / "a.mp4", [0, 10, 100, 130, 500])
    assert [number(f) for f in video.read_frames(path, 1, 4)] == [1, 2, 3]
    assert [number(f) for f in itertools.islice(video.read_frames(path, 3), 1)] == [3]


def test_the_real_clip_is_what_its_readme_says(data_dir):
    info = video.probe(data_dir / "talking/may_portrait_512.mp4")
    assert (info.width, info.height, info.fps, info.n_frames, info.has_audio) == (512, 512, 25.0, 331, True)
    pcm = audio.read_audio(data_dir / "talking/may_portrait_512.mp4")
    assert abs(len(pcm) / audio.RATE - 13.24) < 0.1


@pytest.mark.heavy
@pytest.mark.skipif(not peak.can_be_read, reason="the system does not tell a process's peak memory")
def test_memory_does_not_grow_with_the_length_of_the_video(tmp_path):
    """The longer one's further frames are 62 MB, 31 MB as they are encoded."""

    def code(seconds):
        return f"""
import numpy as np
from tkjax.media import audio, video
path, seconds = {str(tmp_path / "a.mp4")!r}, {seconds}
sound = (np.zeros(16000, np.float32) for _ in range(seconds))
with video.VideoWriter(path, 144, 144, audio=sound) as out:
    for i in range(25 * seconds):
        out.write(np.full((144, 144, 3), i % 251, np.uint8))
n = sum(1 for _ in video.read_frames_at_fps(path))
s = sum(len(b) for b in audio.stream_audio(path, block=1600))
assert n == 25 * seconds and abs(s - 16000 * seconds) < 640, (n, s)
"""

    short, long = peak.resident_mb(code(8)), peak.resident_mb(code(48))
    assert long - short < 25, f"{short:.0f} MB after 8 s, {long:.0f} MB after 48 s"
