"""What a command shows while it works: a progress bar on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
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
        console = Console(stderr=True)
        self._lines = enabled and not console.is_terminal
        self._bar = Bar(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not (enabled and console.is_terminal),
        )
        self._task = self._bar.add_task(text, total=total)

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def update(self, completed: int, text: str, line: str | None = None) -> None:
        """Show how far it is, in words too; `line` is printed where there is no bar."""
        self._bar.update(self._task, completed=completed, description=text)
        if self._lines and line is not None:
            print(line, file=sys.stderr, flush=True)
