"""From a linked phase to its kernels: the passes, in their order, and the views of the result.

In: a `PassContext`: a trace, its linked steps, peaks. Out: `Kernels`. A pass is a function
`(frame, context) -> frame`: it adds columns (ns, FLOP, bytes; null is unknown) and drops no row.
What is no column, such as the distinct op calls, it leaves in the context for the passes after it.
Where one side of a comparison lacks what the other recorded, a view ignores that: the passes that
read it run again, from what the ones before them left, and nothing is read or linked twice.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np
import polars as pl
from msgspec import Struct, field
from msgspec.structs import replace
from numpy.typing import NDArray

from prunescope.analysis.kernels.assignment import (
    LEAST,
    Assignment,
    RoleEvidence,
    SideRows,
    resolve,
    spread,
)
from prunescope.analysis.kernels.call_work import (
    format_notes,
    unfold_queries,
    with_expected_experts,
    with_formats,
)
from prunescope.analysis.kernels.columns import instance_numbers, is_one_of, is_true, known_ids
from prunescope.analysis.kernels.counters import Needed, counter_notes
from prunescope.analysis.kernels.eager_roles import roles_of_pass
from prunescope.analysis.kernels.frame import (
    ATTENTION,
    ENOUGH,
    MATMUL,
    POINT,
    GraphReplays,
    Kernels,
    ModuleRoles,
    OpShapes,
)
from prunescope.analysis.kernels.graph_replay import GraphReplay, read_eager
from prunescope.analysis.kernels.host_calls import add_first
from prunescope.analysis.kernels.idle import add_waits
from prunescope.analysis.kernels.linked_phase import LinkedPhase, LinkedTrace
from prunescope.analysis.kernels.peaks import Peaks
from prunescope.analysis.kernels.role import GEMM_KINDS, POINTWISE, PRODUCT_KINDS
from prunescope.analysis.kernels.roofline import add_bound, add_waves
from prunescope.analysis.kernels.row_roles import find_evidence, multiplying_ops
from prunescope.analysis.kernels.work_split import add_work
from prunescope.analysis.ops.call import OpCall, Work
from prunescope.analysis.ops.kernel_kinds import kind_of
from prunescope.analysis.ops.work import work_of
from prunescope.analysis.schema.pair_comparison import MODULES, REPLAYS, SHAPES
from prunescope.analysis.shapes.workload import AutoModel, Filled, ModelConfig
from prunescope.analysis.timeline.intervals import Windows
from prunescope.analysis.timeline.link import Linked, taken
from prunescope.analysis.timeline.module_scopes import modules_that_ran
from prunescope.analysis.trace.collector import NONE
from prunescope.analysis.trace.event import WHOLE_GRAPH
from prunescope.analysis.trace.trace_columns import Trace
from prunescope.taxonomy.lazy_pattern import lazy_pattern

_SIMT = ("fp32", "fp64")  # formats that tensor cores do not multiply as they are
_DECODER = lazy_pattern(r"nn\.Module: \w*(?:DecoderLayer|ForCausalLM|LMHead)")


class PassContext(Struct):
    """What the passes of a phase read, and what they note for the passes after them.

    A pass replaces a value and never changes it in place, so that a copy of the context keeps its
    state.

    Attributes:
        trace: The trace, without shapes where a view ignores them.
        steps: The linked steps of the phase.
        peaks: The peaks of the device; None if they are unknown.
        eager: A trace of the same step without a graph, which names the ops of graph replays and
            the modules of compiled steps.
        model: A config, which gives shapes that the trace did not record.
        takes_modules: Whether recorded modules give roles; else the order of kernels does.
        experts_read: Experts of a layer that get a token in a step, where the run counted them.
        replay: The mapping of graph replays to the eager trace; None without either.
        calls: The distinct op calls.
        works: The work of each call; None where it is unknown.
        num_trace_calls: The number of calls that come from traces; those of a config follow.
        evidence: What the sources of layers and roles say of the rows.
        placed: The layers and roles that follow from them.
        roles_from: Where layers and roles come from (`ModuleRoles.source`).
        filled: The shapes that the config gave; None without a config.
    """

    trace: Trace
    steps: LinkedPhase
    peaks: Peaks | None = None
    eager: LinkedTrace | None = None
    model: ModelConfig | AutoModel | None = None
    takes_modules: bool = True
    experts_read: float | None = None
    replay: GraphReplay | None = None
    calls: list[OpCall] = field(default_factory=list)
    works: list[Work | None] = field(default_factory=list)
    num_trace_calls: int = 0
    evidence: list[RoleEvidence] = field(default_factory=list)
    placed: Assignment | None = None
    roles_from: str = "none"
    filled: Filled | None = None

    @property
    def linked(self) -> Linked:
        """The rows of the steps."""
        return self.steps.linked

    @property
    def windows(self) -> Windows:
        """The steps on the host."""
        return self.steps.windows


Pass = Callable[[pl.DataFrame, PassContext], pl.DataFrame]


def add_replayed_ops(frame: pl.DataFrame, context: PassContext) -> pl.DataFrame:
    """Give rows of graph replays the op, call and instance that the eager trace says they repeat.

    The calls of the eager trace follow those of the trace.
    """
    trace, linked, eager = context.trace, context.linked, context.eager
    if eager is None or not linked.replayed.any():
        return frame
    graph = taken(trace.device["correlation"], linked.event)
    context.replay = GraphReplay(read_eager(eager.trace), linked, frame, graph, trace)
    return context.replay.add_ops(frame, first_call=len(trace.calls))


def weigh_calls(frame: pl.DataFrame, context: PassContext) -> pl.DataFrame:
    """Note the distinct op calls with their number formats, and the work of each."""
    replayed = context.replay.eager.trace.calls if context.replay is not None else []
    calls = [*context.trace.calls, *replayed]
    context.calls = with_formats(frame, calls)
    context.works = unfold_queries(context.calls, [work_of(call) for call in context.calls])
    return frame


def add_kind(frame: pl.DataFrame, context: PassContext) -> pl.DataFrame:
    """Add column `kind`, computed once for every distinct kernel and op call."""
    calls = context.calls
    distinct = frame[["category", "name_id", "call", "name", "op"]].unique()
    fixed = {1: "memcpy", 2: "memset"}
    kinds = [
        fixed.get(row["category"])
        or kind_of(
            row["op"],
            row["name"] if row["category"] is not None else None,
            None if row["call"] is None else calls[row["call"]],
        )
        for row in distinct.iter_rows(named=True)
    ]
    keys = ["category", "name_id", "call"]
    frame = frame.join(
        pl.DataFrame([*distinct[keys], pl.Series("kind", kinds, dtype=pl.String)]),
        on=keys,
        how="left",
        nulls_equal=True,
        maintain_order="left",
    )
    return frame.with_columns(kind=_kinds_of_parts(frame["kind"], context.linked.above))


def _kinds_of_parts(kinds: pl.Series, above: NDArray[np.int64]) -> pl.Series:
    """Give pointwise ops that an activation calls its kind: `relu_` is `clamp_min_` inside it."""
    around = kinds.gather(np.maximum(above, 0))
    is_part = (kinds == "elementwise") & (around == "activation") & pl.Series(above >= 0)
    return pl.select(pl.when(is_part).then(around).otherwise(kinds)).to_series().alias("kind")


def add_places(frame: pl.DataFrame, context: PassContext) -> pl.DataFrame:
    """Add columns `layer`, `role`, `placed_by` and `confidence` (assignment.py).

    Graph replays have those of the eager launches that they repeat, and a step whose trace recorded
    no modules those of an eager pass beside it that did.
    """
    linked, calls, takes_modules = context.linked, context.calls, context.takes_modules
    evidence = find_evidence(frame, context.trace, linked, calls, takes_modules=takes_modules)
    by_kind, own, *_ = evidence
    context.roles_from = "none" if own.source == by_kind.source else own.source
    if context.replay is not None:
        evidence.append(context.replay.evidence())
        context.roles_from = context.replay.eager.roles.source
    elif takes_modules and context.roles_from in ("order", "none"):
        evidence += _read_pass(frame, context)
    context.evidence = evidence
    context.placed = resolve([SideRows(evidence)])[0]
    return context.placed.put_into(frame)


def _read_pass(frame: pl.DataFrame, context: PassContext) -> list[RoleEvidence]:
    """Return what an eager pass says of the rows, if its modules give roles."""
    eager = context.eager
    if eager is None:
        return []
    steps = eager.every_step
    if steps.linked.replayed.any() or not len(steps.linked.step):
        return []
    named = PassContext(eager.trace, steps)
    rows = steps.rows
    for add in (weigh_calls, add_kind, add_places):
        rows = add(rows, named)
    if named.roles_from not in ("modules", "nn.Module"):
        return []
    ours, theirs = (context.calls, context.works), (named.calls, named.works)
    given = roles_of_pass(frame, ours, rows, theirs)
    if given.confidence < LEAST:
        return []
    context.roles_from = named.roles_from
    return [given]


def weigh_experts(frame: pl.DataFrame, context: PassContext) -> pl.DataFrame:
    """Note the work of grouped GEMMs by the number of experts that they read."""
    context.works = with_expected_experts(frame, context.works, context.experts_read)
    return frame


def fill_shapes(frame: pl.DataFrame, context: PassContext) -> pl.DataFrame:
    """Take shapes that the trace did not record from the model's config, where one is given.

    The calls of the config follow those of the traces.
    """
    context.num_trace_calls = len(context.works)
    if context.model is None:
        return frame
    from prunescope.analysis.shapes.fill import fill
    from prunescope.analysis.shapes.trial import Traced

    traced = Traced(
        frame,
        context.trace,
        context.linked,
        context.windows,
        context.works,
        context.roles_from,
    )
    device = context.peaks.device if context.peaks is not None else None
    filled = context.filled = fill(traced, context.model, device)
    context.calls = context.calls + filled.calls
    context.works = context.works + filled.works
    context.roles_from = filled.source
    if filled.places:
        context.placed = resolve([SideRows([*context.evidence, _read_config(filled)])])[0]
        return context.placed.put_into(filled.frame)
    return filled.frame


def _read_config(filled: Filled) -> RoleEvidence:
    """Return what a config says of the kernels that run its GEMMs, and of their ops' others."""
    count = len(filled.frame)
    layer, role = np.full(count, NONE), np.full(count, "unknown", object)
    says = np.zeros(count, bool)
    for row, of_row, name in filled.places:
        layer[row], role[row], says[row] = NONE if of_row is None else of_row, name, True
    return spread(instance_numbers(filled.frame), RoleEvidence("config", layer, role, says))


