"""Shares of the classes for predictions: what `--class-prior val` gains, and how the registry's were chosen.

    python benchmarks/class_prior.py --data DIR [--datasets cora,...] [--seeds 0-4] [--json FILE]
    python benchmarks/class_prior.py --table [--json FILE]

DIR holds prepared files as for accuracy.py. Every run trains with the data set's preset (10 layers of 100,
delta 4 bits) and ``--class-prior train``; the shares are then looked at with its final network. They are
estimated on validation nodes, so that the gain on the same nodes flatters them. What decides is the gain of
cross-fitting: shares of one half of the validation nodes, accuracy of the other, mean of both ways and of ten
halvings. It is to be more than its standard error. Test accuracy has no say.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean, stdev

import numpy as np
from accuracy import PAPER, prepared

from pdadmm import Model
from pdadmm.files import write_json
from pdadmm.inputs.class_prior import crossed, logit_shift
from pdadmm.inputs.feature_file import FeatureFile

RESULTS = Path(__file__).parent / "results" / "class_prior.json"


def look(path: Path, seed: int) -> dict[str, float]:
    """Train on a file; accuracies in per cent, without and with the shares of the validation nodes."""
    with tempfile.TemporaryDirectory() as folder, FeatureFile(path) as features:
        command = [sys.executable, "-m", "pdadmm.run", str(path), "--layers", "10", "--seed", str(seed)]
        command += ["--class-prior", "train", "--quiet", "--out", folder]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
        model = Model.load(Path(folder) / "model.h5")
        logits = {name: model.forward(features.x(name)) for name in ("val", "test")}
        y = {name: features.y(name) for name in ("train", "val", "test")}
        classes = features.num_classes

    counts = {name: np.bincount(y[name], minlength=classes) for name in ("train", "val")}

    def accuracy(name: str, of: str) -> float:
        shift = logit_shift(counts["train"], counts[of])
        return 100 * float(((logits[name] + shift).argmax(axis=1) == y[name]).mean())

    return {
        "val": accuracy("val", "train"),
        "val_crossed": 100 * crossed(logits["val"], y["val"], counts["train"])[0],
        "val_shifted": accuracy("val", "val"),
        "test": accuracy("test", "train"),
        "test_shifted": accuracy("test", "val"),
    }


def gain(runs: list[dict[str, float]], after: str, before: str) -> tuple[float, float]:
    """Mean of the runs' differences, and its standard error."""
    differences = [run[after] - run[before] for run in runs]
    return mean(differences), stdev(differences) / math.sqrt(len(runs))


def table(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """Markdown: means of the runs, and of the differences run by run with their standard errors."""
    lines = [
        "| data set | validation | gain, cross-fitted | gain on the same nodes | chosen | test | gain |",
        "| --- | ---: | ---: | ---: | --- | ---: | ---: |",
    ]
    for dataset, of_seed in results.items():
        runs = list(of_seed.values())
        crossed = gain(runs, "val_crossed", "val")
        gains = crossed, gain(runs, "val_shifted", "val"), gain(runs, "test_shifted", "test")
        shown = [f"{found:+.2f} ± {error:.2f}" for found, error in gains]
        val, test = (mean(run[name] for run in runs) for name in ("val", "test"))
        chosen = "val" if crossed[0] > crossed[1] else "train"
        cells = [dataset, f"{val:.2f}", *shown[:2], chosen, f"{test:.2f}", shown[2]]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the prepared files")
    parser.add_argument("--datasets", default=",".join(PAPER[100]))
    parser.add_argument("--seeds", default="0-4")
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="only print the table of what is there")
    options = parser.parse_args()
    results = json.loads(options.json.read_text()) if options.json.exists() else {}
    if not options.table:
        first, _, last = options.seeds.partition("-")
        for dataset in options.datasets.split(","):
            for seed in range(int(first), int(last or first) + 1):
                found = look(prepared(options.data, dataset, seed), seed)
                results.setdefault(dataset, {})[str(seed)] = found
                write_json(options.json, results)
    print(table(results))


if __name__ == "__main__":
    main()
