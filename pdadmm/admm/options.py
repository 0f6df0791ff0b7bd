"""The options of training by ADMM: defaults < presets of the data set < a TOML file < the command line."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import ClassVar

from pdadmm.admm.activations import ACTIVATIONS
from pdadmm.admm.growth import default_stages
from pdadmm.codec import CODECS, check_codec, default_bits
from pdadmm.errors import InputError
from pdadmm.files import Record
from pdadmm.inputs.class_prior import CLASS_PRIORS
from pdadmm.inputs.scaling import INPUT_NORMS
from pdadmm.runtime import sections
from pdadmm.runtime.options import (
    COUNT,
    FINITE,
    POSITIVE,
    Options,
    Range,
    check_ranges,
    fill,
    merged,
    option,
    positional,
)
from pdadmm.runtime.saved import SINCE
from pdadmm.runtime.sections import Output, Run

__all__ = ["OPTIONS", "Config", "Messages", "Network", "Training", "check_stages", "parse"]


#: a network of ten thousand layers takes seconds to be shared out to one rank, and minutes to many
_LAYERS = Range(1, 10**4)

#: width over its largest end of a grid whose 256 values float32 can tell apart
_FINEST = 2.0**-15


def _depths(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a list of depths like 2,5,10") from None


@dataclass
class Network:
    """Shape of the network."""

    layers: int = option(
        0,
        "layers of the finished network; default: the number of ranks (over that of shards), or 10 where "
        "that is 1",
        within=Range(0, _LAYERS.most),
    )
    hidden: int = option(100, "neurons of a hidden layer", within=Range(1, 10**6))
    activation: str = option("relu", "activation of the hidden layers", tuple(ACTIVATIONS))
    input_norm: str = option(
        "none",
        "scaling of every operator's features: none, or the square root of their share of the row's sum",
        INPUT_NORMS,
    )
    hop_decay: float = option(
        1.0,
        "scale of an operator's features against that of the operator before; a hop with powers",
        within=POSITIVE,
    )


@dataclass
class Training:
    """The ADMM method."""

    start: str = option(
        "",
        "start from the layers of this model.h5, the first stage, not random ones",
        metavar="FILE.h5",
        path=True,
    )
    stages: list[int] = option(
        [],
        "depths to grow through, e.g. 2,5,10; default: doubling up to --layers",
        metavar="D,D,...",
        parse=_depths,
        within=_LAYERS,
    )
    iterations: int = option(100, "iterations of every stage", within=COUNT)
    solver: str = option(
        "gradient", "p and W by a gradient step or by exact minimisation", ("gradient", "exact")
    )
    step: str = option(
        "exact",
        "step length: exact line search, one a node in p and a neuron in W, or the authors' doubling",
        ("exact", "row", "doubling"),
    )
    nu: float = option(0.01, "penalty of z = pW+b and q = f(z)", within=POSITIVE)
    rho: float = option(0.1, "penalty of p = q between layers", within=POSITIVE)
    mu: float = option(0.01, "L2 penalty of the weights", within=Range(0, POSITIVE.most))
    damping: float = option(
        0.0,
        "exact solver: pull of W to its last value, in mean eigenvalues of the Gram matrix of its inputs",
        within=Range(0, POSITIVE.most),
    )
    momentum: float = option(
        0.0,
        "exact solver: share of their last change that W and b of the hidden layers repeat, below 1",
        within=Range(0, 1, below=True),
    )
    z_centre: str = option(
        "previous",
        "what the z-update of the hidden layers stays near: the previous z, or the linear output pW+b",
        ("previous", "linear"),
    )
    anchor: str = option(
        "identity", "what the L2 penalty pulls inserted layers towards", ("identity", "zero")
    )
    risk: str = option("cross_entropy", "loss of the output layer", ("cross_entropy", "least_squares"))
    class_prior: str = option(
        "train",
        "class distribution to predict for: that of the training nodes, or of the validation nodes "
        "(label-shift correction)",
        CLASS_PRIORS,
    )
    schedule: str = option(
        "constant",
        "constant nu and rho, or the authors' rule: tenfold, up to 1, when the training loss stalls",
        ("constant", "authors"),
    )
    refresh: int = option(25, "iterations between recomputations of the residual", within=COUNT)
    seed: int = option(
        0, "seed of the initial weights and of stochastic rounding", within=Range(0, 2**63 - 1)
    )


@dataclass
class Messages:
    """What travels between neighbouring layers."""

    codec: str = option("delta", "coding of the messages", tuple(CODECS))
    bits: int = option(
        0, "bits an entry: 8, 4, 2 or (delta) 1; default 4, and 32 for float32", within=Range(0, 32)
    )
    grid_low: float | None = option(
        None, "smallest value of the grid; default: from the forward pass", within=FINITE
    )
    grid_high: float | None = option(
        None, "largest value of the grid; default: from the forward pass", within=FINITE
    )


@dataclass
class Job(Run):
    """Where and how it runs, the nodes in shards."""

    resumed: ClassVar[tuple[str, ...]] = (*Run.resumed, "shards", "as_sharded")

    shards: int = option(
        1, "shards that the nodes are cut into; the number of ranks is a multiple of it", within=COUNT
    )
    as_sharded: bool = option(
        False,
        "compute as 8 shards would: the same bits in 1, 2, 4 and 8 also of few nodes, for longer iterations",
    )


@dataclass
class Config:
    """Everything a run is started with."""

    features: str = positional("FILE.h5", "made by pdadmm.prepare; default: an embedded synthetic graph")
    network: Network = field(default_factory=Network)
    training: Training = field(default_factory=Training)
    messages: Messages = field(default_factory=Messages)
    run: Job = field(default_factory=Job)
    output: Output = field(default_factory=Output)


OPTIONS = Options(
    Config,
    "python -m pdadmm.run",
    "Train a deep graph-augmented MLP by ADMM, layers spread over MPI ranks.",
    {"graph": "python -m pdadmm.gnn.run"},
)


def parse(
    arguments: Sequence[str],
    preset: Callable[[str], Record] | None = None,
    start: Callable[[str], Record] | None = None,
    ranks: int = 1,
) -> Config:
    """Configuration of a command line.

    Parameters
    ----------
    arguments
        As in ``sys.argv[1:]``.
    preset
        Options of network and training that the data set at a path asks for; weaker than file and
        command line.
    start
        Options of the network that go on from the model at a path, which are as weak; asked where a run that
        does not go on from a checkpoint is to start from one.
    ranks
        That train. A resumed run keeps its shards where they divide them.

    Raises
    ------
    InputError
        When an option is unknown or a value is out of its range.
    """
    of_file, given = OPTIONS.sources(arguments)
    of_a_run = _is_of_a_run(of_file)
    _forget_defaults(of_file, given)
    values = merged(of_file, given)
    config = Config()
    if preset is not None and not of_a_run:
        for key, value in preset(values.get("features", "")).items():
            setattr(config.network if hasattr(config.network, key) else config.training, key, value)
    path = values.get("training", {}).get("start")
    if start is not None and path and not values.get("output", {}).get("resume"):
        fill(config.network, start(path))
    fill(config, values)
    if config.output.resume and ranks % config.run.shards and "shards" not in given.get("run", {}):
        config.run.shards = 1
    if config.training.solver != "exact":  # a preset's options of another solver than the user's do not count
        for name in {"damping", "momentum"} - set(values.get("training", {})):
            setattr(config.training, name, 0.0)
    if config.training.risk != "cross_entropy" and "class_prior" not in values.get("training", {}):
        config.training.class_prior = "train"
    check(config)
    return config


def _is_of_a_run(of_file: Record) -> bool:
    """Whether a file has every option of network and training, as those have that runs write.

    What it lacks came later, and has its default then, not the data set's preset.
    """
    sections = {"network": Network, "training": Training}
    wanted = {f.name for section in sections.values() for f in fields(section)}
    there = {name for section in sections for name in of_file.get(section, {})}
    return wanted - there <= SINCE.keys()


def _forget_defaults(of_file: Record, given: Record) -> None:
    """Leave out what a file has by default, where the command line has what it was the default for.

    Stages go with the layers, bits with the codec.
    """
    training, messages = of_file.get("training", {}), of_file.get("messages", {})
    stages = training.get("stages")
    if stages and stages == default_stages(stages[-1]) and "layers" in given.get("network", {}):
        del training["stages"]
    codec, bits = messages.get("codec", Messages.codec), messages.get("bits")
    if bits is not None and bits == default_bits(codec) and "codec" in given.get("messages", {}):
        del messages["bits"]


def check(config: Config) -> None:
    """Refuse values out of range; fill the bits that the codec implies.

    Raises
    ------
    InputError
    """
    n, t, m = config.network, config.training, config.messages
    check_ranges(config)
    if (t.damping or t.momentum) and t.solver != "exact":
        raise InputError(
            "--damping and --momentum are of the exact solver; give --solver exact with them, or 0 for both"
        )
    if t.class_prior != "train" and t.risk != "cross_entropy":
        raise InputError(
            f"--class-prior {t.class_prior} needs probabilities, which --risk {t.risk} has none of; "
            "give --class-prior train"
        )
    if m.bits == 0:
        m.bits = default_bits(m.codec)
    check_codec(m.codec, m.bits)
    if (m.grid_low is None) != (m.grid_high is None):
        raise InputError("--grid-low and --grid-high go together; give both or neither")
    if m.grid_low is not None and m.grid_high is not None:
        if not m.grid_low < m.grid_high:
            raise InputError(
                f"the grid [{m.grid_low:g}, {m.grid_high:g}] is empty; --grid-low must be below --grid-high"
            )
        if m.grid_high - m.grid_low < _FINEST * max(abs(m.grid_low), abs(m.grid_high), POSITIVE.least):
            raise InputError(
                f"the grid [{m.grid_low:g}, {m.grid_high:g}] is too narrow for float32; give a wider one"
            )
    sections.check(config.output, (config.features, t.start))
    if t.stages:
        check_stages(t.stages, n.layers)


def check_stages(stages: list[int], layers: int) -> None:
    """Refuse stages that do not grow or do not end at `layers` (0: any depth).

    Raises
    ------
    InputError
    """
    shown = ",".join(map(str, stages))
    if stages[0] < 1 or any(b <= a for a, b in itertools.pairwise(stages)):
        raise InputError(f"--stages {shown} does not grow; give increasing depths such as 2,5,10")
    if layers and stages[-1] != layers:
        raise InputError(
            f"--stages {shown} ends at {stages[-1]} layers, but --layers is {layers}; make them agree"
        )
    if len(stages) > 1 and stages[0] < 2:
        raise InputError(f"--stages {shown} starts below 2; growth needs a hidden layer and the output layer")
