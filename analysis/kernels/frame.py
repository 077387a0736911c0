"""The kernels frame: one row per unit of device work, to which passes add columns.

In: a trace, its windows, peaks. Out: `Kernels`: the frame (ns, FLOP, bytes; null = unknown), the
walls and trailing idle times of the steps, and what was left out. A pass adds columns and never
drops a row.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from prunescope.analysis.kernels.collectives import collective_notes
from prunescope.analysis.kernels.counters import Needed, SampledClock, counter_notes, sampled_clock
from prunescope.analysis.kernels.eager_roles import roles_of_pass
from prunescope.analysis.kernels.expected_experts import with_expected_experts
from prunescope.analysis.kernels.graph_replay import LEAST, GraphReplay, read_eager
from prunescope.analysis.kernels.grouped_queries import unfold_queries
from prunescope.analysis.kernels.host_calls import (
    AllocatorCalls,
    GraphBlockers,
    add_first,
    allocator_calls,
    graph_blockers,
    host_blocked_by_op,
)
from prunescope.analysis.kernels.idle import add_waits, first_call_ns, host_collectives
from prunescope.analysis.kernels.memory_held import memory_notes
from prunescope.analysis.kernels.number_formats import format_notes, with_formats
from prunescope.analysis.kernels.peaks import Peaks
from prunescope.analysis.kernels.role import GEMM_KINDS, POINTWISE, find_roles
from prunescope.analysis.kernels.roofline import add_bound, add_waves
from prunescope.analysis.kernels.work_split import add_work
from prunescope.analysis.ops.call import OpCall, Work
from prunescope.analysis.ops.kind import kind_of, op_kind
from prunescope.analysis.ops.work import work_of
from prunescope.analysis.shapes.workload import AutoModel, Filled, ModelConfig
from prunescope.analysis.timeline.clocks import ClockSkew, clock_skew
from prunescope.analysis.timeline.correlate import unlinked
from prunescope.analysis.timeline.first_calls import unusual_calls
from prunescope.analysis.timeline.fused_loops import fused_loop_notes
from prunescope.analysis.timeline.graph_places import GraphPlaces, find_graph_places
from prunescope.analysis.timeline.intervals import WHOLE, Spans, Windows
from prunescope.analysis.timeline.launches import nameless_notes
from prunescope.analysis.timeline.link import Linked, link, taken
from prunescope.analysis.timeline.markers import COMPILED_CODE
from prunescope.analysis.timeline.overhead import Recorded, profiler_notes, recorded
from prunescope.analysis.timeline.parts import find_parts
from prunescope.analysis.timeline.passes import Passes, find_passes
from prunescope.analysis.timeline.phase_steps import (
    ColdStepTimes,
    only_phase,
    only_picked,
    only_warm,
)
from prunescope.analysis.timeline.scopes import find_scopes, modules_that_ran, no_scopes
from prunescope.analysis.timeline.steps import find_windows
from prunescope.analysis.trace.collect import NONE, Ints
from prunescope.analysis.trace.event import WHOLE_GRAPH
from prunescope.analysis.trace.events import Trace, lacks_device_events, recorded_waits
from prunescope.taxonomy.recorder import Recorder, recorder_of
from prunescope.taxonomy.roles import BACKWARD
from prunescope.taxonomy.words import percent

_SIMT = ("fp32", "fp64")  # formats that tensor cores do not multiply as they are
_SDPA_MATH = "aten::_scaled_dot_product_attention_math"
_DECODER = re.compile(r"nn\.Module: \w*(?:DecoderLayer|ForCausalLM|LMHead)")
_LOST = 0.005  # of the launches
_FIRST_CALLS = 3  # that are named
MATMUL, ATTENTION, POINT = "matmul", "attention", "pointwise"
PRODUCTS = (MATMUL, ATTENTION, "conv")  # classes of which FLOPs are counted
_PRUNE_HOOK = "torch/nn/utils/prune.py"  # in the name of a Python frame


@dataclass
class Kernels:
    """One phase of one trace. `works[call]` is the work of a distinct op call, or None."""

    frame: pl.DataFrame
    linked: Linked
    windows: Windows
    works: list[Work | None]
    calls: list[OpCall]
    on_device: bool
    roles_from: str
    mapping_rate: float | None = None
    replay_note: str | None = None  # how graph replays were mapped to the eager trace, if given
    recorder: Recorder = field(default_factory=lambda: recorder_of({}))
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    compiled: bool = False  # whether torch.compile made a part of what ran
    decoder_modules: bool = False  # whether a module's class says that it decodes tokens
    # GEMMs that are compared as one, by role: the other side multiplies their inputs in one
    fused: dict[str, int] = field(default_factory=dict)
    known: dict[int, tuple[int, int]] = field(default_factory=dict)  # N, K of calls without M
    config_caveats: list[str] = field(default_factory=list)  # signs of another model's config
    config_refused: str | None = None  # why no shapes are taken from the config that was given
    stacks: int = 0  # calls of Python functions that were recorded; 0: too few to matter
    stops: GraphBlockers = GraphBlockers()  # calls of a step that no CUDA graph holds
    tokens: float | None = None  # a step, where a model's config and workload say so
    # (layer, role) of the modules whose calls were recorded; empty where our hooks recorded none
    modules: frozenset[tuple[int, str]] = frozenset()
    modules_recorded: bool = False  # by PyTorch (with_stack), whether or not they tell roles
    modules_ignored: bool = False  # those that the trace recorded: the other side has none
    sdpa_math: float = 0.0  # calls a step of scaled_dot_product_attention that ran as products
    sampled: SampledClock | None = None  # of the steps
    apart: ClockSkew | None = None  # how far the clocks of host and device differ, if they do
    # weight of what was recorded behind the last row of each step (timeline/overhead.py)
    recorded_after: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    host_blocked: pl.DataFrame = field(default_factory=pl.DataFrame)  # kernels/host_calls.py
    # The longest first calls and compilations of the steps (timeline/first_calls.py), ns.
    first_calls: list[tuple[str, int]] = field(default_factory=list)
    allocations: AllocatorCalls = field(default_factory=lambda: AllocatorCalls({}))
    host_collectives: list[str] = field(default_factory=list)  # by their names, of any thread
    prune_hooks: bool = False  # whether calls of torch.nn.utils.prune were recorded
    device_unseen: bool = False  # whether it ran on a device of which the trace holds no events
    cold: ColdStepTimes = ColdStepTimes()  # steps that were left out
    # Whether launches of graphs, each one interval without its kernels, make most of the busy time;
    # and whether the work is compared as a whole, because it is so on the other side.
    whole_graphs: bool = False
    is_folded: bool = False
    named_by_pass: bool = False  # whether an eager pass gave the roles (kernels/eager_roles.py)
    # Idle time of the device in first calls or compilation; on a CPU trace the time of compilers.
    first_call_ns: int = 0

    @property
    def num_steps(self) -> int:
        """How many steps the means are over."""
        return len(self.linked.wall)

    @property
    def is_whole_trace(self) -> bool:
        """Whether the one step is all of the trace, in which nothing shows a step."""
        return self.windows.source == WHOLE

    @property
    def kernels_per_step(self) -> list[int]:
        """How many rows each step holds."""
        return [int(n) for n in np.bincount(self.linked.step, minlength=self.num_steps)]

    @property
    def has_shapes(self) -> bool:
        """Whether most of the time of GEMMs and attention has shapes; a graph replay alone has
        none, nor has a trace without host ops."""
        if self.whole_graphs or self.is_folded:
            return False
        # Asked ten times of each side: masks of columns take a tenth of what a filtered frame does.
        kinds, busy = self.frame["class"], self.frame["busy"]
        products = (kinds == MATMUL) | (kinds == ATTENTION)
        total = int(busy.filter(products).sum())
        modelled = int(busy.filter(products & self.frame["modelled"]).sum())
        return not total or modelled >= LEAST * total

    @property
    def is_replay(self) -> bool:
        """Whether graph replays make most of the busy time."""
        busy = self.linked.busy
        return bool(2 * busy[self.linked.replayed].sum() > busy.sum())

    @property
    def has_modules(self) -> bool:
        """Whether roles come from modules that the trace recorded."""
        return self.roles_from in ("modules", "nn.Module")

    @property
    def is_by_order(self) -> bool:
        """Whether roles come from the order of kernels, which no config aligned with its layers."""
        return self.roles_from == "order" and not (self.frame["shapes"] == "model").any()

    @property
    def lacks_kernels(self) -> bool:
        """Whether more launches have no kernel in the trace than a few at its end."""
        lost = self.linked.launches["lost"]
        return lost > 0 and lost >= _LOST * self.linked.launches["events"]

    @property
    def is_captured(self) -> bool:
        """Whether more launches were captured into a graph, which runs none of them, than ran."""
        return self.linked.launches["captured"] > self.linked.launches["events"]

    @property
    def wall(self) -> int:
        """Wall of all steps together, ns."""
        return int(self.linked.wall.sum())

    @property
    def trailing_idle(self) -> int:
        """Idle time after the last event of every step together, ns."""
        return int(self.linked.trailing_idle.sum())


def build(  # noqa: PLR0913
    trace: Trace,
    windows: Windows,
    peaks: Peaks | None,
    *,
    eager: Trace | None = None,
    phase: str | None = None,
    model: ModelConfig | AutoModel | None = None,
    modules: bool = True,
    experts_read: float | None = None,
) -> Kernels:
    """All passes of one phase: link, replay, kind, role, shapes, work, class, waves, bound, idle.

    `eager`: a trace of the same step without a graph, for the ops of graph replays. `phase`: keep
    the steps that a serving engine's annotations say are of this phase. `model`: gives shapes that
    the trace did not record. `modules`: with the roles that recorded modules give; else by order.
    `experts_read`: of a layer in a step, where the run counted them.
    """
    linked = link(trace, windows)
    if phase is not None:
        linked, windows = only_phase(trace, linked, windows, phase)
    else:
        linked, windows = only_picked(trace, linked, windows)
    unusual = unusual_calls(trace)
    linked, windows, cold = only_warm(trace, linked, windows, unusual.first)
    calls = list(trace.calls)
    overhead = recorded(trace, linked, windows)
    frame = _rows(trace, linked, overhead)
    replay: GraphReplay | None = None
    if eager is not None and linked.replayed.any():
        graph = taken(trace.device["correlation"], linked.event)
        replay = GraphReplay(read_eager(eager), linked, frame, graph, trace)
        frame = replay.add_ops(frame, first_call=len(calls))
        calls += eager.calls
    calls = with_formats(frame, calls)
    works = unfold_queries(calls, [work_of(call) for call in calls])
    frame = _add_kind(frame, calls)
    frame, source = _add_role(frame, trace, linked, calls, modules=modules)
    if replay is not None:
        frame, source = replay.add_roles(frame)
    named = None
    if eager is not None and replay is None and modules and source in ("order", "none"):
        named = _named_by_pass(frame, (calls, works), eager)
        frame, source = (frame, source) if named is None else named
    works = with_expected_experts(frame, works, experts_read)
    filled = Filled(frame, source)
    if model is not None:
        from prunescope.analysis.shapes.fill import fill
        from prunescope.analysis.shapes.trial import Traced

        device = peaks.device if peaks is not None else None
        filled = fill(Traced(frame, trace, linked, windows, works, source), model, device)
    with_shapes, calls, works = len(works), calls + filled.calls, works + filled.works
    copied = taken(trace.device["bytes"], linked.event)
    frame = add_work(filled.frame, linked, calls, works, copied=copied)
    frame = _add_shapes(frame, with_shapes, None if replay is None else replay.at >= 0)
    frame = add_bound(add_waves(_add_class(frame), trace, works, peaks), peaks)
    frame = add_first(add_waits(frame, trace, linked, unusual), trace, linked)
    apart = clock_skew(trace, linked)
    return Kernels(
        frame,
        linked,
        windows,
        works,
        calls,
        trace.on_device,
        filled.source,
        mapping_rate=None if replay is None else replay.rate,
        replay_note=None if replay is None else replay.note(),
        recorder=recorder_of(trace.source.meta),
        notes=[
            *unlinked(trace, linked.event, linked.op),
            *nameless_notes(trace),
            *recorded_waits(trace),
            *profiler_notes(trace, linked),
            *fused_loop_notes(trace, linked),
            *format_notes(trace.calls, calls),
            *filled.notes,
            *collective_notes(trace, linked),
            *memory_notes(trace, windows),
            *counter_notes(trace, linked, _needed(frame)),
        ],
        warnings=[
            *([] if apart is None else [f"{trace.source.name}: {apart.warning}"]),
            *_devices(trace, linked),
            *([] if replay is None else replay.warnings()),
            *filled.warnings,
        ],
        compiled=any(name.startswith(COMPILED_CODE) for name in trace.names),
        decoder_modules=any(_DECODER.match(name) for name in trace.names),
        known=filled.known,
        config_caveats=filled.config_caveats,
        config_refused=filled.config_refused,
        stacks=trace.stacks if trace.stacks > len(trace.launches["ts"]) else 0,
        stops=graph_blockers(trace, windows, linked),
        tokens=filled.tokens,
        modules=modules_that_ran(trace) if modules else frozenset(),
        modules_recorded=bool((trace.annotations["module"] == 1).any()),
        modules_ignored=not modules,
        sdpa_math=_calls_a_step(trace, windows, _SDPA_MATH),
        apart=apart,
        sampled=sampled_clock(trace, linked),
        recorded_after=overhead.after,
        host_blocked=host_blocked_by_op(trace, linked),
        first_calls=unusual.first.longest(
            Spans.of(linked.start - linked.gap, linked.start), _FIRST_CALLS
        ),
        cold=cold,
        whole_graphs=_are_whole(frame),
        named_by_pass=named is not None,
        first_call_ns=int(
            first_call_ns(frame).sum()
            if trace.on_device
            else unusual.first.of_compilers().within(windows).sum()
        ),
        allocations=allocator_calls(trace, windows),
        host_collectives=host_collectives(trace),
        prune_hooks=any(_PRUNE_HOOK in name for name in trace.names),
        device_unseen=lacks_device_events(trace),
    )


def _needed(frame: pl.DataFrame) -> Needed:
    """What memory and tensor cores need for the work of a frame; None where the models know less
    than half of the busy time, or of that of the products."""
    frame = frame.select("flop", "dtype", "class", "crosses", "busy", "memory_ns", "compute_ns")
    on_tensor = frame.filter((pl.col("flop") > 0) & pl.col("dtype").is_in(_SIMT).not_())
    products = frame.filter(pl.col("class").is_in([MATMUL, ATTENTION]))
    here = frame.filter(pl.col("crosses").not_())  # a copy to the host goes at its link's rate
    found = []
    for rows, of, column in ((here, frame, "memory_ns"), (on_tensor, products, "compute_ns")):
        known = int(rows.filter(pl.col(column).is_not_null())["busy"].sum())
        enough = known >= LEAST * int(of["busy"].sum()) > 0
        found.append(float(rows[column].sum()) if enough else None)
    return Needed(*found)


def _are_whole(frame: pl.DataFrame) -> bool:
    """Whether launches of graphs that hide their kernels make most of the busy time."""
    hidden = frame["busy"].filter(frame["name"].str.starts_with(WHOLE_GRAPH).fill_null(value=False))
    return bool(2 * hidden.sum() > frame["busy"].sum())


def _calls_a_step(trace: Trace, windows: Windows, name: str) -> float:
    """How often a step calls an op, by the begin of its name."""
    ids = [i for i, found in enumerate(trace.names) if found.startswith(name)]
    began = trace.ops["ts"][np.isin(trace.ops["name"], ids)]
    return int((windows.step_of(began) >= 0).sum()) / max(1, len(windows))


def _devices(trace: Trace, linked: Linked) -> list[str]:
    """A warning where kernels of one trace ran on several devices."""
    times = trace.times_of_devices(linked.event)
    if len(times) < 2:
        return []
    each = ", ".join(f"{name}: {percent(ns / sum(times.values()))}" for name, ns in times.items())
    return [
        f"kernels of {trace.source.name} ran on {len(times)} devices ({each} of the time that they "
        "ran): all count on one timeline, where a device that idles hides behind another, and "
        "bounds are those of one"
    ]


def _rows(trace: Trace, linked: Linked, overhead: Recorded) -> pl.DataFrame:
    """The linked rows with their names. `instance` is the op that launched a row, else its own."""
    event, op = linked.event, linked.op
    device = trace.device
    has_event, has_op = event >= 0, op >= 0
    at_event, at_op = np.maximum(event, 0), np.maximum(op, 0)
    ops = trace.ops
    none = np.full(len(event), NONE)

    def of_event(column: str) -> np.ndarray:
        return np.where(has_event, device[column][at_event], NONE) if has_event.any() else none

    call = np.where(has_op, ops["call"][at_op], NONE) if has_op.any() else none
    op_name = np.where(has_op, ops["name"][at_op], NONE) if has_op.any() else none
    name = of_event("name") if trace.on_device else op_name
    instance = np.where(has_op, op, -2 - np.arange(len(op)))
    columns = {
        "step": linked.step, "start": linked.start, "duration": linked.duration,
        "busy": linked.busy, "gap": linked.gap, "starved": linked.starved,
        "launched": linked.launched,
        "name_id": name, "op_id": op_name, "call": call, "instance": instance, "event": event,
        "category": of_event("category"), "stream": of_event("stream"), "grid": of_event("grid"),
        "block": of_event("block"), "registers": of_event("registers"),
        "shared_memory": of_event("shared_memory"), "node": of_event("node"),
        "recorded_inside": overhead.inside, "recorded_before": overhead.before,
    }  # fmt: skip
    frame = pl.DataFrame(columns)
    names = pl.Series("names", trace.names, dtype=pl.String)
    absent = pl.lit(None, pl.Int64)
    ids = ("name_id", "op_id", "call", "category", "stream", "grid", "block", "registers",
           "shared_memory", "node")  # fmt: skip
    frame = frame.with_columns(
        pl.when(pl.col(c) >= 0).then(pl.col(c)).otherwise(absent).alias(c) for c in ids
    )
    return frame.with_columns(name=names.gather(frame["name_id"]), op=names.gather(frame["op_id"]))


def _add_kind(frame: pl.DataFrame, calls: list[OpCall]) -> pl.DataFrame:
    """Column `kind`, computed once for every distinct (kernel, op call)."""
    distinct = frame.select("category", "name_id", "call", "name", "op").unique()
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
    distinct = distinct.select("category", "name_id", "call").with_columns(
        kind=pl.Series(kinds, dtype=pl.String)
    )
    return frame.join(
        distinct,
        on=["category", "name_id", "call"],
        how="left",
        nulls_equal=True,
        maintain_order="left",
    )


def _add_role(
    frame: pl.DataFrame, trace: Trace, linked: Linked, calls: list[OpCall], *, modules: bool
) -> tuple[pl.DataFrame, str]:
    """Columns `layer` and `role`; replayed rows have neither, unless their graph names them."""
    host = np.argsort(linked.launched, kind="stable")
    passes = find_passes(trace, linked.thread[host], linked.launched[host])
    forward = host if passes is None else host[~passes.backward & ~passes.optimizer]
    product = _products_of_rows(frame, host)
    forward = forward[product[forward] == forward]
    recorded_scopes = find_scopes(trace, linked.thread[forward], linked.launched[forward])
    scopes = recorded_scopes if modules else no_scopes(len(forward))
    # The path of a module is that of a part too: of ignored modules neither counts.
    has_parts = scopes.source == "none" and recorded_scopes.source != "modules"
    call_ids = frame["call"].to_list()
    of_row = [None if call_ids[i] is None else calls[call_ids[i]] for i in forward]
    kinds = frame["kind"].to_list()
    roles = find_roles(
        scopes,
        [kinds[i] for i in forward],
        of_row,
        linked.step[forward],
        every=trace.calls,
        busy=linked.busy[forward],
        parts=find_parts(trace, linked.thread[forward], linked.launched[forward])
        if has_parts
        else None,
    )
    layer = np.full(len(host), NONE)
    layer[forward] = roles.layer
    role = np.full(len(host), "unknown", object)
    role[forward] = roles.role
    layer, role = layer[product], role[product]
    if passes is not None:
        _add_passes(layer, role, host, passes)
    lost = linked.replayed
    if len(scopes.place) and scopes.source != "none":
        lost = lost | (linked.thread < 0)
    layer[lost] = NONE
    # Without an op only the kind of a kernel tells its role.
    role[lost] = [
        "attention" if kinds[i] == "attention" else "unknown" for i in np.flatnonzero(lost)
    ]
    _add_graph_places(layer, role, find_graph_places(trace, linked))
    frame = frame.with_columns(
        layer=pl.Series(layer), role=pl.Series(role.tolist(), dtype=pl.String)
    )
    return frame.with_columns(
        layer=pl.when(pl.col("layer") >= 0).then(pl.col("layer"))
    ), roles.source


def _named_by_pass(
    frame: pl.DataFrame, of: tuple[list[OpCall], list[Work | None]], eager: Trace
) -> tuple[pl.DataFrame, str] | None:
    """The frame with the roles of an eager pass that recorded modules, and where it has them from;
    None where the pass has none, or is of another step."""
    windows = find_windows(eager)
    linked = link(eager, windows)
    if linked.replayed.any() or not len(linked.step):
        return None
    calls = list(eager.calls)
    works = unfold_queries(calls, [work_of(call) for call in calls])
    rows = _add_kind(_rows(eager, linked, recorded(eager, linked, windows)), calls)
    rows, named_by = _add_role(rows, eager, linked, calls, modules=True)
    if named_by not in ("modules", "nn.Module"):
        return None
    named = roles_of_pass(frame, of, rows, (calls, works))
    return None if named is None else (named, named_by)


def _add_graph_places(layer: np.ndarray, role: np.ndarray, found: GraphPlaces | None) -> None:
    """Fill in the layers and roles of replays whose graph says where its kernels belong."""
    for row in np.flatnonzero(found.place >= 0).tolist() if found is not None else ():
        assert found is not None
        place = found.places[found.place[row]]
        layer[row] = NONE if place.layer is None else place.layer
        role[row] = place.role if place.role != "unknown" else role[row]


def _products_of_rows(frame: pl.DataFrame, host: Ints) -> Ints:
    """By row the row whose role is its own: of a kernel that an op of a product launches beside
    its first product (a fill, the sum of a split K, a second part), that one; else itself."""
    kinds = [*GEMM_KINDS, "attention"]
    multiply = [op for op in frame["op"].unique().drop_nulls() if op_kind(op, None) in kinds]
    rows = frame.select("step", "instance", "op", "kind").with_row_index("row")[host]
    rows = rows.filter(pl.col("op").is_in(multiply))
    first = rows.filter(pl.col("kind").is_in(kinds)).unique(["step", "instance"], keep="first")
    found = rows.join(
        first.select("step", "instance", product="row"), on=["step", "instance"], how="inner"
    )
    out = np.arange(len(frame))
    out[found["row"].to_numpy()] = found["product"].to_numpy()
    return out


def _add_passes(layer: np.ndarray, role: np.ndarray, host: np.ndarray, passes: Passes) -> None:
    """Fill in the roles of gradients and of the optimizer; `host`: the rows of `passes`."""
    role[host[passes.optimizer]] = "optimizer"
    source = passes.source()
    known = np.flatnonzero(source >= 0)
    of = source[known]
    layers, roles = layer[host], role[host]
    layer[host[known]] = np.where(passes.alike(layers.tolist())[of], layers[of], NONE)
    forward = np.where(passes.alike(roles.tolist())[of], roles[of], "unknown")
    role[host[known]] = [f"{name}{BACKWARD}" for name in forward]


def _add_shapes(frame: pl.DataFrame, first: int, mapped: np.ndarray | None) -> pl.DataFrame:
    """Column `shapes`: the source of the shapes of a GEMM or an attention; null where it has none.
    Calls from `first` on are those of a model's config."""
    eager = pl.lit(value=False) if mapped is None else pl.Series(mapped)
    source = (
        pl.when(pl.col("call") >= first)
        .then(pl.lit("model"))
        .when(pl.col("modelled").not_() | pl.col("kind").is_in([*GEMM_KINDS, "attention"]).not_())
        .then(pl.lit(None, pl.String))
        .when(eager)
        .then(pl.lit("eager-trace"))
        .otherwise(pl.lit("recorded"))
    )
    return frame.with_columns(shapes=source)