def split_work(frame: pl.DataFrame, context: PassContext) -> pl.DataFrame:
    """Divide the work of each op among its kernels (work_split.py)."""
    copied = taken(context.trace.device["bytes"], context.linked.event)
    return add_work(frame, context.linked, context.calls, context.works, copied=copied)


def add_source_of_shapes(frame: pl.DataFrame, context: PassContext) -> pl.DataFrame:
    """Add column `shapes`: where the shapes of a GEMM or an attention come from.

    That is "recorded", "eager-trace" or "model"; null where the row has none.
    """
    products = is_true(is_one_of(frame["kind"], PRODUCT_KINDS))
    is_known = products & is_true(frame["modelled"])
    of_model = is_true(frame["call"] >= context.num_trace_calls)
    of_eager = np.zeros(len(frame), bool) if context.replay is None else context.replay.at >= 0
    source = np.select([of_model, ~is_known, of_eager], [_MODEL, _NO_SHAPES, _EAGER], _RECORDED)
    return frame.hstack([_SOURCES[source].alias("shapes")])


_SOURCES = pl.Series(["model", "eager-trace", "recorded", None])
_MODEL, _EAGER, _RECORDED, _NO_SHAPES = range(4)


def add_class(frame: pl.DataFrame, _: PassContext) -> pl.DataFrame:
    """Add columns `class`, `auxiliary` and `wrapper`.

    `class` is matmul, attention, pointwise, or else the kind. `auxiliary` is a row that the op of a
    GEMM or an attention launched without carrying its work; it gets the op's class. `wrapper` is a
    row whose op is neither and has no shapes (a compiled region): none of its rows is auxiliary to
    another. Products and softmax of a layer whose attention is a fused kernel are no part of that
    attention: they score its keys.
    """
    kind, of_attention = frame["kind"], frame["role"] == "attention"
    fused = of_attention & (kind == "attention")
    unfused = of_attention & is_one_of(kind, (*GEMM_KINDS, "softmax"))
    if fused.any() and unfused.any():
        layers = frame[["step", "layer"]].hstack([fused.alias("fused")])
        unfused &= ~layers.select(pl.col("fused").any().over("step", "layer")).to_series()
    cls = pl.Series([POINT]).zip_with(is_one_of(kind, POINTWISE), kind)
    cls = pl.Series([MATMUL]).zip_with(is_one_of(kind, GEMM_KINDS), cls)
    cls = pl.Series([ATTENTION]).zip_with((kind == "attention") | unfused, cls)
    number, primary = instance_numbers(frame), np.flatnonzero(frame["primary"].to_numpy())
    primary_of_instance = np.full(len(frame), NONE)  # by instance
    primary_of_instance[number[primary]] = primary
    of_op = cls.gather(known_ids(primary_of_instance[number]))
    is_other_op = ~is_one_of(frame["op"], multiplying_ops(frame))  # null for a row without an op
    wrapper = pl.Series(is_true(is_other_op)) & ~frame["modelled"]
    auxiliary = is_one_of(of_op, (MATMUL, ATTENTION)) & ~frame["carries_work"] & ~wrapper
    columns = {"class": of_op.zip_with(auxiliary, cls), "auxiliary": auxiliary, "wrapper": wrapper}
    return frame.hstack([column.alias(name) for name, column in columns.items()])


