"""Streams as threads, events, and the device's properties; see `cupy`."""

from __future__ import annotations

import contextlib
import os
import queue
import random
import threading
import time
from collections.abc import Iterator
from typing import Any, ClassVar

import cupy
from cupy.cuda import compiler, cublas, device, driver, nccl, nvrtc, nvtx, runtime  # noqa: F401
from cupy.cuda.function import Module  # noqa: F401


class Event:
    def __init__(self, block: bool = False, disable_timing: bool = False, interprocess: bool = False) -> None:
        cupy.counts["events"] += 1
        self._reached = threading.Event()
        self._reached.set()
        self._timed = not disable_timing
        self.device = runtime.current.device
        self.ptr = id(self)
        runtime.events[self.ptr] = self
        self.time = time.perf_counter()

    def record(self, stream: Any = None) -> None:
        self._reached = reached = threading.Event()
        (stream or _NULL)._do(lambda: self._reach(reached))

    def _reach(self, reached: threading.Event) -> None:
        self.time = time.perf_counter()
        reached.set()

    @property
    def done(self) -> bool:
        return self._reached.is_set()

    def synchronize(self) -> None:
        cupy.counts["waits"] += 1
        self._reached.wait()


def get_elapsed_time(start: Event, end: Event) -> float:
    assert start.done and end.done and start._timed and end._timed
    return 1e3 * (end.time - start.time)


class _NullStream:
    """Everything given to it is done at once."""

    ptr = 0

    def _do(self, work: Any) -> None:
        work()

    def wait_event(self, event: Event) -> None:
        event._reached.wait()  # stands for the device's wait, not the host's

    def synchronize(self) -> None:
        cupy.counts["waits"] += 1


_NULL = _NullStream()


class Stream:
    """A thread that works off what it is given, a little late."""

    _all: ClassVar[dict[int, Stream]] = {}

    def __init__(self, null: bool = False, non_blocking: bool = False) -> None:
        assert non_blocking
        self.ptr = id(self)
        Stream._all[self.ptr] = self
        self._queue: queue.Queue[Any] = queue.Queue()
        self._random = random.Random(0)
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            work = self._queue.get()
            time.sleep(self._random.choice((0, 0, 1e-4)))
            work()

    def _do(self, work: Any) -> None:
        self._queue.put(work)

    def wait_event(self, event: Event) -> None:
        reached = event._reached
        self._do(reached.wait)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        assert cupy.tape is None

    def begin_capture(self) -> None:
        assert cupy.tape is None
        cupy.tape = []

    def end_capture(self) -> Graph:
        assert cupy.tape is not None
        graph, cupy.tape = Graph(cupy.tape), None
        return graph

    def synchronize(self) -> None:
        cupy.counts["waits"] += 1
        event = Event()
        event.record(self)
        event._reached.wait()


class Graph:
    """What was captured, done again at every launch."""

    def __init__(self, tape: list[Any]) -> None:
        self._tape = tape

    def launch(self) -> None:
        cupy.counts["graphs"] += 1
        for work in self._tape:
            work()


class MemoryPool:
    def malloc(self, nbytes: int) -> None:
        raise AssertionError("arrays of the stand-in are NumPy's")


@contextlib.contextmanager
def using_allocator(allocator: Any) -> Iterator[None]:
    yield


def get_current_stream() -> Any:
    return _NULL


class Device:
    def __init__(self, number: int | None = None) -> None:
        number = runtime.current.device if number is None else number
        if not 0 <= number < runtime.getDeviceCount():
            raise RuntimeError("cudaErrorInvalidDevice: invalid device ordinal")
        self.id = number

    compute_capability = "90"

    def use(self) -> None:
        runtime.current.device = self.id


def alloc_pinned_memory(nbytes: int) -> bytearray:
    return bytearray(nbytes)


def is_available() -> bool:
    return int(os.environ.get("STANDIN_DEVICES", "1")) > 0
