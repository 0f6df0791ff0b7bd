"""Couplings between two ranks over MPI: persistent requests on buffers that never move.

MPI libraries move large messages only inside MPI calls, so that a transfer started before a matrix
product would wait for the end of the product. A :class:`ProgressThread` keeps them moving; it
sleeps whenever nothing large is under way.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np

from pdadmm.comm.waiter import Waiter, pieces

__all__ = ["LARGE", "MPILink", "ProgressThread"]

#: bytes from which a message is not sent eagerly, so that it needs progress while others compute
LARGE = 1 << 15
#: pauses of the progress thread between two looks: while data flows, and after a while without
_SHORT_PAUSE, _LONG_PAUSE = 1e-4, 5e-4
#: a look that takes longer has moved data
_MOVED_SECONDS = 1e-5


class ProgressThread:
    """Drives MPI's progress engine while large messages are under way.

    It looks often while data flows and seldom while a message is only expected, which takes some 5 %
    of a core instead of 10. It probes a communicator of its own, on which nothing is ever sent, and
    so never touches the requests of the links. Needs MPI_THREAD_MULTIPLE.
    """

    def __init__(self, comm: Any) -> None:
        self._comm = comm.Dup()
        self._active = 0
        self._pause = _SHORT_PAUSE
        self._wake = threading.Condition()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="mpi-progress", daemon=True)
        self._thread.start()

    @classmethod
    def available(cls) -> bool:
        """Whether MPI was started with MPI_THREAD_MULTIPLE."""
        from mpi4py import MPI

        return bool(MPI.Query_thread() == MPI.THREAD_MULTIPLE)

    def add(self, count: int) -> None:
        """`count` more (or, negative, fewer) large messages are under way."""
        with self._wake:
            self._active += count
            self._pause = _SHORT_PAUSE
            self._wake.notify()

    def close(self) -> None:
        """End the thread; collective, since it frees the communicator."""
        with self._wake:
            self._stopped = True
            self._wake.notify()
        self._thread.join()
        self._comm.Free()

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._active > 0 or self._stopped)
                if self._stopped:
                    return
            start = time.perf_counter()
            self._comm.Iprobe()
            moved = time.perf_counter() - start > _MOVED_SECONDS
            self._pause = _SHORT_PAUSE if moved else min(1.2 * self._pause, _LONG_PAUSE)
            time.sleep(self._pause)


class MPILink:
    """One end of a coupling between ranks.

    The requests are made once for a stage and only started afterwards.

    Parameters
    ----------
    waiter
        Waits politely, holds the communicator.
    peer
        Rank of the other end.
    coupling
        Index of the lower layer; the two directions are told apart by the tag.
    upper
        Whether this is the upper layer's end, which sends p down and receives q.
    send_bytes, receive_bytes
        Sizes of the messages.
    progress
        Keeps large messages moving; None leaves that to the waits.
    overlap
        Let messages travel while computing; else every send waits for its message to leave.
    buffers
        Send and receive buffer, uint8, where the caller has them; on a device for CUDA-aware MPI.
    """

    between_ranks = True

    def __init__(
        self,
        waiter: Waiter,
        peer: int,
        coupling: int,
        upper: bool,
        send_bytes: int,
        receive_bytes: int,
        progress: ProgressThread | None = None,
        overlap: bool = True,
        buffers: tuple[Any, Any] | None = None,
    ) -> None:
        self.peer = peer
        if buffers is None:
            buffers = np.zeros(send_bytes, np.uint8), np.zeros(receive_bytes, np.uint8)
        self.send_buffer: Any = buffers[0]
        self.receive_buffer: Any = buffers[1]
        self.messages_sent = 0
        self.bytes_sent = 0
        self.messages_received = 0
        self.bytes_received = 0
        self._overlap = overlap
        self._waiter = waiter
        self._what = f"layer {coupling if upper else coupling + 1} on rank {peer}"
        comm = waiter.comm
        down, up = 2 * coupling, 2 * coupling + 1
        self._send = [comm.Send_init(part, peer, down if upper else up) for part in pieces(self.send_buffer)]
        self._receive = [
            comm.Recv_init(part, peer, up if upper else down) for part in pieces(self.receive_buffer)
        ]
        self._sending = False
        self._receiving = False
        self._progress = progress if max(send_bytes, receive_bytes) >= LARGE else None

    def post_receive(self) -> None:
        """Let the next message come into the receive buffer."""
        for request in self._receive:
            request.Start()
        self._receiving = True
        self._watch(1)

    def start_send(self) -> None:
        """Send the buffer; it must not change until :meth:`wait_sent` returns."""
        for request in self._send:
            request.Start()
        self._sending = True
        self._watch(1)
        self.messages_sent += 1
        self.bytes_sent += self.send_buffer.nbytes
        if not self._overlap:
            self.wait_sent()

    def wait_sent(self) -> float:
        """Wait until the send buffer is free again; returns the seconds waited."""
        if not self._sending:
            return 0.0
        waited = self._waiter.all(self._send, f"a message to {self._what} to leave")
        self._sending = False
        self._watch(-1)
        return waited

    def wait_received(self) -> float:
        """Wait for the posted message; returns the seconds waited."""
        waited = self._waiter.all(self._receive, f"a message from {self._what}")
        if self._receiving:
            self._receiving = False
            self._watch(-1)
            self.messages_received += 1
            self.bytes_received += self.receive_buffer.nbytes
        return waited

    def sent(self) -> bool:
        """Whether the send buffer is free; never waits."""
        if self._sending and self._complete(self._send):
            self.wait_sent()
        return not self._sending

    def received(self) -> bool:
        """Whether the posted message is there; never waits."""
        if self._receiving and self._complete(self._receive):
            self.wait_received()
        return not self._receiving

    @property
    def what(self) -> str:
        """The other end, in words."""
        return self._what

    @staticmethod
    def _complete(requests: list[Any]) -> bool:
        return all(request.Test() for request in requests)

    def _watch(self, count: int) -> None:
        if self._progress is not None:
            self._progress.add(count)

    def close(self) -> None:
        """Finish what is under way and free the requests."""
        self.wait_sent()
        for request in self._send + self._receive:
            request.Free()
        self._send, self._receive = [], []
