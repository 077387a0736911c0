"""Published methods by the names that people type: which family each is, with which knobs.

In: a name ("ShortGPT", "wanda-2:4", "mixture-of-depths"). Out: a PublishedMethod, or None.
`methods.json` holds the table of README.md, and for each method what its paper executes, what runs
here instead, what was read or why nothing was, knobs, and other names; a test keeps the two the
same.
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

from prunescope.taxonomy.errors import PrunescopeError, nearest
from prunescope.taxonomy.families import known


@dataclass(frozen=True, slots=True, eq=False)
class PublishedMethod:
    """A method: the id of its family, None where no GEMM moves; why; and the knobs it means.

    `executes`: what its inference runs; `runs`: what ours runs instead, None where it is the same
    GEMMs; `source`: {"title", "url"} of what was read of it, None where nothing was; then
    `not_read` says why; `by_extension`: whether the placement is ours and not of arXiv 2606.09080;
    `select`: the `--select` that chooses parts as the paper does, None where none does.
    """

    name: str
    family: str | None
    because: str
    knobs: Mapping[str, str]
    executes: str
    runs: str | None
    source: Mapping[str, str] | None
    not_read: str | None
    by_extension: bool
    select: str | None = None

    @property
    def predict_only(self) -> dict[str, str]:
        """The knobs of it that no pruner realises: with them `predict` computes what the paper
        executes, and not what a trace of the family runs."""
        found = known([self.family or ""])
        unreal = {name for one in found for name, knob in one.knobs.items() if knob.predicted_only}
        return {name: value for name, value in self.knobs.items() if name in unreal}

    @property
    def runnable(self) -> dict[str, str]:
        """The knobs of it that `trace` has, too."""
        unreal = self.predict_only
        return {name: value for name, value in self.knobs.items() if name not in unreal}

    @property
    def is_predicted_only(self) -> bool:
        """Whether nothing of it runs here: its family has no pruner."""
        return any(one.predicted_only for one in known([self.family or ""]))

    def to_dict(self) -> dict[str, Any]:
        """As `families --json` and `predict --json` hold it."""
        found = {name: getattr(self, name) for name in self.__slots__}
        source = None if self.source is None else dict(self.source)
        knobs = {"knobs": dict(self.knobs), "predict_only": self.predict_only}
        return {**found, **knobs, "source": source}

    def heading(self) -> str:
        """The method's family with the knobs that run, those that predict alone has, and why."""
        place = f"{self.family or 'outside'}{_options(self.runnable)}"
        place += "" if self.select is None else f" --select {self.select}"
        if self.is_predicted_only:
            place += " (predict only)"
        elif self.predict_only:
            place += f" (predict only:{_options(self.predict_only)})"
        return f"{self.name}: {place}, {self.because}"

    def sentences(self) -> list[str]:
        """A sentence: what the paper executes, what runs here, and where that was read."""
        where = self.not_read or "not looked up"
        read = f"not read: {where}"
        if self.source is not None:
            read = f"read: {self.source['title']}: {self.source['url']}"
        ours = f"{self.family or 'ours'} runs the same GEMMs"
        if self.family is None:
            ours = "no family: it moves no M, N or K of a GEMM"
        elif self.is_predicted_only:
            ours = f"{self.family} is predicted and not run: no kernel that the tool calls does it"
        elif self.runs is not None:
            ours = f"{self.family} runs instead: {self.runs}"
        if self.predict_only:
            ours += "; predict estimates the time of what runs, and with"
            ours += f"{_options(self.predict_only)} that of the paper's form"
        placed_by = "by extension" if self.by_extension else "by arXiv 2606.09080"
        return [f"{self.name} executes {self.executes}", f"{ours} (placed {placed_by})", read]


def find_published(name: str) -> PublishedMethod | None:
    """The method of a name, in any case and with any marks between words; None for no method."""
    return _table().get(slug(name))


def published(name: str) -> PublishedMethod:
    """The method of a name. Raises PrunescopeError with the nearest names for one of none."""
    found = find_published(name)
    if found is None and known([slug(name)]):
        raise PrunescopeError(
            f"{name} is a family, and --method takes a published method",
            hint="`prunescope families` shows all families",
        )
    if found is None:
        raise PrunescopeError(
            f"no published method is called {name!r}",
            hint=f"nearest: {nearest(slug(name), method_names())}; `prunescope families` lists "
            "the families",
        )
    return found


def family_of(name: str) -> tuple[str, Mapping[str, str]]:
    """The family that a name means and the knobs that go with it, as the family runs it: without
    those of `predict_only`. A name that is no method's stays as it is. Raises PrunescopeError for a
    method that moves no axis of a GEMM."""
    found = find_published(name)
    if found is None:
        return name, {}
    if found.family is None:
        raise PrunescopeError(
            f"{found.name} moves no M, N or K of a GEMM: {found.because}",
            hint="`prunescope families` lists what pruning can move",
        )
    return found.family, found.runnable


def methods() -> tuple[PublishedMethod, ...]:
    """Every method once, in the order of the table."""
    return tuple(dict.fromkeys(_table().values()))


def method_names() -> tuple[str, ...]:
    """Every name that `placed` knows, as a slug, sorted."""
    return tuple(sorted(_table()))


def slug(name: str) -> str:
    """A name in small letters and digits with single hyphens between."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")


def _options(knobs: Mapping[str, str]) -> str:
    return "".join(f" --set {key}={value}" for key, value in knobs.items())


@cache
def _table() -> dict[str, PublishedMethod]:
    text = resources.files("prunescope.taxonomy").joinpath("methods.json").read_text("utf-8")
    rows: dict[str, dict[str, Any]] = json.loads(text)
    found = {}
    for name, row in rows.items():
        one = PublishedMethod(
            name=name,
            family=row["family"],
            because=row["because"],
            knobs=row.get("knobs", {}),
            executes=row["executes"],
            runs=row["runs"],
            source=row["source"],
            not_read=row.get("not_read"),
            by_extension=row["by_extension"],
            select=row.get("select"),
        )
        for spelling in (name, *row.get("also", ())):
            key = slug(spelling)
            assert key not in found, f"two methods are called {key}"
            found[key] = one
    return found
