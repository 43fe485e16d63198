"""avatar.json: its bytes, its digest, and what each of its fields and files must be.

An avatar may be a stranger's, with a digest that fits whatever it says. So every field is checked before it is used:
names of files are plain names in the avatar's folder, pictures and arrays have the sizes that `info` and `n_track`
say, and what must agree agrees. Every refusal is a sentence with file, field and expectation.
"""

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tkjax.contract import FPS, SHARD_FRAMES
from tkjax.contract.manifest import bad_signal, is_box, is_colour, is_size
from tkjax.errors import UserError
from tkjax.host import stored
from tkjax.media.audio import LEVELLED
from tkjax.signals import EXPRESSION, SOUND
from tkjax.types import SubjectInfo

META, CONSENT = "avatar.json", "consent.json"
FORMAT = 3
READABLE = (1, 2, 3)
TRACK_FRAMES = SHARD_FRAMES  # frames in one track file
REMEDY = "train or copy the avatar again"
# stem of a file -> its suffix
NAMES = {"params": ".npz", "background": ".png", "full": ".mp4", "full_alpha": ".mp4", "voice": ".npz"}
FIXED = ("format", "system", "config", "info", "step", "background", "fps", "first_frame", "n_track", "audio",
         "consent", "files", "id")  # fmt: skip
SINCE_2 = ("stages", "n_train", "heldout_first", "full", "background_trt")
OF_SOUND = ("rate_hz", "extractor", "window", "hop", "left", "pad", "channels")  # beside `kind`
_SHA256, _ID, _KIND = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{16}"), re.compile(r"[A-Za-z0-9_-]{1,80}")
_SIGNAL = re.compile(r"[A-Za-z0-9_-]{1,200}")
_FRAMES, _SIDE, _WIDE = 2**31 - 1, 65535, 10_000  # frames, pixels of a side; steps or channels of sound
# what `info` said of signals before format 3, with bounds
BEFORE_3 = {"audio_kind": None, "audio_channels": (1, _SIDE), "audio_steps": (1, _WIDE), "audio_windows": (1, 1000),
            "n_expression": (0, _WIDE)}  # fmt: skip
_PIXELS = 1 << 28  # of a picture, as in `images`


def json_digest(meta: Mapping[str, Any]) -> str:
    """sha256 of the content with an empty digest."""
    return hashlib.sha256(json.dumps({**meta, "digest": ""}, sort_keys=True).encode()).hexdigest()


def dump(meta: Mapping[str, Any]) -> bytes:
    """The bytes of avatar.json, and of consent.json."""
    return (json.dumps(meta, indent=2) + "\n").encode()


def read(folder: Path) -> dict[str, Any]:
    """avatar.json, whole and checked in every field."""
    path = folder / META
    if not path.is_file():
        raise UserError(f"{folder} holds no avatar ({META} is missing); train one with --mode=fit or --mode=train")
    raw = stored.read_bytes(path, REMEDY)
    meta = stored.json_object(raw, path, REMEDY)
    if meta.get("digest") != json_digest(meta) or raw != dump(meta):
        raise UserError(f"{path} is damaged (its digest does not match); {REMEDY}")
    version = meta.get("format")
    if type(version) is not int or version not in READABLE:
        raise UserError(f"{path} has format {str(version)[:20]}; this version reads up to {FORMAT}, so train it again")
    check(meta, path)
    return meta


