"""The options of training a graph network: defaults < scheme of messages < a TOML file < the command line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pdadmm.codec.rows import FLOAT32
from pdadmm.errors import InputError
from pdadmm.files import Record
from pdadmm.gnn.part import MODELS
from pdadmm.inputs.class_prior import CLASS_PRIORS
from pdadmm.runtime import sections
from pdadmm.runtime.options import (
    COUNT,
    POSITIVE,
    Options,
    Range,
    check_ranges,
    fill,
    merged,
    option,
    positional,
)
from pdadmm.runtime.sections import Output, Run

__all__ = [
    "CHANGE_BITS",
    "OPTIONS",
    "SCHEMES",
    "Config",
    "Messages",
    "Network",
    "Scheme",
    "Training",
    "parse",
]


@dataclass(frozen=True)
class Scheme:
    """What ``--messages`` stands for.

    Parameters
    ----------
    order
        Of a hidden layer, see the option.
    codec
        Of the messages, either way.
    widths
        From which widths are assigned.
    first_bits
        Of all rows before the first assignment, which is after `first_epochs`; 0: after a cycle.
    every_byte
        The assignment charges all messages of a slot; else the longest, as AdaQP does.
    exact_inputs, narrow, eager
        See :class:`pdadmm.gnn.layer.Shape`.
    """

    order: str
    codec: str
    widths: tuple[int, ...]
    first_bits: int
    first_epochs: int
    every_byte: bool
    exact_inputs: bool
    narrow: bool
    eager: bool


SCHEMES = {
    "lean": Scheme("norm", "affine", (1, 2, 4, 8), 4, 10, True, True, True, True),
    # as published, its mistakes mended
    "adaqp": Scheme("adaqp", "affine", (2, 4, 8), 8, 0, False, False, False, False),
    "float32": Scheme("adaqp", "float32", (), FLOAT32, 0, False, False, False, False),
}


#: of an entry of embeddings that travel as changes
CHANGE_BITS = 2


@dataclass
class Network:
    """Shape of the network."""

    model: str = option("gcn", "convolution: GCN, or GraphSAGE with the mean of the neighbours", MODELS)
    layers: int = option(3, "convolutions", within=Range(1, 1000))
    hidden: int = option(256, "columns of a hidden layer", within=Range(1, 10**6))
    dropout: float = option(
        0.5,
        "share of the hidden layers' entries that is dropped in training",
        within=Range(0, 1, below=True),
    )
    order: str = option(
        "",
        "hidden layer after the convolution: norm, activation, dropout (norm) or dropout, norm, activation "
        "(adaqp); default: of the scheme",
        ("norm", "adaqp"),
    )


@dataclass
class Training:
    """Full-batch training with Adam."""

    start: str = option(
        "", "start from the weights of this model.h5, not random ones", metavar="FILE.h5", path=True
    )
    epochs: int = option(200, "epochs", within=COUNT)
    lr: float = option(0.01, "learning rate of Adam", within=POSITIVE)
    weight_decay: float = option(0.0, "L2 penalty, added to the gradient", within=Range(0, POSITIVE.most))
    class_prior: str = option(
        "train",
        "class distribution to predict for: that of the training nodes, or of the validation nodes "
        "(label-shift correction)",
        CLASS_PRIORS,
    )
    seed: int = option(
        0, "seed of the weights, of dropout and of stochastic rounding", within=Range(0, 2**63 - 1)
    )


@dataclass
class Messages:
    """What travels between the parts."""

    messages: str = option(
        "lean",
        "scheme: lean; adaqp, as published; or float32, adaqp without compression",
        tuple(SCHEMES),
    )
    forward: str = option(
        "",
        "coding of embeddings: affine rows, changes since the epoch before (delta), or as they are; default: "
        "of the scheme",
        ("affine", "delta", "float32"),
    )
    backward: str = option("", "coding of gradients; default: of the scheme", ("affine", "float32"))
    bits: str = option(
        "auto",
        "bits an entry; auto: of affine rows assigned row by row, of changes 2",
        ("auto", "8", "4", "2", "1"),
    )
    lambda_: float = option(
        0.5,
        "weight of the gradient's variance against time in the assignment",
        within=Range(0, 1),
    )
    reassign: int = option(50, "epochs between assignments", within=COUNT)
    links: str = option(
        "uniform",
        "time of a message in the assignment: its bytes (uniform), or its way and the work beside it as this "
        "run measures them (measured)",
        ("uniform", "measured"),
    )
    assignment: str = option(
        "greedy", "how widths are assigned: by marginal gain, or as an integer program", ("greedy", "exact")
    )


@dataclass
class Config:
    """Everything a run is started with."""

    graph: str = positional("FILE.h5", "made by pdadmm.gnn.prepare; default: an embedded synthetic graph")
    network: Network = field(default_factory=Network)
    training: Training = field(default_factory=Training)
    messages: Messages = field(default_factory=Messages)
    run: Run = field(default_factory=Run)
    output: Output = field(default_factory=Output)

    @property
    def scheme(self) -> Scheme:
        """Of the messages."""
        return SCHEMES[self.messages.messages]

    @property
    def assigns(self) -> bool:
        """Whether widths are assigned while it runs."""
        m = self.messages
        return m.bits == "auto" and "affine" in (m.forward, m.backward)


OPTIONS = Options(
    Config,
    "python -m pdadmm.gnn.run",
    "Train a graph network on the whole of a graph that is cut into parts, spread over MPI ranks.",
    {"features": "python -m pdadmm.run"},
)


def _forget_scheme(of_file: Record, given: Record) -> None:
    """Leave out what a file's scheme of messages stood for, where the command line has another scheme."""
    messages, network = of_file.get("messages", {}), of_file.get("network", {})
    if "messages" not in messages or "messages" not in given.get("messages", {}):
        return
    if messages["messages"] == given["messages"]["messages"]:
        return
    scheme = SCHEMES[messages["messages"]]
    for section, name, value in (
        (messages, "forward", scheme.codec),
        (messages, "backward", scheme.codec),
        (network, "order", scheme.order),
    ):
        if section.get(name) == value:
            del section[name]
    both = {**messages, **given["messages"]}
    ways = {both.get(way, "float32") for way in ("forward", "backward")}
    if given["messages"]["messages"] == "float32" and ways == {"float32"}:
        messages.pop("bits", None)  # nothing is left to be coded


