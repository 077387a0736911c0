"""The sentence of a notice: in, a Notice; out, its text for people, which no code reads.

A wording is a template, whose fields are numbers of the notice, or a function of these numbers. In
a template a field may have one of FORMATS after its colon, or a format of Python's own.
"""

from __future__ import annotations

from collections.abc import Callable
from string import Formatter
from typing import Any

from prunescope.analysis.schema.notice import Notice
from prunescope.analysis.wording import (
    comparison,
    inputs,
    kernels,
    peaks,
    shapes,
    timeline,
    trace,
    verdict,
)
from prunescope.taxonomy.words import ms, percent, shortened

THEMES = (trace, timeline, kernels, peaks, shapes, inputs, comparison, verdict)
WORDINGS: dict[str, str | Callable[..., str]] = {
    kind: wording for theme in THEMES for kind, wording in theme.WORDS.items()
}
FORMATS: dict[str, Callable[[Any], str]] = {
    "ms": ms,
    "percent": percent,
    "short": shortened,
    "list": lambda texts: ", ".join(map(str, texts)),
    "notice": lambda notice: sentence(notice),
    "notices": lambda notices: "; ".join(map(sentence, notices)),
}


class _Template(Formatter):
    """Python's formatter of templates, with FORMATS."""

    def format_field(self, value: Any, format_spec: str) -> str:
        if format_spec in FORMATS:
            return FORMATS[format_spec](value)
        return str(super().format_field(value, format_spec))


def sentence(notice: Notice) -> str:
    """Return the sentence of a notice.

    Raises:
        KeyError: Nothing words its kind, or its numbers lack one that the sentence states.
    """
    wording = WORDINGS[notice.kind]
    numbers = notice.numbers if notice.side is None else {**notice.numbers, "side": notice.side}
    if isinstance(wording, str):
        return _Template().vformat(wording, (), numbers)
    return wording(**numbers)
