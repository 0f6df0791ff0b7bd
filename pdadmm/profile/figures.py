"""The numbers of a report, from a profile: efficiencies, traffic, exposed communication.

The efficiencies are those of the POP Centre of Excellence (Performance Optimisation and Productivity),
of the iterations of the last stage, warm-up dropped. With *useful* the time a rank computes:

* load balance = mean useful / largest useful
* communication efficiency = largest useful / runtime
* parallel efficiency = load balance × communication efficiency = mean useful / runtime

and, from a simulation of the same iteration on a network that takes no time:

* serialisation efficiency = largest useful / ideal runtime: what is lost to waiting for each other
* transfer efficiency = ideal runtime / runtime: what is lost to the network; together the communication's
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field

from pdadmm.errors import InputError
from pdadmm.files import Record
from pdadmm.profile.load import is_graph
from pdadmm.profile.predict import Scenario, predict
from pdadmm.profile.predict_graph import predict_graph
from pdadmm.profile.simulate import Network
from pdadmm.trace.clock import PHASES

__all__ = ["Figures", "LinkFigures", "RankFigures", "figures"]

#: bytes/s of a network that takes no time
_NO_TIME = 1e18
_NOT_USEFUL = ("send", "wait", "reduction")
#: what a link's own facts are
_FACTS = ("coupling", "upward", "slot", "sender_part", "receiver_part", "rows", "cols", "widths")


@dataclass
class LinkFigures:
    """A message between two ranks.

    Attributes
    ----------
    name, channel
        With the ranks, and without.
    bytes, float32_bytes
        A message, and what it would have been as float32.
    bandwidth
        Bytes/s a message travelled at, from its send to its being taken: a lower bound where it was
        there before it was needed (`waited` near 0).
    baseline_bandwidth
        Bytes/s measured between the two ranks at this size, where the run measured its links.
    wait, late_sender, exposed
        Seconds an iteration the receiver waited, of which before the message was sent, and after.
    """

    name: str
    channel: str
    sender: int
    receiver: int
    messages: int
    bytes: float
    float32_bytes: float
    bandwidth: float | None
    waited: float
    wait: float
    late_sender: float
    exposed: float
    baseline_bandwidth: float | None = None
    facts: Record = field(default_factory=dict)  #: what the system said of the message besides


@dataclass
class RankFigures:
    """A rank's iteration, in seconds.

    `exposed` is the communication that nothing hid: sends, sums of gradients over the ranks, and waits
    but for the time in which the sender was not ready.
    """

    rank: int
    host: str
    layers: list[int]
    iteration: float
    phases: dict[str, float]
    useful: float
    late_sender: float
    exposed: float
    evaluation: float
    checkpoint: float


@dataclass
class Figures:
    """A run's numbers; times are seconds an iteration.

    The efficiencies of serialisation and transfer are None where the profile cannot be simulated.
    """

    name: str
    run: Record
    iterations: int
    iteration: float
    bytes_per_iteration: float
    float32_bytes_per_iteration: float
    exposed_share: float
    wait_share: float
    load_balance: float
    communication_efficiency: float
    serialisation_efficiency: float | None
    transfer_efficiency: float | None
    parallel_efficiency: float
    slowest_rank: int
    slowest_link: str | None
    ranks: list[RankFigures] = field(default_factory=list)
    links: list[LinkFigures] = field(default_factory=list)

    @property
    def reduction(self) -> float:
        """Share of float32's bytes that were saved."""
        plain = self.float32_bytes_per_iteration
        return 1 - self.bytes_per_iteration / plain if plain else 0.0

    def table(self) -> Record:
        """Everything as plain data."""
        found = {**asdict(self), "reduction": self.reduction}
        for link in found["links"]:
            link.update(link.pop("facts"))
        return found


