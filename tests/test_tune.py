"""The command that chooses operators: its table, the commands that it prints, its bad input."""

from __future__ import annotations

import math
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from data_files import ROOT, idx_bytes, npz_arrays, write_npz
from support import python, succeed, summary_of

from pdadmm.admm import trial
from pdadmm.admm.trial import Candidate
from pdadmm.runtime.trials import Outcome, ranked
from pdadmm.tune import _LISTS, main

SMALL = ["--layers", "3", "--hidden", "8", "--iterations", "6", "--seeds", "2"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("PMI_RANK", "PMI_SIZE", "PMIX_RANK", "OMPI_COMM_WORLD_SIZE", "MPI_LOCALNRANKS"):
        monkeypatch.delenv(name, raising=False)


def test_candidates_are_ranked_and_the_commands_printed_do_what_was_tried(tmp_path: Path) -> None:
    write_npz(tmp_path / "mine.npz")
    done = succeed(python("-m", "pdadmm.tune", "mine.npz", *SMALL, "--try", "x", "--try", "ppr:.2,power:2"))
    lines = done.out.splitlines()
    pattern = (
        r" *([\d.]+) +[\d.]+ +([-+][\d.]+) ± +[\d.]+  (\S+) +(\w+) +(\w+) +([\d.]+) +([-\de.]+)  (train|val)"
    )
    found = [row for row in (re.fullmatch(pattern, line) for line in lines) if row]
    assert len(found) == len(lines) - 4
    tried = [row.groups()[2:7] for row in found]
    with_shares = [row.groups()[2:7] for row in found if row[8] == "val"]
    assert len(with_shares) == 1 and tried.count(with_shares[0]) == 2
    assert len(set(tried)) == len(tried) - 1
    lists = {"x", "ppr:0.2,power:2"}
    assert {(a, "none", *b) for a in lists for b in (("none", "1", "0.01"), ("hellinger", "1", "0.0003"))} < {
        *tried
    }
    penalties = {"3e-05", "0.0001", "0.0003", "0.001", "0.003", "0.01"}
    complete = [
        row for row in {row[:4] for row in tried} if {r[4] for r in tried if r[:4] == row} == penalties
    ]
    assert {row[0] for row in complete if row[1] == "none"} == lists
    assert {row[:4] for row in tried if row[1] == "row"} >= {(a, "row", "hellinger", "1") for a in lists}
    assert {row[2] for row in tried if row[1] == "row"} == {"hellinger"}
    assert tried[0][:4] in complete, "the best with every penalty"
    decays = {row[3] for row in tried if row[0] != "x"}
    assert {row[3] for row in tried if row[0] == "x"} == {"1"} and decays in (
        {"1"},
        {"1", "0.65", "1.5", "2"},
    )
    scores = [float(row[1]) for row in found]
    assert scores == sorted(scores, reverse=True)
    assert [float(row[2]) for row in found] == pytest.approx([s - scores[0] for s in scores], abs=0.011)
    assert done.err == "pdadmm.tune: warning: mine.npz: edges have directions; each is taken both ways\n"
    prepare, run = (shlex.split(line)[1:] for line in lines[-2:])
    assert prepare[:3] == ["-m", "pdadmm.prepare", "mine.npz"]
    assert prepare[prepare.index("--operators") + 1] == found[0][3]
    assert prepare[prepare.index("--feature-norm") + 1] == found[0][4]
    values = [run[run.index(name) + 1] for name in ("--input-norm", "--hop-decay", "--mu")]
    assert values == list(found[0].groups()[4:7])
    assert run[run.index("--class-prior") + 1] == found[0][8]
    succeed(python(*prepare))
    succeed(python(*run, "--iterations", "6", "--quiet", "--out", "out"))
    assert summary_of(tmp_path / "out")["operators"] == found[0][3]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.npz", "out", "tuned.h5"]


def test_negative_features_are_tried_without_roots_and_what_comes_apart_is_last(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = npz_arrays()["attr_data"]
    values[0] = -1
    write_npz(tmp_path / "mine.npz", attr_data=values)
    real = trial.Trainer.run

    def comes_apart(self: trial.Trainer) -> bool:
        if self.widths[0] == 7:
            raise trial.RunError("diverged")
        return real(self)

    monkeypatch.setattr(trial.Trainer, "run", comes_apart)
    given = ["--try", "x", "--try", "powers:1", "--feature-norm", "row"]
    assert main(["mine.npz", *SMALL, *given]) == 0
    tried = [line.split()[-6:] for line in capsys.readouterr().out.splitlines()[1:-3]]
    assert {tuple(row[1:3]) for row in tried} == {("row", "none")}
    lists = [row[0] for row in tried]
    assert lists[-6:] == ["x"] * 6 and set(lists[:-6]) == {"powers:1"} and len(lists) > 12


def test_measurements_are_standardised(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Features that say the class, in units that hide it."""
    random = np.random.default_rng(0)
    labels = npz_arrays()["labels"]
    features = np.eye(3)[labels] + 0.2 * random.normal(size=(60, 3))
    given = dict.fromkeys(("attr_data", "attr_indices", "attr_indptr", "attr_shape"))
    units = features * [1e-3, 1, 10] + np.array([0, 50, 0])
    write_npz(tmp_path / "mine.npz", **given, attr_matrix=units.astype(np.float32))
    assert main([str(tmp_path / "mine.npz"), *SMALL, "--try", "x", "--try", "powers:1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines[1:-3]]
    norms = {(row[-5], row[-4]) for row in rows}
    assert norms >= {("none", "none"), ("standard", "none")} and ("standard", "hellinger") not in norms
    assert rows[0][-5] == "standard" and float(rows[0][0]) > 80
    assert max(float(row[0]) for row in rows if row[-5] != "standard") < float(rows[0][0]) - 10
    assert "--feature-norm standard" in lines[-2]


def test_ties_go_to_the_lower_loss_and_differences_are_paired() -> None:
    a, b, c = (Candidate(name, "none", "none", 0.01, 1.0) for name in ("x", "power:1", "power:2"))
    outcomes = {
        a: [Outcome(0.5, 1.0), Outcome(0.7, 1.0)],
        b: [Outcome(0.6, 0.9), Outcome(0.6, 0.9)],
        c: [Outcome(0.4, 0.1), Outcome(0.6, 0.1)],
    }
    table = ranked(outcomes)
    assert [row[0] for row in table] == [b, a, c]
    np.testing.assert_allclose([row[3] for row in table], [0, 0, -0.1], atol=1e-12)
    np.testing.assert_allclose([row[4] for row in table], [0, 0.1, 0.1])


def test_what_diverged_once_comes_last() -> None:
    a, b = (Candidate(name, "none", "none", 0.01, 1.0) for name in ("x", "power:1"))
    outcomes = {a: [Outcome(0.9, 0.1), Outcome(0.0, math.inf)], b: [Outcome(0.3, 1.0), Outcome(0.3, 1.0)]}
    assert [row[0] for row in ranked(outcomes)] == [b, a]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("g.npz --try ppr:2", "--try ppr:2: α is outside"),
        ("g.npz --try", "expected one argument"),
        ("g.npz --seeds 0", "--seeds 0 is too few"),
        (f"g.npz --seed {2**63 - 1} --seeds 2", "leaves no room for 2 of them"),
        ("g.npz --layers -1", "--layers"),
        ("g.npz --hidden 0", "--hidden"),
        ("g.npz --iterations 0", "--iterations"),
        ("nowhere.npz", "no such file"),
        ("unknown", "unknown data set"),
        ("", "required"),
        ("mnist --raw raw --no-verify", "without a graph"),
    ],
)
def test_bad_input_is_one_line_exit_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, message: str
) -> None:
    write_npz(tmp_path / "g.npz")
    if "mnist" in command:
        images, labels = np.zeros((70, 4, 4)), np.arange(70) % 10
        for part, first, last in (("train", 0, 60), ("t10k", 60, 70)):
            (tmp_path / "raw").mkdir(exist_ok=True)
            (tmp_path / f"raw/{part}-images-idx3-ubyte").write_bytes(idx_bytes(images[first:last]))
            (tmp_path / f"raw/{part}-labels-idx1-ubyte").write_bytes(idx_bytes(labels[first:last]))
    assert main(command.split()) == 2
    out = capsys.readouterr()
    assert (out.out, out.err.count("\n")) == ("", 1)
    assert message in out.err


def test_every_option_and_list_is_documented(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    section = text.split("## Which operators for your own graph")[1].split("\n## ")[0]
    options = set(re.findall(r"--[a-z-]+", capsys.readouterr().out)) - {"--help", "--version"}
    assert [option for option in options if option not in text] == []
    assert [
        name for name in ("--try", "--seeds", "--layers", "--hidden", "--iterations") if name not in section
    ] == []
    assert [name for name in _LISTS if f"`{name}`" not in section] == []


def test_sizes_that_are_no_sizes_and_runs_that_all_diverge_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_npz(tmp_path / "mine.npz")
    for option in ("--layers", "--hidden", "--iterations", "--seeds"):
        assert main(["mine.npz", option, "0"]) == 2
        assert f"{option} 0 is too few" in capsys.readouterr().err
    arrays = npz_arrays()
    arrays["attr_data"] = np.full_like(arrays["attr_data"], 1e30, dtype=np.float32)
    arrays["attr_data"][0] = -1  # or the second scaling would save them
    np.savez(tmp_path / "huge.npz", **arrays)
    assert main(["huge.npz", *SMALL, "--try", "x", "--feature-norm", "none"]) == 2
    shown = capsys.readouterr()
    assert "every run diverged" in shown.err and shown.out == ""
