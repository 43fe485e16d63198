"""`--audio=own`: the sound that is heard under a played frame is the one that its training frame had."""

import jax
import numpy as np
import pytest

from tests import tiny
from tkjax import contract, signals
from tkjax.app import workflow
from tkjax.avatar import bundle
from tkjax.contract import described
from tkjax.data.dataset_clip import DatasetClip
from tkjax.drive import driver, own_sound
from tkjax.errors import UserError
from tkjax.interface import initialise
from tkjax.media import audio
from tkjax.signals import SOUND

N = 33  # 30 train, 3 are held out


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(workdir with dataset and avatar, the avatar)"""
    workdir = tmp_path_factory.mktemp("own")
    clip = DatasetClip(tiny.make_dataset(workdir / "dataset", n=N), workdir / "cache")
    config = tiny.config()
    model = tiny.Model(config, clip.info)
    consent = {"statement": "a test", "asked": True, "reason": ""}
    variables = initialise(model, jax.random.key(0))
    bundle.save(workdir / "avatar", config, variables, 4, clip, bundle.audio_spec(clip.audio), consent)
    return workdir, bundle.load(workdir / "avatar")


@pytest.mark.parametrize(
    "driving, first, end",
    [
        ({}, 0, 30),
        ({"poses": "test"}, 30, 33),
        ({"data_range": (4, 9)}, 4, 9),
        ({"poses": "test", "data_range": (1, 3)}, 31, 33),
    ],
)
def test_the_sound_is_that_of_the_played_frames(made, tmp_path, driving, first, end):
    workdir, subject = made
    given = own_sound.cut(subject, workdir / "dataset", driving, tmp_path)
    d = contract.Dataset(workdir / "dataset")
    whole = audio.read_audio(d.path(contract.AUDIO))
    np.testing.assert_allclose(audio.read_audio(given["audio"]), whole[640 * first : 640 * end], atol=2 / 32768)
    drives = driver.plan(subject, **given, **driving)
    assert drives.n_frames == end - first
    trained = described.of_sound(d.audio_features("logmel"))
    heard = described.of_sound(contract.load_audio_features(given["features"]))
    use = signals.Use(SOUND)  # the frame's own window: neighbours beyond the cut are none
    windows = signals.windows(heard, np.arange(end - first), use)
    inner = slice(4, -4)  # a window reaches 8 steps of 20 ms to both sides
    np.testing.assert_array_equal(windows[inner], signals.windows(trained, np.arange(first, end), use)[inner])
    middle = slice(8, 10)  # of the steps; they lie within every frame
    np.testing.assert_array_equal(
        windows[:, :, middle], signals.windows(trained, np.arange(first, end), use)[:, :, middle]
    )


def test_a_reconstruction_is_written_with_it(made, tmp_path):
    workdir, _ = made
    assert workflow.render(workdir, str(tmp_path / "out.mp4"), audio="own", driving={"poses": "test"}) == 3
    assert len(audio.read_audio(tmp_path / "out.mp4")) >= 3 * 640


def test_what_cannot_be_reconstructed_is_one_sentence(made, tmp_path):
    workdir, subject = made
    with pytest.raises(UserError, match="leave out --pose"):
        own_sound.cut(subject, workdir / "dataset", {"pose": "x.json"}, tmp_path)
    other = tiny.make_dataset(tmp_path / "other", n=N, width=40)
    assert own_sound.cut(subject, other, {}, tmp_path)  # the same poses: a copy of the dataset
    short = tiny.make_dataset(tmp_path / "short", n=22)
    with pytest.raises(UserError, match="was not trained on"):
        own_sound.cut(subject, short, {"poses": "test"}, tmp_path)
    silent = tiny.make_dataset(tmp_path / "silent", n=N, heard=False)
    with pytest.raises(UserError, match="has no sound"):
        own_sound.cut(subject, silent, {}, tmp_path)
