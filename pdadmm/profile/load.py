"""Reading profile.json, of which nothing is believed: it may be from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec

from pdadmm.errors import InputError, one_line
from pdadmm.files import Record
from pdadmm.files.given import read_file
from pdadmm.profile.schema import Head, Profile
from pdadmm.trace.clock import PHASES
from pdadmm.trace.schema import SCHEMA, SCHEMA_VERSION

__all__ = ["is_graph", "load"]

_FILE_BYTES = 1 << 28  #: of a profile; one of 16 ranks and a hundred layers has a megabyte

Read = TypeVar("Read")


def load(folder: str | Path) -> Record:
    """The profile of the run in `folder`, in the shape of :class:`pdadmm.profile.schema.Profile`.

    Raises
    ------
    InputError
        When there is none, it cannot be read or is not as it must be, or the run was too short to be
        profiled.
    """
    path = Path(folder) / "profile.json"
    if not Path(folder).is_dir():
        raise InputError(f"{folder} is no folder; give the --out of a run")
    try:
        content = read_file(path, _FILE_BYTES)
    except FileNotFoundError:
        raise InputError(f"{folder} holds no profile.json; a run writes it when it ends") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; run again") from None
    head: Record = {**_decoded(content, Head, path, "is not a profile of a run")}
    if head.get("schema") != SCHEMA:
        raise InputError(f"{path} is not a profile of a run; give the --out of a run")
    if head.get("schema_version") != SCHEMA_VERSION:
        raise InputError(
            f"{path} has schema version {head.get('schema_version')}, not {SCHEMA_VERSION}; "
            "run again with this version"
        )
    profile: Record = {**_decoded(content, Profile, path, "is damaged")}
    stages = [stage for rank in profile["ranks"] for stage in rank["stages"]]
    for stage in stages:
        for phases in stage["phases"].values():
            phases.update({phase: 0.0 for phase in PHASES if phase not in phases})
    try:
        for stage in stages:
            _name_channels(stage)
    except KeyError as missing:
        raise InputError(f"{path} is damaged (a message without {missing}); run again") from None
    if problem := _contradiction(profile):
        raise InputError(f"{path} is damaged ({problem}); run again")
    if not any(rank["stages"][-1]["iterations"] for rank in profile["ranks"]):
        more = "--epochs or a longer --reassign" if is_graph(profile) else "--iterations"
        raise InputError(
            f"{folder}: the last stage has no iteration after its {profile['warm_up']} warm-up ones; "
            f"run with more {more}"
        )
    profile["run"]["dataset"] = one_line(profile["run"]["dataset"])
    for rank in profile["ranks"]:
        rank["host"] = one_line(rank["host"])
    return profile


def is_graph(profile: Record) -> bool:
    """Whether the run trained a graph network, parts of whose graph the ranks have."""
    return bool(profile["run"].get("system") == "graph")


def _decoded(content: bytes, kind: type[Read], path: Path, otherwise: str) -> Read:
    """The content of a JSON file, of a type."""
    try:
        return msgspec.json.decode(content, type=kind)
    except msgspec.ValidationError as error:
        raise InputError(f"{path} {otherwise} ({error}); run again") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"cannot read {path}: {error}; run again") from None


def _contradiction(profile: Record) -> str | None:
    """What in a profile does not fit together; None where all does."""
    ranks = profile["ranks"]
    wanted = ("model", "parts", "messages") if is_graph(profile) else ("codec", "bits", "nodes_train")
    for name in wanted:
        if name not in profile["run"]:
            return f"a run without {name}"
    if [rank["rank"] for rank in ranks] != list(range(profile["run"]["ranks"])):
        return "not every rank is there, or they are out of order"
    shards = profile["run"].get("shards", 1)
    if len(ranks) % shards:
        return f"{shards} shards on {len(ranks)} ranks"
    if len({len(rank["stages"]) for rank in ranks}) > 1:
        return "the ranks have different stages"
    for rank in ranks:
        last = rank["stages"][-1]
        if last["iterations"] and not (last["layers"] and last["iteration_seconds"]["mean"] > 0):
            return f"rank {rank['rank']} has iterations without layers or time"
        for link in last["links"]:
            if link["between_ranks"] and link["peer"] not in range(len(ranks)):
                return f"rank {rank['rank']} has a message from or to rank {link['peer']}"
            if link["messages"] and not link["float32_bytes"]:
                return f"rank {rank['rank']} has messages of nothing"
    return None


def _name_channels(stage: Record) -> None:
    """Name the messages of a profile that was written before they had names: p and q of a coupling."""

    def name(record: Record) -> str:
        coupling = record["coupling"]
        return f"q {coupling}" if record["upward"] else f"p {coupling + 1}"

    for link in stage["links"]:
        if "name" not in link:
            link["name"] = name(link)
    for step in stage["steps"]:
        if "channel" not in step:
            step["channel"] = "" if step["coupling"] < 0 else name(step)
