"""Waiting: it ends when it is done, gives the core away, gives up in time; pieces cover a buffer."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pdadmm.arrays.backend import NUMPY
from pdadmm.comm import waiter as waiting
from pdadmm.comm.channel import Channel
from pdadmm.comm.local import local_ends
from pdadmm.comm.rounds import Round, Rounds
from pdadmm.comm.waiter import Waiter, pieces, poll
from pdadmm.errors import RunError


@pytest.fixture
def waiter() -> Waiter:
    """Of a world of one rank."""
    return Waiter(SimpleNamespace(size=1, rank=0))


def test_what_is_done_costs_no_time(waiter: Waiter) -> None:
    assert waiter.until(lambda: True, "nothing") == 0.0
    assert waiter.all([], "nothing") == 0.0
    assert waiter.seconds == 0.0


def test_a_wait_ends_soon_after_it_is_done_and_is_counted(waiter: Waiter) -> None:
    start = time.perf_counter()
    waited = waiter.until(lambda: time.perf_counter() - start > 0.2, "a clock")
    assert 0.19 < waited < 1.0
    assert waiter.seconds == waited
    waiter.until(lambda: time.perf_counter() - start > 0.3, "a clock")
    assert waiter.seconds > waited


def test_a_wait_gives_the_core_away(waiter: Waiter) -> None:
    start, cpu = time.perf_counter(), time.process_time()
    waiter.until(lambda: time.perf_counter() - start > 1.0, "a clock")
    assert time.process_time() - cpu < 0.5


def test_a_wait_gives_up_after_the_timeout_and_says_for_what() -> None:
    waiter = Waiter(SimpleNamespace(size=1, rank=0), timeout=0.2)
    start = time.perf_counter()
    with pytest.raises(RunError, match=r"0\.2 s while waiting for a sign of life"):
        waiter.until(lambda: False, "a sign of life")
    assert 0.2 <= time.perf_counter() - start < 2


def test_a_waiter_for_some_of_the_ranks_is_as_patient_as_the_other_at_any_time() -> None:
    """One that is made while all wait longer, as they do at the start, does not keep that."""
    outer = Waiter(SimpleNamespace(size=1, rank=0), timeout=0.1)
    with outer.patient():
        with outer.patient():
            assert outer.timeout == pytest.approx(2.0)  # and not twenty times that
        inner = outer.within(SimpleNamespace(size=1, rank=0))
    calls: list[int] = []
    outer.background = lambda: calls.append(1)
    with pytest.raises(RunError, match=r"no answer within 0\.1 s while"):
        inner.until(lambda: False, "a sign of life")
    assert calls and inner.seconds >= outer.seconds == 0.0


def test_one_rank_talks_to_itself_without_mpi(waiter: Waiter) -> None:
    values = np.array([1.0, 2.0])
    total = waiter.sum(values)
    np.testing.assert_array_equal(total, values)
    assert total is not values
    assert waiter.broadcast({"a": 1}) == {"a": 1}
    assert waiter.gather("x") == ["x"]
    assert waiter.scatter(["x"]) == "x"
    waiter.barrier()


@pytest.mark.parametrize("size", [0, 1, 6, 7, 8, 20, 21])
def test_pieces_are_the_buffer_in_order(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "MAX_BYTES", 7)
    buffer = np.arange(size, dtype=np.uint8)
    parts = pieces(buffer)
    assert len(parts) == max(1, -(-size // 7)) and all(len(part) <= 7 for part in parts)
    np.testing.assert_array_equal(np.concatenate(parts), buffer)
    assert size == 0 or all(np.shares_memory(part, buffer) for part in parts)


def test_pieces_stay_below_the_counts_of_mpi() -> None:
    assert waiting.MAX_BYTES < 2**31
    buffer: Any = np.lib.stride_tricks.as_strided(np.zeros(1, np.uint8), (5 * 2**30,), (0,))
    assert [len(part) for part in pieces(buffer)] == [waiting.MAX_BYTES] * (5 * 2**30 // waiting.MAX_BYTES)


def test_a_local_message_stays_in_its_buffer_and_is_counted() -> None:
    ends = local_ends([Channel("q", 0, 0, 5, sends=True), Channel("p", 0, 1, 0, sends=False)], NUMPY)
    sender, receiver = ends.outgoing["q"], ends.incoming["q"]
    assert not sender.between_ranks and sender.channel.sends and not receiver.channel.sends
    with pytest.raises(AssertionError, match="before it was posted"):
        receiver.wait()
    receiver.post()
    with pytest.raises(AssertionError, match="before it was written"):
        receiver.wait()
    sender.wait_free()
    sender.buffer[:] = [1, 2, 3, 4, 5]
    sender.start()
    receiver.wait()
    np.testing.assert_array_equal(receiver.buffer, [1, 2, 3, 4, 5])
    receiver.post()
    with pytest.raises(AssertionError, match="before it was written"):
        receiver.wait()
    assert (sender.messages, sender.bytes, receiver.messages, receiver.bytes) == (1, 5, 1, 5)
    ends.incoming["p"].post()
    ends.outgoing["p"].start()
    ends.incoming["p"].wait()
    assert (ends.incoming["p"].messages, ends.incoming["p"].bytes) == (1, 0)
    ends.close()


def test_two_messages_that_a_rank_sends_have_two_names() -> None:
    there, back = Channel("x", 1, 0, 5, sends=True), Channel("x", 1, 1, 5, sends=False)
    rounds = Rounds((Round("A", (there,)), Round("B", (back,))))
    assert rounds.channels == [there, back] and rounds.peers == [1]
    with pytest.raises(ValueError, match="sends are called x"):
        Rounds((Round("A", (there,)), Round("B", (there,))))


@pytest.mark.parametrize("spins", [0, 3, None])
def test_polling_tests_until_it_holds(spins: int | None) -> None:
    asked, between = [], []

    def done() -> bool:
        asked.append(1)
        return len(asked) == 6

    options = {} if spins is None else {"spins": spins}
    poll(done, between=lambda: between.append(1), **options)
    assert (len(asked), len(between)) == (6, 5)