def figures(profile: Record, name: str) -> Figures:
    """Figures of the last stage of a profile.

    Parameters
    ----------
    profile
        From :func:`pdadmm.profile.load.load`.
    name
        What the run is called in tables.
    """
    links = _links(profile)
    ranks = [_rank(rank, links) for rank in profile["ranks"] if rank["stages"][-1]["iterations"]]
    useful = [rank.useful for rank in ranks]
    runtime = max(rank.iteration for rank in ranks)
    sent = [
        link
        for rank in profile["ranks"]
        for link in rank["stages"][-1]["links"]
        if link["kind"] == "sent" and link["messages"]
    ]
    ideal = _ideal(profile)
    if ideal is not None:
        # iterations with more sums over shards than most, such as those with an evaluation, are in the phases
        # and in none of the steps that are simulated
        ideal = max(ideal, *useful)
    balance = sum(useful) / len(useful) / max(useful) if max(useful) else 1.0
    return Figures(
        name=name,
        run=profile["run"],
        iterations=max(rank["stages"][-1]["iterations"] for rank in profile["ranks"]),
        iteration=runtime,
        bytes_per_iteration=sum(link["bytes"] / link["messages"] for link in sent),
        float32_bytes_per_iteration=sum(link["float32_bytes"] / link["messages"] for link in sent),
        exposed_share=sum(rank.exposed for rank in ranks) / len(ranks) / runtime,
        wait_share=sum(rank.phases["wait"] + rank.phases["reduction"] for rank in ranks)
        / len(ranks)
        / runtime,
        load_balance=balance,
        communication_efficiency=max(useful) / runtime,
        serialisation_efficiency=max(useful) / ideal if ideal else None,
        transfer_efficiency=ideal / runtime if ideal else None,
        parallel_efficiency=sum(useful) / len(useful) / runtime,
        slowest_rank=max(ranks, key=lambda rank: rank.useful).rank,
        slowest_link=max(links, key=lambda link: (link.exposed, link.wait)).name if links else None,
        ranks=ranks,
        links=links,
    )


def _ideal(profile: Record) -> float | None:
    """Seconds an iteration by the same computing where messages take no time; None where it is not known."""
    network = Network(0.0, _NO_TIME)
    try:
        # means, as the runtime is one: computing then adds up to what was useful
        if is_graph(profile):
            return predict_graph(profile, network, "mean").iteration
        return predict(profile, Scenario(network), statistic="mean").iteration
    except InputError:
        return None


def _rank(rank: Record, links: list[LinkFigures]) -> RankFigures:
    stage = rank["stages"][-1]
    count = stage["iterations"]
    phases = {phase: sum(layer[phase] for layer in stage["phases"].values()) / count for phase in PHASES}
    incoming = [link for link in links if link.receiver == rank["rank"]]
    late = sum(link.late_sender for link in incoming)
    return RankFigures(
        rank=rank["rank"],
        host=rank["host"],
        layers=stage["layers"],
        iteration=stage["iteration_seconds"]["mean"],
        phases=phases,
        useful=sum(seconds for phase, seconds in phases.items() if phase not in _NOT_USEFUL),
        late_sender=late,
        exposed=max(sum(phases[phase] for phase in _NOT_USEFUL) - late, 0.0),
        evaluation=rank["seconds"]["evaluation"],
        checkpoint=rank["seconds"]["checkpoint"],
    )


def _links(profile: Record) -> list[LinkFigures]:
    found = []
    for rank in profile["ranks"]:
        for link in rank["stages"][-1]["links"]:
            if link["kind"] != "received" or not link["between_ranks"] or not link["messages"]:
                continue
            size = link["bytes"] / link["messages"]
            flight = link.get("flight_seconds", 0.0)
            bandwidth = size / flight if flight else math.inf
            found.append(
                LinkFigures(
                    name=f"{link['name']}: rank {link['peer']} to {rank['rank']}",
                    channel=link["name"],
                    sender=link["peer"],
                    receiver=rank["rank"],
                    messages=link["messages"],
                    bytes=size,
                    float32_bytes=link["float32_bytes"] / link["messages"],
                    bandwidth=bandwidth if math.isfinite(bandwidth) else None,
                    waited=link.get("waited", 0.0),
                    wait=link.get("wait_seconds", 0.0),
                    late_sender=link.get("late_sender_seconds", 0.0),
                    exposed=link.get("exposed_seconds", 0.0),
                    baseline_bandwidth=_baseline(profile, link["peer"], rank["rank"], size),
                    facts={name: link[name] for name in _FACTS if name in link},
                )
            )
    return found


def _baseline(profile: Record, a: int, b: int, size: float) -> float | None:
    """Bandwidth of one message of `size` bytes by the measured link, latency included."""
    for links in ((profile.get("links_baseline") or {}).get("transports") or {}).values():
        for link in links:
            if {link["lower"], link["upper"]} == {a, b}:
                latency = min(row["latency_seconds"] for row in link["results"])
                best = max(row["bandwidth"] for row in link["results"])
                return float(size / (latency + size / best)) if size else best
    return None
