"""Arrays in files, for the command line: mapped, cut into blocks, written beside and then renamed.

Nothing is computed here. What cannot be read or written raises OSError or ValueError, with the
path in its one line of text.
"""

from __future__ import annotations

import errno
import json
import math
import os
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np

from softlane import _arrays

if TYPE_CHECKING:
    from softlane._arrays import Array, DType, Shape

    Index = tuple[slice, ...]
    Order = Literal["C", "F"]

_PAGE = 4096  # bytes; columns narrower than that would have the same pages read again and again
_LONGEST_HEADER = 100_000_000  # bytes, of a safetensors file; the format's own limit
_SAFETENSORS_DTYPES = {
    "BOOL": "?",
    "BF16": "bfloat16",
    "F16": "<f2",
    "F32": "<f4",
    "F64": "<f8",
    **{f"{kind}{8 * size}": f"<{kind.lower()}{size}" for kind in "IU" for size in (1, 2, 4, 8)},
}


# ---- arrays in files ----------------------------------------------------------------------------


@dataclass(frozen=True)
class FileArray:
    """An array that lies in a file, uncompressed, from a byte on."""

    path: Path
    dtype: DType
    shape: Shape
    order: Order
    offset: int

    def __post_init__(self) -> None:
        sizes = [self.dtype.itemsize, *self.shape]
        sound = all(type(n) is int and n >= 0 for n in sizes)
        if not sound or math.prod(n for n in sizes if n > 0) > sys.maxsize:
            raise ValueError(f"{self.path}: the array has shape {self.shape}")
        end = self.offset + math.prod(self.shape) * self.dtype.itemsize
        size = self.path.stat().st_size
        if size < end:
            raise ValueError(f"{self.path} is truncated: it has {size} bytes, expected {end}")

    def block(self, index: Index, mode: Literal["r", "r+"] = "r") -> Array:
        """Part of the array, in the file's own memory.

        Pages that are touched count as the process's memory while their map lives, so each block
        has its own.
        """
        array: Any = np.memmap(self.path, self.dtype, mode, self.offset, self.shape, self.order)
        block: Array = array[(*index, ...)]
        return block


@dataclass(frozen=True)
class LoadedArray:
    """An array in memory: what was compressed in its file."""

    array: Any

    @property
    def dtype(self) -> DType:
        dtype: DType = self.array.dtype
        return dtype

    @property
    def shape(self) -> Shape:
        shape: Shape = self.array.shape
        return shape

    @property
    def order(self) -> Order:
        return "F" if self.array.flags.fnc else "C"

    def block(self, index: Index) -> Array:
        block: Array = self.array[(*index, ...)]
        return block


def open_array(path: str, role: str) -> FileArray | LoadedArray:
    """The array in an npy, npz or safetensors file, told apart by their first bytes.

    Of several arrays in a file, it is the one with the name that the role has.
    """
    file_path = Path(path)
    with file_path.open("rb") as file:
        if not file.seekable():
            raise ValueError(f"{path} is a pipe, expected a file that can be mapped")
        start = file.read(9)
        try:
            if start.startswith(b"\x93NUMPY"):
                file.seek(0)
                return _npy(file_path, file)
            if start.startswith(b"PK"):
                return _npz(file_path, file, role)
            if start.endswith(b"{") and len(start) == 9:
                return _safetensors(file_path, file, role)
        except OSError:
            raise
        except KeyError as error:
            raise ValueError(f"{path}: its header lacks {error}") from None
        except Exception as error:
            text = str(error)
            raise ValueError(text if text.startswith(path) else f"{path}: {text}") from None
    raise ValueError(f"{path} is no npy, npz or safetensors file")


def _npy(path: Path, file: BinaryIO) -> FileArray:
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"its npy version is {version}, expected (1, 0) or (2, 0)")
    read = getattr(np.lib.format, f"read_array_header_{version[0]}_{version[1]}")
    try:
        shape, is_fortran, dtype = read(file)
    except (SyntaxError, TypeError, ValueError):  # whose texts speak of Python's parser
        raise ValueError("its npy header cannot be read") from None
    if dtype.hasobject:
        raise ValueError(f"the array has dtype {dtype}, Python objects")
    if dtype == np.dtype("V2"):
        raise ValueError("the array has dtype |V2, as npy files have no bfloat16: safetensors do")
    return FileArray(path, dtype, shape, "F" if is_fortran else "C", file.tell())


