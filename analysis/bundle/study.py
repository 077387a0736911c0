"""The sweeps of a bundle: what the article prints of them, rebuilt from the bundled runs.

In: the folder of a sweep whose runs are bundled. Out: study.json, which says what was planned and
what came of it, and the files that `prunescope pareto` makes of that: tables of results and figures
in the formats of papers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from prunescope.analysis.bundle.anonymise import Scrubber, names_only_families
from prunescope.analysis.pareto.files import FORMATS, pareto_files
from prunescope.analysis.pareto.judged import judge_sweep
from prunescope.analysis.schema.pareto import Pareto
from prunescope.analysis.schema.report import Report
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.formats import decode, plain
from prunescope.taxonomy.runs.run_blocks import Recovered
from prunescope.taxonomy.runs.sweep_files import (
    DONE,
    SWEEP,
    SweepFile,
    SweepResult,
    read_controls,
    read_sweep,
)
from prunescope.taxonomy.scrub import scrub_values
from prunescope.taxonomy.timings import part

STUDIES, STUDY = "studies/", "study.json"
ReportOf = Callable[[Path], Report]


class Study(msgspec.Struct, kw_only=True):
    """The file study.json: a sweep whose results name bundled runs, and trainings of the dense."""

    schema: Literal[1] = 1
    sweep: SweepFile
    controls: list[Recovered] = []

    def to_json(self) -> bytes:
        """Return the file as it is written."""
        return (json.dumps(plain(self), indent=1, allow_nan=False) + "\n").encode()


def read_studies(
    subjects: Iterable[Path], runs: Mapping[Path, str], scrubber: Scrubber | None
) -> dict[str, Study]:
    """Return the studies of the folders that are sweeps, by name.

    Args:
        subjects: The folders that were named.
        runs: The name in the bundle of each run folder.
        scrubber: The scrubber of an anonymous bundle; None for another bundle.
    """
    studies: dict[str, Study] = {}
    for folder in subjects:
        if not (folder / SWEEP).is_file():
            continue
        sweep = read_sweep(folder)
        results = list(_bundled(folder, sweep.results, runs))
        if not any(result.state == DONE for result in results):
            continue
        kept = msgspec.convert(
            scrub_values(plain(msgspec.structs.replace(sweep, results=results))), SweepFile
        )
        controls = list(read_controls(folder))
        if scrubber is not None:
            kept = _anonymous(kept, scrubber)
            controls = [scrubber.block("control", control) for control in controls]
        name = f"study-{len(studies) + 1}"
        studies[name] = Study(sweep=kept, controls=controls)
    return studies


def _bundled(
    folder: Path, results: Iterable[SweepResult], runs: Mapping[Path, str]
) -> Iterator[SweepResult]:
    """Yield the results that are not done, and those whose runs are bundled, with their place."""
    for result in results:
        if result.state != DONE:
            yield result
            continue
        name = runs.get((folder / (result.run or "")).resolve())
        if name is not None:
            yield msgspec.structs.replace(result, run=f"runs/{name}/pruned")


def _anonymous(sweep: SweepFile, scrubber: Scrubber) -> SweepFile:
    """Return a sweep without names of people, hosts and paths.

    Functions of the authors' own get numbers, errors are dropped, and so are settings that an
    anonymous run would not hold.
    """
    own = [r.family for r in sweep.results if not names_only_families(r.family)]
    families = {name: f"custom-{i}" for i, name in enumerate(dict.fromkeys(own), 1)}
    results = []
    for i, result in enumerate(sweep.results, 1):
        family = families.get(result.family, result.family)
        name = (result.run or f"result-{i}/").split("/")[-2]
        changed = {"family": family, "problem": None, "error": None, "id": name}
        results.append(msgspec.structs.replace(result, **changed))
    names = {families.get(n, n): shown for n, shown in sweep.names.items()}
    config: dict[str, Any] = scrubber.value("sweep", sweep.config)
    return SweepFile(
        config={**config, "model": None},
        names={n: shown for n, shown in names.items() if scrubber.may_show(shown)},
        results=results,
    )


def read_study(data: bytes, name: str) -> Study:
    """Read study.json of a bundle.

    Raises:
        PrunescopeError: It is damaged, of another version, or not in the form that is written.
    """
    study = decode(data, Study, where=name, hint="bundle the runs again")
    if study.to_json() != data:
        raise PrunescopeError(f"{name} is not in the form in which it was written", hint="")
    return study


@part("analyze")
def judged(study: Study, root: Path, report_of: ReportOf) -> Pareto:
    """Return the comparison of a study.

    Args:
        study: The study.
        root: The folder that its runs are relative to.
        report_of: Gives the report of a run's folder.
    """
    return judge_sweep(root, study.sweep, study.controls, report_of)


@part("write")
def study_files(name: str, pareto: Pareto) -> dict[str, bytes]:
    """Return the files that the article may print of a study, from path in the bundle to bytes."""
    files = pareto_files(pareto, FORMATS, label_prefix=name)
    return {f"{STUDIES}{name}/{file}": data for file, data in files.items()}
