"""Where the tables of a command are printed."""

from __future__ import annotations

import sys

from rich.console import Console

__all__ = ["plain_console"]


def plain_console(width: int) -> Console:
    """A console of stdout to which text is text: brackets are no styles, and colons name no emoji.

    Parameters
    ----------
    width
        Characters of a line where it is no terminal, which knows its own.
    """
    return Console(width=None if sys.stdout.isatty() else width, markup=False, emoji=False)
