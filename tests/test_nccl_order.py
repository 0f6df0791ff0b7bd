"""NCCL rounds: the same calls in the same order at both ends of every edge, and no deadlock.

NCCL itself is replaced by a recorder; a simulator then runs the recorded streams of all ranks with
NCCL's rule: a group completes when each of its transfers meets its partner at the head of the
partner's stream.
"""

from __future__ import annotations

import itertools
import random
from typing import Any

import numpy as np
import pytest

from pdadmm.admm.stage import Plan
from pdadmm.arrays.backend import NUMPY
from pdadmm.comm.channel import Channel, Ends
from pdadmm.comm.nccl import NCCLPipeline, open_rounds, warm_up
from pdadmm.comm.rounds import Round, Rounds


class Recorder:
    """Records what the rounds enqueue; events are positions in the two streams."""

    def __init__(self) -> None:
        self.compute: list[Any] = []
        self.communication: list[Any] = []

    def buffer(self, nbytes: int) -> np.ndarray:
        return np.zeros(nbytes, np.uint8)

    def mark_compute(self) -> Any:
        return ("compute", len(self.compute))

    def mark_transfers(self) -> Any:
        return ("communication", len(self.communication))

    def transfers_after(self, event: Any) -> None:
        self.communication.append(("after", event))

    def compute_after(self, event: Any) -> None:
        self.compute.append(("after", event))

    compute_waits = compute_after

    def group(self, sends: list[Any], receives: list[Any]) -> None:
        transfers = [("send", peer, len(buffer)) for buffer, peer in sends]
        transfers += [("receive", peer, len(buffer)) for buffer, peer in receives]
        self.communication.append(("group", transfers))


def groups_of(device: Recorder) -> list[Any]:
    return [entry[1] for entry in device.communication if entry[0] == "group"]


# ---- pdADMM: a chain of ranks, two rounds ---------------------------------------------------------------


def iterate(plan: Plan, ends: Ends, device: Recorder, count: int, order: random.Random, forward: int) -> None:
    """The calls of `count` iterations in the order of Layer.update_p, update_weights and update_outputs."""
    below, above = plan.edge_below, plan.edge_above
    for k in range(count):
        if above:
            ends.incoming[above.p].post()
        device.compute.append("M W")
        if below:
            p, q = ends.outgoing[below.p], ends.incoming[below.q]
            if k:
                q.wait()
            device.compute.append("gradient")
            # the receive buffer is free from here on; the send may be registered before or after
            steps = [q.post, lambda p=p: (p.wait_free(), p.start())]
            if order.random() < 0.5:
                steps.reverse()
            for step in steps:
                step()
        device.compute.append("W b")
        if above:
            ends.incoming[above.p].wait()
            ends.outgoing[above.q].wait_free()
            device.compute.append("z q u")
            ends.outgoing[above.q].start()
        evaluate(plan, device, forward)
    if below:
        ends.incoming[below.q].wait()


def evaluate(plan: Plan, device: Recorder, chunks: int) -> None:
    """A forward pass between two iterations, while the last q is still on its way."""
    pipeline = NCCLPipeline(device, NUMPY, plan.below, plan.above)
    for rows in range(1, chunks + 1):
        x = pipeline.receive((rows, 3)) if plan.below is not None else NUMPY.empty((rows, 3))
        device.compute.append("forward")
        if plan.above is not None:
            pipeline.send(x)
    pipeline.finish()


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


def chain(ranks: int, seed: int = 0, forward: int = 0) -> list[Recorder]:
    devices = [Recorder() for _ in range(ranks)]
    for r, device in enumerate(devices):
        plan = Plan(ranks, ranks, [range(i + 1, i + 2) for i in range(ranks)], r)
        ends = open_rounds(device, plan.rounds(100 + r, 101 + r))
        iterate(plan, ends, device, 5, random.Random(seed * 100 + r), forward)
    return devices


@pytest.mark.parametrize("ranks", range(2, 17))
@pytest.mark.parametrize("seed", range(3))
def test_the_rounds_never_deadlock(ranks: int, seed: int) -> None:
    assert completes(chain(ranks, seed))


@pytest.mark.parametrize("ranks", [2, 3, 7, 16])
def test_forward_passes_between_iterations_never_deadlock(ranks: int) -> None:
    devices = chain(ranks, forward=4)
    assert len(groups_of(devices[0])) == 5 * (2 + 4)
    assert completes(devices)


