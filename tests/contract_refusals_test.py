"""The writer of datasets refuses what a reader would refuse, and leaves nothing behind."""

import numpy as np
import pytest

from tests.tiny_dataset import frames, plate, sentence, write_tiny, writer
from tkjax import contract
from tkjax.contract import ContractError, validate

WRONG_FRAMES = {
    "eye_closed": {"eye_closed": np.full(3, 1.5, np.float32)},
    "cam_to_world": {"cam_to_world": np.zeros((3, 4, 4), np.float32)},
    "expression": {"expression": np.zeros((3, 3))},
    "confidence": {"confidence": np.zeros(2, np.float32)},
    "image_bytes": {"image_bytes": [b"no picture"] * 3},
    "torso_bytes": {"torso_bytes": frames(3, 10, 16)["torso_bytes"]},
    "label_bytes": {"label_bytes": frames(3)["torso_bytes"]},
    "lips_box_px": {"lips_box_px": np.tile(np.int32([4, 4, 17, 8]), (3, 1))},
    "frame_index": {"frame_index": np.int32([0, 2, 3])},
    "x_unknown": {"x_unknown": np.zeros(3)},
    "image_offsets": {"image_offsets": np.int64([0, 1, 2, 3])},
    "landmarks_px": {"landmarks_px": [["a"]] * 3},
}


@pytest.mark.parametrize("member", WRONG_FRAMES)
def test_the_writer_refuses_wrong_frames_and_leaves_nothing(tmp_path, member):
    root = tmp_path / "dataset"
    with pytest.raises(ContractError) as error, writer(root) as w:
        w.add(frames(3) | WRONG_FRAMES[member])
    assert f"member {member}" in sentence(error)
    assert not root.exists()


def test_the_writer_refuses_incomplete_and_empty_datasets(tmp_path):
    for leave_out in contract.REQUIRED_MEMBERS:
        if leave_out == "frame_index" or leave_out.endswith("_offsets"):
            continue
        with pytest.raises(ContractError, match=f"member {leave_out} is missing"), writer(tmp_path / "d") as w:
            w.add({k: v for k, v in frames(2).items() if k != leave_out})
    with pytest.raises(ContractError, match="no frame was added"), writer(tmp_path / "d") as w:
        w.add_file("background.png", plate())
    with pytest.raises(ContractError, match=r"does not name background\.png"), writer(tmp_path / "d") as w:
        w.add(frames(2))
    with pytest.raises(ContractError, match="not in every call"), writer(tmp_path / "d") as w:
        w.add(frames(2))
        w.add(frames(2) | {"eye_area": np.zeros(2, np.float32)})
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("height", 0),
        ("width", -5),
        ("fps", 30.0),
        ("subject", ""),
        ("landmark_scheme", "dlib"),
        ("expression_names", ["a", "a"]),
        ("source", {"time": float("nan")}),
        ("tools", {"x": object()}),
        ("camera", {"fx": 1}),
        ("extra_members", {"identity": ("float32", (1,))}),
        ("extra_members", {"x_a": (object, (1,))}),
        ("extra_members", {"x_a": ("float32", (0,))}),
    ],
)
def test_the_writer_refuses_wrong_facts_before_any_frame(tmp_path, option, value):
    with pytest.raises(ContractError) as error:
        writer(tmp_path / "d", **{option: value})
    assert option in str(error.value) or option == "extra_members"


@pytest.mark.parametrize(
    "name", ["../a", "/etc/a", "manifest.json", "x.npz", "qa/", "qa/../b", "shard-00000-00000000.npz"]
)
def test_files_that_are_no_part_of_a_dataset_are_refused(tmp_path, name):
    with pytest.raises(ContractError, match="not a file of a dataset"), writer(tmp_path / "d") as w:
        w.add_file(name, b"")


def test_wrong_files_are_refused(tmp_path):
    good = tmp_path / "good"
    write_tiny(good)
    (tmp_path / "other.npz").write_bytes(b"junk")
    with writer(tmp_path / "d") as w:
        for name, data, words in (
            ("background.png", b"junk", "member content"),
            ("background.png", plate(10, 16), "member content"),
            ("audio.wav", b"RIFF", "member header"),
            ("audio_logmel.npz", tmp_path / "other.npz", "member list"),
            ("audio_hubert.npz", good / "audio_logmel.npz", "member kind is logmel, expected hubert"),
            ("audio_logmel.npz", tmp_path / "none.npz", "No such file"),
        ):
            with pytest.raises(ContractError, match=words):
                w.add_file(name, data)
        w.add(frames(2))
        w.add_file("background.png", plate())
    assert set(validate(tmp_path / "d")["files"]) == {"background.png", w.manifest["shards"][0]["file"]}


def test_a_folder_with_other_things_in_it_is_not_touched(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ContractError, match=r"thesis\.tex"):
        write_tiny(tmp_path, sound=False)
    (tmp_path / "manifest.json").write_text('{"name": "a web page"}')
    with pytest.raises(ContractError, match="no dataset"):
        write_tiny(tmp_path, sound=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["manifest.json", "thesis.tex"]


def test_two_writers_do_not_meet(tmp_path):
    with writer(tmp_path / "d") as first:
        with pytest.raises(ContractError, match="another process writes"):
            writer(tmp_path / "d").add(frames(1))
        first.add(frames(1))
        first.add_file("background.png", plate())
    write_tiny(tmp_path / "d")
