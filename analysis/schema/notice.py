"""A notice: something that a reader of a report should know, as values and not as a sentence.

The room that notices a fact makes a Notice of it; `analysis/wording/` alone puts it into words, and
code reads kinds, sides and numbers.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from prunescope.analysis.schema.fields import meaning

Severity = Literal["note", "warning", "caveat"]


class Notice(msgspec.Struct, kw_only=True, frozen=True):
    """A fact that a reader should know: `analysis/wording/` has the sentence of its kind."""

    kind: Annotated[str, meaning("what it says, e.g. whole-microseconds")]
    severity: Annotated[
        Severity,
        meaning("note (explains), warning (limits a report), caveat (a verdict)"),
    ] = "note"
    side: Annotated[str | None, meaning("dense, pruned or the trace; null: of no side alone")] = (
        None
    )
    numbers: Annotated[
        dict[str, Any], meaning("what the sentence states: ns, bytes, counts, shares, names")
    ] = {}

    def __hash__(self) -> int:
        """Return a hash that equal notices share; numbers may hold lists, which have none."""
        return hash((self.kind, self.side))

    def about(self, **numbers: Any) -> Notice:
        """Return the same notice with more numbers, such as the name of its file or phase."""
        return msgspec.structs.replace(self, numbers={**self.numbers, **numbers})

    def as_read(self) -> Notice:
        """Return the notice as report.json gives it back: with plain values instead of records."""
        return msgspec.json.decode(msgspec.json.encode(self), type=Notice)


def note(kind: str, /, **numbers: Any) -> Notice:
    """Return a note: what explains the numbers of a report."""
    return Notice(kind=kind, numbers=numbers)


def warning(kind: str, /, **numbers: Any) -> Notice:
    """Return a warning: what limits the statements of a report."""
    return Notice(kind=kind, severity="warning", numbers=numbers)


def caveat(kind: str, /, side: str | None = None, **numbers: Any) -> Notice:
    """Return a caveat: what makes a verdict less certain, of one side or of both."""
    return Notice(kind=kind, severity="caveat", side=side, numbers=numbers)
