"""What was asked, so that an answer can be asked for again: every option, and the command.

In: a PredictRequest. Out: its options by name, and the command line that gives the same answer.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from prunescope.analysis.predict.request import PredictRequest
from prunescope.taxonomy.option import NamedOption, options_of


def options_of_request(request: PredictRequest) -> dict[str, Any]:
    """Every option by its name in Python, given or not."""
    return {one.name: _plain(getattr(request, one.name)) for one in options_of(PredictRequest)}


def command_of(request: PredictRequest) -> str:
    """The command line of a request: the options that differ from their defaults."""
    words = ["prunescope", "predict"]
    for option in options_of(PredictRequest):
        value = getattr(request, option.name)
        if value != option.default:
            words += _words(option, value)
    return shlex.join(words)


def _words(option: NamedOption, value: Any) -> Iterator[str]:
    flag = option.flags[0]
    if isinstance(value, Mapping):
        for key, one in value.items():
            yield from (flag, f"{key}={_text(one)}")
    elif value is True:
        yield flag
    elif isinstance(value, str | Path | int | float):
        yield from (flag, _text(value))
    elif option.option.typed == list[str] and option.name != "method":  # repeatable
        for one in value:
            yield from (flag, _text(one))
    else:
        yield from (flag, ",".join(_text(one) for one in value))


def _text(value: Any) -> str:
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    return [_plain(one) for one in value]
