"""The settings that make `prunescope analyze` start faster, and by how much.

The gains are medians, in turns, on two cores.

- BLAS gets one thread: an analysis multiplies no matrices. 0.11 s of wall time on a small trace
  (n = 15).
- The garbage collector looks for cycles rarely: imports and tables make millions of objects that
  are in none. 0.07 s of CPU time on a trace of 363,000 events, 0.10 s on a small run. Nor does it
  look when the process ends: 0.15 s of CPU time on both.
- Values of options that are plain texts and paths are taken unchanged: typer has pydantic look at
  every value, and importing that takes 0.06 s of CPU time.
- Processes that read a large trace begin before the options are parsed: 0.24 s of wall time on a
  trace of 363,000 events (n = 9).
"""

from __future__ import annotations

import atexit
import gc
import os
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, get_args

import typer
from typer.core import TyperCommand, TyperGroup

Process = Callable[[Any, Any], Any]
# Objects made before the collector looks for cycles. An analysis makes no cycle worth a look: each
# takes 0.03 s, and there were four.
_GC_THRESHOLD, _GC_OF_ANALYSES = 100_000, 2_000_000


def before_options(args: Sequence[str]) -> None:
    """Prepare for a command before its words are parsed."""
    if args[:1] != ["analyze"]:
        gc.set_threshold(_GC_THRESHOLD)
        return
    gc.set_threshold(_GC_OF_ANALYSES)
    atexit.register(gc.freeze)  # what is left ends with the process
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read when numpy is imported
    from prunescope.analysis.trace.workers import begin_early

    begin_early(args[1:])


class _Fast:
    def get_params(self, ctx: Any) -> list[Any]:
        parameters: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for parameter in parameters:
            if "process_value" not in vars(parameter):
                parameter.process_value = partial(_process, parameter, parameter.process_value)
        return parameters


class FastCommand(_Fast, TyperCommand):
    """The class for `app.command(cls=...)`.

    Its paths may be missing, a file or a folder: options that are to exist (`exists=True` and the
    like) are not for it.
    """


def on_demand(make: Callable[[], Callable[..., None]]) -> type[TyperCommand]:
    """Return the class of a command whose options are made when they are first read.

    `make` returns the command's function; typer has a stand-in without options until then.
    """

    class OnDemand(FastCommand):
        @cached_property
        def made(self) -> Any:
            app = typer.Typer(add_completion=False)
            app.command(self.name)(make())
            return typer.main.get_command(app)

        @property
        def params(self) -> Any:
            return self.made.params

        @params.setter
        def params(self, of_stand_in: Any) -> None:
            assert not of_stand_in

        @property
        def callback(self) -> Any:
            return self.made.callback

        @callback.setter
        def callback(self, of_stand_in: Any) -> None:
            pass

    return OnDemand


class FastGroup(_Fast, TyperGroup):
    """The class for `Typer(cls=...)`, whose own options are parsed before those of a command."""


def _process(parameter: Any, checked: Process, context: Any, value: Any) -> Any:
    if not _is_plain(parameter, value):
        return checked(context, value)
    many = parameter.multiple or parameter.nargs == -1
    if value is None:
        value = () if many else None
    elif _kind(parameter) is Path and value is not parameter.default:
        value = [Path(text) for text in value] if many else Path(value)
    return value if parameter.callback is None else parameter.callback(context, parameter, value)


def _is_plain(parameter: Any, value: Any) -> bool:
    if value is None:
        return not parameter.required
    if value is parameter.default:
        return True
    kind = _kind(parameter)
    texts = value if isinstance(value, list | tuple) else [value]
    if kind not in (str, Path) or not texts:
        return False
    is_path = kind is Path
    return all(
        isinstance(text, str)
        and text.isascii()
        and text.isprintable()
        # os.path: it is asked once for each file of a long list.
        and not (is_path and os.path.exists(text) and not os.access(text, os.R_OK))  # noqa: PTH110
        for text in texts
    )


def _kind(parameter: Any) -> Any:
    """Return the type of one value; None if typer keeps it elsewhere than version 0.29 did."""
    annotation = getattr(getattr(parameter, "type_descriptor", None), "annotation", None)
    return (get_args(annotation) or (annotation,))[0]
