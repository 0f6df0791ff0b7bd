"""The folder of a run's results: whose it is, one run at a time in it, and nothing in it is ever lost.

A folder is a run's when it holds ``run.lock``, whose first line says so, or a checkpoint that a run finished
writing. The file stays; the lock on it is the kernel's, and ends with the process of rank 0 however that
ends. Only a run's folder is gone on in or moved aside; a folder with anything else in it is not touched.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import fcntl
import itertools
import json
import os
import platform
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pdadmm
from pdadmm.comm.waiter import Waiter
from pdadmm.errors import InputError, RunError
from pdadmm.files import free_name, sync_folder, write_text
from pdadmm.files.given import file_size, open_regular, read_file
from pdadmm.runtime.checkpoint import FOLDER, START_AFRESH, any_sealed
from pdadmm.runtime.launch import agree
from pdadmm.runtime.options import to_toml
from pdadmm.runtime.sections import Output

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from pdadmm.runtime.checkpoint import Checkpoint
    from pdadmm.runtime.metrics import Metrics

__all__ = ["LOCK", "RESULTS", "RunFolder", "begin_files", "run_folder"]

Room = TypeVar("Room")

LOCK = "run.lock"
#: what a run begins with
_BEGUN = ("config.toml", "metrics.jsonl")
#: what a run leaves at its end
RESULTS = ("summary.json", "model.h5", "model_best.h5", "profile.json", "trace.json")
_SUMMARY_BYTES = 1 << 24  # far more than a run writes
_FIRST_LINE = b"a run of pdadmm\n"
_SECOND_LINE = "This file marks its folder, and is locked while the run goes on.\n"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class _Held(enum.Enum):
    """What is in a folder, which need not exist."""

    NOTHING, RUN, OTHERS = range(3)


class RunFolder:
    """A folder that this run alone writes to.

    Parameters
    ----------
    path
        Of the folder.
    claim
        Rank 0's hold on it; None on the others.
    """

    def __init__(self, path: Path, claim: _Claim | None) -> None:
        self.path = path
        self._claim = claim

    def move_aside(self) -> Path | None:
        """Make room for a fresh run, as --overwrite asks for; where the old run is now, if there was one.

        On rank 0, when nothing else can be wrong with the fresh run any more.

        Raises
        ------
        InputError
        """
        assert self._claim is not None
        return self._claim.move_aside()

    def require(self) -> None:
        """Refuse to go on where the folder is no longer there by its name: another run may have that one now.

        Raises
        ------
        RunError
            On rank 0.
        """
        if self._claim is not None and not self._claim.in_place():
            raise RunError(
                f"{self.path} was moved or deleted while the run went on; nothing more is written to it"
            )

    def begin(self) -> None:
        """From now on what is in the folder stays, however the run ends."""
        if self._claim is not None:
            self._claim.begun = True

    def make_way(self, epochs: int | None, warn: Callable[[str], None]) -> None:
        """Make way for results of a run of so many epochs, where it has epochs; on rank 0.

        Those of the same run stay until the same ones take their place: it may be killed before that. Those
        of a run of other epochs get names of their own, and what an end that was not reached left is deleted.
        """
        summary = self._summary()
        before = summary.get("epochs") if summary is not None else None
        if summary is None or (before != epochs and type(before) is not int):
            for name in RESULTS:
                (self.path / name).unlink(missing_ok=True)
        elif before != epochs:
            for name in reversed(RESULTS):  # the summary last: without it the others would not be kept
                with contextlib.suppress(FileNotFoundError):
                    old = self.path / name
                    old.replace(old.with_stem(f"{old.stem}-{before}-epochs"))
            warn(f"what the run left after {before} epochs is now model-{before}-epochs.h5 and so on")
        for name in (*RESULTS, *_BEGUN):
            for temporary in self.path.glob(f".{name}.*.tmp"):  # of a part that was killed
                temporary.unlink()

    def _summary(self) -> dict[str, Any] | None:
        """Of a run that has come to its end here."""
        try:
            found = json.loads(read_file(self.path / "summary.json", _SUMMARY_BYTES))
        except (OSError, ValueError, RecursionError):
            return None
        return found if isinstance(found, dict) else None


@contextlib.contextmanager
def run_folder(
    waiter: Waiter, output: Output, dataset: str, warn: Callable[[str], None]
) -> Iterator[RunFolder]:
    """The folder that the options name, or a new one named after data set and time; collective.

    It is this run's alone until the block ends, and stands in the options of all ranks. When the block ends
    with an error before :meth:`RunFolder.begin`, everything is as it was.

    Parameters
    ----------
    warn
        Called on rank 0 with what is not as it should be.

    Raises
    ------
    InputError
        On all ranks: when it holds other files or another run, or cannot be written to.
    """
    claim = agree(waiter, lambda: None if waiter.comm.rank else _claim(output, dataset, warn))
    output.out = waiter.broadcast(str(claim.path) if claim is not None else None)
    try:
        yield RunFolder(Path(output.out), claim)
    finally:
        if claim is not None:
            if not claim.begun:
                claim.undo()
            claim.release()


def begin_files(
    folder: RunFolder,
    config: DataclassInstance,
    metrics: Metrics,
    resumed: Checkpoint | None,
    data: str,
    warn: Callable[[str], None],
    reserve: Callable[[], Room],
    epochs: int | None = None,
) -> Room:
    """Begin a run in its folder: config.toml, and metrics.jsonl as it was at the checkpoint; on rank 0.

    What can be refused is tried before anything of an earlier run is touched.

    Parameters
    ----------
    config
        Complete options of the run.
    resumed
        What it goes on from.
    data
        What the path in the options leads to, in words.
    warn
        Called with what is not as it should be.
    reserve
        Takes room for results, once an earlier run has made way.
    epochs
        Of the run, where it may go on for more than before.

    Returns
    -------
    What `reserve` returned.

    Raises
    ------
    InputError
        When they cannot be written.
    """
    path = folder.path
    header = f"# pdadmm {pdadmm.__version__}, every option of the run in {path.resolve().name!r}\n"
    try:
        text = header + to_toml(config)
        text.encode()
        old = folder.move_aside() if resumed is None else None
        with contextlib.suppress(FileNotFoundError):
            file_size(path / "config.toml")  # a pipe would wait for a reader
        room = reserve()
        if resumed is None:
            metrics.begin()
        elif moved := metrics.go_back(resumed.state["metrics"]):
            warn(f"metrics.jsonl is not what the run had written; it is now {moved}, and a new one begins")
        write_text(path / "config.toml", text)
        if resumed is not None:
            folder.make_way(epochs, warn)
    except OSError as error:
        where = error.filename or path
        reason = error.strerror or str(error).partition("\n")[0]  # of HDF5 only the latter
        raise InputError(f"{where} cannot be written ({reason}); choose another --out") from None
    except UnicodeEncodeError:
        raise InputError(f"the path of the {data} is not UTF-8, which config.toml needs; rename it") from None
    folder.begin()
    if old is not None:
        warn(f"--overwrite: the run that was in {path} is now in {old}")
    return room


def _claim(output: Output, dataset: str, warn: Callable[[str], None]) -> _Claim:
    try:
        if not output.out:
            folder, made = _new_folder(dataset)
            return _Claim(folder, made, _Held.NOTHING, warn)
        folder = Path(output.out)
        held = _look(folder)
        _refuse(folder, held, output)
        made = _make(folder) if held is _Held.NOTHING else []
        claim = _Claim(folder, made, held, warn)
        try:
            if _look(folder) is not held:
                raise InputError(f"another run has just started in --out {folder}; choose another folder")
            _require_writable(folder / FOLDER)
        except BaseException:
            claim.undo()
            claim.release()
            raise
    except OSError as error:
        where = output.out or "runs/"
        raise InputError(f"cannot write to --out {where}: {error.strerror}; choose another folder") from None
    return claim


def _refuse(folder: Path, held: _Held, output: Output) -> None:
    """Refuse a folder that the options do not allow to write to."""
    if held is _Held.OTHERS:
        raise InputError(f"--out {folder} holds files that are not a run's; choose another folder")
    if held is _Held.NOTHING and output.resume:
        raise InputError(f"there is no intact checkpoint in {folder / FOLDER}; {START_AFRESH}")
    if held is _Held.RUN and not output.resume and not output.overwrite:
        _Lock.taken(folder)
        kind = "a finished" if (folder / "summary.json").exists() else "an interrupted"
        going_on = "go on with --resume, " if any_sealed(folder) else ""
        raise InputError(
            f"--out {folder} holds {kind} run; {going_on}move it aside with --overwrite, or choose another "
            "folder"
        )


def _look(folder: Path) -> _Held:
    """What is in a folder.

    An empty folder that ``checkpoints`` links to, perhaps on a larger disk, is made for the run.
    """
    if not folder.exists():
        return _Held.NOTHING
    names = {path.name for path in folder.iterdir()}
    first_line = _first_line(folder / LOCK) if LOCK in names else b""
    if first_line not in (b"", _FIRST_LINE):
        return _Held.OTHERS
    others = names - {LOCK}
    if not others or (others == {FOLDER} and (folder / FOLDER).is_symlink() and _is_empty(folder / FOLDER)):
        return _Held.NOTHING
    return _Held.RUN if first_line or any_sealed(folder) else _Held.OTHERS


def _first_line(path: Path) -> bytes | None:
    """Of a lock file: empty where its writer, or the machine, stopped before it was on the disk."""
    try:
        with open_regular(path) as file:
            return file.read(len(_FIRST_LINE))
    except OSError:
        return None


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def _require_writable(checkpoints: Path) -> None:
    """A link to nowhere, a file or a folder of others would only show when the first one is saved."""
    if not os.path.lexists(checkpoints):
        return
    if not checkpoints.is_dir():
        raise InputError(f"{checkpoints} is no folder; move it away, or make the folder that it links to")
    if not os.access(checkpoints, os.W_OK | os.X_OK):
        raise InputError(f"cannot write to {checkpoints}; choose another --out")


def _new_folder(dataset: str) -> tuple[Path, list[Path]]:
    """A folder that nobody has, and the folders made, deepest first."""
    first = Path(f"runs/{dataset}-{time.strftime('%Y%m%d-%H%M%S')}")
    made = _make(first.parent)
    for number in itertools.count():
        folder = first.with_name(f"{first.name}-{number}") if number else first
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        made.insert(0, folder)
        sync_folder(folder.parent)
        break
    return folder, made


def _make(folder: Path) -> list[Path]:
    """Make a folder; returns the folders made, deepest first."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in reversed(made):
        sync_folder(path.parent)
    return made


