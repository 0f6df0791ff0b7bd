"""The place of a file that a command makes: nothing else is replaced by it."""

from __future__ import annotations

import os
from pathlib import Path

from pdadmm.errors import InputError
from pdadmm.files.given import file_size

__all__ = ["target_of"]

_HDF5 = b"\x89HDF\r\n\x1a\n"
_HEAD_BYTES = 1 << 16  # of a file, which hold its attributes


def target_of(path: str | os.PathLike[str], schema: str, kind: str) -> Path:
    """The file that writing to `path` makes or replaces, behind symbolic links; only looks at it.

    Parameters
    ----------
    path : str or Path
    schema : str
        Of the files that may be replaced.
    kind : str
        What those are called.

    Raises
    ------
    InputError
        When something else is there than a file of that schema, which may be damaged.
    """
    target = Path(os.path.realpath(path))
    try:
        file_size(target)
        with target.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except FileNotFoundError:
        return target
    except OSError as exc:
        raise InputError(
            f"{path}: cannot be written ({exc.strerror}); choose another place with --out"
        ) from None
    if not head.startswith(_HDF5) or schema.encode() not in head:
        raise InputError(
            f"{path}: exists and is no {kind}, so it stays; remove it, or name another one with --out"
        )
    return target
