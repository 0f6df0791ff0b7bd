"""The paper's tables III and IV: test accuracy at 10 layers, pdADMM-G and codecs against gradient methods.

    python benchmarks/accuracy.py --data DIR [--datasets cora,citeseer] [--hidden 100,500] [--seeds 0-4]
        [--methods float32,grid8,delta4,adam,...] [--class-prior train] [--out FILE.jsonl]
    python benchmarks/accuracy.py --out FILE.jsonl --table
    python benchmarks/accuracy.py --out FILE.jsonl --against METHOD

DIR holds prepared files: NAME.h5 for data sets with a public split, NAME-sS.h5 (prepared with
``--seed S``) for the others; seed S then trains on split S. Results are appended to FILE.jsonl and
runs already there are not repeated: a FILE.jsonl is of one choice of operators a data set. The figures
are those of the **final** iterate.

pdADMM runs use the data set's preset; codecs are not tuned apart. All methods get the preset's scaling
of the inputs and its --class-prior, or the one given here: a FILE.jsonl is of one of these, too. The learning
rate of each gradient method is chosen per data set and width by the validation accuracy of seed 0, over the
grid in benchmarks/baselines.py; test accuracy has no say in it.
So is C of ``linear``, logistic regression by scikit-learn: what a single layer makes of these inputs.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from baselines import GRIDS, INVERSE_PENALTIES, train_linear, train_torch
from tune import Cached, train

from pdadmm.datasets.registry import REGISTRY
from pdadmm.inputs.class_prior import CLASS_PRIORS

ADMM = ["float32", "grid8", "delta8", "delta4", "delta2", "delta1"]
GRADIENT = [name + kind for kind in ("", "+growth") for name in GRIDS]
LAYERS = 10
EPOCHS = 200

#: test accuracy of pdADMM-G at 10 layers in the paper (arXiv 2105.09837, tables III and IV)
PAPER = {
    100: {"cora": 0.784, "citeseer": 0.709, "amazon-computers": 0.735, "amazon-photo": 0.856,
          "coauthor-cs": 0.915, "coauthor-physics": 0.921},
    500: {"cora": 0.786, "citeseer": 0.713, "amazon-computers": 0.751, "amazon-photo": 0.873,
          "coauthor-cs": 0.920, "coauthor-physics": 0.918},
}  # fmt: skip


def prepared(folder: Path, dataset: str, seed: int) -> Path:
    """The file of a data set's split; the public one where there is no seeded one."""
    seeded = folder / f"{dataset}-s{seed}.h5"
    return seeded if seeded.exists() else folder / f"{dataset}.h5"


def input_scaling(dataset: str, operators: str) -> tuple[str, float]:
    """How the data set's preset scales the inputs of these operators, for the gradient methods too."""
    preset = REGISTRY[dataset].preset_for(operators)
    return preset.get("input_norm", "none"), preset.get("hop_decay", 1.0)


