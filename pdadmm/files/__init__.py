"""Files that are whole or not there: written under a temporary name, then renamed."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

__all__ = ["Record", "replacing", "reserve", "scratch", "write_at", "write_json", "write_text"]

#: what JSON and TOML call an object or a table
Record: TypeAlias = dict[str, Any]

_WRITE_BYTES = 1 << 30  # in one call; Linux ends at 2 GiB


@contextmanager
def scratch(path: Path) -> Iterator[Path]:
    """Name beside `path` of a file that is removed when the block ends."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Name of a file to write in place of `path`, which it takes when the block ends.

    When the block raises, what it wrote is removed and `path` stays as it was.
    """
    with scratch(path) as temporary:
        yield temporary
        os.replace(temporary, path)


def write_text(path: Path, text: str) -> None:
    """Write a text file as a whole."""
    with replacing(path) as temporary:
        temporary.write_text(text)


def write_json(path: Path, value: object) -> None:
    """Write JSON as a whole."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def reserve(path: Path, size: int) -> None:
    """Take disk space for a file, or raise OSError."""
    with path.open("ab") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as exc:
            if exc.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # file systems that cannot
                raise


def write_at(descriptor: int, content: memoryview, offset: int) -> None:
    """Write bytes at a place in a file."""
    while content:
        written = os.pwrite(descriptor, content[:_WRITE_BYTES], offset)
        content, offset = content[written:], offset + written
