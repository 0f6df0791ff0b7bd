"""Files that are whole or not there: written under a temporary name, then renamed; and their space."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

__all__ = [
    "Record",
    "append",
    "free_name",
    "fresh",
    "naming",
    "read_at",
    "replacing",
    "reserve",
    "scratch",
    "sync_folder",
    "take_place",
    "write_at",
    "write_json",
    "write_text",
]

#: what JSON and TOML call an object or a table
Record: TypeAlias = dict[str, Any]

_WRITE_BYTES = 1 << 30  # in one call; Linux ends at 2 GiB
_LARGEST = (1 << 63) - 1  # that a file can be in words of the system; none has room for it


@contextmanager
def naming(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Errors of the system that name no file, as those of a write, or the temporary one, name `path`."""
    try:
        yield
    except OSError as error:
        if error.filename in (None, os.fspath(temporary or path)):
            error.filename = os.fspath(path)
        raise


@contextmanager
def scratch(path: Path) -> Iterator[Path]:
    """Name beside `path` of a file that is removed when the block ends, and that nobody else has."""
    # processes in containers may have the same number, and threads have
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}.tmp")
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def fresh(temporary: Path) -> Iterator[None]:
    """An empty file of that name, in place of what a killed run left, is removed when the block ends.

    Not if another process has one of that name by then, as the next run has where the folder was moved.
    """
    temporary.unlink(missing_ok=True)
    temporary.touch()
    mine = temporary.stat()
    try:
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(mine, temporary.stat()):
                temporary.unlink()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Name of a file to write in place of `path`, or of what is behind a link, which it takes at the end.

    By then it is on the disk. When the block raises, what it wrote is removed and `path` stays as it was.
    """
    target = Path(os.path.realpath(path))
    with scratch(target) as temporary, naming(path, temporary):
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # some file systems tell only here that there was no room
        take_place(temporary, target)


def take_place(temporary: Path, path: Path) -> None:
    """Give a file that is written and synced its name, which is on the disk when this returns."""
    os.replace(temporary, path)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Have the names in a folder on the disk, where its file system can be told to.

    Raises
    ------
    OSError
        When the disk has failed, or is full.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:  # a folder that may be written to, but not read
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno in (errno.EIO, errno.ENOSPC, errno.EDQUOT):
            raise
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text file as a whole; into a device or a pipe as it is."""
    if path.exists() and not path.is_file():
        path.write_bytes(text.encode())
        return
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode())


def write_json(path: Path, value: object, indent: int | None = 2) -> None:
    """Write JSON as a whole; with no `indent` in one line, a quarter of the time and half of the bytes."""
    write_text(path, json.dumps(value, indent=indent) + "\n")


def append(path: Path, data: bytes) -> None:
    """Add to the end of a file that is there; what could be added in part only is taken back.

    Raises
    ------
    OSError
        Which names the file.
    """
    with naming(path), path.open("r+b", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(end)
            raise


def reserve(path: Path, size: int) -> None:
    """Take disk space for a file, or raise OSError."""
    with naming(path), path.open("ab") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, min(size, _LARGEST))
        except OSError as exc:
            if exc.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # file systems that cannot
                raise


def write_at(descriptor: int, content: memoryview, offset: int) -> None:
    """Write bytes at a place in a file."""
    while content:
        written = os.pwrite(descriptor, content[:_WRITE_BYTES], offset)
        content, offset = content[written:], offset + written


def read_at(descriptor: int, content: memoryview, offset: int) -> None:
    """Fill with the bytes at a place in a file, all of which are there."""
    while content:
        read = os.preadv(descriptor, [content[:_WRITE_BYTES]], offset)
        if not read:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        content, offset = content[read:], offset + read


def free_name(path: Path) -> Path:
    """The first of ``NAME.old``, ``NAME.old-1``, … that nothing has."""
    names = itertools.chain([f"{path.name}.old"], (f"{path.name}.old-{n}" for n in itertools.count(1)))
    return next(p for p in map(path.with_name, names) if not os.path.lexists(p))
