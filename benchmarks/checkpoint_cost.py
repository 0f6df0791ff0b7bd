"""Seconds and bytes of a checkpoint, on one rank: what --checkpoint-every costs.

    python benchmarks/checkpoint_cost.py [--nodes 20000] [--hidden 500] [--layers 4] [--codec delta]
        [--bits 4] [--repeat 3] [--out DIR] [--json FILE]

Builds the state of a stage of equal layers, hidden x hidden, writes it with
:func:`pdadmm.runtime.checkpoint.write` and reads it back. The state is all that an iteration hands to the
next, each array once although both ends of a coupling hold some: the variables p, z, q, u, W and b, the
residual M, and the decoded copies where the codec is lossy. The ratio without M is printed too. The ranks
of a node write their files at the same time, so that its disk, not a rank, sets the pace."""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI

from pdadmm.admm import options as config
from pdadmm.admm.activations import make_activation
from pdadmm.admm.growth import random_layer
from pdadmm.admm.layer import Hyper
from pdadmm.admm.passes.reference import ReferencePasses
from pdadmm.admm.stage import Plan, Stage
from pdadmm.codec import Codec, make_codec
from pdadmm.comm.waiter import Waiter
from pdadmm.runtime import checkpoint
from pdadmm.trace.clock import Clock


def make_stage(nodes: int, hidden: int, layers: int, codec: Codec, waiter: Waiter) -> Stage:
    """A started stage of `layers` layers; its output has `hidden` classes too."""
    rng = np.random.default_rng(0)
    relu = make_activation("relu")
    owned = [
        random_layer(i, hidden, hidden, relu if i < layers else None, seed=0) for i in range(1, layers + 1)
    ]
    stage = Stage(Plan(layers, layers, [range(1, layers + 1)], 0), owned, waiter, Clock())
    x = rng.standard_normal((nodes, hidden), np.float32)
    hyper = Hyper(0.01, 0.1, 0.01, "gradient", "exact", 25, "cross_entropy")
    stage.start(x, rng.integers(0, hidden, nodes), nodes, lambda _: codec, hyper, ReferencePasses(), 0)
    return stage


def state_bytes(stage: Stage) -> int:
    """Bytes of the variables, the residual and the decoded copies, each counted once."""
    total = 0
    for layer in stage.layers:
        total += layer.W.nbytes + layer.b.nbytes + layer.z.nbytes + layer.M.nbytes
        if layer.above is not None:
            arrays = (
                4 - layer.above.codec.lossless
            )  # q, u, the decoded p and, where it differs, the decoded q
            total += arrays * layer.above.own.nbytes
        if layer.below is not None and not layer.below.codec.lossless:
            total += layer.below.own.nbytes  # p itself
    return total


def measure(stage: Stage, repeat: int, folder: Path, waiter: Waiter) -> dict[str, Any]:
    arrays = {layer.position: layer.state() for layer in stage.layers}
    write, read = [], []
    for iteration in range(1, repeat + 1):
        begin = time.perf_counter()
        checkpoint.write(folder, iteration, {}, arrays, waiter)
        write.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        found = checkpoint.newest(folder, waiter, print)
        for position, named in arrays.items():
            for name, array in named.items():
                assert np.array_equal(found.layers[position][name], array)
        read.append(time.perf_counter() - begin)
        stored = sum(p.stat().st_size for p in found.path.iterdir())
    return {"bytes": stored, "seconds_write": min(write), "seconds_verify_and_read": min(read)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--nodes", type=int, default=20000)
    parser.add_argument("--hidden", type=int, default=500)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--codec", choices=tuple(config.CODECS), default="delta")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--out", type=Path, help="folder on the disk to measure; default: a temporary one")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    waiter = Waiter(MPI.COMM_SELF)
    codec = make_codec(given.codec, given.bits, (0.0, 1.0))
    stage = make_stage(given.nodes, given.hidden, given.layers, codec, waiter)
    folder = Path(tempfile.mkdtemp(dir=given.out))
    try:
        found = measure(stage, given.repeat, folder, waiter)
    finally:
        shutil.rmtree(folder)
    state = state_bytes(stage)
    result = {
        **{name: getattr(given, name) for name in ("nodes", "hidden", "layers", "codec", "bits")},
        "state_bytes": state,
        **found,
        "ratio": found["bytes"] / state,
        "ratio_without_residual": found["bytes"] / (state - sum(layer.M.nbytes for layer in stage.layers)),
    }
    print(
        f"{given.nodes} nodes x {given.hidden} x {given.layers} layers, {given.codec}: state "
        f"{state / 1e6:.1f} MB, checkpoint {found['bytes'] / 1e6:.1f} MB ({result['ratio']:.3f} of it, "
        f"{result['ratio_without_residual']:.3f} without M), "
        f"written in {found['seconds_write']:.2f} s, verified and read in "
        f"{found['seconds_verify_and_read']:.2f} s; a layer: {found['bytes'] / 1e6 / given.layers:.1f} MB, "
        f"{found['seconds_write'] / given.layers:.2f} s"
    )
    if given.json:
        given.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
