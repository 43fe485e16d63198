"""Avatars and datasets of strangers: whatever they hold, loading them runs nothing, reads nothing outside their folder,
and ends in one sentence or in content that is whole."""

import hashlib
import io
import json
import os
import random
import re
import shutil
import sys
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest

from tests import tiny, tiny_dataset
from tests.mutations import VALUES, WITHOUT_DIGEST, fresh_avatar, fresh_dataset, places
from tests.voices import untrained
from tkjax import config, contract
from tkjax.avatar import avatar_json, bundle
from tkjax.contract import Dataset
from tkjax.data.dataset_clip import DatasetClip
from tkjax.errors import UserError
from tkjax.media import images
from tkjax.models import load_system

# Seeds of mutations of an avatar, and of a dataset; most of them are left out of `make check`.
SEEDS = [pytest.param(0, 100, id="100"), pytest.param(100, 500, id="500", marks=pytest.mark.heavy)]
opened: list[str] | None = None  # files that are opened while a bundle is loaded


def _note_opened(event, arguments):
    if opened is not None and event == "open" and isinstance(arguments[0], str | bytes):
        opened.append(os.fsdecode(arguments[0]))


sys.addaudithook(_note_opened)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with `avatar`, `dataset`, and `outside`, which holds what a bundle may point at."""
    root = tmp_path_factory.mktemp("stranger")
    clip = DatasetClip(tiny.make_dataset(root / "clip", n=70), root / "cache")
    resolved = tiny.config()
    variables = load_system(resolved.system)(resolved, clip.info).init(jax.random.key(0))
    spec, consent = bundle.audio_spec(clip.audio), {"statement": "mine"}
    bundle.save(root / "avatar", resolved, variables, 4, clip, spec, consent, speaks=untrained())
    tiny_dataset.write_tiny(root / "dataset", n=66, source={"crop_px": [0, 0, 16, 12], "full_size": [16, 12]})
    for kind in ("avatar", "dataset"):
        shutil.copytree(root / kind, root / "outside" / kind)
    return root


# ---------------------------------------------------------------- what must hold


def content_of_avatar(folder: Path) -> dict:
    """Everything that a loaded avatar gives."""
    subject = bundle.load(folder)
    out = {"meta": json.dumps(subject.meta, sort_keys=True), "plate": subject.plate}
    out |= {k: getattr(subject, k) for k in ("cam_to_world", "confidence", "face_box_px")}
    out |= {f"signal {k}": s.values for k, s in subject.signals.items()}
    out |= bundle.arrays_of(subject.variables(subject.model()))
    out |= {f"voice {k}": v for k, v in bundle.arrays_of(subject.voice.tree()).items()}
    pictures = [(k, i) for k in ("torso", "label", "face") for i in (0, subject.n_track - 1)]
    return out | {f"{k}{i}": getattr(subject, k)(i) for k, i in pictures}


def check_avatar(folder: Path) -> None:
    """What an avatar with a digest of its own must keep to where it is accepted."""
    subject = bundle.load(folder)
    info, n = subject.info, subject.n_track
    assert subject.meta["system"] == subject.config.system == "tests.tiny"
    for entry in avatar_json.entries(subject.meta["files"]):
        assert re.fullmatch(r"[a-z_]+(-\d{5})?-[0-9a-f]{8}\.(npz|png|mp4)", entry["name"])
    assert subject.plate.shape == (info.height, info.width, 3)
    for s in subject.signals.values():
        assert s.values.shape == (n, s.info.channels) and np.isfinite(s.values).all(), s.info.name
        assert s.info == info.signal(s.info.name)
    for name, shape in (("cam_to_world", (n, 4, 4)), ("confidence", (n,)), ("face_box_px", (n, 4)),
                        ("lips_box_px", (n, 4))):  # fmt: skip
        values = getattr(subject, name)
        assert values.shape == shape and np.isfinite(values).all(), name
    assert np.isfinite(info.intrinsics).all() and len(info.intrinsics) == 4
    if subject.voice is not None:
        assert set(subject.voice.columns) <= set(range(info.signal("expression").channels))
        assert all(np.isfinite(v).all() for v in bundle.arrays_of(subject.voice.tree()).values())
    assert 0 <= subject.frame_number(0) and subject.frame_number(n - 1) < info.n_frames
    for ask in (lambda: subject.variables(subject.model()), *(
        lambda k=k, i=i: getattr(subject, k)(i) for k in ("torso", "label", "face") for i in (0, n - 1)
    )):  # fmt: skip
        try:
            got = ask()
        except UserError as error:
            assert "\n" not in str(error)
        else:
            assert not isinstance(got, np.ndarray) or got.shape[:2] == (info.height, info.width)


def content_of_dataset(root: Path) -> dict:
    d = Dataset(root)
    out = {"manifest": json.dumps(d.manifest, sort_keys=True)}
    for member in d.manifest["members"]:
        if member in contract.PICTURES:
            out[member] = np.frombuffer(b"".join(d.frame_bytes(member, i) for i in range(d.n_frames)), np.uint8)
        elif not member.endswith("_offsets"):
            out[member] = d.column(member)
    return out | {"sound": d.audio_features("logmel").features}


def check_dataset(root: Path) -> None:
    d = Dataset(root)
    assert d.n_frames == 66 and max(map(abs, d.intrinsics)) <= 1e7
    for member in ("cam_to_world", "expression", "eye_closed", "landmarks_px"):
        assert np.isfinite(d.column(member)).all()
    for member in contract.PICTURES:
        for i in (0, 65):
            data = d.frame_bytes(member, i)
            assert data is None or contract.picture_header(data)[1:3] == (d.width, d.height)
    assert all(np.isfinite(d.audio_features(kind).features).all() for kind in d.manifest["audio"])


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


@pytest.mark.heavy
@pytest.mark.parametrize("kind", ["avatar", "dataset"])
@pytest.mark.parametrize("first, end", SEEDS)
def test_whatever_a_folder_holds_it_is_refused_in_a_sentence_or_whole(place, tmp_path, kind, first, end, monkeypatch):
    monkeypatch.chdir(tmp_path)
    global opened
    load, check, fresh = {
        "avatar": (content_of_avatar, check_avatar, fresh_avatar),
        "dataset": (content_of_dataset, check_dataset, fresh_dataset),
    }[kind]
    original, folder = load(place / kind), place / "mutated" / kind
    modules = set(sys.modules)
    refused = 0
    for i in range(first, end):
        rng = random.Random(i)
        mutate = rng.choice(WITHOUT_DIGEST) if i % 2 else fresh
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(place / kind, folder)
        mutate(rng, folder)
        opened = []
        try:
            if mutate is fresh:
                check(folder)
            else:
                assert same(load(folder), original), f"{i}: {mutate.__name__}: other content is accepted"
        except UserError as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < 1000, f"{i}: {mutate.__name__}"
            assert str(place) in str(error), f"{i}: {mutate.__name__}: {error} names no file"
            str(error).encode()
        except BaseException as error:
            raise AssertionError(f"mutation {i} ({mutate.__name__}): {type(error).__name__} {error}") from error
        finally:
            seen, opened = opened, None
        assert not [p for p in seen if p.startswith(str(place / "outside")) or p == "/etc/passwd"], (
            f"{i}: {mutate.__name__}"
        )
        news = {m for m in set(sys.modules) - modules if not m.startswith(("numpy", "jax", "PIL", "tkjax", "xml"))}
        assert not [m for m in news if "payload" in m]
    assert refused > 0.8 * (end - first)  # and changes of free text, of dates in a container and the like are none


# ---------------------------------------------------------------- nothing is run


PAYLOAD = """
from pathlib import Path
Path({mark!r}).write_text("ran")
from tkjax.models.er_nerf import Model
VARIANTS = ("full",)
"""


def rename_system(folder: Path, name: str) -> None:
    meta = json.loads((folder / "avatar.json").read_text())
    meta["config"]["system"] = meta["system"] = name
    meta["digest"] = avatar_json.json_digest(meta)
    (folder / "avatar.json").write_bytes(avatar_json.dump(meta))


@pytest.mark.heavy
def test_a_stored_system_runs_and_imports_nothing(place, tmp_path, monkeypatch):
    """Neither a module on the path nor a file that a name leads to; json, os and the like are no systems either."""
    (tmp_path / "evil").mkdir()
    mark = tmp_path / "mark"
    (tmp_path / "evil" / "payload.py").write_text(PAYLOAD.format(mark=str(mark)))
    monkeypatch.syspath_prepend(str(tmp_path))
    shutil.copytree(place / "avatar", tmp_path / "avatar")
    there = tmp_path / "evil" / "payload"
    names = ("evil.payload", f"x.{there}", f"x.../../../../..{there}", str(there), "json.decoder", "os.path", "er_nrf")
    for name in (*names, "tkjax.models.er_nerf", "tkjax.models.hash_head", "hash_head", "base", "", "__init__"):
        rename_system(tmp_path / "avatar", name)
        with pytest.raises(UserError) as error:
            bundle.load(tmp_path / "avatar")
        assert "\n" not in str(error.value)
        stored = config.to_dict(tiny.config()) | {"system": name}
        (tmp_path / "config.json").write_text(json.dumps(stored))
        with pytest.raises(ValueError, match="system"):
            load_system(config.load(str(tmp_path / "config.json")).system, stored=True)
    assert not mark.exists() and "evil.payload" not in sys.modules


def test_a_plug_in_counts_where_the_program_has_imported_it(tmp_path, monkeypatch):
    """As with a config of the user's own, which names it on the command line."""
    (tmp_path / "my_plug").mkdir()
    (tmp_path / "my_plug" / "system.py").write_text("from tkjax import interface\nclass Model(interface.Model): pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match="stored file may not name"):
        load_system("my_plug.system", stored=True)
    assert load_system("my_plug.system") is load_system("my_plug.system", stored=True)
    monkeypatch.delitem(sys.modules, "my_plug.system")
    monkeypatch.delitem(sys.modules, "my_plug")


def smoke_avatar(place, folder: Path, variant="smoke") -> dict:
    """avatar.json of a system of the project; its params are another's, which `load` does not compare."""
    shutil.copytree(place / "avatar", folder)
    meta = json.loads((folder / "avatar.json").read_text())
    resolved = config.load(f"configs/er_nerf.py:{variant}")
    meta |= {"config": config.to_dict(resolved), "system": "er_nerf", "stages": ["head"]}
    return meta


def write(folder: Path, meta: dict) -> None:
    meta["digest"] = avatar_json.json_digest(meta)
    (folder / "avatar.json").write_bytes(avatar_json.dump(meta))


@pytest.mark.heavy
def test_settings_of_another_type_are_refused_and_whatever_they_are_no_crash(place, tmp_path):
    meta = smoke_avatar(place, tmp_path / "avatar")
    write(tmp_path / "avatar", meta)
    subject = bundle.load(tmp_path / "avatar")
    with pytest.raises(UserError, match="params"):
        subject.variables(subject.model())
    rng = random.Random(3)
    keys = [p for p in places(meta["config"]) if p[0] in ("model", "eval", "train")]
    for path in rng.sample(keys, 40):
        changed = json.loads(json.dumps(meta))
        node = changed["config"]
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = rng.choice(VALUES[:8] + VALUES[10:13] + VALUES[16:])
        write(tmp_path / "avatar", changed)
        try:
            bundle.load(tmp_path / "avatar")
        except UserError as error:
            assert "\n" not in str(error) and "avatar.json" in str(error)
    changed = json.loads(json.dumps(meta))
    del changed["config"]["model"]["code_dim"], changed["config"]["train"]["lips"]
    changed["config"]["variant"] = "gone"
    write(tmp_path / "avatar", changed)
    assert bundle.load(tmp_path / "avatar").config.model.code_dim > 0


# ---------------------------------------------------------------- single kinds


@pytest.fixture
def copy(place, tmp_path):
    shutil.copytree(place / "avatar", tmp_path / "avatar")
    return tmp_path / "avatar"


def test_consent_is_under_the_digest(copy):
    record = copy / "consent.json"
    good = record.read_bytes()
    for bad in (good.replace(b"mine", b"ours"), good + b" ", b"", b"{}"):
        record.write_bytes(bad)
        with pytest.raises(UserError, match=r"consent\.json"):
            bundle.load(copy)
    record.unlink()
    with pytest.raises(UserError, match=r"consent\.json"):
        bundle.load(copy)
    (copy / avatar_json.consent_name(good)).write_bytes(good)  # a save was killed before it had its name
    assert bundle.load(copy).meta["consent"] == {"statement": "mine"}


def test_a_save_that_is_killed_anywhere_leaves_a_consent_that_fits(place, copy, monkeypatch):
    subject = bundle.load(copy)
    clip = DatasetClip(place / "clip", place / "cache")
    variables = subject.variables(subject.model())

    def dies(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(bundle, "put", dies)  # the last step: consent.json gets its name
    with pytest.raises(KeyboardInterrupt):
        bundle.save(copy, subject.config, variables, 4, clip, subject.meta["audio"], {"statement": "changed"})
    assert bundle.load(copy).meta["consent"] == {"statement": "changed"}


def test_an_avatar_that_could_not_be_read_back_is_not_written(place, copy):
    subject = bundle.load(copy)
    variables, clip = subject.variables(subject.model()), DatasetClip(place / "clip", place / "cache")
    for consent in ({"statement": "\udc80"}, {"statement": 3}):
        with pytest.raises(UserError, match="consent"):
            bundle.save(copy, subject.config, variables, 4, clip, subject.meta["audio"], consent)
        assert bundle.load(copy).id == subject.id


def test_a_bomb_is_refused_before_it_is_unpacked(copy):
    """Zeros of 4 GB in 4 MB: never read, and nothing of their size is made."""
    meta = json.loads((copy / "avatar.json").read_text())
    entry = meta["files"]["params"]
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as z, z.open("params/grey.npy", "w") as f:
        header = np.lib.format.header_data_from_array_1_0(np.zeros(1, np.float32))
        np.lib.format.write_array_header_1_0(f, {**header, "shape": (1 << 24,)})
        for _ in range(64):
            f.write(bytes(1 << 20))
    (copy / entry["name"]).write_bytes(bomb.getvalue())
    entry |= {"sha256": hashlib.sha256(bomb.getvalue()).hexdigest(), "bytes": len(bomb.getvalue())}
    write(copy, meta)
    with pytest.raises(UserError, match="compressed"):
        bundle.load(copy)


def test_a_stranger_s_video_is_no_playlist_and_no_larger_than_it_says(copy):
    subject = bundle.load(copy)
    path = copy / subject.meta["files"]["full"]["name"]
    path.write_text("ffconcat version 1.0\nfile '../secret.mp4'\n")
    with pytest.raises(UserError, match="no MP4"):
        subject.full_frame(0)
    with images_video(path, 96, 64):
        pass
    with pytest.raises(UserError, match="96x64 pixels, expected 32x24"):
        subject.full_frame(0)
    subject.close()


def images_video(path: Path, width: int, height: int):
    from tkjax.media.video import VideoWriter

    path.unlink()
    video = VideoWriter(path, height, width, fps=25.0)
    with video:
        video.write(np.zeros((height, width, 3), np.uint8))
    return io.BytesIO()


def npz_of(arrays: dict) -> bytes:
    out = io.BytesIO()
    contract.write_npz(out, arrays)
    return out.getvalue()


def replaced(copy: Path, entry: dict, change) -> None:
    """A file of the avatar with other arrays, and its hash."""
    with np.load(copy / entry["name"]) as loaded:
        arrays = {name: loaded[name] for name in loaded.files}
    change(arrays)
    data = npz_of(arrays)
    (copy / entry["name"]).write_bytes(data)
    entry |= {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


INCONSISTENT = {
    "one row less": lambda c, m: replaced(
        c, m["files"]["track"][0], lambda a: a.update(eye_closed=a["eye_closed"][1:])
    ),
    "text": lambda c, m: replaced(
        c, m["files"]["track"][1], lambda a: a.update(expression=a["expression"].astype("U4"))
    ),
    "no column": lambda c, m: replaced(c, m["files"]["track"][1], lambda a: a.pop("confidence")),
    "a kind in one file only": lambda c, m: replaced(c, m["files"]["track"][1], lambda a: a.pop("eye_area")),
    "params as text": lambda c, m: replaced(
        c, m["files"]["params"], lambda a: a.update({"params/grey": np.array("abc")})
    ),
    "params complex": lambda c, m: replaced(
        c, m["files"]["params"], lambda a: a.update({"params/grey": np.ones(3, "c8")})
    ),
    "params not finite": lambda c, m: replaced(c, m["files"]["params"], lambda a: a["params/grey"].fill(np.nan)),
    "height below 1": lambda c, m: m["info"].update(height=-1),
    "height of a bomb": lambda c, m: m["info"].update(height=10**9),
    "frames in halves": lambda c, m: m["info"].update(n_frames=1.5),
    "two intrinsics": lambda c, m: m["info"].update(intrinsics=[90.0, 90.0]),
    "endless focal length": lambda c, m: m["info"].update(intrinsics=[1e300, 90.0, 16.0, 12.0]),
    "more training frames than frames": lambda c, m: m.update(n_train=71),
    "held-out frames behind the clip": lambda c, m: m.update(heldout_first=69),
    "a crop outside": lambda c, m: m["full"].update(box=[0, 0, 33, 24]),
    "a size in letters": lambda c, m: m["full"].update(size=["b", "i", "g"]),
    "another sound": lambda c, m: m["audio"].update(channels=79),
    "a stage of another system": lambda c, m: m.update(stages=["head"]),
    "a stage by another kind": lambda c, m: m.update(stages=[3]),
}


@pytest.mark.parametrize("what", INCONSISTENT)
def test_what_does_not_agree_is_refused_although_the_digest_fits(copy, what):
    meta = json.loads((copy / "avatar.json").read_text())
    INCONSISTENT[what](copy, meta)
    write(copy, meta)
    with pytest.raises(UserError) as error:
        bundle.load(copy)
    assert str(copy) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("shape", [(24, 32), (24, 32, 4), (32, 24, 3)])
def test_a_background_is_an_rgb_picture_of_the_avatar_s_size(copy, shape):
    meta = json.loads((copy / "avatar.json").read_text())
    data = images.encode_png(np.zeros(shape, np.uint8))
    entry = meta["files"]["background"]
    (copy / entry["name"]).write_bytes(data)
    entry |= {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    write(copy, meta)
    with pytest.raises(UserError, match="png of 32x24 pixels and 3 channels"):
        bundle.load(copy)


@pytest.mark.parametrize(
    ("key", "value"),
    [("background_trt", "red"), ("background_trt", [1]), ("background_trt", [999, -5, 2]), ("crop_px", ["a", None]),
     ("crop_px", [0, 0, 17, 12]), ("crop_px", [3, 0, 3, 12]), ("full_size", "big"), ("full_size", [0, 0])],
)  # fmt: skip
def test_what_the_contract_says_of_the_source_is_checked(place, tmp_path, key, value):
    shutil.copytree(place / "dataset", tmp_path / "dataset")
    tiny_dataset.redigest(tmp_path / "dataset", lambda m: m["source"].update({key: value}))
    with pytest.raises(contract.ContractError, match=f"source.{key}"):
        contract.validate(tmp_path / "dataset")


def test_a_dataset_s_links_are_not_followed_but_its_folder_may_be_one(place, tmp_path):
    (tmp_path / "door").symlink_to(place / "dataset")
    assert Dataset(tmp_path / "door").n_frames == 66
    shutil.copytree(place / "dataset", tmp_path / "dataset")
    shutil.rmtree(tmp_path / "dataset" / "qa")
    (tmp_path / "dataset" / "qa").symlink_to(place / "dataset" / "qa")
    for verify in (True, False):
        with pytest.raises(contract.ContractError, match="symbolic link"):
            Dataset(tmp_path / "dataset", verify=verify)
