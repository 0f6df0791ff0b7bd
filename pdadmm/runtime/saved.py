"""What the checkpoints of all systems have in common, and what must be as it was to go on from one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import msgspec
from msgspec import Meta

from pdadmm.errors import InputError
from pdadmm.runtime.index import Sha256, Whole

__all__ = ["SINCE", "ContentHash", "Mark", "NotNegative", "require_same"]

NotNegative = Annotated[float, Meta(ge=0, le=1e300)]
#: of the data; empty where it is not known
ContentHash = Annotated[str, Meta(pattern=r"\A([0-9a-f]{64})?\Z")]


class Mark(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Where metrics.jsonl ended."""

    bytes: Whole
    sha256: Sha256


#: options that older runs do not have, and what these were made with: their defaults
SINCE: Mapping[str, object] = {"start": "", "class_prior": "train"}


def require_same(fingerprint: Mapping[str, object], before: Mapping[str, object]) -> None:
    """Refuse to go on with other options, or on data of other sizes, than a checkpoint was made with.

    Parameters
    ----------
    fingerprint, before
        What the iterates depend on by name, of the run that is to go on and of the one that was saved.

    Raises
    ------
    InputError
    """
    before = {**SINCE, **before}
    for name, value in fingerprint.items():
        theirs = before.get(name)
        if theirs != value:
            raise InputError(
                f"--resume: the checkpoint was made with {name} = {repr(str(theirs)[:200])[1:-1]}, "
                f"not {value}; give the options it was started with, or none but --resume and --out"
            )
