"""The folder of a run's results."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from pdadmm.comm.waiter import Waiter
from pdadmm.errors import InputError
from pdadmm.runtime.launch import agree
from pdadmm.runtime.sections import Output

__all__ = ["run_folder"]


@contextlib.contextmanager
def run_folder(waiter: Waiter, output: Output, dataset: str) -> Iterator[Path]:
    """The folder that the options name, or one named after data set and time; collective.

    It can be written to and stands in the options of all ranks. When the block, in which a run gets ready,
    ends with bad input, folders that were made for it are removed.

    Raises
    ------
    InputError
        On all ranks.
    """
    made: list[Path] = []

    def prepare() -> str | None:
        if waiter.comm.rank:
            return None
        out = output.out or f"runs/{dataset}-{time.strftime('%Y%m%d-%H%M%S')}"
        made.extend(_make(out))
        return out

    output.out = waiter.broadcast(agree(waiter, prepare))
    try:
        yield Path(output.out)
    except InputError:
        with contextlib.suppress(OSError):
            for path in made:
                path.rmdir()
        raise


def _make(out: str) -> list[Path]:
    """Make a folder and see that it can be written to; returns the folders made, deepest first."""
    folder = Path(out)
    try:
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"cannot write to --out {out}: {error.strerror}; choose another folder") from None
    return made
