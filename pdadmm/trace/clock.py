"""Where an iteration's time goes: a lap clock that is always on, and a timeline when asked for.

The clock attributes all the time between two laps to the phase named at the second, so that the
phases of a rank add up to the wall time of its iterations by construction. A lap costs a clock read
and an addition; nothing is ever synchronised for it. On a GPU the times are those of CUDA events
(:mod:`pdadmm.trace.device_clock`). What is kept of a stage is bounded, however many iterations it has; a
graph network has a stage between any two assignments of widths.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Protocol

from pdadmm.trace.tally import Spread, Tally

__all__ = ["PHASES", "WARM_UP", "Clock", "Message", "Step"]

#: what an iteration's time is split into. By ADMM encode and decode run inside the fused updates, which are
#: not interrupted to time them; the reference kernels are timed the same way. Graph networks have them as
#: `codec`, and besides `aggregation` (sparse times dense) and `reduction` (sums of gradients over the ranks).
PHASES = ("products", "aggregation", "updates", "codec", "send", "wait", "reduction", "other")

#: phases that end a step
_ENDS = ("send", "wait", "reduction")

#: iterations at the start of a stage that are left out of the phases
WARM_UP = 3

#: iterations of a stage up to which each one is accounted for; after them every `_EVERY`-th, since
#: notes cost 3 to 7 us a layer and small networks' layers take a hundred
_EACH, _EVERY = 20, 8

#: messages of a stage whose times are kept without a timeline; enough for steady means
_MESSAGES_KEPT = 1000

#: laps and messages of all ranks together that a timeline shows of a stage, about, and those of a layer
#: in an iteration
_SHOWN, _SHOWN_A_LAYER = 250_000, 20
#: laps and messages of a rank after which no other iteration of the stage is shown, and those of the run:
#: parts of a graph may have thousands of messages in an iteration
_SHOWN_OF_RANK, _SHOWN_OF_RUN = 100_000, 300_000

#: ``(kind, channel, sequence, start, end, counted)``: kind ``sent`` or ``received``; name of the
#: channel, the same at both ends; nanoseconds; whether it happened within an iteration after the warm-up
Message = tuple[str, str, int, int, int, bool]


class Profiler(Protocol):
    """CuPy's NVTX module."""

    def RangePush(self, message: str) -> None: ...

    def RangePop(self) -> None: ...


@dataclass(frozen=True)
class Step:
    """A stretch of computing in an iteration, and the wait or send that ends it.

    The steps of an iteration are always the same, so that each one is a place in the dependency
    graph between the ranks, from which other networks are predicted.
    """

    part: str  #: of the layer's iteration: p, W or z (with q and u); forward, backward or update
    layer: int
    phase: str  #: wait, send, reduction, or other where the part ends
    channel: str  #: name of the message; empty where none is concerned
    compute: Spread  #: computing in a counted iteration
    updates: Spread  #: of this in the phase `updates`
    seconds: Spread  #: the wait or send itself


