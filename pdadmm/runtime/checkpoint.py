"""Checkpoints: everything needed for the same iterates, a file a rank, an index written last.

Layout under the run's folder, the newest `KEPT` are kept::

    checkpoints/iteration-00000120/rank-0000.bin     arrays of the layers of rank 0, one after another
                                   rank-0001.bin
                                   index.json        state of the run, place of every array, sha256 of
                                                     every file, of itself

A checkpoint is written into a folder with the suffix ``.tmp``; files and folder are synced, and the
rename of the folder makes it valid. A reader trusts nothing without its checksum, and no checksum without
what :mod:`pdadmm.runtime.index` asks for, and falls back to the checkpoint before. Arrays are stored by the
position of their layer, so that a run may resume on any number of ranks.

``checkpoints`` may be a link to a folder elsewhere. Nothing in it is deleted but files of these names.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pdadmm.arrays import Array
from pdadmm.comm.waiter import Waiter
from pdadmm.errors import InputError, RunError
from pdadmm.files import Record, free_name, sync_folder
from pdadmm.files.given import open_regular

if TYPE_CHECKING:
    from pdadmm.runtime.index import FileEntry, Place

__all__ = [
    "FOLDER",
    "KEPT",
    "START_AFRESH",
    "Checkpoint",
    "Saved",
    "any_sealed",
    "last_state",
    "newest",
    "write",
]

KEPT = 2
VERSION = 4
#: in a run's folder
FOLDER = "checkpoints"
#: what to do where nothing can be gone on from
START_AFRESH = "start afresh with --overwrite in place of --resume"
_PREFIX = "iteration-"
_TEMPORARY, _DAMAGED = ".tmp", ".damaged"
_COMPLETE = re.compile(r"iteration-[0-9]{8,}")
_LEFT_OVER = re.compile(r"iteration-[0-9]{8,}(\.tmp|\.damaged)")
#: errors by which a file is not there, or is none: others, of a disk or a network, may pass
_DAMAGE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.ELOOP)
_OURS = re.compile(r"rank-[0-9]{4,}\.bin|index\.json")
#: seconds for which a network file system may show a file of another node as it was before
_CACHED = 30.0
#: more than the index of a hundred thousand layers
_LONGEST_INDEX = 1 << 28


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
    final = folder / FOLDER / f"{_PREFIX}{iteration:08d}"
    temporary = final.with_name(final.name + _TEMPORARY)
    with waiter.patient():
        problem = None
        if comm.rank == 0:
            try:
                _remove(temporary)
                _make(temporary)  # a stranger's file stays in it
                sync_folder(folder)  # which may not have had checkpoints before
            except OSError as error:
                problem = _reason(error, temporary)
        _agree(problem, waiter)
        entry = None
        try:
            # a network file system may show the folder of rank 0 to other nodes late
            _make(temporary)
            with waiter.limit(f"writing {temporary}"):
                entry = _write_rank(temporary / f"rank-{comm.rank:04d}.bin", arrays)
        except OSError as error:
            of_rank = f"rank {comm.rank}: " if comm.rank else ""  # rank 0 says it
            problem = f"{of_rank}{_reason(error, temporary)}"
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
            problem = _seal(temporary, final, body)
        if comm.rank == 0:
            if problem is None:
                _tidy(folder)
            else:
                _remove(temporary)
        _agree(problem, waiter)


def _seal(temporary: Path, final: Path, body: Record) -> str | None:
    """Give what all ranks have written its index and its name, on rank 0; what is wrong, or None."""
    try:
        problem = _unseen(temporary, body["files"])
        if problem is None:
            _write_synced(temporary / "index.json", _sealed(body))
            sync_folder(temporary)
            _replace(temporary, final)
    except OSError as error:
        return _reason(error, temporary)
    return problem


def _unseen(folder: Path, files: list[Record]) -> str | None:
    """What is wrong where rank 0 does not see what another rank has written; None where it sees all."""
    until = time.monotonic() + _CACHED
    for rank, entry in enumerate(files):
        path = folder / entry["name"]
        while not (path.exists() and path.stat().st_size == entry["bytes"]):
            if time.monotonic() > until:
                return (
                    f"rank {rank} has written {path}, but rank 0 does not see it; give --out a folder that "
                    "all nodes share"
                )
            time.sleep(0.05)
    return None


class Saved(Mapping[str, np.ndarray]):
    """A layer's arrays by name, read from their files when asked for.

    Raises
    ------
    RunError
        When what is read holds NaN or Inf, which is never saved.
    """

    def __init__(self, places: dict[str, tuple[Path, Place]]) -> None:
        self._places = places

    def __getitem__(self, name: str) -> np.ndarray:
        path, place = self._places[name]
        dtype = np.dtype(place.dtype)
        with open_regular(path) as file:
            file.seek(place.offset)
            found = np.fromfile(file, dtype, place.nbytes // dtype.itemsize)
        if dtype.kind == "f" and not np.isfinite(found.sum(dtype=np.float64)):
            raise RunError(f"{path} holds NaN or Inf in {name} of layer {place.position}; {START_AFRESH}")
        return found.reshape(place.shape)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def form(self, name: str) -> tuple[str, tuple[int, ...]]:
        """Type and shape of an array, without reading it."""
        _, place = self._places[name]
        return place.dtype, tuple(place.shape)


class Checkpoint:
    """A checkpoint whose index is sound; its files are not read yet.

    Attributes
    ----------
    iteration
        Iterations done.
    state
        As given to :func:`write`.
    layers
        Arrays by layer position and name.

    Raises
    ------
    OSError, ValueError
        When it is damaged.
    InputError
        When it is of another version.
    """

    def __init__(self, path: Path) -> None:
        from pdadmm.runtime.index import checked

        body = _unsealed(path / "index.json")
        version = body.get("version") if isinstance(body, dict) else None
        if type(version) is int and version != VERSION:
            raise InputError(
                f"{path / 'index.json'} has checkpoint version {version}, this version reads {VERSION}; "
                "resume with the version that wrote it"
            )
        index = checked(body)
        if path.name != f"{_PREFIX}{index.iteration:08d}":
            raise ValueError(f"it is of iteration {index.iteration}")
        self.path = path
        self.iteration = index.iteration
        self.state: Record = index.state
        self._files: list[FileEntry] = index.files
        places: dict[int, dict[str, tuple[Path, Place]]] = {}
        for file in index.files:
            for place in file.arrays:
                places.setdefault(place.position, {})[place.name] = path / file.name, place
        self.layers = {position: Saved(names) for position, names in places.items()}

    def verify(self, part: int = 0, parts: int = 1) -> str | None:
        """Check every `parts`-th file, beginning with number `part`; what is wrong, or None."""
        for entry in self._files[part::parts]:
            path = self.path / entry.name
            try:
                if path.stat().st_size != entry.bytes or _sha256(path) != entry.sha256:
                    return f"{path} fails its checksum"
            except OSError as error:
                if error.errno not in _DAMAGE:
                    raise
                return f"{path}: {error.strerror}"
        return None


def newest(
    folder: Path,
    waiter: Waiter,
    warn: Callable[[str], None],
    fits: Callable[[Checkpoint], None] | None = None,
) -> Checkpoint:
    """The newest checkpoint that is intact on all ranks; collective.

    Every rank checks some of the files, whichever layers it will own. Damaged checkpoints that are
    newer are set aside under another name, so that they no longer count among the newest.

    Parameters
    ----------
    warn
        Called on rank 0 with a line about every damaged checkpoint that is passed over.
    fits
        Called with a checkpoint before its files are read; raises ValueError when its state or its arrays
        are not what the run would have saved, which is damage too, and InputError when it is of another run.

    Raises
    ------
    InputError
        When there is none, it is of another version or another run, or cannot be read for a reason that may
        pass.
    """
    comm = waiter.comm
    candidates = waiter.broadcast([str(p) for p in _complete(folder)] if comm.rank == 0 else None)
    damaged: list[Path] = []
    with waiter.patient():
        for name in candidates:
            path = Path(name)
            found: str | InputError | None
            try:
                with waiter.limit(f"reading {path}"):
                    checkpoint = Checkpoint(path)
                    try:
                        if fits is not None:
                            fits(checkpoint)
                        found = checkpoint.verify(comm.rank, comm.size)
                    except ValueError:  # of arrays, in files that may be damaged
                        found = checkpoint.verify()
                        if found is None:
                            raise
            except InputError as error:
                found = error
            except OSError as error:
                found = f"{error.filename or path}: {error.strerror}"
                if error.errno not in _DAMAGE:
                    found = InputError(f"{found}; resume when it can be read, or move {path} away")
            except ValueError as error:
                found = f"{path / 'index.json'} is damaged ({repr(str(error))[1:-1]})"
            problems = waiter.gather(found)
            problem = waiter.broadcast(next((p for p in problems if p), None) if problems else None)
            if isinstance(problem, InputError):
                raise problem
            if problem is None:
                if comm.rank == 0:
                    for other in damaged:
                        _set_aside(other)
                return checkpoint
            damaged.append(path)
            if comm.rank == 0:
                warn(f"{problem}; going back to the checkpoint before")
    raise InputError(f"there is no intact checkpoint in {folder / FOLDER}; {START_AFRESH}")


def any_sealed(folder: Path) -> bool:
    """Whether a run has left a checkpoint here that it finished writing."""
    return next(_indices(folder), None) is not None


def last_state(folder: Path) -> Record:
    """State in the newest checkpoint's index that is sound, unchecked; empty where there is none."""
    return next((index["state"] for index in _indices(folder) if isinstance(index.get("state"), dict)), {})


