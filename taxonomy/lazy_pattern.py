"""Regular expressions that are compiled at their first use.

An analysis imports 340 of them and needs a part: compiling all took 0.05 s of CPU time, a fifth of
what importing polars takes.
"""

from __future__ import annotations

import re
from typing import Any, AnyStr, cast


class _LazyPattern:
    """A pattern whose methods are those of the compiled one, each read at its first use."""

    def __init__(self, pattern: Any, flags: int) -> None:
        self.pattern = pattern
        self._given = flags

    def __getattr__(self, name: str) -> Any:
        value = getattr(re.compile(self.pattern, self._given), name)
        setattr(self, name, value)  # the next use finds it without this function
        return value


def lazy_pattern(text: AnyStr, flags: int = 0) -> re.Pattern[AnyStr]:
    """Return what `re.compile` returns, to be compiled when it first looks at a text.

    An error in the pattern shows then, too: a test compiles every pattern of a module.
    """
    return cast("re.Pattern[AnyStr]", _LazyPattern(text, flags))
