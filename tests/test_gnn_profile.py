"""The profile of a graph network's run: bytes, phases, widths, the timeline, predictions."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support import Finished, check_accounts, python, records_of, succeed, summary_of, words
from test_gnn_run import PREPARE

from pdadmm.errors import InputError
from pdadmm.profile.figures import figures
from pdadmm.profile.load import load
from pdadmm.profile.predict_graph import graph_programs, predict_graph
from pdadmm.profile.simulate import Network

MPIRun = Callable[..., Finished]
PROGRAMS = Path(__file__).parent / "programs"
OPTIONS = "--hidden 32 --epochs 30 --eval-every 10 --reassign 12 --quiet"


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """A graph in as many parts as ranks are to train it."""
    folder = tmp_path_factory.mktemp("graphs")
    found = {}
    for parts in (2, 3, 4):
        found[parts] = folder / f"{parts}.h5"
        options = words(f"synthetic --parts {parts} --partitioner blocks {PREPARE}")
        succeed(python("-m", "pdadmm.gnn.prepare", *options, "--out", found[parts]))
    return found


@pytest.fixture(scope="module")
def run(mpirun: MPIRun, graphs: dict[int, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a timeline and measured links, two parts a rank."""
    folder = tmp_path_factory.mktemp("profiled") / "run"
    options = [*words(OPTIONS), "--trace", "--measure-links", "--out", folder]
    succeed(mpirun(2, "-m", "pdadmm.gnn.run", graphs[4], *options))
    return folder


