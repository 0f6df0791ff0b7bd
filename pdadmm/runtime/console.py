"""Where the tables of a command are printed."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from pdadmm.errors import one_line

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["plain_console", "print_results", "warn"]


def plain_console(width: int) -> Console:
    """A console of stdout to which text is text: brackets are no styles, and colons name no emoji.

    Parameters
    ----------
    width
        Characters of a line where it is no terminal, which knows its own.
    """
    # imported here: of the ranks of a job one at most prints anything, and it is a tenth of the start
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else width, markup=False, emoji=False)


def warn(line: str) -> None:
    """Say on stderr what a run does not mind, but its user may."""
    print(f"pdadmm: warning: {one_line(line)}", file=sys.stderr, flush=True)


def print_results(title: str, rows: Iterable[tuple[str, str]]) -> None:
    """Print a run's results: a table of names and values."""
    from rich.table import Table

    table = Table(show_header=False, title=title)
    for name, value in rows:
        table.add_row(name, value)
    plain_console(100).print(table)
