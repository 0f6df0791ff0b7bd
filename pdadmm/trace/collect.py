"""What a run keeps of itself: a rank's accounts at the end of a stage, and profile.json."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import pdadmm
from pdadmm.comm.channel import Incoming, Outgoing
from pdadmm.comm.waiter import Waiter
from pdadmm.files import Record, write_json
from pdadmm.trace.clock import WARM_UP, Clock, Message
from pdadmm.trace.messages import flights
from pdadmm.trace.offsets import Reading, read_offset
from pdadmm.trace.schema import SCHEMA, SCHEMA_VERSION
from pdadmm.trace.timeline import write_timeline

__all__ = ["Accounts", "write_profile"]


class Accounts:
    """A rank's time and traffic, stage by stage.

    Parameters
    ----------
    clock
        Of the rank.
    start
        Reading of the clocks before the first iteration.
    """

    def __init__(self, clock: Clock, start: Reading) -> None:
        self.clock = clock
        self.start = start
        self.stages: list[Record] = []
        self.messages: list[list[Message]] = []
        self._wall = 0.0

    def iterated(self, seconds: float) -> None:
        """Add the wall time of an iteration that the clock counts, measured outside of it, on the host."""
        self._wall += seconds

    def end_stage(
        self,
        depth: int,
        layers: Sequence[int],
        ends: Sequence[Outgoing | Incoming],
        float32_bytes: Mapping[str, int],
        facts: Mapping[str, Record],
    ) -> None:
        """Close the accounts of a stage whose last message has been taken.

        Parameters
        ----------
        depth, layers
            Layers of the stage, and the positions of this rank's.
        ends
            Of all messages of this rank.
        float32_bytes
            By name of the channel, what a message would be as float32.
        facts
            By name of the channel, what else is kept with its ends and with the steps that concern it;
            under the empty name, with the steps that concern none.
        """
        clock = self.clock
        clock.end_stage()
        counted = clock.iterations
        wall = 1e-9 * clock.walls.sums[0] if clock.walls.rows else self._wall
        self.stages.append(
            {
                "depth": depth,
                "layers": list(layers),
                "iterations": counted,
                "iteration_seconds": asdict(clock.iteration_seconds),
                "wall_seconds": wall if counted else 0.0,
                "phases": {str(layer): phases for layer, phases in clock.seconds.items()},
                "steps": [
                    {
                        "part": step.part,
                        "layer": step.layer,
                        "phase": step.phase,
                        "channel": step.channel,
                        **facts.get(step.channel, {}),
                        "compute": asdict(step.compute),
                        "updates": asdict(step.updates),
                        "seconds": asdict(step.seconds),
                    }
                    for step in clock.steps
                ],
                "links": [
                    {**_link(end, float32_bytes[end.channel.name]), **facts.get(end.channel.name, {})}
                    for end in ends
                ],
            }
        )
        self.messages.append(clock.messages)
        self._wall = 0.0

    def shorten(self) -> None:
        """Forget the steps, links and messages of the stages so far, whose number may grow without end."""
        for stage in self.stages:
            stage["steps"], stage["links"] = [], []
        self.messages = [[] for _ in self.messages]


def _link(end: Outgoing | Incoming, float32_bytes: int) -> Record:
    """One end of a channel."""
    return {
        "name": end.channel.name,
        "kind": "sent" if end.channel.sends else "received",
        "between_ranks": end.between_ranks,
        "peer": end.channel.peer if end.between_ranks else None,
        "messages": end.messages,
        "bytes": end.bytes,
        "float32_bytes": float32_bytes * end.messages,
    }


def write_profile(
    folder: Path,
    run: Record,
    accounts: Accounts,
    waiter: Waiter,
    seconds: dict[str, float],
    baseline: Record | None = None,
) -> None:
    """Gather the accounts; write ``profile.json`` on rank 0, and ``trace.json`` if asked for; collective.

    Parameters
    ----------
    run
        What the run was, for the head of the file; rank 0's counts.
    accounts
        This rank's.
    seconds
        Evaluation and checkpoint seconds of this rank.
    baseline
        Result of :func:`pdadmm.runtime.links.measure_neighbours`, of the way that the run's messages take;
        rank 0's counts.
    """
    clock, end = accounts.clock, read_offset(waiter)
    mine: Record = {
        "rank": waiter.comm.rank,
        "host": platform.node(),
        "clock": {"start": vars(accounts.start), "end": vars(end)},
        "seconds": seconds,
        "stages": accounts.stages,
        "messages": accounts.messages,
        "events": clock.events,
        "traced_messages": clock.past,
        "shown": clock.shown,
    }
    ranks = waiter.gather(mine)
    if ranks is None:
        return
    if clock.traced:
        write_timeline(folder / "trace.json", ranks)
    measured = flights(ranks)
    for rank in ranks:
        for stage, per_link in zip(rank["stages"], measured[rank["rank"]], strict=True):
            for link in stage["links"]:
                if link["kind"] == "received":
                    link.update(per_link.get(link["name"], {}))
        for name in ("messages", "events", "traced_messages", "shown"):
            del rank[name]
    write_json(
        folder / "profile.json",
        {
            "schema": SCHEMA,
            "schema_version": SCHEMA_VERSION,
            "version": pdadmm.__version__,
            "warm_up": WARM_UP,
            "run": run,
            "ranks": ranks,
            "links_baseline": baseline,
        },
        indent=None,
    )
