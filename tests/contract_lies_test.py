"""Datasets whose hashes and digest are right, but whose content is not: refused in one sentence, never a crash."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny_dataset import files_of, redigest, rewrite_shard, sentence, write_tiny
from tkjax import contract
from tkjax.contract import ContractError, Dataset, validate


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("whole") / "dataset"
    write_tiny(root, n=66)
    return root


@pytest.fixture
def copy(whole, tmp_path) -> Path:
    """A dataset that a test may break."""
    return shutil.copytree(whole, tmp_path / "dataset")


def set_to(*path_and_value):
    *path, last, value = path_and_value

    def change(m):
        for key in path:
            m = m[key]
        m[last] = value

    return change


LIES = {
    "version": set_to("version", 2),
    "version ": set_to("version", "1"),
    "version  ": set_to("version", True),
    "subject": set_to("subject", 3),
    "fps": set_to("fps", 30.0),
    "n_frames": set_to("n_frames", 65),
    "n_frames ": set_to("n_frames", 66.0),
    "height": set_to("height", 0),
    "width": set_to("width", "16"),
    "camera": set_to("camera", "fx", 0),
    "camera ": lambda m: m["camera"].pop("cy"),
    "conventions": set_to("conventions", "unit_cm", 1),
    "split": set_to("split", "train", [0, 67]),
    "split ": set_to("split", "heldout", [59, 66]),
    "split  ": set_to("split", {"train": [0, 66]}),
    "landmark_scheme": set_to("landmark_scheme", "mediapipe478"),
    "landmark_scheme ": set_to("landmark_scheme", ["ibug68"]),
    "expression_names": set_to("expression_names", ["a", "a", "b"]),
    "expression_names ": set_to("expression_names", ["a", "b"]),
    "range_min": set_to("range_min", [0, 0, 0]),
    "range_max": set_to("range_max", ["1", 0, 0]),
    "source": set_to("source", []),
    "source ": set_to("source", "av_offset_ms", "late"),
    "tools": set_to("tools", None),
    "licences": set_to("licences", "MIT"),
    "audio": set_to("audio", {}),
    "audio ": set_to("audio", "logmel", "window", 8),
    "files": set_to("files", "../../etc/passwd", "0" * 64),
    "files ": set_to("files", "background.png", "0" * 63),
    "files  ": lambda m: m["files"].pop("background.png"),
    "shards": set_to("shards", 0, "count", 63),
    "shards ": set_to("shards", 1, "first", 0),
    "shards  ": set_to("shards", []),
    "members": set_to("members", "eye_closed", "dtype", "float64"),
    "members ": set_to("members", "cam_to_world", "shape", ["n", 3, 4]),
    "members  ": lambda m: m["members"].pop("torso_bytes"),
    "members   ": set_to("members", "y_strange", {"dtype": "float32", "shape": ["n"]}),
    "x_new": set_to("members", "x_new", {"dtype": "float32", "shape": ["n"]}),
    "x_object": set_to("members", "x_object", {"dtype": "object", "shape": ["n"]}),
    "surprise": set_to("surprise", 1),
    "digest": lambda m: m.pop("tools"),
}


@pytest.mark.parametrize("member", LIES)
def test_an_edited_manifest_with_a_fresh_digest_is_refused(copy, member):
    redigest(copy, LIES[member])
    with pytest.raises(ContractError) as error:
        validate(copy)
    text = sentence(error)
    other = {"expression_names": "range_m", "landmark_scheme": "members", "digest": "tools", "surprise": "surprise"}
    assert member.strip() in text or other.get(member.strip(), "?") in text


@pytest.mark.heavy
def test_no_edit_of_one_manifest_value_is_a_crash(copy):
    """Whatever json stands in any field: accepted (free text) or a ContractError, never another exception."""
    original = json.loads((copy / "manifest.json").read_bytes())

    def places(node, path=()):
        yield path
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, value in items:
            yield from places(value, (*path, key))

    rng = random.Random(1)
    for path in places(original):
        if not path or path[0] == "files" or (path[0] == "members" and rng.random() < 0.7):
            continue
        for value in rng.sample([None, True, -1, 10**30, 1.5, "x", "n", [], [[]], {}, {"a": 1}, [1, 2], ["n", 4]], 4):
            m = json.loads(json.dumps(original))
            set_to(*path, value)(m)
            raw = contract.dump_manifest(m) if path != ("digest",) else json.dumps(m).encode()
            try:
                contract.parse_manifest(raw, "m")
            except ContractError as e:
                assert "\n" not in str(e)


def put(member, index, value):
    def change(a):
        a[member] = a[member].copy()
        a[member][index] = value

    return change


def become(member, function):
    def change(a):
        a[member] = function(a[member])

    return change


SHARD_LIES = {
    "missing": ("confidence", lambda a: a.pop("confidence")),
    "unknown": ("surprise", lambda a: a.update(surprise=np.zeros(3))),
    "dtype of floats": ("expression", become("expression", lambda a: a.astype(np.float64))),
    "dtype of integers": ("frame_index", become("frame_index", lambda a: a.astype(np.int64))),
    "byte order": ("eye_closed", become("eye_closed", lambda a: a.astype(">f4"))),
    "text": ("eye_closed", become("eye_closed", lambda a: a.astype("U8"))),
    "shape": ("cam_to_world", become("cam_to_world", lambda a: a[:, :3])),
    "length": ("confidence", become("confidence", lambda a: a[:-1])),
    "axes": ("eye_closed", become("eye_closed", lambda a: a[:, None])),
    "scalar": ("eye_closed", become("eye_closed", lambda a: a[0])),
    "eyes more than closed": ("eye_closed", put("eye_closed", 3, 1.001)),
    "negative confidence": ("confidence", put("confidence", 3, -0.1)),
    "confidence not a number": ("confidence", put("confidence", 3, np.nan)),
    "pose not finite": ("cam_to_world", put("cam_to_world", (2, 1, 3), np.inf)),
    "rotation scaled": ("cam_to_world", put("cam_to_world", (2, slice(0, 3), slice(0, 3)), 1.01 * np.eye(3))),
    "mirror": ("cam_to_world", put("cam_to_world", (2, slice(0, 3), slice(0, 3)), np.diag([1, 1, -1]))),
    "last row": ("cam_to_world", put("cam_to_world", (2, 3, 3), 2)),
    "landmark": ("landmarks_px", put("landmarks_px", (2, 3, 1), np.nan)),
    "expression": ("expression", put("expression", (63, 0), np.inf)),
    "box outside": ("face_box_px", put("face_box_px", (1, 2), 17)),
    "box negative": ("lips_box_px", put("lips_box_px", (1, 1), -1)),
    "box empty": ("eye_left_box_px", put("eye_left_box_px", 1, [3, 3, 3, 5])),
    "frame numbers": ("frame_index", put("frame_index", 5, 6)),
    "first offset": ("image_offsets", put("image_offsets", 0, 1)),
    "falling offsets": ("torso_offsets", put("torso_offsets", 3, 10**6)),
    "huge offset": ("label_offsets", put("label_offsets", 64, 2**62)),
    "offsets short of the bytes": ("label_offsets", become("label_bytes", lambda a: np.append(a, np.uint8(0)))),
    "not a picture": ("image_bytes", put("image_bytes", slice(0, 4), 7)),
    "range in the manifest": ("range_max", put("expression", (0, 0), 99)),
}


@pytest.mark.parametrize("lie", SHARD_LIES)
def test_wrong_arrays_with_right_hashes_are_refused(copy, lie):
    member, change = SHARD_LIES[lie]
    rewrite_shard(copy, change, save=lambda f, a: np.savez(f, **a))
    with pytest.raises(ContractError) as error:
        Dataset(copy)
    text = sentence(error)
    assert f"member {member}" in text and str(copy) in text


def test_compressed_pickled_and_disordered_members_are_refused(copy):
    def objects(file, arrays):
        arrays["eye_closed"] = np.array([{}] * 64, dtype=object)
        np.savez(file, **arrays)

    def fortran(file, arrays):
        arrays["cam_to_world"] = np.asfortranarray(arrays["cam_to_world"])
        np.savez(file, **arrays)

    saved = files_of(copy)
    for save, words in (
        (lambda f, a: np.savez_compressed(f, **a), "compressed"),
        (objects, "member eye_closed holds pickled objects"),
        (fortran, "member cam_to_world is stored in Fortran order"),
    ):
        rewrite_shard(copy, lambda a: None, save=save)
        for verify in (True, False):
            with pytest.raises(ContractError, match=words):
                Dataset(copy, verify=verify).column("eye_closed")
        for p in copy.glob("shard-*"):
            p.unlink()
        for name, data in saved.items():
            (copy / name).write_bytes(data)
    rewrite_shard(copy, lambda a: None, save=lambda f, a: np.savez(f, **a))  # numpy's own npz is as good
    validate(copy)


@pytest.mark.heavy
@settings(max_examples=60)
@given(data=st.data())
def test_a_damaged_shard_with_a_fresh_hash_is_refused_or_whole_never_a_crash(whole, data, tmp_path_factory):
    root = tmp_path_factory.mktemp("fuzz") / "dataset"
    for name, content in files_of(whole).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    size = next(root.glob("shard-00001*")).stat().st_size
    at = data.draw(st.one_of(st.integers(0, size - 1), st.integers(max(0, size - 2500), size - 1)))
    flip = data.draw(st.integers(1, 255))

    def save(file, arrays):
        contract.write_npz(file, arrays)
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ flip]))

    rewrite_shard(root, lambda a: None, k=1, save=save)
    try:
        validate(root)  # bytes that mean nothing (dates, attributes) may differ
    except ContractError as e:
        assert "\n" not in str(e)
