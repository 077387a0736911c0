"""Output of the commands other than `analyze`: in, families, devices, architectures, runs, sweeps
or checks; out, a rich renderable. Every string goes in as Text, never as markup.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from prunescope.analysis.report.escape import clean
from prunescope.analysis.schema.report import Report
from prunescope.taxonomy import numbers
from prunescope.taxonomy.architectures import Applicable, Described, LayerGemm, Mechanism
from prunescope.taxonomy.families import cutting
from prunescope.taxonomy.family import Family, Knob
from prunescope.taxonomy.formats import plain
from prunescope.taxonomy.machine_check import MachineCheck
from prunescope.taxonomy.match import KNOB, MATCHES
from prunescope.taxonomy.methods import PublishedMethod, methods
from prunescope.taxonomy.presets import preset_names
from prunescope.taxonomy.runs.run import MANIFEST, Run, read_run
from prunescope.taxonomy.runs.run_blocks import CalibrationPasses, Spread
from prunescope.taxonomy.words import percent

_GROUPS = ("qkv", "qk", "pv", "o", "gate_up", "down")
_MARKS = {True: ("ok", "green"), False: ("no", "red"), None: ("?", "yellow")}
_APPLIES = {"yes": "green", "partly": "yellow", "no": "red"}
_PRODUCTS = {"qk": "QKᵀ", "pv": "PV"}
_LEGEND = (
    "T tokens of a forward, S queries and L keys of a sequence; count: so many a layer",
    "moves: the axis that shrinks, and in which GEMMs; heads: fewer of them, each as large",
)
_MOST_FAILED = 10  # failures that are listed
_MUCH_SLOWER = (
    1.25  # time at the worst measured peaks, over that at the best: from here on it is shown
)


class KnownDevice(Protocol):
    """A device of the table, or a measured one: FLOP/s by dtype, byte/s."""

    @property
    def name(self) -> str:
        """Its id."""
        ...

    @property
    def verified(self) -> bool:
        """Whether a second number agrees."""
        ...

    @property
    def byte_per_s(self) -> float | None:
        """Memory bandwidth, bytes/s."""
        ...

    @property
    def sm(self) -> int | None:
        """Streaming multiprocessors, or compute units."""
        ...

    @property
    def dense_flop_per_s(self) -> Mapping[str, float]:
        """By dtype."""
        ...


def families(
    listed: Sequence[Family], *, more_knobs: Callable[[Family], Mapping[str, Knob]]
) -> RenderableType:
    """A table of families: what moves in each GEMM group, what is removed, who published it.
    `more_knobs`: those of a family in addition to those of its pruning."""
    table = _table("family", "kind", "moves", "removes", "published as")
    for one in listed:
        axes = " ".join("-" if one.axes[g] == "none" else one.axes[g] for g in _GROUPS)
        name = f"{one.id} *" if one.extension else one.id
        _row(table, name, one.dynamics, axes, one.unit, ", ".join(one.methods))
    knobs = _table("family", "--set", "adds work of kind")
    for one in listed:
        texts = [_knob(name, knob) for name, knob in {**one.knobs, **more_knobs(one)}.items()]
        if texts or one.adds:
            _row(knobs, one.id, texts[0] if texts else "-", ", ".join(one.adds) or "-")
        for further in texts[1:]:
            _row(knobs, "", further, "")
    notes = (
        f"--select importance: {_by_importance(listed)}",
        f"moves: the axis that shrinks in {' | '.join(_GROUPS)}",
        "G: the groups of a grouped GEMM, which are experts; fewer channels in each expert are "
        f"{cutting('channels')}",
        "* not in the paper's taxonomy, added here",
        "families --method NAME: options of a published method, and what was read of it",
        f"presets of --model: {', '.join(preset_names())}",
    )
    differ = _table("method", "its paper executes", "runs here instead")
    for method in methods():
        if method.family and method.runs:
            _row(differ, method.name, method.executes, f"{method.family}: {method.runs}")
    match = f"any family, --set {KNOB}={'|'.join(MATCHES)}: the sparsity is a share of these"
    return Group(table, knobs, differ, Text(match), *(Text(note, "dim") for note in notes))


def published(method: PublishedMethod) -> RenderableType:
    """A published method: its family with knobs, why, and the sentences on what runs."""
    return Group(*(Text(clean(line)) for line in (method.heading(), *method.sentences())))


def _by_importance(listed: Sequence[Family]) -> str:
    """A note on the families with importance scores from a text, and from the attention of the
    input."""
    words = {"text": "scored on a text in", "input": "by the attention of the input in"}
    return "; ".join(
        f"{how} {', '.join(one.id for one in listed if one.calibration == by)}"
        for by, how in words.items()
    )


def _knob(name: str, knob: Knob) -> str:
    """One knob: its choices, the default first."""
    choices = [str(c) for c in knob.choices if c != knob.default]
    default = "" if knob.default == "" else str(knob.default)
    values = "|".join(x for x in (default, *choices) if x)
    return f"{name}={values}: {knob.text}"


def devices(
    listed: Sequence[KnownDevice], measured: CalibrationPasses | None = None
) -> RenderableType:
    """A table of devices, a row each: dense peaks, bandwidth, SMs; "?" where no second number
    agrees. `measured`: how `calibrate` came to the row."""
    table = _table("device", "GB/s", "SMs", "dense TFLOP/s")
    for one in listed:
        peaks = (f"{name} {rate / 1e12:.4g}" for name, rate in one.dense_flop_per_s.items())
        _row(
            table,
            one.name if one.verified else f"{one.name} ?",
            "-" if one.byte_per_s is None else f"{one.byte_per_s / 1e9:.4g}",
            "-" if one.sm is None else str(one.sm),
            ", ".join(peaks),
        )
    note = "? no second number agrees; aliases and sources: --json"
    passes = [] if measured is None else [Text(_measurement(measured))]
    return Group(table, *passes, Text(note, "dim"))


def _measurement(measured: CalibrationPasses) -> str:
    """The measurements of `calibrate` other than the peaks, and whether its passes agree."""
    spread = measured.spread or Spread()
    apart = max([*spread.dense_flop_per_s.values(), spread.byte_per_s])
    text = (
        f"copy {_rate(measured.copy_byte_per_s)}, in cache "
        f"{_rate(measured.cache_byte_per_s)}, an op from call to call "
        f"{_us(measured.dispatch_ns)}; {measured.passes} passes differ by at most {percent(apart)}"
    )
    caveats = [] if measured.agree else ["the passes differ"]
    if measured.disturbed:
        caveats.append(f"other work ran during them ({', '.join(measured.disturbed)})")
    return f"{text}: {'; '.join(caveats)}, repeat on a quiet machine" if caveats else text


def _rate(byte_per_s: float | None) -> str:
    return "an unknown rate" if byte_per_s is None else f"{byte_per_s / 1e9:.4g} GB/s"


def _us(ns: float | None) -> str:
    return "an unknown time" if ns is None else f"{ns / 1e3:.3g} µs"


def read_runs(folder: Path) -> dict[str, Run]:
    """The runs of a capture by variant. Raises PrunescopeError where one cannot be read."""
    variants = (v for v in ("dense", "pruned") if (folder / v / MANIFEST).is_file())
    return {variant: read_run(folder / variant) for variant in variants}


def run_summary(folder: Path, runs: Mapping[str, Run]) -> dict[str, Any]:
    """Output of `trace --json`: the runs and the unprofiled samples (ns) of each phase."""
    summary = {}
    for variant, run in runs.items():
        samples = {name: {"samples_ns": p.samples_ns} for name, p in run.phases.items()}
        summary[variant] = {"run": str(folder / variant), "phases": samples}
        if run.pruning:
            summary[variant]["pruning"] = plain(run.pruning)
    return {"schema": 1, "out": str(folder), "runs": summary}


def traced(
    folder: Path, runs: Mapping[str, Run], answers: Mapping[str, str] | None = None
) -> RenderableType:
    """A table of runs and phases: the time of a step as a report gives it; then the answer of each
    phase, where it is known, and what to do next."""
    table = _table("run", "phase", "time", "samples")
    for variant, run in runs.items():
        for name, phase in run.phases.items():
            time = numbers.time(phase.time_ns) if phase.time_ns else "-"
            _row(table, str(folder / variant), name, time, str(len(phase.samples_ns)))
    # How a request was rounded, and what the pruner could not do.
    notes = [n for run in runs.values() for n in (run.pruning and run.pruning.notes) or ()]
    lines = [Text(clean(f"note: {note}"), "dim") for note in notes]
    lines += [Text(clean(f"{name}: {answer}")) for name, answer in (answers or {}).items()]
    return Group(table, *lines, Text(clean(f"next: prunescope analyze {folder}")))


def doctor(checks: Iterable[MachineCheck]) -> RenderableType:
    """A table of checks; the hint, where there is one, under what was found."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for check in checks:
        word, style = _MARKS[check.ok]
        text = check.says + (f"\n  {check.hint}" if check.hint else "")
        found = "\n".join(clean(line) for line in text.splitlines())
        table.add_row(Text(word, style), Text(check.check, "bold"), Text(found))
    return table


