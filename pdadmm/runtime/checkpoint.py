"""Checkpoints: everything needed for the same iterates, a file a rank, an index written last.

Layout under the run's folder, the newest `KEPT` are kept::

    checkpoints/iteration-00000120/rank-0000.bin     arrays of the layers of rank 0, one after another
                                   rank-0001.bin
                                   index.json        state of the run, place of every array, sha256 of
                                                     every file, of itself

A checkpoint is written into a folder with the suffix ``.tmp``; files and folder are synced, and the
rename of the folder makes it valid. A reader trusts nothing without its checksum and falls back to
the checkpoint before. Arrays are stored by the position of their layer, so that a run may resume on
any number of ranks.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from pdadmm.arrays import Array
from pdadmm.comm.waiter import Waiter
from pdadmm.errors import InputError, RunError
from pdadmm.files import Record

__all__ = ["KEPT", "Checkpoint", "Saved", "newest", "put_aside", "write"]

KEPT = 2
VERSION = 3
_PREFIX = "iteration-"
_TEMPORARY, _DAMAGED = ".tmp", ".damaged"


def write(
    folder: Path, iteration: int, state: Record, arrays: Mapping[int, Mapping[str, Array]], waiter: Waiter
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
        This rank's arrays by layer position and name, on the host or on a GPU.

    Raises
    ------
    RunError
        On all ranks when any of them could not write, or holds NaN or Inf; earlier checkpoints stay
        as they are and what was written of this one is removed.
    """
    comm = waiter.comm
    final = folder / "checkpoints" / f"{_PREFIX}{iteration:08d}"
    temporary = final.with_name(final.name + _TEMPORARY)
    with waiter.patient():
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
            # a network file system may show the folder of rank 0 to other nodes late
            temporary.mkdir(parents=True, exist_ok=True)
            with waiter.limit(f"writing {temporary}"):
                entry = _write_rank(temporary / f"rank-{comm.rank:04d}.bin", arrays)
        except OSError as error:
            problem = f"rank {comm.rank}: {_reason(error, temporary)}"
        except _NotFinite as error:
            problem = f"rank {comm.rank}, {error}: NaN or Inf is not saved; the checkpoints before are intact"
        entries = waiter.gather((entry, problem))
        problem = next((p for _, p in entries if p), None) if entries else None
        if comm.rank == 0 and problem is None:
            assert entries is not None
            body = {
                "version": VERSION,
                "iteration": iteration,
                "state": state,
                "files": [e for e, _ in entries],
            }
            try:
                _write_synced(temporary / "index.json", _sealed(body))
                _sync_folder(temporary)
                _replace(temporary, final)
            except OSError as error:
                problem = _reason(error, temporary)
        if comm.rank == 0:
            if problem is None:
                _tidy(folder)
            else:
                shutil.rmtree(temporary, ignore_errors=True)
        _agree(problem, waiter)


class Saved(Mapping[str, np.ndarray]):
    """A layer's arrays by name, read from the file when asked for."""

    def __init__(self, path: Path, places: dict[str, tuple[str, list[int], int]]) -> None:
        self._path, self._places = path, places

    def __getitem__(self, name: str) -> np.ndarray:
        dtype, shape, offset = self._places[name]
        count = int(np.prod(shape, dtype=np.int64))
        found = np.fromfile(self._path, np.dtype(dtype), count, offset=offset)
        return found.reshape(shape)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


class Checkpoint:
    """A verified checkpoint.

    Attributes
    ----------
    iteration
        Iterations done.
    state
        As given to :func:`write`.
    layers
        Arrays by layer position and name.
    """

    def __init__(self, path: Path) -> None:
        index = _unsealed(path / "index.json")
        self.path = path
        self.iteration: int = index["iteration"]
        self.state: Record = index["state"]
        self._files: list[Record] = index["files"]
        self.layers: dict[int, Saved] = {}
        for entry in self._files:
            places: dict[int, dict[str, tuple[str, list[int], int]]] = {}
            for position, name, dtype, shape, offset in entry["arrays"]:
                places.setdefault(position, {})[name] = (dtype, shape, offset)
            for position, names in places.items():
                self.layers[position] = Saved(path / entry["name"], names)

    def verify(self, part: int = 0, parts: int = 1) -> str | None:
        """Check every `parts`-th file, beginning with number `part`; what is wrong, or None."""
        for entry in self._files[part::parts]:
            path = self.path / entry["name"]
            try:
                if path.stat().st_size != entry["bytes"] or _sha256(path) != entry["sha256"]:
                    return f"{path} fails its checksum"
            except OSError as error:
                return f"{path}: {error.strerror}"
        return None


