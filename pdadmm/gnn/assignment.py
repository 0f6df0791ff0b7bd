"""Traces of the messages, and from them, once a cycle, new widths for all rows; collective."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pdadmm.arrays.backend import NUMPY, Backend
from pdadmm.codec.rows import FLOAT32
from pdadmm.comm.waiter import Waiter
from pdadmm.gnn.bits import Message, assign, exact
from pdadmm.gnn.halo import Exchange, Slot, Widths
from pdadmm.gnn.links import LinkModel
from pdadmm.gnn.part import Part
from pdadmm.gnn.passes.protocol import Passes

__all__ = ["Traces"]

#: of an assignment
Weights = dict[tuple[str, int, int], np.ndarray]
#: by slot and part: seconds of a part's messages that nobody waits for
Hidden = Mapping[tuple[str, int], float]


class Traces:
    """What the halo rows of this rank's parts have cost in variance since the last assignment.

    The receiver keeps them: it sees the heads of all rows, and knows by which weights they enter.

    Parameters
    ----------
    parts
        Of this rank.
    slots
        Those whose widths are assigned.
    passes
        That read the heads.
    backend
        Where the messages are.

    Attributes
    ----------
    sums
        By slot and part: (h,) float64 sums of the rows' variances at 1 bit, where the messages are.
    """

    def __init__(
        self, parts: Mapping[int, Part], slots: Sequence[Slot], passes: Passes, backend: Backend = NUMPY
    ) -> None:
        self._parts, self._passes, self._backend = parts, passes, backend
        self._slots = list(slots)
        self.sums = {
            (slot.name, number): backend.zeros(len(part.halo), np.float64)
            for slot in self._slots
            for number, part in parts.items()
        }

    def note(self, exchange: Exchange) -> None:
        """Add what came in an epoch, before the next one comes."""
        for slot in self._slots:
            for number, part in self._parts.items():
                sums = self.sums[slot.name, number]
                for _, groups in exchange.received(slot.name, number):
                    for bits, columns, message in groups:
                        if bits != FLOAT32:
                            self._passes.add_variances(message, bits, columns, part.size, slot.cols, sums)

    def forget(self) -> None:
        """Begin a cycle."""
        for sums in self.sums.values():
            sums[:] = 0

    def weights(self) -> Weights:
        """By slot, sender and receiver: beta of every row that comes to a part of this rank, (k,) float32."""
        found = {}
        for slot in self._slots:
            for number, part in self._parts.items():
                reach = part.reach_backward if slot.back else part.reach_forward
                sums = self._backend.to_host(self.sums[slot.name, number])
                beta = (reach * sums).astype(np.float32)
                for sender, columns in part.receives.items():
                    found[slot.name, sender, number] = beta[columns - part.size]
        return found

    def assign(
        self,
        waiter: Waiter,
        bits: Sequence[int],
        share: float,
        method: str,
        every_byte: bool = True,
        model: LinkModel | None = None,
        hidden: Hidden | None = None,
    ) -> Widths:
        """Widths of all messages that this rank's parts send or receive; collective.

        Parameters
        ----------
        bits
            The widths that there are.
        share
            Of the variance against the time.
        method
            ``greedy`` or ``exact``.
        every_byte
            Time is the bytes of all messages of a slot together; else those of the longest.
        model
            Links whose times count instead, those of a rank's messages together.
        hidden
            By slot and part of this rank, with `model`: seconds of work beside its messages.
        """
        gathered = waiter.gather((set(self._parts), self.weights(), dict(hidden or {})))
        shares: list[dict[tuple[str, int, int], np.ndarray]] | None = None
        if gathered is not None:
            everyones: Weights = {key: beta for _, weights, _ in gathered for key, beta in weights.items()}
            beside = {key: seconds for *_, of_rank in gathered for key, seconds in of_rank.items()}
            solve = exact if method == "exact" else assign
            solved: dict[tuple[str, int, int], np.ndarray] = {}
            for slot in self._slots:
                keys = sorted(key for key in everyones if key[0] == slot.name)
                messages = []
                for key in keys:
                    _, sender, receiver = key
                    beta = everyones[key].astype(np.float64)
                    if model is None:
                        # one speed for all messages: the same widths wherever the parts are
                        message = Message(beta, slot.cols, port=0 if every_byte else None)
                    else:
                        link, port = model.between(sender, receiver), model.owner[sender]
                        seconds = beside.get((slot.name, receiver), 0.0)
                        message = Message(beta, slot.cols, link, seconds, port)
                    messages.append(message)
                solved.update(zip(keys, solve(messages, bits, share), strict=True))
            shares = [
                {key: widths for key, widths in solved.items() if key[1] in parts or key[2] in parts}
                for parts, *_ in gathered
            ]
        return waiter.scatter(shares)
