"""Reading profile.json."""

from __future__ import annotations

import json
from pathlib import Path

from pdadmm.errors import InputError
from pdadmm.files import Record
from pdadmm.trace.schema import SCHEMA, SCHEMA_VERSION

__all__ = ["load"]


def load(folder: str | Path) -> Record:
    """The profile of the run in `folder`.

    Raises
    ------
    InputError
        When there is none, it cannot be read, or the run was too short to be profiled.
    """
    path = Path(folder) / "profile.json"
    if not Path(folder).is_dir():
        raise InputError(f"{folder} is no folder; give the --out of a run")
    try:
        profile: Record = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{folder} holds no profile.json; a run writes it when it ends") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from None
    if not isinstance(profile, dict) or profile.get("schema") != SCHEMA:
        raise InputError(f"{path} is not a profile of a run")
    if profile.get("schema_version") != SCHEMA_VERSION:
        raise InputError(
            f"{path} has schema version {profile.get('schema_version')}, not {SCHEMA_VERSION}; "
            "run again with this version"
        )
    try:
        counted = [rank["stages"][-1]["iterations"] for rank in profile["ranks"] if rank["stages"]]
        for stage in (stage for rank in profile["ranks"] for stage in rank["stages"]):
            _name_channels(stage)
    except (KeyError, TypeError, IndexError):
        raise InputError(f"{path} is damaged; run again") from None
    if not counted or not max(counted):
        raise InputError(
            f"{folder}: the last stage has no iteration after its {profile['warm_up']} warm-up ones; "
            "run with more --iterations"
        )
    return profile


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
