"""Held-out frames in blocks: as many as at the end, spread over the clip, the same for training, avatar and report."""

import json

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import tiny
from tkjax.app import cli, options, workflow
from tkjax.avatar import bundle
from tkjax.data import split
from tkjax.data.dataset_clip import DatasetClip
from tkjax.drive import motion
from tkjax.errors import UserError
from tkjax.measure import evaluate
from tkjax.models import load_system

N = 880  # 80 held out, in two blocks


@given(st.integers(0, 50), st.integers(22, 4000))
def test_blocks_hold_out_as_many_frames_as_the_end_does_and_each_frame_is_in_one_part(first, n):
    held_out = n // 11
    train, held = split.frames("blocks", (first, first + n - held_out), (first + n - held_out, first + n))
    assert len(held) == held_out and sorted([*train, *held]) == list(range(first, first + n))
    runs = split.runs(held)
    assert (
        len(runs) == max(1, round(held_out / split.BLOCK_FRAMES)) and train[0] == first and train[-1] == first + n - 1
    )
    middles = [first + (k + 0.5) * n / len(runs) for k in range(len(runs))]  # of its share of the clip
    assert np.allclose([(a + b) / 2 for a, b in runs], middles, rtol=0, atol=1)
    assert max(b - a for a, b in runs) - min(b - a for a, b in runs) <= 1


def test_the_end_is_what_the_dataset_says_and_other_words_are_refused():
    train, held = split.frames("last", (3, 30), (32, 40))
    assert train.tolist() == list(range(3, 30)) and held.tolist() == list(range(32, 40))
    assert split.runs(held) == [[32, 40]] and split.runs(held[:0]) == []
    with pytest.raises(UserError, match=r"'middle'.*last, blocks"):
        split.frames("middle", (0, 3), (3, 4))
    assert [len(p) for p in split.frames("blocks", (0, 9), (9, 9))] == [9, 0]  # nothing to hold out


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("split")
    return DatasetClip(tiny.make_dataset(folder / "dataset", n=N, height=8, width=8), folder / "cache", split="blocks")


@pytest.mark.heavy
def test_a_clip_trains_on_the_frames_around_its_blocks(clip):
    (a, b), (c, d) = split.runs(clip.heldout_frames)
    assert len(clip.heldout_frames) == 80 and 0 < a < b < c < d < N and len(clip.train_frames) == 800
    assert clip.train_range == (0, N)
    assert evaluate.real_frames(clip).tolist() == clip.train_frames.tolist()
    assert evaluate.frames_to_score(clip, 0).tolist() == clip.heldout_frames.tolist()


@pytest.mark.heavy
def test_an_avatar_knows_which_frames_of_the_dataset_its_track_holds(clip, tmp_path):
    settings = tiny.config()
    settings.data.split = "blocks"
    model = load_system(settings.system)(settings, clip.info)
    variables = model.init(jax.random.key(0))
    bundle.save(tmp_path, settings, variables, 4, clip, {"kind": "logmel"}, workflow.consent_record(None, False))
    subject = bundle.load(tmp_path)
    numbers = [subject.frame_number(k) for k in range(subject.n_track)]
    assert numbers == [*clip.train_frames, *clip.heldout_frames]
    assert np.array_equal(subject.cam_to_world, clip.cam_to_world[numbers])
    played = motion.plan(subject)  # no jump over a block
    assert np.array_equal(played.cam_to_world, clip.cam_to_world)
    assert subject.numbers[played.track].tolist() == list(range(N))
    assert np.array_equal(motion.plan(subject, poses="test").cam_to_world, clip.cam_to_world[clip.heldout_frames])
    some = motion.plan(subject, data_range=(10, 400)).track
    assert subject.numbers[some].tolist() == list(range(numbers[10], numbers[399] + 1))


def test_the_flag_goes_into_the_config_and_a_run_keeps_its_split(tmp_path):
    command = ["launch.py", "--mode=train", "--config=configs/er_nerf.py:smoke", f"--workdir={tmp_path}"]
    for flags, kind in (([], "last"), (["--split=blocks"], "blocks")):
        opts = options.parse([*command, *flags])
        assert workflow.resolve(tmp_path, opts.config, cli.overrides(opts)).data.split == kind
    with pytest.raises(UserError, match=r"--split=middle.*blocks, last"):
        options.parse([*command, "--split=middle"])


@pytest.mark.heavy
def test_what_is_trained_around_blocks_is_scored_in_them_and_the_report_says_so(clip, tmp_path):
    settings = tiny.config()
    settings.data.split, settings.eval.max_frames = "blocks", 4
    fitted = workflow.train_and_save(settings, clip.dataset.root, tmp_path / "W", workflow.consent_record("mine", True))
    workflow.score(tmp_path / "W", fitted, str(tmp_path))
    report = json.loads((tmp_path / "W/report.json").read_text())
    assert report["split"]["kind"] == "blocks" and report["split"]["train_frames"] == 800
    assert report["split"]["heldout_runs"] == split.runs(clip.heldout_frames)
    (a, b), _ = report["split"]["heldout_runs"]
    assert f"--split=blocks: frames {a}–{b - 1}" in (tmp_path / "W/report.html").read_text()
    assert set(report["response"]["reasons"]) >= {"lips.sd_ratio", "eyes.closures_closed"}
    with pytest.raises(UserError, match=r"data\.split"):  # the same workdir with another split
        settings.data.split = "last"
        workflow.train_and_save(settings, clip.dataset.root, tmp_path / "W", workflow.consent_record("mine", True))
