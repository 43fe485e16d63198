"""Arrays of the originals as sequences, and back: every window equal, disagreement found, mismatch explained."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tkjax import contract
from tkjax.avatar import bundle
from tkjax.drive import sounds
from tkjax.errors import UserError
from tkjax.formats import feature_arrays
from tkjax.formats.feature_arrays import disagreement, from_windows, load_features, to_windows
from tkjax.media import audio
from tkjax.signals import SignalInfo, Use


def original(sequence: np.ndarray, n: int) -> np.ndarray:
    """The originals' own arithmetic: pad 8 zeros on both sides, windows of 16 every 2."""
    width = sequence.shape[1]
    padded = np.concatenate([np.zeros((8, width)), sequence, np.zeros((2 * n + 16, width))])
    return np.stack([padded[2 * i : 2 * i + 16] for i in range(n)])


@given(st.integers(1, 40), st.integers(0, 7), st.integers(1, 5), st.integers(0, 2**31), st.booleans())
def test_overlapping_windows_survive_the_round_trip(n, more, width, seed, double):
    rng = np.random.default_rng(seed)
    steps = max(1, 2 * n - 1 + more)
    windows = original(rng.standard_normal((steps, width)), n).astype(np.float64 if double else np.float32)
    f, bad, note = from_windows(windows, "deepspeech")
    assert (f.window, f.hop, f.left, f.rate_hz, bad, note) == (16, 2, 8, 50.0, [], "")
    np.testing.assert_array_equal(to_windows(f, n), windows.astype(np.float32))
    assert n <= f.n_windows <= n + 3


@given(st.integers(1, 20), st.integers(1, 4), st.integers(0, 2**31))
def test_pairs_without_overlap_survive_too(n, width, seed):
    windows = np.random.default_rng(seed).standard_normal((n, 2, width)).astype(np.float32)
    f, _, note = from_windows(windows, "hubert")
    assert (f.window, f.hop, f.left, f.n_windows, note) == (2, 2, 0, n, "")
    np.testing.assert_array_equal(to_windows(f, n), windows)


@given(st.integers(2, 30), st.data())
def test_the_window_that_disagrees_is_named_and_nothing_is_lost(n, data):
    windows = original(np.random.default_rng(n).standard_normal((2 * n, 3)), n).astype(np.float32)
    assert disagreement(windows) is None
    at = data.draw(st.integers(1, n - 1))
    windows[at:] += 1  # from here on another recording
    assert disagreement(windows) == at
    f, _, note = from_windows(windows, "deepspeech")
    assert f"window {at} does not continue window {at - 1}" in note
    assert (f.window, f.hop, f.left, f.rate_hz) == (16, 16, 0, 400.0)
    np.testing.assert_array_equal(to_windows(f, n), windows)


def test_a_long_array_is_compared_across_blocks(monkeypatch):
    monkeypatch.setattr(feature_arrays, "_BLOCK", 4)
    windows = original(np.random.default_rng(0).standard_normal((40, 3)), 20).astype(np.float32)
    for at in range(1, 20):
        broken = windows.copy()
        broken[at:] *= 2
        assert disagreement(broken) == at
    np.testing.assert_array_equal(to_windows(from_windows(windows, "x")[0], 20), windows)


def test_steps_that_are_no_numbers_take_the_nearest_and_are_named():
    sequence = np.random.default_rng(0).standard_normal((20, 3))
    sequence[9] = np.nan
    f, bad, note = from_windows(original(sequence, 10), "deepspeech")
    assert bad == [9] and note == ""
    np.testing.assert_allclose(f.features[9], f.features[8])
    np.testing.assert_allclose(f.features[10:20], sequence[10:20], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "shape", "kind"),
    [
        ("aud_ds.npy", (5, 16, 29), "deepspeech"),
        ("aud_eo.npy", (5, 16, 44), "wav2vec2"),
        ("aud.npy", (5, 16, 29), "deepspeech"),
        ("aud.npy", (5, 16, 32), "wav2vec2"),
        ("aud_hu.npy", (5, 2, 1024), "hubert"),
        ("audio_feat.npy", (5, 16, 768), "hubert"),
        ("aud_new thing.npy", (5, 16, 77), "aud_new_thing"),
        ("aud.npy", (5, 16, 512), "aud"),
    ],
)
def test_kinds_come_from_the_name_then_the_width(name, shape, kind):
    assert feature_arrays.kind_of(name, shape[2]) == kind


