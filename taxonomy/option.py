"""An option, written once: the annotation of a field of a request class.

    batch: Annotated[int, Option(help="Number of sequences ...", unit="sequences", least=1)] = 1

is the option `--batch` of the command, the parameter `batch` of the Python function, and a part of
the name of a result. A key of a sweep file is annotated with the same constant (`repeats`), or,
where it lists values of an option (`mode`), takes its help from it (`tracer/sweep/plan.py`). In: a
request class. Out: its options, checked values. The command line imports this before anything else,
so that it needs the standard library alone.
"""

import inspect
import math
import os
import reprlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import MISSING, dataclass, fields
from functools import wraps
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin

from prunescope.taxonomy.arguments import pairs, peaks, rename_formats
from prunescope.taxonomy.errors import PrunescopeError, helpful

P = ParamSpec("P")
Request = TypeVar("Request")
R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """Properties of an option other than its name, type and default."""

    help: str  # one sentence: what it does, its unit, what happens without it
    unit: str = ""  # of a number; stands for the number in the help
    metavar: str = ""  # what stands for the value in the help, where that is not the unit
    flag: str = ""  # its words on the command line, where they are not the name of the field
    argument: bool = False  # given by its place on the command line, without a flag
    least: float | None = None  # of a number, or of each number of a mapping
    most: float | None = None
    typed: Any = None  # its type on the command line, where that is not the field's
    parse: Callable[[Any], Any] | None = None  # from that type to the field's
    canonical: Callable[[Any], Any] | None = None  # the one form of a value; refuses others
    complete: str = ""  # a function of prunescope/command.py that lists values for a shell
    eager: Callable[[], None] | None = None  # called where it is given, before all other options
    # The next three matter in a sweep. Options with `in_name` vary from result to result; others
    # have one value in a sweep and make its identity.
    in_name: str | None = None  # what stands before its value in the name of a result
    default_in_name: bool = True  # whether the name has its default, too
    model: bool = False  # whether another value makes another model
    lists: str = ""  # of a key of a sweep file: the option of which it holds several values
    example: str = ""  # in the example of a sweep file, where the default shows nothing


@dataclass(frozen=True, slots=True)
class NamedOption:
    """An option with its name, its type and its default (`dataclasses.MISSING`: there is none)."""

    name: str
    type: Any
    option: Option
    default: Any

    @property
    def choices(self) -> tuple[str, ...]:
        """The values of a Literal; empty for other types."""
        kinds = [self.type, *(get_args(self.type) if is_union(self.type) else ())]
        return tuple(v for kind in kinds if get_origin(kind) is Literal for v in get_args(kind))

    @property
    def flags(self) -> list[str]:
        """The words of the option on the command line, the long one first."""
        return self.option.flag.split() or [f"--{self.name.replace('_', '-')}"]


def is_union(kind: Any) -> bool:
    """Return whether a type is `A | B`."""
    return get_origin(kind) in (Union, UnionType)


def named_option(name: str, annotation: Any, default: Any) -> NamedOption | None:
    """Return the option that an annotation describes; None if it describes none."""
    option = next((m for m in getattr(annotation, "__metadata__", ()) if type(m) is Option), None)
    if option is None:
        return None
    return NamedOption(name, annotation.__origin__, option, default)


def options_of(request: type) -> Iterator[NamedOption]:
    """Yield the options of a request class, in order. Its other fields are Python's alone."""
    for field in fields(request):
        factory = field.default_factory
        default = field.default if factory is MISSING else factory()
        if (option := named_option(field.name, field.type, default)) is not None:
            yield option


