"""How long a GPU stood still for messages, told by events around the waits of its compute stream."""

from __future__ import annotations

from typing import Any

__all__ = ["IdleTime"]


class IdleTime:
    """Waits of the compute stream, which is CuPy's current stream; the host waits for none of them."""

    def __init__(self) -> None:
        import cupy

        self._cuda = cupy.cuda
        self._waits: list[tuple[Any, Any]] = []

    def begin(self) -> Any:
        """Event at the end of the work that was given so far."""
        event = self._cuda.Event()
        event.record(self._cuda.get_current_stream())
        return event

    def end(self, begun: Any) -> None:
        """The compute stream has just been told to wait for a message."""
        self._waits.append((begun, self.begin()))

    def forget(self) -> None:
        """Leave the waits so far out."""
        self._waits = []

    def seconds(self) -> float:
        """Seconds of all waits since the last call; the device must have finished them."""
        waits, self._waits = self._waits, []
        return sum(self._cuda.get_elapsed_time(start, end) for start, end in waits) * 1e-3
