"""When a run saves and when it stops: limits and intervals, on a clock that the test sets."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pdadmm.comm.waiter import Waiter
from pdadmm.runtime import control
from pdadmm.runtime.control import CONTINUE, SAVE, STOP, Control


class Run:
    """A run on one rank that began at 1000 s: iterations and checkpoints take what the test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, launched: float | None = None, **limits: Any) -> None:
        self.now = 1000.0
        monkeypatch.setattr(control, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(control, "launched", lambda: launched)
        given = {"every": 0, "every_seconds": 0.0, "max_seconds": 0.0} | limits
        self.control = Control(Waiter(SimpleNamespace(size=1, rank=0)), **given, started=self.now)
        self.iterations = 0

    def iterate(self, seconds: float) -> int:
        self.iterations += 1
        self.control.before()
        self.now += seconds
        return self.control.after(self.iterations)

    def until(self, verdict: int, seconds: float) -> float:
        """Seconds from the beginning to this verdict, which is that of an iteration of so many seconds."""
        while self.iterate(seconds) != verdict:
            assert self.now < 2000
        return self.now - 1000

    def save(self, seconds: float) -> None:
        self.now += seconds
        self.control.saved()


def test_a_run_without_limits_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch)
    assert not run.control.active
    assert {run.iterate(100.0) for _ in range(50)} == {CONTINUE}


def test_the_last_iteration_and_the_checkpoint_end_before_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch, every=10, max_seconds=200.0)
    assert run.until(SAVE, 2.0) == 20
    run.save(10.0)
    stopped = run.until(STOP, 2.0)
    assert stopped + 10 <= 200, "no time is left for a checkpoint that takes as long as the one before"
    assert stopped + 1.2 * 10 + 2 * 2 > 200, "it could have gone on"


def test_a_checkpoint_not_yet_written_is_expected_by_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch, max_seconds=200.0)
    run.control.expect(5_000_000_000)  # 50 s at 100 MB/s
    run.control.expect(1_000)  # of a smaller stage
    assert 200 - 64 < run.until(STOP, 2.0) <= 200 - 60


def test_slow_iterations_count_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch, max_seconds=100.0)
    assert run.iterate(30.0) == CONTINUE  # an evaluated one: another may follow
    assert run.until(STOP, 10.0) == 90, "one of 30 s would not end before the limit"


def test_no_more_than_half_of_a_limit_is_kept_free(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch, max_seconds=100.0)
    run.control.expect(1_000_000_000_000)
    assert 50 <= run.until(STOP, 1.0) < 52


def test_the_limit_counts_from_the_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch, launched=970.0, max_seconds=100.0)
    assert 65 < run.until(STOP, 1.0) <= 70


def test_checkpoints_every_so_many_seconds_count_from_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch, every_seconds=10.0)
    first = run.until(SAVE, 1.0)
    run.save(5.0)
    second = run.until(SAVE, 1.0)
    assert first == 11 and second == first + 5 + 11
