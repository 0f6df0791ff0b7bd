"""Files that are whole or not there: written under a temporary name, then renamed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

__all__ = ["Record", "replacing", "write_json", "write_text"]

#: what JSON and TOML call an object or a table
Record: TypeAlias = dict[str, Any]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Name of a file to write in place of `path`, which it takes when the block ends.

    When the block raises, what it wrote is removed and `path` stays as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file as a whole."""
    with replacing(path) as temporary:
        temporary.write_text(text)


def write_json(path: Path, value: Any) -> None:
    """Write JSON as a whole."""
    write_text(path, json.dumps(value, indent=2) + "\n")
