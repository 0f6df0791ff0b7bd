"""Seconds per iteration and exposed communication on 100 Mbit/s, 1 and 10 Gbit/s, by codec and overlap.

    python benchmarks/networks.py [--hosts 2,4] [--rates 100e6,1e9,10e9] [--codecs float32,delta8,...]
        [--nodes 20000,2000] [--overlap both|yes|no] [--layers-per-host 1] [--out FILE.json]

Hosts are network namespaces on this machine (see hosts.py): Linux, root and iproute2 are needed, and
where they are missing the script says so and ends with 0. One rank a host, one thread a rank. The
features are random with class means, of the size asked for. Combinations already in the results
file are not run again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from hosts import Hosts, reason_not_to

from pdadmm.files import write_json
from pdadmm.profile.figures import figures
from pdadmm.profile.load import load

CODECS = ("float32", "delta8", "delta4", "delta2", "delta1")
CLASSES = 10
WARM_UP = 3


def write_random_features(path: Path, nodes: int, columns: int = 500, seed: int = 0) -> None:
    """A prepared file of `nodes` training nodes whose classes differ in their means."""
    draw = np.random.default_rng(seed)
    rest = 500
    rows = nodes + 2 * rest
    y = draw.integers(0, CLASSES, rows)
    centres = draw.standard_normal((CLASSES, columns)).astype(np.float32)
    x = draw.standard_normal((rows, columns)).astype(np.float32)
    x += 0.15 * centres[y]
    with h5py.File(path, "w") as file:
        file.attrs.update(
            schema="pdadmm-features",
            schema_version=1,
            dataset="random",
            title="class means and noise",
            citation="-",
            licence="generated",
            feature_norm="none",
            nodes="split",
            features_per_hop=columns // 5,
            hops=4,
            num_classes=CLASSES,
            num_nodes=rows,
            n_train=nodes,
            n_val=rest,
            n_test=rest,
            seed=seed,
        )
        file["x"], file["y"], file["node_id"] = x, y.astype(np.int64), np.arange(rows)


def codec_options(name: str) -> list[str]:
    """``delta4`` as options of a run."""
    codec = name.rstrip("0123456789") if name != "float32" else name
    bits = name[len(codec) :]
    return ["--codec", codec, *(["--bits", bits] if bits else [])]


def measure(
    hosts: Hosts, features: Path, codec: str, overlap: bool, layers: int, hidden: int, iterations: int
) -> dict[str, Any]:
    """One run's figures."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = [
            "-m", "pdadmm.run", features, "--layers", layers, "--stages", layers, "--hidden", hidden,
            "--iterations", iterations, "--eval-every", iterations, "--threads", 1, "--quiet",
            "--out", folder, *codec_options(codec), *([] if overlap else ["--no-overlap"]),
        ]  # fmt: skip
        hosts.mpirun(*map(str, arguments), timeout=1500)
        profile = load(folder)
        found = figures(profile, codec)
        summary = json.loads((Path(folder) / "summary.json").read_text())
    medians = [rank["stages"][-1]["iteration_seconds"]["median"] for rank in profile["ranks"]]
    return {
        "seconds_per_iteration": max(medians),
        "mean_seconds_per_iteration": found.iteration,
        "exposed_share": found.exposed_share,
        "wait_share": found.wait_share,
        "load_balance": found.load_balance,
        "parallel_efficiency": found.parallel_efficiency,
        "bytes_per_iteration": found.bytes_per_iteration,
        "bandwidths": [link.bandwidth for link in found.links],
        "train_accuracy": summary["train_accuracy"],
        "test_accuracy": summary["test_accuracy"],
        "kernels": summary["kernels"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--hosts", default="2,4")
    parser.add_argument("--rates", default="100e6,1e9,10e9", help="bits per second")
    parser.add_argument("--codecs", default=",".join(CODECS))
    parser.add_argument("--nodes", default="20000,2000")
    parser.add_argument("--hidden", type=int, default=500)
    parser.add_argument("--layers-per-host", type=int, default=1)
    parser.add_argument("--iterations", type=int, default=WARM_UP + 6)
    parser.add_argument("--overlap", choices=("both", "yes", "no"), default="both")
    parser.add_argument("--wrapper", default="", help="command that starts every rank, e.g. 'chrt -r 1'")
    parser.add_argument("--out", default="benchmarks/results/networks.json")
    o = parser.parse_args()
    reason = reason_not_to()
    if reason:
        print(f"skipped: {reason}")
        return 0
    # the ranks start in other namespaces, but with this environment
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).resolve().parents[1]), *sys.path[:0]])
    out = Path(o.out)
    results: list[dict[str, Any]] = json.loads(out.read_text())["results"] if out.exists() else []
    done = {json.dumps(r["combination"], sort_keys=True) for r in results}
    overlaps = {"both": (True, False), "yes": (True,), "no": (False,)}[o.overlap]
    with tempfile.TemporaryDirectory() as folder:
        for nodes, count, rate in itertools.product(
            (int(n) for n in o.nodes.split(",")),
            (int(n) for n in o.hosts.split(",")),
            (float(r) for r in o.rates.split(",")),
        ):
            features = Path(folder) / f"{nodes}.h5"
            if not features.exists():
                write_random_features(features, nodes)
            with Hosts(count, rate, o.wrapper) as hosts:
                for overlap, codec in itertools.product(overlaps, o.codecs.split(",")):
                    layers = count * o.layers_per_host
                    combination = {
                        "hosts": count, "layers": layers, "rate": rate, "codec": codec, "overlap": overlap,
                        "nodes": nodes, "hidden": o.hidden,
                    }  # fmt: skip
                    if json.dumps(combination, sort_keys=True) in done:
                        continue
                    start = time.perf_counter()
                    try:
                        found = measure(hosts, features, codec, overlap, layers, o.hidden, o.iterations)
                    except subprocess.CalledProcessError as error:
                        print(f"{combination}: failed\n{error.stderr[-2000:]}", file=sys.stderr)
                        continue
                    results.append({"combination": combination, **found})
                    out.parent.mkdir(parents=True, exist_ok=True)
                    write_json(out, {"benchmark": "networks", "results": results})
                    print(
                        f"{nodes} nodes, {count} hosts, {rate / 1e6:.0f} Mbit/s, {codec}, "
                        f"{'overlap' if overlap else 'no overlap'}: {found['seconds_per_iteration']:.3f} s, "
                        f"exposed {found['exposed_share']:.1%}  ({time.perf_counter() - start:.0f} s)",
                        flush=True,
                    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
