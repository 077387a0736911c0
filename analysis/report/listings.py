"""What the commands other than `analyze` show: in, the plain values that `--json` writes; out, a
rich renderable. Every string goes in as Text, never as markup.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from prunescope.analysis.report import numbers, sentences
from prunescope.analysis.report.escape import clean
from prunescope.analysis.schema.report import Report
from prunescope.taxonomy.json_fields import plain
from prunescope.taxonomy.match import KNOB, MATCHES
from prunescope.taxonomy.presets import preset_names
from prunescope.taxonomy.run import MANIFEST, read_run

_GROUPS = ("qkv", "qk", "pv", "o", "gate_up", "down")
_MARKS = {True: ("ok", "green"), False: ("no", "red"), None: ("?", "yellow")}


def families(listed: dict[str, Any]) -> RenderableType:
    """One row a family: what moves in each GEMM group, what is removed, who published it."""
    table = _table("family", "kind", "moves", "removes", "published as")
    for one in listed["families"]:
        axes = " ".join("-" if one["axes"][g] == "none" else one["axes"][g] for g in _GROUPS)
        name = f"{one['id']} *" if one["extension"] else one["id"]
        _row(table, name, one["dynamics"], axes, one["unit"], ", ".join(one["methods"]))
    knobs = _table("family", "--set", "adds work of kind")
    for one in listed["families"]:
        said = [_knob(name, knob) for name, knob in one["knobs"].items()]
        if said or one["adds"]:
            _row(knobs, one["id"], said[0] if said else "-", ", ".join(one["adds"]) or "-")
        for further in said[1:]:
            _row(knobs, "", further, "")
    notes = (
        f"--select calibrated: {_calibrated(listed['families'])}",
        f"moves: the axis that shrinks in {' | '.join(_GROUPS)}",
        "* by extension: not placed by the paper of the taxonomy",
        f"presets of --model: {', '.join(preset_names())}",
    )
    match = f"any family, --set {KNOB}={'|'.join(MATCHES)}: the sparsity is a share of these"
    return Group(table, knobs, Text(match), *(Text(note, "dim") for note in notes))


def _calibrated(listed: list[dict[str, Any]]) -> str:
    """Which families a text can calibrate, and which the attention of the input."""
    words = {"text": "a text chooses in", "input": "the input's own attention in"}
    return "; ".join(
        f"{said} {', '.join(one['id'] for one in listed if one['calibration'] == by)}"
        for by, said in words.items()
    )


def _knob(name: str, knob: dict[str, Any]) -> str:
    """One knob: its choices, the default first."""
    choices = [str(c) for c in knob["choices"] if c != knob["default"]]
    default = "" if knob["default"] == "" else str(knob["default"])
    values = "|".join(x for x in (default, *choices) if x)
    return f"{name}={values}: {knob['text']}"


def devices(listed: dict[str, Any]) -> RenderableType:
    """One row a device: dense peaks, bandwidth, SMs; "?" where no second number agrees."""
    table = _table("device", "GB/s", "SMs", "dense TFLOP/s")
    for one in listed["devices"]:
        peaks = (f"{name} {rate / 1e12:.4g}" for name, rate in one["dense_flop_per_s"].items())
        _row(
            table,
            one["name"] if one["verified"] else f"{one['name']} ?",
            f"{one['byte_per_s'] / 1e9:.4g}",
            "-" if one["sm"] is None else str(one["sm"]),
            ", ".join(peaks),
        )
    note = "? no second number agrees; aliases and sources: --json"
    measured = (one["measured"] for one in listed["devices"] if one.get("measured"))
    return Group(table, *(Text(_measurement(one)) for one in measured), Text(note, "dim"))


def _measurement(measured: dict[str, Any]) -> str:
    """What `calibrate` measured beside the peaks, and whether its passes agree."""
    spread = measured["spread"]
    apart = max([*spread["dense_flop_per_s"].values(), spread["byte_per_s"]])
    text = (
        f"copy {measured['copy_byte_per_s'] / 1e9:.4g} GB/s, in cache "
        f"{measured['cache_byte_per_s'] / 1e9:.4g} GB/s, an op from call to call "
        f"{measured['dispatch_ns'] / 1e3:.3g} µs; {measured['passes']} passes are at most "
        f"{apart:.0%} apart"
    )
    return text if measured["agree"] else f"{text}: they do not agree, repeat on a quiet machine"


def run_summary(folder: Path) -> dict[str, Any]:
    """What `trace --json` says: the runs and the unprofiled samples (ns) of each phase.

    Raises PrunescopeError where a manifest cannot be read.
    """
    runs = {}
    for variant in ("dense", "pruned"):
        if (folder / variant / MANIFEST).is_file():
            run = read_run(folder / variant)
            samples = {name: {"samples_ns": p.samples_ns} for name, p in run.phases.items()}
            runs[variant] = {"run": str(folder / variant), "phases": samples}
            if run.pruning:
                runs[variant]["pruning"] = plain(run.pruning)
    return {"schema": 1, "out": str(folder), "runs": runs}


def traced(summary: dict[str, Any]) -> RenderableType:
    """One row a run and phase: the median of the unprofiled samples; then what to do next."""
    table = _table("run", "phase", "median", "samples")
    for run in summary["runs"].values():
        for name, phase in run["phases"].items():
            samples = phase["samples_ns"]
            time = numbers.time(median(samples)) if samples else "-"
            _row(table, run["run"], name, time, str(len(samples)))
    notes = [n for run in summary["runs"].values() for n in _notes(run.get("pruning") or {})]
    says = [Text(clean(f"note: {note}"), "dim") for note in notes]
    return Group(table, *says, Text(clean(f"next: prunescope analyze {summary['out']}")))


def _notes(pruning: dict[str, Any]) -> list[str]:
    """How a request was rounded, and what the pruner could not do."""
    notes = pruning.get("notes")
    return [str(note) for note in notes] if isinstance(notes, list) else []


def doctor(checks: Iterable[dict[str, Any]]) -> RenderableType:
    """One row a check; the hint, where there is one, under what was found."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for check in checks:
        word, style = _MARKS[check["ok"]]
        says = check["says"] + (f"\n  {check['hint']}" if check.get("hint") else "")
        table.add_row(Text(word, style), Text(check["check"], "bold"), _shown(says))
    return table


def verdict(report: Report, *, name: str, folder: Path) -> RenderableType:
    """A report in a few lines: realised against promised, family and first findings a phase."""
    lines = [(0, name, "bold")]
    lines += [(2, f"! {warning}", "yellow") for warning in report.warnings]
    for phase_name, phase in report.phases.items():
        lines.append((2, f"{phase_name}: {sentences.headline(phase)}", ""))
        lines.append((4, sentences.family(phase.family), ""))
        lines += [(4, f"- {sentences.finding(one)}", "") for one in phase.findings[:2]]
    lines.append((2, f"all of it: prunescope analyze {folder}", "dim"))
    return Group(*(Padding(Text(clean(x), style), (0, 0, 0, n)) for n, x, style in lines))


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=i == 0)
    return table


def _row(table: Table, *cells: str) -> None:
    table.add_row(*(Text(clean(cell)) for cell in cells))


def _shown(text: str) -> Text:
    return Text("\n".join(clean(line) for line in text.splitlines()))
