"""The two streams of a GPU that computes and talks, and how long the first stood still for the second."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pdadmm.arrays.helpers import DeviceArray
from pdadmm.errors import RunError

if TYPE_CHECKING:
    from cupy.cuda import Stream

__all__ = ["Event", "IdleTime", "Recorded", "Streams", "new_event"]

#: what CUDA says of an event that the device has not reached: cudaErrorNotReady
_NOT_READY = 600


class Event(Protocol):
    """A place in a stream."""

    @property
    def done(self) -> bool:
        """Whether the device came by; never waits.

        Raises
        ------
        RunError
            When the device has failed: it reaches no event any more.
        """
        ...


class Recorded(Event, Protocol):
    """An event of CuPy, which can be put into a stream, and knows its time where it is timed."""

    def record(self, stream: Stream) -> None: ...


def new_event(timed: bool = True) -> Recorded:
    """An event of CuPy that tells a device which has failed from one that is not there yet.

    CuPy's own ``done`` is False for both, and who polls it would do so for ever.
    """
    import cupy

    return _event_type(cupy.cuda)(disable_timing=not timed)


@functools.cache
def _event_type(cuda: ModuleType) -> Callable[..., Recorded]:
    runtime = cuda.runtime
    event: Any = cuda.Event

    class CheckedEvent(event):
        @property
        def done(self) -> bool:
            status = runtime.eventQuery(self.ptr)
            if status not in (0, _NOT_READY):
                raise RunError(f"the GPU has failed: {runtime.CUDARuntimeError(status)}")
            return bool(status == 0)

    return CheckedEvent


class Streams:
    """The compute stream, which is CuPy's current stream, and one for transfers beside it.

    Events order one stream against the other; the host waits for neither.

    Attributes
    ----------
    transfers
        The stream of the transfers.
    idle
        Told of the compute stream's waits for messages.
    """

    def __init__(self) -> None:
        import cupy

        self._cupy = cupy
        self.transfers: Stream = cupy.cuda.Stream(non_blocking=True)
        self.idle = IdleTime()

    def buffer(self, nbytes: int) -> DeviceArray:
        """Zeroed device memory, uint8."""
        return self._cupy.zeros(nbytes, np.uint8)

    def pinned(self, nbytes: int) -> np.ndarray:
        """Pinned host memory, uint8."""
        memory = self._cupy.cuda.alloc_pinned_memory(max(nbytes, 1))
        return np.frombuffer(memory, np.uint8, nbytes)

    def mark_compute(self) -> Event:
        """An event at the end of what the compute stream has been given so far."""
        return self._mark(self._cupy.cuda.get_current_stream())

    def mark_transfers(self) -> Event:
        """The same for the transfers."""
        return self._mark(self.transfers)

    def compute_after(self, event: Event) -> None:
        """Let what the compute stream is given from now on wait for an event."""
        self._cupy.cuda.get_current_stream().wait_event(event)

    def transfers_after(self, event: Event) -> None:
        """Let the transfers that are given from now on wait for an event."""
        self.transfers.wait_event(event)

    def to_host(self, source: DeviceArray, target: np.ndarray, after: Event) -> Event:
        """Start a copy to pinned memory after an event; returns the event at its end."""
        self.transfers_after(after)
        source.get(stream=self.transfers, out=target, blocking=False)
        return self.mark_transfers()

    def to_device(self, source: np.ndarray, target: DeviceArray, after: Event) -> Event:
        """Start a copy from pinned memory after an event; returns the event at its end."""
        self.transfers_after(after)
        target.set(source, stream=self.transfers)
        return self.mark_transfers()

    def synchronize(self) -> None:
        """Let the host wait for both streams."""
        self.transfers.synchronize()
        self._cupy.cuda.get_current_stream().synchronize()

    def _mark(self, stream: Stream) -> Event:
        event = new_event(timed=False)
        event.record(stream)
        return event


class IdleTime:
    """Waits of the compute stream, told by events around them; the host waits for none of them."""

    def __init__(self) -> None:
        import cupy

        self._cuda = cupy.cuda
        self._waits: list[tuple[Event, Event]] = []

    def begin(self) -> Event:
        """Event at the end of the work that was given so far."""
        event = new_event()
        event.record(self._cuda.get_current_stream())
        return event

    def end(self, begun: Event) -> None:
        """The compute stream has just been told to wait for a message."""
        self._waits.append((begun, self.begin()))

    def forget(self) -> None:
        """Leave the waits so far out."""
        self._waits = []

    def seconds(self) -> float:
        """Seconds of all waits since the last call; the device must have finished them."""
        waits, self._waits = self._waits, []
        return sum(self._cuda.get_elapsed_time(start, end) for start, end in waits) * 1e-3
