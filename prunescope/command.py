"""How a typed function becomes a command: its options, their words in the help, and completion.

In: a function whose parameters are options (`taxonomy.option.Option` in an annotation) or a request
class full of them. Out: what typer takes. The commands themselves are in cli.py. Nothing heavy is
imported before a command runs.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from functools import wraps
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, ParamSpec, get_args, get_type_hints

import typer

from prunescope import startup
from prunescope.taxonomy.arguments import number, whole_number
from prunescope.taxonomy.option import (
    NamedOption,
    Option,
    checked,
    is_union,
    named_option,
    options_of,
)

P = ParamSpec("P")
_Timings = Annotated[
    str | None,
    Option(
        help="Write where the time went as JSON to FILE, or alone to standard output with -: "
        "total_s, forwards_s inside of the model, and parts that add up to the total.",
        metavar="FILE|-",
    ),
]


def register(
    app: typer.Typer, name: str, *, requests: Mapping[str, str], timings: bool = False
) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """Return a decorator that makes a function a command of `app`, with `--timings` if asked.

    The options of a command are made when it is called or its help is shown: those of all
    commands, and their classes, take twice the CPU time of `prunescope --help` without them.

    Args:
        app: The commands.
        name: The name of this one.
        requests: The module of each class that annotations of the function may name.
        timings: Whether it has `--timings`.
    """

    def decorate(function: Callable[P, None]) -> Callable[P, None]:
        def make() -> Callable[..., None]:
            command = from_options(function, requests)
            return with_timings(command) if timings else command

        app.command(name, help=function.__doc__, cls=startup.on_demand(make))(_no_options)
        return function

    return decorate


def _no_options() -> None:
    """Stand for a command in typer's list until its options are made."""


def from_options(
    function: Callable[P, None], classes: Mapping[str, str] = MappingProxyType({})
) -> Callable[..., None]:
    """Return a function as typer calls it, by the options of its requests and its own.

    `classes` are the modules of the classes that its annotations name and its module lacks.
    """
    words = [word for word in function.__annotations__.values() if word in classes]
    imported = {word: getattr(importlib.import_module(classes[word]), word) for word in words}
    hints = get_type_hints(function, localns=imported, include_extras=True)
    own: dict[str, NamedOption] = {}
    requests: dict[str, type] = {}
    for parameter in inspect.signature(function).parameters.values():
        annotation = hints[parameter.name]
        if dataclasses.is_dataclass(annotation):
            requests[parameter.name] = annotation  # type: ignore[assignment]
            continue
        default = parameter.default
        default = dataclasses.MISSING if default is inspect.Parameter.empty else default
        named = named_option(parameter.name, annotation, default)
        assert named is not None, f"{function.__name__}: {parameter.name} is no option"
        own[parameter.name] = named
    request_options = {name: list(options_of(kind)) for name, kind in requests.items()}
    shown = [*chain.from_iterable(request_options.values()), *own.values()]

    def call(**values: Any) -> None:
        given: dict[str, Any] = {}
        for name, kind in requests.items():
            given[name] = checked(kind(**_parse_given(request_options[name], values)))
        with ExitStack() as stack:
            if (target := values.get("json_target")) is not None:
                from prunescope.output import check_target, kept_for_json

                check_target(target)
                if target == "-":
                    stack.enter_context(kept_for_json())
            function(**given, **_parse_given(own.values(), values))  # type: ignore[call-arg]

    call.__doc__ = function.__doc__
    call.__name__ = function.__name__
    call.__signature__ = inspect.Signature([_make_parameter(named) for named in shown])  # type: ignore[attr-defined]
    return call


