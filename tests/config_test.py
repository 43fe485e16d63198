"""Configs: overrides keep types, mistakes are one sentence with near matches, a written config reads back equal."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from tkjax import config
from tkjax.errors import UserError

FILE = """
from ml_collections import ConfigDict
from configs.base import get_config as base

VARIANTS = ("full", "cpu")

def get_config(variant="full"):
    c = base()
    c.system = "tests.stubs.nothing"
    c.variant = variant
    c.train.steps = {"full": 100, "cpu": 10}[variant]
    c.train.rate = 0.5
    c.train.sizes = (3, 4)
    c.train.note = None
    return c
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "thing.py"
    path.write_text(FILE)
    return path


def test_without_a_variant_the_default_is_asked_for_and_only_then(file):
    assert config.load(str(file), default_variant=lambda: "cpu").train.steps == 10
    assert config.load(f"{file}:full", default_variant=lambda: pytest.fail("asked in vain")).train.steps == 100


def test_overrides_take_the_type_of_what_they_replace(file):
    pairs = [("train.steps", "1e3"), ("train.rate", "2"), ("train.sizes", "5,6,7"), ("data.preload", "host")]
    c = config.load(f"{file}:cpu", [*pairs, ("train.note", "hello")])
    assert (c.train.steps, c.train.rate, c.train.sizes, c.data.preload) == (1000, 2.0, (5, 6, 7), "host")
    assert isinstance(c.train.rate, float) and c.train.note == "hello"


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("train.stepz", "1", "train.steps"),
        ("trian.steps", "1", "train.steps"),
        ("train.steps", "ten", "whole number"),
        ("train.steps", "1.5", "whole number"),
        ("train.steps", "true", "whole number"),
        ("train.rate", "fast", "a number"),
        ("train.sizes", "a,b", "a list"),
        ("train.sizes", "1.5,2", "a list"),
        ("train", "1", "section"),
        ("seed.x", "1", "not a section"),
    ],
)
def test_a_wrong_override_is_one_sentence_that_names_the_way_out(file, key, text, expected):
    with pytest.raises(UserError) as error:
        config.load(f"{file}:cpu", [(key, text)])
    assert expected in str(error.value) and key.split(".")[0] in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("configs/er_nrf.py", "no file"),
        ("{file}:cpuu", "did you mean cpu"),
        ("{file}x", "no file"),
    ],
)
def test_a_wrong_spec_is_one_sentence(file, spec, expected):
    with pytest.raises(UserError, match=expected):
        config.load(spec.format(file=file))


@pytest.mark.parametrize(
    "text", ["def get_config(:", "x = 1", "def get_config():\n    return 3", "import nothing_here"]
)
def test_a_broken_file_is_a_user_error(tmp_path, text):
    path = tmp_path / "broken.py"
    path.write_text(text)
    with pytest.raises(UserError, match="broken"):
        config.load(str(path))


def test_a_written_config_reads_back_equal_and_can_be_overridden(file, tmp_path):
    first = config.load(f"{file}:cpu", [("train.sizes", "9,")])
    config.write(first, tmp_path / "config.json")
    again = config.load(str(tmp_path / "config.json"), default_variant=lambda: pytest.fail("asked in vain"))
    assert again.to_dict() == first.to_dict()
    assert config.load(str(tmp_path / "config.json"), [("train.steps", "7")]).train.steps == 7


def test_an_edited_json_is_refused(tmp_path):
    path = tmp_path / "config.json"
    for text in ("{", "[]", '{"train": 1}'):
        path.write_text(text)
        with pytest.raises(UserError, match=r"config\.json"):
            config.load(str(path))


values = st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-9, 9) | st.text("ab", max_size=2)
trees = st.recursive(values, lambda s: st.dictionaries(st.sampled_from("abc"), s, max_size=3), max_leaves=8)


@given(st.dictionaries(st.sampled_from("abc"), trees, max_size=3))
def test_a_tree_differs_from_itself_nowhere_even_through_json(tree):
    assert config.differing(tree, json.loads(json.dumps(tree))) == []


def test_differing_names_changed_and_one_sided_keys():
    assert config.differing({"a": {"b": 1, "c": (1, 2)}, "d": 0}, {"a": {"b": 2, "c": [1, 2]}, "e": 0}) == [
        "a.b",
        "d",
        "e",
    ]


def test_parse_value_refuses_code():
    with pytest.raises(UserError):
        config.parse_value("x", "__import__('os')", 3)


def test_every_config_file_of_the_project_loads_in_every_variant():
    for path in sorted((config.ROOT / "configs").glob("*.py")):
        if path.stem in config.SHARED:
            continue
        for variant in ("full", "cpu", "smoke"):
            c = config.load(f"{path}:{variant}")
            assert isinstance(c, ConfigDict) and c.variant == variant
            json.dumps(config.to_dict(c))


def test_a_workdirs_config_is_checked_against_its_systems_file(tmp_path):
    path = tmp_path / "config.json"
    first = config.load("configs/er_nerf.py:smoke")
    config.write(first, path)
    assert config.load(str(path)).to_dict() == first.to_dict()
    good = json.loads(path.read_text())
    wrong = {
        "model.grid_levls": {**good, "model": {**good["model"], "grid_levls": 3}},
        "train.frames": {**good, "train": {k: v for k, v in good["train"].items() if k != "frames"}},
        "data.size": {**good, "data": {**good["data"], "size": "big"}},
    }
    for name, data in wrong.items():
        path.write_text(json.dumps(data))
        with pytest.raises(UserError, match=name):
            config.load(str(path))


def test_a_workdirs_config_from_before_a_section_gains_it(tmp_path):
    path = tmp_path / "config.json"
    first = config.load("configs/er_nerf.py:smoke")
    config.write(first, path)
    older = json.loads(path.read_text())
    del older["train"]["voice"], older["eval"]
    path.write_text(json.dumps(older))
    assert config.load(str(path)).to_dict() == first.to_dict()
