"""What the results have in common: they print themselves, and become plain values, JSON and files.

In: a struct or dict of the schema. Out: what a console, a notebook, a folder or a command shows of
it. Nothing here imports polars, matplotlib or torch before it is needed.
"""

from __future__ import annotations

import reprlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import msgspec

from prunescope.output import console_for, plain_json, write_json
from prunescope.taxonomy.by_name import by_name
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.option import needed_path
from prunescope.taxonomy.timings import part

if TYPE_CHECKING:
    from rich.console import RenderableType

    from prunescope.analysis.report.records import Frame, Records

T = TypeVar("T")  # a struct of the schema with methods
PICTURES = ("png", "pdf", "svg")  # formats of figures


class Result:
    """A result that prints as its command does, in a console or a notebook."""

    __slots__ = ()

    def __rich__(self) -> RenderableType:
        raise NotImplementedError

    def show(self) -> None:
        """Print what the command prints."""
        console_for(None).print(self.__rich__())

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as in the JSON that the command writes."""
        values: dict[str, Any] = msgspec.to_builtins(self)
        return values

    def to_json(self) -> bytes:
        """Return the UTF-8 JSON that the command writes, indented by two spaces."""
        return plain_json(self.to_dict())

    def _repr_html_(self) -> str:
        from prunescope.analysis.report.notebook import render_sheet

        view: Any = self.__rich__()
        return render_sheet(view)

    def _render(self, names: Sequence[str]) -> dict[str, bytes]:
        """Return the files of some formats, by file name."""
        raise NotImplementedError

    def _save(
        self,
        folder: Path | str,
        formats: Sequence[str] | str,
        known: Collection[str],
        **look: Any,
    ) -> list[Path]:
        """Write the files of each format into `folder`, all or none, and return their paths.

        Args:
            folder: The folder.
            formats: The formats.
            known: All formats that it has.
            **look: How figures are printed, as `printing_of` takes it: width, font, label_prefix.

        Raises:
            PrunescopeError: A format is not one of `known`, or the folder cannot be written.
        """
        from prunescope.analysis.report.printing import printed_as, printing_of
        from prunescope.analysis.report.write import check_formats, write_files

        names = format_names(formats)
        check_formats(names, known)
        with printed_as(printing_of(names, **look)):
            files = self._render(names)
        return write_files(files, needed_path(folder))


class StructResult(Result):
    """A result that is a struct of the schema with methods."""

    __slots__ = ()

    @classmethod
    def of(cls, struct: Any) -> Self:
        """Return the result with the values of the struct that the analysis returned."""
        return with_fields_of(struct, cls)


class TabledResult(Result):
    """A result that has a table."""

    __slots__ = ()

    @property
    def table(self) -> Records:
        """The rows of the result."""
        raise NotImplementedError

    def to_polars(self) -> Frame:
        """Return `table` as a polars DataFrame."""
        return self.table.to_polars()

    def _csv(self) -> bytes:
        """Return `table` as CSV whose strings do nothing in a spreadsheet."""
        from prunescope.analysis.report.tables import inert_frame

        return inert_frame(self.to_polars()).write_csv().encode()


def with_fields_of(struct: msgspec.Struct, kind: type[T]) -> T:
    """Return a `kind` with the values of a struct of the schema.

    Its dicts name the nearest entry when an entry is missing.
    """
    values = {name: getattr(struct, name) for name in struct.__struct_fields__}
    named: T = by_name(kind(**values), kind.__name__)
    return named


@part("write")
def deliver_result(
    result: Result, json_target: str | None, view: RenderableType | None = None
) -> None:
    """Do what a command does with its result: write its JSON, and print it.

    Args:
        result: The result.
        json_target: A file, "-" for standard output, or None for no JSON.
        view: What is printed; None: what `result.show()` prints.
    """
    if json_target is not None:
        write_json(result.to_json(), json_target)
    console_for(json_target).print(result.__rich__() if view is None else view)


def format_names(formats: Sequence[str] | str) -> list[str]:
    """Return the names of formats that a caller gave as a list, or as a text with commas.

    Raises:
        PrunescopeError: They are neither.
    """
    names = formats.split(",") if isinstance(formats, str) else formats
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise PrunescopeError(
            f"formats is {reprlib.repr(formats)}", hint='accepted: "md,json", or a list of names'
        )
    return [name.strip() for name in names]
