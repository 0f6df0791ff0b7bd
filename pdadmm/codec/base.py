"""What a codec is, and what it refuses."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from pdadmm.arrays import Array
from pdadmm.errors import InputError

__all__ = ["Codec", "NonFiniteError", "Projecting", "check_bits", "refuse_nonfinite", "require_size"]


class NonFiniteError(ValueError):
    """NaN or Inf met while encoding."""


class Codec(Protocol):
    """What a coupling needs of a codec."""

    @property
    def name(self) -> str:
        """What ``--codec`` calls it."""
        ...

    @property
    def bits(self) -> int:
        """Bits of an entry."""
        ...

    @property
    def lossless(self) -> bool:
        """Whether the decoded copy equals what is sent, so that the sender needs none of its own.

        What is sent has been projected first where the codec has a `span`.
        """
        ...

    @property
    def span(self) -> tuple[float, float] | None:
        """Range on whose values p and q themselves are projected; None where they may be any."""
        ...

    def nbytes(self, rows: int, cols: int) -> int:
        """Size of a message, in bytes."""
        ...

    def encode(self, x: Array, hat: Array, out: Array, key: int) -> None:
        """Write the message for `x` into `out` and update the decoded copy `hat` in place.

        Parameters
        ----------
        x, hat
            (rows, cols) float32. `hat` may be `x` itself for a lossless codec.
        out
            (nbytes,) uint8.
        key
            Number that seeds stochastic rounding; the codecs that round to nearest ignore it.

        Raises
        ------
        NonFiniteError
            When `x` holds NaN or Inf.
        """
        ...

    def decode(self, message: Array, hat: Array) -> None:
        """Update `hat`, (rows, cols) float32, in place from a message of `nbytes` uint8."""
        ...


class Projecting(Protocol):
    """What a codec with a `span` has besides."""

    def project(self, x: Array) -> Array:
        """Nearest value that a message holds, of every entry, float32.

        Raises
        ------
        NonFiniteError
            When `x` holds NaN or Inf.
        """
        ...


def refuse_nonfinite(x: Array) -> None:
    """Raise :class:`NonFiniteError` where a host array holds NaN or Inf."""
    # on a GPU the answer would wait for the device: the norms of the next iteration's gradients tell
    if isinstance(x, np.ndarray) and not np.isfinite(x).all():
        raise NonFiniteError


def require_size(message: Array, codec: Codec, rows: int, cols: int) -> None:
    """Refuse a buffer that is not of the size of a message, with ValueError."""
    if message.nbytes != codec.nbytes(rows, cols):
        raise ValueError(
            f"a message of {message.nbytes} bytes for a {rows} x {cols} matrix, which takes "
            f"{codec.nbytes(rows, cols)} with codec {codec.name}"
        )


def check_bits(name: str, bits: int, known: tuple[int, ...]) -> None:
    """Refuse a width that a codec does not know, with InputError."""
    if bits not in known:
        raise InputError(
            f"codec {name} has no {bits}-bit form; --bits takes {', '.join(map(str, known))} with it"
        )
