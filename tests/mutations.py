"""What strangers may do to the folder of an avatar or of a dataset: random changes, with digests that fit or not."""

import hashlib
import io
import json
import os
from pathlib import Path

import numpy as np

from tkjax.avatar import avatar_json
from tkjax.media import images

VALUES = (
    *(None, True, -1, 0, 1, 10**30, 1.5, 1e300, float("nan"), float("inf"), "x", "", "../x", "/etc/passwd", "\ud800"),
    *("a" * 100_000, "tests.payload", [], [[]], {}, {"a": 1}, [1, 2], [-5, 3, 2], [999, 0, 0], ["a", None]),
)


def outside(folder: Path) -> Path:
    """Where the same files lie outside a folder that is mutated."""
    return folder.parents[1] / "outside" / folder.name


def some_file(rng, folder: Path) -> Path:
    return rng.choice(sorted(p for p in folder.rglob("*") if p.is_file()))


def flip(rng, folder):
    path = some_file(rng, folder)
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= rng.randrange(1, 256)
    path.write_bytes(data)


def cut(rng, folder):
    path = some_file(rng, folder)
    data = path.read_bytes()
    path.write_bytes(data[: rng.randrange(len(data))])


def append(rng, folder):
    path = some_file(rng, folder)
    path.write_bytes(path.read_bytes() + rng.randbytes(rng.choice((1, 100))))


def sparse(rng, folder):
    path = rng.choice(sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix in (".npz", ".png", ".json")))
    os.truncate(path, 1 << 36)


def remove(rng, folder):
    some_file(rng, folder).unlink()


def swap(rng, folder):
    a, b = some_file(rng, folder), some_file(rng, folder)
    one, other = a.read_bytes(), b.read_bytes()
    a.write_bytes(other)
    b.write_bytes(one)


def link(rng, folder):
    """The same content, but elsewhere."""
    path = some_file(rng, folder)
    path.unlink()
    path.symlink_to(outside(folder) / path.relative_to(folder))


def folder_or_pipe(rng, folder):
    path = some_file(rng, folder)
    path.unlink()
    rng.choice((os.mkfifo, os.mkdir))(path)


def other_encoding(rng, folder):
    path = rng.choice(sorted(folder.glob("*.json")))
    text = path.read_text()
    raw = text.encode()
    path.write_bytes(rng.choice((text.encode("utf-16"), b"\xef\xbb\xbf" + raw, b"\xff" + raw, b"")))


def deep(rng, folder):
    path = rng.choice(sorted(folder.glob("*.json")))
    n = rng.choice((200, 100_000))
    inner = rng.choice(("[" * n + "]" * n, '{"a":' * n + "1" + "}" * n, "[" * n))
    path.write_text(rng.choice((inner, path.read_text().replace("{", f'{{"deep": {inner}, ', 1))))


def twice(rng, folder):
    path = rng.choice(sorted(folder.glob("*.json")))
    path.write_text(path.read_text().replace("{", '{"format": 2, "version": 1, ', 1))


WITHOUT_DIGEST = (flip, cut, append, sparse, remove, swap, link, folder_or_pipe, other_encoding, deep, twice)