class Results:
    """Runs by their key, kept in a file of JSON lines."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.runs: dict[tuple[Any, ...], dict[str, Any]] = {}
        if path.exists():
            for line in path.read_text().splitlines():
                record = json.loads(line)
                self.runs[tuple(record["key"])] = record

    def get(self, key: tuple[Any, ...], run: Any) -> dict[str, Any]:
        """The run with a key: from the file, or made now and added to it."""
        if key not in self.runs:
            record = {"key": list(key), **run()}
            if "file" in record:
                record["file"] = Path(record["file"]).name  # its folder is this machine's
            with self.path.open("a") as file:
                file.write(json.dumps(record) + "\n")
            self.runs[key] = record
            print(key, f"test {record['test_accuracy']:.4f}  val {record['val_accuracy']:.4f}", flush=True)
        return self.runs[key]


def run_admm(data: Cached, hidden: int, method: str, seed: int, prior: str | None) -> dict[str, Any]:
    codec = method.rstrip("0123456789")
    options = {"codec": "float32"} if method == "float32" else {"codec": codec, "bits": method[len(codec) :]}
    fixed = ["--class-prior", prior] if prior else []
    return train(data, options, ["--layers", str(LAYERS), "--hidden", str(hidden), *fixed], seed)


def run_gradient(
    results: Results, data: Any, dataset: str, hidden: int, method: str, seed: int, prior: str | None
) -> None:
    """One seed with the learning rate, of logistic regression with C, that seed 0 chose on validation."""
    name, _, growth = method.partition("+")
    stages = [2, 4, 8, LAYERS] if growth else [LAYERS]
    epochs = EPOCHS // len(stages) * (2 if growth else 1)

    def run(rate: float, of_seed: int) -> dict[str, Any]:
        key = (dataset, hidden, method, rate, of_seed)

        def trained() -> dict[str, Any]:
            lent = data(of_seed)
            scaling = input_scaling(dataset, lent.sizes.operators)
            preset = REGISTRY[dataset].preset_for(lent.sizes.operators)
            of = prior or preset.get("class_prior", "train")
            if name == "linear":
                return train_linear(lent, rate, scaling, of)
            return train_torch(lent, hidden, stages, epochs, name, rate, of_seed, scaling, prior=of)

        return results.get(key, trained)

    grid = INVERSE_PENALTIES if name == "linear" else GRIDS[name]
    best = max(grid, key=lambda rate: run(rate, 0)["val_accuracy"])
    run(best, seed)


def _spread(values: list[float]) -> float:
    """Standard deviation of the runs; 0 of a single one."""
    return stdev(values) if len(values) > 1 else 0.0


def table(results: Results) -> str:
    """Mean and standard deviation of the final test accuracy in per cent, Markdown."""
    lines = []
    for hidden in sorted({key[1] for key in results.runs}):
        names = [name for name in PAPER[100] if any(k[0] == name and k[1] == hidden for k in results.runs)]
        lines += [
            f"\nHidden {hidden}:\n",
            "| method | " + " | ".join(names) + " |",
            "| --- |" + " ---: |" * len(names),
        ]
        paper = [f"{100 * PAPER[hidden][n]:.1f}" if hidden in PAPER else "" for n in names]
        lines.append("| pdADMM-G, the paper | " + " | ".join(paper) + " |")
        for method in [*ADMM, *GRADIENT, "linear"]:
            cells = []
            for name in names:
                runs = [r for k, r in results.runs.items() if k[:3] == (name, hidden, method)]
                rates = {r["key"][3] for r in runs}
                if len(rates) > 1:
                    first = {r["key"][3]: r["val_accuracy"] for r in runs if r["key"][4] == 0}
                    chosen = max(first, key=lambda rate: first[rate])
                    runs = [r for r in runs if r["key"][3] == chosen]
                scores = [100 * r["test_accuracy"] for r in runs]
                cells.append(f"{mean(scores):.1f} ± {_spread(scores):.1f} ({len(scores)})" if scores else "")
            if any(cells):
                lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def differences(results: Results, against: str) -> str:
    """Mean of the paired differences of test accuracy, seed by seed, with its standard error, in points."""
    found: dict[tuple[str, int, str], dict[int, float]] = {}
    rates = {key[:3]: 0.0 for key in results.runs}
    for kind in rates:
        first = {k[3]: r["val_accuracy"] for k, r in results.runs.items() if k[:3] == kind and k[4] == 0}
        rates[kind] = max(first, key=lambda rate: first[rate], default=0.0)
    for (dataset, hidden, method, rate, seed), record in results.runs.items():
        if rate == rates[dataset, hidden, method]:
            found.setdefault((dataset, hidden, method), {})[seed] = 100 * record["test_accuracy"]
    lines = [
        f"| data set | hidden | method | test | less {against} | runs |",
        "| --- | ---: | --- | ---: | ---: | ---: |",
    ]
    for (dataset, hidden, method), runs in sorted(found.items()):
        other = found.get((dataset, hidden, against), {})
        pairs = [value - other[seed] for seed, value in runs.items() if seed in other]
        cell = ""
        if method != against and len(pairs) > 1:
            cell = f"{mean(pairs):+.2f} ± {stdev(pairs) / math.sqrt(len(pairs)):.2f}"
        lines.append(
            f"| {dataset} | {hidden} | {method} | {mean(runs.values()):.2f} | {cell} | {len(runs)} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--datasets", default=",".join(PAPER[100]))
    parser.add_argument("--hidden", default="100")
    parser.add_argument("--seeds", default="0-4")
    parser.add_argument("--methods", default=",".join(ADMM + GRADIENT))
    parser.add_argument("--class-prior", choices=CLASS_PRIORS, help="default: of the data set's preset")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/accuracy.jsonl"))
    parser.add_argument("--table", action="store_true", help="only print the table of what is there")
    parser.add_argument("--against", metavar="METHOD", help="only print paired differences from it")
    options = parser.parse_args()
    results, prior = Results(options.out), options.class_prior
    if options.against:
        print(differences(results, options.against))
        return
    if not options.table:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        first, _, last = options.seeds.partition("-")
        seeds = range(int(first), int(last or first) + 1)
        for dataset in options.datasets.split(","):
            cache: dict[Path, Cached] = {}

            def data(seed: int, dataset: str = dataset, cache: dict[Path, Cached] = cache) -> Cached:
                path = prepared(options.data, dataset, seed)
                if path not in cache:
                    cache.clear()
                    cache[path] = Cached(str(path))
                return cache[path]

            for hidden in map(int, options.hidden.split(",")):
                for seed in seeds:
                    for method in options.methods.split(","):
                        if method in ADMM:
                            key = (dataset, hidden, method, 0, seed)
                            results.get(
                                key, lambda h=hidden, m=method, s=seed: run_admm(data(s), h, m, s, prior)
                            )
                        else:
                            run_gradient(results, data, dataset, hidden, method, seed, prior)
    print(table(results))


if __name__ == "__main__":
    main()
