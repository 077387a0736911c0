"""How any typed function becomes a command: its options, their help, and completion.

The commands themselves are in cli.py. In: a function whose parameters are options
(`taxonomy.option.Option` in an annotation) or a request class full of them. Out: what typer takes.
Nothing heavy is imported before a command runs.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, ParamSpec, get_args, get_type_hints

import typer

from prunescope.taxonomy.arguments import number, whole_number
from prunescope.taxonomy.option import NamedOption, checked, is_union, named_option, options_of

P = ParamSpec("P")


def from_options(function: Callable[P, None]) -> Callable[..., None]:
    """Return the function as typer calls it, by the options of its requests and its own."""
    hints = get_type_hints(function, include_extras=True)
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
    of_requests = {name: list(options_of(kind)) for name, kind in requests.items()}
    shown = [*(option for each in of_requests.values() for option in each), *own.values()]

    def call(**values: Any) -> None:
        given: dict[str, Any] = {}
        for name, kind in requests.items():
            given[name] = checked(kind(**_given(of_requests[name], values)))
        if (target := values.get("json_target")) is not None:
            from prunescope.output import check_target

            check_target(target)
        function(**given, **_given(own.values(), values))  # type: ignore[call-arg]

    call.__doc__ = function.__doc__
    call.__name__ = function.__name__
    call.__signature__ = inspect.Signature([_parameter(option) for option in shown])  # type: ignore[attr-defined]
    return call


def _given(options: Iterable[NamedOption], values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of options as their function takes them; those not given keep defaults."""
    parsed = {
        option.name: value if option.option.parse is None else option.option.parse(value)
        for option in options
        if (value := values[option.name]) is not None
    }
    return parsed


def _parameter(named: NamedOption) -> inspect.Parameter:
    """Return an option as typer reads it from a signature."""
    option, kind = named.option, _kind_of(named)
    metavar = option.metavar or option.unit.upper() or None
    if option.argument:
        shown = typer.Argument(metavar=metavar, help=option.help)
    else:
        flags = named.flags if kind is bool or option.flag else ()
        eager = None if option.eager is None else _called(option.eager)
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


def _kind_of(named: NamedOption) -> Any:
    """Return the type of the words of an option on the command line, without None."""
    kinds = get_args(named.type) if is_union(named.type) else (named.type,)
    kinds = tuple(kind for kind in kinds if kind is not type(None))
    if named.option.typed is not None:
        return named.option.typed
    return Path if Path in kinds else kinds[0]


def _reader(read: Callable[[str], Any], what: str) -> Callable[[Any], Any]:
    def from_text(text: Any) -> Any:
        if not isinstance(text, str):  # a default
            return text
        if (found := read(text)) is None:
            raise typer.BadParameter(f"{text[:40]!r} is not {what}")
        return found

    return from_text


# Not what typer would do: it takes 1_0 and the digits of other scripts.
_READERS = {int: _reader(whole_number, "a whole number"), float: _reader(number, "a number")}


def _called(action: Callable[[], None]) -> Callable[[bool], None]:
    def act(wanted: bool) -> None:  # noqa: FBT001 - typer calls it so
        if wanted:
            action()
            raise typer.Exit

    return act


# What a shell completes, each list read only when a shell asks: in, what was typed so far; out,
# the words that can follow.


def _listed(typed: str, words: Iterable[str], separators: str = ",") -> list[str]:
    """Yield words that complete the last part of a list such as `md,p`, with what precedes."""
    at = max((typed.rfind(separator) for separator in separators), default=-1) + 1
    before, last = typed[:at], typed[at:]
    return [f"{before}{word}" for word in words if word.startswith(last)]


def models(incomplete: str) -> list[str]:
    """Presets."""
    from prunescope.taxonomy.presets import preset_names

    return _listed(incomplete, preset_names(), "")


def families(incomplete: str) -> list[str]:
    """Families, several joined by +, each with its sparsity."""
    from prunescope.taxonomy.families import families as known

    return _listed(incomplete, (family.id for family in known()), "+")


def methods(incomplete: str) -> list[str]:
    """Families and published methods, several with commas."""
    from prunescope.taxonomy.families import families as known
    from prunescope.taxonomy.methods import method_names

    return _listed(incomplete, [*(family.id for family in known()), *method_names()], ",+")


def devices(incomplete: str) -> list[str]:
    """Devices of the table."""
    from prunescope.analysis.device.hardware import DEVICES

    return _listed(incomplete, (device.name for device in DEVICES), "")


def machines(incomplete: str) -> list[str]:
    """Devices of this machine as torch calls them."""
    return _listed(incomplete, ("auto", "cpu", "cuda", "mps"), "")


def dtypes(incomplete: str) -> list[str]:
    """List the number formats that a model runs in."""
    return _listed(incomplete, ("auto", "bfloat16", "float16", "float32"), "")


def formats(incomplete: str) -> list[str]:
    """List the formats of a report that complete a word; several are separated by commas."""
    from prunescope.analysis.report.formats import FORMATS

    return _listed(incomplete, FORMATS)
