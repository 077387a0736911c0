"""Published methods by the names that people type: which family each is, with which knobs.

In: a name ("ShortGPT", "wanda-2:4", "mixture-of-depths"). Out: a PublishedMethod, or None.
`methods.json` holds the table of README.md, knobs, and other names; a test keeps the two the same.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from prunescope.taxonomy.errors import PrunescopeError


@dataclass(frozen=True, slots=True)
class PublishedMethod:
    """A method: the id of its family, None where no GEMM moves; why; and the knobs it means."""

    name: str
    family: str | None
    because: str
    knobs: Mapping[str, str]


def placed(name: str) -> PublishedMethod | None:
    """The method of a name, in any case and with any marks between words."""
    return _table().get(slug(name))


def family_of(name: str) -> tuple[str, Mapping[str, str]]:
    """The family that a name means and the knobs that go with it; a name that is no method's stays
    as it is. Raises PrunescopeError for a method that moves no axis of a GEMM."""
    found = placed(name)
    if found is None:
        return name, {}
    if found.family is None:
        raise PrunescopeError(
            f"{found.name} moves no M, N or K of a GEMM: {found.because}",
            hint="`prunescope families` lists what pruning can move",
        )
    return found.family, found.knobs


def method_names() -> tuple[str, ...]:
    """Every name that `placed` knows, as a slug, sorted."""
    return tuple(sorted(_table()))


def slug(name: str) -> str:
    """A name in small letters and digits with single hyphens between."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")


@cache
def _table() -> dict[str, PublishedMethod]:
    text = resources.files("prunescope.taxonomy").joinpath("methods.json").read_text("utf-8")
    rows: dict[str, dict[str, Any]] = json.loads(text)
    found = {}
    for name, row in rows.items():
        one = PublishedMethod(name, row["family"], row["because"], row.get("knobs", {}))
        for spelling in (name, *row.get("also", ())):
            key = slug(spelling)
            assert key not in found, f"two methods are called {key}"
            found[key] = one
    return found
