"""model_data.json: what is written for a dataset, what is read from others', and what is refused."""

import json
from pathlib import Path

import pytest

from preprocess.output import model_data
from tests.tiny_dataset import write_tiny
from tkjax.errors import UserError


def original(**changes) -> dict:
    """A file as Avatar-ERNeRF writes it."""
    fields = {
        "model_name": "may", "data_dir": "/home/somebody/model_dataset/may", "train_dir": "may", "infer_dir": "may",
        "video_file": "input.mp4", "audio_file": "audio.wav", "alpha_file": "alpha.mp4", "frame_height": 1080,
        "frame_width": 1920, "frame_count": 7500, "fps": 25, "sample_rate": 16000, "background_ref": "green",
        "background_trt": [128, 128, 128], "head_video_file": "face_data.mp4", "head_region": [729, 109, 1191, 571],
        "head_size": 512, "alpha_feat_file": "audio_feat.npy", "afe_model_name": "hubert", "afe_model_arch": "large",
        "afe_model_weight": "facebook/hubert-large-ls960-ft",
        "nerf_structure": {"audio_in_dim": 1024, "audio_out_dim": 32, "ind_num": 20000},
        "train_params": {"train_head_iters": 200000, "train_lips_iters": 250000, "train_torso_iters": 200000},
        "infer_params": {"use_torso": True, "merge_mode": 2, "frame_index_start_at": 10, "frame_index_end_at": -1},
    }  # fmt: skip
    return fields | changes


def write(path: Path, fields) -> Path:
    path.write_text(fields if isinstance(fields, str) else json.dumps(fields))
    return path


def test_an_originals_file_gives_its_defaults(tmp_path):
    write(tmp_path / "model_data.json", original())
    read = model_data.read(tmp_path)
    assert read.paste_back == "face_neck" and read.use_torso and read.frame_range == (10, 7500)
    assert read.crop_px == (729, 109, 1191, 571)
    assert read.data_dir == tmp_path  # the named folder is not here: the file was moved with its data
    modes = [original()["infer_params"] | {"merge_mode": k, "frame_index_end_at": 90} for k in range(3)]
    found = [model_data.read(write(tmp_path / "m.json", original(infer_params=m))) for m in modes]
    assert [f.paste_back for f in found] == ["box", "face", "face_neck"]
    assert {f.frame_range for f in found} == {(10, 90)}


def test_known_number_of_codes():
    assert model_data.ind_num(7499) == 10000 and model_data.ind_num(7500) == 20000


@pytest.mark.parametrize(
    "change, words",
    [
        ("not json", "not valid json"),
        ("[]", "a json list"),
        ({"head_region": [1, 2, 3]}, "head_region"),
        ({"head_region": [5, 2, 3, 4]}, "head_region"),
        ({"fps": "25"}, "fps is"),
        ({"frame_count": True}, "frame_count"),
        ({"infer_params": {}}, "infer_params.use_torso"),
        ({"infer_params": original()["infer_params"] | {"merge_mode": 3}}, "merge_mode is 3"),
        ({"infer_params": original()["infer_params"] | {"frame_index_start_at": 7500}}, "frame_index_start_at"),
        ({"nerf_structure": {"audio_in_dim": 1.5}}, "audio_in_dim"),
    ],
)
def test_other_files_are_one_sentence(tmp_path, change, words):
    path = write(tmp_path / "x.json", change if isinstance(change, str) else original(**change))
    with pytest.raises(UserError, match=words) as e:
        model_data.read(path)
    assert "\n" not in str(e.value) and str(path) in str(e.value)


def test_missing_keys_and_files_are_named(tmp_path):
    for key in model_data.TYPES:
        fields = original()
        del fields[key]
        with pytest.raises(UserError, match=f"{key} is missing"):
            model_data.read(write(tmp_path / "x.json", fields))
    with pytest.raises(UserError, match="No such file"):
        model_data.read(tmp_path / "none.json")


def test_a_datasets_file_has_the_originals_keys_and_is_read_back(tmp_path):
    source = {"crop_px": [7, 9, 23, 21], "full_size": [64, 48], "background_ref": [0, 255, 0],
              "background_trt": [128, 128, 128]}  # fmt: skip
    write_tiny(tmp_path / "dataset", source=source)
    path = tmp_path / model_data.NAME
    model_data.write(tmp_path / "dataset", path)
    fields = json.loads(path.read_text())
    assert set(fields) == set(original())
    assert set(fields["infer_params"]) - set(original()["infer_params"]) == {"paste_back"}
    read = model_data.read(tmp_path)
    assert read.data_dir == tmp_path / "dataset" and fields["data_dir"] == "dataset"
    assert read.crop_px == (7, 9, 23, 21) and (fields["frame_width"], fields["frame_height"]) == (64, 48)
    assert fields["nerf_structure"] == {"audio_in_dim": 80, "audio_out_dim": 32, "ind_num": 10000}
    assert (fields["afe_model_name"], fields["alpha_feat_file"]) == ("logmel", "audio_logmel.npz")
    assert fields["video_file"] == "" and fields["audio_file"] == "audio.wav"
    assert read.paste_back == "blend" and read.frame_range == (0, 3)


def test_what_a_user_changed_stays_when_it_is_written_again(tmp_path):
    write_tiny(tmp_path / "dataset")
    path = tmp_path / model_data.NAME
    model_data.write(tmp_path / "dataset", path)
    fields = json.loads(path.read_text())
    fields["infer_params"] |= {"merge_mode": 1, "paste_back": "face"}
    fields["model_name"] = "other"
    write(path, fields)
    model_data.write(tmp_path / "dataset", path)
    again = json.loads(path.read_text())
    assert again["infer_params"]["paste_back"] == "face" and again["model_name"] == "tiny"
    write(path, "damaged")
    model_data.write(tmp_path / "dataset", path)
    assert model_data.read(path).paste_back == "blend"
