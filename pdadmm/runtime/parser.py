"""The command line parser of every command: a wrong command line is one line, like any other bad input."""

from __future__ import annotations

import argparse
import re
from typing import Any, NoReturn

import pdadmm
from pdadmm.errors import InputError

__all__ = ["Parser", "answered"]


def answered(usage: str, argument: str) -> bool:
    """Print what ``--help`` or ``--version`` of a list of commands asks for; whether it was one of them."""
    known = {"-h": usage, "--help": usage, "--version": f"pdadmm {pdadmm.__version__}\n"}
    print(known.get(argument, ""), end="")
    return argument in known


class Parser(argparse.ArgumentParser):
    """Has ``--version``, and raises :class:`InputError` where argparse would print the usage and exit."""

    def __init__(self, **settings: Any) -> None:  # noqa: ANN401  (what argparse takes)
        super().__init__(**settings)
        # argparse takes -1e1 for an option
        self._negative_number_matcher = re.compile(r"-(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$", re.IGNORECASE)
        self.add_argument(
            "--version",
            action="version",
            version=f"pdadmm {pdadmm.__version__}",
            help="show the version and exit",
        )

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")
