"""Output of the commands other than `analyze`, as rich renderables.

In: families, devices, architectures, runs, sweeps or checks. Every string goes in as Text, so that
none is read as markup.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from prunescope.taxonomy.architectures import Applicable, Described
from prunescope.taxonomy.families import cutting
from prunescope.taxonomy.family import Family, Knob
from prunescope.taxonomy.formats import plain
from prunescope.taxonomy.machine_check import MachineCheck
from prunescope.taxonomy.match import KNOB, MATCHES
from prunescope.taxonomy.methods import PublishedMethod, methods
from prunescope.taxonomy.presets import preset_names
from prunescope.taxonomy.runs.run import MANIFEST, Run, read_run
from prunescope.taxonomy.runs.run_blocks import CalibrationPasses, Spread
from prunescope.taxonomy.words import percent, plural, when

_GROUPS = ("qkv", "qk", "pv", "o", "gate_up", "down")
_MARKS = {True: ("ok", "green"), False: ("no", "red"), None: ("?", "yellow")}
_APPLIES = {"yes": "green", "partly": "yellow", "no": "red"}
_PRODUCTS = {"qk": "QKᵀ", "pv": "PV"}
_LEGEND = (
    "T tokens of a forward, S queries and L keys of a sequence; count: so many a layer",
    "moves: the axis that shrinks, and in which GEMMs; heads: fewer of them, each as large",
)
_MOST_FAILED = 10  # failures that are listed
# From this ratio on, the time at the worst measured peaks is shown next to that at the best ones.
_MUCH_SLOWER = 1.25


class KnownDevice(Protocol):
    """A device of the table, or a measured one."""

    @property
    def name(self) -> str:
        """Its id."""

    @property
    def verified(self) -> bool:
        """Whether a second number agrees."""

    @property
    def byte_per_s(self) -> float | None:
        """Memory bandwidth, bytes/s."""

    @property
    def sm(self) -> int | None:
        """Streaming multiprocessors, or compute units."""

    @property
    def dense_flop_per_s(self) -> Mapping[str, float]:
        """Peak FLOP/s by dtype."""


def families(
    listed: Sequence[Family], *, more_knobs: Callable[[Family], Mapping[str, Knob]]
) -> RenderableType:
    """Return a table of families: what moves in each GEMM group, what is removed, who published it.

    Args:
        listed: The families.
        more_knobs: Gives the knobs of a family in addition to those of its pruning.
    """
    rows = []
    knobs: list[tuple[str, str, str]] = []
    for family in listed:
        axes = " ".join("-" if family.axes[g] == "none" else family.axes[g] for g in _GROUPS)
        name = f"{family.id} *" if family.extension else family.id
        rows.append((name, family.dynamics, axes, family.unit, ", ".join(family.methods)))
        own = {**family.knobs, **more_knobs(family)}
        texts = [_knob_text(name, knob) for name, knob in own.items()]
        if texts or family.adds:
            first, *further = texts or ["-"]
            knobs.append((family.id, first, ", ".join(family.adds) or "-"))
            knobs += [("", text, "") for text in further]
    notes = (
        f"--select importance: {_importance_note(listed)}",
        f"moves: the axis that shrinks in {' | '.join(_GROUPS)}",
        "G: the groups of a grouped GEMM, which are experts; fewer channels in each expert are "
        f"{cutting('channels')}",
        "* not in the paper's taxonomy, added here",
        "families --method NAME: options of a published method, and what was read of it",
        f"presets of --model: {', '.join(preset_names())}",
    )
    stand_ins = (method for method in methods() if method.family and method.runs)
    differ = [(m.name, m.executes, f"{m.family}: {m.runs}") for m in stand_ins]
    return Group(
        _table("family", "kind", "moves", "removes", "published as", rows=rows),
        _table("family", "--set", "adds work of kind", rows=knobs),
        _table("method", "its paper executes", "runs here instead", rows=differ),
        Text(f"any family, --set {KNOB}={'|'.join(MATCHES)}: the sparsity is a share of these"),
        *(Text(note, "dim") for note in notes),
    )


def published(method: PublishedMethod) -> RenderableType:
    """Return a published method: its family with knobs, why, and the sentences on what runs."""
    return Group(*(Text(clean(line)) for line in (method.heading(), *method.sentences())))


def _importance_note(listed: Sequence[Family]) -> str:
    """Return which families score importance on a text, and which by the input's attention."""
    words = {"text": "scored on a text in", "input": "by the attention of the input in"}
    return "; ".join(
        f"{how} {', '.join(family.id for family in listed if family.calibration == by)}"
        for by, how in words.items()
    )


