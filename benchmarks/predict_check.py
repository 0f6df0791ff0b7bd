"""Predicted against measured iteration times on networks, codecs and rank counts that were not fitted on.

    python benchmarks/predict_check.py [--nodes 1500] [--wrapper COMMAND] [--out FILE.json]

One run of 4 layers on 2 hosts without a limit, delta 4 bit, is profiled; everything else is
predicted from it and then measured. Hosts are network namespaces (see hosts.py): where they cannot
be made the script says so and ends with 0. A link's bandwidth is taken as its limit less the
headers of TCP, IP and Ethernet (1448 of 1514 bytes); its latency as 50 µs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hosts import Hosts, reason_not_to
from networks import codec_options, write_random_features
from rich.console import Console
from rich.table import Table

from pdadmm.files import write_json
from pdadmm.profile.load import load
from pdadmm.profile.predict import Scenario, passes_named, predict
from pdadmm.profile.simulate import Network

LAYERS, HIDDEN, ITERATIONS = 4, 500, 24
PAYLOAD = 1448 / 1514
LATENCY = 50e-6

#: ranks, bits per second, codec, overlap
COMBINATIONS: tuple[tuple[int, float, str, bool], ...] = (
    (2, 20e6, "float32", True),
    (2, 20e6, "delta2", True),
    (2, 20e6, "delta8", True),
    (2, 20e6, "delta8", False),
    (2, 10e6, "delta1", True),
    (2, 100e6, "float32", True),
    (2, 100e6, "float32", False),
    (2, 50e6, "delta8", False),
    (2, 100e6, "affine8", True),
    (4, 20e6, "float32", True),
    (4, 20e6, "delta4", True),
    (1, 1e9, "delta2", True),
)


def train(
    ranks: int, rate: float | None, codec: str, overlap: bool, features: Path, folder: Path, wrapper: str
) -> dict[str, Any]:
    """Profile of a run."""
    arguments = [
        "-m", "pdadmm.run", features, "--layers", LAYERS, "--stages", LAYERS, "--hidden", HIDDEN,
        "--iterations", ITERATIONS, "--eval-every", 1000, "--threads", 1, "--quiet", "--out", folder,
        *codec_options(codec), *([] if overlap else ["--no-overlap"]),
    ]  # fmt: skip
    with Hosts(ranks, rate, wrapper) as hosts:
        hosts.mpirun(*map(str, arguments), timeout=900)
    return load(folder)


def iteration(profile: dict[str, Any], statistic: str) -> float:
    """Seconds of an iteration on the slowest rank."""
    return float(max(rank["stages"][-1]["iteration_seconds"][statistic] for rank in profile["ranks"]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--nodes", type=int, default=1500)
    parser.add_argument("--wrapper", default="", help="command that starts every rank, e.g. 'chrt -r 1'")
    parser.add_argument(
        "--statistic",
        choices=("median", "least"),
        default="median",
        help="of the iterations; least: shared machine",
    )
    parser.add_argument(
        "--again",
        action="store_true",
        help="profile anew before every measurement, where the machine is shared",
    )
    parser.add_argument("--out", default="benchmarks/results/predict_check.json")
    o = parser.parse_args()
    reason = reason_not_to()
    if reason:
        print(f"skipped: {reason}")
        return 0
    os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[1])
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        features = folder / "random.h5"
        write_random_features(features, o.nodes)
        source = train(2, None, "delta4", True, features, folder / "source", o.wrapper)
        passes = passes_named(source["run"]["kernels"])
        for i, (ranks, rate, name, overlap) in enumerate(COMBINATIONS):
            codec = name.rstrip("0123456789") if name != "float32" else name
            bits = int(name[len(codec) :]) if name != codec else None
            if o.again and i:
                source = train(2, None, "delta4", True, features, folder / f"source{i}", o.wrapper)
            network = Network(LATENCY, rate / 8 * PAYLOAD, overlap)
            predicted = predict(source, Scenario(network, ranks, codec, bits), passes, o.statistic)
            try:
                profile = train(ranks, rate, name, overlap, features, folder / str(i), o.wrapper)
            except subprocess.CalledProcessError as error:
                print(
                    f"{ranks} ranks, {rate:g} bit/s, {name}: failed\n{error.stderr[-2000:]}", file=sys.stderr
                )
                continue
            measured = iteration(profile, o.statistic)
            rows.append(
                {
                    "ranks": ranks,
                    "rate": rate,
                    "codec": name,
                    "overlap": overlap,
                    "profiled": iteration(source, o.statistic),
                    "predicted": predicted.iteration,
                    "measured": measured,
                    "error": predicted.iteration / measured - 1,
                    "predicted_exposed_share": predicted.exposed_share,
                }
            )
            print(rows[-1], flush=True)
    table = Table(title="iteration, predicted and measured")
    for column in ("ranks", "Mbit/s", "codec", "overlap", "predicted", "measured", "error"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            str(row["ranks"]),
            f"{row['rate'] / 1e6:g}",
            row["codec"],
            "yes" if row["overlap"] else "no",
            f"{row['predicted']:.3f} s",
            f"{row['measured']:.3f} s",
            f"{row['error']:+.1%}",
        )
    Console(width=100).print(table)
    middle = statistics.median(abs(row["error"]) for row in rows)
    print(f"median error {middle:.1%} over {len(rows)} combinations")
    out = Path(o.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(
        out,
        {
            "benchmark": "predict_check",
            "nodes": o.nodes,
            "statistic": o.statistic,
            "median_error": middle,
            "results": rows,
        },
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
