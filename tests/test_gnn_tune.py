"""Choosing the options of a graph network: what is tried, how it is ranked, what is refused."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data_files import ROOT, npz_with_feature
from support import Finished, python, records_of, succeed, words

MPIRun = Callable[..., Finished]

SMALL = "--hidden 8 --epochs 10 --seeds 2"
ROW = re.compile(
    r" *([\d.]+) +([\d.]+|inf) +([+-][\d.]+)(?: ± +[\d.]+)? +(gcn|sage) +(\S+) +(\d) +(\S+) +(\S+)"
)


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "g.h5"
    options = "--synthetic-nodes 300 --synthetic-features 40 --synthetic-train-per-class 8 --parts 3"
    succeed(python("-m", "pdadmm.gnn.prepare", "synthetic", *words(options), "--out", path))
    return path


def rows(out: str) -> list[tuple[str, ...]]:
    return [found.groups() for line in out.splitlines() if (found := ROW.fullmatch(line))]


def test_the_same_choice_on_any_ranks_and_its_command_does_what_was_tried(
    graph: Path, mpirun: MPIRun, tmp_path: Path
) -> None:
    runs = [succeed(mpirun(ranks, "-m", "pdadmm.gnn.tune", graph, *words(SMALL))) for ranks in (1, 3)]
    assert runs[1].out == runs[0].out.replace("\npython -m", "\nmpirun -n 3 python -m")
    assert "models and rates: 12 runs" in runs[0].err
    found = rows(runs[0].out)
    assert len(found) >= 6 + 2 + 2 + 1 and len({row[3:] for row in found}) == len(found)
    scores = [float(row[0]) for row in found]
    assert scores == sorted(scores, reverse=True)
    assert {(row[3], row[4]) for row in found} >= {
        (m, lr) for m in ("gcn", "sage") for lr in ("0.01", "0.001")
    }
    # every option was varied around one that was good
    for column, values in ((5, {"2", "3", "4"}), (6, {"0.2", "0.5", "0.8"}), (7, {"0", "0.0005"})):
        assert {row[column] for row in found} == values
    command = shlex.split(runs[0].out.splitlines()[-1])
    assert command[:4] == ["python", "-m", "pdadmm.gnn.run", str(graph)] and command[-2:] == ["--hidden", "8"]
    tried = []
    for seed in (0, 1):
        out = tmp_path / str(seed)
        given = [*words("--epochs 10 --eval-every 5 --quiet --seed"), str(seed), "--out", str(out)]
        succeed(python(*command[1:], *given))
        tried.append(max(record["val_accuracy"] for record in records_of(out)))
    assert 100 * sum(tried) / 2 == pytest.approx(scores[0], abs=0.006)


def test_what_is_given_is_not_varied(graph: Path) -> None:
    given = "--model sage --lr 0.02 --dropout 0.1 --layers 2 --seeds 1 --hidden 8 --epochs 5 --quiet"
    done = succeed(python("-m", "pdadmm.gnn.tune", graph, *words(given)))
    assert {row[3:7] for row in rows(done.out)} == {("sage", "0.02", "2", "0.1")}
    assert {row[7] for row in rows(done.out)} == {"0", "0.0005"} and not done.err


def test_runs_that_diverge_are_last(graph: Path) -> None:
    given = "--model gcn --dropout 0.5 --layers 2 --weight-decay 0 --seeds 1 --hidden 8 --epochs 10 --quiet"
    found = python("-m", "pdadmm.gnn.tune", graph, *words(given), "--lr", "1e30")
    assert found.code == 2 and found.err.count("\n") == 1 and "every run diverged" in found.err


def test_nan_on_one_rank_ends_all_with_its_reason(tmp_path: Path, mpirun: MPIRun) -> None:
    """The other rank knows nothing of it, so that nobody waits for anybody."""
    npz_with_feature(tmp_path / "huge.npz", float(np.finfo(np.float32).max))
    prepared = [tmp_path / "huge.npz", *words("--parts 2 --partitioner random --out"), tmp_path / "huge.h5"]
    succeed(python("-m", "pdadmm.gnn.prepare", *prepared))
    given = words("--hidden 8 --epochs 5 --seeds 1 --quiet --timeout 60")
    found = mpirun(2, "-m", "pdadmm.gnn.tune", tmp_path / "huge.h5", *given)
    (said,) = [line for line in found.err.splitlines() if line.startswith("pdadmm")]
    assert found.code == 1 and "too large: look for placeholders" in said and not found.out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--seeds 0", "--seeds 0 is too few"),
        (f"--seed {2**63 - 1} --seeds 2", "leaves no room for 2 of them"),
        ("--lr fast", "--lr"),
        ("--model gat", "--model"),
        ("--epochs 0", "--epochs"),
        ("--messages lean8", "--messages"),
        ("--unknown 1", "--unknown"),
        ("nowhere.h5", "no such file"),
    ],
)
def test_bad_input_is_one_line_on_one_rank(graph: Path, mpirun: MPIRun, options: str, said: str) -> None:
    given = words(options) if options == "nowhere.h5" else [graph, *words(options)]
    found = mpirun(2, "-m", "pdadmm.gnn.tune", *given)
    assert found.code == 2 and found.err.count("\n") == 1 and said in found.err and not found.out


def test_a_table_that_finds_no_room_is_told(graph: Path, mpirun: MPIRun) -> None:
    given = "--model gcn --lr 0.01 --layers 2 --dropout 0 --weight-decay 0 --seeds 1 --hidden 4 --epochs 1"
    code = "import os, sys; os.dup2(os.open('/dev/full', os.O_WRONLY), 1); os.execv(sys.executable, "
    code += "[sys.executable, *sys.argv[1:]])"
    found = mpirun(2, "-c", code, "-m", "pdadmm.gnn.tune", graph, *words(f"{given} --quiet"))
    said = [line for line in found.err.splitlines() if line.startswith("pdadmm")]
    assert found.code == 2 and len(said) == 1 and "does not take the table (No space left" in said[0]


def test_help_names_every_option() -> None:
    text = succeed(python("-m", "pdadmm.gnn.tune", "--help")).out
    documentation = (ROOT / "docs" / "gnn.md").read_text(encoding="utf-8")
    options = set(re.findall(r"--[a-z-]+", text)) - {"--help", "--version"}
    assert len(options) >= 13 and all(option in documentation for option in options)
