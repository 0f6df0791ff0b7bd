"""The codecs by their names."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from pdadmm.codec.affine import AffineCodec
from pdadmm.codec.base import Codec
from pdadmm.codec.delta import DeltaCodec
from pdadmm.codec.float32 import Float32Codec
from pdadmm.codec.grid import GridCodec
from pdadmm.errors import InputError

__all__ = ["CODECS", "Entry", "check_codec", "default_bits", "make_codec"]


class Entry(NamedTuple):
    """How a codec is made: from a width and the range of the values that it is for."""

    bits: tuple[int, ...]  #: widths that it knows, widest first
    make: Callable[[int, tuple[float, float]], Codec]
    ranged: bool = False  #: whether it asks for the range


CODECS: dict[str, Entry] = {
    "float32": Entry((32,), lambda bits, span: Float32Codec()),
    "grid": Entry((8, 4, 2), lambda bits, span: GridCodec(bits, *span), ranged=True),
    "affine": Entry((8, 4, 2), lambda bits, span: AffineCodec(bits)),
    "delta": Entry((8, 4, 2, 1), lambda bits, span: DeltaCodec(bits)),
}


def default_bits(name: str) -> int:
    """The width that a codec has where none is asked for: 4 bits, or the only one that it knows.

    Raises
    ------
    InputError
    """
    known = _entry(name).bits
    return 4 if 4 in known else known[0]


def check_codec(name: str, bits: int) -> None:
    """Refuse an unknown codec, or a width that it does not have.

    Raises
    ------
    InputError
    """
    entry = _entry(name)
    if bits not in entry.bits:
        known = ", ".join(map(str, entry.bits))
        raise InputError(f"codec {name} has no {bits}-bit form; --bits takes {known} with it")


def _entry(name: str) -> Entry:
    if name not in CODECS:
        raise InputError(f"--codec {name} is unknown; there are {', '.join(CODECS)}")
    return CODECS[name]


def make_codec(name: str, bits: int, span: tuple[float, float] | Callable[[], tuple[float, float]]) -> Codec:
    """The codec of a name and a width, the only place where one is made.

    Parameters
    ----------
    span
        Smallest and largest value that a codec with a fixed range is to hold, or what finds them out:
        it is called for such a codec only.

    Raises
    ------
    InputError
        For an unknown name, a width that the codec does not have, an empty range.
    """
    check_codec(name, bits)
    entry = CODECS[name]
    if callable(span):
        span = span() if entry.ranged else (0.0, 1.0)
    return entry.make(bits, span)
