"""Sharing the column blocks of an augmentation over MPI ranks.

Rank 0 reads the graph, sends column blocks, collects what becomes of them and writes; the others wait for
blocks and compute. Nobody spins while waiting, so that more ranks than processors do no harm.
Messages, rank 0 to r and back:

    header   int64 (6,): what follows and its sizes
    SETUP    indptr and indices of A + I; the rows wanted; the list of operators in ASCII
    BLOCK    a column block of H (N, w) float32; back come K arrays (R, w) float32, one an operator
    STOP     nothing; the header carries the exit code
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from pdadmm.comm.start import leave, separate_worlds, start_mpi
from pdadmm.comm.waiter import Waiter, end_all
from pdadmm.comm.where import Where
from pdadmm.errors import InputError
from pdadmm.inputs import Floats
from pdadmm.inputs.augment import Augmentation, Diffusion, Piece
from pdadmm.inputs.operators import parse_operators
from pdadmm.process import heed, quit_with

__all__ = ["Share", "run_shared"]

Share: TypeAlias = Callable[[Augmentation], Iterator[Piece]]
"""Gives the pieces of an augmentation in their usual order, whoever computes them."""

_SETUP, _BLOCK, _STOP = 1, 2, 3
_HEADER = 6
_TAG = 20010
#: seconds after a signal that rank 0 has to end the other ranks
_TIDYING = 10


def _send(waiter: Waiter, array: np.ndarray, to: int) -> None:
    requests = waiter.send(np.ascontiguousarray(array), to, _TAG)
    waiter.all(requests, f"an array to reach rank {to}")


def _receive(waiter: Waiter, shape: tuple[int, ...], dtype: npt.DTypeLike, source: int) -> np.ndarray:
    array = np.empty(shape, dtype)
    waiter.receive(array, source, _TAG)
    return array


def _header(waiter: Waiter, to: int, *values: int) -> None:
    _send(waiter, np.array([*values, *[0] * (_HEADER - len(values))], dtype=np.int64), to)


def _work(waiter: Waiter) -> int:
    """Serve rank 0 until it says stop; returns the exit code."""
    diffusion: Diffusion | None = None
    while True:
        kind, *sizes = (int(v) for v in _receive(waiter, (_HEADER,), np.int64, 0))
        if kind == _STOP:
            return sizes[0]
        if kind == _SETUP:
            nodes, nonzeros, index_bytes, kept, letters = sizes
            index = np.dtype(f"i{index_bytes}")
            indptr = _receive(waiter, (nodes + 1,), index, 0)
            indices = _receive(waiter, (nonzeros,), index, 0)
            rows = _receive(waiter, (kept,), np.int64, 0)
            text = _receive(waiter, (letters,), np.uint8, 0).tobytes().decode()
            ones = np.ones(nonzeros, np.float32)
            looped = sp.csr_matrix((ones, indices, indptr), shape=(nodes, nodes))
            diffusion = Diffusion(looped, rows, parse_operators(text)[1])
        else:
            assert diffusion is not None
            block = _receive(waiter, (sizes[0], sizes[1]), np.float32, 0)
            # Kept until all are there: rank 0 has a block of its own to compute first.
            for values in list(diffusion.of(block)):
                _send(waiter, values, 0)


class _Team:
    """The other ranks, as rank 0 sees them."""

    def __init__(self, waiter: Waiter) -> None:
        self._waiter = waiter
        self._due: list[tuple[int, tuple[int, int]]] = []  # rank and shape of every piece on its way

    def share(self, work: Augmentation) -> Iterator[Piece]:
        """The pieces of an augmentation in their usual order, computed by all ranks."""
        blocks = work.plan.blocks()
        others = min(self._waiter.comm.size, len(blocks)) - 1
        if others < 1 or work.kernel.looped is None or work.kernel.products == 0:
            yield from work.pieces()
            return
        self._set_up(work, others)
        for first in range(0, len(blocks), others + 1):
            mine, *theirs = blocks[first : first + others + 1]
            for rank, (start, stop) in enumerate(theirs, 1):
                block = work.columns(start, stop)
                _header(self._waiter, rank, _BLOCK, *block.shape)
                _send(self._waiter, block, rank)
                self._due += [(rank, (work.node_id.size, stop - start))] * work.kernel.count
            for number, values in enumerate(work.kernel.of(work.columns(*mine))):
                yield number, mine[0], values
            for start, _ in theirs:
                for number in range(work.kernel.count):
                    yield number, start, self._next()

    def stop(self, code: int) -> None:
        """Send every rank home with an exit code; takes what is still on its way, so that none hangs."""
        while self._due:
            self._next()
        for rank in range(1, self._waiter.comm.size):
            _header(self._waiter, rank, _STOP, code)

    def _set_up(self, work: Augmentation, others: int) -> None:
        looped, rows = work.kernel.looped, work.kernel.rows
        assert looped is not None
        text = np.frombuffer(work.operators.encode(), np.uint8)
        sizes = looped.shape[0], looped.nnz, looped.indices.dtype.itemsize, rows.size, text.size
        for rank in range(1, others + 1):
            _header(self._waiter, rank, _SETUP, *sizes)
            for array in (looped.indptr, looped.indices, rows, text):
                _send(self._waiter, array, rank)

    def _next(self) -> Floats:
        rank, shape = self._due.pop(0)
        return _receive(self._waiter, shape, np.float32, rank)


def _wait_for_rank_0(number: int, frame: FrameType | None) -> None:
    """The launcher hands a signal to all ranks: rank 0 removes its temporary file and ends the others."""
    signal.signal(signal.SIGALRM, lambda *_: quit_with(number))
    signal.alarm(_TIDYING)


def run_shared(program: str, run: Callable[[Share], int]) -> int:
    """Start MPI; on rank 0 call `run` with a function that shares an augmentation; serve elsewhere.

    Parameters
    ----------
    program : str
        What messages call it.
    run : callable
        Takes the sharing function, does everything else and returns the exit code.

    Returns
    -------
    int
        The exit code, the same on every rank.
    """
    where = Where()
    where.watch()
    try:
        return _run_under_mpi(program, run, where)
    finally:
        where.close()


def _run_under_mpi(program: str, run: Callable[[Share], int], where: Where) -> int:
    try:
        MPI = start_mpi(where, 0.0)
    except InputError as error:
        return leave(where, error, program)
    except (ImportError, RuntimeError):  # no mpi4py, or no MPI library: rank 0 does the work alone
        numbers = (os.environ.get(name) for name in ("PMI_RANK", "PMIX_RANK", "SLURM_PROCID"))
        own = next((number for number in numbers if number is not None), "0")
        return run(lambda work: work.pieces()) if own == "0" else 0
    comm = MPI.COMM_WORLD
    if said := separate_worlds(comm.size):
        if os.environ.get("SLURM_PROCID", "0") == "0":
            print(f"{program}: {said}", file=sys.stderr, flush=True)
        return 2
    try:
        where.set_rank(comm.rank)
        waiter = Waiter(comm, where=where)
        if comm.rank > 0:
            for number in (signal.SIGINT, signal.SIGTERM):
                heed(number, _wait_for_rank_0)
            return _work(waiter)
        team = _Team(waiter)
        code = run(team.share)
        if code not in (0, 2):  # interrupted, perhaps within a message
            where.claim()
            comm.Abort(code)
        team.stop(code)
        return code
    except (SystemExit, KeyboardInterrupt):
        where.claim()
        comm.Abort(130)
        raise
    except BaseException:
        if where.claim():
            traceback.print_exc()
        end_all(comm, 1)
        raise
