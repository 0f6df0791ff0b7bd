"""HDF5 files from elsewhere, of which nothing is believed and only what lies in the file itself is read.

HDF5 can do more than the files of this program need, and each of it would let a small file fill the memory
or others stand in for it: chunks and filters, by which kilobytes unfold to gigabytes; links to and raw data
in other files; virtual data sets, which are zeros where their sources are missing.
"""

from __future__ import annotations

import errno
import math
import mmap
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TypeAlias

import h5py
import numpy as np

from pdadmm.errors import InputError
from pdadmm.files import Record
from pdadmm.files.given import file_size
from pdadmm.files.names import safe_name

__all__ = ["Attributes", "PlainFile", "schema_of"]

#: attributes by name: types that a value may have, and whether it is in its range
Attributes: TypeAlias = "Mapping[str, tuple[tuple[type, ...], Callable[[Any], bool]]]"

_TEXT_BYTES = 1 << 16  #: of an attribute; the header of an object holds no more

_SIMPLE = (h5py.h5t.TypeIntegerID, h5py.h5t.TypeFloatID, h5py.h5t.TypeStringID)

#: of a heap: its mark, its version and what is reserved
_HEAP = b"GCOL\1\0\0\0"
_SEARCHED = 32 << 20  #: bytes at each end of a file that are searched for heaps

#: what h5py raises on damaged files
_DAMAGE = (OSError, LookupError, RuntimeError, ValueError, TypeError, ArithmeticError)


def schema_of(path: str | os.PathLike[str], remedy: str) -> str | int | float | None:
    """What a file says that it is; `remedy` is what to do when there is none, or it cannot be read.

    Raises
    ------
    InputError
    """
    with PlainFile(path, remedy, remedy) as file:
        return file.attribute("schema")


