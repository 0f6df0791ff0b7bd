"""Where an iteration's time goes: a lap clock that is always on, and a timeline when asked for.

The clock attributes all the time between two laps to the phase named at the second, so that the
phases of a rank add up to the wall time of its iterations by construction. A lap costs a clock read
and an addition.
"""

from __future__ import annotations

import time
from typing import Any

__all__ = ["PHASES", "WARM_UP", "Clock"]

#: what an iteration's time is split into. Encode and decode run inside the fused updates, which are
#: not interrupted to time them; the reference kernels are timed the same way.
PHASES = ("products", "updates", "send", "wait", "other")

#: iterations at the start of a stage that are left out of the phases
WARM_UP = 3


class Clock:
    """Seconds by layer and phase of the current stage, and the events of a timeline.

    Parameters
    ----------
    traced
        Keep every lap and message for the timeline.

    Attributes
    ----------
    seconds
        ``seconds[layer][phase]`` since :meth:`begin_stage`, warm-up iterations left out.
    events
        ``(name, layer, start, end)`` in nanoseconds of :func:`time.perf_counter_ns`; None unless traced.
    messages
        ``(kind, coupling, upward, sequence, time)``, kind ``sent`` or ``received``; None unless traced.
    """

    def __init__(self, traced: bool = False) -> None:
        self.seconds: dict[int, dict[str, float]] = {}
        self.iteration_seconds: list[float] = []
        self.events: list[tuple[str, int, int, int]] | None = [] if traced else None
        self.messages: list[tuple[str, int, bool, int, int]] | None = [] if traced else None
        self._counting = False
        self._last = self._iteration_start = time.perf_counter_ns()

    def begin_stage(self) -> None:
        """Forget the phases of the stage before."""
        self.seconds = {}
        self.iteration_seconds = []

    def begin_iteration(self, iteration: int) -> None:
        """Start the first lap of an iteration, counted from 0 in its stage."""
        self._counting = iteration >= WARM_UP
        self._last = self._iteration_start = time.perf_counter_ns()

    def lap(self, phase: str, layer: int) -> None:
        """Attribute the time since the last lap to a phase of a layer."""
        now = time.perf_counter_ns()
        if self._counting:
            phases = self.seconds.get(layer)
            if phases is None:
                phases = self.seconds[layer] = dict.fromkeys(PHASES, 0.0)
            phases[phase] += (now - self._last) * 1e-9
        if self.events is not None:
            self.events.append((phase, layer, self._last, now))
        self._last = now

    def end_iteration(self, layer: int) -> float:
        """Close the last lap; returns the iteration's seconds."""
        self.lap("other", layer)
        seconds = (self._last - self._iteration_start) * 1e-9
        if self._counting:
            self.iteration_seconds.append(seconds)
        return seconds

    def message(self, kind: str, coupling: int, upward: bool, sequence: int) -> None:
        """Note that a message was handed to the transport or taken from it."""
        if self.messages is not None:
            self.messages.append((kind, coupling, upward, sequence, time.perf_counter_ns()))

    def state(self) -> dict[str, Any]:
        """Phases and iteration times of the stage, as plain data."""
        return {"phases": self.seconds, "iteration_seconds": self.iteration_seconds}
