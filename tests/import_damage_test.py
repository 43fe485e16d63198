"""Checkpoints that are damaged or claim what they do not hold: one sentence each, and the workdir stays as it was."""

import contextlib
import hashlib
import io
import re
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import original_checkpoints as originals
from tkjax import config
from tkjax.app import importing
from tkjax.avatar import bundle
from tkjax.errors import UserError
from tkjax.host import files, torch_side
from tkjax.originals import source
from tkjax.train import checkpoint

torch = pytest.importorskip("torch")
from preprocess.weights import checkpoint_file  # noqa: E402


def read(path: Path, out: Path) -> str:
    """What reading a file into arrays says: '' where it is taken, else its one sentence. Anything else is a bug."""
    with contextlib.redirect_stderr(io.StringIO()) as err:
        code = checkpoint_file.main(["--read", str(path), "--out", str(out)])
    said = err.getvalue()
    assert (code, said) == (0, "") or (code == 2 and said.startswith("error: ") and said.count("\n") == 1), (code, said)
    said.encode()  # no broken characters
    return said


# ---------------------------------------------------------------- bytes


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    """(a small file, its arrays)."""
    folder = tmp_path_factory.mktemp("healthy")
    rng = np.random.default_rng(0)
    model = {f"layer{i}.weight": rng.standard_normal((9, 70)).astype(np.float32) for i in range(3)}
    file = {"epoch": 3, "stats": {"loss": [0.5, 0.25]}, "model": model, "optimizer": {"lr": 0.1}}
    originals.save(folder / "x.pth", file)
    assert read(folder / "x.pth", folder / "out") == ""
    return folder / "x.pth", arrays(folder / "out")


def arrays(folder: Path) -> dict[str, bytes]:
    with np.load(folder / "tensors.npz") as data:
        return {name: data[name].tobytes() for name in data.files}


@given(st.floats(0, 1, exclude_max=True), st.integers(0, 7))
def test_a_flipped_bit_is_found_or_changes_no_number(healthy, tmp_path_factory, at, bit):
    path, want = healthy
    data, folder = bytearray(path.read_bytes()), tmp_path_factory.mktemp("flipped")
    data[int(at * len(data))] ^= 1 << bit
    (folder / "x.pth").write_bytes(data)
    if not read(folder / "x.pth", folder / "out"):
        assert arrays(folder / "out") == want


