"""Folders of the originals with anything in their files: a dataset that is whole, or one sentence and no dataset."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from preprocess.importers import dataset
from tests import er_layout
from tkjax import contract

N = 3
NAN, INF = float("nan"), float("inf")
ODD = (NAN, INF, -INF, 1e30, 10**30, 10**400, 1 << 31, -(1 << 31), -1, 0, 2.5, True, None, "", "7", "\ud800", [], {})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("damage")
    native = er_layout.portrait(root / "native", N)
    array = np.zeros((N, 16, 29))
    out = er_layout.export(native, root / "f", {"audio_feat.npy": array}, "avatar_ernerf")
    (out / "head_bbox.json").write_text('{"head_bbox": [0, 0, 40, 48]}')
    (out / "model_data.json").write_text('{"background_trt": "gray"}')
    return out


def judged(folder: Path, place: Path, capsys) -> tuple[int, str]:
    """(exit code, what it said) of an import; whatever it is, it is an answer."""
    code = dataset.main(["--source", str(folder), "--out", str(place)])
    said = capsys.readouterr()
    said.out.encode()
    if code == 0:
        contract.validate(place)
        assert said.err == ""
    else:
        assert code == 2 and said.err.startswith("error: ") and said.err.count("\n") == 1 and len(said.err) < 1000
        assert not (place / contract.MANIFEST).exists()
    return code, said.out + said.err


def each(folder: Path, tmp_path: Path, capsys, changes) -> dict[str, tuple[int, str]]:
    """{name: answer} of the folder after each change alone."""
    out = {}
    for k, (name, change) in enumerate(changes.items()):
        place = shutil.copytree(folder, tmp_path / f"f{k}")
        change(place)
        try:
            out[name] = judged(place, tmp_path / f"d{k}", capsys)
        except Exception as error:
            raise AssertionError(f"{name}: {type(error).__name__}: {error}") from error
        shutil.rmtree(place)
    return out


def edit(name: str, change):
    """Change the json object in a file."""

    def work(place: Path) -> None:
        data = json.loads((place / name).read_text())
        change(data)
        (place / name).write_text(json.dumps(data))

    return work


def test_names_that_unicode_calls_numbers_are_no_frames(folder, tmp_path, capsys):
    names = ("5².jpg", "³.jpg", "³.lms", "٣.jpg", "①.png", "9" * 30 + ".jpg", "-1.jpg", "1e3.lms", "0x1.jpg", " 1.jpg")

    def add(name):
        return lambda place: [(place / where / name).write_bytes(b"x") for where in ("ori_imgs", "parsing")]

    for name, (code, _) in each(folder, tmp_path, capsys, {name: add(name) for name in names}).items():
        assert code == 0, name


@pytest.mark.heavy
@pytest.mark.parametrize("key", ["img_id", "aud_id", "transform_matrix"])
def test_any_value_in_a_frame_is_answered(folder, tmp_path, capsys, key):
    deep = []
    for _ in range(200):
        deep = [deep]
    rows = np.eye(4).tolist()
    far = [*rows[:2], [0, 0, 1, 1e300], rows[3]]
    values = [*ODD, deep, [[1e300] * 4] * 4, [[10**400] * 4] * 4, [[1], [2, 3]], rows[:3], far]
    changes = {
        f"{key} {str(value)[:40]!r}": edit("transforms_train.json", lambda d, v=value: d["frames"][1].update({key: v}))
        for value in values
        if not (isinstance(value, list) and key != "transform_matrix" and value)
    }
    for name, (code, _) in each(folder, tmp_path, capsys, changes).items():
        hole = key != "img_id" and "ud800" not in name  # a bad pose or sound index is one; that character is no json
        assert code == 0 or not hole, name


@pytest.mark.heavy
@pytest.mark.parametrize("key", ["focal_len", "cx", "w"])
def test_any_value_of_the_camera_is_answered(folder, tmp_path, capsys, key):
    for both in (True, False):
        changes = {}
        for value in ODD:
            change = edit("transforms_train.json", lambda d, v=value: d.update({key: v}))
            other = edit("transforms_val.json", lambda d, v=value: d.update({key: v}))
            changes[f"{key} {str(value)[:40]!r}"] = (lambda p, a=change, b=other: (a(p), b(p))) if both else change
        answers = each(folder, tmp_path / str(both), capsys, changes)
        if key == "focal_len":
            assert answers["focal_len 'nan'"][0] == 2


@pytest.mark.heavy
def test_any_value_of_the_heads_box_is_answered_and_none_breaks_the_import(folder, tmp_path, capsys):
    values = [[v, 0, 40, 48] for v in ODD] + [[0, 0, v, 48] for v in (NAN, INF, 10**400)] + [None, 7, [1, 2, 3], {}]
    changes = {
        f"{k} {str(v)[:40]!r}": edit("head_bbox.json", lambda d, v=v: d.update(head_bbox=v))
        for k, v in enumerate(values)
        if "\ud800" not in (v if isinstance(v, list) else [v])  # which is no json of ours
    }
    for name, (code, _) in each(folder, tmp_path, capsys, changes).items():
        assert code == 0, name


def test_any_json_is_answered(folder, tmp_path, capsys):
    deep = {"deep list": "[" * 100000, "deep object": '{"a":' * 100000, "closed": "[" * 5000 + "]" * 5000}
    texts = {"empty": "", "list": "[]", "null": "null", "text": '"x"', "cut": '{"frames": [', "NaN": "NaN", **deep}
    texts |= {"surrogate": '{"frames": [], "a": "\\ud800"}', "surrogate key": '{"\\udfff": 1}', "digits": "9" * 5000}
    changes = {}
    for name in ("transforms_train.json", "head_bbox.json", "model_data.json"):
        for text, content in texts.items():
            changes[f"{name} {text}"] = lambda place, n=name, c=content: (place / n).write_text(c)
        changes[f"{name} latin"] = lambda place, n=name: (place / n).write_bytes(b'{"a": "\xe9"}')
    for name, (code, _) in each(folder, tmp_path, capsys, changes).items():
        assert code == 2, name


def test_facts_that_no_manifest_can_hold_are_left_out(folder, tmp_path, capsys):
    deep = {}
    for _ in range(50):
        deep = {"a": deep}
    changes = {
        f"{k}": edit("model_data.json", lambda d, v=v: d.update(infer_params=v))
        for k, v in enumerate([NAN, [INF], {"a": 10**30}, deep])
    }
    changes["taken"] = edit(
        "model_data.json", lambda d: d.update(infer_params={"merge_mode": 2, "a": [1.5, None, "é"]})
    )
    for name, (code, said) in each(folder, tmp_path, capsys, changes).items():
        assert code == 0 and ("model_data.json is not kept" in said) == (name != "taken"), name


def test_numbers_of_frames_far_apart_are_a_sentence_and_take_no_memory(folder, tmp_path, capsys):
    def far(place):
        for part in ("ori_imgs", "gt_imgs"):
            (place / part / f"{N - 1}.jpg").rename(place / part / "999999999.jpg")
        edit("transforms_val.json", lambda d: d["frames"][-1].update(img_id=999999999))(place)

    ((code, said),) = each(folder, tmp_path, capsys, {"far": far}).values()
    assert code == 2 and "more than half would be made up" in said
