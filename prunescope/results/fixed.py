"""The repairs of a model that `prunescope fix` tried and measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Self

from prunescope.results.result import StructResult, TabledResult
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.fixes import FIXES, Fixes, TriedRepair
from prunescope.taxonomy.formats import decode
from prunescope.taxonomy.option import needed_path

if TYPE_CHECKING:
    from prunescope.analysis.report.records import Records
    from prunescope.analysis.report.sheet import Sheet
    from prunescope.tracer.repairs.request import FixCall


class Fixed(StructResult, TabledResult, Fixes, kw_only=True, dict=True):
    """The result of `fix`: each repair with its finding, its gain, and whether it was kept.

    Examples:
        >>> fixed = prunescope.fix("./pruned", method="mine:prune", sparsity=0.5, out="fixed")
        >>> fixed.gain, [repair.id for repair in fixed.repairs if repair.kept]
        >>> fixed.table.to_polars()
    """

    @classmethod
    def compute(cls, call: FixCall) -> Self:
        """Try and measure the repairs, and write fix.json and repairs.py."""
        from prunescope.fixing import fix

        fixed = cls.of(fix(call))
        fixed.__dict__["_where"] = str(call.folder)
        return fixed

    @classmethod
    def load(cls, folder: Path | str) -> Self:
        """Read the fix.json of a folder back.

        Args:
            folder: The folder that `fix` wrote.

        Raises:
            PrunescopeError: There is no such file, or it is not a result of this version.
        """
        path = needed_path(folder) / FIXES
        if not path.is_file():
            raise PrunescopeError(
                f"no such file: {path.name}", hint="give the folder that `prunescope fix` wrote"
            )
        fixed = cls.of(decode(path.read_bytes(), Fixes, where=FIXES, hint="run fix again"))
        fixed.__dict__["_where"] = str(folder)
        return fixed

    @property
    def table(self) -> Records:
        """One row per repair: its finding, predicted and measured gain, and why it was not kept."""
        from prunescope.analysis.report.records import structs

        return structs("repairs", TriedRepair, self.repairs)

    def __repr__(self) -> str:
        kept = [repair.id for repair in self.repairs if repair.kept]
        return f"<Fixed {self.model}: {', '.join(kept) or 'nothing'} kept; show() prints it>"

    def __rich__(self) -> Sheet:
        from prunescope.analysis.report.fix_tables import fix_sheet

        return fix_sheet(self, self.__dict__.get("_where", "."))
