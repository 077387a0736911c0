"""The kernels frame: one row per unit of device work, to which passes add columns.

In: a trace, its windows, peaks. Out: `Kernels`: the frame (ns, FLOP, bytes; null = unknown), the
walls and trailing idle times of the steps, and what was left out. A pass adds columns and never
drops a row.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import polars as pl

from prunescope.analysis.kernels.collectives import collective_notes
from prunescope.analysis.kernels.columns import instance_numbers, is_one_of, is_true, known_ids
from prunescope.analysis.kernels.counters import (
    Needed,
    SampledClock,
    counter_notes,
    memory_notes,
    sampled_clock,
)
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
from prunescope.analysis.kernels.idle import (
    add_waits,
    cause_sums,
    first_call_ns,
    host_collectives,
    host_late,
)
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
    _values: dict[str, frozenset[str]] = field(default_factory=dict, init=False, repr=False)

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

    @cached_property
    def idle_by_cause(self) -> dict[str, int]:
        """Idle time by cause, ns of all steps."""
        return cause_sums(self.frame)

    @cached_property
    def late_host(self) -> tuple[int, int]:
        """Idle time of a late host, ns of all steps: in dispatch, and in other work."""
        return host_late(self.frame)

    def values(self, column: str) -> frozenset[str]:
        """The values of a column of texts, each looked for once; null is none."""
        if column not in self._values:
            self._values[column] = frozenset(self.frame[column].unique()) - {None}
        return self._values[column]

    @cached_property
    def has_shapes(self) -> bool:
        """Whether most of the time of GEMMs and attention has shapes; a graph replay alone has
        none, nor has a trace without host ops."""
        if self.whole_graphs or self.is_folded:
            return False
        frame = self.frame
        busy, product = frame["busy"], is_one_of(frame["class"], (MATMUL, ATTENTION))
        total = int(busy.filter(product).sum())
        return not total or int(busy.filter(product & frame["modelled"]).sum()) >= LEAST * total

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
        whole_graphs=_are_whole(frame, trace),
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
    """The time that memory and tensor cores need for the work of a frame; None where the models
    know less than half of the busy time, or of that of the products."""
    busy = frame["busy"]
    on_tensor = (frame["flop"] > 0) & ~is_one_of(frame["dtype"], _SIMT)
    products = busy.filter(is_one_of(frame["class"], (MATMUL, ATTENTION)))
    here = ~frame["crosses"]  # a copy to the host goes at its link's rate
    found = []
    for rows, of, column in ((here, busy, "memory_ns"), (on_tensor, products, "compute_ns")):
        known = int(busy.filter(rows & frame[column].is_not_null()).sum())
        enough = known >= LEAST * int(of.sum()) > 0
        found.append(float(frame[column].filter(rows).sum()) if enough else None)
    return Needed(*found)


def _are_whole(frame: pl.DataFrame, trace: Trace) -> bool:
    """Whether launches of graphs that hide their kernels make most of the busy time."""
    graphs = [i for i, name in enumerate(trace.names) if name.startswith(WHOLE_GRAPH)]
    hidden = frame["busy"].filter(is_one_of(frame["name_id"], graphs))
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
        "name_id": known_ids(name), "op_id": known_ids(op_name), "call": known_ids(call),
        "instance": instance, "event": event,
        **{column: known_ids(of_event(column)) for column in _OF_EVENT},
        "recorded_inside": overhead.inside, "recorded_before": overhead.before,
    }  # fmt: skip
    names = pl.Series([*trace.names, None], dtype=pl.String)  # the last, -1, is none
    return pl.DataFrame({**columns, "name": names[name], "op": names[op_name]})


_OF_EVENT = ("category", "stream", "grid", "block", "registers", "shared_memory", "node")


def _add_kind(frame: pl.DataFrame, calls: list[OpCall]) -> pl.DataFrame:
    """Column `kind`, computed once for every distinct (kernel, op call)."""
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
    return frame.join(
        pl.DataFrame([*distinct[keys], pl.Series("kind", kinds, dtype=pl.String)]),
        on=keys,
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
    # Without an op only the kind of a kernel gives its role.
    role[lost] = [
        "attention" if kinds[i] == "attention" else "unknown" for i in np.flatnonzero(lost)
    ]
    _add_graph_places(layer, role, find_graph_places(trace, linked))
    roles_of_rows = pl.Series("role", role.tolist(), dtype=pl.String)
    return frame.hstack([known_ids(layer).alias("layer"), roles_of_rows]), roles.source


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
    """The row that gives each row its role: itself, or for a kernel that the op of a product
    launches in addition to its first product (a fill, the sum of a split K, a second part) that
    product."""
    kinds = [*GEMM_KINDS, "attention"]
    product = is_true(is_one_of(frame["kind"], kinds))
    rows = host[is_true(is_one_of(frame["op"], _multiplying(frame)))[host]]
    number = instance_numbers(frame)
    rows = rows[np.lexsort((~product[rows], number[rows]))]  # else in order of their launches
    first = np.diff(number[rows], prepend=NONE) != 0
    primary = rows[first][np.cumsum(first) - 1]
    out = np.arange(len(frame))
    out[rows] = np.where(product[primary], primary, rows)
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
    products = is_true(is_one_of(frame["kind"], (*GEMM_KINDS, "attention")))
    is_known = products & is_true(frame["modelled"])
    of_model = is_true(frame["call"] >= first)
    eager = np.zeros(len(frame), bool) if mapped is None else mapped
    source = np.select([of_model, ~is_known, eager], [_MODEL, _NO_SHAPES, _EAGER], _RECORDED)
    return frame.hstack([_SOURCES[source].alias("shapes")])


_SOURCES = pl.Series(["model", "eager-trace", "recorded", None])
_MODEL, _EAGER, _RECORDED, _NO_SHAPES = range(4)


def _add_class(frame: pl.DataFrame) -> pl.DataFrame:
    """Columns `class`: matmul | attention | pointwise | the kind; `auxiliary`: a row that the op of
    a GEMM or an attention launched without carrying its work, which gets the op's class;
    `wrapper`: the op is neither and has no shapes (a compiled region): none of its rows is
    auxiliary to another. Products and softmax of a layer whose attention is a fused kernel are no
    part of it: they score its keys."""
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
    main = np.full(len(frame), NONE)  # by instance
    main[number[primary]] = primary
    of_op = cls.gather(known_ids(main[number]))
    wrapper = pl.Series(is_true(~is_one_of(frame["op"], _multiplying(frame)))) & ~frame["modelled"]
    auxiliary = is_one_of(of_op, (MATMUL, ATTENTION)) & ~frame["carries_work"] & ~wrapper
    columns = {"class": of_op.zip_with(auxiliary, cls), "auxiliary": auxiliary, "wrapper": wrapper}
    return frame.hstack([column.alias(name) for name, column in columns.items()])


def _multiplying(frame: pl.DataFrame) -> list[str]:
    """The ops that are products or attention."""
    kinds = [*GEMM_KINDS, "attention"]
    return [op for op in frame["op"].unique() if op is not None and op_kind(op, None) in kinds]
