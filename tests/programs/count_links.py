"""Runs pdadmm.run with a communicator that counts every started persistent send by peer and tag.

Prints one JSON line: for every rank a list of [peer, tag, messages, bytes].
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from typing import Any

from mpi4py import MPI

from pdadmm.comm.waiter import Waiter
from pdadmm.run import main
from pdadmm.runtime import launch

sent: dict[tuple[int, int], list[int]] = defaultdict(lambda: [0, 0])


class CountingRequest(MPI.Prequest):
    """A persistent send that knows its size and where it goes."""

    size = 0
    link = (0, 0)

    def Start(self) -> None:
        count = sent[self.link]
        count[0] += 1
        count[1] += self.size
        super().Start()


class CountingComm(MPI.Intracomm):
    """A communicator whose persistent sends are counted."""

    def Send_init(self, buf: Any, dest: int, tag: int = 0) -> CountingRequest:
        request = CountingRequest(super().Send_init(buf, dest, tag))
        request.size, request.link = memoryview(buf).nbytes, (dest, tag)
        return request


if __name__ == "__main__":
    launch.Waiter = lambda comm, **options: Waiter(CountingComm(comm), **options)  # type: ignore[assignment, misc]
    code = main(sys.argv[1:])
    everyone = MPI.COMM_WORLD.gather([[*link, *counts] for link, counts in sent.items()])
    if everyone is not None:
        print(json.dumps(everyone))
    sys.exit(code)
