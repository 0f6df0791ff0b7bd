"""Compare operators of the inputs by validation accuracy: how those of the registry were chosen.

    python benchmarks/operators.py --raw DIR --work DIR [--datasets cora,…] [--operators "LIST LIST …"]
        [--feature-norm row] [--seeds 0-4] [--json FILE.jsonl] [-- OPTIONS OF pdadmm.run]
    python benchmarks/operators.py --table [--json FILE.jsonl]

Prepares every list of operators for every seed (which draws the split where none is published) in the
folder --work, trains on it as ``benchmarks/tune.py`` does (10 layers, hidden 100, delta 4 bits, the set's
preset for powers:4, but --hop-decay 1 where nothing else is given, and --class-prior train), and appends to
FILE.jsonl; what is there is not run again. The table is ranked by validation accuracy; test accuracy has no
say. Differences are paired, seed by seed, from the data set's best, with their standard errors.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from tune import Cached, train

from pdadmm.datasets.registry import REGISTRY
from pdadmm.prepare import main as prepare

DATASETS = "cora,citeseer,amazon-computers,amazon-photo,coauthor-cs,coauthor-physics"
LISTS = "powers:4 power:2 ppr:0.2 ppr:0.1 ppr:0.4,ppr:0.1 x,ppr:0.2 x,heat:2"
RESULTS = Path(__file__).parent / "results" / "operators.jsonl"
KEPT = ("val_accuracy", "val_loss", "test_accuracy", "train_accuracy", "seconds")


def key(record: dict[str, Any]) -> tuple[Any, ...]:
    norm = record.get("feature_norm", "none")
    return record["dataset"], record["operators"], norm, record["options"], record["seed"]


def read(path: Path) -> dict[tuple[Any, ...], dict[str, Any]]:
    lines = path.read_text().splitlines() if path.exists() else []
    return {key(record): record for record in map(json.loads, lines)}


def _preset(dataset: str, fixed: list[str]) -> list[str]:
    """The preset for the paper's inputs, without what is given: that of chosen operators came afterwards."""
    found = []
    for name, value in REGISTRY[dataset].preset.items():
        option = "--" + name.replace("_", "-")
        if option not in fixed:
            found += [option, str(value)]
    return found


def search(options: argparse.Namespace, fixed: list[str]) -> None:
    known = read(options.json)
    if "--hop-decay" not in fixed:
        fixed = ["--hop-decay", "1", *fixed]
    own, norm = " ".join(fixed), options.feature_norm
    first, _, last = options.seeds.partition("-")
    for dataset in options.datasets.split(","):
        for operators in options.operators.split():
            for seed in range(int(first), int(last or first) + 1):
                if (dataset, operators, norm, own, seed) in known:
                    continue
                path = options.work / f"{dataset}-{operators}-{norm}-s{seed}.h5"
                arguments = ["--operators", operators, "--feature-norm", norm]
                arguments += ["--seed", str(seed), "--out", str(path)]
                if not path.exists() and prepare([dataset, "--raw", str(options.raw), *arguments]):
                    sys.exit(2)
                given = ["--layers", "10", "--class-prior", "train", *_preset(dataset, fixed), *fixed]
                found = train(Cached(str(path)), {}, given, seed)
                record = {"dataset": dataset, "operators": operators, "feature_norm": norm}
                record |= {"options": own, "seed": seed, **{name: found[name] for name in KEPT}}
                with options.json.open("a") as file:
                    file.write(json.dumps(record) + "\n")


def _shown(norm: str, options: str) -> str:
    """Options without those that nearly all have."""
    own = f"{options} ".removeprefix("--hop-decay 1 ")
    return own.strip() if norm == "none" else f"--feature-norm {norm} {own}".strip()


def table(path: Path) -> str:
    """Markdown, a table a data set."""
    groups: dict[tuple[str, str, str, str], dict[int, dict[str, Any]]] = {}
    for (dataset, operators, norm, options, seed), record in read(path).items():
        groups.setdefault((dataset, operators, norm, options), {})[seed] = record
    lines = [
        "| data set | operators | options | validation | from the best | test | runs |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for dataset in DATASETS.split(","):
        ours = [group for group in groups if group[0] == dataset]

        def value(group: tuple[str, str, str, str], name: str) -> float:
            return mean(record[name] for record in groups[group].values())

        ours.sort(key=lambda group: (-round(value(group, "val_accuracy"), 6), value(group, "val_loss")))
        for group in ours:
            runs, best = groups[group], groups[ours[0]]
            pairs = [100 * (runs[s]["val_accuracy"] - best[s]["val_accuracy"]) for s in runs if s in best]
            error = stdev(pairs) / math.sqrt(len(pairs)) if len(pairs) > 1 else math.nan
            behind = "" if group == ours[0] else f"{mean(pairs):+.2f} ± {error:.2f}"
            lines.append(
                f"| {dataset} | `{group[1]}` | {_shown(*group[2:])} | "
                f"{100 * value(group, 'val_accuracy'):.2f} | {behind} | "
                f"{100 * value(group, 'test_accuracy'):.2f} | {len(runs)} |"
            )
    return "\n".join(lines)


def main() -> None:
    given, fixed = sys.argv[1:], []
    if "--" in given:
        split = given.index("--")
        given, fixed = given[:split], given[split + 1 :]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--raw", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--datasets", default=DATASETS)
    parser.add_argument("--operators", default=LISTS, help="lists, separated by spaces")
    parser.add_argument("--feature-norm", default="none", choices=("none", "row"), help="of pdadmm.prepare")
    parser.add_argument("--seeds", default="0-4")
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="only print the table of what is there")
    options = parser.parse_args(given)
    if not options.table:
        options.work.mkdir(parents=True, exist_ok=True)
        search(options, fixed)
    print(table(options.json))


if __name__ == "__main__":
    main()
