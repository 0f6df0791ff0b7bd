"""Runs pdadmm.run with one rank whose third W-update raises: failing_rank.py RANK OPTIONS…"""

from __future__ import annotations

import itertools
import sys
from typing import Any

from mpi4py import MPI

from pdadmm.admm.layer import Layer
from pdadmm.run import main

if __name__ == "__main__":
    victim = int(sys.argv[1])
    calls = itertools.count(1)
    original = Layer.update_weights

    def update_weights(self: Layer, *arguments: Any, **keywords: Any) -> Any:
        if MPI.COMM_WORLD.rank == victim and next(calls) == 3:
            raise ZeroDivisionError("injected")
        return original(self, *arguments, **keywords)

    Layer.update_weights = update_weights  # type: ignore[method-assign]
    sys.exit(main(sys.argv[2:]))
