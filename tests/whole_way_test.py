"""Every stub goes the whole way on a dataset on disk: train, checkpoint, kill, resume, avatar, render, eval, report."""

import importlib
import json
import signal
import subprocess
import sys
import time

import av
import numpy as np
import pytest

from tests import tiny
from tests.stubs.clip import FakeClip
from tests.stubs.config import NAMES, config_file, stub_config
from tests.stubs.process import ROOT
from tkjax.app import cli, options, workflow
from tkjax.avatar import bundle
from tkjax.data.frame_cache import over
from tkjax.drive.motion import ping_pong
from tkjax.errors import UserError
from tkjax.host import model_files
from tkjax.media import audio
from tkjax.models import load_system
from tkjax.signals import SOUND

pytestmark = pytest.mark.heavy
CHANNELS = ("jawOpen", "mouthPucker", "browInnerUp")
SETTINGS = {"model.steps": 600, "train.checkpoint_every": 200, "train.log_every": 20, "train.preview_every": 0}


def signals_of(name: str) -> set[str]:
    """What a stub is driven by."""
    config = stub_config(name)
    return {use.name for use in load_system(config.system)(config, FakeClip().info).signals()}


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """Of the same frames, with sound (True) and without any (False)."""
    folder = tmp_path_factory.mktemp("datasets")
    for heard in (True, False):
        (folder / f"{heard}").mkdir()
    return {
        heard: tiny.make_dataset(folder / f"{heard}" / "dataset", names=CHANNELS, heard=heard)
        for heard in (True, False)
    }


@pytest.fixture(scope="module", params=NAMES)
def run(request, datasets, tmp_path_factory):
    """(name, workdir, the report): a training in a process that is killed, and goes on in this one to the report. The
    dataset holds sound only for those that hear."""
    name, workdir = request.param, tmp_path_factory.mktemp(request.param)
    dataset = datasets[SOUND in signals_of(name)]
    arguments = [f"--config={ROOT}/tests/stubs/configs/{name}.py:test", f"--dataset={dataset}", f"--workdir={workdir}"]
    arguments += [f"--config.{key}={value}" for key, value in SETTINGS.items()]
    process = subprocess.Popen([sys.executable, "launch.py", "--mode=train", *arguments], cwd=ROOT)
    while process.poll() is None and not [p for p in workdir.glob("checkpoints/*/[0-9]*") if p.name.isdigit()]:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was through before it could be killed"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_files, "find_model", lambda models: (None, "the test has no tracker"))
        cli.run(options.parse(["launch.py", "--mode=fit", *arguments]))
    return name, workdir, json.loads((workdir / "report.json").read_text())


def pictures(path):
    with av.open(str(path)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)]), len(container.streams.audio)


def driving(name: str, folder) -> tuple[dict, int]:
    """(arguments of a rendering that gives a stub all that it needs, its number of frames)."""
    uses, how, frames = signals_of(name), {}, 30
    if SOUND in uses:
        audio.write_wav(folder / "s.wav", tiny.sound(0.8))
        how, frames = {"audio": str(folder / "s.wav")}, 20
    if "expression" in uses:
        rows = np.random.default_rng(0).uniform(0, 1, (12, 3)).round(3)
        text = "\n".join([",".join(CHANNELS), *(",".join(map(str, row)) for row in rows)])
        (folder / "face.csv").write_text(text + "\n")
        how, frames = {**how, "driving": {"drive": str(folder / "face.csv")}}, max(12, frames if how else 12)
    return how, frames


def test_it_goes_on_where_it_was_killed_and_is_scored(run):
    name, workdir, report = run
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    stages = list(dict.fromkeys(r["stage"] for r in rows))
    for stage in stages:
        steps = [r["step"] for r in rows if r["stage"] == stage and "loss" in r]
        assert steps == list(range(20, 601, 20)), "each row once, whatever the kill interrupted"
    assert report["system"].endswith(name) and report["stages"] == stages
    assert report["metrics"]["psnr"] > 12  # of frames that hardly change, so that no baseline says anything
    assert np.isfinite([report["metrics"][k] for k in ("psnr", "ssim")]).all()
    assert report["split"]["heldout_frames"] == 3 and (workdir / "report.html").is_file()