def _npz(path: Path, file: BinaryIO, role: str) -> FileArray | LoadedArray:
    with zipfile.ZipFile(file) as archive:
        members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
        name = _choose(list(members), role)
        member = members[name]
        if member.compress_type != zipfile.ZIP_STORED:
            with np.load(path) as arrays:
                return LoadedArray(arrays[name])
        file.seek(member.header_offset + 26)  # the lengths of the name and of the extra field
        lengths = np.frombuffer(file.read(4), "<u2")
        file.seek(int(lengths.sum()), os.SEEK_CUR)
        return _npy(path, file)


def _safetensors(path: Path, file: BinaryIO, role: str) -> FileArray:
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if length > min(_LONGEST_HEADER, path.stat().st_size):
        raise ValueError(f"its header would be {length} bytes long")
    header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    tensor = header[_choose(list(header), role)]
    if tensor["dtype"] not in _SAFETENSORS_DTYPES:
        raise ValueError(f"the tensor has dtype {tensor['dtype']}, which NumPy lacks")
    name = _SAFETENSORS_DTYPES[tensor["dtype"]]
    dtype = _arrays.requested_dtype(name) if name == "bfloat16" else np.dtype(name)
    begin, end = tensor["data_offsets"]
    shape = tuple(tensor["shape"])
    if type(begin) is not int or begin < 0:
        raise ValueError(f"its tensor begins at byte {begin} of the data")
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{end - begin} bytes for a tensor of shape {shape} and dtype {dtype}")
    return FileArray(path, dtype, shape, "C", 8 + length + begin)


def _choose(names: list[str], role: str) -> str:
    if len(names) == 1:
        return names[0]
    if role not in names:
        raise ValueError(f"it has the arrays {names}, expected one array, or one named {role!r}")
    return role


# ---- blocks -------------------------------------------------------------------------------------


def blocks(shape: Shape, axis: int, itemsize: int, order: Order, most: int) -> Iterator[Index]:
    """Indices that cut an array into blocks of about `most` bytes, never across `axis`.

    They come in the order in which the elements lie in the file. A block is larger where a single
    row is, and where narrower columns would tear pages apart.
    """
    slowest_first = range(len(shape)) if order == "C" else range(len(shape) - 1, -1, -1)
    steps = list(shape)
    for a in slowest_first:
        size = math.prod(steps) * itemsize
        if a == axis or size <= most:
            continue
        least = max(1, _PAGE // itemsize) if a == slowest_first[-1] else 1
        steps[a] = min(shape[a], max(least, most * steps[a] // size))
    cuts = [
        [slice(i, i + steps[a]) for i in range(0, shape[a], max(1, steps[a]))]
        for a in slowest_first
    ]
    for index in product(*cuts):
        yield index if order == "C" else index[::-1]


# ---- output -------------------------------------------------------------------------------------


@contextmanager
def beside(path: str) -> Iterator[Path]:
    """A path beside the given one, where a file is written; at the end it takes the given name.

    After an exception nothing is left of it, and what had the given name still has it.
    """
    target = Path(path).resolve()  # what a symbolic link leads to is what is replaced
    if target.is_dir():
        raise IsADirectoryError(None, "is a directory, expected a file", path)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        part.touch()
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None
    try:
        yield part
        part.replace(target)
    except OSError as error:
        if error.errno == errno.ENOSPC and not error.filename:
            raise OSError(error.errno, error.strerror, path) from None
        raise
    finally:
        part.unlink(missing_ok=True)


def create_npy(path: Path, shape: Shape, dtype: DType, order: Order) -> FileArray:
    """An npy file with room for an array; the room is on the disk already."""
    np.lib.format.open_memmap(
        path, "w+", np.lib.format.dtype_to_descr(dtype), shape, fortran_order=order == "F"
    )
    with path.open("r+b") as file:
        if hasattr(os, "posix_fallocate"):  # else a full disk would kill a process that writes
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        return _npy(path, file)


def check_not_among(output: str, *inputs: str) -> None:
    """That an output has the name of no input."""
    for path in inputs:
        if Path(output).exists() and Path(output).samefile(path):
            raise ValueError(f"{output} is the name of an output, and of an input")


def check_npy_name(path: str) -> None:
    if Path(path).suffix != ".npy":
        raise ValueError(f"{path} is the name of the output, expected one that ends in .npy")
