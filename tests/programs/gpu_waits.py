"""Iterations of a stage on CuPy, two ranks: how often the host waited for the device in each.

    mpirun -n 2 python gpu_waits.py mpi|nccl exact|row

Prints one line a rank: waits of the iterations that are not measured, then of one that is, and of the
clock the iterations counted and the sum of its phases over their wall time.
"""

from __future__ import annotations

import sys

import cupy
import numpy as np
from mpi4py import MPI

from pdadmm.admm.activations import ReLU
from pdadmm.admm.growth import random_layer
from pdadmm.admm.layer import Hyper
from pdadmm.admm.passes import make_passes
from pdadmm.admm.stage import Plan, Stage
from pdadmm.codec import DeltaCodec
from pdadmm.comm.waiter import Waiter
from pdadmm.runtime.devices import choose, make_backend, make_transport
from pdadmm.runtime.sections import Run
from pdadmm.trace.choose import make_clock

NODES, WIDTHS = 60, [12, 8, 8, 8, 3]

if __name__ == "__main__":
    run = Run(backend="cupy", transport=sys.argv[1], timeout=20.0)
    waiter = Waiter(MPI.COMM_WORLD, run.timeout)
    choice = choose(run, waiter)
    backend = make_backend(choice, waiter.comm.rank, "float32")
    plan = Plan(4, 4, [range(1, 3), range(3, 5)], waiter.comm.rank)
    layers = [
        random_layer(i, WIDTHS[i - 1], WIDTHS[i], ReLU() if i < 4 else None, seed=0).to(backend)
        for i in plan.mine
    ]
    transport = make_transport(choice, backend, waiter, run, [plan.rounds()])
    clock = make_clock(backend, traced=False)
    stage = Stage(plan, layers, waiter, clock, transport=transport, backend=backend)
    rng = np.random.default_rng(0)
    X = backend.asarray(rng.standard_normal((NODES, WIDTHS[0]), dtype=np.float32))
    y = backend.asarray(rng.integers(0, WIDTHS[-1], NODES))
    # the reference's Newton iteration decides on the host, so the loss is the squared error here
    hyper = Hyper(0.01, 0.1, 0.01, "gradient", sys.argv[2], 25, "least_squares")
    stage.start(X, y, NODES, lambda start: DeltaCodec(4), hyper, make_passes("reference", 1, "cupy"), 0)
    waits = []
    for i in range(8):
        before = cupy.counts["waits"]
        stage.iterate(i, measure=i == 7)
        waits.append(cupy.counts["waits"] - before)
    before = cupy.counts["waits"]
    clock.end_stage()
    waits[0] += cupy.counts["waits"] - before
    stage.finish()
    transport.close()
    counted = clock.iterations
    phases = sum(sum(row.values()) for row in clock.seconds.values())
    share = phases / (1e-9 * clock.walls.sums[0])
    sys.stdout.write(f"{sum(waits[:-1])} {waits[-1]} {counted} {share}\n")
    sys.stdout.flush()
