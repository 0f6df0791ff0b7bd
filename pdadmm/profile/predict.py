"""Iteration time on other networks, with other codecs and numbers of ranks, from one profile.

Every layer's measured stretches of computing are laid out in the order of an iteration (all p from
the top down, all W, all z, q, u from the bottom up, see docs/profiling.md) and
run through :mod:`pdadmm.profile.simulate`. Stated assumptions:

* a layer computes for as long as measured, wherever it is placed and whatever the network does;
* for another codec, the stretches that decode and encode are scaled by the ratio of the two codecs'
  passes, timed on this machine (:func:`codec_seconds`);
* message sizes follow from the codec exactly;
* a sum over shards of the nodes is what :mod:`pdadmm.comm.grid` sends, directly to each of the others; adding
  up counts as nothing.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pdadmm.admm.activations import make_activation
from pdadmm.admm.passes import Copies, Passes, make_passes
from pdadmm.admm.placement import place
from pdadmm.arrays.groups import rows_of_shard
from pdadmm.arrays.sources import LibraryError
from pdadmm.codec import Codec, check_codec, default_bits, make_codec
from pdadmm.errors import InputError
from pdadmm.files import Record
from pdadmm.profile.simulate import Network, Op, Outcome, simulate

__all__ = ["Scenario", "codec_seconds", "parse_network", "passes_named", "predict", "programs"]

_PARTS = ("p", "W", "z")
_SPAN = -0.1, 1.0  #: of a grid, whose sizes and times do not depend on it
_ENTRIES = 1 << 20  #: of the arrays on which codecs are timed
_RATES = {
    "bit": 0.125,
    "kbit": 125.0,
    "mbit": 125e3,
    "gbit": 125e6,
    "b": 1.0,
    "kb": 1e3,
    "mb": 1e6,
    "gb": 1e9,
}
_TIMES = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0}


@dataclass(frozen=True)
class Scenario:
    """What to predict; None keeps what the run had."""

    network: Network
    ranks: int | None = None
    codec: str | None = None
    bits: int | None = None


def _quantity(text: str, units: dict[str, float]) -> float:
    lower = text.strip().lower().removesuffix("/s")
    for unit in sorted(units, key=len, reverse=True):
        if lower.endswith(unit):
            return float(lower[: -len(unit)]) * units[unit]
    return float(lower)


def parse_network(text: str, overlap: bool = True) -> Network:
    """``LATENCY,BANDWIDTH``: seconds and bytes/s, or with units, ``50us,1Gbit`` or ``50us,125MB``.

    Raises
    ------
    InputError
    """
    parts = text.split(",")
    try:
        latency, bandwidth = _quantity(parts[0], _TIMES), _quantity(parts[1], _RATES)
        good = len(parts) == 2 and 0 <= latency <= 1e9 and 1 <= bandwidth <= 1e18
    except (ValueError, IndexError):
        good = False
    if not good:
        raise InputError(
            f"--network {text} is not LATENCY,BANDWIDTH; give seconds and bytes/s, or units: 50us,1Gbit"
        )
    return Network(latency, bandwidth, overlap)


def passes_named(name: str) -> Passes:
    """The passes a run had, for timing codecs here; NumPy's where they cannot be had."""
    try:
        return make_passes("reference" if name == "reference" else "fused", 1)
    except LibraryError:  # no compiled library here: the ratio of two codecs is still of some use
        return make_passes("reference", 1)


