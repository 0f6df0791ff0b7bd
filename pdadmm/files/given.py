"""Files that a user names: found to be files, and of a size, before they are opened."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import stat

__all__ = ["file_size", "open_regular", "read_file", "sha256_of"]

_CHUNK = 1 << 20  # bytes that are hashed at once


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


def sha256_of(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a regular file, in hexadecimal digits.

    Raises
    ------
    OSError
        As :func:`file_size`.
    """
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def open_regular(path: str | os.PathLike[str]) -> io.BufferedReader:
    """Open a file for reading, as long as it is one, see :func:`file_size`.

    Raises
    ------
    OSError
    """
    file_size(path)
    # not blocking, should a pipe have taken the place of the file since
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "a pipe, socket or device, not a file", str(path))
    return os.fdopen(descriptor, "rb")


def read_file(path: str | os.PathLike[str], most: int) -> bytes:
    """Content of a regular file of at most `most` bytes.

    Raises
    ------
    OSError
        When it is larger, or as :func:`file_size`.
    """
    with open_regular(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"larger than {most} bytes", str(path))
    return content