class _Claim:
    """Rank 0's hold on a folder.

    Parameters
    ----------
    path
        Of the folder.
    made
        Folders made for it, deepest first.
    held
        What was in it.
    warn
        Called when the file system has no locks.
    """

    def __init__(self, path: Path, made: list[Path], held: _Held, warn: Callable[[str], None]) -> None:
        self.path = path
        self.begun = False
        self._made, self._held, self._warn = made, held, warn
        self._moved: tuple[Path, Path] | None = None
        try:
            self._lock = _Lock(path, warn)
        except BaseException:
            self._unmake()
            raise

    def move_aside(self) -> Path | None:
        if self._held is _Held.NOTHING:
            return None
        folder = self.path.resolve()  # what a link leads to moves, so that the new run is in its place too
        if Path.cwd().is_relative_to(folder):
            raise InputError(f"--overwrite cannot move {folder} aside from inside; start in another folder")
        old = free_name(folder)
        before = self._lock
        try:
            before.forget()
            folder.rename(old)
            self._moved = folder, old
            folder.mkdir()
            sync_folder(folder.parent)
            self._lock = _Lock(folder, self._warn)
        except OSError as error:
            raise InputError(
                f"--overwrite cannot move {folder} aside ({error.strerror}); choose another --out"
            ) from None
        before.release()
        self._held = _Held.NOTHING
        return old

    def in_place(self) -> bool:
        return self._lock.in_place()

    def undo(self) -> None:
        """Leave the place as it was; only before the run has begun."""
        if self._held is _Held.NOTHING:
            for name in _BEGUN:
                with contextlib.suppress(OSError):
                    (self.path / name).unlink()
        with contextlib.suppress(OSError):
            self._lock.forget()
        if self._moved is not None:
            folder, old = self._moved
            with contextlib.suppress(OSError):
                folder.rmdir()
            with contextlib.suppress(OSError):
                old.rename(folder)
        self._unmake()

    def _unmake(self) -> None:
        with contextlib.suppress(OSError):
            for path in self._made:
                path.rmdir()

    def release(self) -> None:
        self._lock.release()


