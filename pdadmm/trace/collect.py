"""What a run keeps of itself: a rank's accounts at the end of a stage, and profile.json."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pdadmm
from pdadmm.comm.waiter import Waiter
from pdadmm.runtime.files import write_json
from pdadmm.trace.clock import WARM_UP, Clock
from pdadmm.trace.messages import flights
from pdadmm.trace.offsets import Reading
from pdadmm.trace.schema import SCHEMA, SCHEMA_VERSION

if TYPE_CHECKING:
    from pdadmm.admm.stage import Stage

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
        self.stages: list[dict[str, Any]] = []
        self.messages: list[list[Any]] = []
        self._wall: list[float] = []

    def iterated(self, seconds: float) -> None:
        """Add the wall time of an iteration that the clock counts, measured outside of it, on the host."""
        self._wall.append(seconds)

    def end_stage(self, stage: Stage, depth: int) -> None:
        """Close the accounts of a stage whose last message has been taken."""
        clock = self.clock
        clock.end_stage()
        counted = len(clock.iteration_seconds)
        walls = clock.walls or self._wall
        self.stages.append(
            {
                "depth": depth,
                "layers": [layer.position for layer in stage.layers],
                "iterations": counted,
                "iteration_seconds": _spread(clock.iteration_seconds),
                "wall_seconds": sum(walls[-counted:]) if counted else 0.0,
                "phases": {str(layer): phases for layer, phases in clock.seconds.items()},
                "steps": [
                    {
                        "part": step.part,
                        "layer": step.layer,
                        "phase": step.phase,
                        "coupling": step.coupling,
                        "upward": step.upward,
                        "compute": _spread(step.compute),
                        "updates": _spread(step.updates),
                        "seconds": _spread(step.seconds),
                    }
                    for step in clock.steps
                ],
                "links": [entry for end in stage.couplings for entry in _directions(end)],
            }
        )
        self.messages.append(clock.messages)
        self._wall = []


def _spread(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {"mean": 0.0, "median": 0.0, "least": 0.0, "most": 0.0}
    return {
        "mean": statistics.fmean(values),
        "median": statistics.median(values),
        "least": min(values),
        "most": max(values),
    }


def _directions(end: Any) -> list[dict[str, Any]]:
    """The two directions of a coupling end."""
    link = end.link
    common = {
        "coupling": end.index,
        "between_ranks": link.between_ranks,
        "peer": getattr(link, "peer", None) if link.between_ranks else None,
    }
    plain = 4 * end.own.size
    return [
        {
            **common,
            "kind": "sent",
            "upward": not end.upper,
            "messages": link.messages_sent,
            "bytes": link.bytes_sent,
            "float32_bytes": plain * link.messages_sent,
        },
        {
            **common,
            "kind": "received",
            "upward": end.upper,
            "messages": link.messages_received,
            "bytes": link.bytes_received,
            "float32_bytes": plain * link.messages_received,
        },
    ]


def write_profile(
    folder: Path,
    run: dict[str, Any],
    accounts: Accounts,
    end: Reading,
    waiter: Waiter,
    seconds: dict[str, float],
    timeline: Callable[[list[dict[str, Any]]], None] | None = None,
    baseline: dict[str, Any] | None = None,
) -> None:
    """Gather the accounts and write ``profile.json`` on rank 0; collective.

    Parameters
    ----------
    run
        What the run was, for the head of the file; rank 0's counts.
    accounts, end
        This rank's, and the reading of the clocks after the last iteration.
    seconds
        Evaluation and checkpoint seconds of this rank.
    timeline
        Called on rank 0 with what every rank kept, to write the timeline.
    baseline
        Result of :func:`pdadmm.runtime.links.measure_neighbours`, of the way that the run's messages take;
        rank 0's counts.
    """
    clock = accounts.clock
    mine = {
        "rank": waiter.comm.rank,
        "host": platform.node(),
        "clock": {"start": vars(accounts.start), "end": vars(end)},
        "seconds": seconds,
        "stages": accounts.stages,
        "messages": accounts.messages,
        "events": clock.events,
        "traced_messages": clock.past,
    }
    ranks = waiter.gather(mine)
    if ranks is None:
        return
    if timeline is not None:
        timeline(ranks)
    measured = flights(ranks)
    for rank in ranks:
        for stage, per_link in zip(rank["stages"], measured[rank["rank"]], strict=True):
            for link in stage["links"]:
                if link["kind"] == "received":
                    link.update(per_link.get((link["coupling"], link["upward"]), {}))
        for name in ("messages", "events", "traced_messages"):
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
    )
