"""metrics.jsonl: a line an evaluated iteration, and where in it a checkpoint stands."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

from pdadmm.files import Record, append, free_name, naming
from pdadmm.files.given import open_regular

__all__ = ["Metrics"]

_CHUNK = 1 << 20


class Metrics:
    """The file while a run writes it, on rank 0.

    Parameters
    ----------
    path
        Of the file.
    require
        Called before a line is added or a checkpoint refers to the file: raises where it is not the run's any
        more.
    """

    def __init__(self, path: Path, require: Callable[[], None] = lambda: None) -> None:
        self._path, self._require = path, require
        self._bytes = 0
        self._digest = hashlib.sha256()

    def begin(self) -> None:
        """Start with an empty file."""
        with naming(self._path):
            self._path.write_bytes(b"")

    def go_back(self, mark: Record | None) -> Path | None:
        """Take a file of before back to a mark, and go on from there.

        Returns
        -------
        Path or None
            Where the file is now if it is not what was marked; then an empty one has taken its place.
        """
        if mark is not None and self._reaches(mark):
            with naming(self._path):
                os.truncate(self._path, self._bytes)
            return None
        moved = None
        if os.path.lexists(self._path):
            moved = self._path.rename(free_name(self._path))
        self._bytes, self._digest = 0, hashlib.sha256()
        self.begin()
        return moved

    def _reaches(self, mark: Record) -> bool:
        """Read up to a mark; whether the file is the same up to there."""
        try:
            with open_regular(self._path) as file:
                while self._bytes < mark["bytes"]:
                    chunk = file.read(min(_CHUNK, mark["bytes"] - self._bytes))
                    if not chunk:
                        return False
                    self._digest.update(chunk)
                    self._bytes += len(chunk)
        except OSError:
            return False
        return self._digest.hexdigest() == mark["sha256"]

    def add(self, record: Record) -> None:
        """Add a line."""
        self._require()
        line = json.dumps(record).encode() + b"\n"
        append(self._path, line)
        self._bytes += len(line)
        self._digest.update(line)

    def mark(self) -> Record:
        """Where the file ends now, for :meth:`go_back`; what stands before is on the disk."""
        self._require()
        with naming(self._path), self._path.open("rb") as file:
            os.fsync(file.fileno())
        return {"bytes": self._bytes, "sha256": self._digest.hexdigest()}
