"""Messages matched between sender and receiver: how long they were under way, why they were waited for."""

from __future__ import annotations

import statistics
from collections import defaultdict

from pdadmm.files import Record
from pdadmm.trace.offsets import Alignment, Reading

__all__ = ["alignment", "flights"]

#: by rank, stage and name of the channel
Measured = list[list[dict[str, dict[str, float]]]]


def alignment(rank: Record) -> Alignment:
    """The alignment of a rank's clock from what it kept."""
    clock = rank["clock"]
    return Alignment(Reading(**clock["start"]), Reading(**clock["end"]))


def flights(ranks: list[Record]) -> Measured:
    """Times of the messages that every rank received, from both ends' clocks.

    A wait is split at the moment its message was sent: before it the sender was late (an imbalance
    of the work), after it the network was slow (exposed communication).

    Parameters
    ----------
    ranks
        With ``messages`` by stage (see :data:`pdadmm.trace.clock.Message`) and the readings of the clocks.
        Only those that were received in an iteration after the warm-up count.

    Returns
    -------
    list
        By rank, stage and name of the channel: ``flights`` (messages matched), and in seconds a
        message ``flight_seconds`` (median from the send to its being taken, so an upper bound where
        nothing waited), ``wait_seconds``, ``late_sender_seconds``, ``exposed_seconds``, and the
        share ``waited`` of messages that were waited for.
    """
    stages = len(ranks[0]["messages"])
    found: Measured = [[{} for _ in range(stages)] for _ in ranks]
    for stage in range(stages):
        sent: dict[tuple[str, int], float] = {}
        for rank in ranks:
            to_zero = alignment(rank)
            for kind, name, sequence, start, _, _ in rank["messages"][stage]:
                if kind == "sent":
                    sent[name, sequence] = to_zero(start)
        for i, rank in enumerate(ranks):
            to_zero = alignment(rank)
            sums: dict[str, list[float]] = defaultdict(lambda: [0.0] * 4)
            durations: dict[str, list[float]] = defaultdict(list)
            for kind, name, sequence, start, end, counted in rank["messages"][stage]:
                left = sent.get((name, sequence))
                if kind != "received" or left is None or not counted:
                    continue
                begin, done = to_zero(start), to_zero(end)
                total = sums[name]
                late = min(max(left - begin, 0.0), done - begin)
                waited = float(done - begin > _NOTHING_NS)
                for place, value in enumerate((1.0, done - begin, late, waited)):
                    total[place] += value
                durations[name].append(done - left)
            for name, (count, wait, late, hits) in sums.items():
                found[i][stage][name] = {
                    "flights": int(count),
                    "flight_seconds": max(statistics.median(durations[name]), 0.0) * 1e-9,
                    "wait_seconds": wait / count * 1e-9,
                    "late_sender_seconds": late / count * 1e-9,
                    "exposed_seconds": (wait - late) / count * 1e-9,
                    "waited": hits / count,
                }
    return found


#: a test of a request that is already complete takes less
_NOTHING_NS = 20_000
