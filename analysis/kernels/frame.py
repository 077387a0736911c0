"""The kernels of one phase of a trace: one row per unit of device work, and what is known of them.

`build.KernelsBuilder` makes `Kernels` from a trace; the rooms after this one read it. Times are in
ns, work in FLOP and bytes; null is unknown. A record holds what one question needs: the shapes of
ops, the graph replays, the host, the modules, the profiler.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import polars as pl
from msgspec import Struct, field

from prunescope.analysis.kernels.columns import is_one_of
from prunescope.analysis.kernels.counters import SampledClock
from prunescope.analysis.kernels.host_calls import AllocatorCalls, GraphBlockers
from prunescope.analysis.kernels.idle import cause_sums, host_late
from prunescope.analysis.ops.call import OpCall, Work
from prunescope.analysis.schema.notice import Notice
from prunescope.analysis.timeline.clocks import ClockSkew
from prunescope.analysis.timeline.intervals import WHOLE, Windows
from prunescope.analysis.timeline.link import Linked
from prunescope.analysis.timeline.phase_steps import ColdStepTimes
from prunescope.analysis.trace.collector import Ints
from prunescope.taxonomy.recorder import Recorder, recorder_of
from prunescope.taxonomy.roles import BACKWARD

MATMUL, ATTENTION, POINT = "matmul", "attention", "pointwise"
PRODUCTS = (MATMUL, ATTENTION, "conv")  # classes of which FLOPs are counted
ENOUGH = 0.5  # share of a busy time that counts as most of it
_LOST = 0.005  # share of the launches that a trace may lack at its end


class OpShapes(Struct, frozen=True):
    """The distinct op calls of a phase, their work, and the shapes that a model's config gave.

    Attributes:
        calls: The distinct op calls; column `call` of the frame is an index of this list. Those of
            a config follow those of the trace.
        works: The work of each call; None where no model of its op or no shape is known.
        widths: N and K of the calls whose M is unknown, by call.
        tokens: Tokens of a step, as a config and its workload give them; None if they do not.
        caveats: Signs in the trace that the config belongs to a different model.
        refused: Why no shapes are taken from the config that was given; None if they are taken, or
            no config was given.
    """

    calls: list[OpCall] = field(default_factory=list)
    works: list[Work | None] = field(default_factory=list)
    widths: dict[int, tuple[int, int]] = field(default_factory=dict)
    tokens: float | None = None
    caveats: list[Notice] = field(default_factory=list)
    refused: Notice | None = None


class GraphReplays(Struct, frozen=True):
    """The launches of CUDA graphs in a phase, and the ops that an eager trace gave them.

    Attributes:
        mapping_rate: The share of the replayed time whose ops an eager trace names; None without
            replays or without an eager trace.
        note: A note on how the replays were mapped; None without an eager trace.
        hide_kernels: Whether launches of graphs, each one interval without its kernels, make most
            of the busy time.
        are_folded: Whether all work of this side counts as one, because the graphs of the other
            side hide their kernels.
    """

    mapping_rate: float | None = None
    note: Notice | None = None
    hide_kernels: bool = False
    are_folded: bool = False


class HostWork(Struct, frozen=True):
    """The work of the host in the steps of a phase.

    Attributes:
        is_compiled: Whether torch.compile made a part of what ran.
        graph_blockers: The calls of a step that no CUDA graph can hold.
        first_calls: The longest first calls and compilations of the steps: name and ns.
        first_call_ns: Idle time of the device in first calls or compilation; on a trace of the
            host alone the time of compilers, and of first calls where it used a device.
        first_ops: The ops (rows of the trace) that are first calls.
        cold_steps: The steps that were left out because the host made first calls in them.
        allocations: The allocator's calls of all threads.
        blocked: Time in calls that copy or wait, by op (`host_calls.host_blocked_by_op`).
        collectives: Names of the collectives that threads of the host carried out.
        math_attention_calls: Calls per step of scaled_dot_product_attention that ran as products
            and a softmax.
        has_prune_hooks: Whether calls of torch.nn.utils.prune were recorded.
    """

    is_compiled: bool = False
    graph_blockers: GraphBlockers = GraphBlockers()
    first_calls: list[tuple[str, int]] = field(default_factory=list)
    first_call_ns: int = 0
    first_ops: frozenset[int] = frozenset()
    cold_steps: ColdStepTimes = ColdStepTimes()
    allocations: AllocatorCalls = field(default_factory=lambda: AllocatorCalls({}))
    blocked: pl.DataFrame = field(default_factory=pl.DataFrame)
    collectives: list[str] = field(default_factory=list)
    math_attention_calls: float = 0.0
    has_prune_hooks: bool = False


class ModuleRoles(Struct, frozen=True):
    """The modules of the model that a trace recorded, and the source of layers and roles.

    Attributes:
        source: Where layers and roles come from: "modules" (our hooks), "nn.Module" (classes that
            PyTorch's stacks name), "order" (the order of kernels) or "none". Where an eager trace
            gives them, where that has them from.
        ran: (layer, role) of the modules that our hooks saw; empty where they recorded none.
        were_recorded: Whether PyTorch recorded modules (with_stack), be they of use for roles or
            not.
        were_ignored: Whether modules that the trace may hold are ignored: the other side has none.
        decode_tokens: Whether the class of a module says that it decodes tokens.
        fused: How many GEMMs are compared as one because the other side multiplies their inputs in
            one, by role.
        were_aligned: Whether layers are those of the other side, with which the kernels were
            aligned.
    """

    source: str = "none"
    ran: frozenset[tuple[int, str]] = frozenset()
    were_recorded: bool = False
    were_ignored: bool = False
    decode_tokens: bool = False
    fused: dict[str, int] = field(default_factory=dict)
    were_aligned: bool = False

    @property
    def give_roles(self) -> bool:
        """Whether roles come from modules that the trace recorded."""
        return self.source in ("modules", "nn.Module")


class ProfilerFacts(Struct, frozen=True):
    """The profiler of a trace: how to make it record more, and how far its times can be trusted.

    Attributes:
        recorder: How to make it record what the trace lacks.
        python_calls: Calls of Python functions that it recorded; 0 if they are too few to matter.
        recorded_after: Weight of what was recorded after the last row of each step
            (timeline/overhead.py).
        clock_skew: How far the clocks of host and device differ; None if they agree.
        sampled_clock: The clock of the device in the steps; None if it was not sampled.
        lacks_device: Whether the model ran on a device of which the trace holds no events.
    """

    recorder: Recorder = field(default_factory=lambda: recorder_of({}))
    python_calls: int = 0
    recorded_after: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    clock_skew: ClockSkew | None = None
    sampled_clock: SampledClock | None = None
    lacks_device: bool = False


class Kernels(Struct, frozen=True, dict=True):
    """One phase of one trace: the kernels frame, the steps of its rows, and what is known of both.

    Attributes:
        frame: One row per unit of device work (per host op that computes, on a CPU trace).
        linked: Step, launch and idle time of each row, and the walls of the steps.
        windows: The steps on the host.
        on_device: Whether the trace holds device events; else the ops of the host are the work.
        shapes: The distinct op calls and their work.
        replays: The graph replays.
        host: The work of the host.
        modules: The recorded modules, and the source of layers and roles.
        profiler: The profiler of the trace.
        notes: The notes of a report on them.
        warnings: Its warnings of them.
    """

    frame: pl.DataFrame
    linked: Linked
    windows: Windows
    on_device: bool = True
    shapes: OpShapes = OpShapes()
    replays: GraphReplays = GraphReplays()
    host: HostWork = HostWork()
    modules: ModuleRoles = ModuleRoles()
    profiler: ProfilerFacts = ProfilerFacts()
    notes: list[Notice] = field(default_factory=list)
    warnings: list[Notice] = field(default_factory=list)

    @property
    def num_steps(self) -> int:
        """The number of steps that the means are over."""
        return len(self.linked.wall)

    @property
    def is_whole_trace(self) -> bool:
        """Whether the one step is the whole trace, in which nothing shows a step."""
        return self.windows.source == WHOLE

    @property
    def kernels_per_step(self) -> list[int]:
        """The number of rows in each step."""
        return [int(n) for n in np.bincount(self.linked.step, minlength=self.num_steps)]

    @cached_property
    def idle_by_cause(self) -> dict[str, int]:
        """The idle time by cause, ns of all steps."""
        return cause_sums(self.frame)

    @cached_property
    def late_host(self) -> tuple[int, int]:
        """The idle time of a late host, ns of all steps: in dispatch, and in other work."""
        return host_late(self.frame)

    @cached_property
    def _values(self) -> dict[str, frozenset[str]]:
        """What `values` read, by column."""
        return {}

    def values(self, column: str) -> frozenset[str]:
        """Return the distinct texts of a column without null; each column is read once."""
        if column not in self._values:
            self._values[column] = frozenset(self.frame[column].unique()) - {None}
        return self._values[column]

    @property
    def backward_roles(self) -> list[str]:
        """The roles of gradients."""
        return [role for role in self.values("role") if role.endswith(BACKWARD)]

    @cached_property
    def has_shapes(self) -> bool:
        """Whether most of the time of GEMMs and attention has shapes.

        It has none in graph replays without an eager trace, nor in a trace without host ops.
        """
        if self.replays.hide_kernels or self.replays.are_folded:
            return False
        frame = self.frame
        busy, product = frame["busy"], is_one_of(frame["class"], (MATMUL, ATTENTION))
        total = int(busy.filter(product).sum())
        return not total or int(busy.filter(product & frame["modelled"]).sum()) >= ENOUGH * total

    @property
    def is_replay(self) -> bool:
        """Whether graph replays make most of the busy time."""
        busy = self.linked.busy
        return bool(2 * busy[self.linked.replayed].sum() > busy.sum())

    @property
    def is_by_order(self) -> bool:
        """Whether roles come from the order of kernels alone.

        A config that aligned that order with its layers is more than the order.
        """
        return self.modules.source == "order" and not (self.frame["shapes"] == "model").any()

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
        """The wall of all steps together, ns."""
        return int(self.linked.wall.sum())

    @property
    def trailing_idle(self) -> int:
        """The idle time after the last event of every step together, ns."""
        return int(self.linked.trailing_idle.sum())
