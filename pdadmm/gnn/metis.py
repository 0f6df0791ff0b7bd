"""METIS, for large graphs in a process of its own.

It answers a SIGTERM that comes while it works by a jump out of whatever it is doing, the allocation of
memory among it, which may leave a process that hangs or crashes afterwards. That of a small graph is done
before anybody could send one.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from pdadmm.errors import InputError

if TYPE_CHECKING:
    from pymetis import CSRAdjacency

__all__ = ["bisect", "metis"]

#: entries of an adjacency that takes METIS less time than another Python to start
_FEW = 200_000
#: what the process does: its arguments are numbers, two of them descriptors
_PROGRAM = """
import ctypes, mmap, signal, sys
parts, seed, rows, graph, result = map(int, sys.argv[1:])
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: it ends with who wants the parts
import numpy as np, pymetis
from pdadmm.gnn.metis import bisect
numbers = np.frombuffer(mmap.mmap(graph, 0), pymetis.zero_copy_dtype())
csr = pymetis.CSRAdjacency(numbers[: rows + 1], numbers[rows + 1 :])
with open(result, "wb") as file:
    bisect(csr, parts, seed).tofile(file)
"""

Parts = npt.NDArray[np.int32]


def metis(adjacency: sp.csr_matrix, parts: int, seed: int) -> Parts:
    """Parts of the nodes by METIS's recursive bisection, (V,) int32; some may be empty.

    Raises
    ------
    InputError
        Without pymetis, or when METIS fails.
    MemoryError
    """
    try:
        import pymetis
    except ImportError:
        raise InputError(
            "--partitioner metis needs pymetis: pip install 'pdadmm[gnn]', or give --partitioner blocks"
        ) from None
    index, seed = pymetis.zero_copy_dtype(), seed % 2**31
    indptr, indices = adjacency.indptr.astype(index), adjacency.indices.astype(index)
    if indices.size < _FEW:
        try:
            return bisect(pymetis.CSRAdjacency(indptr, indices), parts, seed)
        except RuntimeError as error:
            raise _failed(str(error)) from None
    with tempfile.TemporaryFile() as result:
        graph = os.memfd_create("pdadmm-graph")
        try:
            with open(graph, "wb", closefd=False) as file:
                indptr.tofile(file)
                indices.tofile(file)
            rows = indptr.size - 1
            del indptr, indices
            _run([parts, seed, rows, graph, result.fileno()], (graph, result.fileno()))
        finally:
            os.close(graph)
        result.seek(0)
        return np.fromfile(result, np.int32)


def _run(arguments: list[int], descriptors: tuple[int, ...]) -> None:
    """Run the program and wait for it; it ends with what ends the wait."""
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        pass_fds=descriptors,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    try:
        _, said = process.communicate()
    finally:
        process.kill()
        process.wait()
    if process.returncode:
        reason = said.decode(errors="replace").strip().rpartition("\n")[2]
        if process.returncode == -signal.SIGKILL or "MemoryError" in reason or "memory" in reason:
            raise MemoryError
        raise _failed(f"exit code {process.returncode}: {reason}")


def _failed(reason: str) -> InputError:
    return InputError(f"--partitioner metis: METIS failed ({reason}); give --partitioner blocks")


def bisect(csr: CSRAdjacency, parts: int, seed: int) -> Parts:
    """The same of an adjacency as METIS takes it, in this process."""
    import pymetis

    # Bisection over and over cuts a little less than METIS's k-way scheme does, and so do four attempts at
    # each bisection, whose sides may be 1 % over the half.
    options = pymetis.Options(seed=seed, ufactor=10, ncuts=4)
    try:
        found = pymetis.part_graph(parts, csr, recursive=True, options=options)
    except RuntimeError:
        # a SIGTERM is an error to METIS, and left blocked: what this process does on it is put back, and done
        handler = signal.getsignal(signal.SIGTERM)
        if signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, ()) and callable(handler):
            signal.signal(signal.SIGTERM, handler)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
            signal.raise_signal(signal.SIGTERM)
        raise
    return np.asarray(found.vertex_part, np.int32)
