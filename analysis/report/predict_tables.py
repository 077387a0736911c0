"""Output of `predict`: in, the plain values that `--json` writes; out, a rich renderable.

One point: what each phase is bound by, takes and would gain. A grid: a row a point. From a run: a
row a family. A workload: a prompt with its answer, or families ranked by its time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from prunescope.analysis.report.sheet import Line, Sheet
from prunescope.analysis.report.view import Column, Table, numeric, text_table
from prunescope.analysis.schema.prediction import (
    FASTER,
    Execution,
    FromRun,
    Memory,
    PredictedAnswer,
    PredictedGemm,
    PredictedPhase,
    PredictedPoint,
    Prediction,
    Ranked,
    Ranking,
    Span,
    Sums,
)
from prunescope.taxonomy import methods, numbers
from prunescope.taxonomy.words import percent, spread

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


def prediction(values: dict[str, Any], *, explain: bool = False) -> Sheet:
    """The tables of a point, of a grid, of a ranking, or of the families from a run; then the
    warnings. `values`: the plain values of --json; `explain`: also every role and the
    GEMMs of a point."""
    kind: type[Prediction | Ranking | FromRun] = (
        FromRun if "from-run" in values["tool"] else Ranking if "by" in values else Prediction
    )
    result: Prediction | Ranking | FromRun = msgspec.convert(values, kind)
    parts: list[Line | Table] = []
    if isinstance(result, Prediction):
        parts += _different_layers(result.subject.model)
    if isinstance(result, FromRun):
        parts += from_run_tables(result)
    elif isinstance(result, Ranking):
        parts += ranking_tables(result)
    elif result.phases is None:
        parts += grid_tables(result)
    else:
        of_images = bool(result.subject.model["shape"].get("image_tokens"))
        for name, phase in result.phases.items():
            parts += phase_tables(name, phase, of_images=of_images, every_role=explain)
        if explain:
            parts += [gemm_table(name, phase) for name, phase in result.phases.items()]
        if result.answer is not None:
            parts += answer_tables(result.answer)
    if isinstance(result, Prediction):
        taken = [*result.assumed, *(text for point in result.points for text in point.assumed)]
        parts += [Line(f"assumed: {text}", "dim") for text in dict.fromkeys(taken)]
        named = {point.published["name"]: point for point in result.points if point.published}
        for name in named:
            parts += [Line(line, "dim") for line in methods.published(name).sentences()]
    parts += [Line(f"! {text}", "yellow") for text in result.warnings]
    ran = "only the dense side was run" if isinstance(result, FromRun) else "nothing was run"
    parts.append(Line(f"speedups are dense ÷ pruned; {ran}", "dim"))
    return Sheet([*parts, *([Line(result.command, "dim")] if result.command else [])])


def _different_layers(model: dict[str, Any]) -> Iterator[Line]:
    """A line for each model whose layers differ."""
    for one in (model, model.get("pruned") or {}):
        if one.get("layers_differ"):
            yield Line(f"layers of {one['id']} differ: {one['layers_differ']}")


def phase_tables(
    name: str, phase: PredictedPhase, *, of_images: bool = False, every_role: bool = False
) -> Parts:
    """One phase: ladder, break-even and cost of execution; then time and bytes of both sides."""
    where = f"batch {phase.batch}, {phase.prompt_len} tokens"
    if name == "decode":
        where = f"batch {phase.batch}, context of {phase.context} tokens"
    title = f"{name}: {where}, {phase.logits} logits"
    if not _caches(phase):
        given = _images(phase.batch, phase.prompt_len) if of_images else where
        title = f"forward: {given}"
    if phase.ladder is None:
        yield _sides_table(phase, title, every_role=every_role)
        return
    assert phase.predicted is not None
    expected = phase.predicted.execution
    columns = numeric(*_BOUNDS.values(), "expected", "range")
    row = [numbers.ratio(getattr(phase.ladder, bound)) for bound in _BOUNDS]
    row += [numbers.ratio(expected.speedup), _between(expected.range)]
    if expected.above_roofline:
        columns.append(Column("", flexible=True, folds=True))
        row.append(expected.above_roofline)
    yield text_table("ladder", title, columns, [row], expected.notes)
    if expected.break_even is not None:
        yield _break_even_table(phase)
    yield _execution_table(phase, expected)
    yield _sides_table(phase, "", every_role=every_role)


def _images(batch: int, tokens: int) -> str:
    return f"{batch} image{'s' * (batch != 1)} of {tokens} tokens"


def _break_even_table(phase: PredictedPhase) -> Table:
    """A table of the sparsity, batch and context from which pruned is faster than dense."""
    assert phase.ladder is not None
    assert phase.predicted is not None
    expected = phase.predicted.execution
    rows = []
    for label, speedup, found in (
        ("at the roofline", phase.ladder.roofline, phase.predicted.break_even),
        ("expected", expected.speedup, expected.break_even),
    ):
        assert found is not None
        share, everywhere = found.sparsity, "always" if speedup > FASTER else "never"
        rows.append(
            [
                label,
                "never" if share is None else f"from {share:.3f}",
                _span(found.batch) or everywhere,
                _span(found.context) or everywhere,
            ]
        )
    heads = ("faster than dense", "sparsity", "batch", "context")
    return text_table("break-even", "", [Column(head) for head in heads], rows)


def _execution_table(phase: PredictedPhase, expected: Execution) -> Table:
    """The terms between roofline and expected time; those that round to 0 are left out."""
    assert phase.baseline is not None
    unit = numbers.scale([expected.dense_ns])
    rows = [["roofline", unit.text(phase.baseline.ideal_ns), unit.text(phase.ideal_ns), ""]]
    rows += [
        [
            term.name,
            unit.text(term.dense_ns, signed=True),
            unit.text(term.pruned_ns, signed=True),
            term.mechanism,
        ]
        for term in expected.terms
        if max(term.dense_ns, term.pruned_ns) >= unit.per * 10**-unit.decimals / 2
    ]
    rows.append(["expected", unit.text(expected.dense_ns), unit.text(expected.pruned_ns), ""])
    columns = [
        Column(f"cost of execution, {unit.unit}"),
        *numeric("dense", "pruned"),
        Column("because", flexible=True, folds=True),
    ]
    return text_table("execution", "", columns, rows)


def _caches(phase: PredictedPhase) -> bool:
    """Whether the model keeps anything of a sequence: one that takes images does not."""
    return (phase.baseline or phase).kv_bytes > 0


def _sides_table(phase: PredictedPhase, title: str, *, every_role: bool) -> Table:
    """The bytes of a forward, its time at the roofline by role, and the memory it needs. Without
    `every_role`, smaller roles are one row, and a note names them: the roles sum to the time."""
    dense = phase.baseline
    sides: list[Sums | PredictedPhase] = [*([dense] if dense else []), phase]
    unit = numbers.scale([side.ideal_ns for side in sides])
    roles = sorted(sides[0].roles, key=lambda role: -sides[0].roles[role])
    added = [role for role in phase.roles if role not in roles]
    rows = [
        ["time of a forward", *(numbers.time(side.ideal_ns) for side in sides)],
        [
            "bound by memory",
            *(numbers.percent(numbers.share_of(s.bound["memory"], s.ideal_ns)) for s in sides),
        ],
        *_expert_rows(sides),
    ]
    if phase.items_per_s is not None:
        rates = (numbers.rate(numbers.share_of(phase.batch * 1e9, side.ideal_ns)) for side in sides)
        rows.insert(1, ["images/s", *rates])
    named = [role for role in roles if any(side.roles.get(role) for side in sides)]
    most = len(named) if every_role or len(named) <= _MOST_ROLES + 1 else _MOST_ROLES
    rest = named[most:]
    groups = [(role, [role]) for role in named[:most]]
    groups += [(f"{len(rest)} other roles", rest)] if rest else []
    groups += [(role, [role]) for role in added]
    rows += [
        [
            f"  {label}, {unit.unit}",
            *(unit.text(sum(side.roles.get(role, 0.0) for role in within)) for side in sides),
        ]
        for label, within in groups
    ]
    notes = [f"{len(rest)} other roles: {', '.join(rest)}; --explain shows each"] if rest else []
    for label, sizes in (
        ("bytes moved", [side.bytes for side in sides]),
        ("  of them weights", [side.weight_read_bytes for side in sides]),
        ("weights", [side.weight_bytes for side in sides]),
        ("KV cache", [side.kv_bytes for side in sides]),
        ("memory", [side.memory_bytes for side in sides]),
    ):
        if label != "KV cache" or _caches(phase):
            rows.append([label, *map(numbers.size, sizes)])
    names = ("dense", "pruned") if dense else ("dense",)
    return text_table("sides", title, [Column("at the roofline"), *numeric(*names)], rows, notes)


def _expert_rows(sides: Sequence[Sums]) -> list[list[str]]:
    """How tokens fall among the experts of a layer; nothing of a model without experts."""
    known = [side.experts for side in sides if side.experts is not None]
    if len(known) < len(sides):
        return []
    return [
        [
            "experts read, of a layer",
            *(
                f"{one.distinct:.1f} of {spread(one.fewest or one.count, one.count)}"
                for one in known
            ),
        ],
        ["  tokens of one", *(f"{one.rows:.3g}" for one in known)],
        ["  tokens of the fullest", *(f"{one.fullest:.3g}" for one in known)],
    ]


def gemm_table(name: str, phase: PredictedPhase) -> Table:
    """The expected time of each GEMM of a phase, and how it is cut. A GEMM that keeps its shape but
    runs in fewer layers has the axis `gone`."""
    gemms = [gemm for gemm in phase.gemms if gemm.count]
    removed = {(gemm.role, gemm.group) for gemm in phase.gemms if gemm.axis == "gone"}
    unit = numbers.scale([gemm.expected_ns for gemm in gemms])
    groups = any(map(is_grouped, gemms))
    rows = []
    for gemm in gemms:
        waves = numbers.UNKNOWN if gemm.waves is None else f"{gemm.waves:.3g}"
        fewer = gemm.axis == "none" and (gemm.role, gemm.group) in removed
        rows.append(
            [
                gemm.role,
                f"{gemm.count:g}",
                *(f"{size}" for size in (gemm.m, gemm.n, gemm.k)),
                *([f"{gemm.batch}" if is_grouped(gemm) else ""] if groups else []),
                "gone" if fewer else gemm.axis or numbers.UNKNOWN,
                gemm.bound or numbers.UNKNOWN,
                "×".join(map(str, gemm.tile)) if gemm.tile else numbers.UNKNOWN,
                f"{waves} of 1/{gemm.parts}" if (gemm.parts or 1) > 1 else waves,
                unit.text(gemm.expected_ns),
            ]
        )
    columns = [
        Column("role"),
        *numeric("×", "M", "N", "K", *(["experts"] if groups else [])),
        *(Column(title) for title in ("axis", "bound")),
        *numeric("tile", "waves", unit.unit),
    ]
    notes = [_SPLIT_K] if any((gemm.parts or 1) > 1 for gemm in gemms) else []
    notes += [_GROUPS] if groups else []
    return text_table("gemms", f"{name}: expected time of each GEMM", columns, rows, notes)


def is_grouped(gemm: PredictedGemm) -> bool:
    """Whether it multiplies by the matrices of several experts, which its `batch` counts."""
    return gemm.role == "experts"


def grid_tables(result: Prediction) -> Parts:
    """A table a phase, a row a point; then where each method starts to pay."""
    columns = [
        Column("method"),
        *numeric("s", "roofline", "expected", "range", "costs", "memory"),
    ]
    for name in dict.fromkeys(name for point in result.points for name in point.phases):
        rows: list[list[str]] = []
        break_even: dict[str, str] = {}
        for point in result.points:
            phase = point.phases[name]
            if phase.ladder is None or phase.predicted is None or phase.baseline is None:
                continue
            expected = phase.predicted.execution
            share = expected.break_even.sparsity if expected.break_even else None
            break_even[str(point.label)] = "never" if share is None else f"from {share:.2f}"
            rows.append(
                [
                    str(point.label),
                    f"{point.sparsity:g}",
                    f"{phase.ladder.roofline:.2f}",
                    f"{expected.speedup:.2f}",
                    _between(expected.range),
                    "/".join(f"{factor:.2f}" for factor in phase.cost_factors or ()),
                    numbers.size(phase.memory_bytes),
                ]
            )
        pays = ", ".join(f"{method} {text}" for method, text in break_even.items())
        yield text_table("grid", name, columns, rows)
        yield Line(f"expected to pay at s: {pays}")
    yield Line(_EXECUTION, "dim")
    if any(point.answer for point in result.points):
        yield answers_table(result.points)


def answers_table(points: list[PredictedPoint]) -> Table:
    """The prompt with its answer of each point of a grid."""
    answers = [(point, point.answer) for point in points if point.answer is not None]
    rows = []
    for point, answer in answers:
        if answer.pruned is None or answer.time is None or answer.throughput is None:
            continue
        memory = answer.pruned_memory or answer.dense_memory
        rows.append(
            [
                str(point.label),
                f"{point.sparsity:g}",
                f"{answer.time.speedup:.2f}",
                _between(answer.time.range),
                f"{answer.pruned.tokens_per_s:.0f}",
                f"{answer.throughput.speedup:.2f}",
                numbers.size(memory.total_bytes),
                _largest_batch(memory),
            ]
        )
    first = answers[0][1].dense
    title = f"{first.prompt_len} tokens and {first.new_tokens} new ones"
    heads = ("s", "time", "range", "tokens/s", "speedup", "memory", "largest batch")
    return text_table("answers", title, [Column("method"), *numeric(*heads)], rows)


def answer_tables(found: PredictedAnswer) -> Parts:
    """A prompt and its answer on both sides."""
    sides = [found.dense, *([found.pruned] if found.pruned else [])]
    memory = [found.dense_memory, *([found.pruned_memory] if found.pruned_memory else [])]
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
    names = ("dense", "pruned") if found.pruned else ("dense",)
    title = f"{sides[0].prompt_len} tokens and {sides[0].new_tokens} new ones"
    yield text_table("answer", title, [Column("expected"), *numeric(*names)], rows)
    speedups = [
        f"{label} {gain.speedup:.2f} ({_between(gain.range)})"
        for label, gain in (
            ("time", found.time),
            ("tokens/s", found.throughput),
            ("tokens/s, each side at its largest batch", found.at_max_batch),
        )
        if gain is not None
    ]
    if speedups:
        yield Line("speedup: " + ", ".join(speedups))


def ranking_tables(result: Ranking) -> Parts:
    """Families by expected speedup; those that tie with the first are marked."""
    load = result.workload
    name = f"{load['name']}: " if load["name"] else ""
    what = f"batch {load['batch']}, {load['prompt_len']} tokens and {load['new_tokens']} new ones"
    rate = "tokens/s"
    if load.get("image_tokens"):  # the time of its forward is all of its answer
        what, rate = _images(load["batch"], load["image_tokens"]), "images/s"
    elif load.get("one_pass"):
        what, rate = f"batch {load['batch']}, {load['prompt_len']} tokens", "sequences/s"
    yield Line(f"{name}{what}; dense {numbers.time(result.dense.total_ns)}", "bold")
    columns = [
        Column("family"),
        *numeric("s", "removed", "speedup", "range", rate, "weights"),
        Column(""),
    ]
    for by, ranked in result.by.items():
        rows = [
            [
                f"{row.family} *" if row.extension else row.family,
                f"{row.sparsity:.2f}",
                percent(row.removed[_SHARE_SHOWN.get(by, by)]),
                f"{row.speedup:.2f}",
                _between(row.range),
                f"{row.answer.tokens_per_s:.0f}",
                numbers.size(row.weight_bytes),
                _marks(row),
            ]
            for row in ranked
        ]
        removed = f"{percent(result.share)} removed"
        if by == "loss" and result.loss is not None:
            removed = f"perplexity {numbers.loss(result.loss)}; the share is that of FLOPs"
        yield text_table("ranking", f"at {_EQUAL[by]}: {removed}", columns, rows)
    yield Line(f"left out: {'; '.join(result.left_out.values())}", "dim")
    note = f"{_EXTENSION}."
    if result.loss is None:
        note += (
            " Equal FLOPs or parameters are not equal quality: `sweep` measures that, and --losses "
            "SWEEP ranks by it."
        )
    yield Line(note, "dim")


def from_run_tables(result: FromRun) -> Parts:
    """The measured parts of each phase, and the expected time with each family."""
    for name, phase in result.phases.items():
        shares = ", ".join(
            f"{part} {numbers.percent(share)}" for part, share in list(phase.shares.items())[:8]
        )
        idle = numbers.percent(phase.gap_share)
        yield Line(f"{name}: {numbers.time(phase.wall_ns)} dense; {shares}, idle {idle}", "bold")
        unit = numbers.scale([phase.wall_ns])
        above = any(row.above_by for row in phase.families)
        size_unit, per = numbers.size_scale(row.memory_bytes for row in phase.families)
        columns = [
            Column("family"),
            *numeric("s", "roofline", "expected", "range", unit.unit, "added", size_unit),
            *([Column("above by")] if above else []),
        ]
        rows = [
            [
                f"{row.label} *" if row.extension else row.label,
                f"{row.sparsity:.3g}",
                f"{row.bound:.2f}",
                f"{row.expected:.2f}",
                _between(row.range),
                unit.text(row.wall_ns),
                unit.text(row.added_ns),
                f"{row.memory_bytes / per:,.2f}",
                *([row.above_by or ""] if above else []),
            ]
            for row in phase.families
        ]
        yield text_table("families", "", columns, rows, phase.notes)
    note = (
        f"bytes: weights and KV cache; {_EXTENSION}: the measured model has no kernels like those "
        "that it adds"
    )
    if any(row.above_by for phase in result.phases.values() for row in phase.families):
        note += f"; {_ABOVE}"
    yield Line(note, "dim")


def _marks(row: Ranked) -> str:
    marks = ("ties" if row.ties else "", "no fit" if row.fits is False else "")
    return ", ".join(mark for mark in marks if mark)


def _fits(memory: Memory) -> str:
    if memory.fits is None:
        return "unknown"
    return "yes" if memory.fits else f"no: the device has {numbers.size(memory.device_bytes)}"


def _largest_batch(memory: Memory) -> str:
    most = memory.max_batch
    return "unknown" if most is None else str(most or "none")


def _between(ends: list[float]) -> str:
    return f"{ends[0]:.2f}–{ends[1]:.2f}"


def _span(found: Span | None) -> str | None:
    return None if found is None else f"{found['from']} to {found['to']}"
