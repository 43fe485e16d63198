"""--mode=mux: any pictures with any sound, in step, as long as the shorter, and nothing else touched."""

import itertools
from fractions import Fraction

import av
import numpy as np
import pytest

from tests.audio_test import click_times, clicks
from tests.video_test import number, picture
from tkjax.app import cli, options
from tkjax.errors import UserError
from tkjax.media import audio, mux, video


def make_video(path, codec="libx264", n=30, form="yuv420p", rate=25, options=None):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width, stream.pix_fmt = 48, 64, form
        for i in range(n):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(i), "rgb24")))
        container.mux(stream.encode(None))
    return path


def make_sound(path, codec, seconds=2.0, rate=48000):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(int(rate * seconds)) / rate)
        frame = av.AudioFrame.from_ndarray(tone.astype(np.float32)[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    kinds = [("h264.mp4", "libx264", "yuv420p"), ("mjpeg.avi", "mjpeg", "yuvj420p"), ("h264.ts", "libx264", "yuv420p")]
    for name, codec, form in [*kinds, ("vp9.webm", "libvpx-vp9", "yuv420p"), ("mpeg4.avi", "mpeg4", "yuv420p")]:
        make_video(folder / name, codec, form=form)
    audio.write_wav(folder / "s.wav", (0.3 * np.sin(0.17 * np.arange(32000))).astype(np.float32))
    for name, codec in (("s.mp3", "libmp3lame"), ("s.m4a", "aac"), ("s.opus", "libopus"), ("s.flac", "flac")):
        make_sound(folder / name, codec)
    return folder


PAIRS = [*itertools.product(["h264.mp4", "mjpeg.avi", "h264.ts", "vp9.webm", "mpeg4.avi"], [".mp4", ".mov"])]
PAIRS += [("mpeg4.avi", ".mkv"), ("mjpeg.avi", ".webm"), ("vp9.webm", ".avi")]
SOUNDS = ("s.wav", "s.mp3", "s.m4a", "s.opus", "s.flac")


@pytest.mark.heavy
@pytest.mark.parametrize("k", range(len(PAIRS)))
def test_any_pictures_and_any_sound_become_one_file(made, tmp_path, k):
    (name, suffix), sound = PAIRS[k], SOUNDS[k % len(SOUNDS)]
    out = tmp_path / f"out{suffix}"
    result = mux.mux(made / name, made / sound, out)
    shown = [number(f) for f in video.read_frames(out)]
    heard = audio.read_audio(out)
    assert len(shown) == 30 and np.abs(np.array(shown) - np.arange(30)).max() <= 1  # encoded twice: 6 levels a number
    assert result.seconds == pytest.approx(1.2, abs=0.01)
    assert len(heard) / audio.RATE == pytest.approx(1.2, abs=0.1) and heard.std() > 0.15  # a packet of FLAC is 96 ms
    assert [p.name for p in tmp_path.iterdir()] == [out.name]


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("name", "sound", "suffix", "pictures", "heard"),
    [
        ("h264.mp4", "s.m4a", ".mp4", "copied h264", "copied aac"),
        ("h264.ts", "s.mp3", ".mp4", "copied h264", "copied mp3"),
        ("h264.mp4", "s.wav", ".mp4", "copied h264", "encoded by aac"),
        ("mjpeg.avi", "s.wav", ".mp4", "encoded by libx264", "encoded by aac"),
        ("mjpeg.avi", "s.wav", ".mkv", "copied mjpeg", "copied pcm_s16le"),
        ("h264.mp4", "s.opus", ".webm", "encoded by libvpx-vp9", "copied opus"),
        ("vp9.webm", "s.m4a", ".webm", "copied vp9", "encoded by libopus"),
    ],
)
def test_streams_are_copied_where_the_result_holds_them(made, tmp_path, name, sound, suffix, pictures, heard):
    out = tmp_path / f"out{suffix}"
    result = mux.mux(made / name, made / sound, out)
    assert (result.video, result.sound) == (pictures, heard)
    if result.video.startswith("copied"):
        with av.open(str(made / name)) as a, av.open(str(out)) as b:
            sizes = [[len(f.to_ndarray().tobytes()) for f in c.decode(video=0)] for c in (a, b)]
            assert sizes[0] == sizes[1]
        pairs = zip(video.read_frames(made / name), video.read_frames(out), strict=True)
        assert all(np.array_equal(*pair) for pair in pairs)


@pytest.mark.parametrize("name", ["h264.mp4", "mjpeg.avi"])
def test_the_shorter_decides_the_end(made, tmp_path, name):
    make_sound(tmp_path / "short.m4a", "aac", seconds=0.5)
    result = mux.mux(made / name, tmp_path / "short.m4a", tmp_path / "out.mp4")
    shown = [number(f) for f in video.read_frames(tmp_path / "out.mp4")]
    assert result.seconds == pytest.approx(0.5, abs=0.03)
    assert np.abs(np.array(shown) - np.arange(len(shown))).max() <= 1 and 13 <= len(shown) <= 16, (
        "half a second, and what the last is made from"
    )
    assert len(audio.read_audio(tmp_path / "out.mp4")) / audio.RATE == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("start, suffix, how", [(0, "mp4", "copy"), (333, "mkv", "copy"), (333, "mp4", "libx264")])
def test_sound_and_pictures_stay_in_step(tmp_path, start, suffix, how):
    """Clicks of a sound lie where they lay, counted from the first picture, whatever clock the files have."""
    with av.open(str(tmp_path / "v.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width = 48, 64
        for i in range(70):
            frame = av.VideoFrame.from_ndarray(picture(i), "rgb24")
            frame.pts, frame.time_base = start + 40 * i, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    pcm = clicks(audio.RATE)
    audio.write_wav(tmp_path / "s.wav", pcm)
    out = tmp_path / f"o.{suffix}"
    mux.mux(tmp_path / "v.mkv", tmp_path / "s.wav", out, vcodec=how)
    found, expected = (np.array(click_times(x, audio.RATE)) for x in (audio.read_audio(out), pcm))
    assert np.abs(found - expected).max() < 0.006
    assert abs(number(next(video.read_frames(out)))) <= 1


def test_what_a_file_says_of_its_origin_goes_on(made, tmp_path):
    with video.VideoWriter(tmp_path / "v.mp4", 48, 64, metadata={"comment": "synthetic: avatar 7", "tkjax": "x"}) as w:
        for i in range(10):
            w.write(picture(i))
    mux.mux(tmp_path / "v.mp4", made / "s.wav", tmp_path / "o.mp4")
    with av.open(str(tmp_path / "o.mp4")) as container:
        assert container.metadata["comment"] == "synthetic: avatar 7" and container.metadata["tkjax"] == "x"


def test_encoders_and_quality_can_be_named(made, tmp_path):
    files = [tmp_path / f"{crf}.mp4" for crf in (4, 40)]
    for path, crf in zip(files, (4, 40)):
        cli.run(parse(made, path, f"--crf={crf}", "--vcodec=libx264", "--acodec=libmp3lame"))
    assert files[0].stat().st_size > files[1].stat().st_size
    with av.open(str(files[0])) as container:
        assert container.streams.audio[0].codec_context.name.startswith("mp3")
    cli.run(parse(made, tmp_path / "c.mp4", "--vcodec=copy", name="mjpeg.avi"))
    with av.open(str(tmp_path / "c.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "mjpeg"


def parse(folder, out, *more, name="h264.mp4", sound="s.wav"):
    return options.parse(
        ["x", "--mode=mux", f"--video={folder / name}", f"--audio={folder / sound}", f"--out={out}", *more]
    )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"name": "none.mp4"}, "no such file"),
        ({"sound": "none.wav"}, "no such file"),
        ({"name": "s.wav"}, "has no moving picture"),
        ({"sound": "h264.mp4"}, "has no sound track"),
        ({"out": "o"}, "no suffix"),
        ({"out": "o.xyz"}, "no kind of video file"),
        ({"out": "."}, "is a folder"),
        ({"out": "o.mp4", "more": ("--vcodec=none",)}, "no encoder of this FFmpeg"),
        ({"out": "o.mp4", "more": ("--vcodec=aac",)}, "encodes audio, expected an encoder of video"),
        ({"out": "o.webm", "more": ("--vcodec=copy",)}, "cannot be written with copied h264"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_nothing(made, tmp_path, arguments, expected):
    more, out = arguments.pop("more", ()), arguments.pop("out", "o.mp4")
    (tmp_path / "o.mp4").write_bytes(b"mine")
    with pytest.raises(UserError, match=expected) as error:
        cli.run(parse(made, tmp_path / out, *more, **arguments))
    assert "\n" not in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["o.mp4"] and (tmp_path / "o.mp4").read_bytes() == b"mine"


@pytest.mark.parametrize("flag", ["video", "audio"])
def test_neither_input_is_overwritten(made, tmp_path, flag):
    given_files = {"video": make_video(tmp_path / "v.mp4", n=5), "audio": make_sound(tmp_path / "s.mp4", "aac", 0.2)}
    (tmp_path / "link.mp4").symlink_to(given_files[flag])
    before = given_files[flag].read_bytes()
    for out in (given_files[flag], tmp_path / "link.mp4"):
        with pytest.raises(UserError, match="itself; name another file"):
            mux.mux(given_files["video"], given_files["audio"], out)
    assert given_files[flag].read_bytes() == before


def test_an_existing_result_is_replaced_whole(made, tmp_path):
    (tmp_path / "o.mp4").write_bytes(b"old")
    mux.mux(made / "h264.mp4", made / "s.wav", tmp_path / "o.mp4")
    assert video.probe(tmp_path / "o.mp4").n_frames == 30
