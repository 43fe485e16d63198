"""The page is one file, the json is strict, and what is unknown is null."""

import dataclasses
import json
import math
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from tkjax.measure import report
from tkjax.train.checkpoint import truncate_metrics

SCORES = {"psnr": 31.5, "psnr_face": math.nan, "psnr_mouth": 25.0, "ssim": 0.91, "lmd_px": None, "lmd_norm": None}
REPORT = {
    "system": "er_nerf",
    "subject": "some <one>",
    "avatar": "abc",
    "split": {"train_frames": 10, "heldout_frames": 1},
    "ground_truth_layers": ["torso", "background"],
    "metrics": SCORES,
    "baselines": {"mean_frame": SCORES, "nearest_frame": SCORES},
    "rows": [{"ground_truth_layers": ["torso", "background"], "metrics": SCORES}],
    "speed": {"train_steps_per_s": np.float32(2.5), "render_fps": math.inf},
    "versions": {"jax": "0.10"},
    "consent": {"statement": "me & <myself>", "asked": True},
    "reasons": {"lmd_px": "no model"},
    "notes": {"PSNR": "a < b"},
    "config": {"a": (1, 2)},
}
BLANK = {
    "more_metrics": {},
    "more_baselines": {},
    **dict.fromkeys(("seam", "box_edge", "psnr_outside_mask")),
    "params": {},
    "response": {},
    "comparison": ["model", "truth"],
    "size": [8, 16],
    "stages": ["head"],
}


def made(**changes) -> report.Report:
    return report.Report(**{**BLANK, **REPORT, **changes})


class Checker(HTMLParser):
    """Collects tags and every address that the page refers to."""

    def __init__(self):
        super().__init__()
        self.open, self.addresses = [], []

    def handle_starttag(self, tag, attrs):
        self.addresses += [v for k, v in attrs if k in ("src", "href")]


def write(folder, rows=(), **kwargs):
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows) + '{"torn": ')
    report.write(folder, made(), **kwargs)
    return (folder / "report.html").read_text(), json.loads((folder / "report.json").read_text())


def test_json_is_strict_and_unknown_numbers_are_null(tmp_path):
    _, data = write(tmp_path)
    assert data["metrics"]["psnr_face"] is None and data["speed"] == {"train_steps_per_s": 2.5, "render_fps": None}
    assert "NaN" not in (tmp_path / "report.json").read_text()


def test_the_page_is_self_contained_and_escapes_what_users_wrote(tmp_path):
    rows = [{"stage": "head", "step": s, "loss": 1 / s, "psnr": 20 + s} for s in range(1, 40)]
    video = tmp_path / "v.mp4"
    video.write_bytes(b"x" * 1000)
    picture = np.full((8, 16, 3), 90, np.uint8)
    page, _ = write(tmp_path, rows, worst=[("frame 3", picture)], videos=[(video, "caption")])
    checker = Checker()
    checker.feed(page)
    assert checker.addresses and all(a.startswith(("data:", "#")) for a in checker.addresses)
    assert "me &amp; &lt;myself&gt;" in page and "some <one>" not in page
    assert page.count("<svg") == 2 and "no model" in page and "nearest frame" in page
    assert not re.search(r"https?://(?!www\.w3\.org|purl\.org|matplotlib|creativecommons)", page.replace("data:", ""))


def test_an_evaluation_is_logged_beside_the_training_rows_and_leaves_their_curves_alone(tmp_path):
    rows = [{"stage": "head", "step": s, "loss": 1 / s} for s in range(1, 9)]
    write(tmp_path, rows)
    path = tmp_path / "metrics.jsonl"
    before = report.curves(rows)
    for ratio in (0.9, float("nan")):
        report.log(path, {"stage": "head", "step": 8, "response": {"lips": {"sd_ratio": ratio}}})
    logged = report.read_metrics(path)
    assert logged[:8] == rows and [r["response"]["lips"]["sd_ratio"] for r in logged[8:]] == [0.9, None]
    assert report.curves(logged) == before and "torn" not in path.read_text()
    truncate_metrics(path, ["head"], "head", 7)  # a resume drops what came after its checkpoint
    assert report.read_metrics(path) == rows[:7]