@pytest.mark.parametrize("shape", [(20, 1), (20, 16), (20,), (20, 16, 29, 1), (0, 16, 29)])
def test_class_labels_and_other_ranks_are_refused(tmp_path, shape):
    np.save(tmp_path / "aud.npy", np.zeros(shape))
    with pytest.raises(UserError, match="class labels"):
        feature_arrays.open_windows(tmp_path / "aud.npy")


def test_pickles_and_integers_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[{}]], object), allow_pickle=True)
    np.save(tmp_path / "b.npy", np.zeros((3, 16, 29), np.int64))
    for name in ("a.npy", "b.npy", "none.npy"):
        with pytest.raises(UserError, match=name):
            feature_arrays.open_windows(tmp_path / name)


DEEPSPEECH = {"kind": "deepspeech", "rate_hz": 50.0, "extractor": "array-deepspeech", "window": 16, "hop": 2, "left": 8,
              "pad": 8, "channels": 29}  # fmt: skip


def chunks(path, wanted, seconds, sound="s.wav"):
    subject = object.__new__(bundle.Avatar)  # only what it hears
    subject.meta = {"audio": wanted}
    return list(sounds.feature_chunks(sound, seconds, subject, path, None, Path("out")))


def test_render_takes_the_originals_arrays(tmp_path):
    sequence = np.random.default_rng(0).standard_normal((50, 29)).astype(np.float32)
    np.save(tmp_path / "aud_ds.npy", original(sequence, 25).astype(np.float64))
    np.testing.assert_array_equal(np.concatenate(chunks(tmp_path / "aud_ds.npy", DEEPSPEECH, 1.0)), sequence)
    np.save(tmp_path / "speech.npy", original(sequence, 25))  # a name that tells nothing
    assert len(chunks(tmp_path / "speech.npy", DEEPSPEECH, 1.0)[0]) == 50
    flat = {**DEEPSPEECH, "hop": 16, "left": 0, "pad": 0, "rate_hz": 400.0}
    assert chunks(tmp_path / "aud_ds.npy", flat, 1.0)[0].shape == (25 * 16, 29)
    with pytest.raises(UserError, match="the features last"):
        chunks(tmp_path / "aud_ds.npy", DEEPSPEECH, 3.0)


@given(st.integers(1, 30), st.integers(0, 12), st.integers(0, 2**31), st.booleans(), st.integers(1, 40))
def test_a_cut_array_is_heard_as_the_originals_hear_it(n, cut, seed, pairs, size):
    """Windows behind the array's end are zeros, though its last window reaches into the sound there."""
    rng = np.random.default_rng(seed)
    sequence = rng.standard_normal((2 * n + 2 * cut, 3)).astype(np.float32)
    array = (sequence.reshape(-1, 2, 3) if pairs else original(sequence, n + cut).astype(np.float32))[:n]
    f, _, _ = from_windows(array, "hubert")
    info = SignalInfo("sound", 3, 50.0, window=f.window, hop=f.hop, left=f.left)
    spec = sounds.Spec(info, Use("sound", 4, 3), n, heard=n)
    got = list(sounds.windows(spec, [f.features[a : a + size] for a in range(0, len(f.features), size)]))
    padded = np.concatenate([np.zeros_like(array[:1]).repeat(4, 0), array, np.zeros_like(array[:1]).repeat(4, 0)])
    assert len(got) == n
    for i, windows in enumerate(got):
        np.testing.assert_array_equal(windows, padded[i : i + 8], err_msg=f"frame {i}")


def test_rendering_asks_an_array_how_many_frames_it_hears(tmp_path):
    np.save(tmp_path / "aud_ds.npy", original(np.ones((40, 29)), 20)[:6])
    subject = object.__new__(bundle.Avatar)
    subject.meta = {"audio": DEEPSPEECH}
    hears = Use("sound", 4, 3)
    for features, heard in ((tmp_path / "aud_ds.npy", 6), (None, None)):
        sound = sounds.Sound(tmp_path / "a.wav", 9, features)
        assert sounds.spec_of(sound, subject, hears, 9).heard == heard