def checked(request: Request) -> Request:
    """Return the request with each value in the type of its option.

    Numbers of numpy become Python's. This is the validation behind both doors, the command line and
    Python.

    Raises:
        PrunescopeError: A value is of another type, outside its range or not one of its
            choices; the
            hint says what is accepted.
    """
    options = {named.name: named for named in options_of(type(request))}
    for field in fields(request):  # type: ignore[arg-type]
        named = options.get(field.name)
        value = getattr(request, field.name)
        kind = field.type if named is None else named.type
        try:
            typed = _typed(kind, value)
        except _WrongTypeError:
            label = field.name if named is None else _label(named)
            hint = f"accepted: {_described(kind)}"
            if callable(value):
                hint += "; prunescope.capture times a model or function of your own"
            raise PrunescopeError(
                f"{label} is {reprlib.repr(value)}, of type {type(value).__name__}", hint=hint
            ) from None
        if named is not None and named.option.canonical is not None and typed is not None:
            typed = named.option.canonical(typed)
        if typed is not value:
            object.__setattr__(request, field.name, typed)
    check_options(request)
    return request


def check_count(name: str, value: object, *, least: int) -> int:
    """Return a whole number of at least `least` and at most MOST.

    Raises:
        PrunescopeError: `value` is not such a number.
    """
    try:
        count: int = _typed_one(int, value)
    except _WrongTypeError:
        raise PrunescopeError(
            f"{name} is {reprlib.repr(value)}, of type {type(value).__name__}",
            hint="accepted: a whole number",
        ) from None
    check_range(f"{name} ", count, least, MOST)
    return count


def check_options(request: object) -> None:
    """Raise PrunescopeError for the first value that is not one of its choices or out of range."""
    for named in options_of(type(request)):
        value, option = getattr(request, named.name), named.option
        if value is None:
            continue
        if named.choices and value not in named.choices:
            raise PrunescopeError(
                f"{_label(named)} {str(value)[:80]!r} is not one of its values",
                hint=f"one of {', '.join(named.choices)}",
            )
        numbers = value.items() if isinstance(value, Mapping) else [("", value)]
        for key, number in numbers:
            if isinstance(number, int | float) and not isinstance(number, bool):
                name = f"{_label(named)} {key}=" if key else f"{_label(named)} "
                check_range(name, number, option.least, option.most)


def check_range(name: str, value: float, least: float | None, most: float | None) -> None:
    """Raise PrunescopeError for a number outside [least, most], or one that is not finite.

    `name` is what stands before the number in the message.
    """
    # Python itself does not spell out a number of thousands of digits.
    huge = isinstance(value, int) and value.bit_length() >= 256
    shown = name.rstrip(" =") if huge else f"{name}{value}"
    if isinstance(value, float) and not math.isfinite(value):
        raise PrunescopeError(f"{shown} is not a finite number", hint=_range_text(least, most))
    if least is not None and value < least:
        raise PrunescopeError(f"{shown} is too small", hint=f"the smallest value is {least:,}")
    if most is not None and value > most:
        raise PrunescopeError(f"{shown} is too large", hint=f"the largest value is {most:,}")


def _range_text(least: float | None, most: float | None) -> str:
    if least is None or most is None:
        return "give a finite number"
    return f"a number from {least:,} to {most:,}"


def _label(named: NamedOption) -> str:
    """Return the name of an option in a message: an argument has no flag."""
    return named.name if named.option.argument else named.flags[0]


class _WrongTypeError(Exception):
    """A value that is not of an option's type."""

    pass


_ONE = {int: "a whole number", float: "a number", str: "a text", bool: "True or False",
        Path: "a path", NoneType: "None"}  # fmt: skip


def _typed(kind: Any, value: Any) -> Any:
    """Return `value` as a value of an option's type. Raise _WrongTypeError if it is not one."""
    kind = kind.__origin__ if get_origin(kind) is Annotated else kind
    if is_union(kind):
        for member in sorted(get_args(kind), key=lambda member: member is not type(value)):
            with suppress(_WrongTypeError):
                return _typed(member, value)
        raise _WrongTypeError
    origin = get_origin(kind)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise _WrongTypeError
        # Knobs are texts on the command line; in Python a number is one, too.
        of = get_args(kind)[1]
        return value if of in (str, Any) else {k: _typed(of, v) for k, v in value.items()}
    if isinstance(origin, type) and issubclass(origin, Collection):
        values = value.tolist() if hasattr(value, "tolist") else value  # an array
        if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
            raise _WrongTypeError
        return tuple(_typed(get_args(kind)[0], member) for member in values)
    return _typed_one(str if origin is Literal else kind, value)