def verified(result: Mapping[str, Any], *, allow_missing_figures: bool) -> Text:
    """The result of `verify`: the verdict, the files that failed or were not compared, how many
    were, and what is taken on trust."""
    lines = []
    if result["ok"]:
        skipped = result["not_compared"]
        unchanged = result["checked"] - result["rebuilt"] - len(skipped)
        outcome = "ok: " if allow_missing_figures or not skipped else "partial: "
        if result["samples_agree"] is False:
            outcome = ""
            lines.append(
                "failed: the unprofiled samples give a speedup that the trace does not allow"
            )
        lines.append(
            f"{outcome}{result['checked']} files: {result['rebuilt']} rebuilt from the traces and "
            + (f"compared, {len(skipped)} not compared, " if skipped else "compared, ")
            + f"{unchanged} (traces, manifests, SHA-256 checksums) as they were bundled"
        )
        lines += [f"{file['file']}: not compared: {file['why']}" for file in skipped]
        lines += map(_sample_line, result["samples_on_trust"])
    else:
        lines.append(f"failed: {len(result['failed'])} of {result['checked']} files")
        lines += [f"{file['file']}: {file['why']}" for file in result["failed"]]
    return Text("\n".join(clean(line) for line in lines))


def _sample_line(entry: Mapping[str, Any]) -> str:
    """An entry in words: `run-1, prefill: unprofiled samples 1.89×, within 1.3 times of …`."""
    ratios = entry["profiled_over_unprofiled"]
    known = [f"{ratio:.2f}× ({side})" for side, ratio in ratios.items() if ratio is not None]
    overhead = f"a profiled step takes {' and '.join(known)} as long as an unprofiled one"
    where = f"{entry['run']}, {entry['phase']}: unprofiled samples"
    if entry["speedup"] is None or entry["agree"] is None:
        return f"{where} are taken on trust: {entry['why']}; {overhead}"
    samples, (low, high) = entry["speedup"]["samples"], entry["speedup"]["profiled"]
    steps = f"{low:.2f}×" if f"{low:.2f}" == f"{high:.2f}" else f"{low:.2f}× to {high:.2f}×"
    text = f"{where} {samples:.2f}×, {entry['why']} of what the trace allows, {steps}; {overhead}"
    return text if entry["agree"] else f"{text}: ask for the samples, or measure again"


