"""Codecs: a float32 (rows, cols) matrix to bytes and back.

Every codec keeps these promises:

* the sender's decoded copy equals the receiver's bit for bit, since the scale used for encoding is
  the rounded one that travels;
* codes saturate and never wrap;
* a zero block decodes exactly, and so does a constant one whose value float16 holds; with ``grid``, what is
  on the grid does;
* any number of columns works, multiples of the block and of 8/bits or not: rows are packed one by one;
* NaN and Inf are refused with `NonFiniteError`, at once on the host, and from a GPU when somebody asks;
* the size in bytes is known from the shape, so that buffers and requests are made once.

What travels, and where it is from:

* ``float32``: the values (pdADMM-G).
* ``grid``: indices into a fixed uniform set of 2^bits values, on which p and q themselves are projected
  (pdADMM-G-Q).
* ``affine``: per row a float16 minimum and scale, codes with stochastic rounding (AdaQP).
* ``delta``: the change since the last decoded copy, in blocks of up to 128 columns with a float16 scale,
  nearest rounding; 1 bit is the sign times the mean absolute change (as AQ-SGD does for activations).

The codecs here are plain NumPy, one a module, and serve as the reference for the fused kernels. A new
one is a module and a line in `pdadmm.codec.choose.CODECS`.
"""

from __future__ import annotations

from pdadmm.codec.affine import AffineCodec
from pdadmm.codec.base import Codec, NonFiniteError, Projecting
from pdadmm.codec.choose import CODECS, Entry, check_codec, default_bits, make_codec
from pdadmm.codec.delta import DeltaCodec
from pdadmm.codec.float32 import Float32Codec
from pdadmm.codec.grid import GridCodec
from pdadmm.codec.packing import pack, row_bytes, uniform_hash, unpack

__all__ = [
    "CODECS",
    "AffineCodec",
    "Codec",
    "DeltaCodec",
    "Entry",
    "Float32Codec",
    "GridCodec",
    "NonFiniteError",
    "Projecting",
    "check_codec",
    "default_bits",
    "make_codec",
    "pack",
    "row_bytes",
    "uniform_hash",
    "unpack",
]
