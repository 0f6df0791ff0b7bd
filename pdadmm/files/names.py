"""Names of files: made from what data call themselves, and found in folders of runs."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["model_of", "safe_name"]

_LONGEST = 100  #: bytes; a file's name may have 255


def safe_name(text: str) -> str:
    """What a data set calls itself, as it is used in names of files, in messages and in tables.

    Letters, digits, ``-``, ``_`` and ``.`` are kept and anything else becomes a hyphen, so that the name is
    neither a path nor hidden, nor steers a terminal. A safe name stays as it is.
    """
    name = re.sub(r"[^\w.-]+", "-", text[:_LONGEST]).strip("-.")
    return name.encode()[:_LONGEST].decode(errors="ignore").rstrip("-.") or "unnamed"


def model_of(run: str) -> Path:
    """The model.h5 of a run, of which its folder is given, or the file itself."""
    path = Path(run)
    return path if path.is_file() else path / "model.h5"
