"""--mode=compare: the same shards and minutes for each system, one page; whatever ends it, the same command goes on."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from tests import tiny
from tests.stubs.clip import FakeClip
from tests.stubs.config import NAMES, config_file, stub_config
from tkjax import config
from tkjax.app import cli, compare, options
from tkjax.errors import UserError
from tkjax.host import model_files
from tkjax.host.energy import Meter
from tkjax.media import video
from tkjax.models import load_system
from tkjax.train import loop, plan

ROOT = config.ROOT
SIMPLE, STAGED = ({getattr(config_file(n), "PLAYS", n): n for n in NAMES}[part] for part in ("simplest", "staged"))
NO_TRACKER = "from tkjax.host import model_files; model_files.find_model = lambda m=None, n='': (None, 'no tracker')\n"
SETTINGS = ("--config.model.steps=200", "--config.train.checkpoint_every=20", "--config.train.log_every=10")
BROKEN = """
from configs.base import get_config as base
def get_config(variant="full"):
    c = base()
    c.system, c.variant = "tests.tiny", variant
    c.model.background, c.model.steps = "torso", 4
    c.data.audio_kind = "hubert"
    return c
"""


def arguments(folder, *configs, more=SETTINGS, minutes="5"):
    named = ",".join(f"{ROOT}/tests/stubs/configs/{n}.py:test" if n in NAMES else n for n in configs)
    return [
        "launch.py", "--mode=compare", f"--configs={named}", f"--dataset={folder / 'dataset'}",
        f"--workdir={folder / 'W'}", f"--budget_minutes={minutes}", "--split=blocks",
        "--config.train.preview_every=0", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """(folder, the first system's row as it lay there when the run was killed, output of the second start)."""
    folder = tmp_path_factory.mktemp("compared")
    tiny.make_dataset(folder / "dataset", n=66)
    (folder / "broken.py").write_text(BROKEN)
    words = arguments(folder, SIMPLE, f"{folder}/broken.py:test", STAGED)
    code = NO_TRACKER + "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path('launch.py', run_name='__main__')"
    command = [sys.executable, "-c", code, *words]
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    second = folder / "W" / "systems" / f"{STAGED}-test"
    while process.poll() is None and not [p for p in second.glob("checkpoints/*/[0-9]*") if p.name.isdigit()]:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was through before it could be killed"
    first = folder / "W" / "systems" / f"{SIMPLE}-test" / "row.json"
    kept = first.read_bytes(), first.stat().st_mtime_ns
    assert json.loads((folder / "W" / "compare.json").read_text())["rows"], "the page is there after each system"
    assert not (second / "row.json").exists()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, (first, kept), done.stdout


@pytest.mark.heavy
def test_what_was_finished_is_kept_and_what_was_not_goes_on(compared):
    folder, (first, kept), said = compared
    assert (first.read_bytes(), first.stat().st_mtime_ns) == kept
    assert f"{SIMPLE}-test: finished before" in said and "continues after step" in said
    assert "trial" not in [p.name for p in (folder / "W" / "systems" / f"{STAGED}-test").iterdir()]


@pytest.mark.heavy
def test_every_row_has_the_reports_fields_and_its_costs(compared):
    folder, _, _ = compared
    tree = json.loads((folder / "W" / "compare.json").read_text())
    simple, broken, staged = tree["rows"]
    for row, name in ((simple, SIMPLE), (staged, STAGED)):
        report = json.loads((folder / "W" / "systems" / row["label"] / "report.json").read_text())
        assert set(report) <= set(row) and row["metrics"] == report["metrics"]
        assert (
            row["system"] == f"tests.stubs.{name}" and row["budget"] == 5 and row["bytes"] > row["bytes_parameters"] > 0
        )
        assert row["watt_hours"] is not None or row["reasons"]["watt_hours"]
        assert row["schedule"]["scale"] == 1 and set(row["schedule"]["trained_steps"].values()) == {200}
        minutes = row["curves"]["minutes"]
        assert minutes == sorted(minutes) and len(minutes) == len(row["curves"]["psnr"]) >= 15
        assert minutes[-1] * 60 == pytest.approx(row["speed"]["train_seconds"], rel=0.2)
        assert row["split"]["kind"] == "blocks" and row["per_frame"]["frame"] == simple["per_frame"]["frame"]
    assert "hubert" in broken["error"] and "\n" not in broken["error"] and broken["bytes"] is None
    assert [r["ground_truth_layers"] for r in staged["rows"]][-1] == ["background"]


@pytest.mark.heavy
def test_the_page_stands_alone_and_the_video_shows_the_same_frames(compared):
    folder, _, _ = compared
    tree = json.loads((folder / "W" / "compare.json").read_text())
    page = (folder / "W" / "compare.html").read_text()
    for row in tree["rows"]:
        assert row["label"] in page
    assert tree["rows"][1]["error"].split("'")[0][:40] in page and "given (true) layers" in page
    assert page.count("<svg") >= 2 and "http" not in page.replace("http://www.w3.org", "").replace(
        "http://purl.org", ""
    ).replace("http://creativecommons.org", "").replace("https://matplotlib.org", "")
    info = video.probe(folder / "W" / "compare.mp4")
    assert info.n_frames == len(tree["rows"][0]["per_frame"]["frame"]) == 6
    assert tree["shown"] == f"truth, {SIMPLE}-test, {STAGED}-test" and info.width >= 3 * 200


@pytest.mark.heavy
def test_another_budget_in_the_same_folder_is_refused(compared):
    folder, _, _ = compared
    with pytest.raises(UserError, match=r"begun with budget_minutes 5\.0, not 7\.0"):
        cli.run(options.parse(arguments(folder, SIMPLE, minutes="7")))


@pytest.mark.heavy
def test_a_schedule_that_is_too_long_is_shortened_and_ends_within_the_budget(tmp_path, monkeypatch):
    monkeypatch.setattr(model_files, "find_model", lambda models=None, name="": (None, "the test has no tracker"))
    tiny.make_dataset(tmp_path / "dataset", n=33)
    long = ("--config.model.steps=1000000", "--config.train.log_every=10")
    cli.run(options.parse(arguments(tmp_path, SIMPLE, more=long, minutes="0.05")))
    (row,) = json.loads((tmp_path / "W" / "compare.json").read_text())["rows"]
    schedule = row["schedule"]
    (steps,) = schedule["trained_steps"].values()
    assert 0 < schedule["scale"] < 1 and schedule["own_steps"] == {"all": 1000000}
    assert steps == round(1000000 * schedule["scale"]) or schedule["ended_early"] == ["all"]
    assert row["speed"]["train_seconds"] < 3 + 2, "3 seconds, and the step under way"
    assert row["config"]["model"]["steps"] == round(1000000 * schedule["scale"])


# ---------------------------------------------------------------- a stage that the clock ends


@pytest.mark.heavy
def test_a_stage_that_is_ended_counts_as_finished_and_later_ones_are_left_out(tmp_path):
    resolved, clip = stub_config("staged", steps=20), FakeClip()
    model = load_system(resolved.system)(resolved, clip.info)
    first, *rest = [stage.name for stage in plan.stages_of(resolved, model)]
    seen = []

    def stop(stage, step, seconds):
        seen.append((stage, step))
        return stage != first or step >= 7

    variables = loop.train(resolved, clip, tmp_path, stop=stop)
    assert (first, 7) in seen and (first, 8) not in seen and (rest[0], 0) in seen
    assert plan.ended(tmp_path) == {first: 7} and plan.finished(resolved, clip.info, tmp_path) == [first]
    assert plan.stands_at(tmp_path, first) == 7 and plan.stands_at(tmp_path, rest[0]) == 0
    again = loop.train(resolved, clip, tmp_path, stop=lambda *_: True)
    assert jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b), variables, again))


