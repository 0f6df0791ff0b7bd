"""Arrays on a host or a device: the ground that everything else stands on."""

from __future__ import annotations

from pdadmm.arrays.helpers import (
    Array,
    DeviceArray,
    Scalar,
    copy_into,
    namespace,
    number,
    single,
    squared_norm,
)

__all__ = [
    "Array",
    "DeviceArray",
    "Scalar",
    "copy_into",
    "namespace",
    "number",
    "single",
    "squared_norm",
]