@pytest.mark.parametrize(
    ("messages", "ranks"),
    [("lean", 2), ("lean", 3), ("adaqp", 4), ("float32", 3)],
)
def test_bytes_are_those_that_mpi_is_given(
    messages: str, ranks: int, graphs: dict[int, Path], tmp_path: Path, mpirun: MPIRun
) -> None:
    program = [PROGRAMS / "count_bytes.py", "graph", graphs[ranks], *words(OPTIONS)]
    found = succeed(mpirun(ranks, *program, "--messages", messages, "--out", tmp_path / "run"))
    counted, summary = json.loads(found.out.splitlines()[-1]), summary_of(tmp_path / "run")
    last = records_of(tmp_path / "run")[-1]
    evaluations = 3 * summary["evaluation_bytes_per_evaluation"]
    assert sum(counted["bytes"]) == last["bytes"] + evaluations
    assert summary["bytes_per_epoch"] == round(last["bytes"] / 30)
    assert sum(counted["collective"]) == 30 * summary["reduction_bytes_per_epoch"] > 0
    # and those of the profile's last cycle
    profile = load(tmp_path / "run")
    of_the_last = 30 if messages == "float32" else 6  # which has its widths from epoch 25 on
    for rank in profile["ranks"]:
        stage = rank["stages"][-1]
        for link in stage["links"]:
            assert link["bytes"] == link["messages"] * (link["bytes"] // link["messages"])
            assert link["messages"] == of_the_last
    if messages == "float32":
        assert round(figures(profile, "").bytes_per_iteration) == summary["bytes_per_epoch"]


def test_phases_add_up_to_the_epochs(run: Path) -> None:
    profile = load(run)
    # cycles from epochs 1, 13 and 25; the one from epoch 11 is too short for accounts
    assert len(profile["ranks"][0]["stages"]) == 3
    check_accounts(profile)
    for rank in profile["ranks"]:
        phases = rank["stages"][-1]["phases"]
        assert sum(of_layer["aggregation"] for of_layer in phases.values()) > 0
        assert all(of_layer["products"] > 0 for of_layer in phases.values())
        assert phases["2"]["codec"] > 0 and phases["2"]["wait"] >= 0
        assert sum(of_layer["reduction"] for of_layer in phases.values()) > 0


def test_what_was_assigned_is_in_the_profile(run: Path) -> None:
    profile = load(run)
    assigned = profile["run"]["assignments"]
    assert [a["epoch"] for a in assigned] == [11, 13, 25]
    # the last one's widths are those of the links, and give their bytes by the format of a message
    counts: dict[str, dict[str, int]] = {}
    for rank in profile["ranks"]:
        for link in rank["stages"][-1]["links"]:
            if link["kind"] == "sent":
                of_slot = counts.setdefault(link["slot"], {})
                size = 0
                for bits, rows in link["widths"].items():
                    of_slot[bits] = of_slot.get(bits, 0) + rows
                    size += -(-(4 + rows * (4 + -(-link["cols"] * int(bits) // 8))) // 4) * 4
                assert link["bytes"] == size * link["messages"]
                assert sum(link["widths"].values()) == link["rows"]
    assert counts == assigned[-1]["widths"]


def test_a_resumed_run_keeps_what_was_assigned(
    graphs: dict[int, Path], tmp_path: Path, mpirun: MPIRun
) -> None:
    options = [*words(OPTIONS), "--checkpoint-every", "20"]
    succeed(mpirun(2, "-m", "pdadmm.gnn.run", graphs[4], *options, "--out", tmp_path / "run"))
    whole, before = load(tmp_path / "run"), summary_of(tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()  # as if it had ended after the checkpoint
    succeed(mpirun(4, "-m", "pdadmm.gnn.run", "--resume", "--quiet", "--out", tmp_path / "run"))
    resumed, after = load(tmp_path / "run"), summary_of(tmp_path / "run")
    for key in ("epoch", "widths"):
        first, second = ([a[key] for a in p["run"]["assignments"]] for p in (whole, resumed))
        assert first == second
    for name in ("bytes_per_epoch", "evaluation_bytes_per_evaluation"):
        assert after[name] == before[name]
    # epochs 21 to 24 went on, 25 to 30 were another cycle
    assert [s["iterations"] for s in resumed["ranks"][3]["stages"]] == [1, 3]
    sums = [
        {link["name"]: (link["bytes"], link["messages"]) for rank in p["ranks"]
         for link in rank["stages"][-1]["links"] if link["kind"] == "sent"}
        for p in (whole, resumed)
    ]  # fmt: skip
    assert sums[0] == sums[1]


def test_the_report_shows_links_widths_and_efficiencies(run: Path, tmp_path: Path) -> None:
    table = tmp_path / "t.json"
    page = tmp_path / "t.html"
    found = succeed(
        python("-m", "pdadmm.profile", run, "--json", table, "--html", page, "--network", "50us,100Mbit")
    )
    expected = ("4 parts on 2", "parallel efficiency", "of it transfer", "sparse", "rows by", "before epoch")
    for text in (*expected, "predicted"):
        assert text in found.out, text
    whole = json.loads(table.read_text())
    (only,) = whole["runs"]
    names = {link["name"] for link in only["links"]}
    # parts 0 and 1 are on rank 0: what goes between them is no link
    assert "F2 0>2: rank 0 to 1" in names and not any(" 0>1" in name for name in names)
    assert all(sum(link["widths"].values()) == link["rows"] for link in only["links"])
    assert "aggregation" in page.read_text() and "before epoch" in page.read_text()
    product = only["serialisation_efficiency"] * only["transfer_efficiency"]
    assert product == pytest.approx(only["communication_efficiency"])
    assert 0 < only["serialisation_efficiency"] <= 1.001
    assert whole["predictions"][0]["iteration"] > 0


def test_runs_of_both_systems_are_shown_side_by_side(run: Path, small: Path, tmp_path: Path) -> None:
    options = words("--layers 2 --stages 2 --hidden 20 --iterations 8 --quiet")
    succeed(python("-m", "pdadmm.run", small, *options, "--out", tmp_path / "layers"))
    found = succeed(python("-m", "pdadmm.profile", run, tmp_path / "layers"))
    assert "layers" in found.out and "rows by" in found.out


def test_the_timeline_has_epochs_messages_and_evaluations(run: Path) -> None:
    events = json.loads((run / "trace.json").read_text())["traceEvents"]
    names = {event["name"] for event in events}
    assert {"aggregation 2", "products 3", "evaluation", "send F2 0>2", "receive F2 0>2"} <= names
    laps = [e for e in events if e["ph"] == "X" and e["tid"] == 0]
    for rank in (0, 1):
        slices = sorted((e["ts"], e["dur"]) for e in laps if e["pid"] == rank)
        for (start, took), (after, _) in itertools.pairwise(slices):
            assert after >= start + took - 0.01, "laps follow each other"


def test_predictions_follow_the_network(run: Path) -> None:
    profile = load(run)
    programs = graph_programs(profile)
    computing = [sum(op.seconds for op in ops) for ops in programs]
    fast = predict_graph(profile, Network(0.0, 1e18))
    assert max(computing) * 0.999 <= fast.iteration <= sum(computing)
    # on a slow network it is the bytes of the busiest port
    sent = [sum(op.nbytes for op in ops if op.kind == "send") for ops in programs]
    expected = [
        sum(link["bytes"] // link["messages"] for link in rank["stages"][-1]["links"]
            if link["kind"] == "sent" and link["between_ranks"])
        for rank in profile["ranks"]
    ]  # fmt: skip
    steps = profile["ranks"][0]["stages"][-1]["steps"]
    sums = {step["channel"]: step["bytes"] + step["sum_bytes"] for step in steps if "bytes" in step}
    parameters = sum(sums.values())
    assert sent[0] == expected[0] + parameters
    slow = predict_graph(profile, Network(0.0, 1000.0))
    assert slow.iteration == pytest.approx(max(sent) / 1000.0, rel=0.2)
    del steps[1]
    with pytest.raises(InputError, match=r"sent once and taken once|no link"):
        predict_graph(profile, Network(0.0, 1e9))


def test_what_a_graph_is_not_predicted_for_is_refused(run: Path) -> None:
    found = python("-m", "pdadmm.profile", run, "--network", "1us,1Gbit", "--ranks", "3")
    assert found.code == 2 and len(found.err.strip().splitlines()) == 1 and "--ranks" in found.err


def test_a_run_too_short_to_be_profiled_says_so(graphs: dict[int, Path], tmp_path: Path) -> None:
    succeed(python("-m", "pdadmm.gnn.run", graphs[2], *words("--epochs 3 --hidden 8 --quiet --out short"),
                   cwd=tmp_path))  # fmt: skip
    found = python("-m", "pdadmm.profile", tmp_path / "short")
    assert found.code == 2 and "--epochs" in found.err
