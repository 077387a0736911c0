"""What a paper cites, as `prunescope cite` prints it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import msgspec

from prunescope.results.result import Result
from prunescope.taxonomy.citations import Citation, citations, method_citation
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.methods import PublishedMethod, published
from prunescope.taxonomy.runs.run_blocks import Pruning

if TYPE_CHECKING:
    from rich.console import RenderableType


class Citations(Result, msgspec.Struct, kw_only=True):
    """The tool, the paper of the taxonomy, and the published methods of runs.

    Examples:
        >>> print(prunescope.cite("traces/first").bibtex)
    """

    schema: int = 1
    citations: list[Citation]
    own_methods: list[str] = []  # functions that were run, which no list of methods knows

    @classmethod
    def compute(cls, runs: Sequence[Path] = (), names: Sequence[str] = ()) -> Self:
        """Return what a paper about runs cites.

        Args:
            runs: Runs, or folders of runs such as sweeps.
            names: Published methods to cite besides those that were run.
        """
        prunings = list(_prunings(runs))
        version = _version()
        cited = citations(version, prunings)
        cited += [method_citation(_with_source(published(name))) for name in names]
        own = {
            pruning.method: pruning.display_name or pruning.method
            for pruning in prunings
            if pruning.method and ":" in pruning.method and not pruning.parts
        }
        once = {citation.key: citation for citation in cited}
        return cls(citations=list(once.values()), own_methods=list(own.values()))

    @property
    def bibtex(self) -> str:
        """The entries, with a comment for each method of the user's own."""
        entries = [citation.bibtex() for citation in self.citations]
        comments = [f"% {name}: your own method, which your paper describes" for name in self._own]
        return "\n\n".join([*entries, *comments]) + "\n"

    @property
    def _own(self) -> list[str]:
        from prunescope.analysis.report.escape import clean

        return [clean(name) for name in self.own_methods]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, with the BibTeX of each citation."""
        values: dict[str, Any] = msgspec.to_builtins(self)
        return {**values, "bibtex": self.bibtex}

    def __rich__(self) -> RenderableType:
        from rich.text import Text

        return Text(self.bibtex.rstrip(), no_wrap=True, overflow="ignore")


def _with_source(method: PublishedMethod) -> PublishedMethod:
    """Return a method that names a paper, an address or a year.

    Raises:
        PrunescopeError: It names none.
    """
    if method.arxiv is None and method.source is None and method.year is None:
        raise PrunescopeError(
            f"{method.name} is no single publication: {method.because}",
            hint="cite the paper whose criterion you ran",
        )
    return method


def _prunings(runs: Sequence[Path]) -> list[Pruning]:
    from prunescope.analysis.inputs.open import locate
    from prunescope.analysis.named_runs import find_runs
    from prunescope.taxonomy.runs.run import MANIFEST, read_run

    prunings = []
    for named in find_runs(runs):
        folder = locate(named.path)
        if not (folder / MANIFEST).is_file():
            raise PrunescopeError(
                f"{named.name} is no run", hint="name a folder that trace or sweep wrote"
            )
        if (pruning := read_run(folder).pruning) is not None:
            prunings.append(pruning)
    return prunings


def _version() -> str:
    import prunescope

    return prunescope.__version__
