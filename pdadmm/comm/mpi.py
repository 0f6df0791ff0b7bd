"""Couplings between two ranks over MPI: persistent requests on buffers that never move."""

from __future__ import annotations

from typing import Any

import numpy as np

from pdadmm.comm.waiting import Waiter, pieces

__all__ = ["MPILink"]


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
    """

    between_ranks = True

    def __init__(
        self, waiter: Waiter, peer: int, coupling: int, upper: bool, send_bytes: int, receive_bytes: int
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

    def post_receive(self) -> None:
        """Let the next message come into the receive buffer."""
        for request in self._receive:
            request.Start()

    def start_send(self) -> None:
        """Send the buffer; it must not change until :meth:`wait_sent` returns."""
        for request in self._send:
            request.Start()
        self._sending = True
        self.messages_sent += 1
        self.bytes_sent += self.send_buffer.nbytes

    def wait_sent(self) -> float:
        """Wait until the send buffer is free again; returns the seconds waited."""
        if not self._sending:
            return 0.0
        self._sending = False
        return self._waiter.all(self._send, f"a message to {self._what} to leave")

    def wait_received(self) -> float:
        """Wait for the posted message; returns the seconds waited."""
        return self._waiter.all(self._receive, f"a message from {self._what}")

    def close(self) -> None:
        """Finish what is under way and free the requests."""
        self.wait_sent()
        for request in self._send + self._receive:
            request.Free()
        self._send, self._receive = [], []
