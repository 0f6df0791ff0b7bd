"""NCCL rounds: the same calls in the same order at both ends of every edge, and no deadlock.

NCCL itself is replaced by a recorder; a simulator then runs the recorded streams of all ranks with
NCCL's rule: a group completes when each of its transfers meets its partner at the head of the
partner's stream.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from pdadmm.arrays.backend import NUMPY
from pdadmm.comm.nccl import NCCLExchange
from pdadmm.comm.pipeline import NCCLConveyor


class Recorder:
    """Records what the exchange enqueues; events are positions in the two streams."""

    def __init__(self) -> None:
        self.compute: list[Any] = []
        self.communication: list[Any] = []
        self.names: dict[int, str] = {}

    def buffer(self, nbytes: int) -> np.ndarray:
        return np.zeros(nbytes, np.uint8)

    def mark_compute(self) -> Any:
        return ("compute", len(self.compute))

    def mark_communication(self) -> Any:
        return ("communication", len(self.communication))

    def communication_after(self, event: Any) -> None:
        self.communication.append(("after", event))

    def compute_after(self, event: Any) -> None:
        self.compute.append(("after", event))

    def group(self, sends: list[Any], receives: list[Any]) -> None:
        transfers = [("send", peer, len(buffer)) for buffer, peer in sends]
        transfers += [("receive", peer, len(buffer)) for buffer, peer in receives]
        self.communication.append(("group", transfers))


def iterate(
    exchange: NCCLExchange, device: Recorder, rounds: int, order: random.Random, forward: int = 0
) -> None:
    """The calls of `rounds` iterations in the order of Layer.update_p, update_weights and update_outputs."""
    below, above = exchange.links.get("below"), exchange.links.get("above")
    for k in range(rounds):
        if above:
            above.post_receive()
        device.compute.append("M W")
        if below:
            if k:
                below.wait_received()
            device.compute.append("gradient")
            # the receive buffer is free from here on; the send may be registered before or after
            steps = [below.post_receive, lambda: (below.wait_sent(), below.start_send())]
            if order.random() < 0.5:
                steps.reverse()
            for step in steps:
                step()
        device.compute.append("W b")
        if above:
            above.wait_received()
            above.wait_sent()
            device.compute.append("z q u")
            above.start_send()
        evaluate(exchange, device, forward)
    if below:
        below.wait_received()


def evaluate(exchange: NCCLExchange, device: Recorder, chunks: int) -> None:
    """A forward pass between two iterations, while the last q is still on its way."""
    conveyor = NCCLConveyor(device, NUMPY, exchange.below, exchange.above)
    for rows in range(1, chunks + 1):
        x = conveyor.receive((rows, 3)) if exchange.below is not None else NUMPY.empty((rows, 3))
        device.compute.append("forward")
        if exchange.above is not None:
            conveyor.send(x)
    conveyor.finish()


def completes(devices: list[Recorder]) -> bool:
    """Run the recorded streams to their ends; False when they are stuck."""
    at = [{"compute": 0, "communication": 0} for _ in devices]

    def reached(rank: int, event: Any) -> bool:
        stream, position = event
        return at[rank][stream] >= position

    def group_of(rank: int) -> Any:
        stream, position = devices[rank].communication, at[rank]["communication"]
        head = stream[position] if position < len(stream) else None
        return head[1] if head and head[0] == "group" else None

    moved = True
    while moved:
        moved = False
        for rank, device in enumerate(devices):
            for name in ("compute", "communication"):
                stream = getattr(device, name)
                while at[rank][name] < len(stream):
                    head = stream[at[rank][name]]
                    if head[0] == "group" or (head[0] == "after" and not reached(rank, head[1])):
                        break
                    at[rank][name] += 1
                    moved = True
        # groups complete together along a chain of partners that all stand at the head of their streams
        waiting = {r for r in range(len(devices)) if group_of(r) is not None}
        changed = True
        while changed:
            changed = False
            for r in list(waiting):
                for kind, peer, size in group_of(r):
                    partner = ("receive" if kind == "send" else "send", r, size)
                    if peer not in waiting or partner not in group_of(peer):
                        waiting.discard(r)
                        changed = True
                        break
        for r in waiting:
            at[r]["communication"] += 1
            moved = True
    return all(
        at[r]["compute"] == len(d.compute) and at[r]["communication"] == len(d.communication)
        for r, d in enumerate(devices)
    )


def chain(ranks: int, seed: int = 0, forward: int = 0) -> tuple[list[Recorder], list[NCCLExchange]]:
    devices = [Recorder() for _ in range(ranks)]
    exchanges = [
        NCCLExchange(devices[r], r - 1 if r else None, r + 1 if r + 1 < ranks else None, 100 + r, 101 + r)
        for r in range(ranks)
    ]
    for r in range(ranks):
        iterate(exchanges[r], devices[r], 5, random.Random(seed * 100 + r), forward)
    return devices, exchanges


@pytest.mark.parametrize("ranks", range(2, 17))
@pytest.mark.parametrize("seed", range(3))
def test_the_rounds_never_deadlock(ranks: int, seed: int) -> None:
    devices, _ = chain(ranks, seed)
    assert completes(devices)


@pytest.mark.parametrize("ranks", [2, 3, 7, 16])
def test_forward_passes_between_iterations_never_deadlock(ranks: int) -> None:
    devices, _ = chain(ranks, forward=4)
    groups = [entry for entry in devices[0].communication if entry[0] == "group"]
    assert len(groups) == 5 * (2 + 4)
    assert completes(devices)


@pytest.mark.parametrize("ranks", [2, 3, 16])
def test_both_ends_of_an_edge_enqueue_matching_transfers_in_the_same_order(ranks: int) -> None:
    devices, _ = chain(ranks)
    for low, high in zip(range(ranks - 1), range(1, ranks), strict=True):

        def along(device: Recorder, peer: int) -> list[tuple[str, int]]:
            groups = [entry[1] for entry in device.communication if entry[0] == "group"]
            return [(kind, size) for group in groups for kind, to, size in group if to == peer]

        mine, theirs = along(devices[low], high), along(devices[high], low)
        assert len(mine) == 2 * 5
        flipped = [("receive" if kind == "send" else "send", size) for kind, size in theirs]
        assert mine == flipped


def test_an_inner_rank_talks_to_both_neighbours_in_one_group() -> None:
    devices, _ = chain(3)
    groups = [entry[1] for entry in devices[1].communication if entry[0] == "group"]
    assert [{(kind, peer) for kind, peer, _ in group} for group in groups] == [
        {("send", 0), ("receive", 2)},
        {("send", 2), ("receive", 0)},
    ] * 5


def test_the_simulator_notices_a_deadlock() -> None:
    devices, _ = chain(2)
    # the upper rank receives q before it sends p
    first, second = [i for i, entry in enumerate(devices[1].communication) if entry[0] == "group"][:2]
    stream = devices[1].communication
    stream[first], stream[second] = stream[second], stream[first]
    assert not completes(devices)


def test_a_part_registered_twice_is_a_bug_that_is_named() -> None:
    exchange = NCCLExchange(Recorder(), None, 1, 0, 8)
    exchange.links["above"].start_send()
    with pytest.raises(AssertionError, match="registered twice"):
        exchange.links["above"].start_send()
