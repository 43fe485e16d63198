"""The drive test on a model whose every reaction is known: what moves, how far, and where."""

import copy
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from tests import tiny
from tests.stubs.clip import FakeClip
from tkjax.data.dataset_clip import DatasetClip
from tkjax.interface import Model
from tkjax.measure import evaluate, probe, scores, watch
from tkjax.measure.layers import Combination
from tkjax.signals import Use
from tkjax.types import Render, Variables


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drive")
    clip = DatasetClip(tiny.make_dataset(folder / "dataset"), folder / "cache")
    clip.boxes["lips_box_px"][:] = [10, 14, 20, 20]
    clip.eye_regions[:] = [[8, 4, 13, 8], [18, 4, 23, 8]]
    clip.lower_face[:] = [6, 12, 26, 22]
    return clip


class Speaker(Model):
    """Grey; the lips box brightens with the sound and the eyes' boxes with the blink, as `gains` say; `restless` adds
    what hangs on the frame's number."""

    def __init__(self, config, info, clip, sound=200.0, blink=200.0, restless=0.0):
        super().__init__(config, info)
        self.gains = sound, blink, restless
        self.lips = jnp.asarray(probe.regions(clip, 0)["lips"].ravel(), jnp.float32)
        self.eyes = jnp.asarray(probe.regions(clip, 0)["eyes"].ravel(), jnp.float32)

    def signals(self):
        return (Use("sound", 4, 3), Use("eye_closed"))

    def init(self, key):
        return Variables({"none": jnp.zeros(1)}, {})

    def render(self, variables, batch, key, clock, train):
        column, row = jnp.moveaxis(batch.pixels_px.astype(jnp.int32), -1, 0)
        flat = row * self.info.width + column
        sound, blink, restless = self.gains
        level = jnp.tanh(batch.signals["sound"][:, 4].mean((1, 2)))[:, None] * sound * self.lips[flat]
        level += batch.now("eye_closed") * blink * self.eyes[flat] + restless * (batch.frame % 2)[:, None]
        grey = jnp.clip(20 + level, 0, 255)[..., None] / 255
        return Render(rgb=jnp.repeat(grey, 3, -1), alpha=jnp.ones_like(grey))


def actor(clip, **gains):
    model = Speaker(tiny.config(), clip.info, clip, **gains)
    return probe.Actor(clip, model, model.init(jax.random.key(0)), 4, Combination("torso", ""), 8192)


def test_each_signal_moves_its_own_region_and_no_other(clip):
    moved, why = probe.drive_test(actor(clip), np.arange(30))
    assert {k: v["region"] for k, v in moved.items()} == {"sound": "lips", "blink": "eyes"} and why == {}
    areas = {k: probe.regions(clip, 0)[k].sum() for k in ("lips", "eyes")}
    assert moved["blink"]["changed_px"] == areas["eyes"] and 0 < moved["sound"]["changed_px"] <= areas["lips"]
    assert moved["blink"]["mean_change"] == pytest.approx(160 * areas["eyes"] / (24 * 32), rel=0.02)  # blinks 0 … 0.8


def test_a_dead_signal_changes_nothing_and_has_no_region(clip):
    moved, why = probe.drive_test(actor(clip, blink=5.0), np.arange(30))
    assert moved["blink"]["changed_px"] == 0 and moved["blink"]["region"] is None
    assert "more than 20 of 255" in why["blink.region"]
    one_blink = np.arange(0, 30, 5)  # frames whose eyes are all open
    moved, why = probe.drive_test(actor(clip), one_blink)
    assert moved["blink"] is None and "does not vary" in why["blink"] and moved["sound"] is not None


@pytest.mark.parametrize(("restless", "moves"), [(0.0, 0), (1.0, 0), (9.0, 24 * 32)])
def test_a_head_is_still_where_nothing_drives_it(clip, restless, moves):
    share = np.mean([i % 2 != 15 % 2 for i in range(16, 23)])  # frames whose number differs in parity from the first's
    assert probe.still_px(actor(clip, restless=restless), np.arange(30)) == pytest.approx(moves * share)


def test_percentiles_are_taken_from_the_frames_themselves():
    values = np.random.default_rng(0).permutation(100).astype(float)
    low, high = probe.at_percentiles(values, 5, 95)
    assert sorted(values[low]) == [4, 5, 6] and sorted(values[high]) == [93, 94, 95]
    assert all(len(a) == probe.PLACES for a in probe.at_percentiles(values[:2], 0, 100))


def test_silence_is_what_the_sound_features_of_no_sound_are(clip):
    speaker = actor(clip).model
    quiet, why = probe.silence(clip, speaker)
    assert why == "" and quiet["sound"].shape == (1, 8, 16, 80) and not quiet["sound"].any()
    deaf = FakeClip()
    heard = dataclasses.replace(deaf.info.signal("sound"), kind="hubert")
    deaf.info = dataclasses.replace(deaf.info, signals=(heard,))
    assert "hubert" in probe.silence(deaf, speaker)[1]
    assert "not driven by sound" in probe.silence(clip, Model(ConfigDict(), clip.info))[1]


def test_baselines_use_neither_made_up_pictures_nor_unseen_faces(clip):
    holes = copy.copy(clip)
    holes.picture_missing, holes.confidence = np.zeros(33, bool), np.ones(33)
    holes.picture_missing[:10], holes.confidence[20:] = True, 0
    assert evaluate.real_frames(holes).tolist() == list(range(10, 30))
    assert evaluate.real_frames(holes, seen=True).tolist() == list(range(10, 20))
    average = np.rint(np.mean([clip.target(i).astype(float) for i in range(10, 30)], 0)).astype(np.uint8)
    assert np.array_equal(evaluate.mean_frame(holes), average)


def test_evaluation_keeps_no_picture_on_the_disk(clip, tmp_path, monkeypatch):
    """A stand-in for the tracker: what reaches it is what was drawn, once where a source stands still."""

    sent = []

    class Pipe:
        def __init__(self, module, arguments):
            self.sent, self.out = sent, arguments[arguments.index("--out") + 1]

        def write(self, head, data):
            self.sent.append(np.frombuffer(data, np.uint8).reshape(24, 32, 3))

        def close(self):
            points = np.zeros((len(self.sent), 478, 2), np.float32)
            points[:, :, 0] = np.array([p.mean() for p in self.sent])[:, None]
            np.savez(self.out, landmarks_px=points, confidence=np.ones(len(self.sent), np.float32))

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(scores.torch_side, "Feed", Pipe)
    monkeypatch.setattr(watch.model_files, "find_model", lambda models: (tmp_path / "model", ""))
    with watch.Watch(clip, np.arange(30), tmp_path, None) as seen:
        for i in (30, 31, 32):
            seen.add("mean_frame", i, clip.target(0))
            seen.add(watch.TRUTH, i, clip.target(i))
        assert list(tmp_path.iterdir()) == [] and len(sent) == 4
        seen.finish()
    assert seen.measured_by == watch.TRACKER
    assert seen.points["mean_frame"][:, 0, 0] == pytest.approx(np.full(3, clip.target(0).mean()), rel=1e-5)
    assert seen.points[watch.TRUTH][:, 5, 0] == pytest.approx([clip.target(i).mean() for i in (30, 31, 32)], rel=1e-5)
