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

from pdadmm.comm.waiting import Waiter, pieces

__all__ = ["LARGE", "MPILink", "ProgressThread"]

#: bytes from which a message is not sent eagerly, so that it needs progress while others compute
LARGE = 1 << 15
_POLL_SECONDS = 1e-4


class ProgressThread:
    """Drives MPI's progress engine while large messages are under way.

    It probes a communicator of its own, on which nothing is ever sent, and so never touches the
    requests of the links. Needs MPI_THREAD_MULTIPLE.
    """

    def __init__(self, comm: Any) -> None:
        self._comm = comm.Dup()
        self._active = 0
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
            self._comm.Iprobe()
            time.sleep(_POLL_SECONDS)


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
    ) -> None:
        self.send_buffer: Any = np.zeros(send_bytes, np.uint8)
        self.receive_buffer: Any = np.zeros(receive_bytes, np.uint8)
        self.messages_sent = 0
        self.bytes_sent = 0
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
        return waited

    def _watch(self, count: int) -> None:
        if self._progress is not None:
            self._progress.add(count)

    def close(self) -> None:
        """Finish what is under way and free the requests."""
        self.wait_sent()
        for request in self._send + self._receive:
            request.Free()
        self._send, self._receive = [], []
