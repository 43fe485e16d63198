"""Decoded pictures of a dataset on disk, at the training size: `target`, `background` and `label`, uint8.

A folder named by dataset digest and size, with one npy file per array and a checksum (CRC-32) per frame and array;
`complete.json` says that it is whole. Only the folder that is in use stays: one of another dataset or size is removed,
so the cache is bounded by the clip.
"""

import contextlib
import json
import logging
import os
import re
import shutil
import weakref
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from tkjax import contract
from tkjax.contract import ContractError, Dataset
from tkjax.errors import UserError
from tkjax.host.files import put, sync, take_lock, write_atomic, writing
from tkjax.media import images

CHANNELS = {"target": (3,), "background": (3,), "label": ()}  # cached array -> its axes behind [N, H, W]
SUMS = "sums"  # uint32 [N, len(CHANNELS)]: CRC-32 of each frame of each array, in the order of CHANNELS
_VERSION = 2
_OURS = re.compile(r"[0-9a-f]{16}-\d+x\d+-v\d+(\.part)?")  # folders that only this module makes
_CHUNK = contract.SHARD_FRAMES  # frames between two records of progress
_log = logging.getLogger("tkjax.data.frame_cache")


def over(rgba: UInt8[np.ndarray, "H W 4"], plate: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H W 3"]:
    """A picture of straight alpha over another: (a·rgb + (255 - a)·plate) / 255, rounded to nearest."""
    alpha = rgba[..., 3:].astype(np.uint16)
    v = alpha * rgba[..., :3] + (255 - alpha) * plate + 128  # at most 255² + 128: fits
    return ((v + (v >> 8)) >> 8).astype(np.uint8)  # = (v - 1) // 255 for every such v


def in_front(rgba: UInt8[np.ndarray, "H W 4"], label: UInt8[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W 4"]:
    """A torso picture as it lies over the head: nothing of it where the frame shows the head. Torso pictures go on
    behind the head, for the systems whose torso lies behind it."""
    out = rgba.copy()
    out[label == contract.LABEL_HEAD] = 0
    return out


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
    """One cached array on disk, [N, H, W, …] uint8, read a frame at a time. It stays readable when its folder is
    removed. A frame is compared with its checksum when it is first read."""

    def __init__(self, path: Path, shape: tuple[int, ...], sums: np.ndarray):
        self.path, self.shape = path, shape
        self._frame = int(np.prod(shape[1:]))
        self._offset = path.stat().st_size - self._frame * shape[0]
        self._fd = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._fd)
        self._sums, self._seen = sums, np.zeros(shape[0], bool)

    def __getitem__(self, i: int) -> np.ndarray:
        out = np.empty(self.shape[1:], np.uint8)
        got = os.preadv(self._fd, [out.reshape(-1).data], self._offset + i * self._frame)
        if got != out.nbytes:
            raise UserError(f"{self.path}: ends before frame {i}, expected a whole cache; {self._discard()}")
        self._check(i, out)
        return out

    def _check(self, i: int, frame: np.ndarray) -> None:
        if not self._seen[i]:
            if zlib.crc32(frame) != self._sums[i]:
                raise UserError(
                    f"{self.path}: frame {i} is not as it was written, expected an undamaged disk; {self._discard()}"
                )
            self._seen[i] = True

    def _discard(self) -> str:
        """Take the mark of a whole cache away; what the user has to do."""
        try:
            (self.path.parent / "complete.json").unlink(missing_ok=True)
        except OSError:
            return f"remove {self.path.parent} and run the command again"
        return "run the command again, which decodes the frames anew"

    def mapped(self) -> UInt8[np.ndarray, "N H W *C"]:
        """All frames, checked, as a map of the file."""
        with os.fdopen(os.dup(self._fd), "rb") as file:
            whole = np.memmap(file, np.uint8, "r", self._offset, self.shape)
        for i, frame in enumerate(whole):
            self._check(i, frame)
        return whole


def _facts(dataset: Dataset, size: tuple[int, int]) -> dict[str, Any]:
    """What complete.json says of a cache: version of the format, digest of the dataset, shapes of the arrays."""
    shapes = {name: [dataset.n_frames, *size, *tail] for name, tail in CHANNELS.items()}
    shapes[SUMS] = [dataset.n_frames, len(CHANNELS)]
    return {"version": _VERSION, "digest": dataset.digest, "shapes": shapes}


def _dtype(name: str) -> np.dtype:
    return np.dtype(np.uint32 if name == SUMS else np.uint8)


def _is_whole(folder: Path, facts: dict[str, Any]) -> bool:
    """Whether marker, headers and sizes of a cache are those of `facts`."""
    try:
        if json.loads((folder / "complete.json").read_text()) != facts:
            return False
        for name, shape in facts["shapes"].items():
            a = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            if list(a.shape) != shape or a.dtype != _dtype(name) or not a.flags.c_contiguous:
                return False
            if (folder / f"{name}.npy").stat().st_size != a.offset + a.nbytes:
                return False
    except (OSError, ValueError, EOFError):
        return False
    return True


@contextlib.contextmanager
def _locked(folder: Path, wait: bool = True) -> Iterator[bool]:
    """One process at a time in a folder: True; False where another holds it and `wait` is not set."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            take_lock(fd, folder, wait)
        except BlockingIOError:
            yield False
            return
        yield True
    finally:
        os.close(fd)


def open_cache(
    dataset: Dataset, cache_dir: str | Path, size: tuple[int, int], plate: UInt8[np.ndarray, "H W 3"]
) -> dict[str, CachedArray]:
    """The decoded pictures of a dataset at a size, by name of the array; decoded if they are not there or not whole.

    They are built under another name, which is replaced at the end; a build that was cut short goes on where it was.
    Other folders of this kind in `cache_dir` go first, so that their room can be used.
    """
    facts = _facts(dataset, size)
    cache_dir = Path(cache_dir)
    folder = cache_dir / f"{dataset.digest[:16]}-{size[0]}x{size[1]}-v{_VERSION}"
    with writing(cache_dir, "a folder that can hold the decoded frames"):
        cache_dir.mkdir(parents=True, exist_ok=True)
        arrays = _opened(folder, facts)  # without the lock: whoever holds it may take minutes
        with _locked(cache_dir, wait=arrays is None) as alone:
            removed = _sweep(cache_dir, folder) if alone else 0
            if arrays is None:
                arrays = _opened(folder, facts) or _built(dataset, folder, size, plate, facts)
    need = sum(int(np.prod(a.shape)) for a in arrays.values())
    _log.info("%d decoded pictures of %dx%d in %s, %s", dataset.n_frames, *size[::-1], cache_dir, _size(need))
    if removed:
        _log.info("%s of other datasets or sizes removed from %s", _size(removed), cache_dir)
    return arrays


def _opened(folder: Path, facts: dict[str, Any]) -> dict[str, CachedArray] | None:
    """The arrays of a whole cache, None where it is not whole, or just removed by another process."""
    if not _is_whole(folder, facts):
        return None
    try:
        sums = np.load(folder / f"{SUMS}.npy", allow_pickle=False)
        paths = {name: folder / f"{name}.npy" for name in CHANNELS}
        return {n: CachedArray(p, tuple(facts["shapes"][n]), sums[:, k]) for k, (n, p) in enumerate(paths.items())}
    except FileNotFoundError:
        return None


def _built(dataset: Dataset, folder: Path, size: tuple[int, int], plate: np.ndarray, facts: dict[str, Any]):
    """Decode everything into `folder`; its arrays. The caller holds the lock."""
    if folder.exists():
        _log.warning("%s: the cache is damaged and is built again", folder)
        shutil.rmtree(folder)
    part = folder.with_suffix(".part")
    _build(dataset, part, size, plate, facts)
    put(part, folder)
    arrays = _opened(folder, facts)
    if arrays is None:
        raise UserError(f"{folder}: what was written there is gone, expected a folder that nobody else changes")
    return arrays


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.1f} MB"


def _sweep(cache_dir: Path, keep: Path) -> int:
    """Remove the caches of other datasets and sizes; how many bytes they held. The caller holds the lock."""
    freed = 0
    for old in cache_dir.iterdir():
        ours = _OURS.fullmatch(old.name) and old.is_dir() and not old.is_symlink()
        if ours and old not in (keep, keep.with_suffix(".part")):
            freed += sum(p.stat().st_size for p in old.iterdir() if p.is_file())
            shutil.rmtree(old, ignore_errors=True)
    return freed


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
            files[name] = fd, os.fstat(fd).st_size - _n_bytes(name, shape)

        def work(i: int) -> None:
            decoded = decode_frame(dataset, i, plate, size)
            sums = [zlib.crc32(np.ascontiguousarray(decoded[name])) for name in CHANNELS]
            for name, value in (*decoded.items(), (SUMS, np.array(sums, np.uint32))):
                fd, offset = files[name]
                _pwrite(fd, value, offset + i * value.nbytes)

        bar = tqdm(total=dataset.n_frames, initial=first, desc="decoding frames", unit="frame", disable=None)
        with bar, ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
            for a in range(first, dataset.n_frames, _CHUNK):
                for _ in pool.map(work, range(a, min(a + _CHUNK, dataset.n_frames))):
                    bar.update()
                text = json.dumps({"facts": facts, "frames": min(a + _CHUNK, dataset.n_frames)})
                write_atomic(progress, text.encode())
    for name in facts["shapes"]:
        sync(part / f"{name}.npy")
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
    need = sum(_n_bytes(name, shape) for name, shape in facts["shapes"].items())
    free = shutil.disk_usage(part).free
    if need > free:
        part.rmdir()
        raise UserError(
            f"{part.parent}: decoded frames need {need / 1e9:.1f} GB and {free / 1e9:.1f} GB are free, "
            "expected more room, another folder or a smaller data.size"
        )
    for name, shape in facts["shapes"].items():
        np.lib.format.open_memmap(part / f"{name}.npy", "w+", _dtype(name), tuple(shape))


def _n_bytes(name: str, shape: Sequence[int]) -> int:
    return int(np.prod(shape)) * _dtype(name).itemsize


def _pwrite(fd: int, picture: np.ndarray, at: int) -> None:
    data = memoryview(np.ascontiguousarray(picture)).cast("B")
    while data:
        written = os.pwrite(fd, data, at)
        data, at = data[written:], at + written
