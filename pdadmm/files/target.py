"""The place of a file that a command makes: nothing else is replaced by it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from pdadmm.errors import InputError
from pdadmm.files.given import open_regular

__all__ = ["report_target", "target_of"]

_HDF5 = b"\x89HDF\r\n\x1a\n"
_HEAD_BYTES = 1 << 16  # of a file, which hold its attributes
_BEGINNING_BYTES = 1 << 12


def target_of(
    path: str | os.PathLike[str], schema: str, kind: str, sources: Iterable[str | os.PathLike[str]] = ()
) -> Path:
    """The file that writing to `path` makes or replaces, behind symbolic links; only looks at it.

    Parameters
    ----------
    path : str or Path
    schema : str
        Of the files that may be replaced.
    kind : str
        What those are called.
    sources : iterable of str or Path
        Files that are read, and so must not be replaced.

    Raises
    ------
    InputError
        When something else is there than a file of that schema, which may be damaged, or its folder may not
        be written to, which hours of work would find out late.
    """
    try:
        target = Path(os.path.realpath(path))
    except (OSError, ValueError) as exc:  # such as a working folder that is gone
        reason = exc.strerror if isinstance(exc, OSError) else exc
        raise InputError(f"{path}: cannot be written ({reason}); choose another place with --out") from None
    try:
        mode = target.stat().st_mode
        if any(os.path.exists(source) and os.path.samefile(target, source) for source in sources):
            raise InputError(f"{path}: is the file to read; name another one with --out")
        if not stat.S_ISREG(mode):
            what = "a folder" if stat.S_ISDIR(mode) else "no regular file"
            raise InputError(f"{path}: cannot be written (it is {what}); name a file with --out")
        _require_writable(target.parent, path)
        with open_regular(target) as file:
            head = file.read(_HEAD_BYTES)
    except FileNotFoundError:
        _require_writable(target.parent, path)
        return target
    except (OSError, ValueError) as exc:  # ValueError: a NUL in the name
        reason = exc.strerror if isinstance(exc, OSError) else exc
        raise InputError(f"{path}: cannot be written ({reason}); choose another place with --out") from None
    if not head.startswith(_HDF5) or schema.encode() not in head:
        raise InputError(
            f"{path}: exists and is no {kind}, so it stays; remove it, or name another one with --out"
        )
    return target


def _require_writable(folder: Path, path: str | os.PathLike[str]) -> None:
    """Refuse a folder, or the last one above it that there is, where no file can be made."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(
            f"{path}: cannot be written (nothing may be written to {folder}); choose another place with --out"
        )


def report_target(path: str | os.PathLike[str], option: str, beginning: str) -> None:
    """Refuse to write a report where something else is than a report of that kind; only looks at it.

    Parameters
    ----------
    path : str or Path
    option : str
        Which names it, for the message.
    beginning : str
        What such reports begin with, but for white space.

    Raises
    ------
    InputError
    """
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            return  # a terminal, a pipe: nothing is lost
        with open_regular(path) as file:
            head = b"".join(file.read(_BEGINNING_BYTES).split())
    except FileNotFoundError:
        if os.path.isdir(os.path.dirname(path) or "."):
            return
        raise InputError(
            f"cannot write {path}: there is no such folder; make it, or change {option}"
        ) from None
    except (OSError, ValueError) as exc:  # ValueError: a NUL in the name
        reason = exc.strerror if isinstance(exc, OSError) else exc
        raise InputError(f"cannot write {path}: {reason}; name another file with {option}") from None
    if head and not head.startswith("".join(beginning.split()).encode()):
        raise InputError(
            f"cannot write {path}: it exists and is no such report; remove it, or give another "
            f"file with {option}"
        )
