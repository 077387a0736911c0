"""An architecture as `families --architecture` prints it. No test in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prunescope.taxonomy import architectures
from prunescope.taxonomy.formats import plain


def describe(config: Mapping[str, Any]) -> dict[str, Any]:
    """The plain values of a config's architecture."""
    found: dict[str, Any] = plain(architectures.described(config))
    return found


def read_architecture(name: str) -> dict[str, Any]:
    """The same of a file, a folder or a preset."""
    found: dict[str, Any] = plain(architectures.read_architecture(name))
    return found