def _typed_one(kind: Any, value: Any) -> Any:
    """Return a plain value in the type of its option. Raise _WrongTypeError if it is not one."""
    if kind is Any or getattr(kind, "_is_protocol", False):
        return value
    if isinstance(value, str | os.PathLike) and "\0" in os.fspath(value):
        raise _WrongTypeError  # no path, model or text of an option holds one
    if kind in (int, float):
        wanted: Any = Integral if kind is int else Real
        if isinstance(value, bool) or not isinstance(value, wanted):
            raise _WrongTypeError
        try:
            float(value)
        except OverflowError:
            raise _WrongTypeError from None
        return value if type(value) is int else kind(value)
    if kind is bool:
        if type(value).__name__ not in ("bool", "bool_"):  # the latter is numpy's
            raise _WrongTypeError
        return bool(value)
    if kind is Path and isinstance(value, os.PathLike):
        return value if isinstance(value, Path) else Path(value)
    if not isinstance(value, kind):
        raise _WrongTypeError
    return value


def _described(kind: Any) -> str:
    """Describe a type in words, for a hint."""
    kind = kind.__origin__ if get_origin(kind) is Annotated else kind
    if is_union(kind):
        return " or ".join(dict.fromkeys(map(_described, get_args(kind))))
    origin = get_origin(kind)
    if origin is Literal:
        return ", ".join(map(str, get_args(kind)))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        of = get_args(kind)[1]
        return f"a mapping of names to {'numbers' if of is float else 'values'}"
    if isinstance(origin, type) and issubclass(origin, Collection):
        return f"a list, each {_described(get_args(kind)[0])}"
    return _ONE[kind] if kind in _ONE else str(kind.__name__)


def fill_missing(request: object) -> None:
    """Give a field that is None its default, if that is made anew for each request.

    Such a default is a mapping or a list. Call it in `__post_init__`.
    """
    for field in fields(request):  # type: ignore[arg-type]
        factory = field.default_factory
        if factory is not MISSING and getattr(request, field.name) is None:
            object.__setattr__(request, field.name, factory())


def takes(request: Callable[P, Request]) -> Callable[[Callable[[Request], R]], Callable[P, R]]:
    """Make a function of a request one of the options of that request.

    `trace(request)` is then called as `trace("tiny-llama", phase="decode")`, with the signature of
    the class, and its docstring lists the options. An option that does not exist raises TypeError
    with the nearest ones.
    """

    def decorate(function: Callable[[Request], R]) -> Callable[P, R]:
        @wraps(function)
        def call(*args: P.args, **options: P.kwargs) -> R:
            return function(checked(request(*args, **options)))

        signature, returns = inspect.signature(request), inspect.signature(function)
        described = {named.name: named for named in options_of(request)}  # type: ignore[arg-type]
        parameters = []
        for parameter in signature.parameters.values():
            if (named := described.get(parameter.name)) is not None:
                # A dataclass's signature has `<factory>` as the default of a mapping.
                default = parameter.default if named.default is MISSING else named.default
                parameter = parameter.replace(annotation=named.type, default=default)
            parameters.append(parameter)
        call.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=parameters, return_annotation=returns.return_annotation
        )
        call.__annotations__ = {p.name: p.annotation for p in parameters}
        call.__annotations__["return"] = returns.return_annotation
        call.__doc__ = _documented(inspect.getdoc(function) or "", described)
        return helpful(call)

    return decorate


