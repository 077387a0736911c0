"""GEMMs that `prunescope gemm` replays alone: those of a run, or given shapes.

In: a GemmRequest. Out: a Replayed: the times, and the report of the run that explains with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import msgspec

from prunescope.results.report import Report
from prunescope.results.result import PICTURES, TabledResult
from prunescope.taxonomy.atomic_write import write_file
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.formats import plain
from prunescope.taxonomy.option import as_path
from prunescope.taxonomy.replays import REPLAYS, Replays
from prunescope.taxonomy.runs.run import MANIFEST, read_run

if TYPE_CHECKING:
    from prunescope.analysis.pipeline import Analysis
    from prunescope.analysis.report.records import Records
    from prunescope.analysis.report.replay_figure import ReplayPlots
    from prunescope.analysis.report.sheet import Sheet
    from prunescope.tracer.gemm.request import GemmRequest

FORMATS = ("md", "json", "csv", "tex", *PICTURES)


@dataclass(frozen=True, repr=False)
class Replayed(TabledResult):
    """GEMMs that `gemm` replayed alone.

    `replays` has every time. `report` is the report of their run with what they explain; None if
    the shapes were given.

    Examples:
        >>> replayed = prunescope.gemm(m=128, n=[384, 400, 512], k=576)
        >>> replayed.table.to_polars()
        >>> replayed.replays.gemms[0].warm.ns
    """

    replays: Replays
    report: Report | None = None

    @classmethod
    def compute(cls, request: GemmRequest) -> Self:
        """Replay the GEMMs of a request, and write RUN/gemms.json and scripts.

        Raises:
            PrunescopeError: The run has no GEMM of a known shape.
        """
        from prunescope.analysis.replayed import cases_of, with_tiles
        from prunescope.tracer.gemm.replay import replay

        cases, run = request.shapes(), as_path(request.run)
        if run is None:
            replays = with_tiles(replay(cases, request))
            _write_scripts(replays, request)
            return cls(replays)
        from prunescope.analysis.inputs.options import Options
        from prunescope.analysis.pipeline import analyze

        cases, left_out = cases_of(analyze(run).report)
        if not cases:
            raise PrunescopeError(
                f"{run.name} has no GEMM of a known shape to replay",
                hint="`prunescope trace` records shapes; or name one: --m 128 --n 384 --k 576",
            )
        threads = request.threads or _threads(run)
        replays = with_tiles(replay(cases, replace(request, threads=threads)))
        replays.left_out += left_out
        path = run / REPLAYS
        write_file(path, msgspec.json.format(msgspec.json.encode(plain(replays)), indent=1))
        _write_scripts(replays, request)
        return cls.of(replays, analyze(run, options=Options(gemm=path)))

    @classmethod
    def of(cls, replays: Replays, done: Analysis | None = None) -> Self:
        """Return the result with the report of the run's analysis; None: shapes were given."""
        return cls(replays, None if done is None else Report.of(done))

    @property
    def table(self) -> Records:
        """One row per shape: warm and cold, ns per call with their intervals, and its bound."""
        from prunescope.analysis.report.replay_records import shape_records

        return shape_records(self.replays)

    @property
    def curves(self) -> Records:
        """One row per size of a curve over N or K."""
        from prunescope.analysis.report.replay_records import curve_records

        return curve_records(self.replays)

    @property
    def verdicts(self) -> Records:
        """One row per role and phase of the run: whether its GEMMs lose time alone, too."""
        from prunescope.analysis.report.replay_records import verdict_records

        return verdict_records(self.report)

    @property
    def plot(self) -> ReplayPlots:
        """The figure `replayed.plot.curves()`."""
        from prunescope.analysis.report.replay_figure import ReplayPlots

        return ReplayPlots(self.replays, self.report)

    def save(
        self,
        folder: Path | str,
        formats: Sequence[str] | str = ("md", "json", "csv", "png"),
        **look: Any,
    ) -> list[Path]:
        """Write gemms.md, gemms.json, gemms.csv, curves.csv and figures into a folder.

        Args:
            folder: The folder, which is made if it does not exist.
            formats: md, json, csv, and png, pdf, svg and tex for curves and alignments, where there
                are any.
            **look: How figures are printed: `width` (column, page, or mm), `font` (sans or serif),
                and `label_prefix`, which every label in LaTeX begins with.

        Returns:
            The paths of the files.

        Raises:
            PrunescopeError: A format is unknown, or the folder cannot be written.
        """
        return self._save(folder, formats, FORMATS, **look)

    def _render(self, names: Sequence[str]) -> dict[str, bytes]:
        from prunescope.analysis.report.markdown import sheet_text
        from prunescope.analysis.report.replay_figure import replay_files

        files: dict[str, bytes] = {}
        if "md" in names:
            files["gemms.md"] = sheet_text("GEMMs alone", self.__rich__()).encode()
        if "json" in names:
            files["gemms.json"] = msgspec.json.format(msgspec.json.encode(self.to_dict())) + b"\n"
        return files | replay_files(self.replays, self.report, names)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as `--json` writes them.

        They are those of gemms.json, whether the times are valid, and what the GEMMs of a run
        explain, by phase.
        """
        phases = self.report.phases if self.report is not None else {}
        explained = {
            name: msgspec.to_builtins(phase.replay)
            for name, phase in phases.items()
            if phase.replay is not None
        }
        return {
            **plain(self.replays),
            "timing_valid": self.replays.timing_valid,
            **({"explained": explained} if explained else {}),
        }

    def __repr__(self) -> str:
        from prunescope.analysis.report.escape import clean

        shapes, curves = len(self.replays.gemms), len(self.replays.curves)
        valid = "" if self.replays.timing_valid else ", timing not valid"
        where = clean(str(self.replays.device.name))[:80]
        return f"<Replayed: {shapes} shapes and {curves} curves on {where}{valid}>"

    def __rich__(self) -> Sheet:
        from prunescope.analysis.report.replay_tables import replayed

        return replayed(self.replays, self.report)


def _threads(folder: Path) -> int | None:
    """Return the threads of a run, with which its GEMMs are replayed; None if unknown."""
    runs = [path for path in (folder, folder / "pruned") if (path / MANIFEST).is_file()]
    device = read_run(runs[0]).device if runs else None
    return device.threads if device is not None else None


def _write_scripts(replays: Replays, request: GemmRequest) -> None:
    """Write the scripts that replay the same GEMMs, if a folder for them was named."""
    folder = as_path(request.script)
    if folder is not None:
        from prunescope.tracer.gemm.script import write_scripts

        write_scripts(replays, folder)
