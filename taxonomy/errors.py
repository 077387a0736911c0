"""The one exception type that users see: what was wrong, and what to do about it."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


# Options by which commands write files; in Python the method `save` of these results writes them.
_OF_SAVE = frozenset({"out", "format", "formats"})
_WITH_SAVE = frozenset(
    {"Report", "Comparison", "Pareto", "Prediction", "AllocationPlan", "Replayed", "Reproduction"}
)


class PrunescopeError(Exception):
    """A bad request or a bad input. The front door prints it and exits with `exit_code`.

    `problem` says in one sentence what was wrong and where; `hint` says what to do.
    """

    exit_code = 2

    def __init__(self, problem: str, *, hint: str) -> None:
        super().__init__(f"{problem}\n  hint: {hint}")
        self.problem = problem
        self.hint = hint


@contextmanager
def errors_about(subject: str) -> Iterator[None]:
    """Put `subject` before the problem of a PrunescopeError.

    Files of two arguments may have one name.
    """
    try:
        yield
    except PrunescopeError as error:
        raise PrunescopeError(f"{subject}: {error.problem}", hint=error.hint) from None


def nearest(name: str, known: Iterable[str], *, count: int = 4) -> str:
    """Return the `count` known names most like `name`, as a comma-separated part of a sentence.

    If none is like it: all of them if they are as few, else how many there are.
    """
    names = sorted(known)
    close = difflib.get_close_matches(name.lower(), names, n=count, cutoff=0.4)
    if not close and len(names) > count:
        return f"none of {len(names)}"
    return ", ".join(close or names)


def helpful(function: Callable[P, R]) -> Callable[P, R]:
    """Make the TypeError of a function helpful.

    For an option that the function does not have, it names the nearest ones; for a value without a
    name, it names the options that need none. A function that passes options on leaves them to the
    next one.
    """
    parameters = inspect.signature(function).parameters.values()
    known = [p.name for p in parameters]
    by_place = [p.name for p in parameters if p.kind not in (p.KEYWORD_ONLY, p.VAR_KEYWORD)]
    passes_on = any(p.kind is p.VAR_KEYWORD for p in parameters)
    is_open = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    has_save = str(function.__annotations__.get("return")) in _WITH_SAVE

    @wraps(function)
    def call(*args: P.args, **options: P.kwargs) -> R:
        for name in options:
            if name in _OF_SAVE and name not in known and has_save:
                raise TypeError(
                    f"{function.__name__}() has no option {name!r}: what it returns writes files, "
                    '.save("FOLDER", formats=["md", "json"])'
                )
            if name not in known and not passes_on:
                raise TypeError(
                    f"{function.__name__}() has no option {name!r}; "
                    f"nearest: {nearest(name, known, count=2)}"
                )
        if len(args) > len(by_place) and not is_open:
            raise TypeError(
                f"{function.__name__}() takes {', '.join(by_place) or 'nothing'} without a name, "
                f"and {len(args)} values were given; give the others by name, or one list"
            )
        return function(*args, **options)

    return call