def _documented(text: str, options: Mapping[str, NamedOption]) -> str:
    """Add what the options do to a docstring, before what it returns."""
    before, returns, after = text.partition("Returns:\n")
    lines = "".join(f"    {name}: {named.option.help}\n" for name, named in options.items())
    return f"{before.rstrip()}\n\nArgs:\n{lines}\n{returns}{after}"


# Options that several requests share.
MOST = 2**31  # of anything that is counted
# Samples of a phase, and placements, each of which needs one: a capture takes up to four times as
# many as were requested, and a run.json holds 20,000 (`taxonomy.run.MAX_SAMPLES`).
MOST_SAMPLES = 5_000
# TFLOP/s of a peak and GB/s of a bandwidth: from a thousandth of what a microcontroller does to a
# thousand times the largest machine of today, and well inside what doubles multiply exactly enough.
LEAST_RATE, MOST_RATE = 1e-6, 1e9
Phases = Annotated[
    Literal["prefill", "decode", "both"],
    Option(help="Phase of inference to run: prefill, decode, or both.", in_name=""),
]
Phase = Literal["prefill", "decode"]
LegalTp = Annotated[
    int,
    Option(
        help="Degree of tensor parallelism by which the engine divides heads and channels.",
        metavar="N",
        least=1,
        most=1024,
        model=True,
    ),
]
AllowCode = Annotated[
    bool,
    Option(
        help="Save a model that no class of transformers holds (low rank, layers of different "
        "widths) with a modeling file of its own; without it, that is refused."
    ),
]
Batch = Annotated[
    int,
    Option(
        help="Number of sequences that run at a time.",
        unit="sequences",
        least=1,
        most=MOST,
        in_name="b",
    ),
]
PromptLen = Annotated[
    int,
    Option(
        help="Length of each prompt in tokens, without the answer.",
        unit="tokens",
        least=1,
        most=MOST,
        in_name="p",
    ),
]
Logits = Annotated[
    Literal["last", "all"],
    Option(
        help="Positions whose logits prefill computes: the last of a prompt, or all.",
        in_name="logits-",
        default_in_name=False,
    ),
]
Knobs = Annotated[
    Mapping[str, str],
    Option(
        help="Setting of the pruning family, repeatable; `prunescope families` lists them and "
        "their defaults.",
        flag="--set",
        metavar="KEY=VALUE",
        typed=list[str],
        parse=pairs,
        in_name="",
        default_in_name=False,
        model=True,
    ),
]
Peaks = Annotated[
    Mapping[str, float],
    Option(
        help="Dense peak of the device for a number format, in TFLOP/s, repeatable; without it, "
        "the peak that is known or measured.",
        flag="--peak",
        metavar="DTYPE=TFLOPS",
        typed=list[str],
        parse=peaks,
        canonical=rename_formats,
        least=LEAST_RATE,
        most=MOST_RATE,
    ),
]
Bandwidth = Annotated[
    float | None,
    Option(
        help="Memory bandwidth of the device in GB/s; without it, the one that is known or "
        "measured.",
        unit="GB/s",
        least=LEAST_RATE,
        most=MOST_RATE,
    ),
]
Engine = Annotated[
    Literal["local", "ray"],
    Option(help="Where prunescope's processes run: on this machine (local) or on a Ray cluster."),
]


def as_path(given: Path | str | None) -> Path | None:
    """Return a path as it is, or that of a text; None for None.

    Raises:
        PrunescopeError: `given` is anything else.
    """
    if given is None:
        return None
    if not isinstance(given, str | os.PathLike) or "\0" in str(given):
        raise PrunescopeError(
            f"{reprlib.repr(given)}, of type {type(given).__name__}, is not a path",
            hint="accepted: a path or a text",
        )
    return Path(given)


def needed_path(given: Path | str) -> Path:
    """Return a path that has to be given.

    Raises:
        PrunescopeError: It is None or an empty text, or not a path.
    """
    path = as_path(given)
    if path is None or not str(given).strip():
        raise PrunescopeError("no path is given", hint="accepted: a path or a text")
    return path