def _add_class(frame: pl.DataFrame) -> pl.DataFrame:
    """Columns `class`: matmul | attention | pointwise | the kind; `auxiliary`: a row that the op of
    a GEMM or an attention launched without carrying its work, which gets the op's class;
    `wrapper`: the op is neither and has no shapes (a compiled region): none of its rows is
    auxiliary to another. Products and softmax of a layer whose attention is a fused kernel are no
    part of it: they score its keys."""
    products = [*GEMM_KINDS, "attention"]
    others = [op for op in frame["op"].unique().drop_nulls() if op_kind(op, None) not in products]
    wrapper = pl.col("op").is_in(others).fill_null(value=False) & pl.col("modelled").not_()
    kind, role = pl.col("kind"), pl.col("role")
    of_attention = role == "attention"
    has_fused = (of_attention & (kind == "attention")).any().over("step", "layer")
    in_attention = of_attention & kind.is_in([*GEMM_KINDS, "softmax"]) & has_fused.not_()
    kind_class = (
        pl.when((kind == "attention") | in_attention)
        .then(pl.lit(ATTENTION))
        .when(kind.is_in(GEMM_KINDS))
        .then(pl.lit(MATMUL))
        .when(kind.is_in(POINTWISE))
        .then(pl.lit(POINT))
        .otherwise(kind)
    )
    frame = frame.with_columns(_class=kind_class)
    of_op = pl.col("_class").filter(pl.col("primary")).first().over("step", "instance")
    auxiliary = of_op.is_in([MATMUL, ATTENTION]) & pl.col("carries_work").not_() & wrapper.not_()
    return frame.with_columns(
        pl.when(auxiliary).then(of_op).otherwise("_class").alias("class"),
        auxiliary=auxiliary,
        wrapper=wrapper,
    ).drop("_class")
