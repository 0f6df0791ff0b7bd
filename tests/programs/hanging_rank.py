"""Runs a command with one rank that hangs: hanging_rank.py WHERE RANK OPTIONS...

WHERE: start-run, start-prepare (before MPI starts), stop (the same, stopped by a signal), read, options
(while it reads the features, where no Python code runs, as in HDF5), clocks, links (stopped while they are
measured). $HANG names a file made then.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path
from typing import Any

from pdadmm.process import begin

if __name__ == "__main__":
    begin()
    where, victim = sys.argv[1], sys.argv[2]
    arguments = sys.argv[3:]

    from pdadmm import prepare, run
    from pdadmm.admm import command
    from pdadmm.comm import where as place
    from pdadmm.inputs.feature_file import FeatureFile
    from pdadmm.runtime import links
    from pdadmm.trace import offsets

    def hang(*_: Any) -> None:
        Path(os.environ["HANG"]).touch()
        if where in ("stop", "clocks", "links"):
            os.kill(os.getpid(), signal.SIGSTOP)
        elif where.startswith("start"):
            while True:
                signal.pause()
        else:
            ctypes.PyDLL(None).sleep(1000)  # holds the interpreter's lock, as HDF5 does in a read

    if os.environ["PMI_RANK"] == victim:
        if where in ("stop", "start-run", "start-prepare"):
            original = place.Where.watch

            def watch(self: place.Where) -> None:
                original(self)
                hang()

            place.Where.watch = watch  # type: ignore[method-assign]
        elif where == "clocks":
            offsets._ask = hang  # type: ignore[assignment]
        elif where == "links":
            links._rounds = hang  # type: ignore[assignment]
        elif where == "read":
            FeatureFile.x = hang  # type: ignore[assignment,method-assign]
        else:
            command.open_features = hang  # type: ignore[assignment]
    sys.exit(prepare.main(arguments) if where == "start-prepare" else run.main(arguments))