def test_the_wrong_kind_is_refused_with_both_kinds_and_the_way_out(tmp_path):
    np.save(tmp_path / "aud_hu.npy", np.zeros((25, 2, 1024), np.float32))
    with pytest.raises(UserError) as error:
        chunks(tmp_path / "aud_hu.npy", DEEPSPEECH, 1.0)
    text = str(error.value)
    assert "hubert features of width 1024, window 2/2/0" in text
    assert "deepspeech features of width 29, window 16/2/8" in text
    assert "aud_hu.npy" in text and "aud_ds.npy" in text and "--config.data.audio_kind=hubert" in text
    with pytest.raises(UserError, match=r"hears deepspeech features: extract aud_ds.npy .* with --features"):
        chunks(None, DEEPSPEECH, 1.0)  # there is no model of it to name
    with pytest.raises(UserError, match=r"name the model with --audio_kinds=hubert=PATH"):
        chunks(None, {**DEEPSPEECH, "kind": "hubert", "extractor": "array-hubert"}, 1.0)
    with pytest.raises(UserError, match=r"deepspeech features of width 29.*logmel.*leave --features out"):
        np.save(tmp_path / "aud_ds.npy", np.zeros((25, 16, 29), np.float32))
        chunks(tmp_path / "aud_ds.npy", {**DEEPSPEECH, "kind": "logmel", "channels": 80, "extractor": "x"}, 1.0)


def test_an_array_is_no_sound(tmp_path):
    """The originals' `--aud x.npy` under our flag of that name."""
    np.save(tmp_path / "aud_ds.npy", np.zeros((25, 16, 29), np.float32))
    with pytest.raises(UserError, match=r"aud_ds.npy holds features; give them with --features"):
        sounds.sound_frames(tmp_path / "aud_ds.npy", 25.0)


def test_an_array_has_no_extractor_but_two_checkpoints_are_told_apart(tmp_path):
    trained = {**DEEPSPEECH, "kind": "wav2vec2", "channels": 44, "extractor": "wav2vec2-logits-1024-aa"}
    np.save(tmp_path / "aud_eo.npy", np.zeros((25, 16, 44), np.float32))
    feature_arrays.check_match(
        {**load_features(tmp_path / "aud_eo.npy", trained).describe(), "kind": "wav2vec2"}, trained, "aud_eo.npy"
    )
    other = contract.AudioFeatures("wav2vec2", np.zeros((50, 44), np.float32), 50.0, 0.0, "b", 16, 2, 8, 8)
    with pytest.raises(UserError, match=r"extractor .* is b, but .*wav2vec2-logits-1024-aa"):
        feature_arrays.check_match({**other.describe(), "kind": "wav2vec2"}, trained, "x.npz")


def test_avatars_of_arrays_hear_new_sound_as_the_originals_cut_it():
    assert feature_arrays.in_segments(DEEPSPEECH)
    assert not feature_arrays.in_segments({**DEEPSPEECH, "window": 2})  # ER-NeRF's HuBERT: the whole file at once
    assert not feature_arrays.in_segments({**DEEPSPEECH, "extractor": "wav2vec2-logits-1024-aa"})


@pytest.mark.parametrize("extractor", [audio.RAW, audio.LEVELLED])
def test_an_avatar_hears_log_mel_as_it_was_trained(tmp_path, extractor):
    t = np.arange(16000) / 16000
    audio.write_wav(tmp_path / "s.wav", (0.02 * np.sin(2000 * t) * (np.sin(30 * t) > 0)).astype(np.float32))
    wanted = {**audio.LOGMEL, "channels": 80, "extractor": extractor}
    heard = np.concatenate(chunks(None, wanted, 1.0, tmp_path / "s.wav"))
    np.testing.assert_array_equal(heard, audio.logmel(audio.read_audio(tmp_path / "s.wav"), extractor))
    assert (heard[-10:].max() > 3) == (extractor == audio.LEVELLED)
