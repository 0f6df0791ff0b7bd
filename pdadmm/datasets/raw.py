"""Opening raw files, whoever wrote them: without a hang, and within bounds of memory.

What a compressed file claims to hold is compared with its own size before anything is allocated. Published
data grow to less than 20 times their size; a bomb grows to 1000 times.
"""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path

from ..errors import InputError
from ..files import given

__all__ = ["allowance", "open_regular", "physical_memory", "read_whole", "too_much"]

_RATIO = 100  # of what is unpacked to the size of its file
_FLOOR = 64 << 20  # bytes that any file may unpack to


def open_regular(path: Path) -> io.BufferedReader:
    """Open a file for reading; a FIFO, a device, a socket or a folder is refused and never opened.

    Raises
    ------
    InputError
        When it is missing, unreadable or no regular file.
    """
    try:
        return given.open_regular(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; look at the name") from None
    except OSError as exc:
        if exc.errno in (errno.EINVAL, errno.EISDIR):
            raise InputError(f"{path}: is no regular file; name the file itself") from None
        raise InputError(f"{path}: cannot be read ({exc.strerror})") from None


def read_whole(path: Path) -> bytes:
    """Content of a regular file, or InputError, also when it is larger than the memory."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > physical_memory():
            raise InputError(f"{path}: {size / 1e9:.1f} GB are more than this machine's memory")
        try:
            return file.read()
        except OSError as exc:
            raise InputError(f"{path}: cannot be read ({exc.strerror})") from None


def physical_memory() -> int:
    """Memory of this machine in bytes."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def allowance(file: io.BufferedReader) -> int:
    """How many bytes what is in a file may unpack to."""
    return min(max(_FLOOR, _RATIO * os.fstat(file.fileno()).st_size), physical_memory())


def too_much(path: Path, remedy: str) -> InputError:
    """What to raise when a file holds more than its allowance."""
    return InputError(
        f"{path}: claims to unpack to more than {_RATIO} times its size, or to more than this machine's "
        f"memory; {remedy}"
    )
