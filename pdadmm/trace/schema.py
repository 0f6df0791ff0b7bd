"""Name and version of profile.json."""

from __future__ import annotations

__all__ = ["SCHEMA", "SCHEMA_VERSION"]

SCHEMA, SCHEMA_VERSION = "pdadmm-profile", 1