class _NotFinite(Exception):
    """An array holds NaN or Inf; the message names layer and array."""


def _complete(folder: Path) -> list[Path]:
    """Folders of finished checkpoints, newest first."""
    found = [p for p in _entries(folder / FOLDER) if _COMPLETE.fullmatch(p.name) and p.is_dir()]
    return sorted(found, key=lambda p: int(p.name[len(_PREFIX) :]), reverse=True)


def _indices(folder: Path) -> Iterator[Record]:
    """What the indices of finished checkpoints hold, newest first; those that are damaged left out."""
    for path in _complete(folder):
        with contextlib.suppress(OSError, ValueError):
            found = _unsealed(path / "index.json")
            if isinstance(found, dict):
                yield found


def _make(temporary: Path) -> None:
    """The folder of a checkpoint, and that of all; the run's, if somebody has taken it away, is not made."""
    temporary.parent.mkdir(exist_ok=True)
    temporary.mkdir(exist_ok=True)


def _entries(folder: Path) -> list[Path]:
    """What is in a folder; nothing where there is none."""
    return list(folder.iterdir()) if folder.is_dir() else []


def _tidy(folder: Path) -> None:
    """Drop all but the newest checkpoints, and what crashes and damage left behind."""
    leftovers = [p for p in _entries(folder / FOLDER) if _LEFT_OVER.fullmatch(p.name)]
    for old in [*_complete(folder)[KEPT:], *leftovers]:
        _remove(old)