def entries(files: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What avatar.json says of each file: name, sha256, bytes (not in older ones)."""
    return [*(files[name] for name in NAMES if name in files), *files["track"]]


# ---------------------------------------------------------------- fields


def _int(x: Any, low: int, high: int) -> bool:
    return type(x) is int and low <= x <= high


def _number(x: Any, low: float | int, high: float | int) -> bool:
    return type(x) in (int, float) and low <= x <= high


class _Fields:
    """A json object whose fields are demanded one by one."""

    def __init__(self, data: Any, path: Path, prefix: str = ""):
        self.data, self.path, self.prefix = data, path, prefix
        if not isinstance(data, dict):
            raise UserError(f"{path}: {prefix.rstrip('.')} is wrong, expected a json object; {REMEDY}")

    def need(self, name: str, good: bool, expected: str) -> None:
        """Refuse a field that is there and wrong."""
        if not good:
            shown = json.dumps(self.data.get(name))
            found = f"is {shown}" if len(shown) < 80 else "is wrong"
            raise UserError(f"{self.path}: {self.prefix}{name} {found}, expected {expected}; {REMEDY}")

    def present(self, *names: str) -> None:
        for name in names:
            if name not in self.data:
                raise UserError(f"{self.path}: {self.prefix}{name} is missing; {REMEDY}")


def check(meta: dict[str, Any], path: Path) -> None:
    """Every field of avatar.json, the settings in `config` aside (`config.completed` checks those)."""
    top = _Fields(meta, path)
    top.present(*FIXED, *(SINCE_2 if meta["format"] >= 2 else ()))
    config = meta["config"]
    top.need("config", isinstance(config, dict) and isinstance(config.get("system"), str), "settings with a system")
    top.need("system", meta["system"] == config["system"], f"that of config, {config['system'][:80]!r}")
    check_info(meta["info"], path, meta["format"])
    top.need("id", isinstance(meta["id"], str) and bool(_ID.fullmatch(meta["id"])), "16 hexadecimal digits")
    top.need("step", _int(meta["step"], 0, _FRAMES), "a number of steps")
    top.need("background", meta["background"] in ("torso", "plate"), "torso or plate")
    top.need("fps", _number(meta["fps"], 1, 240), "frames a second in 1..240")
    _check_frames(top, meta["info"]["n_frames"])
    colour = meta.get("background_trt")
    top.need("background_trt", colour is None or is_colour(colour), "null or [r, g, b] in 0..255")
    if "stages" in meta:
        names = meta["stages"]
        good = isinstance(names, list) and names and all(isinstance(n, str) for n in names)
        top.need("stages", bool(good) and len(set(names)) == len(names), "the names of finished stages")
    check_sound(meta["audio"], SubjectInfo.from_json(meta["info"]), path)
    _check_consent(meta["consent"], path)
    _check_files(top)
    _check_voice(top)
    _check_full(top)


def check_info(info: Any, path: Path, version: int = FORMAT) -> None:
    """The facts that the model's shapes depend on."""
    f = _Fields(info, path, "info.")
    names = [field.name for field in dataclasses.fields(SubjectInfo)]
    if version < 3:
        names = [*names[:-1], *BEFORE_3]
    f.present(*names)
    for name in sorted(set(info) - set(names)):
        f.need(name, False, "only what a subject has")
    limits = {"n_frames": (1, _FRAMES), "height": (1, _SIDE), "width": (1, _SIDE)} | (BEFORE_3 if version < 3 else {})
    limits.pop("audio_kind", None)
    for name, (low, high) in limits.items():
        f.need(name, _int(info[name], low, high), f"a whole number in {low}..{high}")
    f.need("height", info["height"] * info["width"] <= _PIXELS, f"a picture of at most {_PIXELS} pixels")
    if version < 3:
        f.need("audio_kind", _is_kind(info["audio_kind"]), "letters, digits, hyphens and underscores")
    else:
        _check_signals(f)
    k = info["intrinsics"]
    good = isinstance(k, list) and len(k) == 4 and all(_number(v, -1e7, 1e7) for v in k) and min(k[:2]) > 0
    f.need("intrinsics", good, "fx, fy, cx, cy in pixels, at most 1e7, with positive fx, fy")


def _check_signals(f: _Fields) -> None:
    """What the avatar says of the signals that may drive it."""
    entries = f.data["signals"]
    f.need("signals", isinstance(entries, list) and len(entries) <= 1000, "a list of signals")
    for i, entry in enumerate(entries):
        complaint = bad_signal(entry)
        if not complaint and not _SIGNAL.fullmatch(entry["name"]):
            complaint = "name is made of letters, digits, hyphens and underscores"
        if not complaint and entry["name"] == SOUND and not _is_kind(entry["kind"]):
            complaint = "kind is made of letters, digits, hyphens and underscores"
        one_step = (entry["window"], entry["hop"], entry["left"]) == (1, 1, 0) if not complaint else True
        if not complaint and entry["name"] != SOUND and not one_step:
            complaint = "only sound has windows of its own"
        if not complaint and entry["name"] in ("eye_closed", "eye_area") and entry["channels"] != 1:
            complaint = "eyes have one channel"
        f.need("signals", not complaint, f"signal {i} described: {complaint}")
    names = [entry["name"] for entry in entries]
    f.need("signals", len(set(names)) == len(names), "each signal once")
    f.need("signals", {"eye_closed", "eye_area"} <= set(names), "eye_closed and eye_area among them")


def _is_kind(x: Any) -> bool:
    return isinstance(x, str) and bool(_KIND.fullmatch(x))


def _check_frames(top: _Fields, n_frames: int) -> None:
    """Which frames of the dataset the track holds: training first, then held out."""
    meta = top.data
    first, n, held = meta["first_frame"], meta["n_track"], meta.get("heldout_first")
    top.need("n_track", _int(n, 1, n_frames), f"1..{n_frames} frames")
    train = meta.get("n_train", n)
    top.need("n_train", _int(train, 1, n), f"1..{n} of the track's frames")
    top.need("first_frame", _int(first, 0, n_frames - train), f"0..{n_frames - train}, so that it lies in the clip")
    rest = n - train
    data = meta["config"].get("data")
    if rest and isinstance(data, dict) and data.get("split") == "blocks":  # which lie among the training frames
        top.need("first_frame", first + n <= n_frames, f"0..{n_frames - n}, so that the track lies in the clip")
    if rest:
        top.need("heldout_first", _int(held, 0, n_frames - rest), f"0..{n_frames - rest}, so that it lies in the clip")
    else:
        top.need("heldout_first", held is None, "null, as the track has no held-out frames")


def check_sound(sound: Any, info: SubjectInfo, path: Path) -> None:
    """How the training sound is described; all of it, its kind alone (an avatar that nobody made speak), or null where
    the clip had none."""
    if sound is None and not info.has(SOUND):
        return
    f = _Fields(sound, path, "audio.")
    f.present("kind")
    if not info.has(SOUND):
        f.need("kind", False, "no sound, as in info")
    heard = info.signal(SOUND)
    f.need("kind", sound["kind"] == heard.kind, f"{heard.kind}, as in info")
    if set(sound) == {"kind"}:
        return
    f.present(*OF_SOUND)
    f.need("rate_hz", _number(sound["rate_hz"], 1e-3, 1e6), "steps a second, at most 1e6")
    name = sound["extractor"]
    f.need("extractor", isinstance(name, str) and 0 < len(name) <= 1000 and name.isprintable(), "a name")
    f.need("window", sound["window"] == heard.window, f"{heard.window}, as in info")
    f.need("channels", sound["channels"] == heard.channels, f"{heard.channels}, as in info")
    f.need("hop", _int(sound["hop"], 1, _WIDE), f"1..{_WIDE} steps")
    for key in ("left", "pad"):
        f.need(key, _int(sound[key], 0, heard.window), f"0..{heard.window} steps")


def _check_consent(consent: Any, path: Path) -> None:
    f = _Fields(consent, path, "consent.")
    for name, kind, expected in (
        ("statement", str, "null or a sentence"), ("asked", bool, "true or false"), ("reason", str, "a sentence"),
    ):  # fmt: skip
        f.need(name, consent.get(name) is None or type(consent[name]) is kind, expected)


# ---------------------------------------------------------------- files


def _check_files(top: _Fields) -> None:
    """Which files there are, under which names."""
    files = _Fields(top.data["files"], top.path, "files.")
    files.present("params", "background", "track")
    for name in files.data:
        files.need(name, name in NAMES or name == "track", "only params, background, track, full, full_alpha and voice")
    for stem, suffix in NAMES.items():
        if stem in files.data:
            _check_entry(files.data[stem], top.path, f"files.{stem}.", stem, suffix)
    track = files.data["track"]
    n = -(-top.data["n_track"] // TRACK_FRAMES)
    files.need("track", isinstance(track, list) and len(track) == n, f"{n} files of {TRACK_FRAMES} frames each")
    for i, entry in enumerate(track):
        _check_entry(entry, top.path, f"files.track[{i}].", f"track-{i * TRACK_FRAMES:05d}", ".npz")


def _check_entry(entry: Any, path: Path, prefix: str, stem: str, suffix: str) -> None:
    f = _Fields(entry, path, prefix)
    f.present("name", "sha256")
    good = isinstance(entry["name"], str) and re.fullmatch(f"{stem}-[0-9a-f]{{8}}\\{suffix}", entry["name"], re.ASCII)
    f.need("name", bool(good), f"{stem}-<8 hexadecimal digits>{suffix}")
    sha = entry["sha256"]
    f.need("sha256", isinstance(sha, str) and bool(_SHA256.fullmatch(sha)), "64 hexadecimal digits")
    f.need("bytes", "bytes" not in entry or _int(entry["bytes"], 0, 2**62), "the file's size")


def _check_full(top: _Fields) -> None:
    """The whole source frames: their facts, their files, and the colour behind a person who was cut out."""
    full, files = top.data.get("full"), top.data["files"]
    top.need(
        "files", ("full" in files) == (full is not None), "a video `full` exactly where whole frames are described"
    )
    top.need("files", full is not None or "full_alpha" not in files, "a matte only where there are whole frames")
    if full is None:
        return
    f = _Fields(full, top.path, "full.")
    f.present("size", "box", "straight", "source")
    good = is_size(full["size"]) and math.prod(full["size"]) <= _PIXELS
    f.need("size", good, f"[width, height] of at most {_PIXELS} pixels")
    f.need("box", is_box(full["box"], full["size"]), f"[x0, y0, x1, y1] in {full['size'][0]}x{full['size'][1]}")
    f.need("straight", type(full["straight"]) is bool, "true or false")
    f.need("source", isinstance(full["source"], str), "the digest of a dataset")
    if full["straight"]:
        top.need("background_trt", top.data.get("background_trt") is not None, "[r, g, b], as the person was cut out")
        top.need("files", "full_alpha" in files, "a matte `full_alpha`, as the person was cut out")


def _check_voice(top: _Fields) -> None:
    """The speech network: which coefficients it gives, how wide it is, and what sound features it hears."""
    voice, info = top.data.get("voice"), SubjectInfo.from_json(top.data["info"])
    top.need("files", ("voice" in top.data["files"]) == (voice is not None), "a `voice` exactly where one is described")
    if voice is None:
        return
    f = _Fields(voice, top.path, "voice.")
    f.present("columns", "width", "extractor")
    channels = info.signal(EXPRESSION).channels if info.has(EXPRESSION) else 0
    columns = voice["columns"]
    good = isinstance(columns, list) and columns and all(_int(k, 0, channels - 1) for k in columns)
    good = bool(good) and len(set(columns)) == len(columns)
    f.need("columns", good, f"some of the {channels} channels of expression")
    f.need("width", _int(voice["width"], 1, 4096), "1..4096 channels")
    f.need("extractor", voice["extractor"] == LEVELLED, LEVELLED)
    top.need("fps", top.data["fps"] == FPS, f"{FPS:g}, as there is a voice")


def check_file(folder: Path, entry: Mapping[str, Any], sized: bool) -> None:
    """A file of the avatar against its entry: there, plain, of its size (where sized and known) and of its sha256."""
    path = folder / entry["name"]
    try:
        with stored.open_plain(folder, entry["name"]) as file:
            if sized and "bytes" in entry and file.seek(0, 2) != entry["bytes"]:
                raise UserError(f"{path} is damaged (it has {file.tell()} bytes, not {entry['bytes']}); {REMEDY}")
            file.seek(0)
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing from the avatar; train or copy it again") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); {REMEDY}") from error
    if found != entry["sha256"]:
        raise UserError(f"{path} is damaged (its sha256 does not match); {REMEDY}")


def check_consent_file(folder: Path, meta: Mapping[str, Any]) -> None:
    """consent.json must say what avatar.json says under its digest, to the byte.

    A save that was killed between the two leaves the new record beside it, under its own hash-named name.
    """
    wanted = dump(meta["consent"])
    for name in (CONSENT, consent_name(wanted)):
        try:
            with stored.open_plain(folder, name) as file:
                if file.read(len(wanted) + 1) == wanted:
                    return
        except FileNotFoundError:
            continue
        except OSError as error:
            raise UserError(f"{folder / name} cannot be read ({error.strerror or error}); {REMEDY}") from error
    raise UserError(
        f"{folder / CONSENT} is missing or was changed, expected the consent that {META} holds under its digest; "
        f"{REMEDY}"
    )


def consent_name(data: bytes) -> str:
    """The name under which a consent record waits for its avatar.json."""
    return f"consent-{hashlib.sha256(data).hexdigest()[:8]}.json"