def _knob_text(name: str, knob: Knob) -> str:
    """Return one knob with its choices, the default first."""
    choices = [str(c) for c in knob.choices if c != knob.default]
    values = "|".join(x for x in (str(knob.default), *choices) if x)
    return f"{name}={values}: {knob.text}"


def devices(
    listed: Sequence[KnownDevice], measured: CalibrationPasses | None = None
) -> RenderableType:
    """Return a table of devices: dense peaks, bandwidth, SMs.

    Args:
        listed: The devices; "?" stands behind one of which no second number agrees.
        measured: How `calibrate` came to the row, if it did.
    """
    rows = (
        (
            f"{device.name}{when(not device.verified, ' ?')}",
            "-" if device.byte_per_s is None else f"{device.byte_per_s / 1e9:.4g}",
            "-" if device.sm is None else str(device.sm),
            ", ".join(f"{n} {rate / 1e12:.4g}" for n, rate in device.dense_flop_per_s.items()),
        )
        for device in listed
    )
    note = Text("? no second number agrees; aliases and sources: --json", "dim")
    passes = [] if measured is None else [Text(_measurement(measured))]
    return Group(_table("device", "GB/s", "SMs", "dense TFLOP/s", rows=rows), *passes, note)


def _measurement(measured: CalibrationPasses) -> str:
    """Return what `calibrate` measured besides the peaks, and whether its passes agree."""
    spread = measured.spread or Spread()
    apart = max([*spread.dense_flop_per_s.values(), spread.byte_per_s])
    dispatch = "an unknown time"
    if measured.dispatch_ns is not None:
        dispatch = f"{measured.dispatch_ns / 1e3:.3g} µs"
    text = (
        f"copy {_rate(measured.copy_byte_per_s)}, in cache "
        f"{_rate(measured.cache_byte_per_s)}, an op from call to call "
        f"{dispatch}; {measured.passes} passes differ by at most {percent(apart)}"
    )
    caveats = [] if measured.agree else ["the passes differ"]
    if measured.disturbed:
        caveats.append(f"other work ran during them ({', '.join(measured.disturbed)})")
    return f"{text}: {'; '.join(caveats)}, repeat on a quiet machine" if caveats else text


def _rate(byte_per_s: float | None) -> str:
    return "an unknown rate" if byte_per_s is None else f"{byte_per_s / 1e9:.4g} GB/s"


def read_runs(folder: Path) -> dict[str, Run]:
    """Return the runs of a capture by variant, "dense" and "pruned".

    Args:
        folder: The folder of the capture.

    Raises:
        PrunescopeError: A run cannot be read.
    """
    variants = (v for v in ("dense", "pruned") if (folder / v / MANIFEST).is_file())
    return {variant: read_run(folder / variant) for variant in variants}


def run_summary(folder: Path, runs: Mapping[str, Run]) -> dict[str, Any]:
    """Return the output of `trace --json`: the runs, and the unprofiled samples of each phase.

    Args:
        folder: The folder of the capture.
        runs: Its runs by variant, by `read_runs`. Samples are in ns.
    """
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
    """Return a table of the runs and phases of a capture, and what to do next.

    Args:
        folder: The folder of the capture.
        runs: Its runs by variant, by `read_runs`. The time of a step is given as a report does.
        answers: The answer of each phase, where it is known.
    """
    rows = []
    for variant, run in runs.items():
        for name, phase in run.phases.items():
            time = numbers.time(phase.time_ns) if phase.time_ns else "-"
            rows.append((str(folder / variant), name, time, str(len(phase.samples_ns))))
    # How a request was rounded, and what the pruner could not do.
    notes = [n for run in runs.values() for n in (run.pruning and run.pruning.notes) or ()]
    lines = [Text(clean(f"note: {note}"), "dim") for note in notes]
    lines += [Text(clean(f"{name}: {answer}")) for name, answer in (answers or {}).items()]
    lines += [Text(clean(line)) for run in runs.values() for line in _saved(run)]
    following = Text(clean(f"next: prunescope analyze {folder}"))
    return Group(_table("run", "phase", "time", "samples", rows=rows), *lines, following)


