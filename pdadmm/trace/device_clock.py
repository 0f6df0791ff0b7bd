"""The clock of a GPU's iterations: laps are CUDA events on the compute stream.

The host gives a GPU its work and does not wait for it, so that its own clock would only tell when
work was given out. Here a lap records an event, and the accounts are made up later, from the times
at which the device came by. They are read when it has: an iteration's last event is asked, once an
iteration, whether it was reached. Nothing ever waits for an event.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter_ns

from pdadmm.arrays.streams import Recorded, new_event
from pdadmm.trace.clock import Clock

__all__ = ["DeviceClock"]


#: iterations that are kept for a device which does not catch up, at most
_UNALIGNED = 256

#: as in :mod:`pdadmm.trace.clock`: events make an iteration of a small network take many times as long
_EVERY = 64

#: what was noted: the method that makes it up, its arguments, and whether it takes an event's time
_Note = tuple[Callable[..., None], tuple[str | int, ...], bool]


class DeviceClock(Clock):
    """:class:`Clock` in the device's time, given as times of the host's clock.

    The notes of an iteration are kept with its events, and replayed into the accounts when the device
    has passed them. The two clocks are put side by side anew whenever the device has caught up with the
    host: an event is reached after it was recorded, and one that was recorded while the device had
    nothing else to do is reached at once: the first one after it caught up, and the last one of an
    evaluated iteration. So of all offsets that let no event come before it was recorded, the smallest
    is right within a kernel launch, and none of these times is later than the host saw it.
    """

    _every = _EVERY

    def __init__(self, traced: bool = False) -> None:
        import cupy

        self._cuda = cupy.cuda
        self._pool: list[Recorded] = []
        super().__init__(traced)

    def begin_stage(self, depth: int = 1) -> None:
        super().begin_stage(depth)
        self._inside = self._each = False  # an iteration, and one whose laps count
        #: of the iteration under way: notes, and events with the host's time when they were recorded
        self._notes: list[_Note] = []
        self._marks: list[tuple[Recorded, int]] = []
        #: iterations that the device may not have passed, and those whose times (ns) were read
        self._given: deque[tuple[list[_Note], list[tuple[Recorded, int]]]] = deque()
        self._passed: list[tuple[list[_Note], list[int]]] = []
        #: last event read, its time since the first one, and the host's time of that one, at least
        self._before: Recorded | None = None
        self._device, self._offset = 0, self._last
        self._aligned = False  # at first the device is behind the host, by the stage's forward pass
        self._to_place: list[tuple[str, str, int]] = []
        self._layer = 0  # last of this rank

    @property
    def detailed(self) -> bool:
        return self._each

    def end_stage(self) -> None:
        self._settle()
        self._replay()
        self._make_up(self._notes, [], 0)  # an evaluation after the last iteration
        self._notes = []
        super().end_stage()

    def begin_iteration(self, iteration: int, now: int = 0) -> None:
        self._inside = True
        # an event costs the host as much as a kernel: laps that nobody accounts for have none
        self._each = self.traced or self.counts(iteration) or self.counts(iteration + 1)
        self._stream = self._cuda.get_current_stream()
        self._mark(Clock.begin_iteration, iteration)
        if self._settle():  # what the clock itself takes is no part of the products that follow
            self._mark(DeviceClock._lap, "other", self._layer)

    def part(self, name: str, layer: int) -> None:
        if self._nvtx is not None:
            self._open_range(self._nvtx, name, layer)
        if self._each:
            self._notes.append((Clock.part, (name, layer), False))

    def lap(self, phase: str, layer: int, now: int = 0) -> None:
        if self._each:
            self._mark(DeviceClock._lap, phase, layer)

    def about(self, name: str) -> None:
        if self._inside and self._each:
            self._notes.append((Clock.about, (name,), False))

    def end_iteration(self, layer: int, now: int = 0) -> None:
        self._close_range()
        self._mark(Clock.end_iteration, layer)
        self._given.append((self._notes, self._marks))
        self._notes, self._marks = [], []
        self._inside, self._layer = False, layer

    def message(self, kind: str, name: str, sequence: int, start: int, now: int = 0) -> None:
        if self._inside:
            if self._each:
                self._notes.append((DeviceClock._message, (kind, name, sequence), False))
        else:  # the last messages of a stage: they are there, since the device was waited for
            super().message(kind, name, sequence, start, now)

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        start = perf_counter_ns()
        yield
        if self.traced:
            self._notes.append((DeviceClock._span, (name, start, perf_counter_ns()), False))

    # ---- what the device came by ----------------------------------------------------------------------

    def _mark(self, function: Callable[..., None], *arguments: str | int) -> None:
        event = self._pool.pop() if self._pool else new_event()
        self._marks.append((event, perf_counter_ns()))
        event.record(self._stream)
        self._notes.append((function, arguments, True))

    def _settle(self) -> bool:
        """Read the times of the iterations that the device has passed, and replay them.

        In a stage the first ones are kept until the device has caught up once, since its time is not known
        before, but no more than _UNALIGNED: then the least that it can be is taken.

        Returns
        -------
        bool
            Whether there were any.
        """
        before = len(self._given)
        while self._given and self._given[0][1][-1][0].done:
            notes, marks = self._given.popleft()
            if next(self.counts(int(given[0])) for call, given, _ in notes if call is Clock.begin_iteration):
                self.walls.add([round(1e6 * self._cuda.get_elapsed_time(marks[0][0], marks[-1][0]))])
            self._passed.append((notes, [self._read(event, given) for event, given in marks]))
        if len(self._given) == before:
            return False
        caught_up = not self._given
        if caught_up or self._aligned or len(self._passed) >= _UNALIGNED:
            self._replay()
        if caught_up:  # what comes now is not before what was replayed
            if self._before is not None:
                self._pool.append(self._before)
            self._before, self._device, self._offset = None, 0, self._last
            self._aligned = True
        return True

    def _read(self, event: Recorded, given: int) -> int:
        """Nanoseconds from the first event to this one; the one before goes back to the pool."""
        if self._before is not None:
            # from event to event, since the times are single-precision numbers
            self._device += round(1e6 * self._cuda.get_elapsed_time(self._before, event))
            self._pool.append(self._before)
        self._before = event
        self._offset = max(self._offset, given - self._device)
        return self._device

    def _replay(self) -> None:
        for notes, times in self._passed:
            self._make_up(notes, times, self._offset)
        self._passed = []

    def _make_up(self, notes: list[_Note], times: list[int], offset: int) -> None:
        passed = iter(times)
        nvtx, self._nvtx = self._nvtx, None  # the profiler's ranges are past
        for function, arguments, timed in notes:
            if timed:
                function(self, *arguments, next(passed) + offset)
            else:
                function(self, *arguments)
        self._nvtx = nvtx

    def _lap(self, phase: str, layer: int, now: int) -> None:
        for message in self._to_place:
            super().message(*message, self._last, now)
        self._to_place = []
        super().lap(phase, layer, now)

    def _message(self, kind: str, name: str, sequence: int) -> None:
        """A message takes the time of the lap that follows it: the wait or the send."""
        self._to_place.append((kind, name, sequence))

    def _span(self, name: str, start: int, end: int) -> None:
        """What the host timed begins after the iteration before, within the error of the offset."""
        if self._showing and self.events is not None:
            self.events.append((name, 0, max(start, self._last), max(end, self._last)))
