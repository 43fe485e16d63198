"""Speech to coefficients: what the network may hear, streams, silence, files, drivers, and whether it learns."""

import dataclasses
import hashlib
import itertools
import json
import shutil
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import tiny, voices
from tests.stubs.config import named, stub_config
from tests.voices import WIDTH
from tkjax import contract, voice
from tkjax.app import cli, options, speaking, workflow
from tkjax.avatar import avatar_json, bundle
from tkjax.data.dataset_clip import DatasetClip
from tkjax.drive import driver
from tkjax.errors import UserError
from tkjax.formats import tracks
from tkjax.media import audio
from tkjax.models import load_system
from tkjax.synthetic.speech import speech
from tkjax.voice import network, speaker, training

NAMES = ("browInnerUp", "jawOpen", "mouthClose", "mouthPucker", "eyeBlinkLeft")
COLUMNS = (1, 2, 3)


def untrained(seed: int = 0) -> voice.Voice:
    return voices.untrained(seed, COLUMNS)


@cache
def babble(seconds: float = 6.0, seed: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Synthetic speech, and its coefficients in the order of NAMES."""
    pcm, mouth = speech(seed, seconds)
    n = round(seconds * contract.FPS)
    return pcm, np.stack([mouth.get(name, np.zeros(n, np.float32)) for name in NAMES], 1)


def told(pcm: np.ndarray, n: int, by: voice.Voice | None = None) -> np.ndarray:
    return voice.spoken(by or untrained(), [pcm], n)


# ---------------------------------------------------------------- what is heard


@settings(max_examples=15)
@given(cuts=st.lists(st.integers(0, 16000), max_size=8), data=st.data())
def test_blocks_change_no_bit(cuts, data):
    pcm = babble()[0][8000:24000]
    edges = [0, *sorted(cuts), len(pcm)]
    stream = voice.Stream(untrained())
    parts = [stream.push(pcm[a:b]) for a, b in itertools.pairwise(edges)]
    parts.append(stream.push(np.zeros(data.draw(st.integers(640, 2000)))))
    joined = np.concatenate(parts)
    assert len(joined) >= 25
    np.testing.assert_array_equal(joined[:25], told(pcm, 25))


def test_the_carry_of_a_stream_is_explicit():
    """Going on from a carry twice gives the same twice, and the carry is not changed by it."""
    rows = speaker.sound_steps(babble()[0][:32000], 50)
    carry, first = speaker.advance(untrained(), speaker.start(untrained()), rows[:41])
    again = [speaker.advance(untrained(), carry, rows[41:])[1] for _ in range(2)]
    np.testing.assert_array_equal(*again)
    np.testing.assert_array_equal(np.concatenate([first, again[0]]), told(babble()[0][:32000], 50))


def test_a_stream_is_the_network_on_the_whole_clip():
    pcm, rows = babble()[0][:32000], speaker.sound_steps(babble()[0][:32000], 50)
    v = untrained()
    opened = network.gate(np.zeros(network.MEMORY, np.float32), rows)[1][1::2]
    sound, opened = jnp.asarray(rows)[None], jnp.asarray(opened)[None]
    _, y = jax.jit(network.apply, static_argnums=5)(v.params, v.constants, network.start(WIDTH), sound, opened, 2)
    np.testing.assert_allclose(told(pcm, 50), y[0], atol=2e-5)


@settings(max_examples=10)
@given(frame=st.integers(1, 40), seed=st.integers(0, 99))
def test_nothing_later_than_40_ms_is_heard(frame, seed):
    pcm = babble()[0][16000:48000]
    other, edge = pcm.copy(), 640 * (frame + 1)
    other[edge:] = np.random.default_rng(seed).normal(size=len(pcm) - edge)
    a, b = told(pcm, 50), told(other, 50)
    np.testing.assert_array_equal(a[: frame + 1], b[: frame + 1])
    assert (a[frame + 1 :] != b[frame + 1 :]).any()


def test_all_of_40_ms_is_heard_and_more_than_a_second_behind():
    pcm = babble()[0][16000:80000]
    base = told(pcm, 60)
    for sample, frame in ((640 * 31 - 20, 30), (640 * 3, 30)):  # 39 ms later; 1.1 s earlier
        other = pcm.copy()
        other[sample - 300 : sample + 20] += 0.2
        assert (told(other, 60)[frame] != base[frame]).any()


@settings(max_examples=5)
@given(gain=st.floats(-20, 6))
def test_a_settled_level_does_not_depend_on_the_gain(gain):
    pcm = babble(8.0)[0]
    loud, soft = told(pcm, 190), told(pcm * 10 ** (gain / 20), 190)
    assert np.abs(loud - soft)[100:].mean() < 0.02 * loud.std()


# ---------------------------------------------------------------- silence


@pytest.mark.parametrize("noise", [0.0, 1e-4])
def test_in_silence_the_mouth_rests_to_the_bit(noise):
    pcm = babble()[0].copy()
    pcm[48000:] = noise * np.random.default_rng(0).normal(size=len(pcm) - 48000)
    mouth, rest = told(pcm, 150), untrained().constants.rest
    assert (mouth[88:] == rest).all()  # speech ends at frame 75; held for 0.2 s and let go over 0.2 s
    assert mouth[40:75].std() > 0.01
    assert (told(np.zeros(16000), 100) == rest).all()  # also behind the end


@given(active=st.lists(st.booleans(), min_size=1, max_size=60), cut=st.integers(0, 60))
def test_the_gate_holds_and_lets_go(active, cut):
    rows = np.where(np.array(active)[:, None], 2.0, 0.0) * np.ones(audio.BANDS)
    carry, first = network.gate(np.zeros(network.MEMORY, np.float32), rows[:cut])
    got = np.concatenate([first, network.gate(carry, rows[cut:])[1]])
    for k, g in enumerate(got):
        ages = [k - j for j in range(k + 1) if active[j]]
        late = min(ages, default=10**6) - network.HOLD_STEPS
        assert g == pytest.approx(np.clip(1 - late / network.RELEASE_STEPS, 0, 1), abs=1e-6)


# ---------------------------------------------------------------- losses


@pytest.fixture(scope="module")
def terms():
    """loss(p) against the lips of `babble`, compiled."""
    t = jnp.asarray(babble()[1][None][..., list(COLUMNS)])
    weights = jnp.asarray(voice.opening(NAMES, COLUMNS))
    opening = np.asarray(t @ weights)
    lips = training.Lips(weights, opening.std(), 0.15 * opening.max())
    return t, jax.jit(lambda p, w: training.loss(p, t, w, jnp.asarray(t.std((0, 1))), lips))


def test_the_truth_costs_nothing_and_a_mumble_more_than_its_error(terms):
    t, loss = terms
    ones = jnp.ones(t.shape[:2])
    assert abs(float(loss(t, ones))) < 1e-5
    mean = t.mean((0, 1))
    costs = [float(loss(mean + s * (t - mean), ones)) for s in (0.2, 0.5, 0.8, 1.0)]
    assert costs == sorted(costs, reverse=True) and costs[1] > 0.3


@given(seed=st.integers(0, 99))
def test_frames_without_weight_say_nothing(terms, seed):
    t, loss = terms
    rng = np.random.default_rng(seed)
    weight = (np.arange(t.shape[1]) % 50 < 40).astype(np.float32)[None]
    p = t + 0.1 * rng.normal(size=t.shape).astype(np.float32)
    other = jnp.where(weight[..., None] > 0, p, rng.normal(size=t.shape).astype(np.float32))
    np.testing.assert_allclose(loss(p, weight), loss(other, weight), rtol=1e-6)


def test_names_say_what_speech_moves_and_how_lips_open():
    assert voice.mouth(NAMES, 5) == COLUMNS and voice.mouth((), 4) == (0, 1, 2, 3) == voice.mouth("abcd", 4)
    np.testing.assert_array_equal(voice.opening(NAMES, COLUMNS), [1, -1, 0])
    assert not voice.opening((), (0, 1)).any()


# ---------------------------------------------------------------- training


@pytest.mark.slow  # 17 s: two trainings of the speech network
def test_training_repeats_by_its_seed_and_learns_to_open_the_lips():
    pcm, y = babble(24.0)
    losses = []
    train = {"steps": 70, "width": 48, "rate": 4e-3}
    learned = voice.train(pcm, y, NAMES, **train, on_step=lambda i, loss: losses.append(loss))
    assert len(losses) == 70 and np.mean(losses[-5:]) < 0.5 * losses[0] and learned.columns == COLUMNS
    again = voice.train(pcm, y, NAMES, **train)
    jax.tree.map(np.testing.assert_array_equal, learned.tree(), again.tree())
    new, truth = babble(12.0, seed=9)
    mouth = told(new, len(truth), learned)
    jaw, true = mouth[:, 0], truth[:, 1]
    assert np.corrcoef(jaw, true)[0, 1] >= 0.8
    opening = mouth @ voice.opening(NAMES, COLUMNS)
    assert 0.8 <= opening.std() / (truth @ voice.opening(NAMES, range(5))).std() <= 1.2
    hush = 10**-2.5 * np.random.default_rng(0).normal(size=80000)  # a room at -50 dB
    assert np.ptp(told(hush, 125, learned)[:, 0]) < 0.02 * np.ptp(true)
    with pytest.raises(ValueError, match="frames to learn from"):
        voice.train(pcm, y, NAMES, np.arange(len(y)) < 70)


# ---------------------------------------------------------------- avatars


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(workdir of an avatar that expression drives and that has a voice, its clip)."""
    workdir = tmp_path_factory.mktemp("voice")
    clip = DatasetClip(tiny.make_dataset(workdir / "dataset", names=NAMES), workdir / "cache")
    save(workdir / "avatar", clip, untrained())
    return workdir, clip


def save(folder, clip, speaks):
    config = stub_config("expressive")
    variables = load_system(config.system)(config, clip.info).init(jax.random.key(0))
    spec = bundle.audio_spec(clip.audio)
    return bundle.save(folder, config, variables, 4, clip, spec, {"statement": None}, speaks=speaks)


@pytest.fixture
def wav(tmp_path):
    audio.write_wav(tmp_path / "s.wav", babble()[0][16000:48000])
    return tmp_path / "s.wav"


@pytest.mark.heavy
def test_an_avatar_keeps_its_voice_and_one_without_is_as_before(made, tmp_path):
    workdir, clip = made
    kept = bundle.load(workdir / "avatar").voice
    assert (kept.columns, kept.width) == (COLUMNS, WIDTH)
    jax.tree.map(np.testing.assert_array_equal, kept.tree(), untrained().tree())
    np.testing.assert_array_equal(told(babble()[0], 50, kept), told(babble()[0], 50))
    names = [save(tmp_path / f"{i}", clip, speaks) for i, speaks in enumerate((None, untrained(), untrained(1)))]
    assert len(set(names)) == 3 and bundle.load(tmp_path / "0").voice is None
    meta = json.loads((tmp_path / "0" / "avatar.json").read_text())
    assert "voice" not in meta and "voice" not in meta["files"] and not list((tmp_path / "0").glob("voice*"))


def changed(arrays, name, value):
    return {**arrays, name: value}


@pytest.mark.parametrize(
    ("change", "facts", "message"),
    [
        (lambda a: {k: v for k, v in a.items() if k != "constants/rest"}, {}, "lacks array 'constants/rest'"),
        (lambda a: changed(a, "surprise", np.zeros(3, np.float32)), {}, "unknown array 'surprise'"),
        (lambda a: changed(a, "params/out/b", np.zeros(4, np.float32)), {}, r"shape \(4,\)"),
        (lambda a: changed(a, "params/out/b", np.zeros(3, np.int64)), {}, "holds int64"),
        (lambda a: changed(a, "params/out/b", np.full(3, np.nan, np.float32)), {}, "not finite"),
        (lambda a: a, {"width": 9}, "shape"),
        (lambda a: a, {"width": 10**6}, "1..4096 channels"),
        (lambda a: a, {"columns": [1, 2, 5]}, "some of the 5 channels"),
        (lambda a: a, {"columns": [1, 2, 2]}, "some of the 5 channels"),
        (lambda a: a, {"columns": [1, 2]}, "shape"),
        (lambda a: a, {"extractor": "os.system"}, "tkjax-logmel-2"),
        (lambda a: a, None, "exactly where one is described"),
    ],
)
def test_a_voice_that_does_not_fit_is_refused(made, tmp_path, change, facts, message):
    shutil.copytree(made[0] / "avatar", tmp_path / "copy")
    meta = json.loads((tmp_path / "copy" / "avatar.json").read_text())
    entry = meta["files"]["voice"]
    data = bundle._npz(change(bundle.arrays_of(untrained().tree())))
    (tmp_path / "copy" / entry["name"]).write_bytes(data)
    entry |= {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    if facts is None:
        del meta["voice"]
    else:
        meta["voice"] |= facts
    meta["digest"] = avatar_json.json_digest(meta)
    (tmp_path / "copy" / "avatar.json").write_bytes(avatar_json.dump(meta))
    with pytest.raises(UserError, match=message) as error:
        bundle.load(tmp_path / "copy")
    assert "\n" not in str(error.value)


def test_sound_gives_the_mouth_and_the_clip_the_rest(made, wav, capsys):
    subject = bundle.load(made[0] / "avatar")
    planned = driver.plan(subject, audio=wav)
    values = planned.signals["expression"].values
    assert planned.n_frames == 50 and planned.sound.path == wav and not planned.speaks
    np.testing.assert_array_equal(values[:, list(COLUMNS)], told(audio.read_audio(wav), 50))
    own = driver.motion.looped(subject.signals["expression"].values[:30], 50)
    np.testing.assert_array_equal(values[:, [0, 4]], own[:, [0, 4]])
    out = capsys.readouterr().out
    assert "speech network" in out and "only added to the video" not in out
    edited = driver.plan(subject, audio=wav, scale="jawOpen=2").signals["expression"].values
    np.testing.assert_allclose(edited[:, 1], 2 * values[:, 1], rtol=1e-6)


def test_what_is_named_with_drive_wins_and_without_a_voice_something_must_be(made, wav, tmp_path):
    subject = bundle.load(made[0] / "avatar")
    planned = driver.plan(subject, audio=wav, drive="own")
    own = driver.motion.looped(subject.signals["expression"].values[:30], 50)
    np.testing.assert_array_equal(planned.signals["expression"].values, own)
    mute = dataclasses.replace(subject, voice=None)
    with pytest.raises(UserError, match="nothing gives the signal expression"):
        driver.plan(mute, audio=wav)
    with pytest.raises(UserError, match="nothing gives the signal expression"):
        driver.plan(subject)


@pytest.mark.parametrize("suffix", ["npz", "csv"])
def test_a_sound_becomes_a_track_that_drives_as_the_sound_does(made, wav, tmp_path, suffix):
    workdir, out = made[0], tmp_path / f"t.{suffix}"
    cli.run(options.parse(["launch.py", "--mode=voice", f"--workdir={workdir}", f"--audio={wav}", f"--out={out}"]))
    track, subject = tracks.read(out, 25.0), bundle.load(workdir / "avatar")
    assert track.names == NAMES and len(track.values) == 50
    spoken = driver.plan(subject, audio=wav).signals["expression"].values
    np.testing.assert_allclose(track.values, spoken, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(driver.plan(subject, drive=out).signals["expression"].values, spoken, atol=1e-5)


def test_a_track_that_cannot_be_written_is_refused_before_any_work(made, wav, tmp_path):
    with pytest.raises(UserError, match=r"written as .npz or .csv"):
        speaking.coefficients(made[0], wav, tmp_path / "t.mp4")
    (tmp_path / "W").mkdir()
    save(tmp_path / "W" / "avatar", made[1], None)
    with pytest.raises(UserError, match="no speech network"):
        speaking.coefficients(tmp_path / "W", wav, tmp_path / "t.npz")


# ---------------------------------------------------------------- fit


@pytest.mark.heavy
def test_fit_trains_a_voice_where_expression_drives_once_and_render_speaks_with_it(tmp_path, capsys, wav):
    root = tiny.make_dataset(tmp_path / "dataset", n=110, names=NAMES)
    settings_ = [
        ("model.steps", "3"),
        ("train.voice.steps", "2"),
        ("train.voice.width", "8"),
        ("train.preview_every", "0"),
    ]
    run = {"dataset": str(root)}
    spec = f"tests/stubs/configs/{named('expressive')}.py:test"
    workflow.train(tmp_path / "W", spec, settings_, **run)
    first = bundle.load(tmp_path / "W" / "avatar")
    assert first.voice.columns == COLUMNS and "voice: learned 3 channels" in capsys.readouterr().out
    workflow.train(tmp_path / "W", spec, settings_, **run)
    assert "is there" in capsys.readouterr().out and bundle.load(tmp_path / "W" / "avatar").id == first.id
    stored = next((tmp_path / "W" / "checkpoints").glob("voice-*.npz"))
    stored.write_bytes(stored.read_bytes()[:1000])  # as a disk that was full leaves it: trained again, to the same bits
    workflow.train(tmp_path / "W", spec, settings_, **run)
    assert bundle.load(tmp_path / "W" / "avatar").id == first.id
    assert workflow.render(tmp_path / "W", str(tmp_path / "o.mp4"), audio=str(wav)) == 50
    silent = tiny.make_dataset(tmp_path / "silent" / "dataset", n=110, names=NAMES, heard=False)
    workflow.train(tmp_path / "V", spec, settings_, dataset=str(silent))
    assert bundle.load(tmp_path / "V" / "avatar").voice is None
    assert "holds no sound" in capsys.readouterr().out
