"""Decoded pictures of a dataset on disk, at the training size: `target`, `background` and `label`, uint8.

A folder per dataset digest and size, with one npy file per array; `complete.json` says that it is whole.
"""

import contextlib
import fcntl
import json
import logging
import os
import shutil
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from tkjax import contract, images
from tkjax.contract import ContractError, Dataset
from tkjax.errors import UserError
from tkjax.files import write_atomic

CHANNELS = {"target": (3,), "background": (3,), "label": ()}  # cached array -> its axes behind [N, H, W]
_VERSION = 1
_CHUNK = contract.SHARD_FRAMES  # frames between two records of progress
_log = logging.getLogger("tkjax.frame_cache")


def over(rgba: UInt8[np.ndarray, "H W 4"], plate: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H W 3"]:
    """A picture of straight alpha over another: (a·rgb + (255 - a)·plate) / 255, rounded to nearest."""
    alpha = rgba[..., 3:].astype(np.uint16)
    v = alpha * rgba[..., :3] + (255 - alpha) * plate + 128  # at most 255² + 128: fits
    return ((v + (v >> 8)) >> 8).astype(np.uint8)  # = (v - 1) // 255 for every such v


def decode_frame(
    dataset: Dataset, i: int, plate: UInt8[np.ndarray, "H W 3"], size: tuple[int, int]
) -> dict[str, np.ndarray]:
    """target, background, label of frame i at `size`; composed at full size. Bad bytes: one sentence."""
    full = (dataset.height, dataset.width)
    rgb = images.decode_rgb(dataset.frame_bytes("image_bytes", i), dataset.where("image_bytes", i))
    torso = images.decode_png(dataset.frame_bytes("torso_bytes", i), dataset.where("torso_bytes", i))
    label = images.decode_png(dataset.frame_bytes("label_bytes", i), dataset.where("label_bytes", i))
    for member, picture, shape in (
        ("image_bytes", rgb, (*full, 3)),
        ("torso_bytes", torso, (*full, 4)),
        ("label_bytes", label, full),
    ):
        if picture.shape != shape:
            raise ContractError(f"{dataset.where(member, i)} decodes to shape {picture.shape}, expected {shape}")
    if label.max() > contract.LABEL_TORSO:
        where = dataset.where("label_bytes", i)
        raise ContractError(f"{where} holds label {label.max()}, expected 0..{contract.LABEL_TORSO}")
    shown = label != contract.LABEL_BACKGROUND
    if dataset.manifest["source"].get("background_trt"):  # keyed: a blend over the plate, soft edges and all
        data, where = dataset.frame_bytes("alpha_bytes", i), dataset.where("alpha_bytes", i)
        if data is None:
            raise ContractError(f"{where} is missing, expected the matte of a keyed clip (source.background_trt)")
        alpha = images.decode_png(data, where)
        if alpha.shape != full:
            raise ContractError(f"{where} decodes to shape {alpha.shape}, expected {full}")
        shown = alpha > 0
    target = np.where(shown[..., None], rgb, plate)
    return {
        "target": images.resize_area(target, size),
        "background": images.resize_area(over(torso, plate), size),
        "label": images.resize_majority(label, size),
    }


class CachedArray:
    """One cached array on disk, [N, H, W, …] uint8, read a frame at a time."""

    def __init__(self, path: Path, shape: tuple[int, ...]):
        self.path, self.shape = path, shape
        self._frame = int(np.prod(shape[1:]))
        self._offset = path.stat().st_size - self._frame * shape[0]
        self._fd = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._fd)

    def __getitem__(self, i: int) -> np.ndarray:
        out = np.empty(self.shape[1:], np.uint8)
        got = os.preadv(self._fd, [out.reshape(-1).data], self._offset + i * self._frame)
        if got != out.nbytes:
            raise UserError(f"{self.path}: ends before frame {i}, expected a whole cache; remove it and start again")
        return out


def _facts(dataset: Dataset, size: tuple[int, int]) -> dict[str, Any]:
    """What complete.json says of a cache: version of the format, digest of the dataset, shapes of the arrays."""
    shapes = {name: [dataset.n_frames, *size, *tail] for name, tail in CHANNELS.items()}
    return {"version": _VERSION, "digest": dataset.digest, "shapes": shapes}


