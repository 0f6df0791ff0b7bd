"""How many threads a rank takes."""

from __future__ import annotations

import math
import os
from threading import Lock
from typing import TYPE_CHECKING

from threadpoolctl import threadpool_limits

from pdadmm.comm.waiter import ranks_on_node, usable_cores
from pdadmm.runtime.sections import MOST_THREADS, Run

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

__all__ = ["BLAS_ON_ONE_THREAD", "set_threads", "too_many"]

#: multiply-adds of a product below which a further thread costs more than it does: some 0.2 ms
WORK_OF_A_THREAD = 1 << 23


def too_many(run: Run, comm: Intracomm) -> str | None:
    """What is to be said where --threads asks for more than there are cores for; collective."""
    cores, ranks = usable_cores(), ranks_on_node(comm)
    if run.threads * ranks <= cores:
        return None
    wanted = f"--threads {run.threads}" + (f" on each of {ranks} ranks" if ranks > 1 else "")
    return f"{wanted} is more than the {cores} cores that there are; it will be slower than with fewer"


class _BlasLimit:
    """BLAS on one thread for as long as anybody wants it; fits may run in threads of one process."""

    def __init__(self) -> None:
        self._lock, self._users = Lock(), 0
        self._limits: threadpool_limits

    def __enter__(self) -> None:
        with self._lock:
            if not self._users:
                self._limits = threadpool_limits(1)
            self._users += 1

    def __exit__(self, *raised: object) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                self._limits.restore_original_limits()


#: a context, entered and left in any order
BLAS_ON_ONE_THREAD = _BlasLimit()


def set_threads(run: Run, comm: Intracomm, product: float = math.inf) -> int:
    """Limit BLAS to one thread, and return how many the products and passes of this rank take.

    Without --threads, OMP_NUM_THREADS or OPENBLAS_NUM_THREADS a rank takes its share of the node's
    cores, but no more than its largest `product` (multiply-adds) keeps busy.
    """
    from_environment = os.environ.get("OMP_NUM_THREADS") or os.environ.get("OPENBLAS_NUM_THREADS")
    threads = run.threads
    if not threads and from_environment and from_environment.isdecimal():
        threads = min(int(from_environment[:9]), MOST_THREADS)
    share = max(1, usable_cores() // ranks_on_node(comm))
    threads = threads or int(min(share, max(1, product // WORK_OF_A_THREAD)))
    threadpool_limits(1)  # tiles of products have threads of their own
    return threads
