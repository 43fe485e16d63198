"""The data contract: what goes in comes out, and damage is refused in one sentence."""

import hashlib
import io
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny_dataset import GOLDEN, NAMES, assert_equal, files_of, frames, plate, sentence, write_tiny, writer
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


# ---------------------------------------------------------------- round trip


@pytest.mark.heavy
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


@pytest.mark.heavy
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