def parse(
    arguments: Sequence[str],
    network_of: Callable[[str], Record] | None = None,
    warn: Callable[[str], None] | None = None,
) -> Config:
    """Configuration of a command line.

    Parameters
    ----------
    arguments
    network_of
        Gives the options of the network of a model.h5, which are weaker than all but defaults, where a run
        that does not go on from a checkpoint is to start from one.
    warn
        Called with what was given in vain.

    Raises
    ------
    InputError
        When an option is unknown or a value is out of its range.
    """
    config = Config()
    of_file, given = OPTIONS.sources(arguments)
    _forget_scheme(of_file, given)
    values = merged(of_file, given)
    path = values.get("training", {}).get("start")
    if network_of is not None and path and not values.get("output", {}).get("resume"):
        fill(config.network, network_of(path))
    fill(config, values)
    n, m = config.network, config.messages
    n.order = n.order or config.scheme.order
    m.forward, m.backward = m.forward or config.scheme.codec, m.backward or config.scheme.codec
    check_ranges(config)
    sections.check(config.output, (config.graph, config.training.start))
    if m.bits != "auto" and (m.forward, m.backward) == ("float32", "float32"):
        raise InputError(f"--bits {m.bits}: nothing is coded; leave it out, or give --messages lean or adaqp")
    if warn is not None and (why := _in_vain(config, given.get("messages", {}))):
        warn(why)
    return config


def _in_vain(config: Config, given: Record) -> str:
    """What to say of options of the assignment on the command line of a run that assigns no widths."""
    names = {name.rstrip("_") for name in given} & {"lambda", "reassign", "links", "assignment"}
    if config.assigns or not names or config.output.resume:  # it must have those of before anyway
        return ""
    m = config.messages
    if "affine" in (m.forward, m.backward):
        why = f"all affine rows have --bits {m.bits}"
    else:
        why = "no message is of affine rows"
    return f"--{', --'.join(sorted(names))}: without effect, since {why}, and no widths are assigned"
