"""The verification of a bundle, as `prunescope verify` gives it."""

from __future__ import annotations

import html
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from prunescope.results.result import Result
from prunescope.taxonomy.by_name import ByName, by_name

if TYPE_CHECKING:
    from rich.text import Text


class Verified(Result, ByName):
    """The result of `verify`: the dict of `--json`, which prints as the command does.

    Examples:
        >>> verified = prunescope.verify("evidence.zip")
        >>> verified.passed, verified["failed"]
    """

    noun = "entry of a verification"

    def __init__(self, *values: Any, **more: Any) -> None:
        super().__init__(by_name(dict(*values, **more), "verification"))

    @classmethod
    def compute(cls, path: Path) -> Self:
        """Verify the bundle in a zip file."""
        from prunescope.analysis.bundle.verify import verify

        return cls(verify(path))

    @property
    def passed(self) -> bool:
        """Whether the command ends with exit code 0.

        No file is then wrong, all could be compared, and the profiled steps allow the speedup of
        the samples.
        """
        return self.passes(allow_missing_figures=False)

    def passes(self, *, allow_missing_figures: bool) -> bool:
        """Return whether the command passes.

        Args:
            allow_missing_figures: Whether figures that could not be rebuilt here are accepted.
        """
        left = [entry["file"] for entry in self["not_compared"]]
        if allow_missing_figures:
            left = [name for name in left if not name.endswith((".svg", ".png", ".pdf"))]
        return bool(self["ok"] and not left and self["samples_agree"] is not False)

    def __repr__(self) -> str:
        wrong, checked = len(self["failed"]), self["checked"]
        outcome = "passed" if self.passed else "partial" if self["partial"] else "failed"
        return f"<Verified: {outcome}, {wrong} of {checked} files wrong; show() prints it>"

    def __rich__(self) -> Text:
        from prunescope.analysis.report.listings import verified

        return verified(self, passes=self.passed)

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(self.__rich__().plain)}</pre>"