class _Lock:
    """The lock file of a folder, made where it is not there.

    Raises
    ------
    InputError
        When another run holds it.
    OSError
    """

    def __init__(self, folder: Path, warn: Callable[[str], None]) -> None:
        self._path = folder / LOCK
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        self._new = not os.path.lexists(self._path)
        self._descriptor = os.open(self._path, flags, 0o644)
        try:
            self._take(folder, warn)
        except BaseException:
            self.release()
            raise

    @staticmethod
    def taken(folder: Path) -> None:
        """Refuse a folder whose lock another run holds."""
        with contextlib.suppress(FileNotFoundError, PermissionError):
            descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                _flock(descriptor, folder)
            finally:
                os.close(descriptor)

    def _take(self, folder: Path, warn: Callable[[str], None]) -> None:
        if not _flock(self._descriptor, folder):
            warn(f"{folder} is on a file system without locks; start no second run in it")
        mine = os.fstat(self._descriptor)
        if not stat.S_ISREG(mine.st_mode) or not self.in_place():
            raise InputError(f"--out {folder} is in use by another run; choose another folder")
        text = _FIRST_LINE + f"{_SECOND_LINE}process {os.getpid()} on {platform.node()}\n".encode()
        self._before = os.pread(self._descriptor, 500, 0)
        try:
            self._write(text)
        except OSError:
            self.forget()
            raise

    def _write(self, text: bytes) -> None:
        os.pwrite(self._descriptor, text, 0)
        os.ftruncate(self._descriptor, len(text))
        os.fsync(self._descriptor)  # it says whose the other files are

    def in_place(self) -> bool:
        """Whether the file is still there by its name: it may have been moved or deleted."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.lstat(self._path))
        except (FileNotFoundError, NotADirectoryError):
            return False

    def forget(self) -> None:
        """Leave the file as it was; it goes if it was made for this run."""
        if self._new:
            self._path.unlink(missing_ok=True)
        else:
            self._write(self._before)

    def release(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _flock(descriptor: int, folder: Path) -> bool:
    """Take a lock without waiting; False where the file system has none."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise
        holder = os.pread(descriptor, 500, 0).decode(errors="replace").rpartition("process ")[2].strip()
        raise InputError(
            f"--out {folder} is in use by another run, process {holder}; wait for it or choose another folder"
        ) from None
    return True
