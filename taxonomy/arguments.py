"""Words of a command line that are more than one value: pairs, peaks, sizes, numbers.

In: the words as typed. Out: plain dicts and names, or a PrunescopeError that shows the right form.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path

from prunescope.taxonomy.dtypes import ITEMSIZE, dtype
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.lazy_pattern import lazy_pattern


def pairs(
    words: Iterable[str] | None, *, option: str = "--set", example: str = "rounding=paper"
) -> dict[str, str]:
    """Parse repeated KEY=VALUE words into {"key": "value"}.

    Raises:
        PrunescopeError: A word is not KEY=VALUE, or a key is given twice.
    """
    values: dict[str, str] = {}
    for word in words or ():
        key, _, value = (part.strip() for part in word.partition("="))
        if not (key and value):
            raise PrunescopeError(
                f"{option} {word!r} is not KEY=VALUE", hint=f"for example {option} {example}"
            )
        if key in values:
            raise PrunescopeError(f"{option} {key} is given twice", hint="keep one of the two")
        values[key] = value
    return values


def peaks(words: Iterable[str] | None) -> dict[str, float]:
    """Parse repeated DTYPE=TFLOPS words into {dtype: dense TFLOP/s}; any known spelling is taken.

    Raises:
        PrunescopeError: A word is not a rate of a number format.
    """
    rates: dict[str, float] = {}
    for key, text in pairs(words, option="--peak", example="bf16=989").items():
        rate = number(text)
        if rate is None:
            raise _no_rate(f"{key}={text}")
        rates[key] = rate
    return rename_formats(rates)


def rename_formats(rates: Mapping[str, float]) -> dict[str, float]:
    """Rename peaks to our names of number formats.

    Raises:
        PrunescopeError: A name is not a number format, or two names are the same one.
    """
    named: dict[str, float] = {}
    for key, rate in rates.items():
        name = dtype(key)
        if name is None:
            raise _no_rate(f"{key}={rate:g}")
        if name in named:
            raise PrunescopeError(f"--peak {name} is given twice", hint="keep one of the two")
        named[name] = rate
    return named


def _no_rate(given: str) -> PrunescopeError:
    return PrunescopeError(
        f"--peak {given[:80]} is not a rate of a number format",
        hint=f"TFLOP/s, as in bf16=989; formats: {', '.join(ITEMSIZE)}",
    )


_NUMBER = lazy_pattern(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_WHOLE = lazy_pattern(r"[+-]?[0-9]{1,400}")  # Python spells out and reads no more than 4,300 digits


def number(text: str) -> float | None:
    """Return the number that a text is, else None.

    `0.1_5` and the digits of other scripts, which Python reads as numbers, are refused: a slip of
    the finger, or two readings of one word.
    """
    plain = text.strip()
    return float(plain) if _NUMBER.fullmatch(plain) else None


def whole_number(text: str) -> int | None:
    """Return the whole number that a text is, else None; in digits as `number` takes them."""
    plain = text.strip()
    return int(plain) if _WHOLE.fullmatch(plain) else None


def share(text: str, *, option: str) -> float:
    """Parse a share: in percent as 2%, or as the number 0.02.

    Raises:
        PrunescopeError: The text is anything else.
    """
    percent = text.strip().removesuffix("%")
    value = number(percent)
    if value is None:
        raise PrunescopeError(f"{option} {text[:40]!r} is not a share", hint="as 2% or 0.02")
    return value / 100 if percent != text.strip() else value


def sizes(text: str) -> list[int]:
    """Parse a list of whole numbers as 1,8,64, or a range as 64:512:64 that includes its ends.

    Raises:
        PrunescopeError: A word is not a whole number above 0.
    """
    numbers: list[int] = []
    for word in text.split(","):
        ends = [whole_number(part) for part in word.split(":")]
        if len(ends) not in (1, 3) or not all(end and end > 0 for end in ends):
            raise PrunescopeError(
                f"{word[:40]!r} is not a size",
                hint="whole numbers above 0, as 384,400,512 or 64:512:64",
            )
        first, last, step = (ends[0], ends[-1], ends[-1]) if len(ends) == 1 else ends
        assert first and last and step
        numbers += range(first, min(last, first + 10_000 * step) + 1, step)
    return numbers


def refuse_empty(args: Iterable[str]) -> None:
    """Raise PrunescopeError for an empty argument: as a path it would mean this folder."""
    for i, arg in enumerate(args, 1):
        name, sign, value = arg.partition("=")
        if not arg.strip() or (name.startswith("--") and sign and not value.strip()):
            problem = f"{name} has no value" if name.strip() else f"argument {i} is empty"
            raise PrunescopeError(problem, hint="is a variable of the shell unset? leave it out")


def bare_json(args: list[str]) -> list[str]:
    """Complete `--json` without a target to `--json -`, standard output.

    Every command that has the option takes it so.
    """
    full: list[str] = []
    for arg, following in pairwise([*args, "--"]):
        bare = arg == "--json" and following.startswith("-") and following != "-"
        full += [arg, "-"] if bare else [arg]
    return full


def asks_json(args: Iterable[str]) -> bool:
    """Return whether a command line asks for JSON: its error is JSON too."""
    return any(arg.partition("=")[0] == "--json" for arg in args)


def home_path(text: str) -> Path:
    """Return the path that a user wrote; `~nobody/x` stays, for which Path.expanduser raises."""
    return Path(os.path.expanduser(text))  # noqa: PTH111