def test_the_report_tells_what_each_signal_moves_and_why_others_are_missing(run):
    name, _, report = run
    tests, reasons = report["response"]["drive_test"], report["response"]["reasons"]
    for signal_name in {"sound", "blink"} - signals_of(name):
        assert tests[signal_name] is None and "not driven" in reasons[f"drive_test.{signal_name}"]
    for signal_name in signals_of(name):
        assert tests[signal_name]["mean_change"] >= 0


def test_its_avatar_is_rendered_from_what_it_is_driven_by_and_nothing_else(run, tmp_path):
    name, workdir, _ = run
    how, frames = driving(name, tmp_path)
    assert workflow.render(workdir, str(tmp_path / "o.mp4"), **how) == frames
    shown, sounds = pictures(tmp_path / "o.mp4")
    assert len(shown) == frames and sounds == (1 if "audio" in how else 0)
    if signals_of(name):
        with pytest.raises(UserError, match=r"nothing gives the (signal|sound)"):
            workflow.render(workdir, str(tmp_path / "none.mp4"))
        assert not (tmp_path / "none.mp4").exists()


def test_a_render_from_a_file_is_what_the_formula_says(run, tmp_path):
    """Of stubs that state their picture as a formula; other coefficients differ as it says, to 8 bits."""
    name, workdir, _ = run
    module = importlib.import_module(f"tests.stubs.{name}")
    if not hasattr(module, "formula"):
        assert name != next(n for n in NAMES if hasattr(importlib.import_module(f"tests.stubs.{n}"), "formula"))
        return
    how, frames = driving(name, tmp_path)
    drawn = {}
    for scale in ("0.5", "1"):
        edits = how["driving"] | {"scale": f"expression={scale}"}
        out = tmp_path / f"by{scale[-1]}"
        workflow.render(workdir, str(out), driving=edits)
        drawn[scale] = np.stack([tiny.png(out / f"{i:06d}.png") for i in range(frames)])
    subject = bundle.load(workdir / "avatar")
    variables, rows = subject.variables(subject.model()), np.loadtxt(tmp_path / "face.csv", delimiter=",", skiprows=1)
    for scale, shown in drawn.items():
        for i, row in enumerate(rows):
            rgb, alpha = module.formula(variables, subject.info, subject.config.model.side, float(scale) * row)
            behind = over(subject.torso(ping_pong(i, 30)), subject.plate)
            assert np.abs(shown[i] - (255 * rgb + (1 - alpha) * behind)).max() < 0.51
    assert np.abs(drawn["1"].astype(int) - drawn["0.5"]).max() > 8


def test_a_given_torso_lies_where_the_system_says(run, tmp_path):
    """In front of the head of a system that says so: where it is opaque nothing of the head shows."""
    name, workdir, _ = run
    subject = bundle.load(workdir / "avatar")
    model = subject.model()
    if "torso" not in subject.stages:
        assert not model.torso_in_front
        return
    how, _ = driving(name, tmp_path)
    workflow.render(workdir, str(tmp_path / "out"), torso="given", **how)
    for i in (0, 7):
        shown, torso = tiny.png(tmp_path / "out" / f"{i:06d}.png"), subject.torso(i)
        opaque = torso[..., 3] == 255
        assert opaque.any() and (shown[opaque] == torso[opaque][:, :3]).all() == model.torso_in_front


def test_each_stub_says_what_it_is_for():
    assert all(config_file(name).__doc__ and importlib.import_module(f"tests.stubs.{name}").__doc__ for name in NAMES)
    assert len(NAMES) == 4 and sum(not signals_of(name) for name in NAMES) == 1
