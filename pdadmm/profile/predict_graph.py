"""Seconds an epoch of a graph network on other networks, from one profile.

Every rank's measured stretches of computing and the messages between them, in their order, are run through
:mod:`pdadmm.profile.simulate`. The sum of a layer's gradients is what :mod:`pdadmm.comm.reduction` sends: a
piece to each of the other ranks when they are there, and when theirs have come, the sum of a slice to each.
A rank computes for as long as it did, whatever the network does; its adding up of slices counts as nothing.
"""

from __future__ import annotations

from collections import Counter

from pdadmm.errors import InputError
from pdadmm.files import Record
from pdadmm.profile.simulate import Network, Op, Outcome, simulate

__all__ = ["graph_programs", "predict_graph"]


def graph_programs(profile: Record, statistic: str = "median") -> list[list[Op]]:
    """The operations of an epoch of every rank.

    Parameters
    ----------
    profile
        From :func:`pdadmm.profile.load.load`, of a graph network.
    statistic
        Of the measured times: median, mean, or least, for a machine that others share.

    Raises
    ------
    InputError
        When the steps are no epoch.
    """
    ranks = len(profile["ranks"])
    found = [_program(rank["stages"][-1], rank["rank"], ranks, statistic) for rank in profile["ranks"]]
    sent = Counter(op.key for ops in found for op in ops if op.kind == "send")
    taken = Counter(op.key for ops in found for op in ops if op.kind == "wait")
    if sent != taken or any(count != 1 for count in sent.values()):
        raise InputError(
            "the profile cannot be predicted from: a message is not sent once and taken once an epoch; "
            "run again"
        )
    return found


def _program(stage: Record, rank: int, ranks: int, statistic: str) -> list[Op]:
    links = {(link["name"], link["kind"]): link for link in stage["links"] if link["between_ranks"]}
    others = [other for other in range(ranks) if other != rank]
    passed: Counter[str] = Counter()
    ops: list[Op] = []
    for step in stage["steps"]:
        ops.append(Op("compute", max(step["compute"][statistic], 0.0)))
        name, phase = step["channel"], step["phase"]
        if phase in ("send", "wait"):
            link = links.get((name, "sent" if phase == "send" else "received"))
            if link is None or link["peer"] not in others or not link["messages"]:
                raise InputError(
                    f"the profile cannot be predicted from: there is no link for message '{name}'; run again"
                )
            ops.append(Op(phase, 0.0, name, link["bytes"] // link["messages"], link["peer"]))
        elif phase == "reduction":
            half = passed[name]
            passed[name] += 1
            if half == 1:
                ops += [Op("wait", 0.0, f"{name}: {other}>{rank}", 0, other) for other in others]
            elif half == 2:
                ops += [Op("wait", 0.0, f"{name}, sum: {other}>{rank}", 0, other) for other in others]
            if half == 0:
                size = step.get("bytes", 0)
                ops += [Op("send", 0.0, f"{name}: {rank}>{other}", size, other) for other in others]
            elif half == 1:
                size = step.get("sum_bytes", 0)
                ops += [Op("send", 0.0, f"{name}, sum: {rank}>{other}", size, other) for other in others]
    return ops


def predict_graph(profile: Record, network: Network, statistic: str = "median") -> Outcome:
    """Seconds an epoch and exposed communication on a network, as many ranks as there were.

    Raises
    ------
    InputError
        When the steps of the profile are no epoch.
    """
    return simulate(graph_programs(profile, statistic), network)
