"""What a checkpoint of this method must hold to be gone on from: its state, and every layer's arrays."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta

from pdadmm.admm.growth import depth_at, stage_positions
from pdadmm.admm.options import Config
from pdadmm.codec import make_codec
from pdadmm.errors import InputError
from pdadmm.files import Record
from pdadmm.runtime.checkpoint import START_AFRESH
from pdadmm.runtime.index import Whole
from pdadmm.runtime.saved import ContentHash, Mark, NotNegative, require_same

if TYPE_CHECKING:
    from pdadmm.arrays import Array
    from pdadmm.comm.grid import Axis
    from pdadmm.runtime.checkpoint import Checkpoint, Saved

__all__ = [
    "OF_NODES",
    "Going",
    "RowsOf",
    "State",
    "best_of",
    "check",
    "expected",
    "forms",
    "pieces",
    "state_of",
    "with_best",
]

Positive = Annotated[float, Meta(gt=0, le=1e300)]
Finite = Annotated[float, Meta(ge=-1e300, le=1e300)]
Share = Annotated[float, Meta(ge=0, le=1)]


class Evaluated(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Of an evaluated iteration, what the summary may need."""

    iteration: Whole
    train_accuracy: Share
    val_accuracy: Share
    test_accuracy: Share
    objective: Finite
    primal_residual: NotNegative