class PlainFile:
    """An HDF5 file, open for reading: attributes of one value, and contiguous arrays within the file.

    Parameters
    ----------
    path
        Of the file.
    missing
        What to do when there is none.
    remedy
        What to do when it is not as it should be.

    Raises
    ------
    InputError
        When it is missing, not to be read, no file, no HDF5, or truncated.
    """

    def __init__(self, path: str | os.PathLike[str], missing: str, remedy: str) -> None:
        # of a user's own graph nothing has been prepared yet
        self.where, self._remedy = str(path), missing if str(path).endswith(".npz") else remedy
        try:
            self._size = file_size(path)
        except OSError as error:
            reason = "no such file" if isinstance(error, FileNotFoundError) else error.strerror
            raise InputError(f"{self.where}: {reason}; {missing}") from None
        try:
            if _endless(path, self._size):
                raise self.wrong("damaged (a heap that does not end)")
            self._file = h5py.File(path, "r")
        except _DAMAGE as error:
            raise self.wrong(_reason(error)) from None
        self._claimed = 0  # bytes of all arrays asked for
        with self.reading():
            if self._file.userblock_size:
                raise self.wrong("HDF5 behind a user block, of which no offset is right")

    def wrong(self, reason: str) -> InputError:
        """The error that says what is wrong with the file."""
        return InputError(f"{self.where}: {reason}; {self._remedy}")

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Within it an error of HDF5 is an :class:`InputError`, and any error closes the file."""
        try:
            yield
        except _DAMAGE as error:
            self.close()
            raise self.wrong(f"damaged ({_reason(error)})") from None
        except BaseException:
            self.close()
            raise

    def attribute(self, name: str) -> str | int | float | None:
        """A number or a text at the root; None when there is none.

        Raises
        ------
        InputError
            When it is anything else.
        """
        if name not in self._file.attrs:
            return None
        found = self._file.attrs.get_id(name)
        simple = isinstance(found.get_type(), _SIMPLE)
        alone = found.get_space().get_simple_extent_type() == h5py.h5s.SCALAR
        if not simple or not alone or found.get_storage_size() > _TEXT_BYTES:
            raise self.wrong(f"attribute {name} is neither a number nor a short text")
        value = self._file.attrs[name]
        value = value.item() if isinstance(value, np.generic) else value
        if isinstance(value, bytes):
            value = value.decode(errors="replace")
        if not isinstance(value, (str, int, float)) or len(str(value)) > _TEXT_BYTES:
            raise self.wrong(f"attribute {name} is neither a number nor a short text")
        return value

    def attributes(
        self, kinds: Mapping[str, type], schema: str, version: int, maker: str, others: Mapping[str, str]
    ) -> Record:
        """Attributes of a file of this program, each of its type.

        Parameters
        ----------
        kinds
            Their types by name, `schema` and `schema_version` first.
        maker
            The command that makes such files.
        others
            What other files of this program are, in words, by their schema.

        Raises
        ------
        InputError
            When one is missing or of another type, or the file is another one.
        """
        found: Record = {}
        for name, kind in kinds.items():
            value = self.attribute(name)
            if value is None:
                if name == "schema":
                    raise self.wrong(f"not a file of {maker} (no schema)")
                raise self.wrong(f"lacks the attribute {name}")
            if not isinstance(value, kind):
                raise self.wrong(f"attribute {name} is {value!r}, not of type {kind.__name__}")
            found[name] = value
            if name == "schema" and str(value) in others:
                raise InputError(f"{self.where}: {others[str(value)]}; make one with python -m {maker}")
            if name == "schema" and value != schema:
                raise self.wrong(f"schema {value!r}, not {schema!r}")
            if name == "schema_version" and value != version:
                raise self.wrong(f"schema version {value}, this program reads {version}")
        return found

    def model(
        self, schema: str, version: int, table: Attributes, needed: str, none: str, others: Mapping[str, str]
    ) -> Record:
        """What a model, which has a group a layer, says of itself: each value of its type and in its range.

        Parameters
        ----------
        table
            Attributes besides schema and version, `layers` and `dataset` among them.
        needed
            The one that a model has besides `layers` in any case.
        none
            What to say of other files.
        others
            What to say of other models, by their schema.

        Raises
        ------
        InputError
            When it is no such model, or has another number of layers than it says.
        """
        found_schema = self.attribute("schema")
        if found_schema in others:
            raise InputError(f"{self.where}: {others[str(found_schema)]}")
        if found_schema != schema:
            raise self.wrong(none)
        found_version = self.attribute("schema_version")
        if found_version != version:
            raise self.wrong(f"schema version {found_version}, this program reads {version}")
        found: Record = {}
        for name, (kinds, holds) in table.items():
            value = self.attribute(name)
            if value is None:
                continue
            if not isinstance(value, kinds) or not holds(value):
                raise self.wrong(f"attribute {name} is {value!r}, which is none that a model has")
            found[name] = value
        for name in (needed, "layers"):
            if name not in found:
                raise self.wrong(f"lacks the attribute {name}")
        groups = sum(name.startswith("layer_") for name in self._file)
        if groups != found["layers"]:
            raise self.wrong(f"holds {groups} layers, not {found['layers']}")
        if "dataset" in found:
            found["dataset"] = safe_name(found["dataset"])
        return found

    def array(self, name: str) -> h5py.Dataset:
        """An array by its path, found to lie in this file from its first byte to its last.

        Raises
        ------
        InputError
            When there is none, or it is stored in another way.
        """
        place: h5py.h5g.GroupID | h5py.h5d.DatasetID = self._file.id
        for part in name.encode().split(b"/"):
            if not isinstance(place, h5py.h5g.GroupID) or not place.links.exists(part):
                raise self.wrong(f"lacks /{name}")
            if place.links.get_info(part).type != h5py.h5l.TYPE_HARD:
                raise self.wrong(f"/{name} is a link to another place, which is not followed")
            place = h5py.h5o.open(place, part)
        if not isinstance(place, h5py.h5d.DatasetID):
            raise self.wrong(f"/{name} is no array")
        plan = place.get_create_plist()
        if plan.get_layout() != h5py.h5d.CONTIGUOUS:
            raise self.wrong(f"/{name} is chunked, virtual or compact, not contiguous (h5repack -l CONTI)")
        if plan.get_external_count():
            raise self.wrong(f"/{name} has its values in another file, which is not read")
        found = h5py.Dataset(place)
        if found.shape is None:
            raise self.wrong(f"/{name} is empty")
        size = math.prod(found.shape) * found.dtype.itemsize
        offset = place.get_offset()
        self._claimed += size
        if size and (
            offset is None
            or place.get_storage_size() != size
            or offset + size > self._size
            or self._claimed > self._size
        ):
            raise self.wrong(f"/{name}, {found.dtype} {found.shape}, is larger than the file has room for")
        return found

    def weights(self, found: h5py.Dataset) -> np.ndarray:
        """An array of the file, finite numbers of single or double precision, as float32.

        Raises
        ------
        InputError
            When it is of another type, or holds NaN, Inf or more than float32 can.
        """
        name = str(found.name).lstrip("/")
        if found.dtype not in (np.dtype("<f4"), np.dtype("<f8")):
            raise self.wrong(f"/{name} is {found.dtype}, not float32")
        with np.errstate(over="ignore"):
            values = np.asarray(found[...], np.float32)
        if not np.isfinite(values).all():
            raise self.wrong(f"/{name} holds NaN or Inf")
        return values

    def close(self) -> None:
        """Close the file; reading its arrays is then an error."""
        self._file.close()

    def __enter__(self) -> PlainFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _endless(path: str | os.PathLike[str], size: int) -> bool:
    """Whether HDF5 would walk for ever through a heap of texts in the file, at an object of no length.

    The heaps are found by their mark, in a large file only near its two ends.
    """
    if not size:
        return False
    ends = [(0, size)] if size <= 2 * _SEARCHED else [(0, _SEARCHED), (size - _SEARCHED, size)]
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for first, last in ends:
            place = content.find(_HEAP, first, last)
            while place >= 0:
                if not _ends(content, place):
                    return True
                place = content.find(_HEAP, place + 1, last)
    return False


def _ends(content: mmap.mmap, place: int) -> bool:
    """Whether every object of the heap at a place leads on to the next."""
    (size,) = struct.unpack_from("<Q", content, place + 8) if place + 16 <= len(content) else (0,)
    end = place + size
    if end > len(content):
        return True  # which HDF5 finds itself
    place += 16
    while end - place >= 16:
        number, length = struct.unpack_from("<H6xQ", content, place)
        # what is free has its own head in its length
        step = 16 + (length + 7) // 8 * 8 if number else length
        if not 0 < step <= end - place:
            return False
        place += step
    return True


def _reason(error: BaseException) -> str:
    """What is wrong with a file in a few words."""
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.EACCES:
        return "cannot be read (permission denied)"
    if number == errno.EAGAIN:
        return "another program is writing it"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read ({error.strerror})"
    if "truncated" in str(error):
        return "truncated"
    return "not a readable HDF5 file"
