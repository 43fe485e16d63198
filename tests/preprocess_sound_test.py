"""Sound against lips: shifts come back, other people's sound is not believed; silent and short sound is noticed."""

import functools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocess import chunks
from preprocess.audio import av_offset, sound
from preprocess.faces import landmarker
from preprocess.framing.normalise import write_sound
from preprocess.workers import pool
from tkjax import contract
from tkjax.errors import UserError
from tkjax.media import audio, video
from tkjax.synthetic.performance import perform
from tkjax.synthetic.speech import speech

JAW = contract.BLENDSHAPES.index("jawOpen")
SECONDS = 7.0


@functools.cache
def clip(seed: int):
    """(landmarks [n,68,2], jawOpen [n], sound) of the synthetic subject, in step."""
    pcm, tracks = speech(seed, SECONDS)
    p = perform(tracks, seed=seed, size=256)
    return p.landmarks_px(), p.expression[:, JAW], pcm


def late(pcm: np.ndarray, frames: float) -> np.ndarray:
    """The sound so many frames later; silence where there is none."""
    k = round(640 * frames)
    return np.concatenate([np.zeros(max(k, 0), np.float32), pcm, np.zeros(max(-k, 0), np.float32)])[max(-k, 0) :][
        : len(pcm)
    ]


@pytest.mark.heavy
@pytest.mark.parametrize("frames", [-5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, -2.5, 0.4])
def test_a_shift_of_up_to_five_frames_comes_back_within_half_a_frame(frames):
    points, jaw, pcm = clip(int(abs(frames)) % 3)
    rng = np.random.default_rng(0)
    noisy = points + rng.normal(0, 0.3, points.shape).astype(np.float32)
    found = av_offset.estimate(noisy, "ibug68", jaw, late(pcm, frames))
    assert found.certain and abs(found.frames - frames) < 0.5


@pytest.mark.heavy
def test_the_level_of_the_sound_does_not_matter():
    points, jaw, pcm = clip(0)
    a, b = (av_offset.estimate(points, "ibug68", jaw, late(pcm, 2) * np.float32(g)) for g in (1, 0.1))
    assert abs(a.frames - b.frames) < 0.1 and b.certain


@pytest.mark.heavy
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_somebody_elses_sound_is_not_believed(seed):
    points, jaw, _ = clip(seed)
    assert not av_offset.estimate(points, "ibug68", jaw, clip(seed + 3)[2]).certain


@pytest.mark.heavy
def test_a_still_mouth_silence_and_a_short_clip_tell_nothing():
    points, jaw, pcm = clip(1)
    still, shut = points[:1].repeat(len(points), 0), np.zeros_like(jaw)
    assert not av_offset.estimate(still, "ibug68", shut, pcm).certain
    assert not av_offset.estimate(points, "ibug68", jaw, np.zeros_like(pcm)).certain
    assert not av_offset.estimate(points[:60], "ibug68", jaw[:60], pcm[: 60 * 640]).certain


@pytest.mark.parametrize("text", ["", "fast", "nan", "inf", "-2001", "1,5"])
def test_an_offset_that_is_no_number_of_milliseconds_is_refused(text):
    with pytest.raises(UserError, match="--av_offset"):
        av_offset.parse(text)
    assert av_offset.parse("auto") is None and av_offset.parse("-80") == -80.0


@given(st.integers(-4000, 4000), st.integers(1, 40000))
def test_the_shifted_sound_is_the_clips_own_moved_and_as_long_as_the_pictures(tmp_path_factory, samples, n):
    folder = tmp_path_factory.mktemp("s")
    pcm = np.random.default_rng(n).uniform(-0.9, 0.9, 20000).astype(np.float32)
    audio.write_wav(folder / "a.wav", pcm)
    write_sound(folder / "b.wav", folder / "a.wav", n, samples)
    at = np.arange(n) + samples
    inside = (at >= 0) & (at < len(pcm))
    expected = np.where(inside, audio.read_audio(folder / "a.wav")[np.clip(at, 0, len(pcm) - 1)], 0)
    np.testing.assert_array_equal(audio.read_audio(folder / "b.wav"), expected)