def add_bounds(frame: pl.DataFrame, context: PassContext) -> pl.DataFrame:
    """Add tiles and waves, the least time of each row and what bounds it (roofline.py)."""
    frame = add_waves(frame, context.trace, context.works, context.peaks)
    return add_bound(frame, context.peaks)


def add_causes_of_idle(frame: pl.DataFrame, context: PassContext) -> pl.DataFrame:
    """Add the causes of the gap before each row (idle.py), and whether it begins a launch."""
    frame = add_waits(frame, context.trace, context.linked, context.steps.unusual)
    return add_first(frame, context.trace, context.linked)


PASSES: tuple[Pass, ...] = (
    add_replayed_ops,
    weigh_calls,
    add_kind,
    add_places,
    weigh_experts,
    fill_shapes,
    split_work,
    add_source_of_shapes,
    add_class,
    add_bounds,
    add_causes_of_idle,
)
# What a view ignores, and the first pass that reads it.
_FIRST_PASS = {REPLAYS: add_replayed_ops, SHAPES: weigh_calls, MODULES: add_places}


class KernelsBuilder:
    """The kernels of a phase, from which a view can leave out what the other side lacks.

    All passes run once. Before each pass that reads what a view may ignore, the frame and the
    context are kept, and a view begins there.

    Attributes:
        kernels: The kernels with all that was recorded.
    """

    def __init__(self, context: PassContext) -> None:
        self._kept: dict[Pass, tuple[pl.DataFrame, PassContext]] = {}
        self.kernels = self._run(PASSES, context.steps.rows, replace(context))

    def view(self, ignored: Collection[str]) -> Kernels:
        """Return the kernels as if a part of what they have had not been recorded.

        Args:
            ignored: REPLAYS (ops that an eager trace gives to graph replays, and shapes of a
                config), SHAPES (recorded shapes, and those of a config) or MODULES, or several.
        """
        number = min(PASSES.index(_FIRST_PASS[kind]) for kind in ignored)
        frame, kept = self._kept[PASSES[number]]
        context = replace(kept, takes_modules=MODULES not in ignored)
        if REPLAYS in ignored:
            context.eager = None
        if SHAPES in ignored:
            context.trace = context.trace.without_shapes()
        if {REPLAYS, SHAPES} & {*ignored}:
            context.model = None
        return self._run(PASSES[number:], frame, context)

    @property
    def trace(self) -> Trace:
        """The trace, as it was recorded."""
        return self._kept[add_replayed_ops][1].trace

    def _run(self, passes: tuple[Pass, ...], frame: pl.DataFrame, context: PassContext) -> Kernels:
        for add in passes:
            if add in _FIRST_PASS.values():
                self._kept.setdefault(add, (frame, replace(context)))
            frame = add(frame, context)
        return _kernels(frame, context)


