"""What a checkpoint of a graph network must hold to be gone on from: its state, weights, traces and widths.

The weights, those that were best on validation, and Adam's moments are under the position of their layer, one
vector each, written by rank 0. What
a part keeps of the messages that come to it is under the number of layers, one, and the number of the part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta

from pdadmm.arrays import Array, copy_into
from pdadmm.arrays.backend import NUMPY, Backend
from pdadmm.codec.rows import FLOAT32, WIDTHS
from pdadmm.errors import InputError
from pdadmm.files import Record
from pdadmm.gnn.assignment import Traces
from pdadmm.gnn.halo import Hats, Slot, Widths
from pdadmm.gnn.optimiser import Parameters
from pdadmm.gnn.part import Part
from pdadmm.runtime.checkpoint import START_AFRESH, Checkpoint
from pdadmm.runtime.index import Whole
from pdadmm.runtime.saved import ContentHash, Mark, NotNegative, require_same

__all__ = ["State", "arrays_of", "best_of", "check", "restore", "restore_hats", "state_of"]


_BEST = "best"  # array of a layer

#: of a slot, or a number of bits
Name = Annotated[str, Meta(pattern=r"\A([FB]?[0-9]{1,6})\Z")]


class Assigned(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """An assignment of widths, as the profile shows it."""

    epoch: Whole
    seconds: NotNegative
    widths: dict[Name, dict[Name, Whole]]  #: slot → bits → rows


class State(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What is the same on all ranks."""

    epoch: Annotated[int, Meta(ge=1, lt=1 << 62)]
    step: Whole
    assigned: list[Assigned]
    message_bytes: Whole
    bits_forward: NotNegative
    bits_backward: NotNegative
    entries_forward: NotNegative
    entries_backward: NotNegative
    best: dict[str, Any] | None
    metrics: Mark | None
    data: ContentHash  #: hash of the graph, whatever its parts
    seconds_epochs: NotNegative
    seconds_evaluation: NotNegative
    seconds_exposed: NotNegative
    seconds_assignment: NotNegative
    fingerprint: dict[str, Any]
    seconds_checkpoints: NotNegative = 0.0  #: none of these is known of an older one
    seconds_total: NotNegative = 0.0
    parts: Whole = 0
    cut: ContentHash = ""  #: hash of the parts
    bytes_since: Whole = 0  #: epoch after which `message_bytes` are counted
    bytes_before: Whole = 0  #: what other parts sent until then


def state_of(checkpoint: Checkpoint) -> State:
    """The state of a checkpoint.

    Raises
    ------
    ValueError
        Says what is wrong with it, and where.
    """
    return msgspec.convert(checkpoint.state, State)


def check(
    checkpoint: Checkpoint, fingerprint: Record, content: str, cut: str, layers: Mapping[int, int]
) -> None:
    """Refuse a checkpoint that a run cannot go on from.

    Parameters
    ----------
    content, cut
        Hashes of the graph and of its parts; empty where they may be others.
    layers
        Sizes of the layers' vectors.

    Raises
    ------
    InputError
        When it was made with other options or on another graph.
    ValueError
        When no run can have saved it.
    """
    state = state_of(checkpoint)
    require_same(fingerprint, state.fingerprint)
    if state.data and content and state.data != content:
        raise InputError(
            "--resume: the graph is another one than the checkpoint was made with; give the file it was "
            f"started with, or {START_AFRESH}"
        )
    if state.cut and cut and state.cut != cut:
        raise InputError(
            "--resume: the graph is cut into other parts than the checkpoint was made with; give the file it "
            f"was started with, or {START_AFRESH}"
        )
    if state.epoch != checkpoint.iteration or state.step != state.epoch:
        raise ValueError(f"{state.step} steps in {state.epoch} epochs at {checkpoint.iteration}")
    for layer, size in layers.items():
        saved = checkpoint.layers.get(layer)
        wanted = dict.fromkeys(("vector", "first", "second"), ("<f4", (size,)))
        if saved is not None and _BEST in saved:  # not before the first evaluation, nor in older ones
            wanted[_BEST] = "<f4", (size,)
        if saved is None or {name: saved.form(name) for name in saved} != wanted:
            raise ValueError(f"the arrays of layer {layer} are not its own")


