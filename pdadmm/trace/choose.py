"""The clock for where a backend computes."""

from __future__ import annotations

from pdadmm.arrays.backend import Backend
from pdadmm.trace.clock import Clock

__all__ = ["make_clock"]


def make_clock(backend: Backend, traced: bool) -> Clock:
    """A clock of the host, or on a GPU of CUDA events."""
    if not backend.on_device:
        return Clock(traced)
    from pdadmm.trace.device_clock import DeviceClock

    return DeviceClock(traced)
