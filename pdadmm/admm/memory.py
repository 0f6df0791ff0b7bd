"""What a network takes at least, held against the memory of the machine before anything is made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pdadmm.comm.waiter import ranks_on_node
from pdadmm.datasets.raw import physical_memory
from pdadmm.errors import InputError
from pdadmm.runtime.launch import agree

if TYPE_CHECKING:
    from pdadmm.admm.options import Config
    from pdadmm.admm.trainer import Sizes
    from pdadmm.comm.waiter import Waiter

__all__ = ["least_bytes", "require_memory"]

_KEPT = 3  #: arrays of the nodes that a hidden layer keeps: z, q and u, at least


def least_bytes(config: Config, sizes: Sizes) -> int:
    """Bytes that the arrays of all ranks together exceed for sure: X, the weights, and z, q and u."""
    hidden, between = config.network.hidden, config.network.layers - 1
    weights = sizes.inputs * sizes.classes
    if between:
        weights = sizes.inputs * hidden + (between - 1) * hidden**2 + hidden * sizes.classes
    nodes = sizes.rows["train"]
    states = nodes * (_KEPT * between * hidden + sizes.classes)
    return 4 * (sum(sizes.rows.values()) * sizes.inputs + weights + states)


def require_memory(config: Config, sizes: Sizes, waiter: Waiter) -> None:
    """Refuse a network that cannot fit into this machine's memory, its ranks taken as equal; collective.

    What is not refused may still be too large: this is for sizes that were never meant.

    Raises
    ------
    InputError
        On all ranks.
    """
    ranks = ranks_on_node(waiter.comm)
    least = least_bytes(config, sizes) * ranks // waiter.comm.size
    there = physical_memory()

    def check() -> None:
        if least > there:
            n = config.network
            raise InputError(
                f"{n.layers} layers of {n.hidden} neurons for {sum(sizes.rows.values())} nodes, "
                f"{sizes.inputs} inputs and {sizes.classes} classes take more than {least / 1e9:,.0f} GB "
                f"on a machine of {there / 1e9:,.0f} GB; give a smaller --hidden or --layers, or more hosts"
            )

    agree(waiter, check)
