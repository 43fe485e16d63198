"""Per-frame data on disk in runs of 64 frames, so that memory does not grow with the length of the clip."""

import io
import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from tkjax.host.files import write_atomic
from tkjax.media.images import decode_rgb

CHUNK_FRAMES = 64


def write_chunk(folder: Path, index: int, arrays: Mapping[str, np.ndarray]) -> None:
    """Write chunk `index` whole or not at all. The same arrays give the same bytes."""
    out = io.BytesIO()
    np.savez(out, **arrays)
    write_atomic(folder / f"chunk-{index:05d}.npz", out.getvalue())


def read_chunk(folder: Path, index: int, names: Iterable[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays of one chunk, all or those named."""
    with np.load(folder / f"chunk-{index:05d}.npz", allow_pickle=False) as z:
        return {k: z[k] for k in (names or z.files)}


def has_chunk(folder: Path, index: int) -> bool:
    return (folder / f"chunk-{index:05d}.npz").is_file()


def spans(n_frames: int) -> list[tuple[int, int]]:
    """(start, stop) of every chunk of a clip."""
    return [(a, min(a + CHUNK_FRAMES, n_frames)) for a in range(0, n_frames, CHUNK_FRAMES)]


def pack(name: str, blobs: list[bytes]) -> dict[str, np.ndarray]:
    """Encoded pictures as `<name>_bytes` and `<name>_offsets`, the layout of the contract's shards."""
    return {
        f"{name}_bytes": np.frombuffer(b"".join(blobs), np.uint8),
        f"{name}_offsets": np.cumsum([0, *map(len, blobs)], dtype=np.int64),
    }


def unpack(chunk: Mapping[str, np.ndarray], name: str) -> list[bytes]:
    """The inverse of `pack`."""
    data, offsets = chunk[f"{name}_bytes"], chunk[f"{name}_offsets"]
    return [data[a:b].tobytes() for a, b in itertools.pairwise(offsets)]


def column(folder: Path, n_frames: int, name: str) -> np.ndarray:
    """A small member of every chunk, joined."""
    return np.concatenate([read_chunk(folder, i, [name])[name] for i in range(len(spans(n_frames)))])


def picture(folder: Path, frame: int, name: str = "image") -> bytes:
    """Encoded picture of one frame."""
    chunk = read_chunk(folder, frame // CHUNK_FRAMES, [f"{name}_bytes", f"{name}_offsets"])
    return unpack(chunk, name)[frame % CHUNK_FRAMES]


def rgb_frames(folder: Path, index: int) -> Iterator[np.ndarray]:
    """The decoded pictures of one chunk."""
    for blob in unpack(read_chunk(folder, index), "image"):
        yield decode_rgb(blob)