# ---------------------------------------------------------------- what it is asked, what it measures


def test_a_schedule_is_shortened_by_name():
    c = config.ConfigDict(
        {
            "train": {
                "head": {"steps": 1000, "rays": 64, "joins_step": 300, "drop_steps": (500, 750)},
                "log_every": 20,
            },
            "model": {"steps": 3, "samples": 16},
            "eval": {"steps": 9},
        }
    )
    short = config.shortened(c, 0.1)
    assert short.train.head.to_dict() == {"steps": 100, "rays": 64, "joins_step": 30, "drop_steps": (50, 75)}
    assert (short.model.steps, short.model.samples, short.train.log_every, short.eval.steps) == (1, 16, 20, 9)
    assert config.shortened(c, 1.0).to_dict() == c.to_dict() and c.train.head.steps == 1000
    zero = config.ConfigDict({"train": {"speech": {"steps": 0}}})
    assert config.shortened(zero, 0.5).train.speech.steps == 0, "a stage that is off stays off"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--configs=er_nref",), "did you mean er_nerf"),
        (("--configs=er_nerf:cpv",), "did you mean cpu"),
        (("--configs=er_nerf:smoke,er_nerf:smoke",), "twice"),
        (("--configs=er_nerf:smoke", "--dataset=D", "--video=v.mp4"), "exclude each other"),
        (("--configs=er_nerf:smoke", "--video=v.mp4", "--consent=me"), "no file v.mp4"),
        (("--configs=er_nerf:smoke", "--dataset=D", "--crop=none"), "concerns --video"),
        (("--configs=er_nerf:smoke", "--dataset=D"), "no folder D"),
        (("--configs=er_nerf:smoke", "--config.train.hed.steps=3"), "no such key"),
        (("--configs=er_nerf:smoke", "--config=configs/er_nerf.py"), "takes --configs"),
        (("--configs=er_nerf:smoke", "--budget_minutes=0"), "between"),
        ((), "needs --configs"),
    ],
)
def test_mistakes_are_one_sentence_and_write_nothing(tmp_path, monkeypatch, words, expected):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=expected) as error:
        cli.run(options.parse(["launch.py", "--mode=compare", "--workdir=W", *words]))
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_a_video_of_a_person_needs_consent(tmp_path):
    (tmp_path / "v.mp4").write_bytes(b"")
    with pytest.raises(UserError, match="needs --consent"):
        compare.run(tmp_path / "W", ["er_nerf:smoke"], video=str(tmp_path / "v.mp4"))


