"""Uncompressed npz without surprises: the same bytes for the same arrays, nothing pickled, members found by offset."""

import dataclasses
import io
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from tkjax.contract.refusal import ContractError, refuse, short

# What numpy raises on damaged headers; before Python 3.13 its parser of old headers also lets TokenError through.
HEADER_ERRORS = (
    ValueError, KeyError, TypeError, SyntaxError, EOFError, struct.error, OverflowError, MemoryError, RecursionError,
    tokenize.TokenError,
)  # fmt: skip
AXES_MOST, AXIS_MOST = 8, 2**40  # of an array; a header may claim any, also beside an axis of length 0


@dataclasses.dataclass(frozen=True)
class Entry:
    """Where an array lies in an uncompressed npz."""

    offset: int
    dtype: np.dtype
    shape: tuple[int, ...]
    crc: int
    start: int  # of the npy header
    size: int  # of header and data

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class Rows:
    """A float32 array [n, C] that comes in blocks of rows, to be written without ever being whole."""

    shape: tuple[int, int]
    blocks: Iterable[np.ndarray]

    def write(self, file: io.BufferedIOBase) -> None:
        """The npy file of these rows, byte for byte as numpy writes the whole array."""
        header = {"descr": "<f4", "fortran_order": False, "shape": self.shape}
        np.lib.format.write_array_header_1_0(file, header)
        n = 0
        for block in self.blocks:
            if block.dtype != np.float32 or block.ndim != 2 or block.shape[1] != self.shape[1]:
                raise ValueError(
                    f"a block of rows is {block.dtype} {block.shape}, expected float32 (n, {self.shape[1]})"
                )
            n += len(block)
            file.write(block.astype("<f4", copy=False).tobytes())
        if n != self.shape[0]:
            raise ValueError(f"the blocks hold {n} rows, expected the {self.shape[0]} that were announced")


