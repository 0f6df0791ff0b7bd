"""The options of a run: one dataclass tree, filled from defaults, presets, a TOML file, the command line.

Later sources win. The sections are the tables of the TOML file; on the command line the options
are flat, ``--grid-low`` for ``[messages] grid_low``.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w

from pdadmm.admm.activations import ACTIVATIONS
from pdadmm.arrays.backend import PRECISIONS
from pdadmm.codec import CODECS, check_codec, default_bits
from pdadmm.errors import InputError
from pdadmm.inputs.scaling import INPUT_NORMS

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover
    import tomli as tomllib

__all__ = ["Config", "Messages", "Network", "Output", "Run", "Training", "load", "parse"]


def _option(
    default: Any, text: str, choices: tuple[Any, ...] | None = None, metavar: str | None = None
) -> Any:
    metadata = {"help": text, "choices": choices, "metavar": metavar}
    if default == []:
        return field(default_factory=list, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class Network:
    """Shape of the network."""

    layers: int = _option(
        0, "layers of the finished network; default: the number of ranks, or 10 on one rank"
    )
    hidden: int = _option(100, "neurons of a hidden layer")
    activation: str = _option("relu", "activation of the hidden layers", tuple(ACTIVATIONS))
    input_norm: str = _option(
        "none",
        "scaling of every hop of the features: none, or the square root of its share of the row's sum",
        INPUT_NORMS,
    )
    hop_decay: float = _option(1.0, "scale of a hop of the features against that of the hop before")


@dataclass
class Training:
    """The ADMM method."""

    stages: list[int] = _option([], "depths to grow through, e.g. 2,5,10; default: doubling up to --layers")
    iterations: int = _option(100, "iterations of every stage")
    solver: str = _option(
        "gradient", "p and W by a gradient step or by exact minimisation", ("gradient", "exact")
    )
    step: str = _option(
        "exact", "step length: exact line search, or the authors' doubling", ("exact", "doubling")
    )
    nu: float = _option(0.01, "penalty of z = pW+b and q = f(z)")
    rho: float = _option(0.1, "penalty of p = q between layers")
    mu: float = _option(0.01, "L2 penalty of the weights")
    damping: float = _option(
        0.0,
        "exact solver: pull of W to its last value, in mean eigenvalues of the Gram matrix of its inputs",
    )
    momentum: float = _option(
        0.0, "exact solver: share of their last change that W and b of the hidden layers repeat, below 1"
    )
    z_centre: str = _option(
        "previous",
        "what the z-update of the hidden layers stays near: the previous z, or the linear output pW+b",
        ("previous", "linear"),
    )
    anchor: str = _option(
        "identity", "what the L2 penalty pulls inserted layers towards", ("identity", "zero")
    )
    risk: str = _option("cross_entropy", "loss of the output layer", ("cross_entropy", "least_squares"))
    schedule: str = _option(
        "constant",
        "constant nu and rho, or the authors' rule: tenfold, up to 1, when the training loss stalls",
        ("constant", "authors"),
    )
    refresh: int = _option(25, "iterations between recomputations of the residual")
    seed: int = _option(0, "seed of the initial weights and of stochastic rounding")


@dataclass
class Messages:
    """What travels between neighbouring layers."""

    codec: str = _option("delta", "coding of the messages", tuple(CODECS))
    bits: int = _option(0, "bits an entry: 8, 4, 2 or (delta) 1; default 4, and 32 for float32")
    grid_low: float | None = _option(None, "smallest value of the grid; default: from the forward pass")
    grid_high: float | None = _option(None, "largest value of the grid; default: from the forward pass")


@dataclass
class Run:
    """Where and how it runs."""

    backend: str = _option("auto", "array library", ("auto", "numpy", "cupy"))
    transport: str = _option("auto", "how messages travel", ("auto", "mpi", "nccl"))
    kernels: str = _option(
        "auto",
        "the passes between products: compiled (auto: where they are installed) or plain array operations",
        ("auto", "fused", "reference"),
    )
    precision: str = _option("float32", "products on a GPU: float32, tf32, or three of bfloat16", PRECISIONS)
    cuda_aware_mpi: bool = _option(False, "give GPU buffers to MPI itself; it must have been built for that")
    overlap: bool = _option(True, "send while computing; --no-overlap waits for every message to leave")
    threads: int = _option(
        0,
        "threads of a rank; default: OMP_NUM_THREADS, or the node's cores over its ranks, "
        "fewer for small products",
    )
    timeout: float = _option(0.0, "seconds without a sign of a neighbour after which the run ends; 0: never")


@dataclass
class Output:
    """What is measured and written."""

    out: str = _option("", "folder of the results; default: runs/DATASET-DATE-TIME", metavar="DIR")
    eval_every: int = _option(10, "iterations between evaluations")
    checkpoint_every: int = _option(0, "iterations between checkpoints; 0: none", metavar="N")
    checkpoint_seconds: float = _option(0.0, "seconds between checkpoints; 0: none")
    max_seconds: float = _option(0.0, "seconds after which the run saves a checkpoint and stops; 0: never")
    resume: bool = _option(False, "go on from the newest intact checkpoint in --out")
    trace: bool = _option(False, "write a timeline for Perfetto or Chrome, trace.json in --out")
    measure_links: bool = _option(
        False, "measure latency and bandwidth between neighbours first; the profile compares with them"
    )
    quiet: bool = _option(False, "no progress bar and no table")


@dataclass
class Config:
    """Everything a run is started with."""

    features: str = ""  #: path of the prepared file; empty: the embedded default
    network: Network = field(default_factory=Network)
    training: Training = field(default_factory=Training)
    messages: Messages = field(default_factory=Messages)
    run: Run = field(default_factory=Run)
    output: Output = field(default_factory=Output)

    def to_toml(self) -> str:
        """The whole tree as TOML; values that are unset are left out."""
        tree = dataclasses.asdict(self)
        for section in tree.values():
            if isinstance(section, dict):
                for key in [k for k, v in section.items() if v is None]:
                    del section[key]
        return tomli_w.dumps(tree)


_SECTIONS = ("network", "training", "messages", "run", "output")


def _fields() -> list[tuple[str, dataclasses.Field[Any], Any]]:
    """(section, field, type) of every option."""
    found = []
    for section in _SECTIONS:
        cls = type(getattr(Config(), section))
        hints = typing.get_type_hints(cls)
        found += [(section, f, hints[f.name]) for f in dataclasses.fields(cls)]
    return found


def _depths(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a list of depths like 2,5,10") from None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        raise InputError(f"{message}; see python -m {self.prog.split()[-1]} --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m pdadmm.run",
        description="Train a deep graph-augmented MLP by ADMM, layers spread over MPI ranks.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument(
        "features",
        nargs="?",
        metavar="FILE.h5",
        help="made by pdadmm.prepare; default: an embedded synthetic graph",
    )
    parser.add_argument("--config", metavar="FILE.toml", help="options from a file; the command line wins")
    group = {s: parser.add_argument_group(s) for s in _SECTIONS}
    for section, f, hint in _fields():
        name = "--" + f.name.replace("_", "-")
        text = f.metadata["help"]
        shown = f" (default: {f.default})" if f.default and f.default is not dataclasses.MISSING else ""
        if hint is bool:
            switch: Any = argparse.BooleanOptionalAction if f.default else "store_true"
            group[section].add_argument(name, action=switch, help=text)
            continue
        kind: Any = _depths if hint == list[int] else _plain(hint)
        metavar = f.metadata["metavar"] or ("D,D,..." if kind is _depths else None)
        group[section].add_argument(
            name, type=kind, choices=f.metadata["choices"], metavar=metavar, help=text + shown
        )
    return parser


def _plain(hint: Any) -> type:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return next(t for t in typing.get_args(hint) if t is not type(None))
    return hint


def _coerce(value: Any, hint: Any, where: str) -> Any:
    """A TOML value as the type of its field."""
    kind: type = list if typing.get_origin(hint) is list else _plain(hint)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    whole = isinstance(value, list) and all(type(v) is int for v in value)
    if type(value) is not kind or (kind is list and not whole):
        wanted = "list of integers" if kind is list else kind.__name__
        raise InputError(f"{where} must be a {wanted}, not {value!r}")
    return value


def load(path: str) -> dict[str, dict[str, Any]]:
    """Options of a TOML file, by section.

    Raises
    ------
    InputError
        When the file is missing, is no TOML, or has a table, key or value that is not an option.
    """
    try:
        tree = tomllib.loads(Path(path).read_text())
    except OSError as error:
        raise InputError(f"cannot read the configuration {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid TOML: {error}") from None
    known = {(s, f.name): (f, hint) for s, f, hint in _fields()}
    options: dict[str, dict[str, Any]] = {}
    for section, table in tree.items():
        if section == "features":
            options["features"] = {"features": _coerce(table, str, f"features in {path}")}
            continue
        if section not in _SECTIONS or not isinstance(table, dict):
            raise InputError(f"{path} has an unknown table [{section}]; there are {', '.join(_SECTIONS)}")
        for key, value in table.items():
            if (section, key) not in known:
                raise InputError(f"{path} has an unknown option '{key}' in [{section}]")
            f, hint = known[section, key]
            where = f"{key} in [{section}] of {path}"
            value = _coerce(value, hint, where)
            choices = f.metadata["choices"]
            if choices and value not in choices:
                raise InputError(f"{where} must be one of {', '.join(choices)}, not '{value}'")
            options.setdefault(section, {})[key] = value
    return options


def parse(arguments: list[str], preset: typing.Callable[[str], dict[str, Any]] | None = None) -> Config:
    """Configuration of a command line.

    Parameters
    ----------
    arguments
        As in ``sys.argv[1:]``.
    preset
        Options of network and training that the data set at a path asks for; weaker than file and
        command line.

    Raises
    ------
    InputError
        When an option is unknown or a value is out of its range.
    """
    given = vars(_parser().parse_args(arguments))
    config = Config()
    from_file = load(given.pop("config")) if "config" in given else _of_run_before(given)
    config.features = given.pop("features", from_file.pop("features", {}).get("features", ""))
    if preset is not None:
        for key, value in preset(config.features).items():
            setattr(config.network if hasattr(config.network, key) else config.training, key, value)
    for section, table in from_file.items():
        for key, value in table.items():
            setattr(getattr(config, section), key, value)
    for section, f, _ in _fields():
        if f.name in given:
            setattr(getattr(config, section), f.name, given[f.name])
    if config.training.solver != "exact":  # a preset's options of another solver than the user's do not count
        for name in {"damping", "momentum"} - set(given) - set(from_file.get("training", {})):
            setattr(config.training, name, 0.0)
    check(config)
    return config


def _of_run_before(given: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What a run to be resumed was started with, but for where and how long it ran."""
    before = Path(given.get("out", "")) / "config.toml"
    if not (given.get("resume") and given.get("out") and before.exists()):
        return {}
    options = load(str(before))
    options.pop("run", None)
    kept = ("eval_every", "checkpoint_every", "checkpoint_seconds")
    options["output"] = {k: v for k, v in options.get("output", {}).items() if k in kept}
    return options