def _kernels(frame: pl.DataFrame, context: PassContext) -> Kernels:
    """Put the record of a phase together from its frame and what the passes noted."""
    trace, steps, replay, filled = context.trace, context.steps, context.replay, context.filled
    return Kernels(
        frame,
        steps.linked,
        steps.windows,
        on_device=trace.on_device,
        shapes=OpShapes(
            calls=context.calls,
            works=context.works,
            widths=filled.known if filled else {},
            tokens=filled.tokens if filled else None,
            caveats=filled.config_caveats if filled else [],
            refused=filled.config_refused if filled else None,
        ),
        replays=GraphReplays(
            mapping_rate=replay.rate if replay else None,
            note=replay.note() if replay else None,
            hide_kernels=_hide_kernels(frame, trace),
        ),
        host=steps.host_work(frame),
        modules=ModuleRoles(
            source=context.roles_from,
            ran=modules_that_ran(trace) if context.takes_modules else frozenset(),
            were_recorded=bool((trace.annotations["module"] == 1).any()),
            were_ignored=not context.takes_modules,
            decode_tokens=any(_DECODER.match(name) for name in trace.names),
        ),
        profiler=steps.profiler,
        notes=[
            *steps.notes,
            *format_notes(trace.calls, context.calls),
            *(filled.notes if filled else []),
            *(context.placed.notices() if context.placed else []),
            *steps.device_notes,
            *counter_notes(trace, steps.linked, _needed(frame)),
        ],
        warnings=[
            *steps.warnings,
            *(replay.warnings() if replay else []),
            *(filled.warnings if filled else []),
        ],
    )