def counter(folder, name, energy_uj, most=1000_000_000):
    (folder / name).mkdir(exist_ok=True)
    (folder / name / "energy_uj").write_text(f"{energy_uj}\n")
    (folder / name / "max_energy_range_uj").write_text(f"{most}\n")


def test_energy_is_what_the_packages_counters_gain_also_where_they_wrap(tmp_path):
    counter(tmp_path, "intel-rapl:0", 100_000_000)
    counter(tmp_path, "intel-rapl:1", 900_000_000)
    counter(tmp_path, "intel-rapl:0:0", 0)  # a part of the first package
    meter = Meter(tmp_path)
    counter(tmp_path, "intel-rapl:0", 820_000_000)
    counter(tmp_path, "intel-rapl:1", 260_000_000)
    counter(tmp_path, "intel-rapl:0:0", 500_000_000)
    assert meter.watt_hours() == pytest.approx((720 + 360) / 3600) and meter.reason == ""
    assert meter.watt_hours() == pytest.approx((720 + 360) / 3600), "looking adds nothing"


def test_energy_that_nobody_tells_has_a_reason(tmp_path):
    for root in (tmp_path, tmp_path / "none"):
        meter = Meter(root)
        assert meter.watt_hours() is None and str(root) in meter.reason
    (tmp_path / "intel-rapl:0").mkdir()
    assert Meter(tmp_path).watt_hours() is None and "cannot be read" in Meter(tmp_path).reason


@pytest.mark.heavy
@pytest.mark.parametrize("damage", ["{", "{}", '{"label": "x"}', "number", "text"])
def test_a_row_that_is_damaged_is_refused_by_name(compared, damage):
    folder, (first, kept), _ = compared
    row = json.loads(kept[0])
    if damage == "number":
        row["speed"]["render_fps"] = "fast"
    if damage == "text":
        row["per_frame"]["frame"] = ["<script>"]
    first.write_text(json.dumps(row) if damage in ("number", "text") else damage)
    try:
        with pytest.raises(UserError, match=r"row\.json"):
            cli.run(options.parse(arguments(folder, SIMPLE)))
    finally:
        first.write_bytes(kept[0])
