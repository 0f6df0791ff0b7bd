"""What a command shows while it works: a progress bar on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

__all__ = ["Progress"]


class Progress:
    """Progress bar on a terminal, given lines elsewhere; silent when not enabled.

    Parameters
    ----------
    text
        What stands before the bar at first.
    total
        Of what is counted.
    """

    def __init__(self, text: str, total: int, enabled: bool) -> None:
        self._bar = _bar(text, total) if enabled and sys.stderr.isatty() else None
        self._lines = enabled and self._bar is None

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, completed: int, text: str, line: str | None = None) -> None:
        """Show how far it is, in words too; `line` is printed where there is no bar."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=completed, description=text)
        if self._lines and line is not None:
            print(line, file=sys.stderr, flush=True)


def _bar(text: str, total: int) -> Bar:
    """A bar with one task."""
    # imported here: of the ranks of a job one at most shows a bar
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    bar = Bar(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    bar.add_task(text, total=total)
    return bar
