"""``mpirun -n R python -m pdadmm.gnn.predict DIR FILE.h5 --out predictions.h5``: classes of nodes."""

from __future__ import annotations

import sys

from pdadmm.process import begin

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    from pdadmm.gnn.prediction import predict
    from pdadmm.runtime.launch import main_under_mpi

    return main_under_mpi(predict, arguments)


if __name__ == "__main__":
    begin()
    sys.exit(main())
