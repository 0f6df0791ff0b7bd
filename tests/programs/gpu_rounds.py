"""Rounds of a graph network between GPUs, messages in pieces of 1,000 bytes: what comes is what was sent.

    mpirun -n 4 python gpu_rounds.py mpi|nccl [--no-overlap]

Prints one line a rank: bytes sent and received.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cupy
from mpi4py import MPI

sys.path.insert(0, str(Path(__file__).parents[1]))

from support import exchange, graph_rounds

from pdadmm.comm import waiter as waiting
from pdadmm.comm.waiter import Waiter
from pdadmm.runtime.devices import choose, make_backend, make_transport
from pdadmm.runtime.sections import Run

if __name__ == "__main__":
    waiting.MAX_BYTES = 1000
    run = Run(backend="cupy", transport=sys.argv[1], overlap="--no-overlap" not in sys.argv, timeout=20.0)
    waiter = Waiter(MPI.COMM_WORLD, run.timeout)
    choice = choose(run, waiter)
    backend = make_backend(choice, waiter.comm.rank, "float32")
    rounds = graph_rounds(waiter.comm.size, waiter.comm.rank)
    transport = make_transport(choice, backend, waiter, run, [rounds])
    ends = transport.open(rounds)
    exchange(rounds, ends, 4, cupy.asnumpy, lambda buffer, values: buffer.set(values))
    ends.close()
    transport.close()
    sent, received = (sum(end.bytes for end in side.values()) for side in (ends.outgoing, ends.incoming))
    sys.stdout.write(f"{sent} {received}\n")
    sys.stdout.flush()