def _needed(frame: pl.DataFrame) -> Needed:
    """Return the time that memory and tensor cores need for the work of a frame.

    Either is None where the work models know less than half of the busy time, or of the busy time
    of the products.
    """
    busy = frame["busy"]
    on_tensor = (frame["flop"] > 0) & ~is_one_of(frame["dtype"], _SIMT)
    products = busy.filter(is_one_of(frame["class"], (MATMUL, ATTENTION)))
    here = ~frame["crosses"]  # a copy to the host goes at its link's rate

    def needed(rows: pl.Series, of: pl.Series, column: str) -> float | None:
        known = int(busy.filter(rows & frame[column].is_not_null()).sum())
        enough = known >= ENOUGH * int(of.sum()) > 0
        return float(frame[column].filter(rows).sum()) if enough else None

    return Needed(needed(here, busy, "memory_ns"), needed(on_tensor, products, "compute_ns"))


def _hide_kernels(frame: pl.DataFrame, trace: Trace) -> bool:
    """Return whether launches of graphs that hide their kernels make most of the busy time."""
    graphs = [i for i, name in enumerate(trace.names) if name.startswith(WHOLE_GRAPH)]
    hidden = frame["busy"].filter(is_one_of(frame["name_id"], graphs))
    return bool(2 * hidden.sum() > frame["busy"].sum())
