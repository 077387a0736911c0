"""Patterns that are compiled at their first use are those that `re` compiles."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator
from typing import Any

import pytest

from prunescope import analysis, taxonomy
from prunescope.taxonomy.lazy_pattern import lazy_pattern


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    texts: list[str] = []

    def keep(text: str, flags: int = 0) -> re.Pattern[str]:
        texts.append(text)
        return re._compiler.compile(text, flags)  # type: ignore[attr-defined]

    monkeypatch.setattr(re, "compile", keep)
    return texts


def test_a_pattern_is_compiled_once_and_at_its_first_use(compiled: list[str]) -> None:
    pattern = lazy_pattern(r"(a)b", re.IGNORECASE)
    assert pattern.pattern == "(a)b"
    assert compiled == []
    assert [pattern.sub(r"\1", "xABy"), pattern.sub(r"\1", "xb")] == ["xAy", "xb"]
    assert compiled == ["(a)b"]


def test_a_wrong_pattern_is_an_error_of_its_use() -> None:
    with pytest.raises(re.error):
        lazy_pattern("(").search("a")


def test_a_name_that_no_pattern_has_is_an_error() -> None:
    with pytest.raises(AttributeError, match="finds"):
        lazy_pattern("a").finds  # type: ignore[attr-defined]  # noqa: B018


def _patterns(value: Any) -> Iterator[Any]:
    """Yield the patterns in a value of a module, also in its tables."""
    if isinstance(value, re.Pattern | type(lazy_pattern(""))):
        yield value
    elif isinstance(value, dict):
        yield from _patterns([*value.keys(), *value.values()])
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _patterns(inner)


def test_every_pattern_of_the_rooms_waits_for_its_use_and_compiles() -> None:
    names = [
        module.name
        for room in (analysis, taxonomy)
        for module in pkgutil.walk_packages(room.__path__, f"{room.__name__}.")
    ]
    by_name = {name: [*_patterns(dict(vars(importlib.import_module(name))))] for name in names}
    assert sum(map(len, by_name.values())) > len(names) / 3
    for name, patterns in by_name.items():
        for pattern in patterns:
            assert type(pattern) is type(lazy_pattern("")), f"{name}: {pattern.pattern}"
            assert pattern.groups >= 0