def newest(folder: Path, waiter: Waiter, warn: Callable[[str], None]) -> Checkpoint:
    """The newest checkpoint that is intact on all ranks; collective.

    Every rank checks some of the files, whichever layers it will own. Damaged checkpoints that are
    newer are set aside under another name, so that they no longer count among the newest.

    Parameters
    ----------
    warn
        Called on rank 0 with a line about every damaged checkpoint that is passed over.

    Raises
    ------
    InputError
        When there is none.
    """
    comm = waiter.comm
    candidates = waiter.broadcast([str(p) for p in _complete(folder)] if comm.rank == 0 else None)
    damaged: list[Path] = []
    with waiter.patient():
        for name in candidates:
            path = Path(name)
            problem, checkpoint = None, None
            try:
                with waiter.limit(f"reading {path}"):
                    checkpoint = Checkpoint(path)
                    problem = checkpoint.verify(comm.rank, comm.size)
            except (OSError, ValueError, KeyError, TypeError) as error:
                problem = f"{path / 'index.json'} is damaged ({error})"
            problems = waiter.gather(problem)
            problem = waiter.broadcast(next((p for p in problems if p), None) if problems else None)
            if problem is None:
                assert checkpoint is not None
                if comm.rank == 0:
                    for other in damaged:
                        _set_aside(other)
                return checkpoint
            damaged.append(path)
            if comm.rank == 0:
                warn(f"{problem}; going back to the checkpoint before")
    raise InputError(f"there is no intact checkpoint in {folder / 'checkpoints'}; start without --resume")


def put_aside(folder: Path) -> Path | None:
    """Move the checkpoints of an earlier run out of the way of a fresh one; where they are now."""
    source = folder / "checkpoints"
    if not _complete(folder):
        shutil.rmtree(source, ignore_errors=True)
        return None
    target = source.with_name("checkpoints.old")
    shutil.rmtree(target, ignore_errors=True)
    source.rename(target)
    return target


class _NotFinite(Exception):
    """An array holds NaN or Inf; the message names layer and array."""


def _complete(folder: Path) -> list[Path]:
    """Folders of finished checkpoints, newest first."""
    found = [p for p in (folder / "checkpoints").glob(f"{_PREFIX}*") if not p.suffix and p.is_dir()]
    return sorted(found, reverse=True)


def _tidy(folder: Path) -> None:
    """Drop all but the newest checkpoints, and what crashes and damage left behind."""
    leftovers = [p for s in (_TEMPORARY, _DAMAGED) for p in (folder / "checkpoints").glob(f"{_PREFIX}*{s}")]
    for old in [*_complete(folder)[KEPT:], *leftovers]:
        shutil.rmtree(old, ignore_errors=True)


def _set_aside(path: Path) -> None:
    target = path.with_name(path.name + _DAMAGED)
    shutil.rmtree(target, ignore_errors=True)
    path.rename(target)


def _replace(temporary: Path, final: Path) -> None:
    """Rename the finished folder; one of that name, from before a resume, gives way in one step too."""
    if final.exists():
        _set_aside(final)
    os.rename(temporary, final)
    _sync_folder(final.parent)


def _write_rank(path: Path, arrays: Mapping[int, Mapping[str, Array]]) -> Record:
    """Write a rank's arrays; returns the file's entry in the index."""
    digest = hashlib.sha256()
    places: list[tuple[int, str, str, tuple[int, ...], int]] = []
    offset = 0
    # a second thread hashes what this one writes: both leave Python's lock
    with ThreadPoolExecutor(1) as pool, path.open("wb") as file:
        for position, named in arrays.items():
            for name, array in named.items():
                host = np.ascontiguousarray(array.get() if hasattr(array, "get") else array)
                if host.dtype.kind == "f" and not np.isfinite(host.sum(dtype=np.float64)):
                    raise _NotFinite(f"layer {position}, {name}")
                data = host.reshape(-1).view(np.uint8).data
                hashed = pool.submit(digest.update, data)
                file.write(data)
                hashed.result()
                places.append((position, name, host.dtype.str, host.shape, offset))
                offset += host.nbytes
        file.flush()
        os.fsync(file.fileno())
    return {"name": path.name, "bytes": offset, "sha256": digest.hexdigest(), "arrays": places}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _sealed(body: Record) -> bytes:
    """The body as JSON, in a line after its own checksum."""
    text = json.dumps(body).encode()
    return hashlib.sha256(text).hexdigest().encode() + b"\n" + text + b"\n"


def _unsealed(path: Path) -> Record:
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
        raise RunError(problem, everywhere=True)
