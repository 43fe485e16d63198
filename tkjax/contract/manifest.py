"""The manifest: its bytes, its digest, and what each of its fields must be."""

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from tkjax.contract.refusal import ContractError, refuse, short
from tkjax.contract.spec import (
    BACKGROUND,
    CONVENTIONS,
    EXTRA_DTYPES,
    FILE_NAME,
    FIXED_NAMES,
    FPS,
    LANDMARK_SCHEMES,
    MINOR,
    PICTURES,
    REQUIRED_MEMBERS,
    SHA256,
    SHARD_FRAMES,
    SHARD_NAME,
    VERSION,
    Layout,
    audio_kind,
    offsets_of,
)
from tkjax.host import stored
from tkjax.signals import SignalInfo

PIXELS_MOST = 1e7  # a focal length of a hundred times the widest picture
_KEYS = {
    "version", "subject", "fps", "n_frames", "height", "width", "camera", "conventions", "split", "landmark_scheme",
    "expression_names", "range_min", "range_max", "source", "audio", "files", "shards", "members", "tools",
    "licences", "digest",
}  # fmt: skip
# what preprocessing measured of its own result; the minor version and what drives a head: older datasets have none
_OPTIONAL = {"checks", "minor", "signals"}
SIGNAL_FIELDS = tuple(f.name for f in dataclasses.fields(SignalInfo))
VERDICTS = ("good", "warn", "fail")