def stage(folder, pcm, points, jaw, offset_ms=None):
    """The sound stage over a landmarks stage that saw these faces (as MediaPipe's 478 points)."""
    faces = folder / "landmarks"
    faces.mkdir(parents=True)
    n = len(points)
    dense = np.zeros((n, 478, 3), np.float32)
    dense[:, list(contract.LANDMARKS_478_TO_68), :2] = points
    shapes = np.zeros((n, 52), np.float32)
    shapes[:, JAW] = jaw
    for i, (a, b) in enumerate(chunks.spans(n)):
        rows = {"landmarks": dense[a:b], "blendshapes": shapes[a:b], "found": np.ones(b - a, bool)}
        chunks.write_chunk(faces, i, rows)
    audio.write_wav(folder / "clip.wav", pcm)
    out = folder / "sound"
    out.mkdir()
    write_sound(folder / "cut.wav", folder / "clip.wav", n * 640)
    sound.sound(out, folder / "clip.wav", folder / "cut.wav", faces, n, offset_ms)
    return out, {c["measure"]: c for c in json.loads((out / "checks.json").read_text())}


def test_a_certain_offset_is_taken_out_and_said(tmp_path):
    points, jaw, pcm = clip(2)
    out, found = stage(tmp_path, late(pcm, 3), points, jaw)
    assert abs(sound.removed_ms(out) - 120) < 20
    assert abs(found["sound after lips in the clip, ms"]["value"] - 120) < 20
    assert found["sound off the lips in the dataset, ms"]["value"] < 1
    again = av_offset.estimate(points, "ibug68", jaw, audio.read_audio(out / "audio.wav"))
    assert abs(again.frames) < 0.25
    assert {c["verdict"] for c in found.values()} == {"good"}


@pytest.mark.parametrize("given_ms", [0.0, 40.0])
def test_a_given_offset_is_taken_out_whatever_was_found(tmp_path, given_ms):
    points, jaw, pcm = clip(2)
    out, found = stage(tmp_path, late(pcm, 3), points, jaw, given_ms)
    assert sound.removed_ms(out) == given_ms
    left = found["sound off the lips in the dataset, ms"]
    assert left["verdict"] == "warn" and "--av_offset" in left["message"] and abs(left["value"] - 120 + given_ms) < 20


def judged(tmp_path, pcm):
    audio.write_wav(tmp_path / "a.wav", pcm.astype(np.float32))
    return {c.measure: c for c in sound.judge_level(tmp_path / "a.wav", len(pcm) / 16000)}


@pytest.mark.parametrize(
    "decibels, verdict", [(-np.inf, "fail"), (-60, "fail"), (-36, "warn"), (-20, "good"), (6, "good")]
)
def test_silent_and_nearly_silent_sound_is_noticed(tmp_path, decibels, verdict):
    found = judged(tmp_path, clip(0)[2] * 10 ** (decibels / 20))
    assert found["level in dB"].verdict == verdict
    assert (found["level in dB"].message == "") == (verdict == "good")
    assert np.isfinite(decibels) or list(found) == ["level in dB"]  # one sentence is enough


def test_noise_without_speech_is_noticed(tmp_path):
    noise = 0.05 * np.random.default_rng(0).standard_normal(6 * 16000)
    assert judged(tmp_path, noise)["seconds of speech"].verdict == "warn"
    assert judged(tmp_path, clip(0)[2])["seconds of speech"].verdict == "good"


@pytest.mark.parametrize("kept, verdict", [(7.0, "good"), (4.8, "warn"), (2.0, "fail")])
def test_sound_that_ends_before_the_picture_is_noticed(tmp_path, kept, verdict):
    pcm = clip(1)[2].copy()
    pcm[round(kept * 16000) :] = 0
    check = judged(tmp_path, pcm)["silent seconds at the end"]
    assert check.verdict == verdict and (verdict == "good" or f"after {check.value:.1f}" not in check.message)


@pytest.mark.heavy
def test_the_talking_clip_has_two_to_three_frames(data_dir, models_dir, tmp_path):
    """Its sound is late, and either half of it says so."""
    clip_path = data_dir / "talking" / "may_portrait_512.mp4"
    pictures = list(video.read_frames(clip_path))
    with pool(tmp_path / "workers.log") as executor:
        seen = executor.submit(landmarker.detect, str(models_dir / "face_landmarker.task"), pictures).result()
    points, jaw, pcm = seen.landmarks[..., :2], seen.blendshapes[:, JAW], audio.read_audio(clip_path)
    whole = av_offset.estimate(points, "mediapipe478", jaw, pcm[: len(points) * 640])
    assert whole.certain and 2 <= whole.frames <= 3
    half = len(points) // 2
    for part in (slice(0, half), slice(half, None)):
        cut = pcm[part.start * 640 : (part.stop or len(points)) * 640]
        assert abs(av_offset.estimate(points[part], "mediapipe478", jaw[part], cut).frames - whole.frames) < 0.5
