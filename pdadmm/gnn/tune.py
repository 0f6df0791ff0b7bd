"""``mpirun -n R python -m pdadmm.gnn.tune FILE.h5``: choose options of training on validation accuracy."""

from __future__ import annotations

import sys

from pdadmm.process import begin

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    from pdadmm.gnn.tuning import tune
    from pdadmm.runtime.launch import main_under_mpi

    return main_under_mpi(tune, arguments)


if __name__ == "__main__":
    begin()
    sys.exit(main())
