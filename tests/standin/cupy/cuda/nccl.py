"""NCCL's point-to-point calls over MPI: what a group holds moves when its stream gets there."""

from __future__ import annotations

import ctypes
import os
import time
from typing import Any

import numpy as np

available = os.environ.get("STANDIN_NCCL", "23007") != "0"
NCCL_UINT8 = 1
_group: list[Any] = []


class NcclError(RuntimeError):
    pass


def get_version() -> int:
    return int(os.environ.get("STANDIN_NCCL", "23007"))


def get_unique_id() -> bytes:
    return b"standin" * 18


def groupStart() -> None:
    assert not _group


def groupEnd() -> None:
    from cupy.cuda import Stream

    calls, _group[:] = list(_group), []
    if not calls:
        return
    communicator, stream = calls[0][0], calls[0][-1]
    Stream._all[stream]._do(lambda: communicator._move(calls))


class NcclCommunicator:
    def __init__(self, ndev: int, commId: bytes, rank: int) -> None:
        from mpi4py import MPI

        assert commId == get_unique_id()
        self._comm = MPI.COMM_WORLD.Dup()
        assert (self._comm.size, self._comm.rank) == (ndev, rank)

    def send(self, sendbuf: int, count: int, datatype: int, peer: int, stream: int) -> None:
        assert datatype == NCCL_UINT8
        _group.append((self, self._comm.Isend, _memory(sendbuf, count), peer, stream))

    def recv(self, recvbuf: int, count: int, datatype: int, peer: int, stream: int) -> None:
        assert datatype == NCCL_UINT8
        _group.append((self, self._comm.Irecv, _memory(recvbuf, count), peer, stream))

    def _move(self, calls: list[Any]) -> None:
        requests = [start(memory, peer) for _, start, memory, peer, _ in calls]
        while not all(request.Test() for request in requests):
            time.sleep(2e-4)

    def check_async_error(self) -> None:
        when = os.environ.get("STANDIN_NCCL_FAILS")
        if when and os.path.exists(when):
            if os.environ.get("STANDIN_NCCL_STATUS"):
                raise KeyError(int(os.environ["STANDIN_NCCL_STATUS"]))
            raise NcclError("NCCL_ERROR_REMOTE_ERROR: remote process exited or there was a network error")

    def destroy(self) -> None:
        self._comm.Free()


def _memory(ptr: int, count: int) -> np.ndarray:
    return np.frombuffer((ctypes.c_char * count).from_address(ptr), np.uint8)
