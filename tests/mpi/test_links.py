"""Messages between ranks. Runs under ``mpirun -n R python -m mpi4py -m pytest --with-mpi tests/mpi``."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from support import between, content, exchange, graph_rounds

from pdadmm.admm.activations import make_activation
from pdadmm.admm.growth import random_layer
from pdadmm.admm.layer import Layer
from pdadmm.admm.placement import place
from pdadmm.admm.stage import FORWARD_ROWS, Plan, Stage
from pdadmm.comm import waiter as waiting
from pdadmm.comm.mpi import MPITransport, ProgressThread
from pdadmm.comm.rounds import Round, Rounds
from pdadmm.comm.waiter import Waiter
from pdadmm.errors import InputError, RunError
from pdadmm.runtime.launch import agree
from pdadmm.trace.clock import Clock

pytestmark = pytest.mark.mpi(min_size=2)


@pytest.fixture(params=[None, 1000, 7])
def max_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int | None:
    """Largest single message: as shipped, and small enough that everything goes in pieces."""
    if request.param:
        monkeypatch.setattr(waiting, "MAX_BYTES", request.param)
    return request.param


# ---- collective operations ------------------------------------------------------------------------


def test_sum_is_on_all_ranks_and_keeps_single_values_bit_for_bit(waiter: Waiter) -> None:
    size, rank = waiter.comm.size, waiter.comm.rank
    everyones = np.random.default_rng(0).standard_normal((size, 5)) * 1e-7
    mine = np.zeros(size + 5)
    mine[rank] = everyones[rank, 0]
    mine[size:] = everyones[rank]
    total = waiter.sum(mine)
    assert total[:size].tobytes() == np.ascontiguousarray(everyones[:, 0]).tobytes()
    np.testing.assert_allclose(total[size:], everyones.sum(axis=0), rtol=1e-12)


@pytest.mark.parametrize("root", [0, 1])
def test_broadcast_reaches_everyone(root: int, waiter: Waiter) -> None:
    sent = {"rank": waiter.comm.rank, "values": np.arange(20_000), "text": "ü" * 1000}
    found = waiter.broadcast(sent, root)
    assert found["rank"] == root and found["text"] == "ü" * 1000
    np.testing.assert_array_equal(found["values"], np.arange(20_000))
    assert waiter.broadcast(None, root) is None


@pytest.mark.parametrize("root", [0, 1])
def test_gather_is_in_rank_order_and_on_one_rank(root: int, waiter: Waiter) -> None:
    size, rank = waiter.comm.size, waiter.comm.rank
    found = waiter.gather([rank] * (100 * rank), root)
    if rank == root:
        assert found == [[r] * (100 * r) for r in range(size)]
    else:
        assert found is None


def test_a_barrier_holds_everyone_back_and_spares_the_processor(waiter: Waiter) -> None:
    waiter.barrier()
    start, cpu = time.perf_counter(), time.process_time()
    if waiter.comm.rank == 0:
        time.sleep(1.0)
    waiter.barrier()
    assert time.perf_counter() - start > 0.99
    assert time.process_time() - cpu < 0.7


def test_a_wait_for_a_silent_neighbour_gives_up(waiter: Waiter) -> None:
    impatient = Waiter(waiter.comm, timeout=0.3)
    request = waiter.comm.Irecv(np.empty(1), waiter.comm.rank, 5)
    with pytest.raises(RunError, match="a word"):
        impatient.all([request], "a word")
    request.Cancel()
    request.Wait()
    waiter.barrier()


@pytest.mark.parametrize("problem", [InputError("only here"), SystemExit(0)])
def test_what_one_rank_finds_wrong_all_ranks_raise(problem: BaseException, waiter: Waiter) -> None:
    def work() -> int:
        if waiter.comm.rank == waiter.comm.size - 1:
            raise problem
        return waiter.comm.rank

    with pytest.raises(type(problem)) as caught:
        agree(waiter, work)
    assert str(caught.value) == str(problem)
    assert agree(waiter, lambda: waiter.comm.rank) == waiter.comm.rank


# ---- arrays and links -----------------------------------------------------------------------------


def test_arrays_arrive_whole_and_in_order(waiter: Waiter, max_bytes: int | None) -> None:
    """Around the ring, three arrays under the same tag, of several pieces each."""
    size, rank = waiter.comm.size, waiter.comm.rank
    shapes = [(13, 77), (1, 1), (250,)]
    pending = []
    for i, shape in enumerate(shapes):
        array = np.random.default_rng([rank, i]).standard_normal(shape).astype(np.float32)
        pending.append((array, waiter.send(array, (rank + 1) % size, 3)))
    for i, shape in enumerate(shapes):
        found = np.empty(shape, np.float32)
        waiter.receive(found, (rank - 1) % size, 3)
        wanted = np.random.default_rng([(rank - 1) % size, i]).standard_normal(shape).astype(np.float32)
        np.testing.assert_array_equal(found, wanted)
    for _, requests in pending:
        waiter.all(requests, "an array to leave")


@pytest.mark.parametrize("progress", [False, True])
@pytest.mark.parametrize(("down", "up"), [(300, 41), (40_000, 70_000)])
def test_links_carry_message_after_message_both_ways(
    progress: bool, down: int, up: int, waiter: Waiter, max_bytes: int | None
) -> None:
    """A chain of ranks, as in a stage: a link above and one below on the inner ranks."""
    if max_bytes == 7 and down > 1000:
        pytest.skip("thousands of pieces show nothing new")
    if progress and not ProgressThread.available():
        pytest.skip("MPI was started without MPI_THREAD_MULTIPLE")
    size, rank = waiter.comm.size, waiter.comm.rank
    thread = ProgressThread(waiter.comm) if progress else None
    links = [(lower, lower + 1) for lower in (rank - 1, rank) if 0 <= lower < size - 1]
    rounds = Rounds(
        (
            Round("P", tuple(between("down", upper, lower, 2 * lower, down, rank) for lower, upper in links)),
            Round("Q", tuple(between("up", lower, upper, 2 * lower + 1, up, rank) for lower, upper in links)),
        )
    )
    ends = MPITransport(waiter, thread).open(rounds)
    buffers = {end: end.buffer for end in (*ends.outgoing.values(), *ends.incoming.values())}
    for message in range(6):
        for receiver in ends.incoming.values():
            receiver.post()
        for sender in ends.outgoing.values():
            sender.wait_free()
            sender.buffer[:] = content(sender.channel.name, message, len(sender.buffer))
            sender.start()
        for receiver in ends.incoming.values():
            receiver.wait()
            np.testing.assert_array_equal(
                receiver.buffer, content(receiver.channel.name, message, len(receiver.buffer))
            )
    assert len(buffers) == 2 * len(links)
    for end, buffer in buffers.items():
        assert end.between_ranks and end.buffer is buffer
        assert (end.messages, end.bytes) == (6, 6 * (down if end.channel.name.startswith("down") else up))
    ends.close()
    if thread is not None:
        thread.close()


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("progress", [False, True])
def test_rounds_among_any_peers_carry_messages_of_any_size(
    progress: bool, overlap: bool, waiter: Waiter, max_bytes: int | None
) -> None:
    if max_bytes == 7:
        pytest.skip("thousands of pieces show nothing new")
    if progress and not ProgressThread.available():
        pytest.skip("MPI was started without MPI_THREAD_MULTIPLE")
    rounds = graph_rounds(waiter.comm.size, waiter.comm.rank)
    thread = ProgressThread(waiter.comm) if progress else None
    ends = MPITransport(waiter, thread, overlap).open(rounds)
    exchange(rounds, ends, 4, np.asarray, lambda buffer, values: buffer.__setitem__(..., values))
    sent, received = (sum(end.bytes for end in side.values()) for side in (ends.outgoing, ends.incoming))
    counted = waiter.gather(sent - received)
    assert counted is None or sum(counted) == 0
    assert sent + received
    ends.close()
    if thread is not None:
        thread.close()


@pytest.mark.parametrize("overlap", [True, False])
def test_without_overlap_a_send_lasts_until_the_message_has_left(
    overlap: bool, waiter: Waiter, max_bytes: int | None
) -> None:
    """4 MB, which MPI lets go only when the receiver asks for them."""
    if max_bytes:
        pytest.skip("small pieces leave at once")
    rank, comm = waiter.comm.rank, waiter.comm
    channels = (between("down", 1, 0, 0, 4 << 20, rank),) if rank < 2 else ()
    ends = MPITransport(waiter, None, overlap).open(Rounds((Round("P", channels),)))
    for sender in ends.outgoing.values():
        sender.start()
        started = time.monotonic()
        if overlap:
            comm.send(None, 0, 99)  # the receiver asks for the message after this one
        else:
            assert started >= comm.recv(source=0, tag=99)
    for receiver in ends.incoming.values():
        if overlap:
            comm.recv(source=1, tag=99)
            receiver.post()
        else:
            time.sleep(0.3)
            asked = time.monotonic()  # one clock for all processes of a machine
            receiver.post()
            comm.send(asked, 1, 99)
        receiver.wait()
    ends.close()


# ---- the pipelined forward pass -------------------------------------------------------------------


@pytest.mark.parametrize("extra", [0, 3])
def test_pipelined_forward_is_that_of_one_process(extra: int, waiter: Waiter, max_bytes: int | None) -> None:
    if max_bytes == 7:
        pytest.skip("thousands of pieces show nothing new")
    size, rank = waiter.comm.size, waiter.comm.rank
    total = size + extra
    rows = 2 * FORWARD_ROWS + 17 if max_bytes is None else 50
    widths = [12, *[9] * (total - 1), 4]
    X = np.random.default_rng(1).standard_normal((rows, 12)).astype(np.float32)

    def layer(position: int) -> Layer:
        f = None if position == total else make_activation("relu")
        return random_layer(position, widths[position - 1], widths[position], f, seed=2)

    plan = Plan(total, total, place([1.0] * total, size), rank)
    stage = Stage(plan, [layer(p) for p in plan.mine], waiter, Clock())
    visited: dict[int, int] = {}
    found = np.full((rows, 4), np.nan, np.float32)

    def visit(of: Layer, start: int, stop: int, x: Any, z: Any) -> None:
        assert x.shape == (stop - start, of.n_in) and z.shape == (stop - start, of.n_out)
        visited[of.position] = visited.get(of.position, 0) + stop - start

    def keep(start: int, stop: int, z: Any) -> None:
        found[start:stop] = z

    def source(start: int, stop: int) -> Any:
        assert rank == 0
        return X[start:stop]

    stage.forward(rows, source, visit, keep)
    assert visited == dict.fromkeys(plan.mine, rows)
    if rank == plan.owners[-1]:
        x = X
        for position in range(1, total + 1):
            one = layer(position)
            x = x @ one.W.T + one.b
            x = np.maximum(x, 0) if position < total else x
        np.testing.assert_allclose(found, x, rtol=1e-4, atol=1e-4)
    else:
        assert np.isnan(found).all()
    waiter.barrier()