def assert_both_ends_match(devices: list[Recorder], low: int, high: int, count: int) -> None:
    """Both ranks enqueue the transfers between them in the same order, `count` of them."""

    def along(device: Recorder, peer: int, *kinds: str) -> list[int]:
        """Sizes; NCCL matches sends with receives, in order."""
        transfers = [transfer for group in groups_of(device) for transfer in group]
        return [size for kind, to, size in transfers if to == peer and kind in kinds]

    assert len(along(devices[low], high, "send", "receive")) == count
    assert along(devices[low], high, "send") == along(devices[high], low, "receive")
    assert along(devices[low], high, "receive") == along(devices[high], low, "send")


@pytest.mark.parametrize("ranks", [2, 3, 16])
def test_both_ends_of_an_edge_enqueue_matching_transfers_in_the_same_order(ranks: int) -> None:
    devices = chain(ranks)
    for low, high in zip(range(ranks - 1), range(1, ranks), strict=True):

        def along(device: Recorder, peer: int) -> list[tuple[str, int]]:
            return [(kind, size) for group in groups_of(device) for kind, to, size in group if to == peer]

        mine, theirs = along(devices[low], high), along(devices[high], low)
        assert len(mine) == 2 * 5
        flipped = [("receive" if kind == "send" else "send", size) for kind, size in theirs]
        assert mine == flipped


def test_an_inner_rank_talks_to_both_neighbours_in_one_group() -> None:
    groups = groups_of(chain(3)[1])
    assert [{(kind, peer) for kind, peer, _ in group} for group in groups] == [
        {("send", 0), ("receive", 2)},
        {("send", 2), ("receive", 0)},
    ] * 5


def swap_groups(device: Recorder, first: int, second: int) -> None:
    """Enqueue two groups in each other's place."""
    places = [i for i, entry in enumerate(device.communication) if entry[0] == "group"]
    stream, a, b = device.communication, places[first], places[second]
    stream[a], stream[b] = stream[b], stream[a]


def test_the_simulator_notices_a_deadlock() -> None:
    devices = chain(2)
    swap_groups(devices[1], 0, 1)  # the upper rank receives q before it sends p
    assert not completes(devices)


def test_a_part_registered_twice_is_a_bug_that_is_named() -> None:
    plan = Plan(2, 2, [range(1, 2), range(2, 3)], 0)
    sender = open_rounds(Recorder(), plan.rounds(0, 8)).outgoing["q 1"]
    sender.start()
    with pytest.raises(AssertionError, match="q 1 was registered twice in round Q"):
        sender.start()


# ---- a graph network: rounds F1 ... FL, BL ... B2 among any peers -------------------------------------


def graph(ranks: int, seed: int, layers: int) -> tuple[list[Rounds], set[tuple[int, int]]]:
    """The rounds of every rank, and the pairs that exchange rows.

    The pairs are drawn, so that some exchange nothing; now and then one message of a pair is empty, a pair
    has two messages a round and direction, and a rank has no part in a round.
    """
    draw = random.Random(seed)
    pairs = {pair for pair in itertools.combinations(range(ranks), 2) if draw.random() < 0.6} or {(0, 1)}
    names = [*(f"F{i}" for i in range(1, layers + 1)), *(f"B{i}" for i in range(layers, 1, -1))]
    cycles: list[list[Round]] = [[] for _ in range(ranks)]
    tags = itertools.count()
    for name in names:
        absent = draw.choice([None, *range(ranks)])
        channels: list[list[Channel]] = [[] for _ in range(ranks)]
        for low, high in sorted(pairs):
            if absent in (low, high):
                continue
            for i, j in ((low, high), (high, low)):
                for part in range(draw.choice((1, 1, 2))):
                    tag, nbytes = next(tags), draw.choice((0, 1, 2, 3)) and draw.randrange(1, 1000)
                    label = f"{name} {i}-{j} {part}"
                    channels[i].append(Channel(label, j, tag, nbytes, sends=True))
                    channels[j].append(Channel(label, i, tag, nbytes, sends=False))
        for cycle, mine in zip(cycles, channels, strict=True):
            draw.shuffle(mine)
            cycle.append(Round(name, tuple(mine)))
    return [Rounds(tuple(cycle)) for cycle in cycles], pairs