def with_timings(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command of `from_options` with `--timings`, which tells where its time went."""
    named = named_option("timings", _Timings, None)
    assert named is not None

    @wraps(command)
    def timed(*, timings: str | None = None, **values: Any) -> None:
        if timings is None:
            command(**values)
            return
        from prunescope.timed import timings_written

        with timings_written(timings, beside=values.get("json_target")):
            command(**values)

    signature = inspect.signature(command)
    parameters = [*signature.parameters.values(), _make_parameter(named)]
    timed.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return timed


def _parse_given(options: Iterable[NamedOption], values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of options as their function takes them.

    Options that are not given are left to their defaults.
    """
    return {
        named.name: value if named.option.parse is None else named.option.parse(value)
        for named in options
        if (value := values[named.name]) is not None
    }


def _make_parameter(named: NamedOption) -> inspect.Parameter:
    """Return an option as typer reads it from a signature."""
    option, kind = named.option, _command_line_type(named)
    metavar = option.metavar or option.unit.upper() or None
    if option.argument:
        shown = typer.Argument(metavar=metavar, help=option.help)
    else:
        flags = named.flags if kind is bool or option.flag else ()
        eager = None if option.eager is None else _make_callback(option.eager)
        listed = globals()[option.complete] if option.complete else None
        shown = typer.Option(
            *flags,
            metavar=metavar,
            help=option.help,
            min=option.least if kind is int else None,
            parser=_READERS.get(kind),
            autocompletion=listed,
            is_eager=eager is not None,
            callback=eager,
        )
    default = inspect.Parameter.empty if named.default is dataclasses.MISSING else named.default
    if default in ((), {}):
        default = None  # typer's value of a repeatable option that is not given
    if default is None:
        kind = kind | None
    return inspect.Parameter(
        named.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[kind, shown],
    )


def _command_line_type(named: NamedOption) -> Any:
    """Return the type of an option's words on the command line, without None."""
    kinds = get_args(named.type) if is_union(named.type) else (named.type,)
    kinds = tuple(kind for kind in kinds if kind is not type(None))
    if named.option.typed is not None:
        return named.option.typed
    return Path if Path in kinds else kinds[0]


def _make_reader(read: Callable[[str], Any], noun: str) -> Callable[[Any], Any]:
    """Return a parser of one word; None from `read` means that the word is not a `noun`."""

    def from_text(text: Any) -> Any:
        if not isinstance(text, str):  # a default
            return text
        if (value := read(text)) is None:
            raise typer.BadParameter(f"{text[:40]!r} is not {noun}")
        return value

    return from_text


# Not what typer would do: it takes 1_0 and the digits of other scripts.
_READERS = {
    int: _make_reader(whole_number, "a whole number"),
    float: _make_reader(number, "a number"),
}


def _make_callback(action: Callable[[], None]) -> Callable[[bool], None]:
    """Return a callback that runs an action, if its flag is given, and ends the command."""

    def act(is_given: bool) -> None:  # noqa: FBT001 - typer calls it so
        if is_given:
            action()
            raise typer.Exit

    return act


# What a shell completes, each list read only when a shell asks: in, what was typed so far; out,
# the words that can follow.


def _complete(typed: str, words: Iterable[str], separators: str = ",") -> list[str]:
    """Return the words that complete the last part of a list such as `md,p`.

    Each has what precedes that part before it.
    """
    at = max((typed.rfind(separator) for separator in separators), default=-1) + 1
    before, last = typed[:at], typed[at:]
    return [f"{before}{word}" for word in words if word.startswith(last)]


def models(incomplete: str) -> list[str]:
    """Return the presets that complete a word."""
    from prunescope.taxonomy.presets import preset_names

    return _complete(incomplete, preset_names(), "")


def families(incomplete: str) -> list[str]:
    """Return the families that complete a word; several are joined by +, each with its sparsity."""
    from prunescope.taxonomy.families import families as known

    return _complete(incomplete, (family.id for family in known()), "+")


def methods(incomplete: str) -> list[str]:
    """Return the families and published methods that complete a list with commas."""
    from prunescope.taxonomy.families import families as known
    from prunescope.taxonomy.methods import method_names

    return _complete(incomplete, [*(family.id for family in known()), *method_names()], ",+")


def devices(incomplete: str) -> list[str]:
    """Return the devices of the table, and the calibrated CPU, that complete a word."""
    from prunescope.analysis.device.calibrated import CPU
    from prunescope.analysis.device.hardware import DEVICES

    return _complete(incomplete, [*(device.name for device in DEVICES), CPU], "")


def machines(incomplete: str) -> list[str]:
    """Return the devices of this machine, as torch calls them, that complete a word."""
    return _complete(incomplete, ("auto", "cpu", "cuda", "mps", "npu", "xpu"), "")


def dtypes(incomplete: str) -> list[str]:
    """Return the number formats of a model that complete a word."""
    return _complete(incomplete, ("auto", "bfloat16", "float16", "float32"), "")


def formats(incomplete: str) -> list[str]:
    """Return the formats of a report that complete a list with commas."""
    from prunescope.analysis.report.formats import FORMATS

    return _complete(incomplete, FORMATS)


def repairs(incomplete: str) -> list[str]:
    """Return the repairs of `fix` that complete a word."""
    from prunescope.taxonomy.repairs import BY_ID

    return _complete(incomplete, BY_ID, "")
