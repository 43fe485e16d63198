"""What is stored of signals: a stranger's avatar, a tracker's numbers and names; and what a projection may move."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import driver_test, tiny, tiny_dataset
from tests.driver_test import Model
from tkjax import contract
from tkjax.avatar import avatar_json, bundle
from tkjax.data.dataset_clip import DatasetClip
from tkjax.drive import driver
from tkjax.errors import UserError
from tkjax.interface import Rate, Stage
from tkjax.models import load_system
from tkjax.signals import SOUND
from tkjax.train import loop
from tkjax.types import Variables

made, wav = driver_test.made, driver_test.wav  # fixtures


def rewritten(folder: Path, change) -> Path:
    """The avatar with another `info`, under a digest that fits."""
    meta = json.loads((folder / "avatar.json").read_text())
    change(meta)
    meta["digest"] = avatar_json.json_digest(meta)
    (folder / "avatar.json").write_bytes(avatar_json.dump(meta))
    return folder


def drop(name):
    def change(meta):
        meta["info"]["signals"] = [s for s in meta["info"]["signals"] if s["name"] != name]
        meta["audio"] = None if name == SOUND else meta["audio"]

    return change


def put(field, value):
    def change(meta):
        next(s for s in meta["info"]["signals"] if s["name"] == "expression")[field] = value

    return change


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (drop("eye_area"), "eye_closed and eye_area"),
        (drop("eye_closed"), "eye_closed and eye_area"),
        (drop(SOUND), "no signal sound"),
        (put("high", []), "low is at most high"),
        (put("low", [9.0, 9.0, 9.0]), "low is at most high"),
        (put("names", ["\x1b[2J", "b", "c"]), "printable"),
        (put("names", ["a", "b"]), "each with its own"),
        (put("window", 3), "windows of its own"),
    ],
)
def test_an_avatar_that_describes_its_signals_wrongly_is_refused(made, tmp_path, change, word):
    folder = tmp_path / "avatar"
    shutil.copytree(made(SOUND, "expression", "eye_closed").folder, folder)
    with pytest.raises(UserError, match=word) as error:
        bundle.load(rewritten(folder, change))
    assert "\n" not in str(error.value) and str(error.value).isprintable()


def test_an_avatar_that_does_not_describe_its_sound_does_not_speak(made, wav, tmp_path):
    folder = tmp_path / "avatar"
    shutil.copytree(made(SOUND).folder, folder)
    subject = bundle.load(rewritten(folder, lambda meta: meta.update(audio={"kind": "logmel"})))
    with pytest.raises(UserError, match="does not say how the sound"):
        driver.plan(subject, audio=wav)


@pytest.mark.parametrize("at", [3, 31], ids=["training", "held out"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_signal_that_is_no_number_is_refused_before_training_and_before_an_avatar_is_written(tmp_path, at, value):
    values = np.linspace(5, 6, 33)
    values[at] = value
    clip = DatasetClip(tiny.make_dataset(tmp_path / "dataset", twin=values), tmp_path / "cache")
    config = tiny.config()
    config.system, config.model.driven_by = "tests.driver_test", ("a",)
    model = load_system(config.system)(config, clip.info)
    for act in (
        lambda: loop.train(config, clip, tmp_path / "w"),
        lambda: bundle.save(tmp_path / "avatar", config, model.init(jax.random.key(0)), 4, clip, None, {}),
    ):
        with pytest.raises(UserError, match=rf"signal a \(member x_a\) is not finite at step {at}"):
            act()
    assert not (tmp_path / "avatar" / "avatar.json").exists()


def test_members_that_look_like_sound_keep_their_own_name(tmp_path):
    with tiny_dataset.writer(tmp_path / "d", extra_members={"x_audio_logmel": ("float32", ())}) as w:
        w.add({**tiny_dataset.frames(3), "x_audio_logmel": np.float32([1, 2, 3])})
        w.add_file("background.png", tiny_dataset.plate())
    dataset = contract.Dataset(tmp_path / "d")
    assert dataset.signals()["x_audio_logmel"].values[:, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize("name", ["", "a" * 201, "a\tb"])
def test_names_that_no_channel_may_have_are_refused_before_the_first_frame(tmp_path, name):
    for how in (
        {"expression_names": (name, "b", "c")},
        {"extra_members": {"x_gaze": ("float32", (1,))}, "channels": {"x_gaze": (name,)}},
    ):
        with pytest.raises(contract.ContractError, match="name"):
            tiny_dataset.writer(tmp_path / "d", **how)


class Clipped(Model):
    """Its projection moves everything."""

    def init(self, key):
        return Variables({name: jnp.full(1, 5.0) for name in ("rated", "later", "frozen")}, {})

    def labels(self, params):
        return {name: name for name in params}

    def loss_terms(self, variables, render, batch, key, clock):
        return {"mse": sum(jnp.sum(v) for v in variables.params.values())}

    def project(self, params, clock):
        return jax.tree.map(lambda v: jnp.clip(v, 0.0, 1.0), params)

    def stages(self):
        rates = {"rated": Rate(1e-3), "later": Rate(1e-3, joins=3)}
        return (Stage("all", self.config.model.steps, 16, rates, {"mse": 1.0}, ema=None),)


@pytest.mark.heavy
@pytest.mark.parametrize(("steps", "later"), [(3, 5.0), (4, 1.0)])
def test_a_projection_moves_neither_frozen_groups_nor_those_that_have_not_joined(tmp_path, monkeypatch, steps, later):
    config = tiny.config(steps=steps)
    config.system, config.model.driven_by = "tests.driver_test", ()
    monkeypatch.setattr(driver_test, "Model", Clipped)
    clip = DatasetClip(tiny.make_dataset(tmp_path / "dataset"), tmp_path / "cache")
    params = loop.train(config, clip, tmp_path / "w").params
    assert params["frozen"] == 5 and 0.9 < params["rated"] <= 1 and params["later"] == later
