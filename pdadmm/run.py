"""``mpirun -n R python -m pdadmm.run``: train a network, one or more layers a rank."""

from __future__ import annotations

import sys

from pdadmm.admm.command import train
from pdadmm.runtime.launch import main_under_mpi

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return main_under_mpi(train, arguments)


if __name__ == "__main__":
    sys.exit(main())
