"""trace.json: a run's timeline for Perfetto (ui.perfetto.dev) and chrome://tracing.

A process is a rank, with two tracks: compute (phases of the layers, evaluations, checkpoints) and
communication (sends, waits for messages). An arrow leads from every send to its receive. All times
are of rank 0's clock, in microseconds since the first event. Of a long stage the first iterations are
shown; ``otherData`` says how many.

Format: "Trace Event Format", Google, the JSON object form.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from pdadmm.files import Record, replacing
from pdadmm.trace.messages import alignment
from pdadmm.trace.offsets import Alignment

__all__ = ["write_timeline"]

_COMPUTE, _COMMUNICATION = 0, 1


def _events(ranks: list[Record]) -> Iterator[Record]:
    """One after the other: all of them may be many times as large as what the ranks kept."""
    to_zero = [alignment(rank) for rank in ranks]
    first = min(
        (aligned(event[2]) for rank, aligned in zip(ranks, to_zero, strict=True) for event in rank["events"]),
        default=0.0,
    )
    arrows: dict[tuple[int, str, int], dict[str, tuple[int, float]]] = {}
    for rank, aligned in zip(ranks, to_zero, strict=True):
        number = rank["rank"]

        def stamp(nanoseconds: int, aligned: Alignment = aligned) -> float:
            return (aligned(nanoseconds) - first) / 1e3

        yield from _names(number, rank["host"])
        for name, layer, start, end in rank["events"]:
            shown = f"{name} {layer}" if layer else name
            yield _slice(shown, number, _COMPUTE, stamp(start), stamp(end), {"layer": layer})
        for stage, messages in enumerate(rank["traced_messages"], 1):
            for kind, channel, sequence, start, end, _ in messages:
                arguments = {"stage": stage, "channel": channel, "message": sequence}
                name = f"send {channel}" if kind == "sent" else f"receive {channel}"
                begin, done = stamp(start), stamp(end)
                yield _slice(name, number, _COMMUNICATION, begin, done, arguments)
                pair = arrows.setdefault((stage, channel, sequence), {})
                pair[kind] = (number, begin if kind == "sent" else done)
    for identifier, pair in enumerate(arrows.values()):
        if len(pair) == 2:  # the last messages of a run that was stopped may have no receive
            yield from _arrow(identifier, *pair["sent"], *pair["received"])


def _shown(ranks: list[Record]) -> list[Record]:
    """By stage, how many iterations the timeline shows, from the first one, and how many there were."""
    by_stage = zip(*(rank["shown"] for rank in ranks), strict=True)
    # a rank that has no layer in a stage has no iterations
    return [{"shown": max(s for s, _ in stage), "iterations": max(n for _, n in stage)} for stage in by_stage]


def _names(rank: int, host: str) -> list[Record]:
    process = {"name": f"rank {rank} on {host}"}
    found = [
        {"ph": "M", "name": "process_name", "pid": rank, "args": process},
        {"ph": "M", "name": "process_sort_index", "pid": rank, "args": {"sort_index": rank}},
    ]
    for track, name in ((_COMPUTE, "compute"), (_COMMUNICATION, "communication")):
        found.append({"ph": "M", "name": "thread_name", "pid": rank, "tid": track, "args": {"name": name}})
    return found


def _slice(name: str, rank: int, track: int, start: float, end: float, arguments: Record) -> Record:
    return {
        "ph": "X",
        "name": name,
        "pid": rank,
        "tid": track,
        "ts": round(start, 3),
        "dur": round(max(end - start, 0.0), 3),
        "args": arguments,
    }


def _arrow(identifier: int, sender: int, left: float, receiver: int, taken: float) -> list[Record]:
    common = {"name": "message", "cat": "message", "id": identifier, "tid": _COMMUNICATION}
    return [
        {**common, "ph": "s", "pid": sender, "ts": round(left, 3)},
        # an arrow that would go back in time, within the error of the clocks, ends where it starts
        {**common, "ph": "f", "bp": "e", "pid": receiver, "ts": round(max(taken, left), 3)},
    ]


def write_timeline(path: Path, ranks: list[Record]) -> None:
    """Write the timeline of all ranks, a line an event.

    Parameters
    ----------
    path
    ranks
        What every rank kept: ``rank``, ``host``, ``clock``, ``events``, ``traced_messages`` and
        ``shown`` (see :class:`pdadmm.trace.clock.Clock`).
    """
    head = {"displayTimeUnit": "ms", "otherData": {"stages": _shown(ranks)}}
    with replacing(path) as temporary, temporary.open("w") as file:
        file.write(json.dumps(head)[:-1] + ', "traceEvents": [\n')
        for number, event in enumerate(_events(ranks)):
            file.write((",\n" if number else "") + json.dumps(event))
        file.write("\n]}\n")