def _saved(run: Run) -> Iterator[str]:
    """Yield what padding added, that a saved model was checked, and which engines run it."""
    padded = (run.pruning and run.pruning.padded) or {}
    if padded.get("parameters"):
        engine = padded.get("engine")
        yield f"padded to sizes that {engine} takes: {padded['parameters']:,} parameters of zeros"
        if padded.get("bytes") is not None:
            yield f"  that costs {numbers.size(padded['bytes'])}"
        for phase, (before, after) in (padded.get("ns") or {}).items():
            times = f"{numbers.time(after)} in place of {numbers.time(before)}"
            yield f"  {phase}: {times} a forward (medians of a few)"
    saved = (run.pruning and run.pruning.saved) or {}
    if not saved:
        return
    difference = saved.get("difference", 0)
    same = f"within {difference:.2g}" if difference else "bit for bit"
    yield (
        f"saved {numbers.size(saved.get('bytes'))}; transformers alone loads it, with the same "
        f"{saved.get('parameters', 0):,} parameters and the same logits {same}"
    )
    for answer in saved.get("engines", ()):
        word = "runs it" if answer.get("runs") else "does not run it"
        reason = f": {answer['reason']}" if answer.get("reason") else ""
        yield f"  {answer.get('engine')} {word}{reason}"


def doctor(checks: Iterable[MachineCheck]) -> RenderableType:
    """Return a table of checks; the hint, where there is one, stands below what was found."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for check in checks:
        word, style = _MARKS[check.ok]
        text = check.says + (f"\n  {check.hint}" if check.hint else "")
        says = "\n".join(clean(line) for line in text.splitlines())
        table.add_row(Text(word, style), Text(check.check, "bold"), Text(says))
    return table


def verified(result: Mapping[str, Any], *, passes: bool) -> Text:
    """Return the result of `verify` as text.

    It has the verdict, the files that failed or were not compared, how many were, and what is taken
    on trust.

    Args:
        result: The plain values of `verify --json`.
        passes: Whether files that were not compared are accepted.
    """
    if not result["ok"]:
        lines = [f"failed: {len(result['failed'])} of {result['checked']} files"]
        lines += [f"{file['file']}: {file['why']}" for file in result["failed"]]
        return Text("\n".join(map(clean, lines)))
    skipped = result["not_compared"]
    unchanged = result["checked"] - result["rebuilt"] - len(skipped)
    outcome = "ok: " if passes else "partial: "
    lines = []
    if result["samples_agree"] is False:
        outcome = ""
        lines.append("failed: the unprofiled samples give a speedup that the trace does not allow")
    lines.append(
        f"{outcome}{result['checked']} files: {result['rebuilt']} rebuilt from the traces and "
        f"compared, {when(bool(skipped), f'{len(skipped)} not compared, ')}{unchanged} (traces, "
        "manifests, SHA-256 checksums) as they were bundled"
    )
    lines += [f"{file['file']}: not compared: {file['why']}" for file in skipped]
    lines += map(_sample_line, result["samples_on_trust"])
    return Text("\n".join(map(clean, lines)))


def _sample_line(entry: Mapping[str, Any]) -> str:
    """Return an entry in words: `run-1, prefill: unprofiled samples 1.89×, within 1.3 times of …`.

    It says how the speedup by unprofiled samples compares with the one that the trace allows.
    """
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
    """Return a report in a few lines: the answer of each phase.

    Args:
        report: The report.
        name: The line above the answers.
        folder: The folder of the runs, for the command that shows all of it.
    """
    lines = [(0, name, "bold")]
    lines += [(2, f"! {warning}", "yellow") for warning in report.warnings]
    lines += [(2, f"{name}: {phase.summary}", "") for name, phase in report.phases.items()]
    lines.append((2, f"all of it: prunescope analyze {folder}", "dim"))
    # A command of an answer stands on a line of its own.
    return Group(
        *(
            Padding(Text("\n".join(map(clean, text.splitlines())), style), (0, 0, 0, indent))
            for indent, text, style in lines
        )
    )


def _table(*columns: str, rows: Iterable[Sequence[str | Text]]) -> Table:
    """Return a table of clean cells; a cell that is a Text keeps its style."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for i, column in enumerate(columns):
        short = i == 0 or column == "applies"
        side: Literal["left", "right"] = "right" if column in ("M", "N", "K", "count") else "left"
        table.add_column(column, overflow="fold", no_wrap=short, justify=side)
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else Text(clean(cell)) for cell in row))
    return table


