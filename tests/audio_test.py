"""Sound: decoding in sync, log-mel that streams bit for bit."""

import itertools

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tkjax.errors import UserError
from tkjax.media import audio

CLICKS_S = (0.11, 1.0, 1.9)


def clicks(rate: int, seconds: float = 2.3) -> np.ndarray:
    """2 ms pulses whose middles lie at CLICKS_S."""
    pcm = np.zeros(round(rate * seconds), np.float32)
    for t in CLICKS_S:
        a = round((t - 0.001) * rate)
        pcm[a : a + round(0.002 * rate)] = 0.8
    return pcm


def click_times(pcm: np.ndarray, rate: int = audio.RATE, around=CLICKS_S) -> list[float]:
    """Centre of energy within 50 ms of each expected click."""
    found = []
    for t in around:
        at = np.arange(max(0, int((t - 0.05) * rate)), int((t + 0.05) * rate))
        energy = pcm[at].astype(np.float64) ** 2
        found.append(float((energy * (at + 0.5)).sum() / energy.sum() / rate))
    return found


def encode(path, pcm, codec, rate, start=0, channels=1, **options):
    """A file with one sound track whose first sample has timestamp start / rate."""
    with av.open(str(path), "w", **options) as container:
        layout = "mono" if channels == 1 else "stereo"
        stream = container.add_stream(codec, rate=rate, layout=layout)
        data = np.ascontiguousarray(np.atleast_2d(pcm), np.float32)
        frame = av.AudioFrame.from_ndarray(data, "fltp", layout)
        frame.sample_rate, frame.pts = rate, start
        resampler = av.AudioResampler(stream.format.name, layout, rate)
        for part in (*resampler.resample(frame), *resampler.resample(None)):
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return path


# ---------------------------------------------------------------- decoding


