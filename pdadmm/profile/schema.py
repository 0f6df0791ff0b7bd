"""profile.json as a report needs it: names, types and ranges.

docs/profiling.md says what each of them is. What is not named here is not read.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypedDict

from msgspec import Meta

__all__ = ["Head", "Profile"]

Name = Annotated[str, Meta(max_length=100, pattern="^[ -~]*$")]  #: of what the program itself has named
Text = Annotated[str, Meta(max_length=1000)]  #: from outside; cleaned after reading
Seconds = Annotated[float, Meta(ge=0, le=1e9)]
Count = Annotated[int, Meta(ge=0, le=2**53)]
Positive = Annotated[int, Meta(ge=1, le=2**53)]
Number = Annotated[int, Meta(ge=0, le=10**6)]  #: of a rank or a layer
Width = Annotated[int, Meta(ge=1, le=10**9)]


class Head(TypedDict, total=False):
    """What tells a profile of this version from anything else."""

    schema: Any
    schema_version: Any


class Assignment(TypedDict):
    epoch: Count
    seconds: Seconds
    widths: dict[Name, dict[Name, Count]]


class _RunFacts(TypedDict, total=False):
    system: Literal["layers", "graph"]  #: what the ranks share out; layers where it is not said
    codec: Name  #: with `bits` and `nodes_train` of layers
    bits: Annotated[int, Meta(ge=1, le=64)]
    nodes_train: Positive
    shards: Annotated[int, Meta(ge=1, le=10**6)]
    model: Name  #: from here on of graphs
    parts: Number
    messages: Name
    mean_bits_forward: Annotated[float, Meta(ge=0, le=32)]
    mean_bits_backward: Annotated[float, Meta(ge=0, le=32)]
    reduction_bytes_per_epoch: Count
    evaluation_bytes_per_evaluation: Count
    assignments: list[Assignment]
    placement: list[list[Number]]
    solver: Name
    step: Name
    backend: Name
    transport: Name
    threads: Count


class Run(_RunFacts):
    dataset: Text
    widths: list[Width]
    layers: Number
    hidden: Annotated[int, Meta(ge=1, le=10**6)]
    ranks: Annotated[int, Meta(ge=1, le=10**6)]
    kernels: Name
    overlap: bool


class Spread(TypedDict):
    mean: Seconds
    median: Seconds
    least: Seconds
    most: Seconds


class _CouplingFacts(TypedDict, total=False):
    coupling: Annotated[int, Meta(ge=-1, le=10**6)]
    upward: bool


class _StepFacts(_CouplingFacts, total=False):
    channel: Name
    bytes: Count  #: of a reduction, to each of the other ranks, and then of the sum
    sum_bytes: Count


class Step(_StepFacts):
    part: Name
    layer: Number
    phase: Literal["wait", "send", "reduction", "other"]
    compute: Spread
    updates: Spread
    seconds: Spread


class _LinkFacts(_CouplingFacts, total=False):
    name: Name
    flights: Count
    flight_seconds: Seconds
    wait_seconds: Seconds
    late_sender_seconds: Seconds
    exposed_seconds: Seconds
    waited: Annotated[float, Meta(ge=0, le=1)]
    slot: Name
    sender_part: Number
    receiver_part: Number
    rows: Count
    cols: Count
    widths: dict[Name, Count]


class Link(_LinkFacts):
    kind: Literal["sent", "received"]
    between_ranks: bool
    peer: Number | None
    messages: Count
    bytes: Count
    float32_bytes: Count


class _LaterPhases(TypedDict, total=False):
    """Those that files of older versions do not have."""

    aggregation: Seconds
    codec: Seconds
    reduction: Seconds


class Phases(_LaterPhases):
    products: Seconds
    updates: Seconds
    send: Seconds
    wait: Seconds
    other: Seconds


class _StageFacts(TypedDict, total=False):
    wall_seconds: Seconds


class Stage(_StageFacts):
    depth: Number
    layers: list[Number]
    iterations: Count
    iteration_seconds: Spread
    phases: dict[Name, Phases]
    steps: list[Step]
    links: list[Link]


class RankSeconds(TypedDict):
    evaluation: Seconds
    checkpoint: Seconds


class Rank(TypedDict):
    rank: Number
    host: Text
    seconds: RankSeconds
    stages: Annotated[list[Stage], Meta(min_length=1)]


class Measured(TypedDict):
    bytes: Count
    latency_seconds: Seconds
    bandwidth: Annotated[float, Meta(gt=0, le=1e18)]


class Neighbours(TypedDict):
    lower: Number
    upper: Number
    results: Annotated[list[Measured], Meta(min_length=1)]


class Baseline(TypedDict):
    transports: dict[Name, list[Neighbours]]


class _ProfileFacts(TypedDict, total=False):
    version: Text
    links_baseline: Baseline | None


class Profile(_ProfileFacts):
    schema: Any
    schema_version: Any
    warm_up: Count
    run: Run
    ranks: Annotated[list[Rank], Meta(min_length=1)]
