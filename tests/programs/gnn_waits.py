"""Epochs of a graph network on CuPy, one rank: how often the host waits for the device in an epoch.

    python gnn_waits.py GRAPH

Prints the most waits of an epoch that assigns nothing.
"""

from __future__ import annotations

import sys

import cupy
from mpi4py import MPI

from pdadmm.comm.waiter import Waiter
from pdadmm.gnn.command import open_graph
from pdadmm.gnn.options import parse
from pdadmm.gnn.trainer import Facts, Trainer
from pdadmm.runtime.devices import choose

waits = []


class Counting(Trainer):
    def _train(self) -> None:
        before = cupy.counts["waits"]
        super()._train()
        waits.append(cupy.counts["waits"] - before)


if __name__ == "__main__":
    options = "--hidden 16 --epochs 8 --reassign 3 --backend cupy --transport mpi"
    config = parse([sys.argv[1], *options.split()])
    waiter = Waiter(MPI.COMM_WORLD)
    with open_graph(config.graph, 1) as source:
        trainer = Counting(config, Facts.of(source), source, waiter, 1, choose(config.run, waiter))
    trainer.run()
    trainer.close()
    sys.stdout.write(f"{max(waits)}\n")
