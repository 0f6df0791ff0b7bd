"""What index.json of a checkpoint must hold to be believed: types, ranges, and that places fit files.

Its checksum says that it is as it was written, not who wrote it.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

import msgspec
from msgspec import Meta

__all__ = ["FileEntry", "Index", "Place", "checked"]

_MOST = 1 << 62

Whole = Annotated[int, Meta(ge=0, lt=_MOST)]
Name = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_]+(/[A-Za-z0-9_]+)*\Z", max_length=100)]
Sha256 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]


class Place(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """An array in a rank's file."""

    position: Annotated[int, Meta(ge=1, lt=_MOST)]  #: of its layer
    name: Name
    dtype: Annotated[str, Meta(pattern=r"\A(<[fiu][248]|\|[iub]1)\Z")]
    shape: Annotated[list[Whole], Meta(max_length=8)]
    offset: Whole

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * int(self.dtype[-1])


class FileEntry(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A rank's file."""

    name: Annotated[str, Meta(pattern=r"\Arank-[0-9]{4,9}\.bin\Z")]
    bytes: Whole
    sha256: Sha256
    arrays: list[Place]


class Index(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The whole; `state` is the system's own."""

    version: int
    iteration: Annotated[int, Meta(ge=0, lt=_MOST)]
    state: dict[str, Any]
    files: Annotated[list[FileEntry], Meta(min_length=1)]


def checked(body: object) -> Index:
    """The index of a JSON value.

    Raises
    ------
    ValueError
        Says what is wrong with it, and where.
    """
    index = msgspec.convert(body, Index)
    seen: set[tuple[int, str]] = set()
    for file in index.files:
        end = 0
        for place in file.arrays:
            if place.offset != end:
                raise ValueError(f"an array of {file.name} at {place.offset}, not {end}")
            end += place.nbytes
            if (place.position, place.name) in seen:
                raise ValueError(f"{place.name} of layer {place.position} is there twice")
            seen.add((place.position, place.name))
        if end != file.bytes:
            raise ValueError(f"the arrays of {file.name} take {end} bytes, not {file.bytes}")
    if len({file.name for file in index.files}) != len(index.files):
        raise ValueError("a file is there twice")
    return index