def arrays_of(
    parameters: Parameters,
    best: Mapping[int, Array] | None,
    parts: Mapping[int, Part],
    slots: Sequence[Slot],
    widths: Widths,
    traces: Traces | None,
    hats: Hats,
    rank: int,
    backend: Backend = NUMPY,
) -> dict[int, dict[str, np.ndarray]]:
    """What this rank saves, by position and name."""
    found: dict[int, dict[str, np.ndarray]] = {}
    host = backend.to_host
    if rank == 0:
        for layer, vector in parameters.vectors.items():
            moments = parameters.moments[layer]
            found[layer] = {
                "vector": host(vector), "first": host(moments.first), "second": host(moments.second)
            }  # fmt: skip
            if best is not None:
                found[layer][_BEST] = host(best[layer])
    layers = len(parameters.vectors)
    for (slot_name, sender, receiver), hat in hats.items():
        if receiver in parts:  # the sender's copy is the same
            found.setdefault(layers + 1 + receiver, {})[f"{slot_name}/hat/{sender}"] = hat
    if traces is None:
        return found
    for number, part in parts.items():
        named = found.setdefault(layers + 1 + number, {})
        for slot in slots:
            named[f"{slot.name}/trace"] = host(traces.sums[slot.name, number])
            for other in part.receives:
                named[f"{slot.name}/bits/{other}"] = widths[slot.name, other, number]
    return found


def restore(
    checkpoint: Checkpoint,
    parameters: Parameters,
    parts: Mapping[int, Part],
    slots: Sequence[Slot],
    widths: Widths,
    traces: Traces | None,
) -> Widths:
    """Take weights, moments and traces from a checkpoint; returns the widths of this rank's messages.

    Raises
    ------
    InputError
        When it was saved with another partition, whose traces and widths are of other rows.
    """
    layers = len(parameters.vectors)
    for layer, vector in parameters.vectors.items():
        saved = checkpoint.layers[layer]
        copy_into(vector, saved["vector"])
        copy_into(parameters.moments[layer].first, saved["first"])
        copy_into(parameters.moments[layer].second, saved["second"])
    if traces is None:
        return widths
    found = dict(widths)
    for number, part in parts.items():
        for slot in slots:
            name = f"{slot.name}/trace"
            sums = _array(checkpoint, layers + 1 + number, name, "<f8", len(part.halo))
            copy_into(traces.sums[slot.name, number], sums)
            for other, columns in part.receives.items():
                bits = _bits(checkpoint, layers + 1 + number, slot, other, len(columns))
                found[slot.name, other, number] = bits
            for other, rows in part.sends.items():
                found[slot.name, number, other] = _bits(
                    checkpoint, layers + 1 + other, slot, number, len(rows)
                )
    return found


def best_of(checkpoint: Checkpoint, layers: int) -> dict[int, np.ndarray] | None:
    """The parameters that were best on validation so far, by layer; None of a checkpoint without them."""
    saved = {layer: checkpoint.layers[layer] for layer in range(1, layers + 1)}
    if not all(_BEST in arrays for arrays in saved.values()):
        return None
    return {layer: np.array(arrays[_BEST]) for layer, arrays in saved.items()}


def restore_hats(
    checkpoint: Checkpoint, parts: Mapping[int, Part], slots: Sequence[Slot], layers: int
) -> Hats:
    """Both ends' copies of the messages that travel as changes.

    Raises
    ------
    InputError
        When the checkpoint was saved with another partition.
    """
    found: Hats = {}
    for number, part in parts.items():
        for slot in slots:
            for other, rows in part.receives.items():
                found[slot.name, other, number] = _hat(checkpoint, layers, slot, other, number, len(rows))
            for other, rows in part.sends.items():
                found[slot.name, number, other] = _hat(checkpoint, layers, slot, number, other, len(rows))
    return found


def _hat(
    checkpoint: Checkpoint, layers: int, slot: Slot, sender: int, receiver: int, rows: int
) -> np.ndarray:
    saved, name = checkpoint.layers.get(layers + 1 + receiver), f"{slot.name}/hat/{sender}"
    if saved is None or name not in saved or saved.form(name) != ("<f4", (rows, slot.cols)):
        raise _another()
    hat: np.ndarray = saved[name].copy()
    return hat


def _bits(checkpoint: Checkpoint, position: int, slot: Slot, sender: int, count: int) -> np.ndarray:
    bits = _array(checkpoint, position, f"{slot.name}/bits/{sender}", "|u1", count)
    if not np.isin(bits, (*WIDTHS, FLOAT32)).all():
        raise _another()
    return bits


def _array(checkpoint: Checkpoint, position: int, name: str, dtype: str, count: int) -> np.ndarray:
    saved = checkpoint.layers.get(position)
    if saved is None or name not in saved or saved.form(name) != (dtype, (count,)):
        raise _another()
    return saved[name]


def _another() -> InputError:
    return InputError(
        "--resume: the checkpoint is of another partition of the graph, whose rows have other widths; give "
        "the file that it was started with"
    )
