"""Classes of nodes by a trained network of layers: `python -m pdadmm.predict DIR FILE.h5`.

    python -m pdadmm.predict runs/cora data/cora.h5 --out predictions.h5
    python -m pdadmm.prepare new.npz --like runs/cora --classes 7 --out new.h5    # a graph without labels
    python -m pdadmm.predict runs/cora new.h5

Exit codes: 0 done; 2 bad input, with one line on stderr; other: failure.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pdadmm.errors import InputError, one_line
from pdadmm.files.predictions import KIND, SCHEMA, write_predictions
from pdadmm.process import begin
from pdadmm.runtime.parser import Parser
from pdadmm.runtime.preparing import Reporter, answer, listen, on_first_rank

if TYPE_CHECKING:
    import argparse

    from pdadmm.inputs.feature_file import FeatureFile
    from pdadmm.model import Model

__all__ = ["main"]

_NAME = "pdadmm.predict"
_BLOCK_BYTES = 64 << 20  # of features, at once


def _parser() -> Parser:
    parser = Parser(prog="python -m pdadmm.predict", description="Classes of the nodes of a feature file.")
    parser.add_argument("run", metavar="DIR", help="folder of a run of pdadmm.run, or its model.h5")
    parser.add_argument("features", metavar="FILE.h5", help="features, made by pdadmm.prepare")
    parser.add_argument(
        "--out", metavar="FILE.h5", default="predictions.h5", help="what to write (predictions.h5)"
    )
    return parser


def _require_kind(model: Model, features: FeatureFile, name: str) -> None:
    """Refuse features of another kind than the model was trained on."""
    inputs, classes = model.weights[0].shape[1], len(model.biases[-1])
    if model.prepared is not None:
        model.prepared.check(features, features.where, name)
    if (features.num_features, features.num_classes) != (inputs, classes):
        raise InputError(
            f"{features.where} has {features.num_features} inputs and {features.num_classes} classes, {name} "
            f"{inputs} and {classes}; give features of the same kind"
        )


def _scores(model: Model, features: FeatureFile, report: Reporter) -> np.ndarray:
    """Outputs for all rows, (rows, classes) float32."""
    scores = np.empty((features.rows, features.num_classes), np.float32)
    step = max(1, _BLOCK_BYTES // (4 * features.num_features))
    for first in range(0, features.rows, step):
        report("rows", first, features.rows)
        last = min(first + step, features.rows)
        scores[first:last] = model.forward(features.x("all", first, last))
    return scores


def _predict(options: argparse.Namespace, report: Reporter) -> None:
    from pdadmm.datasets.registry import SPLITS
    from pdadmm.files.names import model_of
    from pdadmm.files.target import target_of
    from pdadmm.inputs.feature_file import FeatureFile
    from pdadmm.model import Model

    listen()
    path = model_of(options.run)
    model = Model.load(path)
    with FeatureFile(options.features) as features:
        target_of(options.out, SCHEMA, KIND, [options.features])
        _require_kind(model, features, str(path))
        scores = _scores(model, features, report)
        labels, nodes = features.y("all"), features.node_id
        parts = {split: slice(*features.slice_of(split)) for split in SPLITS}
    order = np.argsort(nodes)
    write_predictions(Path(options.out), scores[order], options.features, nodes=nodes[order])
    report.close()
    hits = scores.argmax(axis=1) == labels
    said = ", ".join(f"{split} {hits[rows].mean():.4f}" for split, rows in parts.items() if hits[rows].size)
    score = f"accuracy {said}" if said else "none has a label"
    print(f"{one_line(options.out)}: {nodes.size} nodes; {score}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code. Under mpirun rank 0 does everything."""
    return on_first_rank(
        _NAME, lambda share: answer(_NAME, lambda report: _predict(_parser().parse_args(arguments), report))
    )


if __name__ == "__main__":
    begin()
    sys.exit(main())