def test_every_byte_of_a_tensor_is_under_its_checksum(healthy, tmp_path):
    path, _ = healthy
    with zipfile.ZipFile(path) as archive:
        tensors = [m for m in archive.infolist() if "/data/" in m.filename]
    assert len(tensors) == 3
    for member in tensors:
        data = bytearray(path.read_bytes())
        start = member.header_offset + 30 + sum(data[member.header_offset + 26 + k] << 8 * (k % 2) for k in range(4))
        data[start + member.file_size // 2] ^= 0x40
        (tmp_path / "x.pth").write_bytes(data)
        assert f"{member.filename} in it fails its checksum" in read(tmp_path / "x.pth", tmp_path / "out")
        assert not (tmp_path / "out").exists()


@given(st.floats(0, 1, exclude_max=True))
def test_a_cut_file_is_refused(healthy, tmp_path_factory, share):
    data, folder = healthy[0].read_bytes(), tmp_path_factory.mktemp("cut")
    (folder / "x.pth").write_bytes(data[: int(share * len(data))])
    assert read(folder / "x.pth", folder / "out")


def test_a_zip_that_torch_would_not_write_is_refused(healthy, tmp_path):
    for how in (zipfile.ZIP_DEFLATED, None):
        with zipfile.ZipFile(healthy[0]) as old, zipfile.ZipFile(tmp_path / "x.pth", "w") as new:
            for member in old.infolist():
                new.writestr(member, old.read(member), how or zipfile.ZIP_STORED)
            if how is None:
                with pytest.warns(UserWarning, match="Duplicate"):
                    new.writestr(old.infolist()[-1], b"another")
        assert "which torch.save does not write" in read(tmp_path / "x.pth", tmp_path / "out")


# ---------------------------------------------------------------- claims


def recursive():
    stats = {}
    stats["again"] = stats
    return stats


def doubled():
    """Two entries at each level are the same: 2^30 in all."""
    node = [0.5]
    for _ in range(30):
        node = [node, node]
    return node


def deep(levels):
    node = []
    for _ in range(levels):
        node = [node]
    return node


W = torch.zeros(2, 2)
REFUSED = {
    "a huge shape": ({"model": {"a": torch.zeros(1).expand(1 << 40)}}, r"a has the shape \[1099511627776\]"),
    "a huge unknown tensor": ({"model": {"a": W, "b": torch.zeros(1, 1).expand(1 << 20, 1 << 20)}}, "b has the shape"),
    "many that are large": ({"model": {f"a{i}": torch.zeros(1).expand(1 << 23) for i in range(9)}}, "has the shape"),
    "a huge moving average": ({"model": {"a": W}, "ema": {"shadow_params": [torch.zeros(1).expand(1 << 40)]}}, "ema/0"),
    "a huge half": ({"model": {"a": torch.zeros(1, dtype=torch.bfloat16).expand(1 << 40)}}, "has the shape"),
    "float8": ({"model": {"a": W.to(torch.float8_e4m3fn)}}, "a holds float8_e4m3fn numbers, which are no weights"),
    "complex": ({"model": {"a": W.to(torch.complex64)}}, "a holds complex64 numbers"),
    "uint32": ({"model": {"a": W.to(torch.uint32)}}, "a holds uint32 numbers"),
    "meta": ({"model": {"a": torch.zeros(2, device="meta")}}, "a is a tensor without plain numbers"),
    "sparse": ({"model": {"a": W.to_sparse()}}, "a is a tensor without plain numbers"),
    "compressed rows": ({"model": {"a": torch.eye(2).to_sparse_csr()}}, "a is a tensor without plain numbers"),
    "quantised": ({"model": {"a": torch.quantize_per_tensor(W, 0.1, 0, torch.quint8)}}, ""),
    "a long name": ({"model": {"a" * 70000: W}}, "is no name of a tensor"),
    "a broken name": ({"model": {"a\ud800b": W}}, r"a\?b is no name of a tensor"),
    "a NUL in a name": ({"model": {"a\0b": W}}, r"a\?b is no name of a tensor"),
    "a line in a name": ({"model": {"a\nb": W}}, "is no name of a tensor"),
    "an empty name": ({"model": {"": W, "b": W}}, "is no name of a tensor"),
    "a number as name": ({"model": {1: W}}, "in its 'model' is no tensor with a name"),
    "a broken name of no tensor": ({"model": {"a\ud800": 1}}, "in its 'model' is no tensor with a name"),
    "broken names alone": ({"a\ud800": 1, "b" * 70000: 2}, "has no 'model'"),
    "stats in themselves": ({"model": {"a": W}, "stats": recursive()}, "its 'stats' is nested more than 32 levels"),
    "deep stats": ({"model": {"a": W}, "stats": deep(400)}, "its 'stats' is nested"),
    "deeper stats": ({"model": {"a": W}, "stats": deep(3000)}, "its 'stats' is nested"),
    "endless stats": ({"model": {"a": W}, "stats": doubled()}, "its 'stats' is nested"),
    "a deep average": ({"model": {"a": W}, "ema": {"decay": deep(99), "shadow_params": []}}, "'ema'"),
}  # fmt: skip
TAKEN = {
    "huge numbers": {"epoch": 1 << 1000, "global_step": -(1 << 64), "mean_count": 1 << 63},
    "broken text": {"stats": {"a\ud800": ["\ud800", "\0", "x" * 10**6]}},
    "odd tensors": {"stats": {"a": torch.zeros(3, device="meta"), "b": torch.zeros(1).expand(1 << 40), "c": 1j}},
    "no numbers": {"mean_count": float("nan"), "mean_density": float("inf")},
    "odd left-overs": {"b\ud800": 1, "c" * 70000: recursive(), 5: 6, (1, 2): torch.zeros(2, device="meta")},
    "odd keys": {"stats": {(1, 2): 3, 1 << 1000: 4, None: 5, True: 6, 1.5: 7}},
    "odd averages": {"ema": {"decay": torch.zeros(3), "num_updates": "x", "shadow_params": []}},
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_file_cannot_hold_is_one_sentence(name, tmp_path):
    file, told = REFUSED[name]
    limit = sys.getrecursionlimit()
    try:
        sys.setrecursionlimit(20000)  # for who makes such a file, not for who reads it
        torch.save(file, tmp_path / "x.pth")
    finally:
        sys.setrecursionlimit(limit)
    said = read(tmp_path / "x.pth", tmp_path / "out")
    assert said and re.search(told, said), said
    assert len(said) < 600 + len(str(tmp_path)) and not (tmp_path / "out" / "tensors.npz").exists()


@pytest.mark.parametrize("name", TAKEN)
def test_oddities_around_the_weights_are_taken_as_far_as_text_can_hold_them(name, tmp_path):
    torch.save({"model": {"a": W}, **TAKEN[name]}, tmp_path / "x.pth")
    assert read(tmp_path / "x.pth", tmp_path / "out") == ""
    found = source.load(tmp_path / "out", tmp_path / "x.pth")
    np.testing.assert_array_equal(found.model["a"], W.numpy())
    assert checkpoint_file.main(["--write", str(tmp_path / "out"), "--out", str(tmp_path / "y.pth")]) == 0


# ---------------------------------------------------------------- numbers


@pytest.fixture(scope="module", params=["er_nerf", "rad_nerf"])
def whole(request):
    return originals.state_dict(request.param, audio=29, rows=16, torso=True)


def recognise(model, shadow=None):
    facts = {"keys": list(model), "top": {}, "bare": False, "left_out": []}
    return source.recognise(source.Source(Path("x.pth"), model, shadow, facts), None)


def one(value, number):
    out = value.copy()
    out.reshape(-1)[out.size // 3] = number
    return out


SPOILT = {
    "NaN": lambda v: one(v, np.nan),
    "infinity": lambda v: one(v, -np.inf),
    "beyond float32": lambda v: one(v.astype(np.float64), 1e39),
    "bool": lambda v: v > 0,
    "complex": lambda v: v + 1j,
    "whole": lambda v: v.astype(np.int32),
}


@pytest.mark.heavy
@pytest.mark.parametrize("spoil", SPOILT)
def test_a_tensor_that_holds_no_weights_is_refused_by_name(whole, spoil):
    """Every tensor of both systems, grids and boxes included."""
    recognise(whole)
    for key, value in whole.items():
        if value.dtype.kind == "f":
            with pytest.raises(UserError, match=re.escape(key)) as error:
                recognise({**whole, key: SPOILT[spoil](value)})
            assert "\n" not in str(error.value)


def test_bits_and_levels_must_be_whole_numbers_of_their_kind(whole):
    bits = whole["density_bitfield"]
    for other in (bits.astype(np.float32), bits.astype(np.int32) + 256, bits.astype(np.int8), bits > 0):
        with pytest.raises(UserError, match=f"density_bitfield holds {other.dtype} numbers, expected uint8"):
            recognise({**whole, "density_bitfield": other})
    for key in [k for k in whole if k.endswith(".offsets")]:
        with pytest.raises(UserError, match=f"{key} holds float32"):
            recognise({**whole, key: whole[key].astype(np.float32)})
    with pytest.raises(UserError, match="density_bitfield has 1 bytes"):
        recognise({**whole, "density_bitfield": np.uint8(3)[()] * np.ones((), np.uint8)})


def test_half_and_double_weights_are_weights(whole):
    for dtype in (np.float16, np.float64):
        recognise({k: v.astype(dtype) if v.dtype.kind == "f" and "grid" not in k else v for k, v in whole.items()})


def test_unknown_tensors_and_averages_must_be_finite_as_well(whole):
    with pytest.raises(UserError, match=r"lip_net\.weight holds numbers that are not finite"):
        recognise({**whole, "lip_net.weight": np.array([1, np.nan], np.float32)})
    average = originals.whole(whole)["ema"]["shadow_params"]
    recognise(whole, average)
    for bad, told in ((one(average[3], np.nan), "not finite"), (average[3] > 0, "no real numbers")):
        with pytest.raises(UserError, match=f"tensor 3 of the moving average holds .*{told}|{told}"):
            recognise(whole, [*average[:3], bad, *average[4:]])


# ---------------------------------------------------------------- what a failure leaves


def contents(root: Path) -> dict[str, str]:
    return {
        str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in root.rglob("*") if p.is_file()
    }


def run(**flags) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        importing.run(**{k: str(v) for k, v in flags.items()})


@pytest.fixture
def without_a_child(monkeypatch):
    def ask(module, arguments):
        with contextlib.redirect_stderr(io.StringIO()) as err:
            if checkpoint_file.main(arguments):
                raise UserError(err.getvalue())

    monkeypatch.setattr(torch_side, "ask", ask)


@pytest.mark.heavy
def test_an_import_that_fails_at_any_place_leaves_what_was_there(tmp_path, without_a_child, monkeypatch):
    for name, seed in (("x", 0), ("y", 1)):
        originals.save(tmp_path / f"{name}.pth", {"epoch": 1, "model": originals.state_dict("er_nerf", seed, rows=16)})
    workdir = tmp_path / "W"
    run(source=tmp_path / "x.pth", workdir=workdir)
    before = contents(workdir)
    assert {"config.json", "run.json", "avatar/avatar.json", "import/import.json"} <= before.keys()
    rename, renamed = importing.os.rename, []

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    def the_seventh(a, b):
        renamed.append(b)
        if len(renamed) == 7:
            full()
        rename(a, b)

    places = [
        (importing.source, "read", full),
        (bundle, "save", full),
        (config, "write", full),
        (importing, "write_atomic", full),
        (importing, "update_facts", full),
        (files.os, "rename", the_seventh),
    ]
    for module, name, fail in places:
        with monkeypatch.context() as m:
            m.setattr(module, name, fail)
            with pytest.raises((OSError, UserError)):
                run(source=tmp_path / "y.pth", workdir=workdir)
        assert contents(workdir) == before, name
    run(source=tmp_path / "y.pth", workdir=workdir)
    after = contents(workdir)
    assert after["avatar/avatar.json"] != before["avatar/avatar.json"]
    assert not [p for p in workdir.iterdir() if p.name.startswith(".import")]
    with pytest.raises(UserError):
        run(source=tmp_path / "nothing.pth", workdir=workdir)
    assert contents(workdir) == after


def test_a_training_run_that_begins_meanwhile_is_seen(tmp_path, monkeypatch):
    """The look into the workdir happens once nobody else can train in it."""
    workdir = tmp_path / "W"
    (tmp_path / "x.pth").write_bytes(b"x")

    @contextlib.contextmanager
    def alone(path):
        (path / "checkpoints").mkdir(parents=True)
        (path / "checkpoints" / "run.json").write_text("{}")
        yield

    monkeypatch.setattr(importing.lock, "alone", alone)
    with pytest.raises(UserError, match="holds a training run"):
        run(source=tmp_path / "x.pth", workdir=workdir)
    assert checkpoint.latest_step(workdir, "head") is None
