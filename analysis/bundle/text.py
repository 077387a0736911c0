"""The texts of a bundle.

In: reports and manifests. Out: README, CITATION, samples and environment. Every claim of the README
names the command that rebuilds it, without a GPU.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from prunescope.analysis.bundle.anonymise import names_only_families
from prunescope.analysis.report import measured, sentences
from prunescope.analysis.report.escape import markdown, markdown_code
from prunescope.analysis.report.titles import page_link, phase_slugs
from prunescope.analysis.schema.report import MUCH_SLOWED, Phase, Report
from prunescope.analysis.summary.headline import headline
from prunescope.taxonomy.formats import plain
from prunescope.taxonomy.method_names import is_plan
from prunescope.taxonomy.runs.run import Run
from prunescope.taxonomy.words import plural, when

Runs = Mapping[str, Mapping[str, Run]]  # name of the bundled run -> variant -> manifest


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What a bundle was written by, what to install to check it, and whether it is anonymous."""

    written_by: str
    install: str
    anonymous: bool


_CHECK = f"""\
## Check it (seconds, no GPU, no model)

    pip install INSTALL
    prunescope verify FILE.zip

`verify` compares every file with SHA256SUMS, rebuilds each report, figure and annotated
trace from the traces, and compares them. A figure that another matplotlib than that of
bundle.json plots elsewhere is compared by its labels, and the result is partial. To
look yourself: unpack the zip and run the commands below there.

Unprofiled samples, which the realised speedup is computed from, are in run.json and in
no trace: the traces hold other steps, the profiled ones. `verify` fails where the two
speedups are more than {MUCH_SLOWED:g} times apart, and else takes run.json on trust."""
_CONTENTS = """\
## What is here

| path | holds |
|:--|:--|
| runs/NAME/{dense,pruned}/ | run.json (workload, device, peaks, clocks, versions, seeds, weight statistics, raw samples), model-card.md of a model that the run saved, whose weights are here by their SHA-256 alone, and one trimmed Chrome trace a phase, to be opened in https://ui.perfetto.dev |
| reports/NAME/ | the report as Markdown, HTML, LaTeX and JSON; figures, each with its data in a CSV; trace-PHASE.perfetto.json.gz, the kernels with tracks of kind, role, bound and ledger row; data-dictionary.csv explains every column |
| studies/NAME/ | of a sweep: study.json (what was planned, and what came of it), pareto.json and pareto.md, and what the article prints, each with its numbers: table-results.tex, .md and .csv, figures as PDF, SVG and PNG |
| source/, install/ | what the authors added: the source of their method, the wheel of this tool |
| samples.csv | every unprofiled sample, ns |
| environment.json | device, clocks before and after, versions |
| SHA256SUMS | of every other file; `sha256sum -c SHA256SUMS` |

Statistics: geometric means over placements (placements in memory) of the medians of
unprofiled samples, with 95 % bootstrap intervals over placements, dense and pruned
measured in turns; the profiled steps serve the split of the time only."""  # noqa: E501


def readme(reports: Mapping[str, Report], runs: Runs, origin: Origin) -> str:
    """Return the README.md of the bundle."""
    return "\n\n".join([*_readme(reports, runs, origin), ""])


def _readme(reports: Mapping[str, Report], runs: Runs, origin: Origin) -> Iterator[str]:
    yield "# Trace evidence of a pruning speedup"
    yield _validity(reports)
    yield f"Written by {origin.written_by}. " + (
        "Names of people, hosts, paths and accounts were removed; numbers were not changed."
        if origin.anonymous
        else "Traces are trimmed to what the analysis reads; numbers were not changed."
    )
    yield _CHECK.replace("INSTALL", origin.install)
    yield "## Claims, and what rebuilds each"
    claims = ["| claim | where | rebuilt by |", "|:--|:--|:--|"]
    for name, report in reports.items():
        slugs = phase_slugs(report)
        for phase_name, phase in report.phases.items():
            page = f"reports/{name}/{page_link(report, phase_name)}"
            for claim, where in _claims(name, phase_name, phase, slugs[phase_name], page):
                command = f"prunescope analyze runs/{name} --out rebuilt/{name} --format {where[1]}"
                claims.append(f"| {markdown(claim)} | {where[0]} | {markdown_code(command)} |")
    yield "\n".join(claims)
    yield _CONTENTS
    yield f"{len(reports)} run{plural(len(reports))}: " + ", ".join(map(markdown, reports))
    yield "## Limitations"
    yield "\n".join(_limitations(reports, runs))