def places(node, path=()):
    """The path of every value in json."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


def edit_json(rng, meta: dict) -> None:
    """Remove, rename or replace one value anywhere."""
    *path, last = rng.choice([p for p in places(meta) if p[0] != "digest"])
    node = meta
    for key in path:
        node = node[key]
    how = rng.randrange(4)
    if how == 0:
        del node[last]
    elif how == 1 and isinstance(node, dict):
        node[str(last) + "x"] = node.pop(last)
    else:
        node[last] = rng.choice(VALUES)


def edit_png(rng, data: bytes) -> bytes:
    height, width = rng.choice(((24, 32), (12, 16), (1, 1), (300, 400)))
    shape = rng.choice(((height, width), (height, width, 3), (height, width, 4)))
    png = bytearray(rng.choice((data, images.encode_png(np.zeros(shape, np.uint8)))))
    if rng.random() < 0.5:  # a header that claims another size
        png[16:24] = rng.choice(((2**31 - 1), 65535, 33)).to_bytes(4, "big") * 2
    return bytes(png)


def edit_npz(rng, data: bytes) -> bytes:
    """One array changed, or the container."""
    with np.load(io.BytesIO(data)) as loaded:
        arrays = {name: loaded[name] for name in loaded.files}
    name = rng.choice(sorted(arrays))
    a, out, save = arrays[name], io.BytesIO(), np.savez
    kinds = (
        lambda: a[:-1] if a.ndim else a.reshape(1),
        lambda: np.append(a, a[-1:], 0) if a.ndim else a.reshape(1, 1),
        lambda: a.astype(rng.choice(["U4", "c8", "f8", "f2", "i8", "u1", ">f4", "S3", "bool"])),
        lambda: np.full(a.shape, np.nan, a.dtype) if a.dtype.kind == "f" else a + a.dtype.type(77),
        lambda: a * a.dtype.type(-3) if a.dtype.kind in "fi" else a,
        lambda: np.zeros((0, 10**6), a.dtype),
        lambda: np.array([{}], dtype=object),
        lambda: np.asfortranarray(np.broadcast_to(a[..., None], (*a.shape, 2))),
        lambda: None,
    )
    changed = rng.choice(kinds)()
    arrays = {k: v for k, v in {**arrays, name: changed}.items() if v is not None}
    how = rng.randrange(6)
    if how == 0:
        arrays[rng.choice(("surprise", "params/x", "../x", "x" * 300))] = np.zeros(3)
    elif how == 1:
        save = np.savez_compressed
    save(out, **arrays)
    raw = bytearray(out.getvalue())
    if how == 2:  # a header that claims another shape
        at = raw.find(b"'shape': (")
        raw[at + 10 : at + 12] = rng.choice((b"9,", b"-1", b"0,", b"((", b"1e"))
    elif how == 3:
        raw[rng.randrange(len(raw))] ^= rng.randrange(1, 256)
    elif how == 4:  # in the directory at the end
        raw[-rng.randrange(1, min(len(raw), 400))] ^= rng.randrange(1, 256)
    return bytes(raw)


def fresh_avatar(rng, folder: Path) -> None:
    """A change with hashes and digest that fit."""
    meta = json.loads((folder / "avatar.json").read_text())
    how = rng.randrange(5)
    if how == 0:
        edit_json(rng, meta)
    elif how == 1:
        edit_json(rng, meta[rng.choice(("files", "config", "info", "audio", "full", "consent", "voice"))])
    elif how == 2:  # a name that leads out, with the file there
        entry = rng.choice(avatar_json.entries(meta["files"]))
        name = entry["name"]
        names = (str(outside(folder) / name), f"../../outside/avatar/{name}", f"./{name}", "avatar.json", name.upper())
        entry["name"] = rng.choice((*names, f"{name}\x00", f"{name}\n"))
    else:
        files = meta["files"]
        entry = rng.choice([files["params"], files["voice"], files["background"], *files["track"]])
        data = (folder / entry["name"]).read_bytes()
        data = edit_png(rng, data) if entry["name"].endswith(".png") else edit_npz(rng, data)
        (folder / entry["name"]).write_bytes(data)
        entry |= {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    if how < 2 and rng.random() < 0.3:
        edit_json(rng, meta)
    meta["digest"] = ""
    try:
        meta["digest"] = avatar_json.json_digest(meta)
    except TypeError:
        pass
    (folder / "avatar.json").write_bytes(avatar_json.dump(meta))
    if isinstance(meta.get("consent"), dict):
        (folder / "consent.json").write_bytes(avatar_json.dump(meta["consent"]))


def dump_anything(m: dict) -> bytes:
    """As `contract.dump_manifest`, also with what it refuses to write."""
    text = json.dumps({**m, "digest": ""}, indent=1, sort_keys=True) + "\n"
    digest = hashlib.sha256(text.encode()).hexdigest()
    return text.replace('\n "digest": ""', f'\n "digest": "{digest}"', 1).encode()


def fresh_dataset(rng, folder: Path) -> None:
    """A change with hashes, names and digest that fit."""
    m = json.loads((folder / "manifest.json").read_text())
    how = rng.randrange(4)
    if how == 0:
        edit_json(rng, m)
    elif how == 1:
        edit_json(rng, m[rng.choice(("camera", "source", "split", "files", "audio", "members"))])
    else:
        name = rng.choice([n for n in m["files"] if n.endswith((".npz", ".png"))])
        data = (folder / name).read_bytes()
        data = edit_png(rng, data) if name.endswith(".png") else edit_npz(rng, data)
        new, sha = name, hashlib.sha256(data).hexdigest()
        if name.startswith("shard-"):
            new = f"{name[:11]}-{sha[:8]}.npz"
            next(s for s in m["shards"] if s["file"] == name)["file"] = new
        (folder / name).unlink()
        (folder / new).write_bytes(data)
        del m["files"][name]
        m["files"][new] = sha
    (folder / "manifest.json").write_bytes(dump_anything(m))
