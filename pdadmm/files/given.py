"""Files that a user names: found to be files, and of a size, before they are opened."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

__all__ = ["file_size", "read_file"]


def file_size(path: str | os.PathLike[str]) -> int:
    """Size in bytes of a regular file, which it is found to be without opening it.

    Raises
    ------
    OSError
        When there is none, or it is a folder, a pipe, a socket or a device: reading those may never end.
    """
    try:
        found = os.stat(path)
    except ValueError:
        raise OSError(errno.EINVAL, "no name of a file", str(path)) from None
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "a pipe, socket or device, not a file", str(path))
    return found.st_size


def read_file(path: str | os.PathLike[str], most: int) -> bytes:
    """Content of a regular file of at most `most` bytes.

    Raises
    ------
    OSError
        When it is larger, or as :func:`file_size`.
    """
    file_size(path)
    with Path(path).open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"larger than {most} bytes", str(path))
    return content
