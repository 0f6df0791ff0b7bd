"""The command line parser of every command: a wrong command line is one line, like any other bad input."""

from __future__ import annotations

import argparse
from typing import NoReturn

from pdadmm.errors import InputError

__all__ = ["Parser"]


class Parser(argparse.ArgumentParser):
    """Raises :class:`InputError` where argparse would print the usage and exit."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")
