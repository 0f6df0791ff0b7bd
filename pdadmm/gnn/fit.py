"""Whether a graph is of the kind that a model was trained on, and training that starts from one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pdadmm.errors import InputError
from pdadmm.files import Record
from pdadmm.gnn.layer import Shape
from pdadmm.gnn.model_file import read_model

if TYPE_CHECKING:
    from pdadmm.gnn.options import Config
    from pdadmm.inputs.feature_norm import FeatureNorm
    from pdadmm.inputs.graph_file import GraphSource

__all__ = ["network_of", "require_kind", "require_norm", "require_start"]


def require_kind(source: GraphSource, shape: Shape, facts: Record, path: str) -> None:
    """Refuse a graph with other features, classes or labels than a model takes.

    Parameters
    ----------
    facts
        Attributes of the model.
    path
        Of the graph.

    Raises
    ------
    InputError
    """
    if (source.num_features, source.num_classes) != (shape.widths[0], shape.widths[-1]):
        raise InputError(
            f"{path} has {source.num_features} features and {source.num_classes} classes, the model "
            f"{shape.widths[0]} and {shape.widths[-1]}; give a graph of the same kind"
        )
    labelled = any(source.sizes.values())
    if labelled and source.multilabel != bool(facts.get("multilabel", False)):
        one, other = ("several labels", "one label") if source.multilabel else ("one label", "several labels")
        raise InputError(f"{path} has {one} a node, the model is of {other}; give a graph of the same kind")


def require_norm(source: GraphSource, norm: FeatureNorm, path: str, model: Path) -> None:
    """Refuse a graph whose features are not normalised as those were that a model was trained on.

    Raises
    ------
    InputError
    """
    option = f"--like {model}" if norm.arrays else f"--feature-norm {norm.name}"
    norm.require(source.norm, path, "the model", f"prepare it with {option}")


def network_of(path: str) -> Record:
    """Options of the network that go on from a model.h5.

    Raises
    ------
    InputError
        When it is missing, damaged, no graph network's, or has hidden layers of several widths.
    """
    return _network(read_model(path)[0], path)


def _network(shape: Shape, path: str) -> Record:
    hidden = sorted(set(shape.widths[1:-1]))
    if len(hidden) > 1:
        raise InputError(
            f"{path} has hidden layers of {', '.join(map(str, hidden))} columns; training can start from one "
            "with as many in each"
        )
    return {"model": shape.model, "layers": shape.layers, **({"hidden": hidden[0]} if hidden else {})}


def require_start(config: Config, source: GraphSource) -> None:
    """Refuse options, and a graph, that --start does not go with.

    Raises
    ------
    InputError
    """
    path = config.training.start
    shape, _, facts, norm = read_model(path)
    for name, value in _network(shape, path).items():
        if getattr(config.network, name) != value:
            raise InputError(
                f"--{name} is {getattr(config.network, name)}, but {path} was trained with {value}; give "
                f"--{name} {value}"
            )
    graph = config.graph or "the embedded graph"
    require_kind(source, shape, facts, graph)
    require_norm(source, norm, graph, Path(path))