def verdict(report: Report, *, name: str, folder: Path) -> RenderableType:
    """A report in a few lines: the answer of each phase."""
    lines = [(0, name, "bold")]
    lines += [(2, f"! {warning}", "yellow") for warning in report.warnings]
    for phase_name, phase in report.phases.items():
        lines.append((2, f"{phase_name}: {phase.summary}", ""))
    lines.append((2, f"all of it: prunescope analyze {folder}", "dim"))
    return Group(*(Padding(Text(clean(x), style), (0, 0, 0, n)) for n, x, style in lines))


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for i, column in enumerate(columns):
        short = i == 0 or column == "applies"
        side: Literal["left", "right"] = "right" if column in ("M", "N", "K", "count") else "left"
        table.add_column(column, overflow="fold", no_wrap=short, justify=side)
    return table


def _row(table: Table, *cells: str) -> None:
    table.add_row(*(Text(clean(cell)) for cell in cells))


def applicable(found: Described) -> RenderableType:
    """Mechanisms, the GEMMs of a layer, and one row per family: applies, moves, why not."""
    title = found.title or "no entry in the table of architectures"
    lines = [Text(clean(f"{found.model_type or 'a model without a type'}: {title}"), "bold")]
    lines += [_mechanism(one) for one in found.mechanisms]
    parts: list[RenderableType] = list(lines)
    if found.gemms:
        parts.append(_gemms(found.gemms))
    parts.append(_family_rows(found))
    parts += [Text(f"! {clean(note)}", "yellow") for note in found.notes]
    return Group(*parts, *(Text(line, "dim") for line in _LEGEND[not found.gemms :]))


