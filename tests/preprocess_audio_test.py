"""Sound features of tiny random checkpoints: windows and rate exact, blocks equal the undivided run."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocess.audio import extract as af
from tkjax.contract import load_audio_features
from tkjax.errors import UserError
from tkjax.media import audio

TINY = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, conv_dim=(8,) * 7,
            num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4, feat_extract_norm="layer")  # fmt: skip


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """Folders of tiny random wav2vec2 (CTC) and HuBERT checkpoints."""
    torch = pytest.importorskip("torch")
    import transformers as t

    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("checkpoints")
    t.Wav2Vec2ForCTC(t.Wav2Vec2Config(vocab_size=13, **TINY)).save_pretrained(root / "wav2vec2")
    t.HubertModel(t.HubertConfig(**TINY)).save_pretrained(root / "hubert")
    for kind in ("wav2vec2", "hubert"):
        t.Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(root / kind)
    return root


def speech(seconds: float, seed=0) -> np.ndarray:
    t = np.arange(int(seconds * 16000)) / 16000
    rng = np.random.default_rng(seed)
    return (0.3 * np.sin(2 * np.pi * 140 * t) * np.sin(7 * t) + 0.02 * rng.normal(size=len(t))).astype(np.float32)


@pytest.fixture(scope="session")
def ten_seconds(tmp_path_factory):
    path = tmp_path_factory.mktemp("sound") / "ten.wav"
    audio.write_wav(path, speech(10.0))
    return path


@pytest.mark.heavy
@pytest.mark.parametrize(
    "kind, steps, channels, windows, window", [("wav2vec2", 499, 13, 250, 16), ("hubert", 498, 16, 249, 2)]
)
def test_ten_seconds_have_the_known_number_of_windows(
    checkpoints, ten_seconds, tmp_path, kind, steps, channels, windows, window
):
    out = tmp_path / "x.npz"
    assert af.main(["--audio", str(ten_seconds), "--kind", f"{kind}={checkpoints / kind}", "--out", str(out)]) == 0
    f = load_audio_features(out)
    assert f.features.shape == (steps, channels) and f.features.dtype == np.float32
    assert (f.rate_hz, f.start_s) == (50.0, 0.0125)
    assert f.n_windows == windows and f.window_at(100).shape == (window, channels)
    assert f.kind == kind and f.extractor.startswith(f"{kind}-")
    first = f.window_at(100)[0]
    assert np.array_equal(first, f.features[200 if kind == "hubert" else 192])


@pytest.mark.heavy
def test_one_block_equals_the_library_to_rounding(checkpoints, ten_seconds):
    import torch
    import transformers as t

    encoder = af.load_encoder("wav2vec2", str(checkpoints / "wav2vec2"))
    pcm = audio.read_audio(ten_seconds)
    values = t.Wav2Vec2FeatureExtractor(do_normalize=True)(pcm, sampling_rate=16000).input_values[0]
    model = t.Wav2Vec2ForCTC.from_pretrained(checkpoints / "wav2vec2").eval()
    with torch.inference_mode():
        whole = model(torch.from_numpy(values)[None]).logits[0].numpy()
    assert np.abs(af.encode(encoder, ten_seconds) - whole).max() < 1e-4


@pytest.mark.heavy
def test_blocks_with_context_stay_close_to_the_undivided_run(checkpoints, tmp_path, monkeypatch):
    path = tmp_path / "long.wav"
    audio.write_wav(path, speech(12.0, 1))
    encoder = af.load_encoder("hubert", str(checkpoints / "hubert"))
    whole = af.encode(encoder, path)
    monkeypatch.setattr(af, "BLOCK", 150)
    parts = af.encode(encoder, path)
    assert parts.shape == whole.shape
    # A random network attends evenly to everything, the worst case; even so most of each vector is local.
    error = np.linalg.norm(parts - whole, axis=1) / np.linalg.norm(whole, axis=1)
    assert error.max() < 0.05


@given(st.integers(0, 5000))
def test_blocks_tile_the_steps_and_carry_their_context(n):
    runs = af.blocks(n)
    assert [k for _, _, a, b in runs for k in range(a, b)] == list(range(n))
    for first, last, a, b in runs:
        assert 0 <= first <= a < b <= last <= n
        assert first == max(a - af.CONTEXT, 0) or len(runs) == 1
        assert last == min(b + af.CONTEXT, n) or len(runs) == 1


def test_memory_holds_one_block_of_samples(checkpoints, tmp_path, monkeypatch):
    path = tmp_path / "long.wav"
    audio.write_wav(path, (speech(10.0, k) for k in range(6)))
    longest = 0
    encoder = af.load_encoder("hubert", str(checkpoints / "hubert"))
    run = type(encoder).__call__

    def counted(self, samples):
        nonlocal longest
        longest = max(longest, len(samples))
        return run(self, samples)

    monkeypatch.setattr(type(encoder), "__call__", counted)
    assert len(af.encode(encoder, path)) == 2998
    assert longest <= (af.BLOCK + 2 * af.CONTEXT) * 320 + 80


def test_the_identity_tells_checkpoints_apart(checkpoints, tmp_path):
    import torch
    import transformers as t

    torch.manual_seed(1)
    t.HubertModel(t.HubertConfig(**TINY)).save_pretrained(tmp_path / "other")
    a, b = af.load_encoder("hubert", str(checkpoints / "hubert")), af.load_encoder("hubert", str(tmp_path / "other"))
    assert a.identity != b.identity == af.load_encoder("hubert", str(tmp_path / "other")).identity


def test_logmel_is_the_same_as_in_tkjax(ten_seconds, tmp_path):
    af.write_features(ten_seconds, "logmel", "", tmp_path / "x.npz")
    a, b = load_audio_features(tmp_path / "x.npz"), audio.audio_features(ten_seconds)
    assert np.array_equal(a.features, b.features) and a.describe() == b.describe()


NONSENSE = [
    ("foo", "unknown"),
    ("wav2vec2", "not understood"),
    ("logmel=x", "not understood"),
    ("hubert=a,hubert=b", "twice"),
]


@pytest.mark.parametrize("text, part", NONSENSE)
def test_kinds_that_make_no_sense_are_refused(text, part):
    with pytest.raises(UserError, match=part):
        af.parse_kinds(text)


def test_checkpoints_that_do_not_fit_are_one_sentence(checkpoints, tmp_path, ten_seconds, capsys):
    (tmp_path / "empty").mkdir()
    for kind, where in (
        ("hubert", tmp_path / "none"),
        ("hubert", tmp_path / "empty"),
        ("hubert", checkpoints / "wav2vec2"),
    ):
        code = af.main(["--audio", str(ten_seconds), "--kind", f"{kind}={where}", "--out", str(tmp_path / "x.npz")])
        err = capsys.readouterr().err
        assert code == 2 and err.count("\n") == 1 and "hubert" in err and str(where) in err
    assert not (tmp_path / "x.npz").exists()


def test_a_sound_too_short_for_one_step_is_refused(checkpoints, tmp_path, capsys):
    audio.write_wav(tmp_path / "s.wav", speech(0.02))
    code = af.main(
        [
            "--audio",
            str(tmp_path / "s.wav"),
            "--kind",
            f"hubert={checkpoints / 'hubert'}",
            "--out",
            str(tmp_path / "x.npz"),
        ]
    )
    assert code == 2 and "too few" in capsys.readouterr().err


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("kind", "seconds", "steps"), [("wav2vec2", 10.0, 499), ("hubert", 2.4, 119), ("wav2vec2", 1.0, 49)]
)
def test_segments_are_the_originals_streaming(checkpoints, tmp_path, kind, seconds, steps):
    wav, out = tmp_path / "s.wav", tmp_path / "x.npz"
    audio.write_wav(wav, speech(seconds))
    where = checkpoints / kind
    assert af.main(["--audio", str(wav), "--kind", f"{kind}={where}", "--out", str(out), "--segments"]) == 0
    f = load_audio_features(out)
    assert (len(f.features), f.window, f.hop, f.left) == (steps, 16, 2, 8) and f.extractor.endswith("-segments")
    encoder, pcm = af.load_encoder(kind, str(where)), audio.read_audio(wav)
    rows, first = [], 0  # the same by positions: piece k of 50 steps sees 10 + 50 + 10 pieces around it
    padded = np.concatenate([np.zeros(3200, np.float32), pcm])
    while len(rows) < steps:
        part = padded[first * 320 : (first + 70) * 320]
        last = len(part) < 70 * 320
        features = encoder((part - part.mean()) / np.sqrt(part.var() + 1e-7))
        rows.extend(features[10:] if last else features[10:60])
        first += 50
    np.testing.assert_allclose(f.features, rows, atol=1e-5)
