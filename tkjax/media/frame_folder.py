"""A folder of PNG frames: it appears when it is complete, and replaces only a folder that this program wrote.

`frames.json` in the folder names every file with its size and sha256. A folder is replaced when that list is there,
every file in the folder is on it, and every one is still what was written; anything else in it belongs to somebody and
is a reason to refuse. What goes is removed file by file from the list.
"""

import contextlib
import hashlib
import io
import json
import re
import shutil
import stat
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, PngImagePlugin

from tkjax.errors import UserError
from tkjax.host.files import hidden, write_atomic, writing

MARK = "frames.json"
FORMAT = "tkjax-frames-1"
_NAME = re.compile(r"([a-z]+/)?[0-9]{6,}\.png")  # 000000.png, or depth/000000.png
_MARK_MAX = 64 << 20  # bytes; a list of a day's frames is smaller

Add = Callable[[str, UInt8[np.ndarray, "H W C"]], None]


@contextlib.contextmanager
def new(out: str | Path, facts: Mapping[str, Any], text: Mapping[str, str]) -> Iterator[Add]:
    """A function that adds a picture under a name (`000000.png`, `depth/000000.png`); the folder `out` when the block
    ends well, nothing after anything else. facts: for `frames.json`; text: for each file's text chunks.

    Raises:
      UserError: `out` cannot be written, or holds what `proven` refuses.
    """
    out = Path(out).resolve()
    chunks = PngImagePlugin.PngInfo()
    for key, value in text.items():
        chunks.add_itxt(key.capitalize(), value)
    files: dict[str, dict[str, Any]] = {}
    with writing(f"--out={out}"):
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))

        def add(name: str, picture: UInt8[np.ndarray, "H W C"]) -> None:
            data = io.BytesIO()
            Image.fromarray(picture).save(data, "PNG", pnginfo=chunks, compress_level=3)
            raw = data.getvalue()
            files[name] = {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
            path = partial / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(raw)

        try:
            yield add
            n = sum("/" not in name for name in files)
            content = {"format": FORMAT, "frames": n, **facts, **text, "files": files}
            write_atomic(partial / MARK, json.dumps(content, indent=1) + "\n")
            partial.chmod(0o755)
            _replace(partial, out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def proven(folder: Path, called: str | Path | None = None) -> list[str]:
    """Names of all files in a folder, if this program wrote every one and none has changed; none of an empty folder.

    Raises:
      UserError: one sentence with the first file that is somebody else's. called: the folder's name in it.
    """
    way = "name a new or empty folder"
    called = called or folder
    there = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))
    if not there:
        return []
    listed = _listed(folder / MARK)
    if listed is None:
        raise UserError(f"--out={called} is a folder with other files in it ({there[0]}); {way}")
    folders = {name.partition("/")[0] for name in listed if "/" in name}
    for name in there:
        mode = (folder / name).lstat().st_mode
        if name == MARK or (name in folders and stat.S_ISDIR(mode)):
            continue
        if name not in listed or not stat.S_ISREG(mode):
            raise UserError(f"--out={called} holds {name}, which was not rendered into it; {way}")
        raw = (folder / name).read_bytes()
        if {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()} != listed[name]:
            raise UserError(f"--out={called} holds {name}, which was changed after it was rendered; {way}")
    return [name for name in there if name == MARK or name in listed]


def _listed(mark: Path) -> dict[str, Any] | None:
    """The files that a mark names, None where it is not one of this program's."""
    try:
        if not stat.S_ISREG(mark.lstat().st_mode) or mark.stat().st_size > _MARK_MAX:
            return None
        content = json.loads(mark.read_bytes())
        listed = content["files"] if content["format"] == FORMAT else None
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        return None
    if not isinstance(listed, dict) or not all(_NAME.fullmatch(name) for name in listed):
        return None
    return listed


def _replace(partial: Path, out: Path) -> None:
    """Give a finished folder its name; a proven one that has it goes."""
    if not out.exists():
        partial.rename(out)
        return
    old = hidden(out, "old")
    out.rename(old)
    try:
        names = proven(old, out)  # once more: rendering took its time
        partial.rename(out)
    except BaseException:
        old.rename(out)
        raise
    try:
        for name in names:
            (old / name).unlink()
        for folder in {name.partition("/")[0] for name in names if "/" in name}:
            (old / folder).rmdir()
        old.rmdir()
    except OSError as error:
        warnings.warn(f"{old}: {error.strerror}; what was rendered before stays there", stacklevel=2)
