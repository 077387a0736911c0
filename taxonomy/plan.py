"""The data types of the cost model: a workload, what a family changes of a stack of layers, an op.

Workload and Plan are the input of `taxonomy.theory`, Op is its output. FLOPs count multiply and
add; bytes are compulsory traffic; shares lie in 0..1; time is seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from msgspec import Struct, field
from msgspec.structs import replace

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.expert_routing import Routing
from prunescope.taxonomy.gemm import Gemm
from prunescope.taxonomy.shape import ModelShape

PHASES = ("prefill", "decode")
FORWARD = "forward"  # the one pass of a model that decodes nothing
LOGITS = ("last", "all")


class Sizes(Protocol):
    """The sizes of the forwards of a phase, as a run or a request states them."""

    @property
    def batch(self) -> int:
        """The number of sequences."""

    @property
    def prompt_len(self) -> int:
        """The tokens of each prompt."""

    @property
    def context(self) -> int | None:
        """The keys that a decode query sees."""

    @property
    def logits(self) -> str:
        """The positions whose logits are computed, one of LOGITS."""


class Workload(Struct, frozen=True, kw_only=True):
    """One forward: a prefill of [batch, prompt_len], or one decode step.

    `context` is L, the keys that a decode query sees, itself included; None: `prompt_len`.
    `routing` says how often each expert is chosen; None: all as often. `absorbed`: a decode step of
    latent attention multiplies its queries into the cached latents, as serving engines do, and does
    not expand keys and values from them, as transformers does. `kv_itemsize`: the bytes of a cached
    number; None: `itemsize`. `step_tokens`: the tokens of a sequence in one decode step, of which
    the last sees L keys; more than one where drafted tokens are verified. `source`: the tokens of
    each sequence that an encoder put out and that the decoder attends to; `prompt_len` and
    `context` are then of the decoder's own tokens.
    """

    phase: str
    batch: int = 1
    prompt_len: int = 512
    context: int | None = None
    logits: str = "last"
    itemsize: float = 2
    routing: Routing | None = None
    absorbed: bool = False
    kv_itemsize: float | None = None
    step_tokens: int = 1
    source: int = 0

    def __post_init__(self) -> None:
        if self.phase not in PHASES or self.logits not in LOGITS:
            raise PrunescopeError(
                f"no phase {self.phase!r} with logits {self.logits!r}",
                hint="phases are prefill and decode, logits last and all",
            )
        if self.batch < 1 or self.prompt_len < 1 or (self.context is not None and self.context < 1):
            raise PrunescopeError(
                f"batch {self.batch}, prompt {self.prompt_len}, context {self.context}: below 1",
                hint="give at least one sequence of one token",
            )

    @classmethod
    def from_sizes(
        cls,
        phase: str,
        sizes: Sizes,
        *,
        itemsize: float,
        routing: Routing | None = None,
        absorbed: bool = False,
        kv_itemsize: float | None = None,
    ) -> Workload:
        """Make a forward of `phase` with these sizes and `itemsize` bytes per number."""
        return cls(
            phase=phase,
            batch=sizes.batch,
            prompt_len=sizes.prompt_len,
            context=sizes.context if phase == "decode" else None,
            logits=sizes.logits,
            itemsize=itemsize,
            routing=routing,
            absorbed=absorbed,
            kv_itemsize=kv_itemsize,
        )

    @property
    def cached_itemsize(self) -> float:
        """The bytes of a number in the cache of keys and values."""
        return self.itemsize if self.kv_itemsize is None else self.kv_itemsize

    @property
    def prefill(self) -> bool:
        """Whether this is a prefill."""
        return self.phase == "prefill"

    @property
    def keys(self) -> int:
        """The keys of a sequence: S in prefill, L in decode."""
        return self.prompt_len if self.prefill or self.context is None else self.context

    @property
    def rows(self) -> int:
        """The tokens through a layer, called T in formulas."""
        return self.batch * self.queries

    @property
    def queries(self) -> int:
        """The tokens of a sequence in this forward."""
        return self.prompt_len if self.prefill else self.step_tokens

    @property
    def head_rows(self) -> int:
        """The tokens through lm_head, called T_o in formulas."""
        return self.rows if self.logits == "all" else self.batch


class Piece(Struct, frozen=True):
    """A GEMM that stands for one weight [n, k], or a part of it.

    `flop`: its share of the dense FLOPs of that shape; `stored`: that of the bytes as stored;
    `numbers`: that of the numbers.
    """

    n: int
    k: int
    flop: float = 1
    stored: float = 1
    numbers: float = 1


def whole(_role: str, n: int, k: int) -> tuple[Piece, ...]:
    """Return the weight as it is: one GEMM."""
    return (Piece(n, k),)


RANKED_AT_ONCE = 64  # queries whose scores rank keys in one piece: bounds their memory


class Plan(Struct, frozen=True, kw_only=True):
    """A stack of equal layers as a family changes it.

    `rows` and `read` give, by role, the share of the tokens that a GEMM sees (above 1 where earlier
    ones are computed again) and of its weights that are read; a role that is not there has share 1.
    Attention: `scores` is the share of the query-key pairs computed, `queries` of the queries read,
    `keys` of the cache read in decode, `heads` of the query heads that a query uses, `cached` of
    the tokens that leave keys in the cache; `held` the keys that the cache of a layer without a
    window holds, None for all of the context; `ranking` counts the last queries of each sequence
    whose scores rank the keys of such a layer. `attention_layers` counts the sublayers that mix
    tokens, by attention or by another mixer. `part` is the name of the model's part that the stack
    belongs to, "" for the decoder; `rests`: its layers do not run in this forward.
    """

    shape: ModelShape
    work: Workload
    attention_layers: float
    mlp_layers: float
    rows: Mapping[str, float] = field(default_factory=dict)
    read: Mapping[str, float] = field(default_factory=dict)
    scores: float = 1
    queries: float = 1
    keys: float = 1
    heads: float = 1
    cached: float = 1
    held: int | None = None
    ranking: int = 0
    compacted: float = 0  # share of the held keys that a decode step gathers anew
    runs: float = 1  # probability that an op on fewer rows runs at all in this forward
    linear: Callable[[str, int, int], tuple[Piece, ...]] = whole
    routers: tuple[str, ...] = ()  # sublayers ("attention", "mlp") with a router [T, h] -> 1
    residual: bool = False  # an h x h GEMM from each junction of the stream to the next
    part: str = ""
    rests: bool = False
    shifted: bool = False  # what reads the stream has a bias, that of the norm before it

    @property
    def context(self) -> int:
        """The keys in the cache of a layer that attends to all of it."""
        return self.work.keys if self.held is None else self.held

    @property
    def absorbed(self) -> bool:
        """Whether queries attend to cached latents as they are."""
        return (
            self.work.absorbed
            and not self.work.prefill
            and self.shape.attention.kv_rank is not None
        )


# It is not frozen: most of the time of a forward goes into making these, and frozen ones take twice
# as long.
class Op(Struct, kw_only=True):
    """One op of a forward, in one layer.

    `gemms` are whole numbers; `flop` and `bytes` are expectations. An attention has two GEMMs, of
    groups qk and pv. `parameters` counts numbers.
    """

    name: str  # pairs dense and pruned
    role: str
    group: str
    cls: str  # "matmul" | "attention" | "pointwise" | "conv" | "scan"
    layers: float
    flop: float
    bytes: float
    gemms: tuple[Gemm, ...] = ()
    weight_bytes: float = 0  # read in this forward
    kv_read: float = 0
    kv_write: float = 0
    kv_heads: int = 0  # of an attention
    parameters: float = 0
    stored_bytes: float = 0
    added: bool = False
    bounded: bool = True  # part of the roofline bound
    rows: float = 1  # share of the tokens that it sees
    spread: float = 0  # standard deviation of the rows of a group, where a router deals them out
    runs: float = 1  # probability that it runs in this forward
    experts: float = 0  # that get a token, of a layer: expected, of an op of routed experts; else 0
    # Of a GEMM whose rows need other inputs each: the share of K that any of them needs; else 0.
    union: float = 0
    sparse: bool = False  # a 2:4 GEMM: it stores indices with its numbers
    estimated: bool = False  # which keys it reads is estimated in each forward
    ranked: float = 0  # scores that rank keys, in addition to those of the attention itself
    ranked_in: int = 0  # pieces that they are computed in, one after the other
    compacted: float = 0  # share of its cache that is gathered anew

    @property
    def gathered(self) -> bool:
        """Whether the op works on rows that are chosen at run time."""
        return self.rows < 1

    def seconds(self, *, flop_per_s: float, byte_per_s: float) -> float:
        """Return the roofline time of one layer, max(F/π, Q/β)."""
        return max(self.flop / flop_per_s, self.bytes / byte_per_s)


def idle_op(op: Op) -> Op:
    """Return an op that does not run in a forward: its weights lie in memory."""
    return replace(
        op, flop=0, bytes=0, weight_bytes=0, kv_read=0, kv_write=0, ranked=0, runs=0, bounded=False
    )


def whole_gemm(plan: Plan, name: str, gemm: Gemm, *, role: str, group: str, layers: float) -> Op:
    """Make a GEMM that no family makes smaller: Q = b(T·K + N·K + T·N)."""
    b, weights = plan.work.itemsize, gemm.batch * gemm.n * gemm.k
    return Op(
        name=name,
        role=role,
        group=group,
        cls="matmul",
        layers=layers,
        gemms=(gemm,),
        flop=2 * gemm.m * weights,
        bytes=b * (gemm.batch * gemm.m * (gemm.n + gemm.k) + weights),
        weight_bytes=b * weights,
        parameters=weights,
        stored_bytes=b * weights,
        added=group == "added",
    )