def check(config: Config) -> None:
    """Refuse values out of range; fill the bits that the codec implies.

    Raises
    ------
    InputError
    """
    t, m, o = config.training, config.messages, config.output
    for name, value in (("nu", t.nu), ("rho", t.rho)):
        if not 0 < value < float("inf"):
            raise InputError(f"--{name} is {value:g}; it must be positive")
    if not 0 < config.network.hop_decay < float("inf"):
        raise InputError(f"--hop-decay is {config.network.hop_decay:g}; it must be positive")
    if not 0 <= t.mu < float("inf"):
        raise InputError(f"--mu is {t.mu:g}; it must not be negative")
    if not 0 <= t.damping < float("inf"):
        raise InputError(f"--damping is {t.damping:g}; it must not be negative")
    if not 0 <= t.momentum < 1:
        raise InputError(f"--momentum is {t.momentum:g}; it must be at least 0 and below 1")
    if (t.damping or t.momentum) and t.solver != "exact":
        raise InputError(
            "--damping and --momentum are of the exact solver; give --solver exact with them, or 0 for both"
        )
    for name, value, least in (
        ("layers", config.network.layers, 0),
        ("hidden", config.network.hidden, 1),
        ("iterations", t.iterations, 1),
        ("refresh", t.refresh, 1),
        ("eval-every", o.eval_every, 1),
        ("checkpoint-every", o.checkpoint_every, 0),
        ("seed", t.seed, 0),
        ("threads", config.run.threads, 0),
    ):
        if value < least:
            raise InputError(f"--{name} is {value}; it must be at least {least}")
    if m.bits == 0:
        m.bits = default_bits(m.codec)
    check_codec(m.codec, m.bits)
    if (m.grid_low is None) != (m.grid_high is None):
        raise InputError("--grid-low and --grid-high go together; give both or neither")
    if m.grid_low is not None and m.grid_high is not None and not m.grid_low < m.grid_high:
        raise InputError(
            f"the grid [{m.grid_low:g}, {m.grid_high:g}] is empty; --grid-low must be below --grid-high"
        )
    for name, seconds in (
        ("checkpoint-seconds", o.checkpoint_seconds),
        ("max-seconds", o.max_seconds),
        ("timeout", config.run.timeout),
    ):
        if not 0 <= seconds < float("inf"):
            raise InputError(f"--{name} is {seconds:g}; it must not be negative")
    if o.resume and not o.out:
        raise InputError("--resume needs --out DIR, the folder of the run to go on with")
    if t.stages:
        check_stages(t.stages, config.network.layers)


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
