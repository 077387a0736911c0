"""Methods of dataclasses that are compiled when they are first called, for a process that starts.

A dataclass compiles up to six methods from text. Most classes of an analysis are made once and are
neither compared, hashed nor printed: 0.04 s of CPU time of 0.45 s on a small trace.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

_LAZY = {"__repr__", "__eq__", "__hash__", "__setattr__", "__delattr__"}


def compile_methods_late() -> None:
    """Let dataclasses that are made from now on compile all but `__init__` when it is called.

    Python has no option for it: the library's own function that compiles a method is replaced.
    Python 3.13 has another one, compiles a class at once, and stays as it is.
    """
    compile_now: Any = getattr(dataclasses, "_create_fn", None)
    if compile_now is None or getattr(compile_now, "compiles_late", False):
        return

    def compile_late(name: str, *source: Any, **scope: Any) -> Any:
        if name not in _LAZY:
            return compile_now(name, *source, **scope)
        return _make_stub(name, partial(compile_now, name, *source, **scope))

    compile_late.compiles_late = True  # type: ignore[attr-defined]
    dataclasses._create_fn = compile_late  # type: ignore[attr-defined]


def _make_stub(name: str, compile_method: Callable[[], Any]) -> Any:
    """Return a method that compiles the real one and puts it in its place."""
    compiled: list[Any] = []

    def method(*values: Any) -> Any:
        if not compiled:
            compiled.append(compile_method())
            compiled[0].__qualname__ = method.__qualname__
            for kind in type(values[0]).__mro__:
                if vars(kind).get(name) is method:
                    setattr(kind, name, compiled[0])
        return compiled[0](*values)

    method.__name__ = name
    return method
