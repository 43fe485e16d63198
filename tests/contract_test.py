"""The data contract: what goes in comes out, what is wrong is refused in one sentence, a killed write harms nobody."""

import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny_dataset import GOLDEN, NAMES, files_of, frames, plate, redigest, write_tiny, writer
from tkjax import contract
from tkjax.contract import ContractError, Dataset, validate


def sentence(error) -> str:
    """The message, which must be one line and one sentence."""
    text = str(error.value)
    assert "\n" not in text and ". " not in text and not text.endswith("."), text
    assert "expected" in text
    return text


def assert_equal(dataset: Dataset, wanted: dict) -> None:
    for member, value in wanted.items():
        if member in contract.PICTURES:
            assert [dataset.frame_bytes(member, i) for i in range(dataset.n_frames)] == value
        else:
            got = dataset.column(member)
            assert got.dtype == value.dtype
            np.testing.assert_array_equal(got, value)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("whole") / "dataset"
    write_tiny(root, n=66)
    return root


@pytest.fixture
def copy(whole, tmp_path):
    """A dataset that a test may break."""
    root = tmp_path / "dataset"
    for name, data in files_of(whole).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


# ---------------------------------------------------------------- round trip


@settings(max_examples=15)
@given(
    runs=st.lists(st.integers(1, 70), min_size=1, max_size=4),
    scheme=st.sampled_from(sorted(contract.LANDMARK_SCHEMES)),
    k=st.integers(0, 5),
    seed=st.integers(0, 2**16),
    optional=st.booleans(),
)
def test_what_is_written_is_read(tmp_path_factory, runs, scheme, k, seed, optional):
    root, n = tmp_path_factory.mktemp("trip") / "dataset", sum(runs)
    wanted = frames(n, seed=seed % 7, scheme=scheme, k=k)
    extra = {}
    if optional:
        rng = np.random.default_rng(seed)
        extra = {"x_id": (np.float64, (3,)), "x_n": ("uint16", ())}
        wanted["x_id"], wanted["x_n"] = rng.standard_normal((n, 3)), rng.integers(0, 9, n).astype(np.uint16)
        wanted["depth"] = rng.uniform(1, 5, (n, 12, 16)).astype(np.float16)
        wanted["eye_area"] = rng.random(n).astype(np.float32)
        wanted["alpha_bytes"] = wanted["label_bytes"]
    names = [f"e{i}" for i in range(k)]
    with writer(root, landmark_scheme=scheme, expression_names=names, extra_members=extra) as w:
        at = 0
        for count in runs:
            w.add({m: v[at : at + count] for m, v in wanted.items()})
            at += count
        w.add_file("background.png", plate())
    dataset = Dataset(root)
    assert dataset.manifest == w.manifest == validate(str(root))
    assert_equal(dataset, wanted)
    assert_equal(Dataset(root, verify=False), wanted)
    np.testing.assert_array_equal(dataset.column("frame_index"), np.arange(n))
    assert [s["count"] for s in w.manifest["shards"][:-1]] == [64] * ((n - 1) // 64)
    assert dataset.train_range == (0, max(1, n * 10 // 11)) and dataset.heldout_range == (dataset.train_range[1], n)
    train = wanted["expression"][slice(*dataset.train_range)]
    np.testing.assert_array_equal(np.float32(dataset.manifest["range_max"]), train.max(0))
    if optional:
        np.testing.assert_array_equal(dataset.row("depth", n - 1), wanted["depth"][-1])
    else:
        assert dataset.frame_bytes("alpha_bytes", 0) is None
    assert dataset.landmarks68().shape == (n, 68, 2)


def test_the_same_frames_give_the_same_bytes_however_they_are_added(tmp_path):
    write_tiny(tmp_path / "a", n=70)
    with writer(tmp_path / "b") as w:
        f = frames(70)
        w.add_file("background.png", plate())
        w.add_file("qa/note.txt", b"seed 0")
        for i in range(70):
            w.add({m: v[i : i + 1] for m, v in f.items()})
        for name in ("audio_logmel.npz", "audio.wav"):
            w.add_file(name, tmp_path / "a" / name)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


def test_shards_are_uncompressed_named_by_their_hash_and_free_of_pickles(whole):
    manifest = validate(whole)
    for i, shard in enumerate(manifest["shards"]):
        data = (whole / shard["file"]).read_bytes()
        assert shard["file"] == f"shard-{i:05d}-{hashlib.sha256(data).hexdigest()[:8]}.npz"
        with np.load(io.BytesIO(data), allow_pickle=False) as z:
            assert sorted(z.files) == sorted(manifest["members"])
            assert z["image_offsets"].dtype == np.int64 and len(z["image_offsets"]) == shard["count"] + 1
    assert [s["count"] for s in manifest["shards"]] == [64, 2]


def test_the_manifest_digest_is_the_hash_of_its_bytes_with_the_field_empty(whole):
    raw = (whole / "manifest.json").read_bytes()
    digest = json.loads(raw)["digest"]
    assert hashlib.sha256(raw.replace(digest.encode(), b"")).hexdigest() == digest


@pytest.mark.parametrize("name", ["v1", "v1_1"])
def test_golden_datasets_are_read_and_the_newest_is_written_bit_for_bit(tmp_path, name):
    dataset = Dataset(GOLDEN / name)
    assert dataset.manifest["version"] == 1 and dataset.n_frames == 2
    assert dataset.manifest.get("minor", 0) == {"v1": 0, "v1_1": 1}[name]
    found = dataset.signals()
    assert {k: s.info.names for k, s in found.items()} == {
        "expression": NAMES, "eye_closed": ("eye_closed",), "eye_area": ("eye_area",),
        "identity": ("identity0", "identity1"),
    }  # fmt: skip
    np.testing.assert_array_equal(found["identity"].values, [[1, 2], [3, 4]])
    np.testing.assert_array_equal(dataset.column("x_identity"), [[1, 2], [3, 4]])
    assert np.isnan(dataset.row("depth", 0)[0, 0]) and dataset.row("depth", 0)[0, 1] == 3.25
    again = {m: dataset.column(m) for m in dataset.manifest["members"] if m.split("_")[-1] not in ("bytes", "offsets")}
    pictures = [m for m in contract.PICTURES if m in dataset.manifest["members"]]
    again |= {m: [dataset.frame_bytes(m, i) for i in range(2)] for m in pictures}
    extra = {"x_identity": ("float32", (2,)), "x_flag": ("bool", ())}
    head = {k: dataset.manifest[k] for k in ("source", "tools", "licences")}
    with writer(tmp_path / "again", 4, 6, extra_members=extra, **head) as w:
        w.add(again)
        w.add_file("background.png", GOLDEN / name / "background.png")
    assert files_of(tmp_path / "again") == files_of(GOLDEN / "v1_1")


# ---------------------------------------------------------------- damage


@settings(max_examples=150)
@given(data=st.data())
def test_any_damaged_byte_is_refused(whole, data):
    name = data.draw(st.sampled_from(sorted(files_of(whole))))
    original = (whole / name).read_bytes()
    at, flip = data.draw(st.integers(0, len(original) - 1)), data.draw(st.integers(1, 255))
    damaged = bytearray(original)
    damaged[at] ^= flip
    try:
        (whole / name).write_bytes(damaged)
        with pytest.raises(ContractError) as error:
            Dataset(whole)
        text = sentence(error)
        assert str(whole / name) in text and "member " in text
    finally:
        (whole / name).write_bytes(original)


def test_a_damaged_byte_anywhere_in_a_manifest_is_refused():
    raw = (GOLDEN / "v1_1" / "manifest.json").read_bytes()
    rng = random.Random(0)
    for at in rng.sample(range(len(raw)), 600):
        damaged = bytearray(raw)
        damaged[at] ^= rng.randrange(1, 256)
        with pytest.raises(ContractError) as error:
            contract.parse_manifest(bytes(damaged), "manifest.json")
        sentence(error)


def test_a_damaged_shard_names_the_member_that_was_hit(copy):
    shard = next(copy.glob("shard-00000*"))
    with np.load(shard) as z:
        jaw = z["expression"].tobytes()
    data = shard.read_bytes()
    at = data.index(jaw) + 5
    shard.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    with pytest.raises(ContractError, match="member expression is damaged"):
        validate(copy)


@settings(max_examples=30)
@given(data=st.data())
def test_a_truncated_or_missing_file_is_refused(whole, data):
    name = data.draw(st.sampled_from(sorted(files_of(whole))))
    original = (whole / name).read_bytes()
    keep = data.draw(st.integers(-1, len(original) - 1))
    try:
        (whole / name).unlink()
        if keep >= 0:
            (whole / name).write_bytes(original[:keep])
        with pytest.raises(ContractError) as error:
            Dataset(whole)
        assert str(whole / name) in sentence(error)
        if keep < 0:
            with pytest.raises(ContractError, match="no such file"):
                Dataset(whole, verify=False)
    finally:
        (whole / name).write_bytes(original)


def test_what_is_not_a_dataset_is_refused(tmp_path):
    for make in (lambda p: None, lambda p: p.write_text("x"), lambda p: p.mkdir()):
        root = tmp_path / f"d{make.__code__.co_firstlineno}-{len(list(tmp_path.iterdir()))}"
        make(root)
        with pytest.raises(ContractError) as error:
            validate(root)
        assert str(root) in sentence(error)
    (root / "manifest.json").write_bytes(b"")
    for raw in (b"", b"[]", b"nonsense", b"\xff\xfe", b"{}", b'{"version": 2}', b"[" * 100000, b'{"version": NaN}'):
        (root / "manifest.json").write_bytes(raw)
        with pytest.raises(ContractError) as error:
            validate(root)
        assert "manifest.json: member" in sentence(error)


# ---------------------------------------------------------------- lies that carry the right digest


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


def rewrite_shard(root: Path, change, k: int = 0, save=None) -> None:
    """Change the arrays of shard k, and make names, hashes and digest fit."""
    old = next(root.glob(f"shard-{k:05d}-*"))
    with np.load(old, allow_pickle=False) as z:
        arrays = {name: z[name] for name in z.files}
    change(arrays)
    out = io.BytesIO()
    (save or contract.write_npz)(out, arrays)
    old.unlink()
    sha = hashlib.sha256(out.getvalue()).hexdigest()
    name = f"shard-{k:05d}-{sha[:8]}.npz"
    (root / name).write_bytes(out.getvalue())

    def edit(m):
        del m["files"][old.name]
        m["files"][name] = sha
        m["shards"][k]["file"] = name

    redigest(root, edit)


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


# ---------------------------------------------------------------- the writer refuses too


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


# ---------------------------------------------------------------- generations


def test_a_reader_keeps_its_generation_until_the_write_after_next(tmp_path):
    root = tmp_path / "d"
    write_tiny(root, n=5, seed=1)
    old, plate_old = Dataset(root), (root / "background.png").read_bytes()
    write_tiny(root, n=70, seed=2)
    new = Dataset(root)
    assert_equal(old, frames(5, seed=1))
    assert old.path("background.png").read_bytes() == plate_old == plate(seed=1)
    assert old.path("qa/note.txt").read_bytes() == b"seed 1"
    assert new.path("qa/note.txt").read_bytes() == b"seed 2" == (root / "qa/note.txt").read_bytes()
    old.audio_features("logmel")
    write_tiny(root, n=1, seed=3, sound=False)
    with pytest.raises(ContractError, match="no such file"):
        old.frame_bytes("image_bytes", 0)
    assert_equal(new, frames(70, seed=2))
    write_tiny(root, n=1, seed=1, sound=False)
    (root / "stray.txt").write_text("x")
    write_tiny(root, n=2, seed=1, sound=False)
    write_tiny(root, n=2, seed=1, sound=False)
    named = {*validate(root)["files"], "manifest.json"}
    assert set(files_of(root)) == named
    assert not [p for p in root.rglob("*") if p.is_dir() and p.name != "qa"]


def test_an_exception_while_writing_leaves_the_old_dataset(tmp_path):
    root = tmp_path / "d"
    write_tiny(root, seed=1)
    before = files_of(root)
    with pytest.raises(ZeroDivisionError), writer(root) as w:
        w.add(frames(70))
        w.add_file("background.png", plate(seed=2))
        1 / 0  # noqa: B018
    assert files_of(root) == before


def test_a_full_disk_is_one_sentence_and_leaves_the_old_dataset(tmp_path, monkeypatch):
    root = tmp_path / "d"
    write_tiny(root, seed=1)
    before = files_of(root)

    def full(*args):
        raise OSError(28, "No space left on device")

    for n in (3, 70):
        monkeypatch.setattr(contract, "write_npz", full)
        with pytest.raises(ContractError, match="No space left on device") as error:
            write_tiny(root, n=n, seed=2, sound=False)
        monkeypatch.undo()
        assert str(root) in sentence(error)
        assert files_of(root) == before


@pytest.mark.heavy
def test_a_reader_that_opens_while_others_write_sees_one_generation(tmp_path):
    root = tmp_path / "d"
    write_tiny(root, n=3, seed=0, sound=False)
    code = (
        "import sys, time; sys.path.insert(0, '.')\n"
        "from tests.tiny_dataset import write_tiny\n"
        "print('ready', flush=True)\n"
        "for i in range(15): write_tiny(sys.argv[1], n=3, seed=i % 7, sound=False), time.sleep(0.03)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(root)], stdout=subprocess.PIPE)
    assert child.stdout.readline()
    seen = set()
    while child.poll() is None:
        dataset = Dataset(root)
        try:
            note, background = (dataset.path(name).read_bytes() for name in ("qa/note.txt", "background.png"))
        except FileNotFoundError:  # two writes began meanwhile: this generation is gone
            continue
        if Dataset(root, verify=False).digest == dataset.digest:
            assert background == plate(seed=int(note.split()[1]))
            seen.add(note)
    child.stdout.close()
    assert child.returncode == 0 and len(seen) > 1


class Killed(BaseException):
    pass


@pytest.mark.parametrize("clean_up", [False, True], ids=["killed", "interrupted"])
@pytest.mark.parametrize("first_write", [False, True], ids=["over an old one", "into nothing"])
def test_a_write_that_stops_at_any_system_call_leaves_the_old_or_the_new_dataset(
    tmp_path, monkeypatch, clean_up, first_write
):
    calls = ("replace", "rename", "link", "fsync", "unlink", "rmdir", "mkdir")
    originals = {name: getattr(os, name) for name in calls} | {"fsync": lambda fd: None}
    if not clean_up:
        monkeypatch.setattr(contract.DatasetWriter, "_abandon", lambda self: self._unlock())

    def stop_at(k: int, after: bool):
        counter = [0]

        def wrap(name):
            def call(*args, **kwargs):
                counter[0] += 1
                if counter[0] == k and not after:
                    raise Killed
                stop = counter[0] == k
                try:
                    return originals[name](*args, **kwargs)
                finally:
                    if stop:
                        raise Killed

            return call

        for name in calls:
            monkeypatch.setattr(os, name, wrap(name))

    seen = set()
    for k in range(1, 200):
        root = tmp_path / f"d{k}"
        if not first_write:
            write_tiny(root, n=3, seed=1, sound=False)
            opened = Dataset(root)
        stopped = False
        stop_at(k, after=bool(k % 2))
        try:
            write_tiny(root, n=5, seed=2, sound=False)
        except Killed:
            stopped = True
        finally:
            for name in calls:
                monkeypatch.setattr(os, name, originals[name])
        try:
            dataset = Dataset(root)
        except ContractError as e:
            assert first_write and "manifest.json" in str(e)
            seen.add("none")
        else:
            seed = int(dataset.path("qa/note.txt").read_bytes().split()[1])
            assert_equal(dataset, frames(dataset.n_frames, seed=seed))
            assert dataset.path("background.png").read_bytes() == plate(seed=seed)
            seen.add(seed)
        if not first_write:
            assert_equal(opened, frames(3, seed=1))
            assert opened.path("background.png").read_bytes() == plate(seed=1)
        write_tiny(root, n=2, seed=3, sound=False)
        write_tiny(root, n=2, seed=3, sound=False)
        assert set(files_of(root)) == {*validate(root)["files"], "manifest.json"}
        if not stopped:
            break
    assert not stopped and k > 10
    assert seen == ({"none", 2} if first_write else {1, 2})


@pytest.mark.heavy
def test_a_write_killed_at_a_random_moment_leaves_a_readable_dataset(tmp_path):
    root = tmp_path / "d"
    code = (
        "import sys; sys.path.insert(0, '.')\n"
        "from tests.tiny_dataset import write_tiny\n"
        "print('ready', flush=True)\n"
        "for i in range(10**6): write_tiny(sys.argv[1], n=66, seed=i % 7, sound=False)"
    )
    write_tiny(root, n=66, seed=0, sound=False)
    rng, seen = random.Random(5), set()
    for _ in range(6):
        child = subprocess.Popen([sys.executable, "-c", code, str(root)], stdout=subprocess.PIPE)
        assert child.stdout.readline()
        time.sleep(rng.uniform(0.0, 0.4))
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        dataset = Dataset(root)
        seed = int(dataset.path("qa/note.txt").read_bytes().split()[1])
        assert_equal(dataset, frames(66, seed=seed))
        seen.add(seed)
    write_tiny(root, n=1, sound=False)


# ---------------------------------------------------------------- landmarks, boxes, sound features


def test_the_mesh_points_that_stand_for_the_68_are_distinct_and_where_they_should_be(data_dir):
    table = contract.LANDMARKS_478_TO_68
    assert len(table) == len(set(table)) == 68 and max(table) < 468
    mesh = np.load(data_dir / "face/canonical_face.npz")["vertices"]
    p = mesh[list(table)]
    assert p[36:42, 0].max() < 0 < p[42:48, 0].min(), "42-47 is the subject's left eye, on the right of the picture"
    assert p[30, 2] == p[:, 2].max() and p[8, 1] == p[:, 1].min(), "nose tip in front, chin lowest"
    assert (np.diff(p[1:16, 0]) > 0).all(), "the jaw runs from left to right of the picture"
    assert p[48, 0] < p[51, 0] < p[54, 0] and p[57, 1] < p[51, 1]


def test_blendshape_names_are_those_of_the_model(data_dir):
    assert (data_dir / "models/blendshape_labels.txt").read_text().split() == list(contract.BLENDSHAPES)
    assert contract.BLENDSHAPES.index("jawOpen") == 25 and len(contract.BLENDSHAPES) == 52


def test_the_lips_box_of_the_dossier():
    lm = np.full((1, 68, 2), 250.0)
    lm[0, 48:60] = 236, 315
    lm[0, 48], lm[0, 49], lm[0, 50], lm[0, 51] = (210.7, 315), (262.2, 315), (236, 300.1), (236, 330.9)
    x0, y0, x1, y1 = contract.boxes_from_landmarks68(lm, 512, 512)["lips_box_px"][0]
    assert (y0, y1, x0, x1) == (289, 341, 210, 262)


@given(seed=st.integers(0, 2**20), height=st.integers(1, 80), width=st.integers(1, 80))
def test_boxes_of_any_points_are_legal(seed, height, width):
    lm = np.random.default_rng(seed).uniform(-50, 130, (4, 68, 2))
    for box in contract.boxes_from_landmarks68(lm, height, width).values():
        x0, y0, x1, y1 = box.T
        assert box.dtype == np.int32
        assert ((x0 >= 0) & (x0 < x1) & (x1 <= width) & (y0 >= 0) & (y0 < y1) & (y1 <= height)).all()


def test_landmarks_of_both_schemes_and_no_other():
    lm = np.random.default_rng(0).random((2, 478, 2))
    np.testing.assert_array_equal(contract.landmarks68(lm, "mediapipe478")[:, 30], lm[:, 4])
    np.testing.assert_array_equal(contract.landmarks68(lm[:, :68], "ibug68"), lm[:, :68])
    for bad, scheme in ((lm, "ibug68"), (lm, "dlib"), (lm[0], "mediapipe478")):
        with pytest.raises(ContractError):
            contract.landmarks68(bad, scheme)


@given(
    n=st.integers(1, 40), window=st.integers(1, 20), hop=st.integers(1, 4), left=st.integers(0, 20),
    frame=st.integers(-30, 60), seed=st.integers(0, 99),
)  # fmt: skip
def test_windows_are_slices_of_the_zero_padded_sequence(tmp_path_factory, n, window, hop, left, frame, seed):
    left = min(left, window)
    f = np.random.default_rng(seed).standard_normal((n, 2)).astype(np.float32)
    path = tmp_path_factory.mktemp("a") / "audio_any.npz"
    contract.save_audio_features(path, "any", f, 25 * hop, 0.01, "test", window, hop, left, left)
    a = contract.load_audio_features(path)
    assert (a.kind, a.rate_hz, a.start_s, a.extractor, a.pad) == ("any", 25.0 * hop, 0.01, "test", left)
    np.testing.assert_array_equal(a.features, f)
    padded = np.pad(f, ((500, 500), (0, 0)))
    first = 500 + hop * frame - left
    np.testing.assert_array_equal(a.window_at(frame), padded[first : first + window])


@given(n=st.integers(1, 40), cuts=st.lists(st.integers(0, 40), max_size=6), rows=st.integers(1, 50))
def test_features_in_blocks_are_the_same_bytes_as_the_whole(tmp_path_factory, n, cuts, rows):
    folder = tmp_path_factory.mktemp("a")
    f = np.random.default_rng(n).standard_normal((n, 3)).astype(np.float32)
    contract.save_audio_features(folder / "a.npz", "any", f, 50, 0.01, "test", 16, 2, 8, 8)
    header = contract.load_audio_features(folder / "a.npz").header
    contract.save_audio_rows(folder / "b.npz", header, np.split(f, sorted(min(c, n) for c in cuts)))
    assert (folder / "a.npz").read_bytes() == (folder / "b.npz").read_bytes()
    again, blocks = contract.stream_audio_features(folder / "b.npz", rows)
    blocks = list(blocks)
    assert again == header and [len(b) for b in blocks[:-1]] == [rows] * ((n - 1) // rows)
    np.testing.assert_array_equal(np.concatenate(blocks), f)


@settings(max_examples=60)
@given(data=st.data())
def test_a_damaged_feature_file_is_refused_or_whole(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("a") / "audio_any.npz"
    contract.save_audio_features(path, "any", np.ones((4, 3), np.float32), 50, 0.01, "test", 2, 2, 0, 0)
    raw = bytearray(path.read_bytes())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(raw)
    for read in (contract.load_audio_features, lambda p: list(contract.stream_audio_features(p, 3)[1])):
        try:
            read(path)
        except ContractError as e:
            assert str(path) in str(e) and "\n" not in str(e)


@pytest.mark.parametrize(
    ("field", "value"),
    [("rate_hz", 0), ("rate_hz", 49.9), ("hop", 1),
     ("start_s", np.nan), ("window", 0), ("hop", 0), ("left", 3), ("pad", -1), ("extractor", ""),
     ("kind", "a/b"), ("features", np.zeros((0, 3), np.float32)), ("features", np.zeros((2, 3))),
     ("features", np.full((2, 3), np.inf, np.float32))],
)  # fmt: skip
def test_wrong_sound_features_are_not_written(tmp_path, field, value):
    good = {"kind": "any", "features": np.ones((4, 3), np.float32), "rate_hz": 50, "start_s": 0.0, "extractor": "t"}
    good |= {"window": 2, "hop": 2, "left": 0, "pad": 0}
    named = "rate_hz" if (field, value) == ("hop", 1) else field  # 50 steps a second are not 1 a frame
    with pytest.raises(ContractError, match=f"member {named}"):
        contract.save_audio_features(tmp_path / "a.npz", **{**good, field: value})
    assert not list(tmp_path.iterdir())


def test_asking_for_what_is_not_there_says_what_is(whole):
    dataset = Dataset(whole)
    for ask, words in (
        (lambda: dataset.audio_features("hubert"), "logmel"),
        (lambda: dataset.column("depth"), "eye_closed"),
        (lambda: dataset.column("image_bytes"), "frame_bytes"),
        (lambda: dataset.frame_bytes("eye_closed", 0), "image_bytes"),
        (lambda: dataset.frame_bytes("image_bytes", 66), "0..65"),
        (lambda: dataset.path("nothing.png"), "background.png"),
    ):
        with pytest.raises(ContractError) as error:
            ask()
        assert words in str(error.value)
    assert dataset.manifest["expression_names"] == list(NAMES)
