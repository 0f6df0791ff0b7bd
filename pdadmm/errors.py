"""The two ways a command ends early: the user's input is wrong, or the run itself failed."""

from __future__ import annotations

import errno

__all__ = ["InputError", "RunError", "denied", "one_line"]

#: characters of a text that are shown
_LONGEST = 1000


class InputError(Exception):
    """Bad input or configuration; the message is one line that names the thing and the remedy.

    The commands print it on one rank and exit with code 2.
    """


class RunError(Exception):
    """The run failed after it started: a diverging iterate, a lost neighbour, a full disk.

    The command prints the message after the rank, its layers and the iteration, and aborts every rank
    with code 1.

    Parameters
    ----------
    message
        What went wrong and what to do.
    everywhere
        Whether all ranks raise it together; rank 0 then speaks for all.
    """

    def __init__(self, message: str, everywhere: bool = False) -> None:
        super().__init__(message)
        self.everywhere = everywhere


#: what to do about errors of the system that are not the program's
_REMEDIES = {
    errno.EACCES: "allow it",
    errno.EPERM: "allow it",
    errno.EROFS: "mount it for writing",
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room",
    errno.EFBIG: "raise the limit of files' sizes",
}


def denied(error: OSError) -> InputError | None:
    """Of a file or folder that this user may not use, or has no room in: the line for it; None for others."""
    remedy = _REMEDIES.get(error.errno or 0)
    if remedy is None:
        return None
    reason = (error.strerror or "not possible").lower()
    return InputError(f"{error.filename or 'a file'}: {reason}; {remedy}, or name another place")


def one_line(text: object) -> str:
    """A text as a part of one line, whatever names and data it quotes.

    Ends of lines, control characters, what turns the direction of writing and what is no Unicode are escaped
    as in Python's strings, so that a terminal shows them and does not obey them. Of a very long text the
    middle is left out.
    """
    shown = str(text)
    if len(shown) > _LONGEST:
        half = _LONGEST // 2
        shown = f"{shown[:half]} ... {shown[-half:]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)
