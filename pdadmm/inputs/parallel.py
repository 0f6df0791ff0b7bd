"""Sharing the column blocks of an augmentation over MPI ranks.

Rank 0 reads the graph, sends column blocks, collects their hops and writes; the others wait for
blocks and compute. Nobody spins while waiting: every wait is a test, then a sleep, so that more
ranks than processors do no harm. Messages, rank 0 to r and back:

    header   int64 (6,): what follows and its sizes
    SETUP    indptr, indices, weights of Ã; the rows wanted
    BLOCK    a column block of H (N, w) float32; back come its hops, K+1 arrays (R, w) float32
    STOP     nothing; the header carries the exit code
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import scipy.sparse as sp

__all__ = ["run_shared"]

_SETUP, _BLOCK, _STOP = 1, 2, 3
_HEADER = 6
_PIECE = 1 << 26  # elements in a message: MPI counts end at 2^31 - 1
_SLEEP = 0.0005, 0.02  # seconds: shortest and longest between tests


def _wait(request: Any) -> None:
    """Wait for a request and give the processor away meanwhile."""
    pause, longest = _SLEEP
    while not request.Test():
        time.sleep(pause)
        pause = min(2 * pause, longest)


def _send(comm: Any, array: Any, to: int) -> None:
    flat = np.ascontiguousarray(array).reshape(-1)
    for start in range(0, flat.size, _PIECE):
        _wait(comm.Isend(flat[start : start + _PIECE], dest=to))


def _receive(comm: Any, shape: tuple[int, ...], dtype: Any, source: int) -> Any:
    array = np.empty(shape, dtype=dtype)
    flat = array.reshape(-1)
    for start in range(0, flat.size, _PIECE):
        _wait(comm.Irecv(flat[start : start + _PIECE], source=source))
    return array


def _header(comm: Any, to: int, *values: int) -> None:
    _send(comm, np.array([*values, *[0] * (_HEADER - len(values))], dtype=np.int64), to)


def _work(comm: Any) -> int:
    """Serve rank 0 until it says stop; returns the exit code."""
    from pdadmm.inputs.augment import Hops

    hops: Hops | None = None
    while True:
        kind, *sizes = (int(v) for v in _receive(comm, (_HEADER,), np.int64, 0))
        if kind == _STOP:
            return sizes[0]
        if kind == _SETUP:
            nodes, nonzeros, index_bytes, kept, depth = sizes
            index = np.dtype(f"i{index_bytes}")
            indptr = _receive(comm, (nodes + 1,), index, 0)
            indices = _receive(comm, (nonzeros,), index, 0)
            weights = _receive(comm, (nonzeros,), np.float32, 0)
            rows = _receive(comm, (kept,), np.int64, 0)
            hops = Hops(sp.csr_matrix((weights, indices, indptr), shape=(nodes, nodes)), rows, depth)
        else:
            assert hops is not None
            block = _receive(comm, (sizes[0], sizes[1]), np.float32, 0)
            # Kept until all are there: rank 0 has a block of its own to compute first.
            for values in list(hops.of(block)):
                _send(comm, values, 0)


class _Team:
    """The other ranks, as rank 0 sees them."""

    def __init__(self, comm: Any) -> None:
        self.comm = comm
        self._due: list[tuple[int, tuple[int, int]]] = []  # rank and shape of every piece on its way

    def share(self, work: Any) -> Iterator[tuple[int, int, Any]]:
        """The pieces of an `Augmentation` in their usual order, computed by all ranks."""
        blocks = work.plan.blocks()
        others = min(self.comm.size, len(blocks)) - 1
        if others < 1 or work.hops == 0:
            yield from work.pieces()
            return
        self._set_up(work, others)
        for first in range(0, len(blocks), others + 1):
            mine, *theirs = blocks[first : first + others + 1]
            for rank, (start, stop) in enumerate(theirs, 1):
                block = work.columns(start, stop)
                _header(self.comm, rank, _BLOCK, *block.shape)
                _send(self.comm, block, rank)
                self._due += [(rank, (work.node_id.size, stop - start))] * (work.hops + 1)
            for hop, values in enumerate(work.kernel.of(work.columns(*mine))):
                yield hop, mine[0], values
            for start, _ in theirs:
                for hop in range(work.hops + 1):
                    yield hop, start, self._next()

    def stop(self, code: int) -> None:
        """Send every rank home with an exit code; takes what is still on its way, so that none hangs."""
        while self._due:
            self._next()
        for rank in range(1, self.comm.size):
            _header(self.comm, rank, _STOP, code)

    def _set_up(self, work: Any, others: int) -> None:
        matrix, rows = work.kernel.normalised, work.node_id
        index_bytes = matrix.indices.dtype.itemsize
        for rank in range(1, others + 1):
            _header(self.comm, rank, _SETUP, matrix.shape[0], matrix.nnz, index_bytes, rows.size, work.hops)
            for array in (matrix.indptr, matrix.indices, matrix.data, rows):
                _send(self.comm, array, rank)

    def _next(self) -> Any:
        rank, shape = self._due.pop(0)
        return _receive(self.comm, shape, np.float32, rank)


def run_shared(run: Callable[[Callable[[Any], Iterator[Any]]], int], srun_tasks: int) -> int:
    """Start MPI; on rank 0 call `run` with a function that shares an augmentation; serve elsewhere.

    Parameters
    ----------
    run : callable
        Takes the sharing function, does everything else and returns the exit code.
    srun_tasks : int
        How many tasks srun started, to notice that each became a world of its own.

    Returns
    -------
    int
        The exit code, the same on every rank.
    """
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError):  # no mpi4py, or no MPI library: rank 0 does the work alone
        numbers = (os.environ.get(name) for name in ("PMI_RANK", "PMIX_RANK", "SLURM_PROCID"))
        own = next((number for number in numbers if number is not None), "0")
        return run(lambda work: work.pieces()) if own == "0" else 0
    comm = MPI.COMM_WORLD
    if comm.size == 1 and srun_tasks > 1:
        if os.environ.get("SLURM_PROCID", "0") == "0":
            print(
                f"pdadmm.prepare: srun started {srun_tasks} separate MPI worlds of one rank; give srun the "
                "--mpi that matches the MPI library (srun --mpi=list), or use mpirun",
                file=sys.stderr,
                flush=True,
            )
        return 2
    try:
        if comm.rank > 0:
            return _work(comm)
        team = _Team(comm)
        code = run(team.share)
        if code not in (0, 2):  # interrupted, perhaps within a message
            comm.Abort(code)
        team.stop(code)
        return code
    except (SystemExit, KeyboardInterrupt):
        comm.Abort(130)
        raise
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        comm.Abort(1)
        raise