def _is_whole(folder: Path, facts: dict[str, Any]) -> bool:
    """Whether marker, headers and sizes of a cache are those of `facts`."""
    try:
        if json.loads((folder / "complete.json").read_text()) != facts:
            return False
        for name, shape in facts["shapes"].items():
            a = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            if list(a.shape) != shape or a.dtype != np.uint8 or not a.flags.c_contiguous:
                return False
            if (folder / f"{name}.npy").stat().st_size != a.offset + a.nbytes:
                return False
    except (OSError, ValueError, EOFError):
        return False
    return True


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One builder at a time in a folder; the lock goes with the process."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def build_cache(
    dataset: Dataset, cache_dir: str | Path, size: tuple[int, int], plate: UInt8[np.ndarray, "H W 3"]
) -> Path:
    """The folder with the decoded pictures of a dataset at a size; made if it is not there or not whole.

    It is built under another name and renamed at the end; a build that was cut short goes on where it was.
    """
    facts = _facts(dataset, size)
    cache_dir = Path(cache_dir)
    folder = cache_dir / f"{dataset.digest[:16]}-{size[0]}x{size[1]}-v{_VERSION}"
    if _is_whole(folder, facts):
        return folder
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with _locked(cache_dir):
            if not _is_whole(folder, facts):  # another process may just have built it
                if folder.exists():
                    _log.warning("%s: the cache is damaged and is built again", folder)
                    shutil.rmtree(folder)
                _build(dataset, folder.with_suffix(".part"), size, plate, facts)
                os.replace(folder.with_suffix(".part"), folder)
    except OSError as e:
        raise UserError(f"{cache_dir}: {e.strerror or e}, expected a folder that can hold the decoded frames") from e
    return folder


def open_cache(folder: Path) -> dict[str, CachedArray]:
    """The arrays of a folder that `build_cache` gave, by name."""
    shapes = json.loads((folder / "complete.json").read_text())["shapes"]
    return {name: CachedArray(folder / f"{name}.npy", tuple(shape)) for name, shape in shapes.items()}


def _build(dataset: Dataset, part: Path, size: tuple[int, int], plate: np.ndarray, facts: dict[str, Any]) -> None:
    progress = part / "progress.json"
    first = _frames_done(progress, facts)
    if first == 0:
        _begin(part, facts)
    with contextlib.ExitStack() as stack:
        files = {}
        for name, shape in facts["shapes"].items():
            fd = os.open(part / f"{name}.npy", os.O_WRONLY)
            stack.callback(os.close, fd)
            files[name] = fd, os.fstat(fd).st_size - int(np.prod(shape))

        def work(i: int) -> None:
            for name, picture in decode_frame(dataset, i, plate, size).items():
                fd, offset = files[name]
                _pwrite(fd, picture, offset + i * picture.nbytes)

        bar = tqdm(total=dataset.n_frames, initial=first, desc="decoding frames", unit="frame", disable=None)
        with bar, ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
            for a in range(first, dataset.n_frames, _CHUNK):
                for _ in pool.map(work, range(a, min(a + _CHUNK, dataset.n_frames))):
                    bar.update()
                text = json.dumps({"facts": facts, "frames": min(a + _CHUNK, dataset.n_frames)})
                write_atomic(progress, text.encode())
        for fd, _ in files.values():
            os.fsync(fd)
    write_atomic(part / "complete.json", json.dumps(facts).encode())
    progress.unlink()


def _frames_done(progress: Path, facts: dict[str, Any]) -> int:
    """Frames that a build of the same cache has written before it was cut short, else 0."""
    try:
        begun = json.loads(progress.read_text())
        return begun["frames"] if begun["facts"] == facts else 0
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _begin(part: Path, facts: dict[str, Any]) -> None:
    """Arrays of zeros in a new folder; UserError where the disk has no room for them."""
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    need = sum(int(np.prod(s)) for s in facts["shapes"].values())
    free = shutil.disk_usage(part).free
    if need > free:
        part.rmdir()
        raise UserError(
            f"{part.parent}: decoded frames need {need / 1e9:.1f} GB and {free / 1e9:.1f} GB are free, "
            "expected more room, another folder or a smaller data.size"
        )
    for name, shape in facts["shapes"].items():
        np.lib.format.open_memmap(part / f"{name}.npy", "w+", np.uint8, tuple(shape))


def _pwrite(fd: int, picture: np.ndarray, at: int) -> None:
    data = memoryview(np.ascontiguousarray(picture)).cast("B")
    while data:
        written = os.pwrite(fd, data, at)
        data, at = data[written:], at + written
