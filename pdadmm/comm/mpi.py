"""Messages between two ranks over MPI: persistent requests on buffers that never move.

MPI libraries move large messages only inside MPI calls, so that a transfer started before a matrix
product would wait for the end of the product. A :class:`ProgressThread` keeps them moving; it
sleeps whenever nothing large is under way.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pdadmm.arrays import Array
from pdadmm.comm.channel import Channel, Ends, Incoming, Outgoing
from pdadmm.comm.pipeline import HostPipeline
from pdadmm.comm.rounds import Rounds
from pdadmm.comm.waiter import Waiter, pieces

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm, Prequest

__all__ = ["LARGE", "MPIIncoming", "MPIOutgoing", "MPITransport", "ProgressThread", "Wire"]

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
    so never touches the requests of the messages. Needs MPI_THREAD_MULTIPLE.
    """

    def __init__(self, comm: Intracomm) -> None:
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

    def stop(self) -> None:
        """End the thread."""
        with self._wake:
            self._stopped = True
            self._wake.notify()
        self._thread.join()

    def close(self) -> None:
        """End the thread; collective, since it frees the communicator."""
        self.stop()
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


class Wire:
    """The requests of one channel on a buffer; made once, only started afterwards.

    Parameters
    ----------
    waiter
        Waits politely, holds the communicator.
    channel
        The message, sent or received.
    buffer
        (nbytes,) uint8; on a device for a CUDA-aware MPI library.
    progress
        Keeps large messages moving; None leaves that to the waits.

    Attributes
    ----------
    under_way
        Whether a message was started and not waited for yet.
    """

    def __init__(
        self, waiter: Waiter, channel: Channel, buffer: Array, progress: ProgressThread | None = None
    ) -> None:
        self._waiter, self._channel = waiter, channel
        make = waiter.comm.Send_init if channel.sends else waiter.comm.Recv_init
        self._requests: list[Prequest] = [make(part, channel.peer, channel.tag) for part in pieces(buffer)]
        self._progress = progress if channel.nbytes >= LARGE else None
        self.under_way = False

    def start(self) -> None:
        """Start the next message."""
        for request in self._requests:
            request.Start()
        self.under_way = True
        self._watch(1)

    def wait(self) -> None:
        """Wait for the end of the message under way, if there is one."""
        if self.under_way:
            self._waiter.all(self._requests, self._channel.what)
            self.under_way = False
            self._watch(-1)

    def done(self) -> bool:
        """Whether no message is under way any more; never waits."""
        if self.under_way and all(request.Test() for request in self._requests):
            self.wait()
        return not self.under_way

    def free(self) -> None:
        """Free the requests."""
        for request in self._requests:
            request.Free()
        self._requests = []

    def _watch(self, count: int) -> None:
        if self._progress is not None:
            self._progress.add(count)


class MPIOutgoing(Outgoing):
    """The sender's end, with a buffer on the host.

    Parameters
    ----------
    overlap
        Let messages travel while computing; else every send waits for its message to leave.
    """

    def __init__(
        self, channel: Channel, waiter: Waiter, progress: ProgressThread | None = None, overlap: bool = True
    ) -> None:
        super().__init__(channel, np.zeros(channel.nbytes, np.uint8))
        self._wire = Wire(waiter, channel, self.buffer, progress)
        self._overlap = overlap

    def wait_free(self) -> None:
        self._wire.wait()

    def _start(self) -> None:
        self._wire.start()
        if not self._overlap:
            self._wire.wait()

    def close(self) -> None:
        self._wire.wait()
        self._wire.free()


class MPIIncoming(Incoming):
    """The receiver's end, with a buffer on the host."""

    def __init__(self, channel: Channel, waiter: Waiter, progress: ProgressThread | None = None) -> None:
        super().__init__(channel, np.zeros(channel.nbytes, np.uint8))
        self._wire = Wire(waiter, channel, self.buffer, progress)

    def _post(self) -> None:
        self._wire.start()

    def _wait(self) -> None:
        self._wire.wait()

    def close(self) -> None:
        self._wire.free()


@dataclass
class MPITransport:
    """Between arrays on the host.

    Parameters
    ----------
    waiter
        Waits politely, holds the communicator.
    progress
        Keeps large messages moving, and ends with this; None leaves that to the waits.
    overlap
        Let messages travel while computing.
    """

    waiter: Waiter
    progress: ProgressThread | None = None
    overlap: bool = True

    def open(self, rounds: Rounds) -> Ends:
        ends = Ends({}, {})
        for channel in rounds.channels:
            if channel.sends:
                ends.outgoing[channel.name] = MPIOutgoing(channel, self.waiter, self.progress, self.overlap)
            else:
                ends.incoming[channel.name] = MPIIncoming(channel, self.waiter, self.progress)
        return ends

    def pipeline(self, below: int | None, above: int | None) -> HostPipeline:
        return HostPipeline(self.waiter, below, above)

    def waited(self) -> float:
        """On the host the waiter counts the seconds."""
        return 0.0

    def close(self) -> None:
        """End the progress thread; collective."""
        if self.progress is not None:
            self.progress.close()

    def abandon(self) -> None:
        """End the progress thread, where the other ranks are not here to close all together."""
        if self.progress is not None:
            self.progress.stop()