def write_npz(file: io.BufferedIOBase, arrays: Mapping[str, np.ndarray | np.generic | Rows]) -> None:
    """Uncompressed npz with the same bytes for the same arrays: sorted members, fixed dates, C order."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as z:
        for name in sorted(arrays):
            info = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            info.create_system, info.external_attr = 3, 0o644 << 16
            if isinstance(arrays[name], Rows):
                with z.open(info, "w", force_zip64=True) as f:
                    arrays[name].write(f)
                continue
            a = np.ascontiguousarray(arrays[name]).reshape(np.shape(arrays[name]))
            a = a.astype(a.dtype.newbyteorder("<"), copy=False)
            with z.open(info, "w", force_zip64=True) as f:
                np.lib.format.write_array(f, a, version=(1, 0), allow_pickle=False)


def npz_index(file: io.BufferedIOBase, where: Any) -> dict[str, Entry]:
    """Members of an uncompressed npz, from its directory and the npy headers, without reading the data."""
    total = file.seek(0, io.SEEK_END)
    try:
        with zipfile.ZipFile(file) as z:
            infos = z.infolist()
    except (zipfile.BadZipFile, ValueError, OSError, EOFError, struct.error, NotImplementedError, IndexError,
            OverflowError, MemoryError) as e:  # fmt: skip
        raise ContractError(f"{where}: member list is not readable ({short(e)}), expected an uncompressed npz") from e
    entries = {}
    for info in infos:
        name = info.filename.removesuffix(".npy")
        if name == info.filename or name in entries:
            raise refuse(where, repr(info.filename)[1:-1], "is not an array or stands twice", "one .npy a member")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.file_size != info.compress_size:
            raise refuse(where, name, "is compressed or encrypted", "stored bytes")
        if not 0 <= info.header_offset < total:
            raise refuse(where, name, "lies outside the file", "an uncompressed npz")
        file.seek(info.header_offset)
        local = file.read(30)
        if len(local) != 30 or local[:4] != b"PK\x03\x04":
            raise refuse(where, name, "has no zip header", "an uncompressed npz")
        start = info.header_offset + 30 + sum(struct.unpack("<HH", local[26:30]))
        if start + info.file_size > total:
            raise refuse(where, name, "runs past the end of the file", "complete data")
        file.seek(start)
        head = io.BytesIO(file.read(min(info.file_size, 65536)))
        try:
            version = np.lib.format.read_magic(head)
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
            shape, fortran, dtype = read(head)
        except HEADER_ERRORS as e:
            raise refuse(where, name, f"has no readable npy header ({short(e)})", "a plain array") from e
        if dtype.hasobject:
            raise refuse(where, name, "holds pickled objects", "plain numbers")
        if fortran and len(shape) > 1:
            raise refuse(where, name, "is stored in Fortran order", "C order")
        if dtype.kind not in "biufcU":
            raise refuse(where, name, f"has dtype {short(ValueError(str(dtype)))}", "plain numbers or text")
        if len(shape) > AXES_MOST or max(shape, default=0) > AXIS_MOST:
            raise refuse(
                where, name, f"claims {len(shape)} axes of up to {max(shape)}", f"at most {AXES_MOST} short ones"
            )
        entry = Entry(start + head.tell(), dtype, shape, info.CRC, start, info.file_size)
        if min(shape, default=0) < 0 or entry.nbytes != info.file_size - head.tell():
            raise refuse(where, name, f"has {info.file_size - head.tell()} bytes", f"those of shape {shape} {dtype}")
        entries[name] = entry
    return entries


def read_entry(file: io.BufferedIOBase, entry: Entry, where: Any, name: str, check: bool = False) -> np.ndarray:
    """The array of an entry, its CRC-32 compared if `check`."""
    file.seek(entry.start)
    data = file.read(entry.size)
    if len(data) != entry.size:
        raise refuse(where, name, f"ends after {len(data)} bytes", f"{entry.size} bytes")
    if check and zlib.crc32(data) != entry.crc:
        raise refuse(where, name, "fails its CRC-32", "undamaged bytes")
    a = np.ndarray(entry.shape, entry.dtype, buffer=data, offset=entry.offset - entry.start)
    return a.astype(a.dtype.newbyteorder("="), copy=False)


def read_rows(
    file: io.BufferedIOBase, entry: Entry, where: Any, name: str, rows: int, check: bool = False
) -> Iterator[np.ndarray]:
    """An array [n, ...] in blocks of so many rows, as asked for; `check`: its CRC-32 is compared at the end."""
    width = math.prod(entry.shape[1:]) * entry.dtype.itemsize
    file.seek(entry.start)
    crc = zlib.crc32(file.read(entry.offset - entry.start)) if check else 0
    for a in range(0, entry.shape[0], rows):
        n = min(rows, entry.shape[0] - a)
        file.seek(entry.offset + a * width)
        data = file.read(n * width)
        if len(data) != n * width:
            raise refuse(where, name, f"ends in row {a + len(data) // max(width, 1)}", f"{entry.shape[0]} rows")
        crc = zlib.crc32(data, crc) if check else 0
        block = np.frombuffer(data, entry.dtype).reshape(n, *entry.shape[1:])
        yield block.astype(entry.dtype.newbyteorder("="), copy=False)
    if check and crc != entry.crc:
        raise refuse(where, name, "fails its CRC-32", "undamaged bytes")


def read_npz(file: io.BufferedIOBase, where: Any) -> dict[str, np.ndarray]:
    """All arrays of an uncompressed npz, each CRC-32 compared."""
    return {name: read_entry(file, e, where, name, check=True) for name, e in npz_index(file, where).items()}


def damaged_member(data: bytes, where: Any) -> str:
    """Which member of an npz whose hash is wrong the damage sits in, for the message."""
    try:
        file = io.BytesIO(data)
        for name, entry in npz_index(file, where).items():
            if zlib.crc32(data[entry.start : entry.start + entry.size]) != entry.crc:
                return name
    except ContractError:
        return "list"
    return "list"
