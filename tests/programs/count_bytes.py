"""Runs pdadmm.run with a communicator that counts the bytes of every started persistent send.

Prints one JSON line: bytes by rank, and messages by rank.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from mpi4py import MPI

from pdadmm.comm.waiter import Waiter
from pdadmm.run import main
from pdadmm.runtime import launch

sent = {"bytes": 0, "messages": 0}


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


if __name__ == "__main__":
    launch.Waiter = lambda comm, **options: Waiter(CountingComm(comm), **options)  # type: ignore[assignment, misc]
    code = main(sys.argv[1:])
    everyone = MPI.COMM_WORLD.gather(sent)
    if everyone is not None:
        print(json.dumps({key: [rank[key] for rank in everyone] for key in sent}))
    sys.exit(code)
