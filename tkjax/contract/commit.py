"""How one generation of a dataset's files takes the place of another, and what a stopped write leaves to do.

New files are staged, shards moved in under names of their own, the other files put aside; then the manifest is
replaced, and the files that stand aside get their plain names.
"""

import hashlib
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tkjax.contract.refusal import ContractError
from tkjax.contract.spec import FILE_NAME, MANIFEST, SHA256, SHARD_NAME
from tkjax.host import stored
from tkjax.host.files import put, sync

STAGING = ".write"  # files of a write that has not been committed
ASIDE = ".pending"  # fixed-name files of a generation other than the one published under the plain names


def aside_name(name: str, sha: str) -> str:
    """A file's name in the folder of those that stand aside."""
    return f"{sha[:16]}-{staged_name(name)}"


def sha256_file(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def named_files(root: Path) -> dict[str, str] | None:
    """files of the manifest in `root` (unchecked beyond their types), {} without one, None if it is unreadable."""
    try:
        with stored.open_plain(root, MANIFEST) as file:
            m = stored.parse(file.read(stored.LARGEST_BYTES + 1))
        files = {k: v for k, v in m["files"].items() if isinstance(v, str) and SHA256.fullmatch(v)}
        legal = all(SHARD_NAME.fullmatch(k) or FILE_NAME.fullmatch(k) for k in files)
        return files if legal and isinstance(m["shards"], list) else None
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError, OSError):
        return None


def staged_name(name: str) -> str:
    """A file's name in the staging folder, which is flat."""
    return name.replace("/", "%")


def put_in_place(root: Path, manifest: Mapping[str, Any], raw: bytes, moved: list[Path]) -> dict[str, str]:
    """Make the staged files and the manifest's bytes the dataset; the former files, for `publish`.

    `moved` gets each file's place as it moves.
    """
    staging, aside = root / STAGING, root / ASIDE
    old = named_files(root) or {}
    aside.mkdir(exist_ok=True)
    for name, sha in manifest["files"].items():
        if name.startswith("shard-"):
            if old.get(name, sha) != sha:
                raise ContractError(f"{root / name}: two different shards share this name, expected another folder")
            source, target = staging / name, root / name
        else:
            source, target = staging / staged_name(name), aside / aside_name(name, sha)
        moved.append(target)
        os.replace(source, target)
    staged = staging / MANIFEST
    staged.write_bytes(raw)
    sync(aside)
    sync(root)
    put(staged, root / MANIFEST)  # from here on the new dataset is the one that is read
    return old


def take_back(root: Path, moved: Iterable[Path], remove_root: bool) -> None:
    """Undo a write: what the manifest in place does not name goes, and the folders that this leaves empty."""
    named = named_files(root) or {}
    keep = {root / n for n in named} | {root / ASIDE / aside_name(n, s) for n, s in named.items()}
    for path in moved:
        if path not in keep:
            path.unlink(missing_ok=True)
    shutil.rmtree(root / STAGING, ignore_errors=True)
    for folder in (root / ASIDE, root) if remove_root else (root / ASIDE,):
        if folder.is_dir() and not os.listdir(folder):
            folder.rmdir()


def publish(root: Path, files: Mapping[str, str], old: Mapping[str, str]) -> None:
    """Move the files that stand aside under their plain names; the former generation's are put aside first."""
    for name, sha in files.items():
        source, target = root / ASIDE / aside_name(name, sha), root / name
        if not source.exists():
            continue
        keep = root / ASIDE / aside_name(name, old[name]) if old.get(name, sha) != sha else None
        if keep is not None and target.exists() and not keep.exists():
            os.link(target, keep)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(source, target)
    # Files of the former generation that the new one does not have stay in place until the next write.
    if (root / ASIDE).is_dir() and not os.listdir(root / ASIDE):
        (root / ASIDE).rmdir()


def recover_and_sweep(root: Path) -> None:
    """Complete a publication that was cut short, then remove what the manifest in place does not name."""
    shutil.rmtree(root / STAGING, ignore_errors=True)
    named = named_files(root)
    if named is None:  # a manifest that nobody can read: touch nothing that might be mended
        return
    publish(root, named, {})
    keep = {MANIFEST, *named}
    for folder, folders, files in os.walk(root, topdown=False):
        for f in files:
            path = Path(folder, f)
            if path.relative_to(root).as_posix() not in keep:
                path.unlink()
        for d in folders:
            path = Path(folder, d)
            if path.is_symlink():
                path.unlink()
            elif not os.listdir(path):
                path.rmdir()
