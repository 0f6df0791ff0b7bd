"""Runs pdadmm.run, or pdadmm.gnn.run after the word graph, with a communicator that counts bytes.

Counted are those of every started persistent send, and those that collectives on vectors send to others.
Prints one JSON line: bytes by rank, messages by rank, and bytes of collectives by rank.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from mpi4py import MPI

from pdadmm.comm.waiter import Waiter
from pdadmm.gnn import run as graph_run
from pdadmm.run import main
from pdadmm.runtime import launch

sent = {"bytes": 0, "messages": 0, "collective": 0}


class CountingRequest(MPI.Prequest):
    """A persistent send that knows its size."""

    size = 0

    def Start(self) -> None:
        sent["bytes"] += self.size
        sent["messages"] += 1
        super().Start()


class CountingComm(MPI.Intracomm):
    """A communicator whose persistent sends are counted."""

    def Send_init(self, buf: Any, dest: int, tag: int = 0) -> CountingRequest:
        request = CountingRequest(super().Send_init(buf, dest, tag))
        request.size = memoryview(buf).nbytes
        return request

    def Ialltoallv(self, sendbuf: Any, recvbuf: Any) -> MPI.Request:
        array, counts = sendbuf[:2]
        sent["collective"] += array.itemsize * (sum(counts) - counts[self.rank])
        return super().Ialltoallv(sendbuf, recvbuf)

    def Iallgatherv(self, sendbuf: Any, recvbuf: Any) -> MPI.Request:
        sent["collective"] += sendbuf.nbytes * (self.size - 1)
        return super().Iallgatherv(sendbuf, recvbuf)


if __name__ == "__main__":
    launch.Waiter = lambda comm, **options: Waiter(CountingComm(comm), **options)  # type: ignore[assignment, misc]
    graph = sys.argv[1] == "graph"
    code = graph_run.main(sys.argv[2:]) if graph else main(sys.argv[1:])
    everyone = MPI.COMM_WORLD.gather(sent)
    if everyone is not None:
        print(json.dumps({key: [rank[key] for rank in everyone] for key in sent}))
    sys.exit(code)