class State(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What is the same on all ranks."""

    stage: Whole  #: from 0
    stage_iteration: Annotated[int, Meta(ge=1, lt=1 << 62)]
    iteration: Whole  #: over all stages
    nu: Positive
    rho: Positive
    losses: Annotated[list[Finite], Meta(max_length=3)]
    smallest_change: Annotated[float, Meta(ge=0)]  #: infinite before the first evaluation
    last: Evaluated | None
    best: Evaluated | None
    metrics: Mark | None
    data: ContentHash  #: content hash of the features
    seconds_iterations: NotNegative
    seconds_evaluation: NotNegative
    seconds_exposed: NotNegative
    seconds_checkpoints: NotNegative
    fingerprint: dict[str, Any]
    first_depth: Whole = 0  #: neither is known of an older one
    seconds_total: NotNegative = 0.0


@dataclass(frozen=True)
class Going:
    """The run that is to go on."""

    config: Config
    widths: list[int]  #: n_0, ..., n_L
    nodes: int  #: that train
    in_row_space: bool  #: whether layer 1 is kept there
    content: str  #: hash of the data
    fingerprint: Record  #: what must be as it was


def state_of(checkpoint: Checkpoint) -> State:
    """The state of a checkpoint.

    Raises
    ------
    ValueError
        Says what is wrong with it, and where.
    """
    return msgspec.convert(checkpoint.state, State)


def check(checkpoint: Checkpoint, going: Going) -> None:
    """Refuse a checkpoint that a run cannot go on from.

    Raises
    ------
    InputError
        When it was made with other options or on other data.
    ValueError
        When no run can have saved it.
    """
    state = state_of(checkpoint)
    require_same(going.fingerprint, state.fingerprint)
    if state.data and going.content and state.data != going.content:
        raise InputError(
            f"--resume: {going.config.features or 'the embedded graph'} holds other data than the "
            f"checkpoint was made with; give the file it was started with, or {START_AFRESH}"
        )
    stages, iterations = going.config.training.stages, going.config.training.iterations
    done = state.stage * iterations + state.stage_iteration
    if state.stage >= len(stages) or state.stage_iteration > iterations or done >= iterations * len(stages):
        raise ValueError(
            f"iteration {state.stage_iteration} of stage {state.stage + 1}, which the run has not"
        )
    if not state.iteration == checkpoint.iteration == done:
        raise ValueError(f"iteration {state.iteration} is not iteration {done}")
    wanted = expected(going, stages[state.stage])
    found = {p: forms(saved) for p, saved in checkpoint.layers.items()}
    best = {p: {name: named.pop(name) for name in _BEST if name in named} for p, named in found.items()}
    in_row_space = "rows/coefficients" in found.get(1, {})
    if in_row_space and not going.in_row_space:
        raise InputError(
            "--resume: the checkpoint keeps layer 1 in the row space of its input, which shards of the nodes "
            f"cannot; go on with --shards 1 and without --as-sharded, or {START_AFRESH}"
        )
    if going.in_row_space and not in_row_space:
        wanted[1] = {name: form for name, form in wanted[1].items() if not name.startswith("rows/")}
    if found != wanted:
        raise ValueError(f"the arrays are not those of a stage of {stages[state.stage]} layers")
    _check_best(best, wanted, going, state)
    _check_small(checkpoint, state.stage_iteration)


def forms(saved: Saved) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of a layer's arrays, those of shards put together.

    Raises
    ------
    ValueError
        When the pieces of the shards do not follow each other.
    """
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, cut in _pieces(saved).items():
        dtype, shape = saved.form(cut[0][1])
        rows = 0
        for first, piece in cut:
            form = saved.form(piece)
            if first != rows or form[0] != dtype or form[1][1:] != shape[1:] or not form[1]:
                raise ValueError(f"the shards' pieces of {name} do not follow each other")
            rows += form[1][0]
        found[name] = dtype, (rows, *shape[1:])
    whole = {name: saved.form(name) for name in saved if not _PIECE.fullmatch(name)}
    if set(whole) & set(found):
        raise ValueError("an array is there in pieces and whole")
    return {**found, **whole}


#: arrays of a layer that have a row a node, by which shards save and restore them
OF_NODES = ("z", "M", "below/p", "above/q", "above/p_hat", "above/q_hat", "above/u")


def pieces(state: Mapping[str, Array], first: int, nodes: Axis) -> dict[str, Array]:
    """What a shard saves of a layer: its rows of what has a row a node, and the first shard the rest.

    Counts of bytes are those of all shards together, so that another number of them can go on; collective.
    """
    found: dict[str, Array] = {}
    for name, array in state.items():
        if name in OF_NODES:
            found[f"{name}/rows/{first}"] = array
            continue
        if name.endswith("/counts"):
            messages, nbytes = array.tolist()
            (total,) = nodes.sums(float(nbytes))
            array = np.array([messages, int(total)], np.int64)
        if first == 0:
            found[name] = array
    return found


#: rows of an array from a number on
_PIECE = re.compile(r"(.+)/rows/([0-9]{1,18})")


def _pieces(saved: Saved) -> dict[str, list[tuple[int, str]]]:
    """By name of the array, first rows and names of its pieces, in order."""
    found: dict[str, list[tuple[int, str]]] = {}
    for name in saved:
        if match := _PIECE.fullmatch(name):
            found.setdefault(match[1], []).append((int(match[2]), name))
    return {name: sorted(cut) for name, cut in found.items()}


class RowsOf(Mapping[str, np.ndarray]):
    """A layer's saved arrays with the nodes `first` to `last` - 1, however many shards saved them.

    Parameters
    ----------
    counted
        Whether this shard goes on counting what all have sent.
    """

    def __init__(self, saved: Saved, first: int, last: int, counted: bool) -> None:
        self._saved, self._first, self._last, self._counted = saved, first, last, counted
        self._cut = _pieces(saved)

    def __getitem__(self, name: str) -> np.ndarray:
        first, last = self._first, self._last
        if name in self._cut:
            found = []
            for start, piece in self._cut[name]:
                stop = start + self._saved.form(piece)[1][0]
                if start < last and first < stop:
                    found.append(self._saved[piece][max(first - start, 0) : last - start])
            return np.concatenate(found) if found else self._saved[self._cut[name][0][1]][:0]
        array = self._saved[name]
        if name in OF_NODES:
            return array[first:last]
        if name.endswith("/counts") and not self._counted:
            return np.array([array[0], 0], array.dtype)
        return array

    def __contains__(self, name: object) -> bool:
        return name in self._cut or name in self._saved

    def __iter__(self) -> Iterator[str]:
        return iter(forms(self._saved))

    def __len__(self) -> int:
        return len(forms(self._saved))


def expected(going: Going, depth: int) -> dict[int, dict[str, tuple[str, tuple[int, ...]]]]:
    """Type and shape of every array of a stage, by layer position and name."""
    messages, widths, nodes = going.config.messages, going.widths, going.nodes
    layers = len(widths) - 1
    codec = make_codec(messages.codec, messages.bits, (0.0, 1.0))
    positions = stage_positions(depth, layers)
    found: dict[int, dict[str, tuple[str, tuple[int, ...]]]] = {}
    for place, position in enumerate(positions):
        n_in, n_out = widths[position - 1], widths[position]
        weights = {"W": ("<f4", (n_out, n_in)), "b": ("<f4", (n_out,))}
        arrays = found[position] = {**weights, "z": ("<f4", (nodes, n_out)), "M": ("<f4", (nodes, n_out))}
        if position == 1 and going.in_row_space:
            scales = n_out if going.config.training.step == "row" else 1
            arrays.update({"rows/coefficients": ("<f4", (nodes, n_out)), "rows/scale": ("<f8", (scales,))})
        if going.config.training.momentum and position != layers:
            arrays.update({f"{name}/step": form for name, form in weights.items()})
        if place > 0:
            arrays["below/counts"] = ("<i8", (2,))
            if not codec.lossless:
                arrays["below/p"] = ("<f4", (nodes, n_in))
        if place + 1 < len(positions):
            arrays["above/counts"] = ("<i8", (2,))
            names = ["q", "p_hat", "u", *([] if codec.lossless else ["q_hat"])]
            arrays.update({f"above/{name}": ("<f4", (nodes, n_out)) for name in names})
            if codec.span is not None:
                arrays["above/grid"] = ("<f8", (2,))
    return found


#: W and b of a layer when validation was best
_BEST = ("best/W", "best/b")


def with_best(
    arrays: Mapping[int, Mapping[str, Array]], best: Mapping[int, tuple[np.ndarray, np.ndarray]]
) -> dict[int, dict[str, Array]]:
    """A rank's arrays, by position and name, and with them the weights that were best on validation.

    A network only grows, so that its earlier layers are all among those of the stage.
    """
    return {p: {**named, **dict(zip(_BEST, best.get(p, ()), strict=False))} for p, named in arrays.items()}


def best_of(
    checkpoint: Checkpoint, positions: Sequence[int], mine: range
) -> dict[int, tuple[np.ndarray, np.ndarray]] | None:
    """The weights that were best on validation of the layers in `mine`; None of a checkpoint without them.

    `positions` are those of all layers that there were then.
    """
    if not positions or not all(_BEST[0] in checkpoint.layers[position] for position in positions):
        return None
    found = {}
    for position in positions:
        if position in mine:
            saved = checkpoint.layers[position]
            found[position] = np.array(saved[_BEST[0]]), np.array(saved[_BEST[1]])
    return found


def _check_best(
    best: Mapping[int, Mapping[str, tuple[str, tuple[int, ...]]]],
    wanted: Mapping[int, Mapping[str, tuple[str, tuple[int, ...]]]],
    going: Going,
    state: State,
) -> None:
    """Refuse weights that were not those of any evaluated network; older checkpoints have none."""
    if not any(best.values()):
        return
    t, positions = going.config.training, list[int]()
    if state.best is not None and 1 <= state.best.iteration <= state.iteration:
        depth = depth_at(state.best.iteration, t.stages, t.iterations)
        positions = stage_positions(depth, len(going.widths) - 1)
    for position, named in best.items():
        forms = (wanted[position]["W"], wanted[position]["b"]) if position in positions else ()
        if named != dict(zip(_BEST, forms, strict=False)):
            raise ValueError(f"the best weights of layer {position} are not its own")


def _check_small(checkpoint: Checkpoint, stage_iteration: int) -> None:
    """Refuse counts and grids that no stage has after so many iterations."""
    for position, saved in checkpoint.layers.items():
        for name in {"below/counts", "above/counts"} & set(saved):
            messages, nbytes = saved[name].tolist()
            if messages != stage_iteration or nbytes < 0:
                raise ValueError(
                    f"layer {position} has sent {messages} messages in {stage_iteration} iterations"
                )
        if "above/grid" in saved:
            low, high = saved["above/grid"].tolist()
            if not low < high:
                raise ValueError(f"the grid of layer {position} is empty")
