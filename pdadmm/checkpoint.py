"""Checkpoints: everything needed for the same iterates, a file a rank, an index written last.

Layout under the run's folder, the newest `KEPT` are kept::

    checkpoints/iteration-00000120/rank-0000.npz     arrays of the layers of rank 0
                                   rank-0001.npz
                                   index.json        state of the run, sha256 of every file, of itself

A checkpoint is written into a folder with the suffix ``.tmp``; files and folder are synced, and the
rename of the folder makes it valid. A reader trusts nothing without its checksum and falls back to
the checkpoint before. Layers are stored by position, so that a run may resume on any number of ranks.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from pdadmm.comm.waiting import Waiter
from pdadmm.errors import InputError, RunError

__all__ = ["KEPT", "Checkpoint", "newest", "write"]

KEPT = 2
VERSION = 1
_PREFIX = "iteration-"

State = dict[str, Any]


def write(
    folder: Path, iteration: int, state: State, arrays: dict[int, dict[str, Any]], waiter: Waiter
) -> None:
    """Write a checkpoint; collective.

    Parameters
    ----------
    folder
        The run's folder.
    iteration
        Iterations done so far, over all stages.
    state
        What is the same on all ranks; must fit JSON.
    arrays
        This rank's arrays by layer position and name.

    Raises
    ------
    RunError
        On all ranks when any of them could not write; earlier checkpoints stay as they are.
    """
    comm = waiter.comm
    final = folder / "checkpoints" / f"{_PREFIX}{iteration:08d}"
    temporary = final.with_name(final.name + ".tmp")
    problem = None
    if comm.rank == 0:
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        except OSError as error:
            problem = _reason(error, temporary)
    _agree(problem, waiter)
    entry = None
    try:
        entry = _write_rank(temporary / f"rank-{comm.rank:04d}.npz", arrays)
    except OSError as error:
        problem = _reason(error, temporary)
    entries = waiter.gather((entry, problem))
    problem = next((p for _, p in entries if p), None) if entries else None
    if comm.rank == 0 and problem is None:
        assert entries is not None
        try:
            body = {
                "version": VERSION,
                "iteration": iteration,
                "state": state,
                "files": [e for e, _ in entries],
            }
            _write_synced(temporary / "index.json", _sealed(body))
            _sync_folder(temporary)
            shutil.rmtree(final, ignore_errors=True)
            os.rename(temporary, final)
            _sync_folder(final.parent)
            for old in _complete(folder)[KEPT:]:
                shutil.rmtree(old, ignore_errors=True)
        except OSError as error:
            problem = _reason(error, temporary)
    if comm.rank == 0 and problem is not None:
        shutil.rmtree(temporary, ignore_errors=True)
    _agree(problem, waiter)


class Checkpoint:
    """A verified checkpoint.

    Attributes
    ----------
    iteration
        Iterations done.
    state
        As given to :func:`write`.
    """

    def __init__(self, path: Path, index: dict[str, Any]) -> None:
        self.path = path
        self.iteration: int = index["iteration"]
        self.state: State = index["state"]
        self._files: list[dict[str, Any]] = index["files"]

    def verify(self, positions: set[int]) -> str | None:
        """Check the files that hold the layers at `positions`; what is wrong, or None."""
        for entry in self._files:
            if positions & set(entry["layers"]):
                path = self.path / entry["name"]
                try:
                    if path.stat().st_size != entry["bytes"] or _sha256(path) != entry["sha256"]:
                        return f"{path} fails its checksum"
                except OSError as error:
                    return f"{path}: {error.strerror}"
        return None

    def arrays(self, positions: set[int]) -> dict[int, dict[str, np.ndarray]]:
        """Arrays of the layers at `positions`."""
        found: dict[int, dict[str, np.ndarray]] = {}
        for entry in self._files:
            wanted = positions & set(entry["layers"])
            if not wanted:
                continue
            with np.load(self.path / entry["name"], allow_pickle=False) as file:
                for key in file.files:
                    position, name = key.split("/", 1)
                    if int(position) in wanted:
                        found.setdefault(int(position), {})[name] = file[key]
        return found


def newest(folder: Path, waiter: Waiter, warn: Any) -> Checkpoint:
    """The newest checkpoint that is intact on all ranks; collective.

    Every rank checks some of the files, whichever layers it will own.

    Parameters
    ----------
    warn
        Called on rank 0 with a line about every damaged checkpoint that is passed over.

    Raises
    ------
    InputError
        When there is none.
    """
    candidates = waiter.broadcast([str(p) for p in _complete(folder)] if waiter.comm.rank == 0 else None)
    for name in candidates:
        path = Path(name)
        problem, checkpoint = None, None
        try:
            checkpoint = Checkpoint(path, _unsealed(path / "index.json"))
            mine = checkpoint._files[waiter.comm.rank :: waiter.comm.size]
            problem = checkpoint.verify({position for entry in mine for position in entry["layers"]})
        except (OSError, ValueError, KeyError, TypeError) as error:
            problem = f"{path / 'index.json'} is damaged ({error})"
        problems = waiter.gather(problem)
        problem = waiter.broadcast(next((p for p in problems if p), None) if problems else None)
        if problem is None:
            assert checkpoint is not None
            return checkpoint
        if waiter.comm.rank == 0:
            warn(f"{problem}; going back to the checkpoint before")
    raise InputError(f"there is no intact checkpoint in {folder / 'checkpoints'}; start without --resume")


def _complete(folder: Path) -> list[Path]:
    """Folders of finished checkpoints, newest first."""
    found = [p for p in (folder / "checkpoints").glob(f"{_PREFIX}*") if p.suffix != ".tmp" and p.is_dir()]
    return sorted(found, reverse=True)


def _write_rank(path: Path, arrays: dict[int, dict[str, Any]]) -> dict[str, Any]:
    flat = {
        f"{position}/{name}": array for position, named in arrays.items() for name, array in named.items()
    }
    with path.open("wb") as file:
        np.savez(file, **flat)
        file.flush()
        os.fsync(file.fileno())
    return {
        "name": path.name,
        "layers": sorted(arrays),
        "bytes": path.stat().st_size,
        "sha256": _sha256(path),
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        if hasattr(hashlib, "file_digest"):
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha256()  # Python 3.10
        while chunk := file.read(1 << 20):
            digest.update(chunk)
        return digest.hexdigest()


def _sealed(body: dict[str, Any]) -> bytes:
    """The body as JSON, in a line after its own checksum."""
    text = json.dumps(body).encode()
    return hashlib.sha256(text).hexdigest().encode() + b"\n" + text + b"\n"


def _unsealed(path: Path) -> dict[str, Any]:
    seal, _, text = path.read_bytes().partition(b"\n")
    if not text.endswith(b"\n") or hashlib.sha256(text[:-1]).hexdigest().encode() != seal:
        raise ValueError("checksum")
    body = json.loads(text)
    if body["version"] != VERSION:
        raise InputError(
            f"{path} has checkpoint version {body['version']}, this version reads {VERSION}; "
            "resume with the version that wrote it"
        )
    return dict(body)


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(error: OSError, path: Path) -> str:
    return f"the checkpoint {path} could not be written ({error.strerror}); the ones before are intact"


def _agree(problem: str | None, waiter: Waiter) -> None:
    problem = waiter.broadcast(problem)
    if problem is not None:
        raise RunError(problem)
