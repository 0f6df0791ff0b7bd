"""Arrays by name as a safetensors file, which holds no code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pdadmm.errors import InputError
from pdadmm.files import naming, replacing

__all__ = ["write_tensors"]


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, object]) -> None:
    """Write a file as a whole, in place of one that is there.

    Parameters
    ----------
    path, tensors
    metadata
        Written as text, as the format has it.

    Raises
    ------
    InputError
        Without the package safetensors.
    OSError
    """
    try:
        from safetensors.numpy import save
    except ImportError:
        raise InputError("it needs the package safetensors; pip install 'pdadmm[safetensors]'") from None
    content = save(
        {name: np.ascontiguousarray(array) for name, array in tensors.items()},
        {name: str(value) for name, value in metadata.items()},
    )
    with naming(path), replacing(path) as temporary:
        temporary.write_bytes(content)