def dump_manifest(manifest: Mapping[str, Any]) -> bytes:
    """The manifest's bytes with its digest filled in: sha256 of these bytes with the digest field empty."""
    text = json.dumps({**manifest, "digest": ""}, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"
    digest = hashlib.sha256(text.encode()).hexdigest()
    head, tail = text.split('\n "digest": ""', 1)
    return f'{head}\n "digest": "{digest}"{tail}'.encode()


def parse_manifest(raw: bytes, where: Any) -> dict[str, Any]:
    """Manifest bytes -> checked manifest: json, version, digest, then every field."""
    try:
        m = stored.parse(raw)
    except stored.BadJson as e:
        raise ContractError(f"{where}: member list is not valid json ({short(e)}), expected a dataset manifest") from e
    if not isinstance(m, dict):
        raise ContractError(f"{where}: member list is a json {type(m).__name__}, expected an object")
    if "version" not in m:
        raise refuse(where, "version", "is missing", str(VERSION))
    if type(m["version"]) is not int or m["version"] != VERSION:
        raise refuse(where, "version", f"is {m['version']!r}", f"{VERSION}, the one that this program reads")
    digest = m.get("digest")
    if not (isinstance(digest, str) and SHA256.fullmatch(digest)):
        raise refuse(where, "digest", "is missing or not 64 hexadecimal digits", "the manifest's own sha256")
    if hashlib.sha256(raw.replace(digest.encode(), b"")).hexdigest() != digest:
        raise refuse(where, "digest", "does not match the content", "an unchanged manifest")
    check_manifest(m, where)
    return m


def _is_int(x: Any, low: int, high: int = 2**31 - 1) -> bool:
    return type(x) is int and low <= x <= high


def _is_number(x: Any) -> bool:
    return type(x) in (int, float) and math.isfinite(x)


def check_manifest(m: dict[str, Any], where: Any) -> None:
    """Every field of a manifest, its digest aside."""

    def require(member: str, good: bool, expected: str) -> None:
        if not good:
            shown = json.dumps(m[member.split(".")[0]])
            raise refuse(where, member, f"is {shown}" if len(shown) < 80 else "is wrong", expected)

    minor = m.get("minor", 0)
    if not _is_int(minor, 0) or minor > MINOR:
        raise refuse(where, "minor", f"is {str(minor)[:40]!r}", f"0..{MINOR}, those that this program reads")
    if ("signals" in m) != (minor >= 1):
        raise refuse(where, "signals", "does not fit the minor version", "signals from minor version 1 on")
    for key in sorted(_KEYS - set(m)):
        raise refuse(where, key, "is missing", f"all fields of version {VERSION}")
    for key in sorted(set(m) - _KEYS - _OPTIONAL):
        raise refuse(where, key, "is unknown", f"only the fields of version {VERSION}")
    require("subject", isinstance(m["subject"], str) and bool(m["subject"]), "a name")
    require("fps", _is_number(m["fps"]) and m["fps"] == FPS, f"{FPS:g} frames a second")
    require("n_frames", _is_int(m["n_frames"], 1), "an integer of at least 1")
    require("height", _is_int(m["height"], 1, 65535), "an integer in 1..65535")
    require("width", _is_int(m["width"], 1, 65535), "an integer in 1..65535")
    c = m["camera"]
    good = isinstance(c, dict) and set(c) == {"fx", "fy", "cx", "cy"} and all(map(_is_number, c.values()))
    good = good and c["fx"] > 0 and c["fy"] > 0 and max(map(abs, c.values())) <= PIXELS_MOST
    expected = f"fx, fy, cx, cy in pixels, at most {PIXELS_MOST:.0e}, with positive fx, fy"
    require("camera", good, expected)
    require("conventions", m["conventions"] == CONVENTIONS, f"the conventions of version {VERSION}")
    require(
        "landmark_scheme",
        isinstance(m["landmark_scheme"], str) and m["landmark_scheme"] in LANDMARK_SCHEMES,
        f"one of {', '.join(LANDMARK_SCHEMES)}",
    )
    names = m["expression_names"]
    good = isinstance(names, list) and all(isinstance(x, str) for x in names) and len(set(names)) == len(names)
    require("expression_names", good, "a list of different names")
    legal = minor == 0 or all(0 < len(x) <= 200 and x.isprintable() for x in names)
    require("expression_names", legal, "names of 1 to 200 printable characters")
    for key in ("range_min", "range_max"):
        good = isinstance(m[key], list) and len(m[key]) == len(names) and all(map(_is_number, m[key]))
        require(key, good, f"{len(names)} finite numbers")
    for key in ("source", "tools", "licences", "audio"):
        require(key, isinstance(m[key], dict), "a json object")
    _check_source(m["source"], where)
    files = m["files"]
    require("files", isinstance(files, dict), "a json object from file name to sha256")
    for name, sha in files.items():
        if not (SHARD_NAME.fullmatch(name) or FILE_NAME.fullmatch(name)):
            raise refuse(where, "files", f"names {name!r}", f"only shards, {FIXED_NAMES}")
        if not (isinstance(sha, str) and SHA256.fullmatch(sha)):
            raise refuse(where, "files", f"gives no sha256 for {name}", "64 hexadecimal digits")
    if BACKGROUND not in files:
        raise refuse(where, "files", f"does not name {BACKGROUND}", "the background plate")
    kinds = {audio_kind(name) for name in files} - {None}
    require("audio", set(m["audio"]) == kinds, f"one entry for each audio_<kind>.npz, {sorted(kinds)}")
    for kind, facts in m["audio"].items():
        good = isinstance(facts, dict) and all(_is_int(facts.get(k), 1) for k in ("steps", "channels"))
        require("audio", good, f"a json object with steps and channels of {kind}")
    _check_shards(m, where)
    check_split(m["split"], m["n_frames"], where)
    _check_members(m["members"], where, m)
    _check_checks(m.get("checks", []), where)
    _check_signals(m.get("signals", {}), where)


def is_colour(x: Any) -> bool:
    """[r, g, b], whole numbers in 0..255."""
    return isinstance(x, list | tuple) and len(x) == 3 and all(_is_int(v, 0, 255) for v in x)


def is_size(x: Any) -> bool:
    """[width, height] of a picture."""
    return isinstance(x, list | tuple) and len(x) == 2 and all(_is_int(v, 1, 65535) for v in x)


def is_box(x: Any, size: Any) -> bool:
    """[x0, y0, x1, y1], half open, inside a picture of size [width, height], or of any size where that is None."""
    w, h = size or (65535, 65535)
    if not (isinstance(x, list | tuple) and len(x) == 4 and all(_is_int(v, 0, 65535) for v in x)):
        return False
    return x[0] < x[2] <= w and x[1] < x[3] <= h


def _check_source(source: dict[str, Any], where: Any) -> None:
    """What the contract says of `source`: the crop, the whole picture, the colour behind a keyed person, the
    sound's offset."""
    size, box, colour, late = (source.get(k) for k in ("full_size", "crop_px", "background_trt", "av_offset_ms"))
    for key, value, good, expected in (
        ("full_size", size, size is None or is_size(size), "[width, height] in pixels"),
        ("crop_px", box, box is None or is_box(box, size if is_size(size) else None), "[x0, y0, x1, y1] in full_size"),
        ("background_trt", colour, colour is None or is_colour(colour), "[r, g, b], whole numbers in 0..255"),
        ("av_offset_ms", late, late is None or _is_number(late), "a finite number of milliseconds"),
    ):
        if not good:
            raise refuse(where, f"source.{key}", f"is {json.dumps(value)[:80]}", expected)


def check_split(split: Any, n: int, where: Any) -> None:
    """Disjoint ranges in 0..n, some training frame among them."""

    def is_range(r: Any) -> bool:
        return isinstance(r, list) and len(r) == 2 and all(_is_int(x, 0, n) for x in r) and r[0] <= r[1]

    good = isinstance(split, dict) and set(split) == {"train", "heldout"} and all(map(is_range, split.values()))
    if good:
        (a, b), (c, d) = split["train"], split["heldout"]
        good = a < b and (c == d or b <= c or d <= a)
    if not good:
        expected = f"disjoint ranges train and heldout in 0..{n}, train not empty"
        raise refuse(where, "split", f"is {json.dumps(split)[:80]}", expected)


def _check_checks(checks: Any, where: Any) -> None:
    """Each {stage, measure, value, bound, verdict}, perhaps with a message and `accepted` (a failure overridden)."""
    if not isinstance(checks, list):
        raise refuse(where, "checks", f"is a json {type(checks).__name__}", "a list of measures with their verdicts")
    kinds = {
        "stage": lambda x: isinstance(x, str) and bool(x),
        "measure": lambda x: isinstance(x, str) and bool(x),
        "value": lambda x: x is None or isinstance(x, str) or _is_number(x),
        "bound": lambda x: isinstance(x, str) or _is_number(x),
        "verdict": lambda x: isinstance(x, str) and x in VERDICTS,
    }
    extra = {"message": lambda x: isinstance(x, str), "accepted": lambda x: isinstance(x, bool)}
    expected = f"stage, measure, value, bound (number or text) and verdict ({', '.join(VERDICTS)})"
    for i, row in enumerate(checks):
        known = isinstance(row, dict) and set(kinds) <= set(row) <= set(kinds) | set(extra)
        if not known or not all({**kinds, **extra}[k](v) for k, v in row.items()):
            raise refuse(where, "checks", f"has a broken entry {i}", expected)


def _check_signals(signals: Any, where: Any) -> None:
    """Each signal's name, channels and their names, rate, window, range and source."""
    if not isinstance(signals, dict):
        raise refuse(where, "signals", f"is a json {type(signals).__name__}", "an object from name to facts")
    for key, entry in signals.items():
        complaint = bad_signal(entry, ("right",))
        if not complaint and entry["right"] != entry["window"] - entry["left"] - 1:
            complaint = "right is not window - left - 1"
        if complaint:
            raise refuse(where, f"signals.{key[:40]}", "is broken", complaint)


def bad_signal(entry: Any, more: tuple[str, ...] = ()) -> str:
    """What is wrong with a stored `SignalInfo`, "" for nothing. more: further fields that are whole numbers."""
    numbers = ("channels", "window", "hop", "left", *more)
    if not isinstance(entry, dict) or set(entry) != {*SIGNAL_FIELDS, *more}:
        return f"the fields {', '.join((*SIGNAL_FIELDS, *more))}"
    for field in ("name", "kind", "source"):
        if not (isinstance(entry[field], str) and len(entry[field]) <= 1000 and entry[field].isprintable()):
            return f"{field} is no text"
    low = {"channels": 1, "window": 1, "hop": 1}
    for field in numbers:
        if not _is_int(entry[field], low.get(field, -10_000), 65535):
            return f"{field} is {str(entry[field])[:40]!r}, expected a whole number of at least {low.get(field, 0)}"
    if entry["window"] > 10_000 or not 0 <= entry["left"] <= entry["window"]:
        return "window is at most 10000 steps and left within it"
    if not (_is_number(entry["rate_hz"]) and 0 <= entry["rate_hz"] <= 1e6 and _is_number(entry["start_s"])):
        return "rate_hz and start_s are finite numbers"
    names = entry["names"]
    if not (isinstance(names, list) and all(map(_is_name, names))):
        return "names is a list of 1 to 200 printable characters each"
    if names and (len(names) != entry["channels"] or len(set(names)) != len(names)):
        return f"names has {len(names)} of {entry['channels']} channels, each with its own"
    for field in ("low", "high"):
        values = entry[field]
        good = isinstance(values, list) and len(values) in (0, entry["channels"]) and all(map(_is_number, values))
        if not good:
            return f"{field} is a list of {entry['channels']} finite numbers, or empty"
    if len(entry["low"]) != len(entry["high"]) or any(a > b for a, b in zip(entry["low"], entry["high"], strict=True)):
        return "low is at most high, channel by channel"
    return ""


def _is_name(x: Any) -> bool:
    return isinstance(x, str) and 0 < len(x) <= 200 and x.isprintable()


def _check_shards(m: dict[str, Any], where: Any) -> None:
    shards, files = m["shards"], m["files"]
    if not isinstance(shards, list) or not shards:
        raise refuse(where, "shards", "is not a list of shards", "at least one shard")
    first = 0
    for i, s in enumerate(shards):
        if not (isinstance(s, dict) and set(s) == {"file", "first", "count"} and isinstance(s["file"], str)):
            raise refuse(where, "shards", f"has a broken entry {i}", "file, first and count")
        name = SHARD_NAME.fullmatch(s["file"])
        if not name or int(name[1]) != i or s["file"] not in files or files[s["file"]][:8] != name[2]:
            expected = f"shard-{i:05d}-<first 8 digits of its sha256>.npz, listed in files"
            raise refuse(where, "shards", f"names {s['file']!r} as number {i}", expected)
        if s["first"] != first or not _is_int(s["count"], 1, SHARD_FRAMES):
            raise refuse(where, "shards", f"gives {s['file']} first {s['first']} and count {s['count']}",
                          f"first {first} and a count in 1..{SHARD_FRAMES}")  # fmt: skip
        first += s["count"]
    if first != m["n_frames"]:
        raise refuse(where, "n_frames", f"is {m['n_frames']}", f"the {first} frames of the shards")
    unused = {f for f in files if SHARD_NAME.fullmatch(f)} - {s["file"] for s in shards}
    if unused:
        raise refuse(where, "files", f"names {min(unused)}", "only shards that are in the list of shards")


def _check_members(members: Any, where: Any, m: dict[str, Any]) -> None:
    if not isinstance(members, dict):
        raise refuse(where, "members", "is not a json object", "dtype and shape of every member")
    extra = {}
    for name, spec in members.items():
        if not (isinstance(spec, dict) and set(spec) == {"dtype", "shape"} and isinstance(spec["shape"], list)):
            raise refuse(where, "members", f"has a broken entry for {name}", "dtype and shape")
        if name.startswith("x_"):
            extra[name] = check_extra(where, name, spec["dtype"], spec["shape"][1:])
            if spec["shape"][:1] != ["n"]:
                raise refuse(where, "members", f"gives {name} the shape {spec['shape']}", "n as its first axis")
    layout = Layout(m["height"], m["width"], m["landmark_scheme"], len(m["expression_names"]), extra)
    for name in REQUIRED_MEMBERS:
        if name not in members:
            raise refuse(where, "members", f"does not list {name}", f"every required member of version {VERSION}")
    for name, spec in members.items():
        if not layout.known(name):
            raise refuse(where, "members", f"lists the unknown {name}", "known members, or x_<name>")
        dtype, shape = layout.spec(name)
        if spec != {"dtype": dtype, "shape": list(shape)}:
            raise refuse(where, "members", f"says {spec} for {name}", f"dtype {dtype} and shape {list(shape)}")
    for name in PICTURES:
        if (name in members) != (offsets_of(name) in members):
            raise refuse(where, "members", f"lists only one of {name} and {offsets_of(name)}", "both or neither")


def check_extra(where: Any, name: str, dtype: Any, shape: Any) -> tuple[str, tuple[int, ...]]:
    """(dtype, shape behind the frame axis) of a declared extra member."""
    if not re.fullmatch(r"x_[A-Za-z0-9_]+", name):
        raise refuse(where, str(name), "is not a legal name of an extra member", "x_<letters, digits, underscores>")
    try:
        dtype = np.dtype(dtype).name
    except (TypeError, ValueError, SyntaxError, OverflowError, KeyError):
        dtype = str(dtype)[:40]
    if dtype not in EXTRA_DTYPES:
        raise refuse(where, name, f"is declared with dtype {dtype}", f"one of {', '.join(EXTRA_DTYPES)}")
    shape = tuple(shape)
    if not all(_is_int(s, 1) for s in shape):
        raise refuse(where, name, f"is declared with shape {shape}", "positive integers behind the frame axis")
    return dtype, shape