def _validity(reports: Mapping[str, Report]) -> str:
    """Return how many of the results are valid, and which are not."""
    valid = {
        f"{name}, {phase_name}": phase.is_speedup and not phase.invalid_times
        for name, report in reports.items()
        for phase_name, phase in report.phases.items()
    }
    text = f"**{sum(valid.values())} of {len(valid)} results have valid times.**"
    wrong = [markdown(name) for name, holds in valid.items() if not holds]
    return text + when(bool(wrong), f" No evidence of speed: {'; '.join(wrong)}.")


def _limitations(reports: Mapping[str, Report], runs: Runs) -> Iterator[str]:
    """Yield each limitation once, with the runs that it is one of."""
    names: dict[str, list[str]] = {}
    for name, report in reports.items():
        for limit in _limits(runs[name], report):
            names.setdefault(limit, []).append(markdown(name))
    for limit, of_runs in names.items():
        which = "all runs" if len(of_runs) == len(reports) > 1 else ", ".join(of_runs)
        yield f"- {which}: {limit}"


def _claims(
    name: str, phase_name: str, phase: Phase, slug: str, page: str
) -> Iterator[tuple[str, tuple[str, str]]]:
    """Yield (claim, (file, formats)) for each claim of a phase."""
    place, label = f"reports/{name}", f"{name}, {phase_name}"
    yield f"{label}: {headline(phase)}", (f"{place}/ladder.csv, samples.csv", "csv,md")
    if phase.ledger:
        files = f"[its largest row]({page}), {place}/ledger.csv, ledger-{slug}.svg"
        yield f"{label}: where the promised time went", (files, "html,csv,svg")
    if phase.family:
        yield f"{label}: {sentences.family(phase.family)}", (f"{place}/gemms.csv", "csv,md")
    result = measured.throughput(phase) or "what was measured"
    yield f"{label}: {result}", (f"{place}/report.md", "md")


def _limits(variants: Mapping[str, Run], report: Report) -> Iterator[str]:
    """Yield the limits of one run that a reader should know, in Markdown."""
    pruned = variants.get("pruned")
    how = pruned.pruning.selection if pruned and pruned.pruning else None
    yield f"one device ({markdown(report.device.get('name') or 'unknown')})"
    method = pruned.pruning.method if pruned and pruned.pruning else None
    if method and not is_plan(method) and not names_only_families(method):
        yield "a function of the authors' own chose what to prune"
    elif how == "random":
        yield "parts to prune were chosen at random: speed, not quality"
    if any(g.simulated for phase in report.phases.values() for g in phase.gemms):
        yield "some kernels are stand-ins (marked simulated)"
    yield from map(markdown, report.warnings)


def samples_csv(runs: Runs) -> str:
    """Return every unprofiled sample as CSV: run, variant, phase, index, ns."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["run", "variant", "phase", "sample", "ns"])
    for name, variants in runs.items():
        for variant, run in variants.items():
            for phase, entered in run.phases.items():
                rows = enumerate(entered.samples_ns)
                writer.writerows([name, variant, phase, i, ns] for i, ns in rows)
    return table.getvalue()


def environment_json(runs: Runs) -> str:
    """Return the device, versions, dtype, seeds and timing of every run as JSON."""
    environments = {
        name: {
            variant: {
                "device": plain(run.device),
                "versions": run.versions,
                "dtype": run.dtype,
                "seeds": run.seeds,
                "timing": plain(run.timing),
            }
            for variant, run in variants.items()
        }
        for name, variants in runs.items()
    }
    return json.dumps(environments, indent=1, allow_nan=False) + "\n"
