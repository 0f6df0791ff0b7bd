"""``mpirun -n R python -m pdadmm.gnn.run``: train a graph network, parts of the graph over ranks."""

from __future__ import annotations

import sys

from pdadmm.process import begin

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    # loaded here, when signals and streams have been seen to: it takes a while
    from pdadmm.gnn.command import train
    from pdadmm.runtime.launch import main_under_mpi

    return main_under_mpi(train, arguments)


if __name__ == "__main__":
    begin()
    sys.exit(main())
