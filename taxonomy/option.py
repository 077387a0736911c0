"""An option, written once: the annotation of a field of a request class.

    batch: Annotated[int, Option(help="Number of sequences ...", unit="sequences", least=1)] = 1

is the option `--batch` of the command, the parameter `batch` of the Python function, a key of a
sweep file, and a part of the name of a result. In: a request class. Out: its options, checked
values. The command line imports this before anything else: the standard library alone.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import wraps
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin

from prunescope.taxonomy.arguments import pairs, peaks
from prunescope.taxonomy.errors import PrunescopeError, helpful

P = ParamSpec("P")
Request = TypeVar("Request")
R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """What there is to know of an option beside its name, type and default."""

    help: str  # one sentence: what it does, its unit, what happens without it
    unit: str = ""  # of a number; stands for the number in the help
    metavar: str = ""  # what stands for the value in the help, where that is not the unit
    flag: str = ""  # its words on the command line, where they are not the name of the field
    argument: bool = False  # given by its place on the command line, without a flag
    least: int | None = None
    most: int | None = None
    typed: Any = None  # its type on the command line, where that is not the field's
    parse: Callable[[Any], Any] | None = None  # from that type to the field's
    complete: str = ""  # a function of prunescope/command.py that lists values for a shell
    eager: Callable[[], None] | None = None  # called where it is given, before all other options
    # In a sweep. Options with `in_name` vary from result to result, all others have one value in a
    # sweep and make its identity.
    in_name: str | None = None  # what stands before its value in the name of a result
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
        """Its words on the command line, the long one first."""
        return self.option.flag.split() or [f"--{self.name.replace('_', '-')}"]


def is_union(kind: Any) -> bool:
    """Whether a type is `A | B`."""
    return get_origin(kind) in (Union, UnionType)


def named_option(name: str, annotation: Any, default: Any) -> NamedOption | None:
    """The option that an annotation describes; None where it describes none."""
    option = next((m for m in getattr(annotation, "__metadata__", ()) if type(m) is Option), None)
    if option is None:
        return None
    return NamedOption(name, annotation.__origin__, option, default)


def options_of(request: type) -> Iterator[NamedOption]:
    """The options of a request class, in order. Its other fields are Python's alone."""
    for field in fields(request):
        factory = field.default_factory
        default = field.default if factory is MISSING else factory()
        if (found := named_option(field.name, field.type, default)) is not None:
            yield found


def check_options(request: object) -> None:
    """Raises PrunescopeError for the first value that is none of its choices or out of range."""
    for named in options_of(type(request)):
        value, option = getattr(request, named.name), named.option
        if value is None:
            continue
        if named.choices and value not in named.choices:
            raise PrunescopeError(
                f"{named.flags[0]} {str(value)!r} is not one of its values",
                hint=f"one of {', '.join(named.choices)}",
            )
        if isinstance(value, int):
            check_range(named.flags[0], value, option.least, option.most)


def check_range(name: str, value: int, least: int | None, most: int | None) -> None:
    """Raises PrunescopeError for a number outside [least, most]."""
    # Python itself does not spell out a number of thousands of digits.
    shown = f"{name} {value}" if value.bit_length() < 256 else name
    if least is not None and value < least:
        raise PrunescopeError(f"{shown} is too small", hint=f"the smallest value is {least}")
    if most is not None and value > most:
        raise PrunescopeError(f"{shown} is too large", hint=f"the largest value is {most}")


def fill_missing(request: object) -> None:
    """Give a field that is None its default, where that is made anew for each request: a mapping or
    a list. For `__post_init__`."""
    for field in fields(request):  # type: ignore[arg-type]
        factory = field.default_factory
        if factory is not MISSING and getattr(request, field.name) is None:
            object.__setattr__(request, field.name, factory())


def takes(request: Callable[P, Request]) -> Callable[[Callable[[Request], R]], Callable[P, R]]:
    """Make a function of a request one of the options of that request: `trace(request)` is called
    as `trace("tiny-llama", phase="decode")`, with the signature of the class. Its docstring
    lists them. An option that there is not raises TypeError with the nearest ones."""

    def decorate(function: Callable[[Request], R]) -> Callable[P, R]:
        @wraps(function)
        def call(*args: P.args, **options: P.kwargs) -> R:
            return function(request(*args, **options))

        signature, returns = inspect.signature(request), inspect.signature(function)
        described = {named.name: named for named in options_of(request)}  # type: ignore[arg-type]
        parameters = [
            p.replace(annotation=described[p.name].type, default=_shown(described[p.name], p))
            if p.name in described
            else p
            for p in signature.parameters.values()
        ]
        call.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=parameters, return_annotation=returns.return_annotation
        )
        call.__annotations__ = {p.name: p.annotation for p in parameters}
        call.__annotations__["return"] = returns.return_annotation
        call.__doc__ = _documented(inspect.getdoc(function) or "", described)
        return helpful(call)

    return decorate


def _shown(named: NamedOption, parameter: inspect.Parameter) -> Any:
    """A default as a signature shows it: dataclasses write `<factory>` for an empty mapping."""
    return parameter.default if named.default is MISSING else named.default


def _documented(text: str, options: Mapping[str, NamedOption]) -> str:
    """A docstring with what its options do, before its examples."""
    before, examples, after = text.partition("Examples:\n")
    lines = "".join(f"    {name}: {named.option.help}\n" for name, named in options.items())
    return f"{before.rstrip()}\n\nArgs:\n{lines}\n{examples}{after}"


# Options that several requests share.
MOST = 2**31  # of anything that is counted
Phases = Annotated[
    Literal["prefill", "decode", "both"],
    Option(help="Phase of inference to run: prefill, decode, or both.", in_name=""),
]
Phase = Literal["prefill", "decode"]
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
    Option(help="Positions whose logits prefill computes: the last of a prompt, or all."),
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
    ),
]
Bandwidth = Annotated[
    float | None,
    Option(
        help="Memory bandwidth of the device in GB/s; without it, the one that is known or "
        "measured.",
        unit="GB/s",
    ),
]
Engine = Annotated[
    Literal["local", "ray"],
    Option(help="Where the work runs: on this machine, or on a Ray cluster."),
]


def as_path(given: Path | str | None) -> Path | None:
    """A path as it is, or that of a text; None for None."""
    return None if given is None else Path(given)
