"""NumPy's files, .npy and .npz: read without pickles, and no more than they have room for."""

from __future__ import annotations

import io
import math
import os
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np

from ..errors import InputError
from .raw import allowance, open_regular, too_much

__all__ = ["load_npy", "load_npz"]

_MAGIC = b"\x93NUMPY"
_HEADER_BYTES = 10_000  # NumPy's own limit; its parser of Python literals is not made for more
_CHUNK = 1 << 20
_ENCRYPTED = 1  # flag of a zip's member
#: what damaged files raise: reads that end too early, zipfile (RuntimeError too) and zlib
_DAMAGE = (OSError, ValueError, TypeError, LookupError, EOFError, ArithmeticError, RuntimeError,
           zipfile.BadZipFile, zlib.error)  # fmt: skip


class _Pickled(Exception):
    """The array is one of Python objects."""


def load_npz(path: Path, wanted: tuple[str, ...]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Those of the wanted arrays that an .npz holds, and the names of the others; never unpickles.

    Arrays that are not wanted are not read, so files that carry pickled names besides are fine.

    Raises
    ------
    InputError
        When the file is missing, truncated, no .npz, unpacks to far more than its size, or a wanted array
        is a pickled object.
    """
    with open_regular(path) as file:
        if file.read(len(_MAGIC)) == _MAGIC:
            raise InputError(f"{path}: a single array, not an .npz archive")
        remedy = "save it with numpy.savez, which does not compress"
        room = _Room(allowance(file), lambda: too_much(path, remedy))
        try:
            with zipfile.ZipFile(file) as archive:
                members = _members(archive)
                arrays = {}
                key = ""
                for key in wanted:
                    found = members.get(key, [])
                    if len(found) > 1:
                        raise InputError(f"{path}: holds {key} {len(found)} times; save it again")
                    if found:
                        arrays[key] = _read_member(archive, found[0], room)
                return arrays, sorted(members.keys() - set(wanted))
        except _Pickled:
            raise InputError(
                f"{path}: {key} holds pickled objects, which are not read; save numbers, or fetch it again"
            ) from None
        except _DAMAGE:
            pass
        raise InputError(f"{path}: is damaged or not an .npz archive; save or fetch it again")


def load_npy(path: Path, remedy: str = "fetch it again") -> np.ndarray:
    """Read an .npy; never unpickles.

    Parameters
    ----------
    path : Path
    remedy : str
        What to do when it is not as it should be.

    Raises
    ------
    InputError
        When the file is missing or damaged, or its size is not what its header says.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            return _read_array(file, size, _Room(size, lambda: ValueError("truncated")))
        except _Pickled:
            raise InputError(f"{path}: holds pickled objects, which are not read; {remedy}") from None
        except _DAMAGE:
            raise InputError(f"{path}: damaged or not a .npy array; {remedy}") from None


class _Room:
    """Bytes that may still be allocated for a file."""

    def __init__(self, left: int, refusal: Callable[[], Exception]) -> None:
        self.left, self.refusal = left, refusal

    def take(self, nbytes: int) -> None:
        """Raise the refusal unless there is room for so many."""
        self.left -= nbytes
        if self.left < 0:
            raise self.refusal()


def _members(archive: zipfile.ZipFile) -> dict[str, list[zipfile.ZipInfo]]:
    """Members of an archive by the names that NumPy gives them."""
    members: dict[str, list[zipfile.ZipInfo]] = {}
    for info in archive.infolist():
        members.setdefault(info.filename.removesuffix(".npy"), []).append(info)
    return members


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, room: _Room) -> np.ndarray:
    # NumPy stores or deflates; others have headers that make their decoders allocate gigabytes.
    if info.flag_bits & _ENCRYPTED or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError("encrypted, or another compression than NumPy's")
    with archive.open(info) as member:
        return _read_array(member, info.file_size, room)


def _read_array(stream: IO[bytes], size: int, room: _Room) -> np.ndarray:
    """Read an array of a stream of `size` bytes, header included."""
    shape, fortran, dtype, header = _read_header(stream)
    if dtype.hasobject:
        raise _Pickled
    if dtype.kind not in "biufcSU" or dtype.itemsize == 0 or min(shape, default=0) < 0:
        raise ValueError(f"an array of {dtype}")
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes != size - header:
        raise ValueError("another size than the header says")
    room.take(nbytes)
    content = np.empty(nbytes, dtype=np.uint8)
    done = 0
    while done < nbytes:
        piece = stream.read(min(_CHUNK, nbytes - done))
        if not piece:
            raise EOFError
        content[done : done + len(piece)] = np.frombuffer(piece, np.uint8)
        done += len(piece)
    if stream.read(1):  # at the end of a member its checksum is compared
        raise ValueError("another size than the header says")
    flat = content.view(dtype)
    return flat.reshape(shape[::-1]).transpose() if fortran else flat.reshape(shape)


def _read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Shape, memory order, type of an array, and bytes before its content."""
    start = stream.read(len(_MAGIC) + 2)
    if start not in (_MAGIC + b"\x01\x00", _MAGIC + b"\x02\x00"):
        raise ValueError("not NumPy's format, or names of fields beyond latin-1")
    first = start[-2] == 1
    length = stream.read(2 if first else 4)
    text_bytes = int.from_bytes(length, "little")
    if text_bytes > _HEADER_BYTES:
        raise ValueError("a header of that size")
    text = io.BytesIO(length + stream.read(text_bytes))
    parse = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Python's parser, about what stands there
            shape, fortran, dtype = parse(text)
    except Exception as exc:  # a parser of Python literals and a tokenizer can raise nearly anything
        raise ValueError(f"a damaged header ({type(exc).__name__})") from None
    return shape, fortran, dtype, len(start) + len(length) + text_bytes
