"""A codec of one's own: float16 values. One class, one name, and training takes it."""

from __future__ import annotations

import sys

import numpy as np

from pdadmm.codec import CODECS, Entry


class HalfCodec:
    """The values in float16."""

    name = "half"
    bits = 16
    lossless = False
    span = None

    def nbytes(self, rows: int, cols: int) -> int:
        return 2 * rows * cols

    def encode(self, x: np.ndarray, hat: np.ndarray, out: np.ndarray, key: int = 0) -> None:
        out.view(np.float16)[:] = x.ravel()
        self.decode(out, hat)

    def decode(self, message: np.ndarray, hat: np.ndarray) -> None:
        hat[...] = message.view(np.float16).reshape(hat.shape)


CODECS["half"] = Entry((16,), lambda bits, span: HalfCodec())

if __name__ == "__main__":
    from pdadmm.run import main

    sys.exit(main())
