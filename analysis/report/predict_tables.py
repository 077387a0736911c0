"""Output of `predict`: in, the plain values that `--json` writes; out, a Sheet.

One point shows what each phase is bound by, how long it takes, and what it would gain. A grid has a
row for each point, and a prediction from a run one for each family. A workload shows a prompt with
its answer, or families ranked by its time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import msgspec

from prunescope.analysis.report.sheet import Line, Sheet
from prunescope.analysis.report.view import (
    Column,
    Columns,
    Table,
    number,
    numeric,
    table_of,
    text_table,
)
from prunescope.analysis.schema.prediction import (
    FASTER,
    Execution,
    Experts,
    FromRun,
    Memory,
    Padding,
    PredictedAnswer,
    PredictedGemm,
    PredictedPhase,
    PredictedPoint,
    Prediction,
    RangeEvidence,
    Ranked,
    Ranking,
    ServedPoint,
    ServingChoice,
    Span,
    Sums,
)
from prunescope.taxonomy import methods, numbers
from prunescope.taxonomy.words import percent, plural, spread, when

Parts = Iterator[Line | Table]
_BOUNDS = {"nominal": "nominal", "flop": "FLOPs", "coverage": "coverage", "roofline": "roofline"}
_MOST_ROLES = 6
_EXECUTION = (
    "costs: expected over roofline time, dense/pruned; where dense pays more, the expected "
    "speedup is above the roofline's"
)
_ABOVE = (
    "above by: the part whose time falls by more than its FLOPs and bytes, because it needs fewer "
    "waves or launches, or idles less"
)
_EXTENSION = "* not in the paper's taxonomy, added here"
_SPLIT_K = "waves 3 of 1/2: K is split into 2 parts, and the tiles of both take 3 waves"
_GROUPS = "experts: how many get a token, whose weights are read; M is the mean of their tokens"
_SHARE_SHOWN = {"loss": "flop"}  # the removed share in a ranking by loss
_EQUAL = {"flop": "equal FLOPs", "param": "equal parameters", "loss": "equal loss"}
_SIZES = {  # rows of bytes, and the fields that have them
    "bytes moved": "bytes", "  of them weights": "weight_read_bytes", "weights": "weight_bytes",
    "KV cache": "kv_bytes", "memory": "memory_bytes",
}  # fmt: skip


def prediction(values: dict[str, Any], *, explain: bool = False) -> Sheet:
    """Return the tables of a prediction, then what was assumed, and the warnings.

    Args:
        values: The plain values of `predict --json`: of a point, a grid, a ranking, or the families
            from a run.
        explain: Whether to show every role and the GEMMs of a point too.
    """
    parts: list[Line | Table] = []
    ran = "nothing was run"
    result: Prediction | Ranking | FromRun | ServingChoice
    if "from-run" in values["tool"]:
        result = msgspec.convert(values, FromRun)
        parts += from_run_tables(result)
        ran = "only the dense side was run"
    elif "rank" in values:
        result = msgspec.convert(values, ServingChoice)
        parts += choice_tables(result)
    elif "by" in values:
        result = msgspec.convert(values, Ranking)
        parts += ranking_tables(result)
    else:
        result = msgspec.convert(values, Prediction)
        parts += _points(result, explain=explain)
    parts += [Line(f"! {text}", "yellow") for text in result.warnings]
    parts.append(Line(f"speedups are dense ÷ pruned; {ran}", "dim"))
    return Sheet([*parts, *([Line(result.command, "dim")] if result.command else [])])


def _points(result: Prediction, *, explain: bool) -> Parts:
    """Yield the tables of one point or of a grid, what was assumed, and published methods."""
    model = result.subject.model
    for side in (model, model.get("pruned") or {}):
        if side.get("layers_differ"):
            yield Line(f"layers of {side['id']} differ: {side['layers_differ']}")
    if result.phases is None:
        yield from grid_tables(result)
    else:
        of_images = bool(model["shape"].get("image_tokens"))
        for name, phase in result.phases.items():
            yield from phase_tables(name, phase, of_images=of_images, every_role=explain)
        if explain:
            yield from (gemm_table(name, phase) for name, phase in result.phases.items())
        if result.answer is not None:
            yield from answer_tables(result.answer)
        yield from drafting_tables(result.points)
        yield from _engine_lines(result.points)
    assumed = [*result.assumed, *(text for point in result.points for text in point.assumed)]
    yield from (Line(f"assumed: {text}", "dim") for text in dict.fromkeys(assumed))
    named = (point.published["name"] for point in result.points if point.published)
    for name in dict.fromkeys(named):
        yield from (Line(line, "dim") for line in methods.published(name).sentences())


def phase_tables(
    name: str, phase: PredictedPhase, *, of_images: bool = False, every_role: bool = False
) -> Parts:
    """Yield the tables of one phase.

    They are ladder, break-even and cost of execution, then time and bytes of both sides. A dense
    model alone has the last one only.

    Args:
        name: The name of the phase.
        phase: The phase.
        of_images: Whether the model takes images.
        every_role: Whether to show every role, and not only the largest.
    """
    where = f"batch {phase.batch}, {phase.prompt_len} tokens"
    if name == "decode":
        where = f"batch {phase.batch}, context of {phase.context} tokens"
    title = f"{name}: {where}, {phase.logits} logits"
    if not _has_cache(phase):
        given = _image_words(phase.batch, phase.prompt_len) if of_images else where
        title = f"forward: {given}"
    if phase.ladder is None:
        yield _sides_table(phase, title, every_role=every_role)
        return
    assert phase.predicted is not None
    expected = phase.predicted.execution
    columns = numeric(*_BOUNDS.values(), "expected", "range")
    row = [numbers.ratio(getattr(phase.ladder, bound)) for bound in _BOUNDS]
    row += [numbers.ratio(expected.speedup), _range(expected.range)]
    if expected.above_roofline:
        columns.append(Column("", flexible=True, folds=True))
        row.append(expected.above_roofline)
    notes = [f"range: {_evidence_words(expected.evidence)}"] if expected.evidence else []
    yield text_table("ladder", title, columns, [row], [*expected.notes, *notes])
    if expected.break_even is not None:
        yield _break_even_table(phase)
    yield _execution_table(phase, expected)
    yield _sides_table(phase, "", every_role=every_role)
    if phase.padding is not None:
        yield Line(_padding_words(phase.padding))


def _evidence_words(evidence: RangeEvidence) -> str:
    """Say what stands behind a range: how many measurements, and the nearest one."""
    nearest = evidence.nearest[:1]
    return "; nearest: ".join([evidence.text, *(near.source for near in nearest)])


def _padding_words(padding: Padding) -> str:
    """Say what the sizes of an engine cost, in time and bytes."""
    where = f"sizes that {padding.engine} takes at tensor parallelism {padding.tp}"
    if not padding.sizes:
        return f"{where}: they are taken as they are, at no cost"
    sizes = ", ".join(
        f"{name} {before:,} → {after:,}" for name, (before, after) in padding.sizes.items()
    )
    (ns, padded_ns), unit = padding.ns, numbers.scale(padding.ns)
    costs = [f"{unit.text(padded_ns - ns, signed=True)} {unit.unit} ({padded_ns / ns - 1:+.1%})"]
    for name, (before, after) in (
        ("weights", padding.weight_bytes),
        ("KV cache", padding.kv_bytes),
    ):
        if after != before:
            costs.append(f"{numbers.size(after - before)} of {name} more")
    return f"{where}: {sizes}; that costs {', '.join(costs)}"


def _engine_lines(points: Sequence[PredictedPoint]) -> Parts:
    """Yield which engines run the only point, each no with its reason."""
    answers = points[0].engines if len(points) == 1 else []
    if not answers:
        return
    running = ", ".join(answer.engine for answer in answers if answer.runs) or "none"
    yield Line(f"engines that run it (sources read on {answers[0].checked}): {running}")
    for answer in answers:
        if not answer.runs or answer.reason:
            word = when(not answer.runs, "no: ")
            text = f"  {answer.engine}: {word}{answer.reason}"
            yield Line(f"{text} (version {answer.version}: {answer.source})", "dim")


def _image_words(batch: int, tokens: int) -> str:
    return f"{batch} image{plural(batch)} of {tokens} tokens"


def _break_even_table(phase: PredictedPhase) -> Table:
    """Return the sparsity, batch and context from which pruned is faster than dense."""
    assert phase.ladder is not None
    assert phase.predicted is not None
    expected = phase.predicted.execution
    rows = []
    for label, speedup, even in (
        ("at the roofline", phase.ladder.roofline, phase.predicted.break_even),
        (_expected_label(phase), expected.speedup, expected.break_even),
    ):
        assert even is not None
        everywhere = "always" if speedup > FASTER else "never"
        share = "never" if even.sparsity is None else f"from {even.sparsity:.3f}"
        spans = (_span(even.batch) or everywhere, _span(even.context) or everywhere)
        rows.append([label, share, *spans])
    heads = ("faster than dense", "sparsity", "batch", "context")
    return text_table("break-even", "", [Column(head) for head in heads], rows)


def _expected_label(phase: PredictedPhase) -> str:
    """Return the row of the expected speedup; of experts a note tells which gains are sure."""
    return "expected" if phase.experts is None else "expected, its range aside"


def _execution_table(phase: PredictedPhase, expected: Execution) -> Table:
    """Return the terms between roofline and expected time; those that round to 0 are left out."""
    assert phase.baseline is not None
    unit = numbers.scale([expected.dense_ns])
    least = unit.per * 10**-unit.decimals / 2
    rows = [["roofline", unit.text(phase.baseline.ideal_ns), unit.text(phase.ideal_ns), ""]]
    for term in expected.terms:
        if max(term.dense_ns, term.pruned_ns) >= least:
            times = (unit.text(ns, signed=True) for ns in (term.dense_ns, term.pruned_ns))
            rows.append([term.name, *times, term.mechanism])
    rows.append(["expected", unit.text(expected.dense_ns), unit.text(expected.pruned_ns), ""])
    because = Column("because", flexible=True, folds=True)
    columns = [Column(f"cost of execution, {unit.unit}"), *numeric("dense", "pruned"), because]
    return text_table("execution", "", columns, rows)


def _has_cache(phase: PredictedPhase) -> bool:
    """Return whether the model keeps keys and values of a sequence; one for images does not."""
    return (phase.baseline or phase).kv_bytes > 0


def _sides_table(phase: PredictedPhase, title: str, *, every_role: bool) -> Table:
    """Return the time of a forward at the roofline by role, the bytes it moves, and its memory.

    Without `every_role`, the smaller roles share one row, and a note names them. The roles sum to
    the time either way.
    """
    dense = phase.baseline
    sides: list[Sums | PredictedPhase] = [*([dense] if dense else []), phase]
    unit = numbers.scale([side.ideal_ns for side in sides])
    rows = [
        ["time of a forward", *(numbers.time(side.ideal_ns) for side in sides)],
        [
            "bound by memory",
            *(numbers.percent(numbers.share_of(s.bound["memory"], s.ideal_ns)) for s in sides),
        ],
        *_expert_rows(sides),
    ]
    if phase.expected_ns is not None:
        rows.insert(1, ["expected, with costs", numbers.time(phase.expected_ns)])
    if phase.items_per_s is not None:
        rates = (numbers.rate(numbers.share_of(phase.batch * 1e9, side.ideal_ns)) for side in sides)
        rows.insert(1, ["images/s", *rates])
    roles = sorted(sides[0].roles, key=lambda role: -sides[0].roles[role])
    named = [role for role in roles if any(side.roles.get(role) for side in sides)]
    most = len(named) if every_role or len(named) <= _MOST_ROLES + 1 else _MOST_ROLES
    small = named[most:]
    groups = [(role, [role]) for role in named[:most]]
    groups += [(f"{len(small)} other roles", small)] if small else []
    groups += [(role, [role]) for role in phase.roles if role not in roles]
    for label, members in groups:
        sums = (sum(side.roles.get(role, 0.0) for role in members) for side in sides)
        rows.append([f"  {label}, {unit.unit}", *map(unit.text, sums)])
    notes = []
    if small:
        notes = [f"{len(small)} other roles: {', '.join(small)}; --explain shows each"]
    for label, field in _SIZES.items():
        if label != "KV cache" or _has_cache(phase):
            rows.append([label, *(numbers.size(getattr(side, field)) for side in sides)])
    names = ("dense", "pruned") if dense else ("dense",)
    return text_table("sides", title, [Column("at the roofline"), *numeric(*names)], rows, notes)


def _expert_rows(sides: Sequence[Sums]) -> list[list[str]]:
    """Return how tokens fall among the experts of a layer; nothing of a model without experts."""
    known = [side.experts for side in sides if side.experts is not None]
    if len(known) < len(sides):
        return []
    read = (
        f"{experts.distinct:.1f} of {spread(experts.fewest or experts.count, experts.count)}"
        for experts in known
    )
    return [
        ["experts read, of a layer", *read],
        ["  tokens of one", *(f"{experts.rows:.3g}" for experts in known)],
        ["  tokens of the fullest", *(f"{experts.fullest:.3g}" for experts in known)],
        *_imbalance_rows(known),
    ]


def _imbalance_rows(known: Sequence[Experts]) -> list[list[str]]:
    """Return how uneven devices are that hold experts; nothing of a single device."""
    ratios = [experts.imbalance for experts in known]
    if None in ratios:
        return []
    return [["  tokens of a device, max ÷ mean", *map(numbers.ratio, ratios)]]


def gemm_table(name: str, phase: PredictedPhase) -> Table:
    """Return the expected time of each GEMM of a phase, and how it is cut.

    A GEMM that keeps its shape but runs in fewer layers has the axis `gone`.

    Args:
        name: The name of the phase.
        phase: The phase.
    """
    gemms = [gemm for gemm in phase.gemms if gemm.count]
    removed = {(gemm.role, gemm.group) for gemm in phase.gemms if gemm.axis == "gone"}
    unit = numbers.scale([gemm.expected_ns for gemm in gemms])
    has_experts = any(map(is_grouped, gemms))

    def axis(gemm: PredictedGemm) -> str:
        is_fewer = gemm.axis == "none" and (gemm.role, gemm.group) in removed
        return "gone" if is_fewer else gemm.axis or numbers.UNKNOWN

    columns: list[tuple[Column, Callable[[PredictedGemm], str]]] = [
        (Column("role"), lambda gemm: gemm.role),
        (number("×"), lambda gemm: f"{gemm.count:g}"),
        (number("M"), lambda gemm: f"{gemm.m}"),
        (number("N"), lambda gemm: f"{gemm.n}"),
        (number("K"), lambda gemm: f"{gemm.k}"),
        (number("experts"), lambda gemm: f"{gemm.batch}" if is_grouped(gemm) else ""),
        (Column("axis"), axis),
        (Column("bound"), lambda gemm: gemm.bound or numbers.UNKNOWN),
        (number("tile"), lambda gemm: "×".join(map(str, gemm.tile or ())) or numbers.UNKNOWN),
        (number("waves"), _waves),
        (number(unit.unit), lambda gemm: unit.text(gemm.expected_ns)),
    ]
    shown = [pair for pair in columns if has_experts or pair[0].title != "experts"]
    notes = [_SPLIT_K] if any((gemm.parts or 1) > 1 for gemm in gemms) else []
    notes += [_GROUPS] if has_experts else []
    return table_of("gemms", f"{name}: expected time of each GEMM", gemms, shown, notes)


def _waves(gemm: PredictedGemm) -> str:
    """Return how many waves a GEMM takes, and into how many parts K is split."""
    waves = numbers.UNKNOWN if gemm.waves is None else f"{gemm.waves:.3g}"
    return f"{waves} of 1/{gemm.parts}" if (gemm.parts or 1) > 1 else waves


def is_grouped(gemm: PredictedGemm) -> bool:
    """Return whether a GEMM multiplies by the matrices of several experts.

    Its `batch` then counts the experts.
    """
    return gemm.role == "experts"


def grid_tables(result: Prediction) -> Parts:
    """Yield a table for each phase, a row for each point; then where each method starts to pay."""
    columns = [Column("method"), *numeric("s", "roofline", "expected", "range", "costs", "memory")]
    for name in dict.fromkeys(name for point in result.points for name in point.phases):
        rows: list[list[str]] = []
        break_even: dict[str, str] = {}
        ranges: dict[str, dict[str, None]] = {}  # the methods by what stands behind their ranges
        for point in result.points:
            phase = point.phases[name]
            if phase.ladder is None or phase.predicted is None or phase.baseline is None:
                continue
            expected = phase.predicted.execution
            if expected.break_even is not None:
                share = expected.break_even.sparsity
                break_even[str(point.label)] = "never" if share is None else f"from {share:.2f}"
            if expected.evidence is not None:
                ranges.setdefault(expected.evidence.text, {})[str(point.label)] = None
            costs = "/".join(f"{factor:.2f}" for factor in phase.cost_factors or ())
            speedups = [f"{n:.2f}" for n in (phase.ladder.roofline, expected.speedup)]
            label, size = str(point.label), numbers.size(phase.memory_bytes)
            span = _range(expected.range)
            rows.append([label, f"{point.sparsity:g}", *speedups, span, costs, size])
        pays = ", ".join(f"{method} {text}" for method, text in break_even.items())
        yield text_table("grid", name, columns, rows)
        yield from (Line(f"range of {', '.join(of)}: {text}", "dim") for text, of in ranges.items())
        if pays:
            yield Line(f"expected to pay at s: {pays}")
    yield Line(_EXECUTION, "dim")
    if any(point.answer for point in result.points):
        yield answers_table(result.points)
    yield from drafting_tables(result.points)


def drafting_tables(points: list[PredictedPoint]) -> Parts:
    """Yield the gain of drafts of each point, at each acceptance, and what stands behind it."""
    drafts = [(point, point.drafting) for point in points if point.drafting is not None]
    rows = []
    for point, drafting in drafts:
        label = [str(point.label), "" if point.sparsity is None else f"{point.sparsity:g}"]
        times = [drafting.draft_ns, drafting.verify_ns]
        costs = [f"{ns / drafting.dense_ns:.2f}" for ns in times]
        pays = "never" if drafting.pays_from is None else f"{drafting.pays_from:.2f}"
        for gain in drafting.at:
            gains = [f"{n:.2f}" for n in (gain.tokens, gain.speedup)]
            rows.append([*label, *costs, f"{gain.acceptance:g}", *gains, _range(gain.range), pays])
    if not drafts:
        return
    first = drafts[0][1]
    title = (
        f"{first.draft_tokens} drafted tokens, verified in one step: batch {first.batch}, context "
        f"of {first.context} tokens"
    )
    heads = ("s", "draft", "verify", "accepted", "tokens", "speedup", "range", "pays from")
    yield text_table("drafts", title, [Column("draft"), *numeric(*heads)], rows)
    yield Line("draft, verify: time over a plain step's; tokens of a cycle, in the mean", "dim")
    yield from (Line(text) for text in dict.fromkeys(d.evidence.text for _, d in drafts))


def answers_table(points: list[PredictedPoint]) -> Table:
    """Return the prompt with its answer of each point of a grid.

    Args:
        points: The points, of which at least one has an answer.
    """
    answers = [(point, point.answer) for point in points if point.answer is not None]
    rows = []
    for point, answer in answers:
        if answer.pruned is None or answer.time is None or answer.throughput is None:
            continue
        memory = answer.pruned_memory or answer.dense_memory
        times = [f"{answer.time.speedup:.2f}", _range(answer.time.range)]
        rates = [f"{answer.pruned.tokens_per_s:.0f}", f"{answer.throughput.speedup:.2f}"]
        sizes = [numbers.size(memory.total_bytes), _largest_batch(memory)]
        rows.append([str(point.label), f"{point.sparsity:g}", *times, *rates, *sizes])
    first = answers[0][1].dense
    title = f"{first.prompt_len} tokens and {first.new_tokens} new ones"
    heads = ("s", "time", "range", "tokens/s", "speedup", "memory", "largest batch")
    return text_table("answers", title, [Column("method"), *numeric(*heads)], rows)


def answer_tables(answer: PredictedAnswer) -> Parts:
    """Yield a table of a prompt and its answer on both sides, then the speedups."""
    sides = [answer.dense, *([answer.pruned] if answer.pruned else [])]
    memory = [answer.dense_memory, *([answer.pruned_memory] if answer.pruned_memory else [])]
    rows = [
        ["batch", *(f"{side.batch}" for side in sides)],
        ["time to first token", *(numbers.time(side.ttft_ns) for side in sides)],
        ["time a token", *(numbers.time(side.tpot_ns) for side in sides)],
        ["whole answer", *(numbers.time(side.total_ns) for side in sides)],
        ["new tokens/s", *(f"{side.tokens_per_s:.0f}" for side in sides)],
        ["memory", *(numbers.size(side.total_bytes) for side in memory)],
        ["fits", *map(_fits, memory)],
        ["largest batch", *map(_largest_batch, memory)],
    ]
    names = ("dense", "pruned") if answer.pruned else ("dense",)
    title = f"{sides[0].prompt_len} tokens and {sides[0].new_tokens} new ones"
    yield text_table("answer", title, [Column("expected"), *numeric(*names)], rows)
    gains = {
        "time": answer.time,
        "tokens/s": answer.throughput,
        "tokens/s, each side at its largest batch": answer.at_max_batch,
    }
    speedups = [
        f"{label} {gain.speedup:.2f} ({_range(gain.range)})"
        for label, gain in gains.items()
        if gain is not None
    ]
    if speedups:
        yield Line("speedup: " + ", ".join(speedups))


def ranking_tables(result: Ranking) -> Parts:
    """Yield families by expected speedup; those that tie with the first are marked."""
    load = result.workload
    name = f"{load['name']}: " if load["name"] else ""
    size, rate = f"batch {load['batch']}, {load['prompt_len']} tokens", "tokens/s"
    if load.get("image_tokens"):  # the time of its forward is all of its answer
        size, rate = _image_words(load["batch"], load["image_tokens"]), "images/s"
    elif load.get("one_pass"):
        rate = "sequences/s"
    else:
        size += f" and {load['new_tokens']} new ones"
    yield Line(f"{name}{size}; dense {numbers.time(result.dense.total_ns)}", "bold")
    for by, ranked in result.by.items():
        columns: Columns[Ranked] = [
            (Column("family"), lambda row: _starred(row.family, is_extension=row.extension)),
            (number("s"), lambda row: f"{row.sparsity:.2f}"),
            (number("removed"), partial(_removed, _SHARE_SHOWN.get(by, by))),
            (number("speedup"), lambda row: f"{row.speedup:.2f}"),
            (number("range"), lambda row: _range(row.range)),
            (number(rate), lambda row: f"{row.answer.tokens_per_s:.0f}"),
            (number("weights"), lambda row: numbers.size(row.weight_bytes)),
            (Column(""), _marks),
        ]
        removed = f"{percent(result.share)} removed"
        if by == "loss" and result.loss is not None:
            removed = f"perplexity {numbers.loss(result.loss)}; the share is that of FLOPs"
        yield table_of("ranking", f"at {_EQUAL[by]}: {removed}", ranked, columns)
    yield Line(f"left out: {'; '.join(result.left_out.values())}", "dim")
    note = (
        " Equal FLOPs or parameters are not equal quality: `sweep` measures that, and --losses "
        "SWEEP ranks by it."
    )
    yield Line(f"{_EXTENSION}.{when(result.loss is None, note)}", "dim")


def choice_tables(result: ServingChoice) -> Parts:
    """Yield each method at the largest batch that meets the objectives."""
    load, subject = result.workload, result.subject
    wanted = {
        "TTFT ≤ {:g} ms": "ttft_ms", "TPOT ≤ {:g} ms": "tpot_ms", "answer ≤ {:g} ms": "latency_ms",
        "≥ {:g} tokens/s a device": "throughput",
    }  # fmt: skip
    limits = [
        text.format(limit) for text, key in wanted.items() if (limit := result.objectives[key])
    ]
    engine = subject["runtime"] or "no engine named"
    title = f"{load['prompt_len']} tokens and {load['new_tokens']} new ones, {', '.join(limits)}"
    yield Line(f"{title}; {engine}", "bold")
    size_unit, per = numbers.size_scale(row.memory_bytes for row in result.rank)
    columns: Columns[ServedPoint] = [
        (Column("method"), lambda row: row.method),
        (number("s"), lambda row: f"{row.sparsity:.2f}"),
        (number("batch"), lambda row: str(row.batch or "none")),
        (number("TTFT", "ms"), lambda row: f"{row.ttft_ms:.0f}"),
        (number("TPOT", "ms"), lambda row: f"{row.tpot_ms:.1f}"),
        (
            number("tokens/s"),
            lambda row: (
                numbers.UNKNOWN
                if row.tokens_per_s_per_device is None
                else f"{row.tokens_per_s_per_device:.0f}"
            ),
        ),
        (number("speedup"), lambda row: numbers.ratio(row.speedup)),
        (number("range", drop=1), lambda row: _range(row.range) if row.range else ""),
        (number(size_unit, drop=2), lambda row: f"{row.memory_bytes / per:,.1f}"),
        (Column("runs"), lambda row: {True: "yes", False: "no", None: "?"}[row.runs]),
    ]
    none = [row for row in result.rank if row.batch is None]
    notes = [f"tokens/s and {size_unit} (weights, cache, activations): of each device"]
    if none:
        notes.append("none: no batch meets the objectives; its times are of one sequence")
    yield table_of("choice", "largest batch that meets them", result.rank, columns, notes)
    answers: dict[str, set[str]] = {}
    for row in result.rank:
        answers.setdefault(row.method, set()).add(row.why)
    for runs, word in ((False, "does not run"), (None, "unknown whether it runs")):
        reasons: dict[str, dict[str, None]] = {}
        for row in result.rank:
            is_one = len(answers[row.method]) == 1  # the same at each sparsity
            name = f"{row.method}{when(not is_one, f' at {row.sparsity:.2f}')}"
            if row.runs is runs:
                reasons.setdefault(row.why, {})[name] = None
        for why, names in reasons.items():
            yield Line(f"{word}: {', '.join(names)} ({why})", "dim")
    yield Line(f"what engines run: pages read on {result.engine_formats_of}", "dim")
    if result.left_out:
        yield Line(f"left out: {'; '.join(dict.fromkeys(result.left_out.values()))}", "dim")
    yield from (Line(f"assumed: {text}", "dim") for text in result.assumed)


def from_run_tables(result: FromRun) -> Parts:
    """Yield the measured parts of each phase, and the expected time with each family."""
    for name, phase in result.phases.items():
        shares = ", ".join(
            f"{part} {numbers.percent(share)}" for part, share in list(phase.shares.items())[:8]
        )
        idle = numbers.percent(phase.gap_share)
        yield Line(f"{name}: {numbers.time(phase.wall_ns)} dense; {shares}, idle {idle}", "bold")
        unit = numbers.scale([phase.wall_ns])
        has_above = any(row.above_by for row in phase.families)
        size_unit, per = numbers.size_scale(row.memory_bytes for row in phase.families)
        heads = ("s", "roofline", "expected", "range", unit.unit, "added", size_unit)
        above = [Column("above by")] if has_above else []
        rows = [
            [
                _starred(row.label, is_extension=row.extension),
                f"{row.sparsity:.3g}",
                *(f"{speedup:.2f}" for speedup in (row.bound, row.expected)),
                _range(row.range),
                *map(unit.text, (row.wall_ns, row.added_ns)),
                f"{row.memory_bytes / per:,.2f}",
                *([row.above_by or ""] if has_above else []),
            ]
            for row in phase.families
        ]
        columns = [Column("family"), *numeric(*heads), *above]
        yield text_table("families", "", columns, rows, phase.notes)
    note = (
        f"bytes: weights and KV cache; {_EXTENSION}; added: time of work that the measured model "
        "has no kernels for, from shapes"
    )
    if any(row.above_by for phase in result.phases.values() for row in phase.families):
        note += f"; {_ABOVE}"
    yield Line(note, "dim")


def _removed(kind: str, row: Ranked) -> str:
    return percent(row.removed[kind])


def _starred(name: str, *, is_extension: bool) -> str:
    """Return a family, with a star if it is not in the paper's taxonomy."""
    return f"{name} *" if is_extension else name


def _marks(row: Ranked) -> str:
    """Return whether a family ties, fits, is run by the engine, and was tried."""
    beyond = f"> {percent(row.tried)} tried" if row.is_beyond_tried and row.tried else ""
    marks = (
        when(row.ties, "ties"),
        when(row.fits is False, "no fit"),
        when(row.runs is False, "not run"),
        beyond,
    )
    return ", ".join(filter(None, marks))


def _fits(memory: Memory) -> str:
    if memory.fits is None:
        return "unknown"
    return "yes" if memory.fits else f"no: the device has {numbers.size(memory.device_bytes)}"


def _largest_batch(memory: Memory) -> str:
    most = memory.max_batch
    return "unknown" if most is None else str(most or "none")


def _range(ends: list[float]) -> str:
    return f"{ends[0]:.2f}–{ends[1]:.2f}"


def _span(span: Span | None) -> str | None:
    return None if span is None else f"{span['from']} to {span['to']}"