def codec_seconds(
    codec: Codec, rows: int, cols: int, passes: Passes, repeats: int = 3
) -> tuple[float, float]:
    """Seconds of the passes around p (decode, gradient, step, encode) and of those around z, q, u.

    Timed here on random (rows, cols) matrices, the rows cut to about a million entries; best of
    `repeats`.
    """
    rows = max(1, min(rows, _ENTRIES // max(cols, 1)))
    draw = np.random.default_rng(0)

    def matrix() -> np.ndarray:
        return np.abs(draw.standard_normal((rows, cols), np.float32)) * np.float32(0.1)

    p, G, q, u, z, M, own_hat, other_hat = (matrix() for _ in range(8))
    out = np.zeros(codec.nbytes(rows, cols), np.uint8)
    message = np.zeros_like(out)
    mean = np.zeros(cols, np.float32)
    f = make_activation("relu")
    codec.encode(p, other_hat, message, 1)
    above = Copies(codec, p, p if codec.lossless else own_hat, other_hat, u)
    below = Copies(codec, q, q if codec.lossless else own_hat, other_hat, u)
    best = [np.inf, np.inf]
    for i in range(repeats):
        start = time.perf_counter()
        passes.p_gradient(G, above, message, 0.01, 0.1)
        if codec.span is not None:
            codec.encode(p, own_hat, out, i)
        else:
            passes.p_step(above, G, 1e-3, out, i)
        middle = time.perf_counter()
        passes.hidden(M, mean, z, below, message, out, i, f, 0.01, 0.1, False)
        end = time.perf_counter()
        best = [min(best[0], middle - start), min(best[1], end - middle)]
    return best[0], best[1]


def _layers(profile: Record) -> dict[int, dict[str, list[Record]]]:
    """Steps by layer and part."""
    found: dict[int, dict[str, list[Record]]] = {}
    for rank in profile["ranks"]:
        for step in rank["stages"][-1]["steps"]:
            if step["layer"]:
                parts = found.setdefault(step["layer"], {part: [] for part in _PARTS})
                parts[step["part"]].append(step)
    return found


def _contradiction(profile: Record) -> str | None:
    """What keeps the steps of a profile from being an iteration; None where they are one."""
    stages = [rank["stages"][-1] for rank in profile["ranks"]]
    placed = sorted(layer for stage in stages for layer in stage["layers"])
    above = dict(itertools.pairwise(placed))
    if len(set(placed)) != len(placed) or not all(stage["layers"] for stage in stages):
        return "not every layer is on one rank, or a rank has none"
    if placed[-1] >= len(profile["run"]["widths"]):
        return f"layer {placed[-1]} has no width"
    ends: dict[str, list[tuple[int, bool, str, int]]] = {}
    for stage in stages:
        steps = [step for step in stage["steps"] if step["layer"]]
        if {step["layer"] for step in steps} != set(stage["layers"]):
            return "layers have no steps, or others' steps"
        for step in steps:
            layer, coupling, upward = step["layer"], step.get("coupling"), step.get("upward")
            if step["phase"] == "reduction" and "bytes" not in step:
                return "its sums over shards have no sizes"
            if step["part"] not in _PARTS or coupling is None or upward is None:
                return "its steps are not those of an iteration by ADMM"
            if coupling < 0 or step["phase"] in ("other", "reduction"):
                continue
            if coupling not in above or layer not in (coupling, above[coupling]):
                return f"layer {layer} has a message of coupling {coupling}"
            ends.setdefault(step["channel"], []).append((coupling, upward, step["phase"], layer))
    for name, found in ends.items():
        coupling, upward = found[0][:2]
        sender, receiver = (coupling, above[coupling]) if upward else (above[coupling], coupling)
        wanted = [(coupling, upward, "send", sender), (coupling, upward, "wait", receiver)]
        # a run that was resumed may have counted an iteration in which nothing was taken
        if sorted(found) not in (wanted, wanted[:1]):
            return f"message '{name}' is not sent once and taken once"
    return None


def programs(
    profile: Record,
    blocks: Sequence[Sequence[int]],
    codec: Codec,
    scale: tuple[float, float] = (1.0, 1.0),
    statistic: str = "median",
    shard: int = 0,
    shards: int = 1,
) -> list[list[Op]]:
    """The operations of an iteration of every rank that has a shard of the nodes.

    Parameters
    ----------
    profile
        With the ranks that had this shard.
    blocks
        Layers of every block of ranks; rank ``block * shards + shard`` has this shard of them.
    codec
        Gives the sizes of the messages.
    scale
        Factors of the updates that decode and encode, around p and around z, q, u.
    statistic
        Of the measured times: median, mean, or least, for a machine that others share.
    """
    layers = _layers(profile)
    owner = {layer: block * shards + shard for block, of in enumerate(blocks) for layer in of}
    first, last = rows_of_shard(profile["run"]["nodes_train"], shard, shards)
    rows, widths = last - first, profile["run"]["widths"]
    positions = sorted(layers)
    above = dict(itertools.pairwise(positions))

    def ops(layer: int, part: str) -> list[Op]:
        found = []
        factor = {"p": scale[0], "z": scale[1]}.get(part, 1.0)
        coded = [step for step in layers[layer][part] if step["phase"] in ("wait", "send")]
        for step in layers[layer][part]:
            # an output layer neither decodes nor encodes around its z
            updates = step["updates"][statistic] * ((factor if coded else 1.0) - 1.0)
            found.append(Op("compute", max(step["compute"][statistic] + updates, 0.0)))
            if step["phase"] == "reduction":
                found += _exchange(step, f"{part} {layer} {len(found)}", owner[layer], shards)
                continue
            coupling, upward = step["coupling"], step["upward"]
            if coupling < 0 or step["phase"] == "other":
                continue
            lower, upper = owner[coupling], owner[above[coupling]]
            if lower == upper:
                continue
            sends = step["phase"] == "send"
            peer = upper if (sends == upward) else lower
            size = codec.nbytes(rows, widths[coupling])
            late = upward and not sends  # q is that of the iteration before
            found.append(Op(step["phase"], 0.0, f"{step['channel']} {shard}", size, peer, late))
        return found

    return [
        [op for layer in reversed(block) for op in ops(layer, "p")]
        + [op for layer in block for op in ops(layer, "W")]
        + [op for layer in block for op in ops(layer, "z")]
        for block in blocks
    ]


def _exchange(step: Record, name: str, rank: int, shards: int) -> list[Op]:
    """What a rank sends in a sum over the shards of its block, and waits for."""
    first = rank - rank % shards
    others = [other for other in range(first, first + shards) if other != rank]
    found: list[Op] = []
    for size in filter(None, (step.get("bytes", 0), step.get("sum_bytes", 0))):
        key = f"{name} {len(found)}"
        found += [Op("send", 0.0, f"{key}: {rank}>{other}", size, other) for other in others]
        found += [Op("wait", 0.0, f"{key}: {other}>{rank}", 0, other) for other in others]
    return found


def predict(
    profile: Record, scenario: Scenario, passes: Passes | None = None, statistic: str = "median"
) -> Outcome:
    """Iteration time and exposed communication in a scenario.

    Raises
    ------
    InputError
        When the scenario asks for more ranks than layers, or for a codec that does not exist, or the steps
        of the profile are no iteration.
    """
    run = profile["run"]
    shards = run.get("shards", 1)
    of_shards = [{**profile, "ranks": profile["ranks"][shard::shards]} for shard in range(shards)]
    for of_shard in of_shards:
        if problem := _contradiction(of_shard):
            raise InputError(f"the profile cannot be predicted from: {problem}; run again")
    measured = [rank["stages"][-1]["layers"] for rank in of_shards[0]["ranks"]]
    if any([rank["stages"][-1]["layers"] for rank in of["ranks"]] != measured for of in of_shards):
        raise InputError(
            "the profile cannot be predicted from: shards of a block have other layers; run again"
        )
    layers = [_layers(of_shard) for of_shard in of_shards]
    positions = sorted(layers[0])
    ranks = scenario.ranks or run["ranks"]
    if ranks % shards:
        raise InputError(f"--ranks {ranks} is no multiple of the run's {shards} shards; give one")
    if not 1 <= ranks // shards <= len(positions):
        raise InputError(
            f"--ranks {ranks}: the run has {len(positions)} layers"
            f"{f' in {shards} shards' if shards > 1 else ''}; give {shards} to {shards * len(positions)}"
        )
    if ranks == run["ranks"]:
        blocks: list[list[int]] = measured
    else:
        costs = [
            max(
                sum(step["compute"][statistic] for part in of_shard[position].values() for step in part)
                for of_shard in layers
            )
            for position in positions
        ]
        blocks = [[positions[i - 1] for i in block] for block in place(costs, ranks // shards)]
    codec, bits = resolve_codec(run, scenario)
    scale = (1.0, 1.0)
    if (codec, bits) != (run["codec"], run["bits"]):
        passes = passes or passes_named(run["kernels"])
        shape = (run["nodes_train"] // shards, run["hidden"])
        before = codec_seconds(make_codec(run["codec"], run["bits"], _SPAN), *shape, passes)
        after = codec_seconds(make_codec(codec, bits, _SPAN), *shape, passes)
        scale = (after[0] / before[0], after[1] / before[1])
    coding = make_codec(codec, bits, _SPAN)
    found = [
        programs(of_shard, blocks, coding, scale, statistic, shard, shards)
        for shard, of_shard in enumerate(of_shards)
    ]
    return simulate([ops for of_block in zip(*found, strict=True) for ops in of_block], scenario.network)


def resolve_codec(run: Record, scenario: Scenario) -> tuple[str, int]:
    """Codec and bits of a scenario; bits follow the codec as in a run when they are not given."""
    codec = scenario.codec or run["codec"]
    bits = scenario.bits
    if bits is None:
        bits = run["bits"] if codec == run["codec"] else default_bits(codec)
    check_codec(codec, bits)
    return codec, bits