def applicable(described: Described) -> RenderableType:
    """Return what applies to an architecture.

    Mechanisms come first, then the GEMMs of a layer, then a row for each family: whether it
    applies, what moves, and why not.

    Args:
        described: The description of the architecture.
    """
    title = described.title or "no entry in the table of architectures"
    head = f"{described.model_type or 'a model without a type'}: {title}"
    parts: list[RenderableType] = [Text(clean(head), "bold")]
    for mechanism in described.mechanisms:
        layers = f"{mechanism.layers} layer{plural(mechanism.layers)}"
        parts.append(Text(clean(f"  {mechanism.id} in {layers}: {mechanism.text}")))
    legend: tuple[str, ...] = _LEGEND[1:]
    if described.gemms:
        legend = _LEGEND
        gemms = []
        for gemm in described.gemms:
            sizes = ("?" if n is None else str(n) for n in (gemm.m, gemm.n, gemm.k, gemm.count))
            gemms.append((_PRODUCTS.get(gemm.group, gemm.role), *sizes))
        parts.append(_table("GEMM", "M", "N", "K", "count", rows=gemms))
    of_families = (
        (family.id, Text(family.applies, _APPLIES[family.applies]), _moves(family), family.why)
        for family in described.families
    )
    parts.append(_table("family", "applies", "moves", "why", rows=of_families))
    parts += [Text(f"! {clean(note)}", "yellow") for note in described.notes]
    return Group(*parts, *(Text(line, "dim") for line in legend))


def _moves(family: Applicable) -> str:
    """Return GEMMs by axis, as `N of q, k, v; K of o`; "-" where no dimension moves."""
    by_axis: dict[str, list[str]] = {}
    for group, moved in family.gemms.items():
        names = [_PRODUCTS[group]] if group in _PRODUCTS else list(moved.matrices)
        by_axis.setdefault(moved.axis, []).extend(names)
    return "; ".join(f"{axis} of {', '.join(names)}" for axis, names in by_axis.items()) or "-"


def sweep_state(state: Mapping[str, Any]) -> RenderableType:
    """Return how many results of a sweep are done, the time that is left, and what failed.

    Args:
        state: The plain values of `sweep --json`.
    """
    plan = state["plan"]
    counts = (
        f"{plan['results']} results of {plan['models']} models: {plan['done']} done,"
        f" {plan['failed']} failed, {plan['pending']} pending"
    )
    if plan.get("running"):
        counts += f", {plan['running']} running in another process"
    if plan["impossible"]:
        counts += f" ({plan['impossible']} are infeasible and recorded as failed)"
    lines = [counts]
    if invalid := plan.get("invalid"):
        which = "no result has" if invalid == plan["done"] else f"{plan['done'] - invalid} have"
        lines.append(f"{which} valid times, which other work disturbed: --retry invalid repeats")
    if again := plan.get("again"):
        lines.append(f"measured again, as their times are not valid: {again}")
    if plan["seconds"] == 0:
        lines.append("nothing is left to do")
    elif plan["seconds"] is not None:
        lines.append(_time_left(plan))
    lines += plan["notes"]
    failed = [result for result in state["results"] if result["state"] == "failed"]
    lines += [f"failed: {result['id']}: {result['error']}" for result in failed[:_MOST_FAILED]]
    if len(failed) > _MOST_FAILED:
        lines.append(f"and {len(failed) - _MOST_FAILED} more failed: see sweep.json")
    lines.append(f"Results in {state['out']}")
    return Group(*(Text(clean(line)) for line in lines))


def _time_left(plan: dict[str, Any]) -> str:
    """Return the remaining time, with and without recovery training."""
    trained = plan.get("recovery_seconds") or 0.0
    line = f"about {_hours(plan['seconds'])} on this machine, roughly"
    most = plan.get("seconds_most") or 0.0
    if most > _MUCH_SLOWER * plan["seconds"]:
        work = ", ".join(plan["peaks_disturbed"]) or "other work"
        line += (
            f"; {_hours(most)} if it stays as busy as it was: its peaks were measured"
            f" {plan['peaks_measured']} times during {work}, and the best is used"
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
