"""Dataclasses whose methods are compiled late behave as those of the library."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from prunescope.lazy_methods import compile_methods_late

LATE = hasattr(dataclasses, "_create_fn")
SETTINGS = [
    {},
    {"frozen": True},
    {"frozen": True, "slots": True},
    {"order": True, "unsafe_hash": True},
    {"eq": False},
    {"repr": False, "kw_only": True},
]


def make(settings: dict[str, bool]) -> Any:
    """A class that is made the same way each time, and one below it."""

    @dataclasses.dataclass(**settings)
    class Point:
        x: int
        y: list[int] = dataclasses.field(default_factory=list, compare=False)

    @dataclasses.dataclass(**settings)
    class Named(Point):
        name: str = "p"

    return Point, Named


def outcome(act: Callable[[], object]) -> object:
    """What a call gives: a value, or the class of its error with the text."""
    try:
        return act()
    except (TypeError, AttributeError) as error:
        return type(error), str(error)


def behaviour(settings: dict[str, bool]) -> list[object]:
    """What instances of both classes do, twice: before and after a method is compiled."""
    seen: list[object] = []
    for kind in make(settings):
        a, b, c = kind(x=1), kind(x=1), kind(x=2)
        for _ in range(2):
            seen += [a == b, a == c, a != c, a == 1, outcome(lambda: a < c)]  # noqa: B023
            seen += [outcome(lambda: hash(a) == hash(b)), kind.__hash__ is None]  # noqa: B023
            seen += [repr(a).partition(" at 0x")[0], outcome(lambda: setattr(a, "x", 1))]  # noqa: B023
            seen += [outcome(lambda: setattr(a, "z", 1))]  # noqa: B023
            seen += [outcome(lambda: delattr(copy.copy(c), "x"))]  # noqa: B023
            seen += [dataclasses.replace(a, x=2) == c, dataclasses.asdict(a)]
            seen += [kind.__eq__.__qualname__, kind.__repr__.__name__]
    return seen


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_they_do_the_same(settings: dict[str, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    usual = behaviour(settings)
    monkeypatch.setattr(dataclasses, "_create_fn", getattr(dataclasses, "_create_fn", None))
    compile_methods_late()
    compile_methods_late()  # once is enough
    assert behaviour(settings) == usual


@pytest.mark.skipif(not LATE, reason="this Python compiles a class at once")
def test_a_method_is_compiled_in_its_first_call(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []
    compile_now = dataclasses._create_fn  # type: ignore[attr-defined]

    def noted(name: str, *source: Any, **scope: Any) -> Any:
        compiled.append(name)
        return compile_now(name, *source, **scope)

    monkeypatch.setattr(dataclasses, "_create_fn", noted)
    compile_methods_late()
    point, named = make({"frozen": True})
    assert compiled == ["__init__", "__init__"]
    assert {point(x=1), point(x=1)} == {point(x=1)}
    assert compiled[2:] == ["__hash__", "__eq__"]
    assert named(x=1) == named(x=1)
    assert point.__hash__.__code__.co_filename == "<string>"  # the real one is in its place
    assert compiled[4:] == ["__eq__"]
