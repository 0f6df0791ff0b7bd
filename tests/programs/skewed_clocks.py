"""Aligns clocks that a rank shifts and drifts on purpose; prints the largest error in seconds.

All ranks of a machine share one clock, so that the truth is known.
"""

from __future__ import annotations

import time

from mpi4py import MPI

from pdadmm.comm.waiter import Waiter
from pdadmm.trace.offsets import Alignment, read_offset

true_clock = time.perf_counter_ns
comm = MPI.COMM_WORLD
waiter = Waiter(comm)
SHIFT, DRIFT = 3_000_000_000 * comm.rank, 2e-4 * comm.rank
began = true_clock()


def skewed(at: int | None = None) -> int:
    now = true_clock() if at is None else at
    return now + SHIFT + int(DRIFT * (now - began))


time.perf_counter_ns = skewed  # type: ignore[assignment]
start = read_offset(waiter)
time.sleep(1.5)
end = read_offset(waiter)
align = Alignment(start, end)
# a moment between the readings, by this rank's clock and truly
middle = (began + true_clock()) // 2
error = abs(align(skewed(middle)) - middle) * 1e-9
worst = comm.reduce(error, MPI.MAX)
if comm.rank == 0:
    print(worst)