def _remove(checkpoint: Path) -> None:
    """Delete a checkpoint's files, and its folder unless something else is in it, or it is a link."""
    if checkpoint.is_symlink() or not checkpoint.is_dir():
        return
    with contextlib.suppress(OSError):
        for path in checkpoint.iterdir():
            if _OURS.fullmatch(path.name):
                path.unlink()
        checkpoint.rmdir()


def _set_aside(path: Path) -> None:
    target = path.with_name(path.name + _DAMAGED)
    _remove(target)
    path.rename(free_name(target) if os.path.lexists(target) else target)


def _replace(temporary: Path, final: Path) -> None:
    """Rename the finished folder; one of that name, from before a resume, gives way in one step too."""
    if final.exists():
        _set_aside(final)
    os.rename(temporary, final)
    sync_folder(final.parent)


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
    with open_regular(path) as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _sealed(body: Record) -> bytes:
    """The body as JSON, in a line after its own checksum."""
    text = json.dumps(body).encode()
    return hashlib.sha256(text).hexdigest().encode() + b"\n" + text + b"\n"


def _unsealed(path: Path) -> object:
    """The JSON value of a sealed file; OSError or ValueError when it is damaged."""
    with open_regular(path) as file:
        seal, _, text = file.read(_LONGEST_INDEX).partition(b"\n")
    if not text.endswith(b"\n") or hashlib.sha256(text[:-1]).hexdigest().encode() != seal:
        raise ValueError("checksum")
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _reason(error: OSError, path: Path) -> str:
    before = bool(_complete(path.parent.parent))
    intact = "the ones before are intact: go on with --resume"
    going_on = intact if before else "there is none before: start again with --overwrite"
    room = "make room; " if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
    return f"the checkpoint {path} could not be written ({error.strerror}); {room}{going_on}"


def _agree(problem: str | None, waiter: Waiter) -> None:
    problem = waiter.broadcast(problem)
    if problem is not None:
        raise RunError(problem, everywhere=True)