def epoch(rounds: Rounds, ends: Ends, device: Recorder, order: random.Random, last: bool) -> None:
    """The calls of an epoch: in every round encode and send, compute what needs no halo, take the halo in."""
    for part in rounds:
        sends = [ends.outgoing[c.name] for c in part.channels if c.sends]
        receives = [ends.incoming[c.name] for c in part.channels if not c.sends]
        for sender in order.sample(sends, len(sends)):
            sender.wait_free()
            device.compute.append("encode")
            sender.start()
        device.compute.append("central nodes")
        for receiver in order.sample(receives, len(receives)):
            receiver.wait()
            device.compute.append("decode")
            if not last:
                receiver.post()


def train(ranks: int, seed: int, epochs: int = 3) -> tuple[list[Recorder], list[Rounds], Any]:
    everyone, pairs = graph(ranks, seed, layers=3)
    devices = [Recorder() for _ in range(ranks)]
    for rank, (rounds, device) in enumerate(zip(everyone, devices, strict=True)):
        order = random.Random(100 * seed + rank)
        ends = open_rounds(device, rounds)
        for receiver in order.sample(list(ends.incoming.values()), len(ends.incoming)):
            receiver.post()
        for i in range(epochs):
            epoch(rounds, ends, device, order, last=i + 1 == epochs)
        for end in (*ends.outgoing.values(), *ends.incoming.values()):
            assert (end.messages, end.bytes) == (epochs, epochs * end.channel.nbytes)
    return devices, everyone, pairs


@pytest.mark.parametrize("ranks", range(3, 7))
@pytest.mark.parametrize("seed", range(8))
def test_rounds_of_a_graph_network_never_deadlock(ranks: int, seed: int) -> None:
    devices, everyone, pairs = train(ranks, seed)
    assert completes(devices)
    for low, high in itertools.combinations(range(ranks), 2):
        planned = sum(c.peer == high and c.nbytes > 0 for c in everyone[low].channels)
        assert (low, high) in pairs or planned == 0
        assert_both_ends_match(devices, low, high, 3 * planned)


@pytest.mark.parametrize("ranks", range(3, 7))
def test_a_round_is_one_group_and_a_rank_without_a_part_passes_over_it(ranks: int) -> None:
    passed = 0
    for seed in range(8):
        devices, everyone, _ = train(ranks, seed)
        for device, rounds in zip(devices, everyone, strict=True):
            passed += sum(not part.channels for part in rounds)
            planned = [
                {("send" if c.sends else "receive", c.peer, c.nbytes) for c in part.channels if c.nbytes}
                for part in rounds
            ]
            assert [set(group) for group in groups_of(device)] == [part for part in planned if part] * 3
    assert passed


@pytest.mark.parametrize("ranks", range(3, 7))
def test_the_simulator_notices_a_wrong_order_of_a_graph_network(ranks: int) -> None:
    tried = 0
    for seed in range(8):
        devices, _, _ = train(ranks, seed)
        for rank, device in enumerate(devices):
            first, second = [*groups_of(device), [], []][:2]
            # those to different peers may change places, and so may those of one round in two epochs
            if first != second and {peer for _, peer, _ in first} & {peer for _, peer, _ in second}:
                tried += 1
                swap_groups(device, 0, 1)
                assert not completes(devices), (seed, rank)
                swap_groups(device, 0, 1)
        assert completes(devices)
    assert tried > 4


def test_a_message_awaited_before_its_round_was_enqueued_is_a_bug_that_is_named() -> None:
    """F is enqueued when its other part is there; what the buffer held from before is no message."""
    there, back = Channel("F 0-1", 1, 0, 8, sends=True), Channel("F 1-0", 1, 1, 8, sends=False)
    ends = open_rounds(Recorder(), Rounds((Round("F", (there, back)),)))
    sender, receiver = ends.outgoing["F 0-1"], ends.incoming["F 1-0"]
    for _ in range(2):
        receiver.post()
        with pytest.raises(AssertionError, match="before its round was enqueued"):
            receiver.wait()
        sender.start()
        receiver.wait()


def test_connections_are_warmed_up_by_a_byte_a_message_in_the_order_of_the_rounds() -> None:
    everyone, _ = graph(4, 1, 3)
    devices = [Recorder() for _ in everyone]
    for device, rounds in zip(devices, everyone, strict=True):
        warm_up(device, rounds)
        assert len(groups_of(device)) == sum(bool(part.channels) for part in rounds)
        assert {size for group in groups_of(device) for _, _, size in group} == {1}
    assert completes(devices)
