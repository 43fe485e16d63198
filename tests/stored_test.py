"""Files of others: json within limits, plain files only, records whose fields are what they are used as."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tkjax import config, contract
from tkjax.app import exporting, importing, workdir, workflow
from tkjax.errors import UserError
from tkjax.formats import feature_arrays
from tkjax.host import stored
from tkjax.originals import source

values = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
values |= st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
trees = st.recursive(values, lambda s: st.lists(s, max_size=3) | st.dictionaries(st.text("ab"), s, max_size=3))


@given(trees)
def test_what_json_writes_is_read(tree):
    assert stored.parse(json.dumps(tree).encode()) == tree


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "Expecting value"),
        (b"\xff\xfe{}", "byte 0 is no UTF-8"),
        (b'\xef\xbb\xbf{"a": 1}', "BOM"),
        (b'{"a": 1, "a": 2}', "twice"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": [-Infinity]}', "-Infinity"),
        (b'{"a": 1e999}', "too large"),
        (b'{"a": 99999999999999999999}', "64 bit"),
        (b'{"a": ' + b"9" * 5000 + b"}", ""),
        (b'{"a": "\\ud800"}', "surrogate"),
        (b'{"\\udc80": 1}', "surrogate"),
        (b"[" * 66 + b"]" * 66, "64 levels"),
        (b"[" * 100_000 + b"]" * 100_000, "64 levels"),
        (b'{"a":' * 100_000, "64 levels"),
    ],
)
def test_what_is_no_json_of_ours_is_said_in_a_few_words(raw, reason):
    with pytest.raises(stored.BadJson) as error:
        stored.parse(raw)
    assert reason in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) <= 120


def test_scores_of_the_originals_may_be_no_numbers():
    assert np.isnan(stored.parse(b"[NaN, Infinity]", finite=False)[0])


def test_only_plain_files_below_a_folder_are_opened(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_text("x")
    (tmp_path / "a" / "link").symlink_to(tmp_path / "a" / "b" / "file")
    (tmp_path / "a" / "way").symlink_to(tmp_path / "a" / "b")
    (tmp_path / "door").symlink_to(tmp_path / "a")
    os.mkfifo(tmp_path / "a" / "pipe")
    for name in ("link", "way/file", "pipe", "b", "b/none", "b/fi\0le"):
        with pytest.raises(OSError):
            stored.open_plain(tmp_path / "a", name)
    for root in ("a", "door"):  # the user's own way to the folder may be a link
        with stored.open_plain(tmp_path / root, "b/file") as file:
            assert file.read() == b"x"


# ---------------------------------------------------------------- records of a workdir


@pytest.mark.parametrize(
    "text",
    ["[]", "[[1, 2]]", "{", '{"dataset": 3}', '{"dataset": ""}', '{"dataset": "a\\u0000b"}', '{"consent": "mine"}',
     '{"consent": {"statement": 3}}', '{"video": null}', '{"a": ' + "[" * 10**5],
)  # fmt: skip
def test_a_damaged_run_record_is_one_sentence(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(UserError, match=r"run\.json .*remove it") as error:
        workdir.read_facts(tmp_path)
    assert "\n" not in str(error.value)


def test_a_workdir_s_config_names_no_code(tmp_path, monkeypatch):
    """What `--mode=train --workdir=W` reads when no --config is given; also when the json is named with --config."""
    (tmp_path / "evil.py").write_text(f"from pathlib import Path\nPath({str(tmp_path / 'mark')!r}).touch()\n")
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "payload.py").write_text((tmp_path / "evil.py").read_text())
    monkeypatch.syspath_prepend(str(tmp_path))
    whole = config.to_dict(config.load("configs/er_nerf.py:smoke"))
    for name in ("evil.payload", f"x.{tmp_path}/evil", f"..{tmp_path}/evil", "evil"):
        (tmp_path / "config.json").write_text(json.dumps(whole | {"system": name}))
        for spec in (None, str(tmp_path / "config.json")):
            with pytest.raises(UserError, match="system"):
                workflow.resolve(tmp_path, spec)
    assert not (tmp_path / "mark").exists()


# ---------------------------------------------------------------- what an import left


@pytest.fixture
def kept(tmp_path) -> Path:
    """WORKDIR/import of a file with two tensors and their moving average."""
    folder = tmp_path / importing.KEPT
    folder.mkdir()
    facts = {"keys": ["a", "b"], "dtypes": {"model/a": "float32", "model/b": "bfloat16"}, "bare": False}
    facts |= {"top": {"stats": {"loss": [float("nan")]}}, "left_out": ["optimizer"]}
    facts["ema"] = {"decay": 0.95, "num_updates": 7, "length": 2}
    (folder / source.FACTS).write_text(json.dumps(facts))
    record = {"avatar": "id", "source": "x.pth", "system": "er_nerf", "weights": "ema", "names": ["a", "b"]}
    (folder / importing.RECORD).write_text(json.dumps(record | {"eye": True, "torso": False}))
    with open(folder / source.TENSORS, "wb") as file:
        arrays = {
            f"{kind}/{name}": np.ones(2, np.float32)
            for kind, names in (("model", "ab"), ("ema", "01"))
            for name in names
        }
        contract.write_npz(file, arrays)
    return folder


def read_kept(folder: Path, name: str = "id"):
    return exporting.read_kept(folder, name, "er_nerf")


def test_what_an_import_left_is_read(kept):
    record, file = read_kept(kept)
    assert record["weights"] == "ema" and list(file.model) == ["a", "b"] and len(file.shadow) == 2
    assert read_kept(kept, "other") == ({}, None)


def test_no_change_of_what_an_import_left_goes_unsaid(kept):
    """Every key removed or of another kind, one key less among the names, tensors cut or empty."""
    for name in (source.FACTS, importing.RECORD):
        path = kept / name
        whole = path.read_text()
        content = json.loads(whole)
        changes = [{k: v for k, v in content.items() if k != key} for key in content]
        changes += [
            content | {key: bad} for key in content for bad in ("../x", 3, [3], {"a": 1}) if content[key] != bad
        ]
        if name == source.FACTS:
            changes += [content | {"keys": k} for k in (["a"], ["a", "a"], ["a", "b", "c"], [])]
            changes += [content | {"ema": {**content["ema"], "length": n}} for n in (1, 3, -1, 1.5, 10**9)]
            changes += [content | {"ema": None}, content | {"dtypes": {"model/a": "load"}}]
        else:
            changes += [content | {"names": n} for n in (["a"], ["a", "c"], "ab")]
        for changed in changes:
            if name == source.FACTS and set(changed) == set(content) and changed["top"] == {"a": 1}:
                continue  # any numbers of the original's training may stand there
            if name == importing.RECORD and isinstance(changed.get("avatar"), str) and changed["avatar"] != "id":
                continue  # another avatar's record
            path.write_text(json.dumps(changed))
            with pytest.raises(UserError, match=r"import is damaged \(\w+\)") as error:
                read_kept(kept)
            assert "\n" not in str(error.value), changed
        for text in ("", "{", "[]", '{"a": ' + "[" * 10**5):
            path.write_text(text)
            with pytest.raises(UserError, match=r"import is damaged \(\w+\)"):
                read_kept(kept)
        path.write_text(whole)
    tensors = (kept / source.TENSORS).read_bytes()
    for raw in (b"", tensors[:-50], tensors[:300], tensors.replace(b"model/a", b"model/c")):
        (kept / source.TENSORS).write_bytes(raw)
        with pytest.raises(UserError, match=r"import is damaged \(\w+\)"):
            read_kept(kept)


# ---------------------------------------------------------------- arrays


def test_numbers_that_are_none_in_given_features_are_said(tmp_path, capsys):
    sequence = np.random.default_rng(0).standard_normal((40, 29)).astype(np.float32)
    sequence[7, 3] = np.nan
    windows = np.stack([np.pad(sequence, ((8, 8), (0, 0)))[2 * i : 2 * i + 16] for i in range(20)])
    np.save(tmp_path / "aud_ds.npy", windows)
    wanted = {"kind": "deepspeech", "channels": 29, "window": 16, "hop": 2, "left": 8}
    features = feature_arrays.load_features(tmp_path / "aud_ds.npy", wanted)
    assert np.isfinite(features.features).all()
    assert "1 of 40 steps are not finite (the first is 7)" in capsys.readouterr().out
    np.save(tmp_path / "aud_ds.npy", np.full_like(windows, np.nan))
    with pytest.raises(UserError, match="no finite number"):
        feature_arrays.load_features(tmp_path / "aud_ds.npy", wanted)