@settings(max_examples=10)
@given(n=st.integers(0, 40000), block=st.integers(1, 20000), seed=st.integers(0, 99))
def test_wav_comes_back_to_half_a_step_in_blocks_of_the_asked_size(tmp_path_factory, n, block, seed):
    path = tmp_path_factory.mktemp("w") / "a.wav"
    pcm = np.random.default_rng(seed).uniform(-0.99, 0.99, n).astype(np.float32)
    audio.write_wav(path, pcm)
    if n == 0:
        with pytest.raises(UserError, match="holds no sound"):
            audio.read_audio(path)
        return
    again = audio.read_audio(path)
    assert len(again) == n and np.abs(again - pcm).max() <= 0.5 / 32768
    blocks = list(audio.stream_audio(path, audio.RATE, block))
    assert [len(b) for b in blocks[:-1]] == [block] * ((n - 1) // block)
    np.testing.assert_array_equal(np.concatenate(blocks), again)
    audio.write_wav(path, (pcm[i : i + 999] for i in range(0, n, 999)))
    np.testing.assert_array_equal(audio.read_audio(path), again)


@pytest.mark.parametrize(
    ("suffix", "codec", "rate"),
    [("m4a", "aac", 44100), ("mp4", "aac", 16000), ("m4a", "aac", 48000), ("mp3", "libmp3lame", 44100),
     ("mp3", "libmp3lame", 16000), ("wav", "pcm_s16le", 8000), ("wav", "pcm_f32le", 96000), ("mka", "libopus", 48000)],
)  # fmt: skip
@pytest.mark.parametrize("channels", [1, 2])
def test_a_click_stays_within_5_ms_and_the_length_is_kept(tmp_path, suffix, codec, rate, channels):
    path = encode(tmp_path / f"a.{suffix}", np.tile(clicks(rate), (channels, 1)), codec, rate, channels=channels)
    pcm = audio.read_audio(path)
    assert pcm.dtype == np.float32 and np.abs(pcm).max() <= 1
    np.testing.assert_allclose(click_times(pcm), CLICKS_S, atol=0.005)
    assert abs(len(pcm) / audio.RATE - 2.3) < 0.002


def test_stereo_is_mixed_to_its_mean(tmp_path):
    left, right = 0.5 * np.sin(np.arange(16000) / 20), 0.25 * np.cos(np.arange(16000) / 9)
    path = encode(tmp_path / "a.wav", np.stack([left, right]), "pcm_f32le", 16000, channels=2)
    np.testing.assert_allclose(audio.read_audio(path), (left + right) / 2, atol=1e-6)


@pytest.mark.parametrize("sound_s", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("picture_s", [0.0, 0.4])
def test_time_zero_is_the_first_picture(tmp_path, sound_s, picture_s):
    path, rate = tmp_path / "a.mkv", 48000
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.width = video.height = 16
        sound = container.add_stream("pcm_s16le", rate=rate, layout="mono")
        for i in range(50):
            frame = av.VideoFrame(16, 16, "yuv420p")
            frame.pts = i + round(picture_s * 25)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        data = np.int16(clicks(rate) * 32767)[None]
        for a in range(0, data.shape[1], 4800):
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(data[:, a : a + 4800]), "s16", "mono")
            frame.sample_rate, frame.pts = rate, a + round(sound_s * rate)
            container.mux(sound.encode(frame))
    pcm = audio.read_audio(path)
    wanted = [t + sound_s - picture_s for t in CLICKS_S if t + sound_s - picture_s > 0.05]
    np.testing.assert_allclose(click_times(pcm, around=wanted), wanted, atol=0.002)
    assert abs(len(pcm) / audio.RATE - (2.3 + sound_s - picture_s)) < 0.01


def test_a_hole_in_the_timestamps_becomes_silence(tmp_path):
    path, rate = tmp_path / "a.mka", 16000
    with av.open(str(path), "w") as container:
        sound = container.add_stream("pcm_s16le", rate=rate, layout="mono")
        for k in range(20):
            frame = av.AudioFrame.from_ndarray(np.full((1, 1600), 8000, np.int16), "s16", "mono")
            frame.sample_rate, frame.pts = rate, 1600 * k + (16000 if k >= 10 else 0)
            container.mux(sound.encode(frame))
    loud = audio.read_audio(path) > 0.1
    assert abs(len(loud) - 48000) < 160
    assert loud[:15900].all() and not loud[16200:31800].any() and loud[32100:47900].all()


def test_files_without_sound_are_refused_in_a_sentence(tmp_path):
    (tmp_path / "text.mp3").write_text("not sound " * 50)
    (tmp_path / "empty.wav").write_bytes(b"")
    with av.open(str(tmp_path / "mute.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width = stream.height = 16
        container.mux(stream.encode(av.VideoFrame(16, 16, "yuv420p")))
        container.mux(stream.encode(None))
    for name, words in (
        ("none.wav", "no such file"),
        ("", "is a folder"),
        ("text.mp3", "not a media file"),
        ("empty.wav", "not a media file"),
        ("mute.mp4", "has no sound track"),
    ):
        for call in (audio.read_audio, audio.audio_features):
            with pytest.raises(UserError, match=words) as error:
                call(tmp_path / name)
            assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(UserError, match="hubert"):
        audio.audio_features(tmp_path / "mute.mp4", "hubert")


def test_samples_of_another_kind_are_not_written(tmp_path):
    for bad in ([np.zeros(4, np.int16)], [np.zeros((2, 4), np.float32)]):
        with pytest.raises(ValueError, match="expected float samples"):
            audio.write_wav(tmp_path / "a.wav", bad)
    assert not list(tmp_path.iterdir())


def test_damaged_sound_is_decoded_or_refused_but_never_crashes(tmp_path):
    good = encode(tmp_path / "good.mp3", clicks(16000), "libmp3lame", 16000).read_bytes()
    rng = np.random.default_rng(0)
    for k in range(12):
        bad = bytearray(good[: rng.integers(100, len(good))])
        for at in rng.integers(0, len(bad), 20):
            bad[at] = rng.integers(0, 256)
        (tmp_path / f"{k}.mp3").write_bytes(bad)
        try:
            assert np.isfinite(audio.read_audio(tmp_path / f"{k}.mp3")).all()
        except UserError as e:
            assert "\n" not in str(e)


# ---------------------------------------------------------------- log-mel


@pytest.mark.parametrize("extractor", [audio.RAW, audio.LEVELLED])
@given(n=st.integers(0, 9000), cuts=st.lists(st.integers(0, 9000), max_size=12), seed=st.integers(0, 999))
def test_streaming_log_mel_equals_the_whole_clip_bit_for_bit(extractor, n, cuts, seed):
    rng = np.random.default_rng(seed)
    pcm = (rng.uniform(-1, 1, n) * 10 ** rng.uniform(-3, 0, n // 500 + 1).repeat(500)[:n]).astype(np.float32)
    stream = audio.LogMel(extractor)
    for _ in range(2):  # a flushed stream may begin again
        edges = [0, *sorted(min(c, n) for c in cuts), n]
        parts = [stream.push(pcm[a:b]) for a, b in itertools.pairwise(edges)]
        streamed = np.concatenate([*parts, stream.flush()])
        assert streamed.dtype == np.float32 and streamed.shape == (-(-n // 320), 80)
        np.testing.assert_array_equal(streamed, audio.logmel(pcm, extractor))


def test_log_mel_sample_by_sample_equals_the_whole_clip():
    pcm = np.random.default_rng(3).standard_normal(1500).astype(np.float32)
    stream = audio.LogMel()
    parts = [stream.push(pcm[i : i + 1]) for i in range(len(pcm))]
    np.testing.assert_array_equal(np.concatenate([*parts, stream.flush()]), audio.logmel(pcm))


def slow_log_mel(pcm: np.ndarray, k: int) -> np.ndarray:
    """Step k by the formula: a direct Fourier sum of the 400 samples around 0.01 + k / 50 s, triangle by triangle."""
    middle = 16000 * (0.01 + k / 50)
    at = np.arange(round(middle) - 200, round(middle) + 200)
    x = np.where((at >= 0) & (at < len(pcm)), pcm[np.clip(at, 0, len(pcm) - 1)], 0).astype(np.float64)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    hz = np.arange(513) * 15.625
    spectrum = np.exp(-2j * np.pi * hz[:, None] * np.arange(400) / 16000) @ (x * hann)
    power = np.abs(spectrum) ** 2 / 100.0**2 / (1024 * (hann**2).sum() / 200.0**2)

    def mel(f):
        return f * 3 / 200 if f < 1000 else 15 + 27 * np.log(f / 1000) / np.log(6.4)

    corners = np.linspace(mel(65), mel(6000), 82)
    corners = [m * 200 / 3 if m < 15 else 1000 * 6.4 ** ((m - 15) / 27) for m in corners]
    out = []
    for a, b, c in zip(corners, corners[1:], corners[2:], strict=False):
        weight = np.clip(np.minimum((hz - a) / (b - a), (c - hz) / (c - b)), 0, None)
        out.append(np.log(1 + (weight * power).sum() / 1e-7) / 4)
    return np.array(out)


@settings(max_examples=10)
@given(n=st.integers(1, 3000), seed=st.integers(0, 999))
def test_log_mel_is_its_formula(n, seed):
    pcm = np.random.default_rng(seed).standard_normal(n).astype(np.float32) * 0.1
    features = audio.logmel(pcm, audio.RAW)
    for k in {0, len(features) // 2, len(features) - 1}:
        np.testing.assert_allclose(features[k], slow_log_mel(pcm, k), atol=2e-5)


def test_a_pulse_is_centred_at_start_plus_k_over_rate():
    for k in (3, 10):
        t = audio.LOGMEL["start_s"] + k / audio.LOGMEL["rate_hz"]
        pcm = np.zeros(8000, np.float32)
        pcm[round(t * audio.RATE)] = 1
        level = audio.logmel(pcm, audio.RAW).sum(1)
        assert level.argmax() == k and level[k - 1] < 0.7 * level[k] and level[k + 1] < 0.7 * level[k]


def test_silence_is_zero_and_a_full_scale_sine_about_four():
    assert not audio.logmel(np.zeros(5000, np.float32)).any()
    sine = np.sin(2 * np.pi * 1000 * np.arange(16000) / 16000).astype(np.float32)
    assert 3.5 < audio.logmel(sine, audio.RAW)[5:-5].max() < 4.2


def test_features_of_a_file_equal_those_of_its_samples(tmp_path):
    audio.write_wav(tmp_path / "a.wav", clicks(16000))
    f = audio.audio_features(tmp_path / "a.wav")
    np.testing.assert_array_equal(f.features, audio.logmel(audio.read_audio(tmp_path / "a.wav")))
    assert (f.kind, f.rate_hz, f.start_s, f.window, f.hop, f.left) == ("logmel", 50.0, 0.01, 16, 2, 8)
    assert f.n_windows == -(-len(clicks(16000)) // 640)