def test_every_row_is_in_the_table_with_its_seams_and_parameters(tmp_path):
    pasted = {**REPORT["rows"][0], "ground_truth_layers": ["full_frame"], "paste_back": "blend", "seam": 1.25}
    pasted |= {"psnr_outside_mask": 100.0, "box_edge": None, "more_metrics": {"lpips": 0.01234}}
    extra = {"rows": [*REPORT["rows"], pasted], "params": {"head": 683509, "torso": 1199692, "total": 1883201}}
    extra |= {"more_metrics": {"lpips": None}, "comparison": ["model over the true torso", "truth"]}
    report.write(tmp_path, made(**extra), worst=[("frame 3", np.full((8, 16, 3), 90, np.uint8))])
    page = (tmp_path / "report.html").read_text()
    table = page[page.index("<table>") : page.index("</table>")]
    assert table.count('class="model"') == 2 and "given: torso + background" in table
    assert "(given: full frame, blend)" in table and "<td>1.25</td>" in table and "<td>0.0123</td>" in table
    assert "PSNR outside mask" in table and "box edge" not in table  # a column without a number says nothing
    widths = {row.count("<td>") + row.count("<th>") for row in table.split("<tr")[1:]}
    assert len(widths) == 1
    assert "683,509" in page and "1,883,201" in page
    assert "From the left: model over the true torso, truth." in page


def test_a_large_video_is_linked_not_inlined(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "VIDEO_LIMIT_BYTES", 10)
    (tmp_path / "v.mp4").write_bytes(b"x" * 11)
    page, _ = write(tmp_path, videos=[(tmp_path / "v.mp4", "caption")])
    assert 'src="v.mp4"' in page


def test_curves_join_stages_and_a_resumed_step_counts_once():
    rows = [{"stage": "a", "step": 1, "loss": 3.0}, {"stage": "a", "step": 2, "loss": 2.0}]
    rows += [{"stage": "a", "step": 2, "loss": 2.5}, {"stage": "b", "step": 5, "loss": 1.0}]
    assert report.curves(rows) == {"loss": [("a", [1, 2], [3.0, 2.5]), ("b", [7], [1.0])]}


VALUES = {"sd_ratio": 0.9, "correlation": 0.95, "concordance": 0.9, "delay_frames": 0.25, "closures_closed": None}
RESPONSE = {
    "lips": VALUES,
    "eyes": dict.fromkeys(VALUES),
    "drive_test": {"sound": {"changed_px": 700.0, "mean_change": 1.5, "region": "lower_face"}, "blink": None},
    "still_px": 0.0,
    "silence_motion": None,
    "reasons": {"silence_motion": "silence is <unknown>", "eyes.sd_ratio": "the held-out part is too still"},
    "curves": {"lips": {"frame": [3, 4, 7, 8], "true": [0.1, 0.2, None, 0.3], "rendered": [0.1, 0.1, 0.2, 0.3]}},
}


def test_both_curves_of_a_response_are_drawn_and_what_is_unknown_has_its_sentence(tmp_path):
    report.write(tmp_path, made(response=RESPONSE))
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 1 and "700 px change" in page and "lower face" in page
    assert "silence is &lt;unknown&gt;" in page and "too still" in page and "<td>0.25</td>" in page
    assert json.loads((tmp_path / "report.json").read_text())["response"]["eyes"]["sd_ratio"] is None


def test_a_machine_without_matplotlib_gets_the_report_without_curves(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    (tmp_path / "metrics.jsonl").write_text('{"stage": "a", "step": 1, "loss": 3.0}\n')
    report.write(tmp_path, made(response=RESPONSE))
    page = (tmp_path / "report.html").read_text()
    assert "<svg" not in page and "matplotlib is not installed" in page and "700 px change" in page


def test_the_json_has_the_fields_of_the_report_and_the_demo_its_own(tmp_path):
    _, data = write(tmp_path)
    names = [field.name for field in dataclasses.fields(report.Report)]
    assert list(data) == [n for n in names if n not in ("demo", "new_speech", "tracker", "spread", "per_frame")]
    assert list(made(demo={}, new_speech={}, tracker={}, spread={}, per_frame={}).to_json()) == names


def test_the_numbers_are_there_before_the_page_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "page", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        report.write(tmp_path, made())
    assert json.loads((tmp_path / "report.json").read_text())["system"] == "er_nerf"