class Clock:
    """Seconds by layer and phase of the current stage, and the events of a timeline.

    Parameters
    ----------
    traced
        Keep every lap and message for the timeline, and name ranges for NVIDIA's profilers where
        CuPy is installed.

    Attributes
    ----------
    events
        ``(name, layer, start, end)`` in nanoseconds of :func:`time.perf_counter_ns`; None unless
        traced. Layer 0 is the rank as a whole.
    messages
        Of the current stage.
    walls
        Of every counted iteration, nanoseconds as a single measurement from its begin to its end,
        where only this clock can tell them; empty on the host, where the caller can.
    past, shown
        By stage that ended: messages for the timeline, and how many iterations it shows of how many.
    """

    _every = _EVERY

    def __init__(self, traced: bool = False) -> None:
        self.events: list[tuple[str, int, int, int]] | None = [] if traced else None
        self.past: list[list[Message]] = []
        self.shown: list[tuple[int, int]] = []
        self._kept = 0  # messages that the stages before show
        self._nvtx = _nvtx() if traced else None
        self._in_range = False
        self._counting = False
        self._noting = self._sending = True
        self._last = self._iteration_start = perf_counter_ns()
        self.begin_stage()

    @property
    def traced(self) -> bool:
        """Whether a timeline is kept."""
        return self.events is not None

    def begin_stage(self, depth: int = 1) -> None:
        """Forget the phases of the stage before; `depth` is the number of layers of all ranks."""
        self._rows: dict[int, dict[str, int]] = {}
        self._row_of = 0
        self._row: dict[str, int] = {}
        self.walls = Tally(1)
        self.messages: list[Message] = []
        self._iterations = Tally(1)
        self._places: list[tuple[str, int, str, str]] = []  # what the times of steps are about
        self._steps: Tally | None = None
        self._times: list[int] = []  # of the iteration under way: computing, of this in updates, wait or send
        self._computed = self._updating = 0
        self._part = ("", 0)
        self._about = ""  # which message
        self._begun = self._shown = self._shown_messages = 0
        self._events_before = len(self.events or ())
        self._shown_at_most = max(1, _SHOWN // (_SHOWN_A_LAYER * max(depth, 1)))
        self._showing = self.traced

    def end_stage(self) -> None:
        """Complete the accounts of the stage, and keep its messages for the timeline."""
        if self.traced:
            self.past.append(self.messages)
            self.shown.append((self._shown, self._begun))
            self._kept += self._shown_messages

    @property
    def seconds(self) -> dict[int, dict[str, float]]:
        """``seconds[layer][phase]`` since :meth:`begin_stage`, warm-up iterations left out."""
        return {
            layer: {phase: taken * 1e-9 for phase, taken in row.items()} for layer, row in self._rows.items()
        }

    @property
    def iterations(self) -> int:
        """Counted ones."""
        return self._iterations.rows

    @property
    def iteration_seconds(self) -> Spread:
        """Of the counted iterations."""
        return self._iterations.spreads[0]

    @property
    def steps(self) -> list[Step]:
        """The iteration cut at its waits and sends, as the first counted one was."""
        if self._steps is None:
            return []
        spreads = self._steps.spreads
        return [Step(*place, *spreads[3 * i : 3 * i + 3]) for i, place in enumerate(self._places)]

    @property
    def detailed(self) -> bool:
        """Whether the parts of the iteration under way have to be told apart."""
        return True

    # every time may be given (`now`, in ns) by who knows it better than this process's clock

    def counts(self, iteration: int) -> bool:
        """Whether an iteration, counted from 0 in its stage, is accounted for; the same on all ranks."""
        if iteration < WARM_UP:
            return False
        return iteration < _EACH or iteration % self._every == 0 or self.events is not None

    def begin_iteration(self, iteration: int, now: int = 0) -> None:
        """Start the first lap of an iteration, counted from 0 in its stage."""
        self._counting = self.counts(iteration)
        self._begun += 1
        self._showing = self.events is not None and self._begun <= self._shown_at_most and self._has_room()
        self._shown += self._showing
        self._noting = self._counting or self._showing
        # q leaves in the iteration before the one that takes it
        self._sending = self._noting or self.counts(iteration + 1)
        self._times = []
        self._computed = self._updating = 0
        self._part = ("", 0)
        self._about = ""
        self._last = self._iteration_start = now or perf_counter_ns()

    def _has_room(self) -> bool:
        """Whether the timeline has room for another iteration."""
        laps = len(self.events or ())  # of stages that nobody ended, too
        of_stage = laps - self._events_before + self._shown_messages
        return of_stage < _SHOWN_OF_RANK and laps + self._kept + self._shown_messages < _SHOWN_OF_RUN

    def part(self, name: str, layer: int) -> None:
        """Begin a part of the iteration: p, W or z of a layer."""
        if self._counting and self._part[1]:
            self._step("other", 0)
        self._part = (name, layer)
        if self._nvtx is not None:
            self._open_range(self._nvtx, name, layer)

    def _open_range(self, nvtx: Profiler, name: str, layer: int) -> None:
        self._close_range()
        nvtx.RangePush(f"{name} {layer}")
        self._in_range = True

    def _close_range(self) -> None:
        if self._in_range and self._nvtx is not None:
            self._nvtx.RangePop()
            self._in_range = False

    def lap(self, phase: str, layer: int, now: int = 0) -> None:
        """Attribute the time since the last lap to a phase of a layer."""
        if not self._noting:
            return
        now = now or perf_counter_ns()
        if self._counting:
            took = now - self._last
            if layer != self._row_of:
                self._row_of = layer
                self._row = self._rows.setdefault(layer, dict.fromkeys(PHASES, 0))
            self._row[phase] += took
            if phase == "updates":
                self._computed += took
                self._updating += took
            elif phase in _ENDS:
                self._step(phase, took)
            else:
                self._computed += took
        if self._showing and self.events is not None:
            self.events.append((phase, layer, self._last, now))
        self._last = now

    def about(self, name: str) -> None:
        """Say what the next lap is about, where no message says it."""
        self._about = name

    def _step(self, phase: str, took: int) -> None:
        if self._steps is None:
            self._places.append((*self._part, phase, self._about))
        self._times += (self._computed, self._updating, took)
        self._computed = self._updating = 0
        self._about = ""

    def end_iteration(self, layer: int, now: int = 0) -> None:
        """Close the last lap."""
        Clock.lap(self, "other", layer, now)  # a subclass's lap may be another
        self._close_range()
        if not self._noting:
            self._last = now or perf_counter_ns()
        if self._counting:
            self._iterations.add([self._last - self._iteration_start])
            self._about = ""  # of a send after the last lap
            self._step("other", 0)
            if self._steps is None:
                self._steps = Tally(len(self._times))
            if len(self._times) == self._steps.width:  # an iteration cut otherwise has no place there
                self._steps.add(self._times)
        self._counting = False
        self._noting = self._sending = True  # what lies between iterations

    def message(self, kind: str, name: str, sequence: int, start: int, now: int = 0) -> None:
        """Note that a message was handed to the transport, or waited for since `start` (ns) and taken."""
        if not (self._sending if kind == "sent" else self._noting):
            return
        self._about = name
        if self._showing or len(self.messages) < _MESSAGES_KEPT:
            end = now or perf_counter_ns()
            self._shown_messages += self._showing
            self.messages.append((kind, name, sequence, start, end, self._counting))

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Show work between iterations on the timeline."""
        start = perf_counter_ns()
        yield
        if self._showing and self.events is not None:
            self.events.append((name, 0, start, perf_counter_ns()))


def _nvtx() -> Profiler | None:
    """CuPy's NVTX module; None where there is none."""
    try:
        from cupy.cuda import nvtx
    except Exception:  # CuPy raises its own errors where there is no driver
        return None
    found: Profiler = nvtx
    return found if nvtx.available else None
