"""Published methods by the names that people type: which family each is, with which knobs.

In: a name ("ShortGPT", "wanda-2:4", "mixture-of-depths"). Out: a PublishedMethod, or None.
`methods.json` holds the table of README.md, and for each method what its paper executes, what runs
here instead, what was read or why nothing was, knobs, and other names; a test keeps the two the
same.
"""

from __future__ import annotations

import difflib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any

from msgspec import Struct

from prunescope.taxonomy.errors import PrunescopeError, nearest
from prunescope.taxonomy.families import known

NO_NAMES: Mapping[str, str] = MappingProxyType({})
_SHORTEST_WORD = 2  # letters of a word that means nothing by itself


class PublishedMethod(Struct, frozen=True, eq=False):
    """A method: the id of its family, None if no GEMM moves; why; and the knobs that it means.

    `executes`: what its inference runs; `runs`: what ours runs instead, None if it is the same
    GEMMs; `source`: {"title", "url"} of what was read of it, None if nothing was; then `not_read`
    says why; `by_extension`: whether the placement is ours and not of arXiv 2606.09080; `select`:
    the `--select` that chooses parts as the paper does, None if none does; `year` and `arxiv`: of
    the first version, None if it is not known.
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
    year: int | None = None
    arxiv: str | None = None
    select: str | None = None

    @property
    def predict_only(self) -> dict[str, str]:
        """The knobs of the method that no pruner realises.

        With them `predict` computes what the paper executes, and not what a trace of the family
        runs.
        """
        families = known([self.family or ""])
        unreal = {
            name
            for family in families
            for name, knob in family.knobs.items()
            if knob.predicted_only
        }
        return {name: value for name, value in self.knobs.items() if name in unreal}

    @property
    def runnable(self) -> dict[str, str]:
        """The knobs of the method that `trace` has, too."""
        unreal = self.predict_only
        return {name: value for name, value in self.knobs.items() if name not in unreal}

    @property
    def is_predicted_only(self) -> bool:
        """Whether nothing of the method runs here: its family has no pruner."""
        return any(family.predicted_only for family in known([self.family or ""]))

    def to_dict(self) -> dict[str, Any]:
        """Return the method as `families --json` and `predict --json` hold it."""
        fields = {name: getattr(self, name) for name in self.__struct_fields__}
        source = None if self.source is None else dict(self.source)
        knobs = {"knobs": dict(self.knobs), "predict_only": self.predict_only}
        return {**fields, **knobs, "source": source}

    def heading(self) -> str:
        """Return the method's family with the knobs that run, those of predict alone, and why."""
        place = f"{self.family or 'outside'}{_options(self.runnable)}"
        place += "" if self.select is None else f" --select {self.select}"
        if self.is_predicted_only:
            place += " (predict only)"
        elif self.predict_only:
            place += f" (predict only:{_options(self.predict_only)})"
        return f"{self.name}: {place}, {self.because}"

    def sentences(self) -> list[str]:
        """Say what the paper executes, what runs here, and where that was read."""
        where = self.not_read or "not looked up"
        read = f"not read: {where}"
        if self.source is not None:
            read = f"read: {self.source['title']}: {self.source['url']}"
        ours = f"{self.family or 'ours'} runs the same GEMMs"
        if self.family is None:
            ours = "no family of ours moves what it moves"
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
    """Return the method of a name; None for no method.

    Any case is read, and any marks between words.
    """
    return _table().get(slug(name))


def published(name: str) -> PublishedMethod:
    """Return the method of a name.

    Raises:
        PrunescopeError: No method has this name; the hint gives the nearest ones.
    """
    method = find_published(name)
    if method is None and known([slug(name)]):
        raise PrunescopeError(
            f"{name} is a family, and --method takes a published method",
            hint="`prunescope families` shows all families",
        )
    if method is None:
        raise PrunescopeError(
            f"no published method is called {name!r}",
            hint=f"nearest: {nearest_methods(name)}; `prunescope families` lists the families",
        )
    return method


def family_of(name: str) -> tuple[str, Mapping[str, str]]:
    """Return the family that a name means, and the knobs that go with it, as the family runs it.

    The knobs of `predict_only` are left out. A name that is no method's stays as it is.

    Raises:
        PrunescopeError: The method is in no family.
    """
    method = find_published(name)
    if method is None:
        return name, {}
    if method.family is None:
        raise PrunescopeError(
            f"{method.name} is in none of the pruning families: {method.because}",
            hint="`prunescope families` lists what pruning can move",
        )
    return method.family, method.runnable


def methods() -> tuple[PublishedMethod, ...]:
    """Return every method once, in the order of the table."""
    return tuple(dict.fromkeys(_table().values()))


def method_names() -> tuple[str, ...]:
    """Return every name that `published` knows, as a slug, sorted."""
    return tuple(sorted(_table()))


def nearest_methods(name: str, more: Mapping[str, str] = NO_NAMES, *, count: int = 4) -> str:
    """Return the methods nearest to a name, as a comma-separated part of a sentence.

    Names that are spelt almost so come first, then those whose description shares words with the
    name, most of them first, else names of like letters. `more`: further names, with
    their descriptions.
    """
    known_names = [*_table(), *more]
    spelt = difflib.get_close_matches(slug(name), known_names, n=count, cutoff=0.75)
    texts = {slug(m.name): f"{m.name} {m.because} {m.executes}" for m in methods()}
    stems = {key: _stems(text) for key, text in texts.items()}
    stems |= {key: _stems(f"{key} {text}") for key, text in more.items()}
    counts = Counter(stem for words in stems.values() for stem in words)
    shared = {key: words & _stems(name) for key, words in stems.items() if words & _stems(name)}
    rarest = {key: sum(1 / counts[stem] for stem in words) for key, words in shared.items()}
    meant = sorted(shared, key=lambda key: (-len(shared[key]), -rarest[key], key))
    close = [*dict.fromkeys([*spelt, *meant])][:count]
    return ", ".join(close) or nearest(slug(name), known_names, count=count)


def _stems(text: str) -> frozenset[str]:
    """Return the beginnings of the words of a text, in which eviction and evicted are alike."""
    words = (word.removesuffix("s") for word in slug(text).split("-"))
    return frozenset(word[:4] for word in words if len(word) > _SHORTEST_WORD)


def slug(name: str) -> str:
    """Return a name in small letters and digits with single hyphens between."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")


def _options(knobs: Mapping[str, str]) -> str:
    return "".join(f" --set {key}={value}" for key, value in knobs.items())


@cache
def _table() -> dict[str, PublishedMethod]:
    """Read methods.json, by every spelling of each method's name."""
    text = resources.files("prunescope.taxonomy").joinpath("methods.json").read_text("utf-8")
    rows: dict[str, dict[str, Any]] = json.loads(text)
    methods = {}
    for name, row in rows.items():
        fields: dict[str, Any] = {key: row.get(key) for key in PublishedMethod.__struct_fields__}
        fields |= {"name": name, "knobs": row.get("knobs", {})}
        method = PublishedMethod(**fields)
        for spelling in (name, *row.get("also", ())):
            key = slug(spelling)
            assert key not in methods, f"two methods are called {key}"
            methods[key] = method
    return methods
