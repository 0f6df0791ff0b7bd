"""Test accuracy on published data sets, with the presets, at 16 and at 10 layers.

Seeds run on one rank: the iterates do not depend on the number of ranks, which a run on 16 confirms.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from support import Finished, python, records_of, succeed, summary_of, weights_of, without_times

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def train(features: Path, folder: Path, *options: str) -> Path:
    """One run on one rank; evaluated at the end of a stage only."""
    fixed = ["--eval-every", "100", "--quiet", "--out", folder]
    succeed(python("-m", "pdadmm.run", features, *options, *fixed, timeout=600))
    return folder


def accuracies(features: list[Path], folder: Path, *options: str) -> list[float]:
    """Test accuracy of the final iterate; run i has seed i and trains on file i, a core a run."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        runs = [
            pool.submit(train, path, folder / str(seed), *options, "--seed", str(seed))
            for seed, path in enumerate(features)
        ]
    return [float(summary_of(run.result())["test_accuracy"]) for run in runs]


@pytest.mark.parametrize(
    ("codec", "bits", "bar"),
    [("float32", 32, 0.834), ("delta", 4, 0.834), ("delta", 2, 0.834), ("grid", 8, 0.832)],
)
def test_cora_at_16_layers(
    codec: str, bits: int, bar: float, prepared: Callable[..., Path], tmp_path: Path
) -> None:
    options = ["--layers", "16", "--codec", codec, "--bits", str(bits)]
    found = accuracies([prepared("cora")] * 3, tmp_path, *options)
    print(f"cora {codec} {bits}: {found}, mean {np.mean(found):.4f}")
    assert np.mean(found) >= bar, found


@pytest.mark.parametrize(
    ("name", "runs", "bar"),
    [
        ("citeseer", 3, 0.738),
        ("amazon-photo", 3, 0.905),
        ("amazon-computers", 3, 0.835),
        ("coauthor-cs", 1, 0.911),  # a run of these takes as long as several of the others
        ("coauthor-physics", 1, 0.932),
    ],
)
def test_other_data_sets_at_10_layers(
    name: str, runs: int, bar: float, prepared: Callable[..., Path], tmp_path: Path
) -> None:
    splits = [prepared(name, seed) for seed in range(runs)]
    found = accuracies(splits, tmp_path, "--layers", "10", "--codec", "delta", "--bits", "4")
    print(f"{name}: {found}, mean {np.mean(found):.4f}")
    assert np.mean(found) >= bar, found


def test_cora_on_16_ranks_is_bit_for_bit_that_on_one(
    prepared: Callable[..., Path], mpirun: Callable[..., Finished], tmp_path: Path
) -> None:
    options = ["--codec", "delta", "--bits", "2", "--seed", "1"]
    one = train(prepared("cora"), tmp_path / "one", "--layers", "16", *options)
    many = tmp_path / "many"
    command = ["-m", "pdadmm.run", prepared("cora"), *options, "--eval-every", "100", "--quiet"]
    succeed(mpirun(16, *command, "--out", many, timeout=300))
    assert summary_of(many)["ranks"] == 16
    a, b = ([*map(without_times, records_of(folder))] for folder in (one, many))
    assert a == b
    for (W, c), (V, d) in zip(weights_of(one / "model.h5"), weights_of(many / "model.h5"), strict=True):
        np.testing.assert_array_equal(W, V)
        np.testing.assert_array_equal(c, d)
