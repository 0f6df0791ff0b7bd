"""Runs a command on a slow disk: slow_disk.py SYSTEM OPTIONS..., where SYSTEM is run or gnn.

A sync of a file whose path holds $SLOW takes two seconds.
"""

from __future__ import annotations

import os
import sys
import time

from pdadmm.process import begin

if __name__ == "__main__":
    begin()
    sync = os.fsync

    def slowly(descriptor: int) -> None:
        if os.environ["SLOW"] in os.readlink(f"/proc/self/fd/{descriptor}"):
            time.sleep(2)
        sync(descriptor)

    os.fsync = slowly  # type: ignore[assignment]
    from pdadmm import run
    from pdadmm.gnn import run as graphs

    sys.exit((graphs if sys.argv[1] == "gnn" else run).main(sys.argv[2:]))
