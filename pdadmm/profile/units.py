"""Numbers with units, as people read them."""

from __future__ import annotations

__all__ = ["rate", "seconds", "share", "size"]


def _scaled(value: float, units: tuple[tuple[float, str], ...]) -> str:
    factor, unit = next((u for u in units if abs(value) >= u[0]), units[-1])
    return f"{value / factor:.3g} {unit}"


def seconds(value: float) -> str:
    """0.00123 as ``1.23 ms``."""
    return _scaled(value, ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")))


def size(value: float) -> str:
    """12345 bytes as ``12.3 kB``."""
    return _scaled(value, ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B")))


def rate(value: float) -> str:
    """Bytes a second."""
    return f"{size(value)}/s"


def share(value: float) -> str:
    """0.123 as ``12.3 %``."""
    return f"{100 * value:.1f} %"
