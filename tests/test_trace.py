"""The clock's accounts and the timeline: what they promise of times, messages and clocks."""

from __future__ import annotations

import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import PROGRAMS, Finished, message_bytes, on_standin, records_of, succeed

from pdadmm.profile.figures import figures
from pdadmm.trace.clock import WARM_UP
from pdadmm.trace.messages import flights
from pdadmm.trace.offsets import Alignment, Reading
from pdadmm.trace.timeline import timeline

LAYERS, HIDDEN, ITERATIONS = 5, 20, 12

#: clocks and transports: the host's, and CUDA events over NCCL and over staged MPI
WAYS = {
    "host": "--backend numpy",
    "nccl": "--backend cupy --transport nccl --kernels reference",
    "staged": "--backend cupy --transport mpi --kernels reference",
}


@pytest.fixture(scope="module", params=WAYS)
def traced(
    request: pytest.FixtureRequest,
    mpirun: Callable[..., Finished],
    small: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Folder of a run of 4 ranks with a timeline; two layers share a rank, and it grows once."""
    folder = tmp_path_factory.mktemp("traced")
    options = f"--layers {LAYERS} --stages 3,{LAYERS} --hidden {HIDDEN} --iterations {ITERATIONS} --trace"
    options += f" --eval-every {WARM_UP} --measure-links {WAYS[request.param]}"
    env = {} if request.param == "host" else on_standin()
    succeed(mpirun(4, "-m", "pdadmm.run", small, *options.split(), "--quiet", "--out", folder, env=env))
    return folder


@pytest.fixture(scope="module")
def events(traced: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((traced / "trace.json").read_text())["traceEvents"]
    return found


def profile_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "profile.json").read_text())
    return found


def test_long_stages_are_sampled_alike_on_all_ranks(
    mpirun: Callable[..., Finished], small: Path, tmp_path: Path
) -> None:
    options = "--layers 3 --stages 3 --hidden 20 --iterations 50 --eval-every 50 --quiet"
    succeed(mpirun(3, "-m", "pdadmm.run", small, *options.split(), "--out", tmp_path))
    counted = [*range(WARM_UP, 20), 24, 32, 40, 48]
    for rank in profile_of(tmp_path)["ranks"]:
        stage = rank["stages"][-1]
        assert stage["iterations"] == len(counted)
        total = sum(sum(phases.values()) for phases in stage["phases"].values())
        assert total == pytest.approx(stage["wall_seconds"], rel=0.03, abs=2e-3)
        assert stage["steps"], "every counted iteration has the same steps"
        for link in stage["links"]:
            assert link["messages"] == 50
            if link["kind"] == "received" and link["between_ranks"]:
                # one a counted iteration; the sender noted each of them, q an iteration before it is taken
                assert link["flights"] == len(counted)


def test_phases_add_up_to_the_wall_time_of_the_iterations_on_every_rank(traced: Path) -> None:
    for rank in profile_of(traced)["ranks"]:
        stage = rank["stages"][-1]
        phases = sum(sum(layer.values()) for layer in stage["phases"].values())
        # the iterations are short: another process may come in between the two clocks' readings
        assert phases == pytest.approx(stage["wall_seconds"], rel=0.03, abs=0.02)
        # both from events, which another process does not come between
        if profile_of(traced)["run"]["backend"] == "cupy" and rank["stages"][-1]["layers"]:
            assert phases == pytest.approx(stage["wall_seconds"], rel=1e-4) and phases > 0
        steps = sum(step["compute"]["mean"] + step["seconds"]["mean"] for step in stage["steps"])
        assert steps * stage["iterations"] == pytest.approx(phases, rel=1e-6)


def test_phases_add_up_to_the_seconds_that_the_host_counts_from_evaluation_to_evaluation(
    traced: Path,
) -> None:
    seconds = {r["stage_iteration"]: r["seconds"] for r in records_of(traced) if r["stage"] == 2}
    stage = profile_of(traced)["ranks"][0]["stages"][-1]
    phases = sum(sum(layer.values()) for layer in stage["phases"].values())
    assert phases == pytest.approx(seconds[ITERATIONS] - seconds[WARM_UP], rel=0.03, abs=0.02)


def test_links_were_measured_the_way_the_messages_went(traced: Path) -> None:
    profile = profile_of(traced)
    run, measured = profile["run"], profile["links_baseline"]["transports"]
    way = {"nccl": "nccl", "mpi": "staged" if run["backend"] == "cupy" else "mpi"}[run["transport"]]
    assert list(measured) == [way]
    assert [(link["lower"], link["upper"]) for link in measured[way]] == [(0, 1), (1, 2), (2, 3)]
    assert all(link.baseline_bandwidth for link in figures(profile, "").links)


def test_timeline_has_a_process_a_rank_and_two_tracks(events: list[dict[str, Any]]) -> None:
    names = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert {rank: name.split(" on ")[0] for rank, name in names.items()} == {i: f"rank {i}" for i in range(4)}
    tracks = {(event["pid"], event["args"]["name"]) for event in events if event["name"] == "thread_name"}
    assert tracks == {(rank, track) for rank in range(4) for track in ("compute", "communication")}


def test_no_duration_is_negative_and_slices_of_a_track_do_not_overlap(events: list[dict[str, Any]]) -> None:
    tracks = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            assert event["dur"] >= 0 and event["ts"] >= -1e-3
            tracks[event["pid"], event["tid"]].append((event["ts"], event["dur"]))
    assert len(tracks) == 8
    for slices in tracks.values():
        slices.sort()
        for (start, duration), (following, _) in itertools.pairwise(slices):
            assert start + duration <= following + 0.01


def test_every_send_has_its_receive(events: list[dict[str, Any]]) -> None:
    starts = {event["id"]: event for event in events if event["ph"] == "s"}
    ends = {event["id"]: event for event in events if event["ph"] == "f"}
    assert starts.keys() == ends.keys()
    # two messages a coupling and iteration, in a stage of 3 layers and one of 5
    assert len(starts) == ITERATIONS * 2 * (2 + 4)
    kinds = Counter(event["name"].split()[0] for event in events if event["ph"] == "X" and event["tid"] == 1)
    assert kinds == {"send": len(starts), "receive": len(starts)}
    for identifier, start in starts.items():
        assert ends[identifier]["ts"] >= start["ts"]


def test_arrows_begin_and_end_inside_slices(events: list[dict[str, Any]]) -> None:
    slices = defaultdict(list)
    for event in events:
        if event["ph"] == "X" and event["tid"] == 1:
            slices[event["pid"]].append((event["ts"], event["ts"] + event["dur"]))
    for event in events:
        if event["ph"] in "sf":
            assert any(a - 1000 <= event["ts"] <= b + 1000 for a, b in slices[event["pid"]])


def test_clocks_of_one_machine_are_aligned_within_a_millisecond(traced: Path) -> None:
    for rank in profile_of(traced)["ranks"]:
        for reading in rank["clock"].values():  # the ranks share a clock: the true offset is 0
            assert abs(reading["offset"]) < 1e6


def test_clocks_that_differ_and_drift_are_aligned_within_a_millisecond(
    mpirun: Callable[..., Finished],
) -> None:
    assert float(succeed(mpirun(3, PROGRAMS / "skewed_clocks.py")).out) < 1e-3


def test_steps_and_links_are_told_by_the_names_of_the_messages(traced: Path) -> None:
    """In the first stage there are layers 1, 2 and 5: p of layer 5 goes down to layer 2."""
    for rank in profile_of(traced)["ranks"]:
        for stage in rank["stages"]:
            facts = {link["name"]: (link["coupling"], link["upward"]) for link in stage["links"]}
            for step in stage["steps"]:
                expected = facts[step["channel"]] if step["channel"] else (-1, False)
                assert (step["coupling"], step["upward"]) == expected
                assert step["phase"] in ("wait", "send") if step["channel"] else step["phase"] != "send"
    stages = [rank["stages"][0] for rank in profile_of(traced)["ranks"] if rank["stages"][0]["layers"]]
    assert [position for stage in stages for position in stage["layers"]] == [1, 2, 5]
    lower, upper = ({link["name"]: link for link in stage["links"]} for stage in stages[-2:])
    assert "p 5" in lower and "q 2" in lower and upper.keys() == {"p 5", "q 2"}
    assert [end["p 5"]["kind"] for end in (lower, upper)] == ["received", "sent"]
    assert (lower["p 5"]["peer"], upper["p 5"]["upward"], upper["p 5"]["coupling"]) == (3, False, 2)


def test_alignment_is_linear_between_two_readings() -> None:
    align = Alignment(Reading(10**9, 500, 10), Reading(11 * 10**9, 1500, 10))
    assert align(10**9) == 10**9 + 500
    assert align(6 * 10**9) == 6 * 10**9 + 1000
    assert align(11 * 10**9) == 11 * 10**9 + 1500


def kept(rank: int, messages: list[list[Any]], offset: int = 0) -> dict[str, Any]:
    reading = {"at": 0, "offset": offset, "round_trip": 10}
    clock = {"start": reading, "end": reading}
    return {
        "rank": rank, "host": "h", "clock": clock, "events": [],
        "messages": messages, "traced_messages": messages, "shown": [[1, 1]] * len(messages),
    }  # fmt: skip


def test_a_wait_is_split_where_the_message_was_sent() -> None:
    second = 10**9
    sender = kept(0, [[("sent", "q 1", 1, 5 * second, 5 * second, True)]])
    # this rank's clock is 2 s behind; it waited from 1 to 8, by the sender's clock from 3 to 10
    receiver = kept(1, [[("received", "q 1", 1, 1 * second, 8 * second, True)]], offset=2 * second)
    found = flights([sender, receiver])[1][0]["q 1"]
    assert found["wait_seconds"] == pytest.approx(7)
    assert found["late_sender_seconds"] == pytest.approx(2)
    assert found["exposed_seconds"] == pytest.approx(5)
    assert found["flight_seconds"] == pytest.approx(5)


def test_a_message_without_receive_gets_no_arrow() -> None:
    found = timeline([kept(0, [[("sent", "q 1", 1, 5, 6, True)]])])["traceEvents"]
    assert [event["ph"] for event in found if event["ph"] in "sf"] == []


@pytest.mark.parametrize(("codec", "bits"), [("delta", 2), ("float32", 32)])
def test_bytes_of_every_link_equal_a_count_of_the_mpi_traffic(
    mpirun: Callable[..., Finished], small: Path, tmp_path: Path, codec: str, bits: int
) -> None:
    ranks, iterations, nodes = 16, 5, 63
    options = f"--layers {ranks} --stages {ranks} --hidden 19 --iterations {iterations} --quiet"
    options += f" --codec {codec} --bits {bits} --eval-every 100"
    arguments = [PROGRAMS / "count_links.py", small, *options.split(), "--out", tmp_path]
    counted = json.loads(succeed(mpirun(ranks, *arguments, timeout=120)).out.splitlines()[-1])
    profile = profile_of(tmp_path)
    assert profile["run"]["nodes_train"] == nodes
    size = message_bytes(codec, bits, nodes, 19)
    for rank, links in zip(profile["ranks"], counted, strict=True):
        told = {
            (link["peer"], 2 * link["coupling"] + link["upward"]): [link["messages"], link["bytes"]]
            for link in rank["stages"][-1]["links"]
            if link["kind"] == "sent" and link["between_ranks"]
        }
        assert told == {(peer, tag): [messages, size] for peer, tag, messages, size in links}
        assert all(counts == [iterations, iterations * size] for counts in told.values())
        for link in rank["stages"][-1]["links"]:
            lower, up = link["coupling"], link["upward"]
            assert link["name"] == (f"q {lower}" if up else f"p {lower + 1}")
            # what one end sent, the other received
            assert (link["messages"], link["bytes"]) == (iterations, iterations * size)
            assert link["float32_bytes"] == iterations * 4 * nodes * 19