def _mechanism(one: Mechanism) -> Text:
    layers = f"{one.layers} layer{'s' * (one.layers != 1)}"
    return Text(clean(f"  {one.id} in {layers}: {one.text}"))


def _gemms(rows: list[LayerGemm]) -> Table:
    table = _table("GEMM", "M", "N", "K", "count")
    for row in rows:
        sizes = ("?" if n is None else str(n) for n in (row.m, row.n, row.k, row.count))
        _row(table, _PRODUCTS.get(row.group, row.role), *sizes)
    return table


def _family_rows(found: Described) -> Table:
    table = _table("family", "applies", "moves", "why")
    for one in found.families:
        applies = Text(one.applies, _APPLIES[one.applies])
        table.add_row(Text(one.id), applies, Text(clean(_moves(one))), Text(clean(one.why)))
    return table


def _moves(one: Applicable) -> str:
    """ "N of q, k, v; K of o": GEMMs by axis; "-" where no dimension moves."""
    by_axis: dict[str, list[str]] = {}
    for group, moved in one.gemms.items():
        names = [_PRODUCTS[group]] if group in _PRODUCTS else list(moved.matrices)
        by_axis.setdefault(moved.axis, []).extend(names)
    return "; ".join(f"{axis} of {', '.join(names)}" for axis, names in by_axis.items()) or "-"


def sweep_state(found: Mapping[str, Any]) -> RenderableType:
    """Counts, the time that is left, what was merged, and what failed."""
    plan = found["plan"]
    lines = [
        f"{plan['results']} results of {plan['models']} models: {plan['done']} done,"
        f" {plan['failed']} failed, {plan['pending']} pending"
    ]
    if plan.get("running"):
        lines[0] += f", {plan['running']} running in another process"
    if plan["impossible"]:
        lines[0] += f" ({plan['impossible']} are infeasible and recorded as failed)"
    if plan["seconds"] == 0:
        lines.append("nothing is left to do")
    elif plan["seconds"] is not None:
        lines.append(_time_left(plan))
    lines += plan["notes"]
    failed = [r for r in found["results"] if r["state"] == "failed"]
    lines += [f"failed: {r['id']}: {r['error']}" for r in failed[:_MOST_FAILED]]
    if len(failed) > _MOST_FAILED:
        lines.append(f"and {len(failed) - _MOST_FAILED} more failed: see sweep.json")
    lines.append(f"Results in {found['out']}")
    return Group(*(Text(clean(line)) for line in lines))


def _time_left(plan: dict[str, Any]) -> str:
    """The remaining time, with and without recovery training."""
    trained = plan.get("recovery_seconds") or 0.0
    line = f"about {_hours(plan['seconds'])} on this machine, roughly"
    most = plan.get("seconds_most") or 0.0
    if most > _MUCH_SLOWER * plan["seconds"]:
        other_work = ", ".join(plan["peaks_disturbed"]) or "other work"
        line += (
            f"; {_hours(most)} if it stays as busy as it was: its peaks were measured"
            f" {plan['peaks_measured']} times during {other_work}, and the best is used"
        )
    by_token = plan.get("decode_scoring_seconds") or 0.0
    if by_token:
        line += f"; {_hours(by_token)} of it to score models one token after another"
    if not trained:
        return line
    without = _hours(plan["seconds"] - trained)
    return f"{line}; {without} without recovery ({plan['trainings']} trainings, one of them dense)"


def _hours(seconds: float) -> str:
    if seconds < 2 * 3600:
        return f"{max(1, round(seconds / 60))} min"
    return f"{seconds / 3600:.1f} h"
