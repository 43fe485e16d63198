"""Checks of a stage's own result: verdicts, the gathered table, what stops a run and what overrides it."""

import json
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocess import checks, pipeline
from preprocess.__main__ import parser
from preprocess.checks import Check, judge
from preprocess.resumable import Stages
from tests.tiny_dataset import write_tiny, writer
from tkjax import contract
from tkjax.app import options
from tkjax.app.workdir import stop_on_failures
from tkjax.errors import UserError

BAD = judge("poses", "share of frames lost", 0.4, warn=0.02, fail=0.2, message="0.4 of the frames lost their pose")
SO_SO = judge("labels", "crown", 3.0, warn=2.0, message="the hair may be cut")
FINE = judge("sound", "loudness", -20.0, warn=-40.0, fail=-60.0, more_is_worse=False)


@given(st.floats(-10, 10), st.booleans())
def test_verdicts_follow_the_bounds_in_both_directions(value, more):
    sign = 1 if more else -1
    verdict = judge("poses", "m", value, warn=sign * 1.0, fail=sign * 2.0, more_is_worse=more).verdict
    assert verdict == ("good" if sign * value <= 1 else "warn" if sign * value <= 2 else "fail")


def test_what_cannot_be_measured_is_null_and_not_good():
    assert judge("poses", "m", float("nan"), warn=1).verdict == "warn"
    lost = judge("poses", "m", float("nan"), warn=1, fail=2)
    assert lost.verdict == "fail" and lost.value is None
    assert judge("poses", "m", float("inf"), warn=1, fail=2).value is None


def test_a_later_stage_has_the_last_word_on_the_same_measure(tmp_path):
    for name, rows in (("a", [BAD, FINE]), ("b", []), ("c", [Check("poses", BAD.measure, 0.0, 0.02, "good")])):
        (tmp_path / name).mkdir()
        if rows:
            checks.write(tmp_path / name, rows)
    found = checks.gather([tmp_path / n for n in "abc"])
    assert [c.verdict for c in found] == ["good", "good"] and {c.stage for c in found} == {"poses", "sound"}


def test_the_table_has_a_line_for_each_and_a_sentence_for_what_is_not_good():
    lines = checks.table([FINE, SO_SO, BAD], ["poses"]).splitlines()
    assert len(lines) == 4 + 2
    assert lines[0].split() == ["stage", "measure", "value", "bound", "verdict"]
    assert lines[3].endswith("fail, accepted") and lines[1].endswith("good")
    assert lines[4:] == ["warn: labels: the hair may be cut", "fail: poses: 0.4 of the frames lost their pose"]


def test_failures_stop_a_run_and_warnings_do_not():
    checks.refuse_failures([FINE, SO_SO], (), "clip.mp4")
    with pytest.raises(UserError, match=r"clip.mp4 .* poses: 0.4 of the frames .* --accept=poses"):
        checks.refuse_failures([FINE, SO_SO, BAD], (), "clip.mp4")
    with pytest.raises(UserError, match="--accept=sound,poses"):
        checks.refuse_failures([BAD], ("sound",), "clip.mp4")
    checks.refuse_failures([BAD], ("poses",), "clip.mp4")


def test_accept_takes_the_names_of_the_table_and_no_other():
    assert checks.STAGES == options.CHECKED
    assert checks.parse_accept("poses, labels") == ("poses", "labels") and checks.parse_accept("") == ()
    with pytest.raises(UserError, match=r"pose is unknown; .*poses"):
        checks.parse_accept("pose")
    for mode in ("preprocess", "fit"):
        assert "accept" in options.MODES[mode].takes
    with pytest.raises(UserError, match="poses"):
        options.parse(["launch.py", "--mode=preprocess", "--video=a", "--workdir=w", "--accept=pose"])


def test_the_launcher_hands_accept_on_as_the_command_takes_it():
    from tkjax.app import cli, workflow

    opts = options.parse(["launch.py", "--mode=preprocess", "--video=a", "--workdir=w", "--accept=poses,labels"])
    given = parser().parse_args(workflow.preprocess_arguments(cli.given(opts, "video", "workdir", *options.PREPARING)))
    assert checks.parse_accept(given.accept) == ("poses", "labels")


def job(root, accept=()):
    """A job of which nothing but its stages and its name matters."""
    made = types.SimpleNamespace(stages=Stages(root, {}), accept=accept, path=root / "clip.mp4")
    return pipeline.Job.judged, made


def test_a_failed_stage_stays_and_the_run_goes_on_once_it_is_accepted(tmp_path, capsys):
    runs = []

    def stage(folder):
        runs.append(1)
        checks.write(folder, [BAD, FINE])

    judged, first = job(tmp_path / "p")
    with first.stages as stages, pytest.raises(checks.Failed):
        stages.run("track", stage, {}, {}, [])
        judged(first)
    assert "share of frames lost" in capsys.readouterr().out
    left = json.loads((tmp_path / "p" / "checks.json").read_text())
    assert [row["verdict"] for row in left] == ["fail", "good"]
    judged, second = job(tmp_path / "p", ("poses",))
    with second.stages as stages:
        stages.run("track", stage, {}, {}, [])
        assert judged(second) == [BAD, FINE]
    assert len(runs) == 1


def test_the_manifest_holds_the_checks_and_older_ones_without_are_read(tmp_path):
    for name, rows in (("old", None), ("new", checks.rows([FINE, SO_SO, BAD], ("poses",)))):
        write_tiny(tmp_path / name, checks=rows)
    assert "checks" not in contract.validate(tmp_path / "old")
    found = contract.validate(tmp_path / "new")["checks"]
    assert [(r["stage"], r["measure"], r["verdict"]) for r in found] == [
        ("sound", "loudness", "good"), ("labels", "crown", "warn"), ("poses", "share of frames lost", "fail"),
    ]  # fmt: skip
    assert found[2]["accepted"] and found[2]["value"] == 0.4 and found[2]["bound"] == 0.02


@pytest.mark.parametrize("change", [
    {"verdict": "fine"}, {"verdict": ["good"]}, {"value": [1]}, {"value": True}, {"bound": None}, {"stage": ""},
    {"measure": 3}, {"more": 1}, {"message": 1}, {"accepted": "yes"},
])  # fmt: skip
def test_checks_that_are_none_are_refused(tmp_path, change):
    row = checks.rows([SO_SO])[0] | change
    with pytest.raises(contract.ContractError, match="checks"):
        writer(tmp_path / "d", checks=[row])


def test_fit_on_a_dataset_stops_on_failures_that_nobody_accepted(tmp_path):
    for name, accept in (("stopped", ()), ("accepted", ("poses",))):
        write_tiny(tmp_path / name, checks=checks.rows([BAD, SO_SO], accept))
    with pytest.raises(UserError, match=r"0.4 of the frames lost.*--accept=poses"):
        stop_on_failures(tmp_path / "stopped", ())
    stop_on_failures(tmp_path / "stopped", ("poses",))
    stop_on_failures(tmp_path / "accepted", ())
