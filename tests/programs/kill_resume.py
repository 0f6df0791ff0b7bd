"""Kill a run with kill -9 at a random iteration, resume it, and compare it with one that was left alone.

    python tests/programs/kill_resume.py FILE.h5 [--rounds 20] [--seed 0]

Every round draws the number of ranks (1 to 16), the victim and the iteration, and takes the next codec.
The resumed run must equal the uninterrupted one bit for bit: weights, predictions, every line of
metrics.jsonl. A copy of the killed run, resumed on another number of ranks, must have the same
objective to 1e-5 and the same predictions. Ends with 1 when anything differs.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from support import (
    CODECS,
    Finished,
    find_mpirun,
    records_of,
    start,
    summary_of,
    weights_of_run,
    without_times,
)

from pdadmm import Model
from pdadmm.inputs.feature_file import FeatureFile

LAYERS, STAGES, ITERATIONS, EVERY = 16, "5,16", 15, 4


def mpirun(ranks: int, *arguments: str | Path) -> Finished:
    program = find_mpirun()
    assert program is not None, "there is no mpirun"
    return start([program, "-n", str(ranks), sys.executable, *map(str, arguments)], timeout=600)


def one_round(number: int, seed: int, features: Path, test_x: np.ndarray) -> str:
    """Run a round; returns what it did. AssertionError when a promise is broken."""
    rng = random.Random(1000 * seed + number)
    codec, bits = CODECS[(number + seed) % len(CODECS)]
    ranks, others = rng.sample([1, 2, 3, 4, 5, 6, 8, 11, 16], 2)
    total = ITERATIONS * len(STAGES.split(","))
    at, victim = rng.randint(EVERY + 1, total), rng.randrange(ranks)
    options = f"--layers {LAYERS} --stages {STAGES} --hidden 24 --iterations {ITERATIONS} --eval-every 3 "
    options += f"--quiet --codec {codec} --bits {bits} --seed {number}"
    common = [features, *options.split()]
    with tempfile.TemporaryDirectory() as name:
        whole, killed, moved = (Path(name) / part for part in ("whole", "killed", "moved"))
        found = mpirun(ranks, "-m", "pdadmm.run", *common, "--out", whole)
        assert found.code == 0, found.err
        program = Path(__file__).with_name("faulty_rank.py")
        given = [*common, "--out", killed, "--checkpoint-every", str(EVERY)]
        found = mpirun(ranks, program, "kill", str(victim), str(at), *given)
        # killed in the last iteration it may have come to its end before
        assert found.code != 0 or at == total, f"rank {victim} was killed, but the run ended with 0"
        shutil.copytree(killed, moved)
        for folder, count in ((killed, ranks), (moved, others)):
            found = mpirun(count, "-m", "pdadmm.run", *common, "--out", folder, "--resume")
            assert found.code == 0, found.err
            assert "warning" not in found.err, found.err
        a, b, c = (summary_of(folder) for folder in (whole, killed, moved))
        assert a["objective"] == b["objective"]
        assert abs(c["objective"] / a["objective"] - 1) < 1e-5
        for (W, bias), (V, other) in zip(weights_of_run(whole), weights_of_run(killed), strict=True):
            assert np.array_equal(W, V)
            assert np.array_equal(bias, other)
        for one, two in zip(records_of(whole), records_of(killed), strict=True):
            assert without_times(one) == without_times(two)
        expected = Model.load(whole / "model.h5").predict(test_x)
        for folder in (killed, moved):
            assert np.array_equal(Model.load(folder / "model.h5").predict(test_x), expected)
        change = abs(c["objective"] / a["objective"] - 1)
    return (
        f"{codec} {bits} bits, rank {victim} of {ranks} killed in iteration {at} of {total}: resumed bit for "
        f"bit; on {others} ranks the objective differs by {change:.1g}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("features", type=Path)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with FeatureFile(given.features) as features:
        test_x = features.x("test")
    failed = 0
    for number in range(given.rounds):
        begin = time.perf_counter()
        try:
            text = one_round(number, given.seed, given.features.resolve(), test_x)
        except AssertionError as error:
            failed, text = failed + 1, f"FAILED: {str(error)[-600:]}"
        print(f"round {number + 1}: {text} ({time.perf_counter() - begin:.0f} s)", flush=True)
    print(f"{given.rounds - failed} of {given.rounds} rounds equal the uninterrupted run")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
